"""Write the test data of this folder with an earlier version of softh_probe; see README.md.

The script uses public names only. `tests/test_stored.py` imports its settings and inputs, and runs them with the
current version.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from softh_probe import SoftEntropyProbe
from softh_probe.config import RunConfig
from softh_probe.errors import Interrupted
from softh_probe.run import run
from softh_probe.sweep import SweepConfig, sweep

WORDS = list("abcdefghijklmnop")
SPECIAL = ["<pad>", "<eos>", "<unk>"]

#: Settings of the planned run. Paths are relative because a resumed run compares them.
RUN: dict[str, Any] = {
    "model": "checkpoint",
    "data": "texts.jsonl",
    "labels": ["input_unigram", "output_bigram", "column:language"],
    "per_label": ["input_unigram"],
    "n_anchors": 8,
    "anchor_sets": 2,
    "tokens_per_batch": 40,
    "device_map": "cpu",
    "cache": "none",
    "report": False,
}
SWEEP: dict[str, Any] = {
    "data": "texts.jsonl",
    "labels": ["input_unigram", "output_unigram"],
    "n_anchors": 8,
    "anchor_sets": 1,
    "tokens_per_batch": 200,
    "device_map": "cpu",
    "workers": 1,
    "gpus_per_worker": 0,
    "retries": 0,
}
#: Settings of the attached probes, by the name of their state.
PROBES: dict[str, dict[str, Any]] = {
    "forwarded": {"labels": ["input_unigram", "output_bigram"], "n_anchors": 4, "anchor_sets": 2},
    "unique_prefix": {
        "labels": ["input_unigram", "output_trigram"],
        "n_anchors": 6,
        "anchor_sets": 1,
        "count": "unique_prefix",
    },
    "labelled": {"labels": ["input_unigram"], "n_anchors": 8, "anchor_sets": 1, "anchors": "antithetic"},
}


def new_probe(name: str, model: nn.Module) -> SoftEntropyProbe:
    return SoftEntropyProbe(model, **PROBES[name])


def token_batch(seed: int, n_sequences: int = 3, n_tokens: int = 9) -> dict[str, Tensor]:
    """Random tokens with padding on the left."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(len(SPECIAL), len(SPECIAL) + len(WORDS), (n_sequences, n_tokens))
    mask = np.ones_like(ids)
    for i in range(n_sequences):
        mask[i, :i] = 0
    return {"input_ids": torch.tensor(ids * mask), "attention_mask": torch.tensor(mask)}


def measure(name: str, probe: SoftEntropyProbe, model: LlamaForCausalLM) -> None:
    """Run the forward passes of a stored state."""
    own = torch.tensor([0, 1, 0]), torch.arange(27).view(3, 9) % 4 - 1
    with probe, torch.inference_mode():
        if name == "labelled":
            for seed, language in enumerate((own[0], 1 - own[0])):
                with probe.labelled(language=language, part=own[1]):
                    model(**token_batch(seed))
            return
        model(**token_batch(0))
        for seed in (1, 2, 1):  # decode steps with a key-value cache; the first prompt repeats
            model.generate(**token_batch(seed), max_new_tokens=6, do_sample=False, pad_token_id=0, use_cache=True)


def measure_more(name: str, probe: SoftEntropyProbe, model: LlamaForCausalLM) -> None:
    """Run two more forward passes: a batch that the state holds already, and a new one."""
    language = torch.tensor([1, 2, 0])
    with probe, torch.inference_mode():
        for seed in (0, 7):
            if name == "labelled":
                with probe.labelled(language=language):
                    model(**token_batch(seed))
            else:
                model(**token_batch(seed))


def numbers(probe: SoftEntropyProbe) -> dict[str, Any]:
    """Numbers of a probe as JSON values, with every digit of a float64."""
    result = probe.result()
    return {
        "positions": probe.positions,
        "layers": probe.layers,
        "sums": probe.sums.tolist(),
        "table": result.to_pandas().to_dict("list"),
        "labels": {name: result.conditional_entropy(name).to_dict("list") for name, _ in result.labels},
    }


