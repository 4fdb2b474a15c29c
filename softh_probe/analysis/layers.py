"""The highest and the lowest layer of one result, and the layers that noise cannot tell from it.

Shape suffixes: R rows (layers), S anchor sets, D documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from softh_probe.analysis.holm import ALPHA, holm, p_values
from softh_probe.influence import standard_error
from softh_probe.result import ProbeResult

#: Differences within that many standard deviations over anchor sets are not told from the choice of anchors.
ANCHOR_SDS = 2.0
#: Differences below this, in nats or as a ratio, are within the rounding of float32.
_ROUNDING = 1e-6

#: What layers were compared by: documents in pairs, or anchor sets in pairs.
Noise = Literal["documents", "anchors"]


@dataclass(frozen=True, kw_only=True)
class Extreme:
    """The layer with the highest, or the lowest, value of a metric.

    Attributes:
        row: number of the layer in the result.
        alike: other layers that are not beyond the paired spread of the difference, by name, the nearest first; their
            distances, and the standard errors over documents or standard deviations over anchor sets of these, in nats
            where the metric has a unit.
        noise: what the spread is over; None where none is known, and `alike` is empty.
    """

    row: int
    alike: tuple[tuple[str, float, float], ...]
    noise: Noise | None

    @property
    def is_measured(self) -> bool:
        """Whether the layer was compared with the others."""
        return self.noise is not None

    @property
    def stands_out(self) -> bool:
        """Whether the layer is beyond the paired spread of each other one."""
        return self.is_measured and not self.alike


def extreme(result: ProbeResult, label_set: str, metric: str, *, lowest: bool = False) -> Extreme | None:
    """Find the highest layer, and test whether it is beyond the paired spread of each other one.

    With intervals, the difference of two layers has the standard error over documents of the differences of their
    influences; p-values are corrected for the number of layers (Holm). Elsewhere the difference has to be beyond two
    of its standard deviations over anchor sets, each of which measured both layers. One set tells nothing.

    Args:
        label_set, metric: as in the table of a result.
        lowest: find the lowest one instead.

    Returns:
        None where no layer has a value.
    """
    value_RS = next((v.numpy() for name, m, v in result.metrics() if (name, m) == (label_set, metric)), None)
    if value_RS is None:
        return None
    found = extreme_over_anchors(result.rows, value_RS, lowest=lowest)
    if found is None:
        return None
    alike = _alike_over_documents(result, (label_set, metric), value_RS.mean(axis=1), found.row)
    return found if alike is None else Extreme(row=found.row, alike=alike, noise="documents")


def extreme_over_anchors(rows: Sequence[str], value_RS: np.ndarray, *, lowest: bool = False) -> Extreme | None:
    """Find the highest row of some values, and those whose paired difference is within the spread over anchor sets.

    >>> found = extreme_over_anchors(["a", "b", "c"], np.array([[0.1, 0.3], [0.4, 0.6], [0.5, 0.5]]))
    >>> found.row, [name for name, _, _ in found.alike], found.noise
    (1, ['c'], 'anchors')

    Args:
        rows: their names.
        value_RS: values by anchor set; a row without a value is NaN.
        lowest: find the lowest one instead.

    Returns:
        None where no row has a value.
    """
    value_R = value_RS.mean(axis=1)
    if np.isnan(value_R).all():
        return None
    row = int(np.nanargmin(value_R) if lowest else np.nanargmax(value_R))
    if value_RS.shape[1] < 2:
        return Extreme(row=row, alike=(), noise=None)
    difference_RS = value_RS - value_RS[row]
    distance_R, sd_R = np.abs(difference_RS.mean(axis=1)), difference_RS.std(axis=1, ddof=1)
    is_near_R = distance_R <= np.maximum(ANCHOR_SDS * sd_R, _ROUNDING)  # rows without a value are not
    is_near_R[row] = False
    return Extreme(row=row, alike=_nearest_first(rows, distance_R, sd_R, is_near_R), noise="anchors")


def _alike_over_documents(
    result: ProbeResult, key: tuple[str, str], value_R: np.ndarray, row: int
) -> tuple[tuple[str, float, float], ...] | None:
    """List the layers that noise over documents cannot tell from one of them; None where it was not measured."""
    influence, name = result.influence, result.rows[row]
    if influence is None or key not in influence.values or name not in influence.rows:
        return None
    value_of = dict(zip(result.rows, value_R.tolist(), strict=True))
    distance_R = np.abs(np.array([value_of.get(other, np.nan) for other in influence.rows]) - value_R[row])
    psi_RD = influence.values[key] / influence.n_positions
    own = influence.rows.index(name)
    n_units = len(np.unique(influence.units))
    se_R = standard_error(psi_RD - psi_RD[own], influence.units, influence.n_units)
    if np.isnan(se_R[own]) or n_units < 2:
        return None
    p_R = p_values(distance_R, se_R, n_units)
    p_R[own] = np.nan
    return _nearest_first(influence.rows, distance_R, se_R, holm(p_R) >= ALPHA)


def _nearest_first(
    rows: Sequence[str], distance_R: np.ndarray, noise_R: np.ndarray, is_near_R: np.ndarray
) -> tuple[tuple[str, float, float], ...]:
    order = np.argsort(distance_R, kind="stable")
    return tuple((rows[i], float(distance_R[i]), float(noise_R[i])) for i in order if is_near_R[i])
