"""Errors of a sample of labels against the exact values of all, and against the standard errors told, on real states.

    python scripts/study_label_sampling.py                                 # some 40 minutes on 2 cores
    python scripts/study_label_sampling.py --seeds 5 --positions 30000     # a short one

SmolLM2 reads short texts once, and the hidden states of some layers are kept. They are then measured again and again
with the 8 n-gram label sets: exactly, and with `label_rows` of a half, an eighth and a thirty-second of the rows that
exact takes, planned and attached, with as many seeds (each with anchors of its own). Printed are, in units of log m,
the root mean square error, its ratio to the standard error told, and the mean error over its own standard error; for
each setting the range over label sets and layers; and the standard error told over that which a plan expects, which
rests on `softh_probe.planned.thresholds.ENTROPY_SD`. All figures go to .csv files.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from softh_probe.config import RunConfig
from softh_probe.data.corpus import Corpus, pad_batch
from softh_probe.data.prepared import read_corpus
from softh_probe.labels import NGRAM_SETS, parse_label_sets
from softh_probe.models.checkpoint import load_checkpoint
from softh_probe.models.source import resolve_model
from softh_probe.models.tokenizer import load_tokenizer
from softh_probe.planned.plan import Plan
from softh_probe.planned.prepared import batch_documents
from softh_probe.probe import SoftEntropyProbe

WAYS = (True, False)  # planned, attached
SHARES = (1 / 2, 1 / 8, 1 / 32)
LAYERS = (0, 12, 24, 30)
LABEL_SETS = parse_label_sets(NGRAM_SETS)
METRICS = ("mutual_information", "mutual_information_corrected")


class Replay(nn.Module):
    """Gives the hidden states that a model gave, batch by batch, as the outputs of one module a layer."""

    def __init__(self, states: dict[str, list[Tensor]]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name: nn.Identity() for name in states})
        self.states = states
        self.batch = 0

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> None:
        for name, layer in self.layers.items():
            layer(self.states[name][self.batch].float())


def record(config: RunConfig, corpus: Corpus, batches: list[np.ndarray], layers: tuple[int, ...]) -> Replay:
    """Run the model once and keep the hidden states of some layers, in half precision."""
    states: dict[str, list[Tensor]] = {f"layer_{layer}": [] for layer in layers}
    with load_checkpoint(resolve_model(config.model), dtype="float32", device_map="cpu") as checkpoint:
        for batch in tqdm(batches, desc="states", unit="batch"):
            ids_BT, mask_BT = pad_batch(corpus, batch)
            with torch.inference_mode():
                found = checkpoint.model(input_ids=ids_BT, attention_mask=mask_BT, output_hidden_states=True)
            for layer in layers:
                states[f"layer_{layer}"].append(found.hidden_states[layer].half())
    return Replay(states).eval()


def measure(
    replay: Replay, corpus: Corpus, batches: list[np.ndarray], *, planned: bool, seed: int, label_rows: int | str
) -> tuple[SoftEntropyProbe, pd.DataFrame]:
    """Measure the recorded states; give the probe and its table."""
    plan = Plan(corpus, LABEL_SETS, batches, label_rows=label_rows, seed=seed) if planned else None
    probe = SoftEntropyProbe(
        replay,
        labels=NGRAM_SETS,
        anchor_sets=1,
        modules=dict(replay.layers),
        plan=plan,
        label_rows=label_rows,
        seed=seed,
    )
    with probe:
        for replay.batch, documents in enumerate(batches):
            ids_BT, mask_BT = pad_batch(corpus, documents)
            if plan is None:
                replay(input_ids=ids_BT, attention_mask=mask_BT)
            else:
                with probe.batch(plan.batch(replay.batch)):
                    replay(input_ids=ids_BT, attention_mask=mask_BT)
    table = probe.result().to_pandas(means=False)
    return probe, table[table.metric.isin(METRICS)].set_index(["metric", "label_set", "name"])


def study(replay: Replay, corpus: Corpus, batches: list[np.ndarray], seeds: int) -> Iterator[pd.DataFrame]:
    """Measure exactly and with samples, with each seed; yield the errors and the standard errors told."""
    probe, _ = measure(replay, corpus, batches, planned=False, seed=0, label_rows="all")
    rows_of_sets = probe.state_dict()["rows"]["rows"]
    exact_rows = {
        True: int(Plan(corpus, LABEL_SETS, batches).rows_by_set.sum()),
        False: 1 + max(int(rows.max()) for rows in rows_of_sets),
    }
    for seed in tqdm(range(seeds), desc="seeds"):
        _, exact = measure(replay, corpus, batches, planned=True, seed=seed, label_rows="all")
        for planned in WAYS:
            for share in SHARES:
                rows = int(exact_rows[planned] * share)
                _, found = measure(replay, corpus, batches, planned=planned, seed=seed, label_rows=rows)
                plan = Plan(corpus, LABEL_SETS, batches, label_rows=rows, seed=seed) if planned else None
                expected = {} if plan is None else dict(zip(NGRAM_SETS, plan.expected_errors.tolist(), strict=True))
                yield pd.DataFrame(
                    {
                        "way": "planned" if planned else "attached",
                        "share": share,
                        "rows": rows,
                        "seed": seed,
                        "error": found.value - exact.value,
                        "told": found.sampling_sd if "sampling_sd" in found else 0.0,
                        "expected": found.index.get_level_values("label_set").map(expected.get),
                    }
                ).reset_index()


def summary(errors: pd.DataFrame) -> pd.DataFrame:
    """Compare the errors of each label set and layer with the standard error told."""
    keys = ["way", "share", "rows", "metric", "label_set", "name"]
    grouped = errors.groupby(keys, sort=False)
    n = grouped.error.count()
    table = pd.DataFrame(
        {
            "rms_error": grouped.error.apply(lambda e: np.sqrt((e**2).mean())),
            "told": grouped.told.apply(lambda e: np.sqrt((e**2).mean())),
            "expected": grouped.expected.mean(),
            "t_of_mean": grouped.error.mean() / (grouped.error.std() / np.sqrt(n)),
        }
    )
    table["ratio"] = table.rms_error / table.told
    return table[table.told > 0].reset_index()


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=".cache/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--data", default=".cache/fortunes.jsonl")
    parser.add_argument("--positions", type=int, default=152_000)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--layers", type=int, nargs="+", default=LAYERS)
    parser.add_argument("--out", default="out/label_sampling.csv")
    arguments = parser.parse_args()
    config = RunConfig(
        model=arguments.model, data=arguments.data, labels=NGRAM_SETS, max_length=128, cache="none", out="-",
        max_documents=max(arguments.positions // 40, 200),
    )  # fmt: skip
    corpus = read_corpus(config, load_tokenizer(resolve_model(config.model)))
    batches = batch_documents(config, corpus)
    replay = record(config, corpus, batches, tuple(arguments.layers))
    errors = pd.concat(study(replay, corpus, batches, arguments.seeds), ignore_index=True)
    Path(arguments.out).parent.mkdir(parents=True, exist_ok=True)
    errors.to_csv(arguments.out, index=False)
    table = summary(errors)
    table.to_csv(Path(arguments.out).with_suffix(".summary.csv"), index=False)
    show(table)


def show(table: pd.DataFrame) -> None:
    """Print the ranges of each setting over label sets and layers."""
    for way, of_way in table.groupby(["way", "share", "metric"], sort=False):
        least, most = of_way.min(numeric_only=True), of_way.max(numeric_only=True)
        overall = np.sqrt((of_way.rms_error**2).mean() / (of_way.told**2).mean())
        line = (
            f"{way[0]:<9} {way[1]:<8.4g} {way[2]:<29} rms {least.rms_error:.5f} to {most.rms_error:.5f}, ratio "
            f"{least.ratio:.2f} to {most.ratio:.2f} (all: {overall:.2f}), t of the mean {least.t_of_mean:.1f} to "
            f"{most.t_of_mean:.1f} (mean {of_way.t_of_mean.mean():.2f})"
        )
        if way[0] == "planned" and way[2] == "mutual_information":
            expected = of_way.told / of_way.expected
            line += f", told / expected {expected.min():.2f} to {expected.max():.2f}"
        print(line)


if __name__ == "__main__":
    main()
