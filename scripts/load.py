"""20 million positions and millions of labels: does memory stay bounded, and are the sums exact?

    python scripts/load.py                          # the full one: 8 n-gram label sets, some minutes on 2 cores
    python scripts/load.py --positions 100000       # a short one
    python scripts/load.py --attached               # without a plan: rows as labels come, never more than label_rows

A tiny model with random weights reads made-up documents, whose tokens are as unevenly frequent as words are and repeat
in phrases, through a run's own stages: plan, forward with snapshots, result. It does so twice, each time in a process
of its own: with a quarter of the documents, and with all.

Then everything is counted and summed again by other means: hidden states of documents one length at a time, without
padding or hooks; assignments and entropies in float64; labels as whole numbers made of their tokens, sorted, and their
positions taken some at a time. Exit code 1 if counts differ, if sums or informations deviate, or if memory grew by more
than the documents' tokens and the announced sums account for.

With --attached, a probe is attached to the model, which is fed documents that are made as they are needed. Exit code 1
if the process is larger after all positions than after a quarter of them, by more than a tenth.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from made_up_texts import VOCABULARY, made_up_documents
from transformers import LlamaConfig, LlamaModel

from softh_probe.data.corpus import Corpus, length_batches
from softh_probe.estimators.anchors import sample_anchors
from softh_probe.estimators.calibration import temperature
from softh_probe.labels import DEFAULT_LABEL_ROWS, NGRAM_SETS, ORDERS, parse_label_sets, shortest_document
from softh_probe.meter import SoftEntropyMeter
from softh_probe.planned.memory import place_sums
from softh_probe.planned.plan import Plan
from softh_probe.probe import SoftEntropyProbe
from softh_probe.result import ProbeResult
from softh_probe.run.forward import forward
from softh_probe.run.peak_memory import peak_memory_gib
from softh_probe.run.signals import StopRequests
from softh_probe.run.snapshots import Progress, Snapshots, SnapshotTimer

WIDTH, N_ANCHORS = 8, 16
TOKENS_PER_BATCH = 8192
#: With quadgrams before and after it, a position needs 3 tokens before and 4 after it.
BEFORE, AFTER = 3, 4
#: What a token may take beside the sums: the corpus, ids of n-grams and numbers of labels, and planning with them.
BYTES_PER_TOKEN = 120
SLACK_GIB = 0.15
MOST_DEVIATION = 1e-5
#: What a process may grow by after the first quarter of the positions.
MOST_GROWTH = 1.1


# --- what is measured ----------------------------------------------------------------------------------------------


def made_up_corpus(n_positions: int) -> Corpus:
    """Documents until so many positions count; a smaller corpus is the beginning of a larger one."""
    blocks: list[tuple[np.ndarray, np.ndarray]] = []
    positions = 0
    while positions < n_positions:
        blocks.append(made_up_documents(len(blocks)))
        positions += int(np.maximum(blocks[-1][1] - BEFORE - AFTER, 0).sum())
    tokens, lengths = (np.concatenate(part) for part in zip(*blocks, strict=True))
    n = int(np.searchsorted(np.cumsum(np.maximum(lengths - BEFORE - AFTER, 0)), n_positions)) + 1
    tokens, lengths = tokens[: lengths[:n].sum()], lengths[:n]
    counts = {"n_read": n, "n_empty": 0, "n_truncated": 0}
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Corpus(tokens=tokens, offsets=offsets, source=np.arange(n, dtype=np.int32), columns={}, **counts)


def made_up_model() -> LlamaModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 1}
    return LlamaModel(LlamaConfig(vocab_size=VOCABULARY, initializer_range=0.5, **sizes)).eval()


def measure(n_positions: int, folder: Path, snapshot_minutes: float) -> dict[str, Any]:
    """Plan, run and save the result in `folder`; what it took (JSON values)."""
    seconds = {}
    started = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal started
        now = time.perf_counter()
        seconds[stage], started = now - started, now

    corpus, model = made_up_corpus(n_positions), made_up_model()
    lap("corpus")
    label_sets = parse_label_sets(NGRAM_SETS)
    keep = corpus.lengths >= shortest_document(label_sets)
    plan = Plan(corpus, label_sets, length_batches(corpus.lengths, TOKENS_PER_BATCH, keep=keep))
    lap("plan")
    planned_gib = peak_gib()
    probe = SoftEntropyProbe(model, labels=NGRAM_SETS, n_anchors=N_ANCHORS, anchor_sets=1, plan=plan)
    memory = place_sums(plan, probe.layer_devices(), n_anchors=[N_ANCHORS], anchor_sets=1)
    probe.reserve(memory.on_host)
    snapshots = TimedSnapshots(folder / "snapshots")
    start = Progress(run={}, batches=0, seconds=0.0, interruptions=0)
    timer = SnapshotTimer(
        snapshots, probe, start, StopRequests(), n_batches=len(plan.batches), minutes=snapshot_minutes
    )
    forward(probe, model, plan, after_batch=timer, progress=False)
    lap("forward")
    probe.result().save(folder)
    lap("result")
    return {
        "positions": probe.positions,
        "tokens": corpus.n_tokens,
        "documents": corpus.n_documents,
        "labels": int(plan.labels_by_set.sum()),
        "rows": plan.allocation.n_live,
        "sums_gib": sum(memory.bytes_by_place.values()) / 2**30,
        "planned_gib": planned_gib,
        "peak_gib": peak_gib(),
        "seconds": seconds,
        "snapshots": snapshots.seconds,
    }


class TimedSnapshots(Snapshots):
    """Snapshots that know what each took."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.seconds: list[float] = []

    def write(self, probe: SoftEntropyProbe, progress: Progress) -> None:
        started = time.perf_counter()
        super().write(probe, progress)
        self.seconds.append(time.perf_counter() - started)


