"""The highest and the lowest layer of one result, and the layers that noise over documents cannot tell from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from softh_probe.analysis.holm import ALPHA, holm, p_values
from softh_probe.influence import standard_error
from softh_probe.result import ProbeResult


@dataclass(frozen=True, kw_only=True)
class Extreme:
    """The layer with the highest, or the lowest, value of a metric.

    Attributes:
        row: number of the layer in the result.
        alike: other layers that are not beyond the paired spread of the difference, by name, the nearest first; their
            distances and the standard errors of these, in nats where the metric has a unit.
        is_measured: whether noise over documents was measured; else `alike` is empty.
    """

    row: int
    alike: tuple[tuple[str, float, float], ...]
    is_measured: bool


def extreme(result: ProbeResult, label_set: str, metric: str, *, lowest: bool = False) -> Extreme | None:
    """Find the highest layer, and test whether it is beyond the paired spread of each other one.

    The difference of two layers has the standard error over documents of the differences of their influences; p-values
    are corrected for the number of layers (Holm).

    Args:
        label_set, metric: as in the table of a result.
        lowest: find the lowest one instead.

    Returns:
        None where no layer has a value.
    """
    value_R = next(
        (v.numpy().mean(axis=1) for name, m, v in result.metrics() if (name, m) == (label_set, metric)), None
    )
    if value_R is None or np.isnan(value_R).all():
        return None
    row = int(np.nanargmin(value_R) if lowest else np.nanargmax(value_R))
    influence, name = result.influence, result.rows[int(row)]
    if influence is None or (label_set, metric) not in influence.values or name not in influence.rows:
        return Extreme(row=row, alike=(), is_measured=False)
    value_of = dict(zip(result.rows, value_R.tolist(), strict=True))
    distance_R = np.abs(np.array([value_of.get(other, np.nan) for other in influence.rows]) - value_R[row])
    psi_RD = influence.values[label_set, metric] / influence.n_positions
    own = influence.rows.index(name)
    n_units = len(np.unique(influence.units))
    se_R = standard_error(psi_RD - psi_RD[own], influence.units, influence.n_units)
    if np.isnan(se_R[own]) or n_units < 2:
        return Extreme(row=row, alike=(), is_measured=False)
    p_R = p_values(distance_R, se_R, n_units)
    p_R[own] = np.nan
    corrected_R = holm(p_R)
    near = [int(i) for i in np.argsort(distance_R, kind="stable") if corrected_R[i] >= ALPHA]
    return Extreme(
        row=row,
        alike=tuple((influence.rows[i], float(distance_R[i]), float(se_R[i])) for i in near),
        is_measured=True,
    )
