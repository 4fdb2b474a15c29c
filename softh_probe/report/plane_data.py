"""Models and checkpoints as points of the information plane: their places, paths and distances to the bound.

>>> from softh_probe.analysis.model_points import PointValue
>>> values = {("input_unigram", "mutual_information"): PointValue(value=0.5, sd=0.01),
...           ("output_unigram", "mutual_information"): PointValue(value=0.3, sd=0.02)}
>>> points = [ModelPoint(name=f"at {s}", model="a/tiny", series="a/tiny", step=s, values=values) for s in (10, 1)]
>>> plane_orders(points), paths_of(points)
(['unigram'], {'a/tiny': [1, 0]})
>>> plane_data(points, [4.6, 4.6])["series"]["mutual_information|input_unigram"]
{'v': [0.5, 0.5], 's': [0.01, 0.01]}

Horizontal: I(input n-gram; Z); vertical: I(output n-gram; Z). The bound is the diagonal, on which optimality is 1.

Shape suffixes: P points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from softh_probe.analysis.model_points import ModelPoint
from softh_probe.labels import ORDERS
from softh_probe.report.page_data import numbers

#: Versions of information that a plane shows.
INFORMATIONS = ("mutual_information", "mutual_information_corrected")
#: Metrics of points that a page holds: those of the plane, and of the table.
_METRICS = ("entropy", *INFORMATIONS, "regularity", "optimality", "optimality_corrected")
#: Most points of a page: more hide each other.
MOST_POINTS = 1000
_DIGITS, _SD_DIGITS = 5, 4
#: Margins of a plane, in shares of its axes; and its least width, in shares of what it has to show.
_MARGIN, _LEAST_WIDTH = 0.08, 0.2


def plane_orders(points: Sequence[ModelPoint], metric: str = INFORMATIONS[0]) -> list[str]:
    """List the orders of n-grams of which some point has both informations."""
    return [order for order in ORDERS if any(_has(point, order, metric) for point in points)]


def paths_of(points: Sequence[ModelPoint]) -> dict[str, list[int]]:
    """Find the training runs of two checkpoints or more: indices into the points by series, in order of steps."""
    found: dict[str, list[int]] = {}
    for i, point in enumerate(points):
        if point.series and point.step is not None:
            found.setdefault(point.series, []).append(i)
    in_order = {series: sorted(of_it, key=lambda i: points[i].step or 0) for series, of_it in found.items()}
    return {series: of_it for series, of_it in in_order.items() if len(of_it) > 1}


def places_of(points: Sequence[ModelPoint], order: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Find where points stand in the plane: x_P, y_P in units of log m; NaN where one was not measured."""
    x_P, y_P = (_column(points, (f"{way}_{order}", metric), "value") for way in ("input", "output"))
    return x_P, y_P


def spreads_of(points: Sequence[ModelPoint], order: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Find the sd over anchor sets of both places, NaN where there is none."""
    x_P, y_P = (_column(points, (f"{way}_{order}", metric), "sd") for way in ("input", "output"))
    return x_P, y_P


def limits_of(
    x: np.ndarray, y: np.ndarray, spreads: tuple[np.ndarray, np.ndarray] | None = None
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Choose the limits of both axes: around the points, and so far up or down that a part of the bound is in sight.

    >>> (left, right), (low, high) = limits_of(np.array([0.4, 0.5]), np.array([0.1, 0.2]))
    >>> low < 0.1 and right > 0.5 and high > left
    True

    Args:
        x, y: places of the points.
        spreads: bars of each, of x and of y, which are in sight too; NaN is none.
    """
    x_bars, y_bars = (np.nan_to_num(of) for of in spreads) if spreads else (0.0 * x, 0.0 * y)
    left, right = float((x - x_bars).min()), float((x + x_bars).max())
    low, high = float((y - y_bars).min()), float((y + y_bars).max())
    wide = _LEAST_WIDTH * (max(high, right) - min(low, left)) or 1e-3  # beside the way to the bound
    more = max(0.0, wide - (right - left)) / 2
    left, right = left - more, right + more
    in_sight = 0.2 * (right - left)  # of the bound's length
    low, high = min(low, right - in_sight), max(high, left + in_sight)
    margins = [_MARGIN * max(b - a, wide) for a, b in ((left, right), (low, high))]
    return (left - margins[0], right + margins[0]), (low - margins[1], high + margins[1])


def few_points(points: Sequence[ModelPoint], most: int = MOST_POINTS) -> list[ModelPoint]:
    """Choose at most some points: of each training run evenly, with its first and last checkpoint; then the others."""
    if len(points) <= most:
        return list(points)
    paths = [*paths_of(points).values()]
    alone = sorted({*range(len(points))} - {i for path in paths for i in path})
    chosen: set[int] = set()
    for group in (*paths, alone):
        n = max(min(2, len(group)), int(len(group) * most / len(points)))
        chosen |= {group[int(i)] for i in np.linspace(0, len(group) - 1, n).round()} if group else set()
    return [points[i] for i in sorted(chosen)]


def plane_data(
    points: Sequence[ModelPoint],
    log_m: Sequence[float],
    groups: Mapping[str, Sequence[str | None]] = MappingProxyType({}),
) -> dict[str, Any]:
    """Convert points to JSON values for a page.

    Args:
        points: those to draw, see `few_points`.
        log_m: the unit of each point's values, in nats.
        groups: further columns to colour by, a value a point.

    Returns:
        `orders`, `paths` (a line a training run), `points`, `groups`, `label_sets`, and `series` by "metric|label
        set": value (`v`), and where they were measured sd over anchor sets (`s`) and standard error over documents
        (`se`) of each point.
    """
    keys = list(dict.fromkeys(key for point in points for key in point.values if key[1] in _METRICS))
    return {
        "orders": plane_orders(points),
        "label_sets": [label_set for label_set, metric in keys if metric == INFORMATIONS[0]],
        "paths": [{"name": _short_name(name), "points": of_it} for name, of_it in paths_of(points).items()],
        "points": [{**_described(point), "log_m": log} for point, log in zip(points, log_m, strict=True)],
        "groups": {name: list(column) for name, column in groups.items()},
        "series": {f"{metric}|{label_set}": _series(points, (label_set, metric)) for label_set, metric in keys},
    }


def _has(point: ModelPoint, order: str, metric: str) -> bool:
    keys = [(f"{way}_{order}", metric) for way in ("input", "output")]
    return all(key in point.values and math.isfinite(point.values[key].value) for key in keys)


def _column(points: Sequence[ModelPoint], key: tuple[str, str], what: str) -> np.ndarray:
    return np.array([getattr(point.values[key], what) if key in point.values else math.nan for point in points], float)


def _series(points: Sequence[ModelPoint], key: tuple[str, str]) -> dict[str, list[float | None]]:
    columns = {name: _column(points, key, what) for name, what in (("v", "value"), ("s", "sd"), ("se", "se"))}
    return {
        name: numbers(column, _SD_DIGITS if name == "s" else _DIGITS)
        for name, column in columns.items()
        if name == "v" or np.isfinite(column).any()
    }


def _described(point: ModelPoint) -> dict[str, Any]:
    return {
        "name": point.name,
        "model": point.model,
        "revision": point.revision,
        "series": _short_name(point.series or point.model),
        "step": point.step,
        "tokens": point.tokens,
        "family": point.family,
        "parameters": point.n_parameters,
    }


def _short_name(model: str) -> str:
    return Path(model).name or model