def peak_gib() -> float:
    """The most memory that this process held so far."""
    return peak_memory_gib()["host"]


def measured(n_positions: int, folder: Path, snapshot_minutes: float) -> dict[str, Any]:
    """`measure` in a process of its own."""
    words = [f"--positions={n_positions}", f"--snapshot-minutes={snapshot_minutes}", f"--measure={folder}"]
    done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


# --- without a plan ------------------------------------------------------------------------------------------------


def made_up_batches() -> Iterator[dict[str, torch.Tensor]]:
    """Documents without end, those of each block sorted by length and padded on the right; with their masks."""
    for block in count():
        tokens, lengths = made_up_documents(block)
        documents = sorted(np.split(tokens, np.cumsum(lengths)[:-1]), key=len)
        while documents:
            n = len(documents) - 1  # the longest come last
            while n and (len(documents) - n + 1) * len(documents[-1]) <= TOKENS_PER_BATCH:
                n -= 1
            documents, batch = documents[:n], documents[n:]
            ids = np.zeros((len(batch), len(batch[-1])), dtype=np.int64)
            mask = np.arange(ids.shape[1]) < np.array(list(map(len, batch)))[:, None]
            ids[mask] = np.concatenate(batch)
            yield {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask.astype(np.int64))}


def attached(names: tuple[str, ...], label_rows: int) -> Generator[SoftEntropyProbe]:
    """Yield a probe after each batch that its model is fed."""
    model = made_up_model()
    probe = SoftEntropyProbe(model, labels=names, n_anchors=N_ANCHORS, anchor_sets=1, label_rows=label_rows)
    with probe, torch.inference_mode():
        for batch in made_up_batches():
            model(**batch)
            yield probe


