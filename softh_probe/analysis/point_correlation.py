"""Correlations of whole-model values with benchmark scores: their table, and notes of what was left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from softh_probe.analysis.correlation import FEWEST_MODELS, is_constant, partial_correlation
from softh_probe.analysis.model_points import ModelPoint
from softh_probe.analysis.score_correlation import ALL, KINDS, ModelTables, correlate_group
from softh_probe.analysis.score_matching import Matched, match
from softh_probe.analysis.score_table import Scores
from softh_probe.errors import InputError, abbreviated

#: Fields of a point that may be controls; the number of parameters enters as its logarithm.
POINT_CONTROLS = ("n_parameters", "tokens", "step")
_LOGARITHMIC = "n_parameters"
_NO_METRIC = ("label_entropy",)
_SPREAD_END = "_sd"


@dataclass(frozen=True, kw_only=True)
class Correlations:
    """Correlations of metrics with benchmarks.

    Attributes:
        table: one line for each benchmark, label set, metric and group; columns `benchmark`, `label_set`, `metric`,
            `group`, `n` (models), and of each of `kinds` the coefficient and its p-value, 95% interval and q, as
            `spearman`, `spearman_p`, `spearman_low`, `spearman_high`, `spearman_q`. q is p corrected for the number of
            tests of its benchmark and group (Benjamini and Hochberg).
        kinds: "spearman", "pearson", and with controls "partial_spearman" and "partial_pearson".
        points: the matched models.
        matched: their scores.
        control: names of the controls.
        notes: what was left out, chosen or assumed, a line each.
        source: the scores' file or folder.
    """

    table: pd.DataFrame
    kinds: list[str]
    points: list[ModelPoint]
    matched: Matched
    control: list[str]
    notes: list[str]
    source: str

    @property
    def unmatched(self) -> list[str]:
        """Lines that list the models without scores, and scores without a model."""
        pairs = (
            ("measured, without scores", self.matched.unmatched_points),
            ("with scores, not measured", self.matched.unmatched_scores),
        )
        return [f"{kind} ({len(names)}): {abbreviated(names, 8)}" for kind, names in pairs if names]

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values: settings, notes, unmatched models and records; null for what is not known."""
        return {
            "settings": {"scores": self.source, "control": self.control, "groups": [*self.table["group"].unique()]},
            "notes": self.notes,
            "unmatched": {"results": self.matched.unmatched_points, "scores": self.matched.unmatched_scores},
            "models": [
                {"name": point.name, "model": point.model, "revision": point.revision, "family": point.family}
                for point in self.points
            ],
            "table": [
                {str(k): None if isinstance(v, float) and np.isnan(v) else v for k, v in record.items()}
                for record in self.table.to_dict("records")
            ],
        }


def correlate(
    points: Sequence[ModelPoint], scores: Scores, *, control: Sequence[str] = (), by: str | None = None
) -> Correlations:
    """Correlate every metric of the row `mean` with every benchmark, over models.

    Args:
        points: measured models.
        scores: their scores, and those of others.
        control: what partial correlations hold constant: `n_parameters` (as its logarithm), `tokens`, `step`, or a
            column of numbers of the scores.
        by: "family" for correlations within each family of at least `FEWEST_MODELS` models, too.

    Raises:
        InputError: fewer than `FEWEST_MODELS` models are matched, no metric or no score varies, or another argument is
            none of these.
    """
    if by not in (None, "family"):
        raise InputError(f"by: expected family, got {by!r}")
    matched = match(points, scores)
    used = np.isfinite(matched.scores.to_numpy()).any(axis=1)
    names = [*dict.fromkeys(control)]
    controls = _controls(points, matched, names)
    notes = [*scores.notes, *matched.notes, *_control_notes(points, used, controls)]
    with_scores = used.copy()
    used &= np.isfinite(controls.to_numpy()).all(axis=1)
    chosen = [point for point, is_used in zip(points, used, strict=True) if is_used]
    if len(chosen) < FEWEST_MODELS:
        raise InputError(
            _too_few(len(chosen), points, scores, matched, [*_control_notes(points, with_scores, controls)])
        )
    if len(names) and len(chosen) < FEWEST_MODELS + len(names):
        raise InputError(
            f"control: {len(names)} take at least {FEWEST_MODELS + len(names)} models, got {len(chosen)}; leave "
            "some out"
        )
    _check_controls(controls[used])
    values, constant = _metrics(chosen)
    notes += [f"metrics that do not vary, left out: {abbreviated(constant, 8)}"] * bool(constant)
    of_models = ModelTables(
        values=values,
        scores=matched.scores.loc[used, [name for name in matched.scores if name not in names]].reset_index(drop=True),
        controls=controls[used].reset_index(drop=True),
    )
    tables: list[pd.DataFrame] = []
    for group, rows in _groups(chosen, by, notes):
        tables += correlate_group(group, of_models.at(rows), notes)
    if not tables:
        raise InputError(f"scores: nothing can be correlated: {'; '.join(notes)}")
    table = _in_order(pd.concat(tables, ignore_index=True), matched.scores, values)
    kinds = [kind for kind in KINDS if kind in table]
    notes.append(f"q corrects p for the tests of one benchmark (Benjamini-Hochberg); {len(table)} tests in all")
    return Correlations(
        table=table,
        kinds=kinds,
        points=chosen,
        matched=_kept(matched, used),
        control=names,
        notes=notes,
        source=scores.source,
    )


