"""From the table of all estimates to what is told of each estimator.

A table has the columns of `study.Case`, estimator, knob, factor, and those of `measuring.Measured`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import linregress, spearmanr

from rivals.lineup import Rival
from rivals.study import DIM, SEPARATION, Plan

NAN = float("nan")


@dataclass(frozen=True)
class Agreement:
    """How estimates go with the truth, over several truths.

    Attributes:
        spearman: rank correlation.
        r2: share of the variance of estimates that a straight line explains.
        slope: of that line, estimate over truth: 1 is right.
        zero: the estimate where the truth is 0, in nats.
        n: estimates.
    """

    spearman: float = NAN
    r2: float = NAN
    slope: float = NAN
    zero: float = NAN
    n: int = 0


@dataclass(frozen=True)
class Told:
    """What is told of one estimator; values in nats, seconds of one core, MiB beside the states.

    Attributes:
        rival: the estimator.
        channel: over p, at d = 576.
        clusters: over separations, at d = 576.
        languages: over p, in the layer that surely knows most (`headline`), against the upper bound.
        tags: the same for parts of speech.
        zero: largest absolute estimate of independent labels, over all widths and sizes.
        by_dim: at one truth, over widths.
        by_size: at one truth, over sizes.
        by_knob: at one truth, over knobs halved, as they are, doubled.
        of_layers: at p = 0, over layers, of languages.
        tag_values: at p = 0, over layers, of parts of speech.
        small: seconds and MiB of the base case, n × 576.
        large: of the largest.
        problems: how many estimates failed, and why.
    """

    rival: Rival
    channel: Agreement
    clusters: Agreement
    languages: Agreement
    tags: Agreement
    zero: float
    by_dim: list[float]
    by_size: list[float]
    by_knob: list[float]
    of_layers: list[float]
    tag_values: list[float]
    small: tuple[float, float]
    large: tuple[float, float]
    problems: dict[str, int]


def agreement(truth: Sequence[float], values: Sequence[float]) -> Agreement:
    """Compare estimates with truths; those that failed are left out, and less than three tell nothing.

    >>> found = agreement([0.0, 1.0, 2.0, 3.0], [0.5, 1.0, 1.5, 2.0])
    >>> found.spearman, round(found.r2, 12), found.slope, found.zero
    (1.0, 1.0, 0.5, 0.5)
    """
    x, y = np.asarray(truth, float), np.asarray(values, float)
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    zero = float(y[x == 0].mean()) if (x == 0).any() else NAN
    if len(y) < 3 or np.ptp(x) == 0:
        return Agreement(zero=zero, n=len(y))
    line = linregress(x, y)
    if np.ptp(y) == 0:  # no rank, and nothing to explain
        return Agreement(NAN, NAN, 0.0, zero, len(y))
    return Agreement(float(spearmanr(x, y).statistic), float(line.rvalue**2), float(line.slope), zero, len(y))


def headline(table: pd.DataFrame, part: str) -> str:
    """Name the layer whose lower bound is highest where no label is changed; nothing without a model."""
    rows = table[(table.part == part) & (table.x == 0)]
    return "" if rows.empty else str(rows.layer.loc[rows.low.idxmax()])


def of_headline(table: pd.DataFrame, part: str) -> pd.DataFrame:
    """Give the estimates of that layer."""
    return table[(table.part == part) & (table.layer == headline(table, part)) & (table.factor == 1)]


def tell(table: pd.DataFrame, rivals: Iterable[Rival], plan: Plan) -> list[Told]:
    """Summarise the table, for one estimator after the other."""
    return [_tell_one(table[table.estimator == rival.name], rival, plan) for rival in rivals]


def _tell_one(own: pd.DataFrame, rival: Rival, plan: Plan) -> Told:
    base = own[own.factor == 1]
    synthetic = {part: base[base.part == part] for part in ("channel", "clusters", "independent")}
    clusters = synthetic["clusters"]
    at_once = clusters[clusters.x == SEPARATION]
    varied = own[(own.part == "clusters") & (own.n == plan.n) & (own.dim == DIM) & (own.x == SEPARATION)]
    n_large, d_large = plan.largest
    independent = synthetic["independent"].value.abs()
    problems = own.problem[own.problem != ""].value_counts()
    return Told(
        rival=rival,
        channel=_over(synthetic["channel"].query("dim == @DIM")),
        clusters=_over(clusters.query("dim == @DIM and n == @plan.n")),
        languages=_over(of_headline(base, "languages")),
        tags=_over(of_headline(base, "tags")),
        zero=float(independent.max()) if independent.notna().any() else NAN,
        by_dim=_values(at_once[at_once.n == plan.n], "dim", plan.dims),
        by_size=_values(at_once[at_once.dim == DIM], "n", plan.sizes),
        by_knob=_values(varied, "factor", plan.factors),
        of_layers=_unchanged(base[base.part == "languages"]),
        tag_values=_unchanged(base[base.part == "tags"]),
        small=_cost(at_once[(at_once.n == plan.n) & (at_once.dim == DIM)]),
        large=_cost(at_once[(at_once.n == n_large) & (at_once.dim == d_large)]),
        problems={str(why): int(count) for why, count in problems.items()},
    )


def _over(rows: pd.DataFrame) -> Agreement:
    return agreement(rows.high.to_list(), rows.value.to_list())


def _values(rows: pd.DataFrame, column: str, wanted: Sequence[float]) -> list[float]:
    """Give the value at each place that is wanted; NaN where there is none."""
    found = dict(zip(rows[column], rows.value, strict=True))
    return [float(found.get(place, NAN)) for place in wanted]


def _unchanged(rows: pd.DataFrame) -> list[float]:
    """Give the values where no label is changed, layer by layer."""
    return [float(value) for value in rows[rows.x == 0].value]


def _cost(rows: pd.DataFrame) -> tuple[float, float]:
    return (NAN, NAN) if rows.empty else (float(rows.seconds.iloc[0]), float(rows.memory_mib.iloc[0]))
