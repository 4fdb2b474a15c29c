"""The dry run of a sweep: checkpoints that would run, expected time and disk, as text."""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
from collections.abc import Sequence

from huggingface_hub.errors import RevisionNotFoundError

from softh_probe.durations import duration
from softh_probe.errors import first_sentence
from softh_probe.result_files import RESULT_JSON, is_result
from softh_probe.sweep.config import SweepConfig
from softh_probe.sweep.document_length import with_shared_length
from softh_probe.sweep.downloads import GB, size_on_hub
from softh_probe.sweep.folder import FAILED, WAITING, SweepFolder
from softh_probe.sweep.grid import GridPoint, expand, inferred_steps
from softh_probe.sweep.pools import new_pool
from softh_probe.sweep.status import MOST_NAMES, count_states, describe_states
from softh_probe.sweep.tasks import check_tasks


def describe_plan(config: SweepConfig) -> str:
    """Describe a sweep before it starts: checkpoints that would run, expected time, expected disk.

    Raises:
        InputError: an error that `sweep` would raise before it starts.
    """
    points = expand(config)
    config, notes = with_shared_length(config, points)
    folder = SweepFolder(config.out)
    folder.check(config)
    tasks = folder.scores.assumed = check_tasks(config)
    folder.scores.check(tasks)
    n_workers = new_pool(config, folder, points).n_workers
    states = folder.states(points)
    todo = [point for point, state in states.items() if state.status in (WAITING, FAILED)]
    lines = [f"{len(points)} checkpoints, {n_workers} at once ({config.launcher}), results in {config.out}"]
    lines += [count_states(states), *(line for line in describe_states(states) if "waiting " not in line)]
    measured = [point for point in todo if is_result(folder.result(point))]
    if tasks.names:
        alone = f"; {len(measured)} of them are measured already" if measured else ""
        lines.append(f"tasks: {tasks.describe()}, by lm-evaluation-harness, for {len(todo)} checkpoints{alone}")
    if todo:
        lines += ["would run:", *_shorten([f"  {_described(point)}" for point in todo])]
    lines += [f"warning: {note}" for note in [inferred_steps(points), *notes] if note]
    time = _time(folder, len(todo) - len(measured), len(todo), n_workers)
    lines += [f"time expected: {time}", f"disk expected: {_disk(config, folder, todo)}"]
    return "\n".join(lines)


def _described(point: GridPoint) -> str:
    parts = [
        f"step {point.step:,}" if point.step is not None else "",
        f"{point.tokens:,} tokens" if point.tokens else "",
    ]
    extra = ", ".join(text for text in parts if text)
    return f"{point.checkpoint} ({extra})" if extra else point.checkpoint


def _shorten(lines: Sequence[str]) -> list[str]:
    if len(lines) <= 2 * MOST_NAMES:
        return list(lines)
    return [*lines[:MOST_NAMES], f"  … {len(lines) - 2 * MOST_NAMES} more …", *lines[-MOST_NAMES:]]


def _time(folder: SweepFolder, n_measured: int, n_evaluated: int, n_workers: int) -> str:
    """Tell the time of checkpoints to measure, and to evaluate where tasks are asked for, from those that are done."""
    if n_evaluated == 0:
        return "none"
    seconds, on_tasks = [], []
    for path in folder.finished_folders():
        info = json.loads((path / RESULT_JSON).read_text(encoding="utf-8"))
        seconds.append(sum(info.get("seconds", {}).values()))
        if folder.scores.asked().names and not folder.scores.missing(path.name):
            on_tasks.append(folder.scores.seconds(path.name))
    if not seconds:
        return "unknown until a checkpoint of this sweep is done"
    each = statistics.median(seconds)
    text = f"{duration(-(-n_measured // n_workers) * each)} ({duration(each)} each, from {len(seconds)} done)"
    if not folder.scores.asked().names:
        return text
    if not on_tasks:
        return f"{text}; that of tasks is unknown until a checkpoint has scores on all"
    each = statistics.median(on_tasks)
    return f"{text}, and on tasks {duration(-(-n_evaluated // n_workers) * each)} ({duration(each)} each)"


def _size(points: Sequence[GridPoint], config: SweepConfig) -> int:
    """Bytes of the first revision that the hub knows: revisions of one model are of one size."""
    for point in points[:-1]:
        with contextlib.suppress(RevisionNotFoundError):
            return size_on_hub(point.model, point.revision, allow_pickle=config.allow_pickle).n_bytes
    return size_on_hub(points[-1].model, points[-1].revision, allow_pickle=config.allow_pickle).n_bytes


def _disk(config: SweepConfig, folder: SweepFolder, todo: Sequence[GridPoint]) -> str:
    """Describe the disk use of hub checkpoints, from the hub's file sizes, and of results, from finished ones."""
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