def write_checkpoint(folder: Path, *, seed: int = 0, n_layers: int = 2) -> None:
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=64
    ).save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=12,
        intermediate_size=16,
        num_hidden_layers=n_layers,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.5,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).eval().save_pretrained(folder)


def write_texts(path: Path) -> None:
    generator = np.random.default_rng(0)
    rows = [
        {"text": " ".join(generator.choice(WORDS, 4 + 3 * (i % 4))), "language": ["en", "de", None][i % 3]}
        for i in range(24)
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def write_runs() -> None:
    """Write an uninterrupted run, and the snapshot of the same run stopped after a few batches."""
    whole = run(RunConfig(**RUN, out="run"), progress=False)
    labels = {name: whole.conditional_entropy(name).to_dict("list") for name, _ in whole.labels}
    write_json("run.json", {"table": whole.to_pandas().to_dict("list"), "labels": labels})
    calls = iter(range(1000))

    def stop(module: nn.Module, *_: object) -> None:
        if type(module).__name__ == "LlamaModel" and next(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    hook = nn.modules.module.register_module_forward_hook(stop)
    try:
        run(RunConfig(**RUN, out="stopped"), progress=False)
        raise SystemExit("the run was not stopped")
    except Interrupted as stopped:
        print(stopped)
    finally:
        hook.remove()


def write_states() -> None:
    model = LlamaForCausalLM.from_pretrained("checkpoint").eval()
    Path("states").mkdir()
    for name in PROBES:
        probe = new_probe(name, model)
        measure(name, probe, model)
        written = io.BytesIO()
        torch.save(probe.state_dict(), written)
        # Most of a small state is zeros, in the sample's unused rows.
        Path(f"states/{name}.pt.gz").write_bytes(gzip.compress(written.getvalue(), mtime=0))
        found = numbers(probe)
        if name == "labelled":
            probe.result().save("labelled")
        measure_more(name, probe, model)
        write_json(f"states/{name}.json", {**found, "more": numbers(probe)})


def write_sweep(training: Path) -> None:
    """Sweep over two checkpoints and an empty folder, which fails. Figures, pages and logs are not kept."""
    for step in (1, 2):
        write_checkpoint(training / f"checkpoint-{step}", seed=step, n_layers=1)
    (training / "checkpoint-3").mkdir()
    outcome = sweep(SweepConfig(**SWEEP, model=str(training / "checkpoint-*"), out="sweep"), progress=False)
    print(len(outcome.done), "done,", len(outcome.failed), "failed", outcome.problem or "")
    for path in Path("sweep").iterdir():
        if path.suffix in (".html", ".png", ".svg", ".csv"):
            path.unlink()
    for name in ("cache", "claims", "corpora", "jobs", "logs"):
        shutil.rmtree(Path("sweep", "work", name), ignore_errors=True)


def write_json(path: str, value: Any) -> None:
    Path(path).write_text(json.dumps(value, separators=(",", ":")) + "\n")


def main(target: Path) -> None:
    # Results of a sweep hold absolute paths, so the working directory has a fixed name.
    work = Path(tempfile.gettempdir()) / "softh-probe-stored"
    work.mkdir()
    try:
        os.chdir(work)
        write_checkpoint(work / "checkpoint")
        write_texts(work / "texts.jsonl")
        write_runs()
        write_states()
        write_sweep(work / "training")
        for lock in work.rglob("*.lock"):
            lock.unlink()
        for name in ("checkpoint", "run", "stopped", "labelled", "states", "sweep"):
            shutil.rmtree(target / name, ignore_errors=True)
            shutil.copytree(name, target / name)
        for name in ("texts.jsonl", "run.json"):
            shutil.copy(name, target / name)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else Path(__file__).resolve().parent)
