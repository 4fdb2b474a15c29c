"""A sweep folder of 5,000 finished checkpoints: are they listed, collected and reported in under a minute?

    python scripts/load_sweep.py                                        # 13 rows, 8 n-gram label sets: 2 + 1 minutes
    python scripts/load_sweep.py --checkpoints 200 --layers 30          # the size of a page

The folder holds what a sweep writes: real results, of made-up values that differ, saved as a run saves them; a few
checkpoints failed, a few wait. Each command runs in a process of its own; printed are its seconds (wall, and CPU,
which others at work on the machine leave alone), its peak memory and what it wrote. Exit code 1 if the table is not
that of the results, or if status, collect and report together take more than --most-seconds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from softh_probe.accumulators.statistics import LayerStatistics
from softh_probe.config import plain_config
from softh_probe.labels import NGRAM_SETS
from softh_probe.result import ProbeResult
from softh_probe.result_files import LAYERS_PARQUET, OPTIONAL
from softh_probe.sweep.config import SweepConfig
from softh_probe.sweep.folder import SweepFolder
from softh_probe.sweep.grid import GridPoint, expand

N_ANCHORS = 100
#: One in so many checkpoints failed, and one in so many waits.
FAILED, WAITING = 400, 250


def made_up_result(n_layers: int) -> ProbeResult:
    """A result of plausible values that no model gave: embeddings, layers, final norm."""
    rows = ["embeddings", *(f"layer.{i}" for i in range(1, n_layers - 1)), "final_norm"]
    n_rows, n_sets = len(rows), len(NGRAM_SETS)
    chance = torch.Generator().manual_seed(0)
    h = torch.linspace(0.9, 0.6, n_rows, dtype=torch.float64).view(-1, 1, 1).expand(n_rows, n_sets, 1) * 4.6
    shapes = {
        "mass": (n_rows, 1, N_ANCHORS),
        **dict.fromkeys(("position_entropy", "entropy_document_sd"), (n_rows, 1)),
        "positions": (n_rows,),
        **dict.fromkeys(("labelled_positions", "covered_positions"), (n_rows, n_sets)),
        **dict.fromkeys(("label_positions",), (n_rows, 0)),
        "label_entropy": (n_rows, 0, 1),
    }
    tensors = {}
    for name in LayerStatistics.__dataclass_fields__:
        if name in OPTIONAL:
            continue  # all labels were followed
        values = torch.rand(shapes.get(name, h.shape), generator=chance, dtype=torch.float64)
        tensors[name] = values if name in shapes else h * (0.5 + 0.5 * values)
    return ProbeResult(rows=rows, label_sets=list(NGRAM_SETS), tensors=tensors)


def changed(result: ProbeResult, checkpoint: int, info: dict[str, Any]) -> ProbeResult:
    """The same, a little different at each checkpoint, and what is said of it."""
    tensors = {
        name: tensor
        * (1 + 0.1 * torch.sin(torch.arange(tensor.numel(), dtype=torch.float64) + checkpoint / 50)).view(tensor.shape)
        for name, tensor in result.tensors.items()
    }
    return replace(result, tensors=tensors, info=info)


def write_sweep(folder: Path, n_checkpoints: int, n_layers: int) -> tuple[SweepConfig, dict[str, GridPoint]]:
    """A sweep folder as a sweep leaves it; returns its configuration and what is done, by name."""
    data = folder / "texts.jsonl"
    data.write_text('{"text": "once upon a time"}\n')
    steps = [i + round(1.002**i) for i in range(n_checkpoints)]
    config = SweepConfig(
        model="made/up",
        revision=[f"step{step}" for step in steps],
        data=str(data),
        labels=NGRAM_SETS,
        n_anchors=N_ANCHORS,
        anchor_sets=1,
        max_length=512,
        out=str(folder / "sweep"),
        workers=1,
        gpus_per_worker=0,
    )
    points = expand(config)
    sweep = SweepFolder(config.out)
    sweep.start(config, points)
    base, done = made_up_result(n_layers), {}
    for i, point in enumerate(points):
        if i % FAILED == 1:
            sweep.record(point, "out of memory, even with one document a batch", retries=0)
        elif i % WAITING != 2:
            run = config.run_config(model=point.source, revision=point.revision, out=sweep.result(point))
            info = {
                "settings": {"n_anchors": N_ANCHORS, "anchor_sets": 1, "anchors": "iid", "seed": 0},
                "anchors": [{"dim": 768, "recipe": "iid", "sha256": "a" * 64, "temperature": 0.0135}],
                "positions": 1_000_000,
                "tokens": 1_100_000,
                "config": plain_config(run),
                "model": {"model": point.model, "revision": point.revision, "weights_sha256": f"{i:064x}"},
                "corpus": {"data": config.data, "sha256": "c" * 64},
                "seconds": {"load": 10.0, "forward": 100.0},
            }
            changed(base, i, info).save(sweep.result(point))
            sweep.log(point).write_text("--- measured\n")
            done[point.checkpoint] = point
    return config, done


@dataclass(frozen=True)
class Cost:
    wall_s: float
    cpu_s: float
    peak_gib: float
    printed: str


def timed(*words: object) -> Cost:
    """A command of softh-probe, in a process of its own."""
    command = [sys.executable, "-m", "softh_probe.cli", *map(str, words)]
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        printed.seek(0)
        text = printed.read()
    wall = time.perf_counter() - started
    code = process.returncode = os.waitstatus_to_exitcode(status)
    if code not in (0, 1) or "Traceback" in text:  # 1: a sweep of which a checkpoint failed
        raise SystemExit(f"{' '.join(command)} ended with {code}: {text[-2000:]}")
    return Cost(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20, text)


def wrong(config: SweepConfig, done: dict[str, GridPoint]) -> list[str]:
    """Find differences between the sweep's table and the checkpoints' own tables."""
    found = []
    folder = SweepFolder(config.out)
    table = pd.read_parquet(
        folder.path / "sweep.parquet", columns=["checkpoint", "layer", "metric", "label_set", "value"]
    )
    if list(table.checkpoint.unique()) != list(done):
        found.append("its checkpoints are not those that are done, in their order")
    for name in [*done][:: max(1, len(done) // 20)]:
        own = pd.read_parquet(folder.result(done[name]) / LAYERS_PARQUET)
        of_it = table[table.checkpoint == name]
        if len(of_it) != len(own) or not np.array_equal(of_it.value, own.value, equal_nan=True):
            found.append(f"{name}: its values are not those of its own table")
    with (folder.path / "sweep.csv").open() as csv:
        n_lines = sum(1 for _ in csv)
    if n_lines != len(table) + 1:
        found.append(f"sweep.csv has {n_lines - 1:,} lines, sweep.parquet {len(table):,}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=int, default=5000)
    parser.add_argument("--layers", type=int, default=13, help="rows of each, embeddings and final norm included")
    parser.add_argument("--most-seconds", type=float, default=60.0, help="for status, collect and report together")
    parser.add_argument("--folder", type=Path, help="where the sweep is kept; null removes it")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory(prefix="load_sweep-") as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        config, done = write_sweep(folder, arguments.checkpoints, arguments.layers)
        print(
            f"{arguments.checkpoints:,} checkpoints, {len(done):,} done: made in {time.perf_counter() - started:.0f} s"
        )
        out = Path(config.out)
        commands = {name: (name, out) for name in ("status", "collect", "report")}
        commands["sweep --dry-run"] = ("sweep", "--config", out / "config.yaml", "--dry-run")
        costs = {}
        for name, words in commands.items():
            costs[name] = cost = timed(*words)
            print(f"{name:<16}{cost.wall_s:8.1f} s, {cost.cpu_s:6.1f} s of CPU, {cost.peak_gib:5.2f} GiB", flush=True)
        print(costs["status"].printed.splitlines()[0])
        for file in ("sweep.parquet", "sweep.csv", "sweep.json", "report.html"):
            print(f"{file:<16}{(out / file).stat().st_size / 1e6:8.1f} MB")
        together = sum(costs[name].wall_s for name in ("status", "collect", "report"))
        print(f"status, collect and report: {together:.1f} s")
        problems = wrong(config, done)
    if together > arguments.most_seconds:
        problems.append(f"{together:.0f} s are more than {arguments.most_seconds:.0f} s")
    print("\n".join(problems))
    sys.exit(bool(problems))
