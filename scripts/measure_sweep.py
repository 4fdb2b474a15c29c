"""Sweep ten small checkpoints of one training run: where do the seconds beside the forward passes go?

    python scripts/measure_sweep.py                    # prints; --check fails where it takes longer than it should
    python scripts/measure_sweep.py --checkpoints 4 --keep out/small-sweep

Makes checkpoints of 3 random layers (safetensors, and a tokenizer.json of 16,000 tokens each), sweeps them over 60
short documents with one worker, 8 n-gram label sets and the default anchors, as `softh-probe sweep` in a process of its
own, and reads what it took from the results (`seconds`), from the logs of the checkpoints (CPU time), and from the
times of files. Printed are:

- to start: from the start of the process to the first forward pass;
- per checkpoint, the median over all but the first: from one result to the next, of which loading, forward, the rest;
- to collect: from the last result to the end of the process.

The document lengths, the number of layers and the vocabulary are small, so that what is not the model shows.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from random_models import model_config
from small_models.training import read_texts, train_tokenizer
from transformers import AutoModelForCausalLM

from softh_probe.labels import NGRAM_SETS

VOCABULARY, N_DOCUMENTS, CHARACTERS = 16_000, 60, 400
#: Seconds that should be enough: beside loading and forward for each checkpoint, and to collect them.
MOST_REST_S, MOST_COLLECT_S = 1.0, 3.0
#: The line with which the log of a checkpoint ends.
_TOOK = re.compile(r"^took ([\d.]+) s, ([\d.]+) s of CPU$", re.MULTILINE)


def texts() -> list[str]:
    """Help texts that come with Python."""
    return [" ".join(text.split()) for text in read_texts(None)]


def make_material(folder: Path, n_checkpoints: int) -> tuple[Path, Path]:
    """Write documents and checkpoints; returns the file, and the folder of the training run."""
    data, run = folder / "documents.jsonl", folder / "run"
    pieces = [text[:CHARACTERS] for text in texts() if len(text) >= CHARACTERS][:N_DOCUMENTS]
    data.write_text("".join(json.dumps({"text": piece}) + "\n" for piece in pieces))
    tokenizer, config = train_tokenizer(texts(), VOCABULARY), model_config("tiny")
    config.vocab_size = VOCABULARY
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for step in range(n_checkpoints):
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight), alpha=0.02)
        path = run / f"checkpoint-{step * 100}"
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
    return data, run


@dataclass(frozen=True, kw_only=True)
class Taken:
    """Seconds that a sweep took, and those of CPU that it used; per checkpoint the median of all but the first."""

    start: float
    each: float
    each_cpu: float
    load: float
    forward: float
    collect: float
    total: float
    total_cpu: float

    @property
    def rest(self) -> float:
        """From one result to the next, without loading and forward."""
        return self.each - self.load - self.forward

    def lines(self) -> list[str]:
        """What is printed."""
        return [
            f"start       {self.start:6.2f} s to the first forward pass",
            f"checkpoint  {self.each:6.2f} s, {self.each_cpu:6.2f} s of CPU",
            f"  loading   {self.load:6.2f} s",
            f"  forward   {self.forward:6.2f} s",
            f"  rest      {self.rest:6.2f} s",
            f"collect     {self.collect:6.2f} s",
            f"total       {self.total:6.2f} s, {self.total_cpu:6.2f} s of CPU",
        ]

    def problems(self) -> list[str]:
        """What takes longer than it should."""
        limits = (("rest", self.rest, MOST_REST_S), ("collect", self.collect, MOST_COLLECT_S))
        return [f"{name}: {took:.2f} s are more than {most:.1f} s" for name, took, most in limits if took > most]


def sweep(data: Path, run: Path, out: Path, *more: str) -> Taken:
    """Sweep in a process of its own, and read what it took."""
    words: list[object] = ["--model", run / "checkpoint-*", "--data", data, "--out", out]
    words += ["--labels", ",".join(NGRAM_SETS), "--workers", 1, "--gpus-per-worker", 0, *more]
    began = time.time()
    command = [sys.executable, "-m", "softh_probe.cli", "sweep", *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    text = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)  # of all processes below it, too
    ended = time.time()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"the sweep ended with {process.returncode}: {text[-2000:]}")
    files = sorted(out.glob("checkpoints/*/result.json"), key=lambda file: file.stat().st_mtime_ns)
    seconds: list[dict[str, Any]] = [json.loads(file.read_text())["seconds"] for file in files]
    logs = [(out / "work" / "logs" / f"{file.parent.name}.log").read_text() for file in files]
    cpu = [float(found[2]) for text in logs if (found := _TOOK.search(text))]
    when = [file.stat().st_mtime for file in files]
    middle = statistics.median
    return Taken(
        start=when[0] - seconds[0]["forward"] - seconds[0]["finish"] - began,
        each=middle(after - before for before, after in pairwise(when)),
        each_cpu=middle(cpu[1:]) if cpu[1:] else float("nan"),
        load=middle(one["load"] for one in seconds[1:]),
        forward=middle(one["forward"] for one in seconds[1:]),
        collect=ended - when[-1],
        total=ended - began,
        total_cpu=used.ru_utime + used.ru_stime,
    )


def main() -> int:
    """Measure, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=int, default=10)
    parser.add_argument("--keep", type=Path, help="folder for checkpoints and results; null removes them")
    parser.add_argument("--check", action="store_true", help="exit code 1 where it takes longer than it should")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory(prefix="measure_sweep-") as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        data, run = make_material(folder, arguments.checkpoints)
        taken = sweep(data, run, folder / "sweep")
    print("\n".join(taken.lines()))
    problems = taken.problems()
    print("\n".join(problems))
    return int(arguments.check and bool(problems))


if __name__ == "__main__":
    sys.exit(main())
