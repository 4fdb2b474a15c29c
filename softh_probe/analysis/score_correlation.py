"""Correlations of tables of values and scores, within a group of models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from softh_probe.analysis.correlation import FEWEST_MODELS, Estimates, correlations, false_discovery, is_constant
from softh_probe.errors import abbreviated

#: The group of all models.
ALL = "all"
#: Kinds of correlations, as columns of a table name them.
KINDS = ("spearman", "pearson", "partial_spearman", "partial_pearson")


@dataclass(frozen=True)
class ModelTables:
    """What is known of models, one row each; NaN where something is not.

    Attributes:
        values: one column each (label set, metric).
        scores: one column a benchmark.
        controls: one column each; all are known.
    """

    values: pd.DataFrame
    scores: pd.DataFrame
    controls: pd.DataFrame

    def at(self, rows: np.ndarray) -> ModelTables:
        """Keep some of the models: bool [models]."""
        return ModelTables(self.values[rows], self.scores[rows], self.controls[rows])


def correlate_group(group: str, models: ModelTables, notes: list[str]) -> Iterator[pd.DataFrame]:
    """Correlate all values with all scores within a group of models.

    Args:
        group: its name.
        models: its models.
        notes: takes a line for whatever cannot be correlated.

    Yields:
        Tables with the columns of `Correlations.table`. Tests of the same models are computed together, and share their
        resamples.
    """
    where = "" if group == ALL else f" in {group}"
    controls = models.controls.loc[:, ~is_constant(models.controls.to_numpy())]
    if lost := [name for name in models.controls if name not in controls]:
        notes.append(f"the same for all{where}, and no control there: {abbreviated([*map(str, lost)])}")
    for known_N, benchmarks in _by_known(models.scores):
        names = [str(name) for name in benchmarks]
        if known_N.sum() < FEWEST_MODELS:
            notes.append(f"fewer than {FEWEST_MODELS} models{where}, left out: {abbreviated(names)} ({known_N.sum()})")
            continue
        fixed = is_constant(benchmarks[known_N].to_numpy())
        if fixed.any():
            notes.append(
                f"the same score for all models{where}, left out: {abbreviated([*map(str, benchmarks.columns[fixed])])}"
            )
        parts = [
            _tests(values[both_N], benchmarks.loc[both_N, ~fixed], controls[both_N])
            for values_known_N, values in _by_known(models.values)
            if (both_N := known_N & values_known_N).sum() >= FEWEST_MODELS and not fixed.all()
        ]
        if parts:
            yield _with_q(pd.concat(parts, ignore_index=True), group)


def _tests(values: pd.DataFrame, scores: pd.DataFrame, controls: pd.DataFrame) -> pd.DataFrame:
    """Give one line for each column of values and of scores, where both vary over these models."""
    found = correlations(values.to_numpy(), scores.to_numpy(), controls.to_numpy())
    lines = [
        {"benchmark": benchmark, "label_set": key[0], "metric": key[1], "n": len(values)}
        | {name: value for kind in KINDS if kind in found for name, value in _parts(kind, found[kind], x, y)}
        for y, benchmark in enumerate(scores)
        for x, key in enumerate(values.columns.to_list())
        if np.isfinite(found["spearman"].r_XY[x, y])
    ]
    return pd.DataFrame(lines)


def _parts(kind: str, found: Estimates, x: int, y: int) -> Iterator[tuple[str, float]]:
    yield kind, float(found.r_XY[x, y])
    for name, value_XY in (("p", found.p_XY), ("low", found.low_XY), ("high", found.high_XY)):
        yield f"{kind}_{name}", float(value_XY[x, y])


def _with_q(table: pd.DataFrame, group: str) -> pd.DataFrame:
    """Add the group, and q: p corrected for the number of tests of each benchmark."""
    table.insert(3, "group", group)
    for kind in [kind for kind in KINDS if kind in table]:
        q = table.groupby("benchmark", sort=False)[f"{kind}_p"].transform(lambda p: false_discovery(p.to_numpy()))
        table.insert([*table.columns].index(f"{kind}_high") + 1, f"{kind}_q", q)
    return table


def _by_known(frame: pd.DataFrame) -> Iterator[tuple[np.ndarray, pd.DataFrame]]:
    """Give the columns that are known of the same models together, and which models these are."""
    known_ND = np.isfinite(frame.to_numpy())
    of: dict[bytes, list[int]] = {}
    for i in range(frame.shape[1]):
        of.setdefault(known_ND[:, i].tobytes(), []).append(i)
    for columns in of.values():
        yield known_ND[:, columns[0]], frame.iloc[:, columns]