def _in_order(table: pd.DataFrame, scores: pd.DataFrame, values: pd.DataFrame) -> pd.DataFrame:
    """Order the lines of each group by benchmark, as the file has them, then by metric."""
    groups = {name: i for i, name in enumerate(table["group"].unique())}
    benchmarks = {name: i for i, name in enumerate(scores)}
    keys = {(str(key[0]), str(key[1])): i for i, key in enumerate(values.columns.to_list())}
    names = zip(table["group"], table["benchmark"], table["label_set"], table["metric"], strict=True)
    places = [(groups[group], benchmarks[benchmark], keys[of, metric]) for group, benchmark, of, metric in names]
    return table.iloc[sorted(range(len(places)), key=places.__getitem__)].reset_index(drop=True)


def _metrics(points: Sequence[ModelPoint]) -> tuple[pd.DataFrame, list[str]]:
    """Give the metrics of points, one column each, and name those that are the same for all."""
    keys = [
        key
        for key in dict.fromkeys(key for point in points for key in point.values)
        if key[1] not in _NO_METRIC and not key[1].endswith(_SPREAD_END)
    ]
    values_ND = np.array([[_value(point, key) for key in keys] for point in points])
    varies = [
        bool(len(known := column[np.isfinite(column)])) and not is_constant(known[:, None])[0] for column in values_ND.T
    ]
    frame = pd.DataFrame(values_ND, columns=pd.MultiIndex.from_tuples(keys)) if keys else pd.DataFrame()
    if not any(varies):
        raise InputError(f"results: no metric varies over the {len(points)} models that have scores")
    names = [" ".join(filter(None, (metric, label_set))) for label_set, metric in keys]
    return frame.loc[:, varies], [name for name, v in zip(names, varies, strict=True) if not v]


def _varies(column_N: np.ndarray) -> bool:
    known_N1 = column_N[np.isfinite(column_N), None]
    return bool(len(known_N1)) and not is_constant(known_N1)[0]


def _value(point: ModelPoint, key: tuple[str, str]) -> float:
    return point.values[key].value if key in point.values else np.nan


def _groups(points: Sequence[ModelPoint], by: str | None, notes: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Give the groups of models: all, and each family that is large enough; name the others."""
    yield ALL, np.ones(len(points), dtype=bool)
    if by is None:
        return
    families = np.array([point.family or "unknown family" for point in points])
    names, counts = np.unique(families, return_counts=True)
    if len(names) == 1:
        notes.append(f"all models are of the family {names[0]}, which is not shown alone")
        return
    for name in names[counts >= FEWEST_MODELS]:
        yield str(name), families == name
    small = [f"{name} ({n})" for name, n in zip(names, counts, strict=True) if n < FEWEST_MODELS]
    if small:
        notes.append(f"families of fewer than {FEWEST_MODELS} models, not shown alone: {abbreviated(small, 8)}")


def _controls(points: Sequence[ModelPoint], matched: Matched, names: Sequence[str]) -> pd.DataFrame:
    """Give the controls, one column each; NaN where one is not known."""
    columns: dict[str, np.ndarray] = {}
    for name in names:
        if name in POINT_CONTROLS:
            of_points = [getattr(point, name) for point in points]
            values = np.array([np.nan if value is None else float(value) for value in of_points])
            columns[name] = np.log(np.where(values > 0, values, np.nan)) if name == _LOGARITHMIC else values
        elif name in matched.others or name in matched.scores:
            columns[name] = (matched.others if name in matched.others else matched.scores)[name].to_numpy()
        else:
            valid = [*POINT_CONTROLS, *map(str, matched.others), *map(str, matched.scores)]
            raise InputError(f"control: expected one of {abbreviated(valid, 20)}, got {name!r}")
    return pd.DataFrame(columns, index=range(len(points)), dtype=float)


def _control_notes(points: Sequence[ModelPoint], used: np.ndarray, controls: pd.DataFrame) -> Iterator[str]:
    if _LOGARITHMIC in controls:
        yield f"control: {_LOGARITHMIC} enters as its logarithm"
    for name in controls:
        lost = [
            p.name for p, u, v in zip(points, used, np.isfinite(controls[name].to_numpy()), strict=True) if u and not v
        ]
        if lost:
            yield f"control {name} is not known, left out ({len(lost)}): {abbreviated(lost)}"


def _check_controls(controls: pd.DataFrame) -> None:
    for name in controls:
        if is_constant(controls[[name]].to_numpy())[0]:
            raise InputError(f"control: {name} is the same for all matched models; leave it out")
    values = controls.to_numpy()
    for i in range(1, values.shape[1]):
        if np.isnan(partial_correlation(values[:, i : i + 1], values[:, i : i + 1], values[:, :i]))[0, 0]:
            raise InputError(
                f"control: {controls.columns[i]} follows from the others on all matched models; leave it out"
            )


def _too_few(n: int, points: Sequence[ModelPoint], scores: Scores, matched: Matched, of_controls: Sequence[str]) -> str:
    missing = abbreviated(matched.unmatched_points) or "none"
    others = abbreviated(matched.unmatched_scores) or "none"
    return (
        f"models: expected at least {FEWEST_MODELS} with scores and controls, got {n} of {len(points)} measured; "
        f"without scores: {missing}; in {scores.source or 'the scores'} but not measured: {others}"
        + "".join(f"; {note}" for note in of_controls)
    )


def _kept(matched: Matched, used: np.ndarray) -> Matched:
    """Keep the rows of the models that were correlated."""
    return Matched(
        scores=matched.scores[used].reset_index(drop=True),
        others=matched.others[used].reset_index(drop=True),
        unmatched_points=matched.unmatched_points,
        unmatched_scores=matched.unmatched_scores,
        notes=matched.notes,
    )
