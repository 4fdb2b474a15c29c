"""Sum the unit vectors of the counted positions of a batch, layer by layer: their mean's norm is the anisotropy.

A layer's sum is a product of the weights 1/‖h‖ with its hidden states, in one more read of these and without a copy.
Positions that do not count have the weight 0. So have states without direction; where these are not finite, 0 does not
help: on an accelerator, where nobody can look without waiting for it, the sum of their layer becomes NaN, which stands
for not known, while a CPU leaves them out.

Shape suffixes: G layers, N computed positions, C positions that wait, D width, P parts of a sum.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from softh_probe.accumulators.dispatch import Dispatch
from softh_probe.accumulators.layer_sums import LayerSums
from softh_probe.accumulators.row_stack import runs
from softh_probe.errors import ProbeError

#: States that are summed in float64 at a time.
_ROWS_AT_ONCE = 1024


class NormedStates(NamedTuple):
    """Hidden states of one layer, and their norms.

    Attributes:
        h_ND: the states as they were projected.
        norm_N: their norms, float32; infinite where a state is too small to have a direction.
        valid_N: False where a state has no direction; None where all have one, or where norms alone say so.
    """

    h_ND: Tensor
    norm_N: Tensor
    valid_N: Tensor | None = None


class Directions:
    """Add the unit vectors of one batch to the sums of layers, all on one device.

    Args:
        labels: the dispatch, on that device.
    """

    def __init__(self, labels: Dispatch) -> None:
        self._labels = labels
        self._counted: Tensor | None = None
        self._layers: list[LayerSums] = []
        self._parts: list[Tensor] = []  # of each of these layers, the parts of its sum

    def add(self, sums: LayerSums, states: NormedStates) -> None:
        """Add the positions of a layer that count, and keep the unit vectors of those that wait.

        Sums with other anchors of the same states have no directions of their own.
        """
        labels, n = self._labels, len(states.h_ND)
        if sums.direction is None:
            return
        waited_CD = None if labels.number is None else sums.waiting_units.pop(labels.number, None)
        if labels.n_carried and (waited_CD is None or len(waited_CD) != labels.n_carried):
            raise ProbeError("positions that waited for their labels are not there")
        if labels.n_sequence_positions:
            counted_N, counted_C = self._counted_positions(n).split([n, labels.n_carried])
            if n:
                self._add_states(sums, states, counted_N)
            if labels.n_carried:
                sums.direction.add_((counted_C.unsqueeze(1) * waited_CD).sum(dim=0))
        if labels.number is not None and labels.held_positions is not None and len(labels.held_positions):
            sums.waiting_units[labels.number] = _units_of(states, waited_CD, labels.held_positions)

    def finish(self) -> None:
        """Add what is left to the sums."""
        for run in runs(self._layers):
            directions_GD = run.stack.directions.rows_ARK[run.places, 0]
            plus_GD, *minus_GD = torch.stack(self._parts[run.of_group], dim=1)
            directions_GD.add_(plus_GD)
            for part_GD in minus_GD:
                directions_GD.sub_(part_GD)
        self._layers, self._parts = [], []

    def _counted_positions(self, n: int) -> Tensor:
        """Give `Dispatch.counted`, which is the same for all layers."""
        if self._counted is None:
            self._counted = self._labels.counted(n)
        return self._counted

    def _add_states(self, sums: LayerSums, states: NormedStates, counted_N: Tensor) -> None:
        """Add the unit vectors of states, each as often as it counts."""
        h_ND, norm_N, valid_N = states
        if valid_N is None:
            self._layers.append(sums)
            self._parts.append(sums.projection.sum_of_units(counted_N, norm_N, h_ND))
            return
        # On a CPU alone, and where norms are beyond float32's squares: such states are picked out, taken in float64.
        assert sums.direction is not None
        rows = (valid_N & (counted_N > 0)).nonzero().squeeze(1)
        for some in rows.split(_ROWS_AT_ONCE):
            h_RD = h_ND.index_select(0, some).double()
            sums.direction.add_(torch.nn.functional.normalize(h_RD, dim=1, eps=0.0).sum(dim=0))


def _units_of(states: NormedStates, waited_CD: Tensor | None, held: Tensor) -> Tensor:
    """Copy the unit vectors [C, D], float32, of positions of this batch and of earlier ones; zero without direction."""
    n = len(states.h_ND)
    if not n:
        assert waited_CD is not None
        return waited_CD.index_select(0, held)
    here = held.clamp(max=n - 1)
    norm_C1 = states.norm_N.index_select(0, here).unsqueeze(1)
    has_direction_C1 = (norm_C1 > 0) & (norm_C1 < torch.inf)
    units_CD = states.h_ND.index_select(0, here).float() / norm_C1
    units_CD = units_CD.where(has_direction_C1, 0.0)
    if waited_CD is None or not len(waited_CD):
        return units_CD
    return torch.where((held < n).unsqueeze(1), units_CD, waited_CD.index_select(0, (held - n).clamp(min=0)))
