"""A tiny training run, saved as it goes, and sweeps over it: what is tested on many checkpoints."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import psutil
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from softh_probe import ProbeResult
from softh_probe.sweep import collect
from softh_probe.sweep.folder import SweepFolder
from softh_probe.sweep.grid import GridPoint
from tests.helpers.corpora import TEXTS
from tests.helpers.models import tiny_llama

N = 12


def small_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=150, special_tokens=["<unk>", "<s>", "<pad>"]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>")


def train(folder: Path, steps: int = N, name: str = "checkpoint-{}") -> list[Path]:
    """Train and save after each step; returns the checkpoints in order."""
    tokenizer = small_tokenizer()
    model = tiny_llama(vocab_size=len(tokenizer)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    ids = tokenizer(TEXTS[:8], return_tensors="pt", padding=True)["input_ids"]
    saved = []
    for step in range(1, steps + 1):
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        path = folder / name.format(step)
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
        (path / "trainer_state.json").write_text(json.dumps({"global_step": step, "num_input_tokens_seen": 0}))
        saved.append(path)
    return saved


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "softh_probe.cli", *map(str, words)]


def sweep_command(path: Path, *more: object) -> subprocess.CompletedProcess:
    return subprocess.run(command("sweep", "--config", path, *more), capture_output=True, text=True, timeout=300)


@contextlib.contextmanager
def started(path: Path, *more: object):
    """A sweep that runs beside the test, in a process group of its own; nothing of it is left after the block."""
    process = subprocess.Popen(
        command("sweep", "--config", path, *more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        family = descendants(process.pid)
        for one in [*family, process]:
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                one.kill()
        process.wait()


def descendants(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def wait_for(what, timeout: float = 90.0):
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited {timeout} s in vain")


def collected_folder(folder: Path, results: dict[tuple[object, int], ProbeResult]) -> Path:
    """Write the folder of a sweep whose results are given by model and step, and collect it, without figures."""
    sweep, points = SweepFolder(folder), []
    for (model, step), result in results.items():
        name = f"of{model}-step{step}"
        points.append(GridPoint(checkpoint=name, model=name, series=f"run/of{model}", step=step, folder=name))
        result.save(sweep.result(points[-1]))
    sweep.work.mkdir()
    sweep.write_json("grid.json", [dataclasses.asdict(point) for point in points])
    (folder / "config.yaml").write_text("model: [run]")
    with mock.patch("softh_probe.sweep.collection._write_report", return_value=None):
        collect(folder)
    return folder


def info_of(out: Path) -> dict:
    return json.loads((out / "sweep.json").read_text())


def attempts(log: str) -> int:
    return log.count(" in process ")


def statuses(out: Path) -> dict[str, str]:
    return {c["checkpoint"]: c["status"] for c in info_of(out)["checkpoints"]}


def n_results(out: Path) -> int:
    return len(list(out.glob("checkpoints/*/result.json")))


def running(out: Path) -> list[dict]:
    """Claims of checkpoints that are being measured, whose logs have begun, and not done yet."""
    found = []
    for path in out.glob("work/claims/*.json"):
        with contextlib.suppress(OSError, ValueError):
            claim = json.loads(path.read_text())
            done = out / "checkpoints" / path.stem / "result.json"
            log = (out / "work" / "logs" / f"{path.stem}.log").read_text()
            begun = len(claim["processes"]) == 2 and f" in process {claim['processes'][1][0]} on" in log
            if begun and not done.exists():
                found.append({**claim, "name": path.stem})
    return found


def held(out: Path, wanted=lambda claim: True) -> dict | None:
    """The claim of a checkpoint whose measurement was stopped (SIGSTOP) before its end: what is done to it now hits."""
    for claim in filter(wanted, running(out)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(claim["processes"][1][0], signal.SIGSTOP)
            if claim in running(out):
                return claim
            os.kill(claim["processes"][1][0], signal.SIGCONT)
    return None


def written(out: Path) -> dict[str, int]:
    """When each result was finished: what was done twice has another time."""
    return {path.parent.name: path.stat().st_mtime_ns for path in out.glob("checkpoints/*/result.json")}
