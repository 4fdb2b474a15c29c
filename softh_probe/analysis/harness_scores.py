"""Scores from results_*.json, as lm-evaluation-harness (lm_eval) writes them.

A task has one score, which bears its name: its first accuracy in the order of the file (`acc`, `exact_match`, or a
name that ends in `_acc`), else its first metric. Its other metrics are called `task:metric`; with a filter that is not
"none", `task:metric,filter`. Standard errors are no scores. Of a group with a score of its own, its subtasks are left
out.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from softh_probe.analysis.harness_metrics import metric_name, metric_values
from softh_probe.analysis.score_table import COLUMNS, Scores
from softh_probe.errors import InputError, abbreviated, first_sentence

#: Entries of `model_args` that name the model, in the order in which lm_eval looks for its name.
_MODEL_ARGUMENTS = ("peft", "delta", "pretrained", "model", "path", "engine")
_ACCURACY = re.compile(r"(.*_)?acc|exact_match")


@dataclass(frozen=True)
class _File:
    """One file: when it was written, whose scores it has, by benchmark, and what was left out."""

    path: Path
    date: float
    model: str
    revision: str | None
    scores: dict[str, float]
    subtasks: list[str]
    lower_is_better: list[str]
    is_limited: bool


def read_harness(path: Path) -> Scores:
    """Read the scores of one file, or of every results_*.json in a folder, at any depth.

    Of several files with the same model, revision and task, the latest by its date counts.

    Raises:
        InputError: there is no such file, or one is not what lm_eval writes.
    """
    if path.is_dir():
        paths = sorted(path.rglob("results_*.json"))
        if not paths:
            raise InputError(
                f"scores: no results_*.json of lm_eval lies in {path}; name a folder that holds some, or a .csv table"
            )
    else:
        paths = [path]
    files = sorted((_read(file) for file in paths), key=lambda file: (file.date, str(file.path)))
    latest: dict[tuple[str, str | None, str], float] = {}
    repeated: dict[str, None] = {}
    for file in files:
        for benchmark, score in file.scores.items():
            key = (file.model, file.revision, benchmark)
            if key in latest:
                repeated[f"{benchmark} of {file.model}" + (f" @ {file.revision}" if file.revision else "")] = None
            latest[key] = score
    if not latest:
        raise InputError(f"scores: {path} has no scores; lm_eval writes them as results -> task -> metric")
    table = pd.DataFrame([(*key, score) for key, score in latest.items()], columns=[*COLUMNS]).astype(
        {"revision": object}
    )
    notes = list(_notes(files, [*repeated]))
    return Scores(table=table.where(table.notna(), None), notes=notes, source=str(path))


def _notes(files: list[_File], repeated: list[str]) -> Iterator[str]:
    if repeated:
        yield f"in several files, of which the latest counts: {abbreviated(repeated)}"
    if subtasks := [*dict.fromkeys(task for file in files for task in file.subtasks)]:
        yield f"subtasks, left out since their group has a score: {abbreviated(subtasks)}"
    if lower := [*dict.fromkeys(name for file in files for name in file.lower_is_better)]:
        yield f"lower is better: {abbreviated(lower, 8)}"
    if limited := [file.path.name for file in files if file.is_limited]:
        n = f"{len(limited)} of {len(files)} files"
        yield f"of a part of their tasks' examples (limit): {n}, {abbreviated(limited)}"


def _read(path: Path) -> _File:
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"scores: {path} cannot be read as JSON: {first_sentence(error)}") from error
    results = written.get("results") if isinstance(written, dict) else None
    if not isinstance(results, dict):
        raise InputError(f"scores: {path} is not what lm_eval writes: it has no `results`")
    config = _dict(written, "config")
    model, revision = _model(written, config, path)
    subtasks = _subtasks(written, results)
    scores: dict[str, float] = {}
    lower: list[str] = []
    for task, metrics in results.items():
        if task not in subtasks and isinstance(metrics, dict):
            found = _task_scores(str(task), metrics)
            scores |= {name: score for name, (_, score) in found.items()}
            higher = _dict(_dict(written, "higher_is_better"), task)
            lower += [name for name, (metric, _) in found.items() if higher.get(metric.split(",")[0]) is False]
    date = written.get("date")
    return _File(
        path=path,
        date=float(date) if isinstance(date, int | float) else path.stat().st_mtime,
        model=model,
        revision=revision,
        scores=scores,
        subtasks=[str(task) for task in results if task in subtasks],
        lower_is_better=lower,
        is_limited=config.get("limit") is not None,
    )


def _task_scores(task: str, metrics: dict[str, Any]) -> dict[str, tuple[str, float]]:
    """Map names of benchmarks to a metric of the task and its value, the task's own score first.

    >>> _task_scores("arc", {"alias": "arc", "acc,none": 0.5, "acc_stderr,none": 0.1, "acc_norm,none": 0.6})
    {'arc': ('acc,none', 0.5), 'arc:acc_norm': ('acc_norm,none', 0.6)}
    >>> _task_scores("lambada", {"perplexity,none": 9.0, "acc,none": 0.4})
    {'lambada': ('acc,none', 0.4), 'lambada:perplexity': ('perplexity,none', 9.0)}
    """
    values = {name: value for name, value, _ in metric_values(metrics) if math.isfinite(value)}
    if not values:
        return {}
    first = next((name for name in values if _ACCURACY.fullmatch(name.split(",")[0])), next(iter(values)))
    others = {f"{task}:{metric_name(name)}": (name, value) for name, value in values.items() if name != first}
    return {task: (first, values[first]), **others}


def _subtasks(written: dict[str, Any], results: dict[str, Any]) -> set[str]:
    """Find the tasks below a group that has a score of its own."""
    members = _dict(written, "group_subtasks")
    below: set[str] = set()
    waiting = [
        group for group in members if isinstance(results.get(group), dict) and _task_scores(group, results[group])
    ]
    while waiting:
        of_group = members.get(waiting.pop())
        fresh = {str(task) for task in of_group if str(task) not in below} if isinstance(of_group, list) else set()
        below |= fresh
        waiting += sorted(fresh)
    return below


def _model(written: dict[str, Any], config: dict[str, Any], path: Path) -> tuple[str, str | None]:
    """Find the model and its revision in the arguments that lm_eval was given, as text or as a mapping."""
    given = config.get("model_args")
    if isinstance(given, str):
        pairs = (part.partition("=") for part in given.split(","))
        given = {name.strip(): value.strip() for name, _, value in pairs}
    arguments = given if isinstance(given, dict) else {}
    name = next((arguments[key] for key in _MODEL_ARGUMENTS if arguments.get(key)), written.get("model_name"))
    if not isinstance(name, str) or not name:
        raise InputError(f"scores: {path} does not name its model (config -> model_args -> pretrained, or model_name)")
    revision = arguments.get("revision") or config.get("model_revision")
    return name, str(revision) if revision else None


def _dict(of: dict[str, Any], name: str) -> dict[str, Any]:
    found = of.get(name)
    return found if isinstance(found, dict) else {}