def stays_small(fed: Generator[SoftEntropyProbe | SoftEntropyMeter], n_positions: int) -> bool:
    """Print the size of this process after a quarter, a half and all of the positions; whether it stays."""
    marks, sizes = [n_positions // 4, n_positions // 2, n_positions], []
    started = time.perf_counter()
    with closing(fed):
        for probe in fed:
            if probe.positions < marks[len(sizes)]:
                continue
            sizes.append(psutil.Process().memory_info().rss)
            seconds = time.perf_counter() - started
            print(
                f"{probe.positions:,} positions: {sizes[-1] / 2**30:.3f} GiB, {seconds:.0f} s "
                f"({probe.positions / seconds:,.0f} positions a second), "
                f"threshold {probe.state_parts()[0]['rows']['threshold']:.1f}",
                flush=True,
            )
            if len(sizes) == len(marks):
                break
    return sizes[-1] <= MOST_GROWTH * sizes[0]


# --- the same by other means ---------------------------------------------------------------------------------------


class Reference:
    """Every counted position in the order of the corpus: its hidden state in each row, on disk, and its labels."""

    def __init__(self, n_positions: int, folder: Path) -> None:
        self.corpus = made_up_corpus(n_positions)
        self.counts = np.maximum(self.corpus.lengths - BEFORE - AFTER, 0)
        self.n_positions = int(self.counts.sum())
        self.first = np.concatenate([[0], np.cumsum(self.counts)])  # of each document, among the positions
        depth = np.arange(self.corpus.n_tokens) - np.repeat(self.corpus.offsets[:-1], self.corpus.lengths)
        left = np.repeat(self.corpus.lengths, self.corpus.lengths) - depth
        self.token = np.flatnonzero((depth >= BEFORE) & (left > AFTER))  # of each position
        shape = (self.n_positions, WIDTH)
        self.hidden = {
            row: np.lib.format.open_memmap(folder / f"{row}.npy", "w+", np.float32, shape)
            for row in ("embeddings", "layer.1", "final_norm")
        }
        self._run(made_up_model())
        self.anchors = sample_anchors(N_ANCHORS, WIDTH).numpy().astype(np.float64)
        self.temperature = temperature(N_ANCHORS, WIDTH)

    def _run(self, model: LlamaModel) -> None:
        """Documents of equal length together: nothing is padded."""
        rows: list[torch.Tensor] = []
        model.layers[0].register_forward_hook(lambda _m, _a, output: rows.append(output))
        by_length = np.argsort(self.corpus.lengths, kind="stable")
        lengths, starts = np.unique(self.corpus.lengths[by_length], return_index=True)
        for length, documents in zip(lengths, np.split(by_length, starts[1:]), strict=True):
            if length <= BEFORE + AFTER:
                continue
            for some in np.array_split(documents, -(-len(documents) * length // 2**14)):
                ids = torch.from_numpy(np.stack([self.corpus.document(d) for d in some]).astype(np.int64))
                rows.clear()
                with torch.inference_mode():
                    output = model(input_ids=ids, output_hidden_states=True)
                states = dict(embeddings=output.hidden_states[0], final_norm=output.last_hidden_state)
                for row, hidden in {**states, "layer.1": rows[0]}.items():
                    counted = hidden[:, BEFORE : length - AFTER].numpy()
                    places = self.first[some][:, None] + np.arange(length - BEFORE - AFTER)
                    self.hidden[row][places.reshape(-1)] = counted.reshape(-1, WIDTH)

    def assignments(self, row: str, positions: np.ndarray | slice) -> np.ndarray:
        """Q of positions [N, M], float64."""
        h = self.hidden[row][positions].astype(np.float64)
        logits = (h / np.linalg.norm(h, axis=1, keepdims=True)) @ self.anchors.T / self.temperature
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)

    def total(self, row: str) -> np.ndarray:
        """The sum of all assignments [M]."""
        parts = range(0, self.n_positions, 2**20)
        return sum(self.assignments(row, slice(i, min(i + 2**20, self.n_positions))).sum(axis=0) for i in parts)

    def labels(self, name: str) -> np.ndarray:
        """A number for each position, equal where the label is."""
        direction, order = name.split("_")[0], ORDERS[name.split("_")[1]]
        first = self.token + (1 if direction == "output" else 1 - order)
        number = np.zeros(self.n_positions, dtype=np.uint64)
        for i in range(order):
            number = number * np.uint64(VOCABULARY) + self.corpus.tokens[first + i].astype(np.uint64)
        return number

    def counted(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Positions sorted by label, and where each label's begin."""
        labels = self.labels(name)
        order = np.argsort(labels, kind="stable")
        labels = labels[order]
        return order, np.flatnonzero(np.concatenate([[True], labels[1:] != labels[:-1]]))

    def conditional_entropy(self, row: str, order: np.ndarray, starts: np.ndarray) -> float:
        """Σ P(x)·H(p̂_x) in nats, some labels at a time."""
        weighted = 0.0
        for begin, end, of_part in parts_of(starts, len(order), 2**19):
            sums = np.add.reduceat(self.assignments(row, order[begin:end]), of_part - begin, axis=0)
            n = sums.sum(axis=1)
            weighted += float((n * np.log(n)).sum() - (sums * np.log(np.maximum(sums, 1e-300))).sum())
        return weighted / self.n_positions


def parts_of(starts: np.ndarray, n: int, size: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """Whole labels, about `size` positions of them at a time: from, to, and where each begins."""
    i = 0
    while i < len(starts):
        j = max(i + 1, int(np.searchsorted(starts, starts[i] + size)))
        yield int(starts[i]), int(starts[j]) if j < len(starts) else n, starts[i:j]
        i = j


def entropy(mass: np.ndarray) -> float:
    p = mass / mass.sum()
    return float(-(p * np.log(p)).sum())


def deviations(result: ProbeResult, reference: Reference, labels: int) -> tuple[float, float, list[str]]:
    """The largest relative deviation of a sum, and of an information of layer.1; and counts that differ."""
    wrong = []
    of_sums = of_information = 0.0
    for r, row in enumerate(result.rows):
        expected = reference.total(row)
        of_sums = max(of_sums, np.abs(result.tensors["mass"][r, 0].numpy() / expected - 1).max())
        if result.tensors["positions"][r] != reference.n_positions:
            wrong.append(f"{row}: {result.tensors['positions'][r]:,.0f} positions, not {reference.n_positions:,}")
    row, found = result.rows.index("layer.1"), 0
    h = entropy(reference.total("layer.1"))
    for x, name in enumerate(result.label_sets):
        order, starts = reference.counted(name)
        found += len(starts)
        n_alone = int((np.diff(np.append(starts, len(order))) == 1).sum())
        if result.tensors["covered_positions"][row, x] != reference.n_positions - n_alone:
            wrong.append(f"{name}: {n_alone:,} labels should occur once, but it is another number")
        expected = h - reference.conditional_entropy("layer.1", order, starts)
        ours = float(result.tensors["labelled_entropy"][row, x, 0] - result.tensors["conditional_entropy"][row, x, 0])
        of_information = max(of_information, abs(ours / expected - 1))
        print(f"  {name:<16}{len(starts):>12,} labels, {n_alone:>10,} once; I = {ours:.6f}, {expected:.6f}", flush=True)
    if found != labels:
        wrong.append(f"{labels:,} labels, not {found:,}")
    return of_sums, of_information, wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=20_000_000, help="that count, at least")
    parser.add_argument("--snapshot-minutes", type=float, default=1.0, help="between snapshots")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # what the script calls itself with
    parser.add_argument("--attached", action="store_true", help="without a plan")
    parser.add_argument("--label-rows", type=int, default=DEFAULT_LABEL_ROWS, help="with --attached")
    parser.add_argument("--labels", default=",".join(NGRAM_SETS), help="with --attached")
    arguments = parser.parse_args()
    if arguments.attached:
        fed = attached(tuple(arguments.labels.split(",")), arguments.label_rows)
        sys.exit(
            None if stays_small(fed, arguments.positions) else f"memory grew by more than a factor of {MOST_GROWTH}"
        )
    if arguments.measure:
        print(json.dumps(measure(arguments.positions, arguments.measure, arguments.snapshot_minutes)))
        sys.exit()
    with tempfile.TemporaryDirectory(prefix="load-") as folder:
        runs = []
        for name, positions in (("quarter", arguments.positions // 4), ("whole", arguments.positions)):
            Path(folder, name).mkdir()
            run = measured(positions, Path(folder, name), arguments.snapshot_minutes)
            runs.append(run)
            print(
                f"{run['positions']:,} positions of {run['tokens']:,} tokens in {run['documents']:,} documents; "
                f"{run['labels']:,} labels of 8 sets, {run['rows']:,} have rows at a time ({run['sums_gib']:.2f} GiB); "
                f"peak {run['planned_gib']:.2f} GiB after planning, {run['peak_gib']:.2f} GiB in the end; "
                + ", ".join(f"{stage} {s:.0f} s" for stage, s in run["seconds"].items())
                + f"; {len(run['snapshots'])} snapshots of {max(run['snapshots'], default=0):.1f} s at most",
                flush=True,
            )
        quarter, whole = runs
        started = time.perf_counter()
        reference = Reference(arguments.positions, Path(folder))
        result = ProbeResult.load(Path(folder, "whole"))
        of_sums, of_information, problems = deviations(result, reference, whole["labels"])
        print(
            f"checked in {time.perf_counter() - started:.0f} s: largest relative deviation of sums {of_sums:.1e}, "
            f"of informations {of_information:.1e}"
        )
    grown = whole["peak_gib"] - quarter["peak_gib"] - (whole["sums_gib"] - quarter["sums_gib"])
    per_token = grown * 2**30 / (whole["tokens"] - quarter["tokens"])
    print(
        f"memory: {quarter['peak_gib']:.2f} GiB for a quarter, {whole['peak_gib']:.2f} GiB for all; beside the sums "
        f"it grew by {per_token:.0f} bytes a token"
    )
    if grown > SLACK_GIB + BYTES_PER_TOKEN * (whole["tokens"] - quarter["tokens"]) / 2**30:
        problems.append(f"memory grew by more than {BYTES_PER_TOKEN} bytes a token")
    for what, deviation in (("sums", of_sums), ("informations", of_information)):
        if not deviation < MOST_DEVIATION:
            problems.append(f"{what} deviate by more than {MOST_DEVIATION}")
    print("\n".join(problems))
    sys.exit(bool(problems))
