"""How a sweep stands, and what it would do: text for people."""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub.errors import RevisionNotFoundError

from softh_probe.errors import InputError, first_sentence
from softh_probe.result_files import RESULT_JSON
from softh_probe.sweep.config import SweepConfig
from softh_probe.sweep.downloads import GB, size_on_hub
from softh_probe.sweep.folder import DONE, FAILED, RUNNING, WAITING, CheckpointStatus, SweepFolder, duration
from softh_probe.sweep.grid import GridPoint, expand
from softh_probe.sweep.launcher import new_pool

#: Names of a list that are shown.
_SHOWN = 20


def status(out: str | Path) -> str:
    """How many checkpoints of a sweep are done, running, failed and waiting; which, and why.

    Raises:
        InputError: the folder holds no sweep.
    """
    folder = SweepFolder(out)
    if not folder.is_sweep():
        raise InputError(f"{folder.path}: holds no sweep; expected the output folder of `softh-probe sweep`")
    states = folder.states(folder.known_points())
    return "\n".join([_counts(states), *_lines(states)])


def plan(config: SweepConfig) -> str:
    """What a sweep would do now: which checkpoints would run, how long it may take, what it needs of the disk.

    Raises:
        InputError: what `sweep` would raise before it starts.
    """
    points = expand(config)
    folder = SweepFolder(config.out)
    folder.check(config)
    n_workers = new_pool(config, folder, points).n_workers
    states = folder.states(points)
    todo = [point for point, state in states.items() if state.status in (WAITING, FAILED)]
    lines = [f"{len(points)} checkpoints, {n_workers} at once ({config.launcher}), results in {config.out}"]
    lines += [_counts(states), *(line for line in _lines(states) if "waiting " not in line)]
    if todo:
        lines += ["would run:", *_some([f"  {_described(point)}" for point in todo])]
    lines += [f"time expected: {_time(folder, len(todo), n_workers)}", f"disk expected: {_disk(config, folder, todo)}"]
    return "\n".join(lines)


def _counts(states: dict[GridPoint, CheckpointStatus]) -> str:
    counts = {s: sum(state.status == s for state in states.values()) for s in (DONE, RUNNING, FAILED, WAITING)}
    return ", ".join(f"{n} {status}" for status, n in counts.items())


def _lines(states: dict[GridPoint, CheckpointStatus]) -> list[str]:
    """What is worth a line: who runs, what failed and why, and what waits."""
    lines = []
    for point, state in states.items():
        if state.status == RUNNING and state.owner:
            job = f", Slurm job {state.owner['task']}" if state.owner.get("task") else ""
            where = f"process {state.owner['processes'][0][0]} on {state.owner['host']}{job}"
            lines.append(f"running  {point.checkpoint}: for {duration(time.time() - state.owner['since'])}, {where}")
    for point, state in states.items():
        if state.status == FAILED and state.failure:
            lines.append(f"failed   {point.checkpoint}: {state.failure.reason} (log: {state.failure.log})")
    waiting = [(point, state.failure) for point, state in states.items() if state.status == WAITING]
    for point, failure in waiting:
        if failure:
            lines.append(f"waiting  {point.checkpoint}: to be tried again after: {failure.reason} (log: {failure.log})")
    if fresh := [point.checkpoint for point, failure in waiting if not failure]:
        more = f" and {len(fresh) - _SHOWN} more" if len(fresh) > _SHOWN else ""
        lines.append(f"waiting  {', '.join(fresh[:_SHOWN])}{more}")
    return lines


def _described(point: GridPoint) -> str:
    told = [
        f"step {point.step:,}" if point.step is not None else "",
        f"{point.tokens:,} tokens" if point.tokens else "",
    ]
    extra = ", ".join(text for text in told if text)
    return f"{point.checkpoint} ({extra})" if extra else point.checkpoint


def _some(lines: Sequence[str]) -> list[str]:
    if len(lines) <= 2 * _SHOWN:
        return list(lines)
    return [*lines[:_SHOWN], f"  … {len(lines) - 2 * _SHOWN} more …", *lines[-_SHOWN:]]


def _time(folder: SweepFolder, n: int, n_workers: int) -> str:
    if n == 0:
        return "none"
    seconds = []
    for path in folder.finished_folders():
        said = json.loads((path / RESULT_JSON).read_text(encoding="utf-8"))
        seconds.append(sum(said.get("seconds", {}).values()))
    if not seconds:
        return "unknown until a checkpoint of this sweep is done"
    each = statistics.median(seconds)
    rounds = -(-n // n_workers)
    return f"{duration(rounds * each)} ({duration(each)} each, from {len(seconds)} done)"


def _size(points: Sequence[GridPoint], config: SweepConfig) -> int:
    """Bytes of a revision: those of one model are of one size. Names that the hub does not know are passed over."""
    for point in points[:-1]:
        with contextlib.suppress(RevisionNotFoundError):
            return size_on_hub(point.model, point.revision, allow_pickle=config.allow_pickle).n_bytes
    return size_on_hub(points[-1].model, points[-1].revision, allow_pickle=config.allow_pickle).n_bytes


def _disk(config: SweepConfig, folder: SweepFolder, todo: Sequence[GridPoint]) -> str:
    """Hub checkpoints, by the hub's file sizes, and results, by those that are there."""
    parts = []
    by_model: dict[str, list[GridPoint]] = {}
    for point in todo:
        if not point.local:
            by_model.setdefault(point.model, []).append(point)
    total = largest = 0.0
    for model, points in by_model.items():
        try:
            each = _size(points, config)
        except Exception as error:  # an estimate is no reason to stop
            parts.append(f"{model}: unknown ({first_sentence(error)})")
            continue
        total, largest = total + each * len(points), max(largest, each)
        parts.append(f"{model}: {each / GB:.3g} GB each, {each * len(points) / GB:.3g} GB together")
    if total and config.disk_gb is not None:
        parts.append(f"at most {config.disk_gb:g} GB at a time (disk_gb)")
    elif total and not config.keep_checkpoints:
        parts.append(f"about {2 * (config.workers or 1) * largest / GB:.3g} GB at a time, as they are not kept")
    if not by_model:
        parts.append("no downloads")
    if finished := folder.finished_folders():
        size = statistics.median(sum(f.stat().st_size for f in path.iterdir()) for path in finished)
        parts.append(f"results: {size * len(todo) / GB:.3g} GB")
    else:
        parts.append("results: unknown until a checkpoint is done")
    existing = next(p for p in (folder.path, *folder.path.parents) if p.exists())
    parts.append(f"free at the output: {shutil.disk_usage(existing).free / GB:.3g} GB")
    return "; ".join(parts)
