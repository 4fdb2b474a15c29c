"""Which scores belong to which measured model: by model id and revision."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from softh_probe.analysis.model_points import ModelPoint
from softh_probe.analysis.score_table import Scores, named
from softh_probe.errors import abbreviated

_COMMIT = re.compile(r"[0-9a-f]{40}")
_DEFAULT_REVISION = "main"
#: How sure a match is, by its rank: the same id or path; then what is said in a note.
_SURE = 0
_BY = {1: "by the last part of their names", 2: "whatever their case"}

_Key = tuple[str, str | None]


@dataclass(frozen=True, kw_only=True)
class Matched:
    """Scores of measured models.

    Attributes:
        scores: one row a point, in their order, one column a benchmark; NaN where there is no score.
        others: the same of numbers that are no scores.
        unmatched_points: names of points without any score.
        unmatched_scores: models (and revisions) with scores that were not measured.
        notes: matches that are not by the same id and revision, and what was ambiguous.
    """

    scores: pd.DataFrame
    others: pd.DataFrame
    unmatched_points: list[str]
    unmatched_scores: list[str]
    notes: list[str]


def match(points: Sequence[ModelPoint], scores: Scores) -> Matched:
    """Match scores with points.

    A model is the same if its id or resolved path is; else if one of both is a local folder, or has no organisation,
    and the last parts of the names are equal and unique; else if the ids are equal but for their case, and unique.

    Scores of a revision belong to that revision; "main" and none are the same. Scores without a revision belong to the
    model's only point, or to those without a revision. Scores of a commit belong to points without a revision where no
    point has that commit.

    Whatever is not by the same id and revision is said in a note. Where several lines of scores match a point equally
    well and differ, it has none, and that is said too.

    >>> point = ModelPoint(name="a", model="org/a", values={})
    >>> table = pd.DataFrame([("org/a", None, "BBH", 30.0)], columns=["model", "revision", "benchmark", "score"])
    >>> match([point], Scores(table=table)).scores.to_dict("list")
    {'BBH': [30.0]}
    """
    keys: list[_Key] = [
        *dict.fromkeys(
            (model, revision)
            for table in (scores.table, scores.others)
            for model, revision in table[["model", "revision"]].itertuples(index=False)
        )
    ]
    finder = _Finder(points)
    notes = _Notes()
    of_points: list[dict[tuple[int, int], list[_Key]]] = [defaultdict(list) for _ in points]
    used = set()
    for key in keys:
        rank, candidates = finder.points_of(key[0])
        by_revision, chosen = _of_revision(points, candidates, key, notes)
        for i in chosen:
            of_points[i][rank, by_revision].append(key)
            used.add(key)
    best = [of[min(of)] if of else [] for of in of_points]
    for of, found in zip(of_points, best, strict=True):
        if found and min(of)[0] != _SURE:
            notes.add(f"matched {_BY[min(of)[0]]}", [named(*key) for key in found])
        if found and min(of)[1]:
            notes.add(
                "scores of a commit, matched with what was measured without a revision", [key[0] for key in found]
            )
    values = _values(scores.table, points, best, notes)
    with_scores = set(scores.table[["model", "revision"]].itertuples(index=False, name=None))
    _note_doubled(points, best, notes)
    return Matched(
        scores=values.reindex(columns=scores.benchmarks),
        others=_values(scores.others, points, best, _Notes()),
        unmatched_points=[p.name for p, known in zip(points, values.notna().any(axis=1), strict=True) if not known],
        unmatched_scores=[named(*key) for key in keys if key not in used and key in with_scores],
        notes=notes.lines(),
    )


class _Notes:
    """Notes that name models, one line of each kind."""

    def __init__(self) -> None:
        self._names: dict[str, dict[str, None]] = defaultdict(dict)

    def add(self, kind: str, names: Sequence[str]) -> None:
        self._names[kind].update(dict.fromkeys(names))

    def lines(self) -> list[str]:
        return [f"{kind}: {abbreviated([*names])}" for kind, names in self._names.items()]


class _Finder:
    """Finds the points of a model by what a score file calls it."""

    def __init__(self, points: Sequence[ModelPoint]) -> None:
        self._by_id: dict[str, list[int]] = defaultdict(list)
        self._by_path: dict[str, list[int]] = defaultdict(list)
        self._by_end: dict[str, set[str]] = defaultdict(set)
        self._by_lower: dict[str, set[str]] = defaultdict(set)
        for i, point in enumerate(points):
            self._by_id[point.model].append(i)
            self._by_path[_resolved(point.model)].append(i)
            self._by_end[_end(point.model)].add(point.model)
            self._by_lower[point.model.lower()].add(point.model)

    def points_of(self, model: str) -> tuple[int, list[int]]:
        """Give how a model was found (0 for sure, else a key of `_BY`), and the indices of its points."""
        if found := self._by_id.get(model) or self._by_path.get(_resolved(model)):
            return _SURE, found
        ends = self._by_end.get(_end(model), set())
        if len(ends) == 1 and (_is_bare(model) or _is_bare(*ends)):
            return 1, self._by_id[next(iter(ends))]
        lower = self._by_lower.get(model.lower(), set())
        return 2, self._by_id[next(iter(lower))] if len(lower) == 1 else []


def _of_revision(
    points: Sequence[ModelPoint], candidates: Sequence[int], key: _Key, notes: _Notes
) -> tuple[int, list[int]]:
    """Choose the points of a model that scores of a revision belong to; the first number is 1 if only by a commit."""
    wanted = _revision(key[1])
    same = [i for i in candidates if _revision(points[i].revision) == wanted]
    if same or not candidates:
        return 0, same
    if wanted is None:
        if len(candidates) == 1:
            return 0, [*candidates]
        notes.add("scores without a revision, of models of which several revisions were measured, left out", [key[0]])
        return 0, []
    if _COMMIT.fullmatch(wanted):
        return 1, [i for i in candidates if _revision(points[i].revision) is None]
    return 0, []


def _values(
    table: pd.DataFrame, points: Sequence[ModelPoint], best: Sequence[Sequence[_Key]], notes: _Notes
) -> pd.DataFrame:
    """Give the scores of each point; NaN where several lines that match equally well differ."""
    of_key: dict[_Key, dict[str, float]] = defaultdict(dict)
    for model, revision, benchmark, score in table.itertuples(index=False):
        of_key[model, revision][benchmark] = score
    rows: list[dict[str, float]] = []
    for point, keys in zip(points, best, strict=True):
        found: dict[str, set[float]] = defaultdict(set)
        for key in keys:
            for benchmark, score in of_key[key].items():
                found[benchmark].add(score)
        if any(len(values) > 1 for values in found.values()):
            notes.add("several lines of scores match and differ, left out; keep one of each", [point.name])
        rows.append({name: values.pop() if len(values) == 1 else np.nan for name, values in found.items()})
    columns = [*dict.fromkeys(table["benchmark"])]
    return pd.DataFrame(rows, columns=columns, index=range(len(points)), dtype=float)


def _note_doubled(points: Sequence[ModelPoint], best: Sequence[Sequence[_Key]], notes: _Notes) -> None:
    """Say which models were measured several times: each point counts."""
    seen: dict[_Key, int] = defaultdict(int)
    for point, keys in zip(points, best, strict=True):
        if keys:
            seen[point.model, _revision(point.revision)] += 1
    if doubled := [named(*key) for key, n in seen.items() if n > 1]:
        notes.add("measured several times, and each counts as a model", doubled)


def _revision(revision: str | None) -> str | None:
    return None if revision in (None, "", _DEFAULT_REVISION) else revision


def _resolved(model: str) -> str:
    return os.path.realpath(os.path.expanduser(model)) if "\0" not in model else model


def _end(model: str) -> str:
    return Path(model.rstrip("/\\")).name


def _is_bare(model: str) -> bool:
    """Tell whether a name is a local folder's or has no organisation, so that its last part may stand for it.

    >>> [_is_bare(name) for name in ("org/name", "name", "/data/models/name", "./name")]
    [False, True, True, True]
    """
    return model.count("/") != 1 or model.startswith((".", "/", "~")) or os.path.isdir(os.path.expanduser(model))
