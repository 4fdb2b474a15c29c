"""Results side by side: whether they may be compared, and by how much they differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from softh_probe.errors import InputError
from softh_probe.report.page_data import numbers, values_by_key
from softh_probe.result import ProbeResult

#: How anchors are drawn. Equal recipes at equal widths give equal anchors.
_RECIPE = ("n_anchors", "anchor_sets", "anchors", "seed", "calibration")


def check_comparable(
    results: Sequence[ProbeResult], titles: Sequence[str], *, allow_different: bool = False
) -> list[str]:
    """Refuse results of other text or other anchors than the first one's.

    Models of different widths have different anchors by necessity: theirs have to be drawn in the same way.

    Args:
        results: two or more.
        titles: what to call them.
        allow_different: return what differs instead of refusing.

    Returns:
        Notes for the reader: what was allowed to differ, widths and populations that do.

    Raises:
        InputError: corpora or anchors differ, or are not known.
    """
    notes = []
    for other, title in zip(results[1:], titles[1:], strict=True):
        different = [*_corpus_differs(results[0], other), *_anchors_differ(results[0], other)]
        if different and not allow_different:
            raise InputError(
                f"folders: {titles[0]} and {title} differ in {'; in '.join(different)}; add --allow-different to show "
                "them side by side all the same"
            )
        notes += [f"{titles[0]} and {title} differ in {what}: their values are not comparable." for what in different]
        notes += [f"{titles[0]} and {title}: {what}" for what in _worth_knowing(results[0], other)]
    return notes


def _corpus_differs(one: ProbeResult, other: ProbeResult) -> list[str]:
    digests = [str((result.info.get("corpus") or {}).get("sha256", "")) for result in (one, other)]
    if "" in digests:
        return ["their corpus, which at least one of them does not record"]
    if digests[0] == digests[1]:
        return []
    data = [str((result.info.get("corpus") or {}).get("data")) for result in (one, other)]
    named = f"{data[0]}, {data[1]}" if data[0] != data[1] else f"both read {data[0]}, as different tokens"
    return [f"their corpus ({named}; SHA-256 {digests[0][:12]}…, {digests[1][:12]}…)"]


def _anchors_differ(one: ProbeResult, other: ProbeResult) -> list[str]:
    if same_anchors(one, other):
        return []
    recipes = [(result.info.get("settings") or {}) for result in (one, other)]
    changed = [key for key in _RECIPE if recipes[0].get(key) != recipes[1].get(key)]
    if changed:
        settings = ", ".join(f"{key} {recipes[0].get(key)} and {recipes[1].get(key)}" for key in changed)
        return [f"their anchors ({settings})"]
    if _widths(one) & _widths(other):
        return ["their anchors, though drawn in the same way (SHA-256)"]
    return []


def same_anchors(one: ProbeResult, other: ProbeResult) -> bool:
    """Whether both were measured with the very same points and temperature, in the same sets."""
    described = [{(a["sha256"], a["temperature"]) for a in result.info.get("anchors") or []} for result in (one, other)]
    return bool(described[0]) and described[0] == described[1]


def _widths(result: ProbeResult) -> set[int]:
    return {int(a["dim"]) for a in result.info.get("anchors") or []}


def _worth_knowing(one: ProbeResult, other: ProbeResult) -> list[str]:
    found = []
    if _widths(one) != _widths(other):
        widths = [", ".join(map(str, sorted(_widths(result)))) for result in (one, other)]
        found.append(
            f"hidden states are {' and '.join(widths)} wide, so anchors of the same recipe differ; the spread over "
            "anchor sets says how much that matters."
        )
    positions = [int(result.info.get("positions", 0)) for result in (one, other)]
    if positions[0] != positions[1]:
        found.append(
            f"{positions[0]:,} and {positions[1]:,} positions were counted: label sets of other orders leave out "
            "other ends of documents."
        )
    return found


def differences(first: ProbeResult, other: ProbeResult) -> dict[str, Any]:
    """By how much `other` exceeds `first`, in each row of `first` and each metric that both have.

    Rows are those at the same relative depth; where the numbers of rows differ, `other` is interpolated linearly. The
    anchor spread is the root of the summed variances over anchor sets: what another draw of anchors for each would do.
    Where both have the same anchors, the sd over them of the difference is known too, and mostly smaller. Both are
    missing where a result has a single set.

    Returns:
        JSON values: paired (same anchors), interpolated, and series: of each "metric|label set" d (difference), s
        (anchor spread) and, if paired, p (sd of the difference), in units of log m where the metric has a unit.
    """
    depth, other_depth = (np.linspace(0, 1, len(result.rows)) for result in (first, other))
    paired = same_anchors(first, other)
    ours, theirs = values_by_key(first), values_by_key(other)
    series = {}
    for key, a_RS in ours.items():
        if key not in theirs:
            continue
        a, b = a_RS.numpy(), _at(depth, other_depth, theirs[key])
        series[key] = {"d": numbers(b.mean(axis=1) - a.mean(axis=1)), "s": numbers(np.hypot(_sd(a), _sd(b)))}
        if paired:
            series[key]["p"] = numbers(_sd(b - a))
    return {"paired": paired, "interpolated": len(depth) != len(other_depth), "series": series}


def _at(depth: np.ndarray, known: np.ndarray, values_RS: Tensor) -> np.ndarray:
    if len(depth) == len(known):
        return values_RS.numpy()
    return np.stack([np.interp(depth, known, column) for column in values_RS.numpy().T], axis=1)


def _sd(values_RS: np.ndarray) -> np.ndarray:
    return values_RS.std(axis=1, ddof=1) if values_RS.shape[1] > 1 else np.full(len(values_RS), np.nan)
