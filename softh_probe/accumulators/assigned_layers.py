"""Assign the hidden states of several layers to anchors, as they come, into rows of sums of single positions.

A CPU computes each layer's logits as the layer runs, while its states are in the caches. An accelerator launches as few
kernels as it can for each layer: the products with the anchors and the norms. The rest runs for all layers together.

Shape suffixes: G layers, N positions, P rows of all layers and one more, J products, S anchor sets, M anchors, D width,
K columns of a row of sums (see `softh_probe.accumulators.label_tables`), k of a block of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from softh_probe.accelerators import is_accelerator
from softh_probe.accumulators.directions import NormedStates
from softh_probe.accumulators.label_tables import columns, mass, position_entropy
from softh_probe.accumulators.layer_sums import LayerSums
from softh_probe.estimators.soft_entropy import anchor_logits, assignments, state_norms

#: Limits on the layers of one group: their number, and the bytes of their logits on a CPU (whose caches are small) and
#: on an accelerator. The later steps briefly take some five times as many bytes.
MOST_LAYERS = 32
MOST_BYTES = 2**22
MOST_BYTES_ELSEWHERE = 2**27
#: Layers that an accelerator adds together even where their logits take up to twice as many bytes: of fewer, starting
#: kernels would cost too much.
FEW_LAYERS = 5
#: Norms below, whose squares float32 does not hold with all their digits, are no direction on an accelerator, nor are
#: those whose squares are beyond it: to find these norms would take another read of all states.
LEAST_NORM = 1e-15


class PositionRows(NamedTuple):
    """The rows of sums of the single positions of several layers, in blocks of columns that lie side by side.

    Attributes:
        blocks: the rows [G, N, k]: one block of all K columns, or that of the mass and that of the others.
        flat: of each block the rows of all layers one after the other [P, k], and where `without_GN` is known one more,
            that nothing reads.
        without_GN: True where a hidden state has no direction, so that its row must not be added; None where such rows
            are zero.
    """

    blocks: tuple[Tensor, ...]
    flat: tuple[Tensor, ...]
    without_GN: Tensor | None = None

    @classmethod
    def of(cls, blocks: Sequence[Tensor]) -> PositionRows:
        """Take rows that are zero where a state has no direction."""
        return cls(tuple(blocks), tuple(block.flatten(0, 1) for block in blocks))

    def emptied(self) -> PositionRows:
        """Set the rows of states without direction to zero."""
        if self.without_GN is None:
            return self
        without_GN1 = self.without_GN.unsqueeze(-1)
        return PositionRows.of([block.masked_fill_(without_GN1, 0.0) for block in self.blocks])

    def at(self, positions: Tensor, block: Tensor) -> Tensor:
        """Copy the rows of some positions in a block [G, R, k]; zero where a state has no direction."""
        chosen_GRk = block.index_select(1, positions)
        if self.without_GN is not None:
            chosen_GRk.masked_fill_(self.without_GN.index_select(1, positions).unsqueeze(-1), 0.0)
        return chosen_GRk

    def sum_bags(self, positions_E: Tensor, offsets_L: Tensor) -> list[Tensor]:
        """Sum rows bag by bag; positions are numbered over all layers: [L, k] of each block."""
        padding = None
        if self.without_GN is not None:
            padding = len(self.flat[0]) - 1  # a row that bags leave out
            is_without_E = self.without_GN.flatten().index_select(0, positions_E)
            positions_E = positions_E.masked_fill(is_without_E, padding)
        return [
            torch.nn.functional.embedding_bag(
                positions_E, flat_Pk, offsets_L, mode="sum", include_last_offset=True, padding_idx=padding
            )
            for flat_Pk in self.flat
        ]


class AssignedLayers:
    """The rows of sums of a group of layers, all on one CPU.

    Args:
        sums: of the first layer; all have as many anchors.
        dtype: of its states.
        n: positions of each layer.
        n_more: positions that are added to them later, for the memory that they take.
    """

    def __init__(self, sums: LayerSums, dtype: torch.dtype, n: int, n_more: int) -> None:
        self._shape, self._host = (sums.n_sets, sums.n_anchors), sums.host
        self._n_parts = self._parts(sums, dtype)
        n_products = sums.projection.n_products
        n_layers = self.most_layers_of(4 * max(n + n_more, 1) * n_products)
        self.most_layers = min(max(n_layers, 1), MOST_LAYERS)
        self._n, n_rows = n, self.most_layers * n
        self._products_PJ = sums.projection.points_SMD.new_empty(n_rows + 1, self._n_parts * n_products)
        self._products_GNJ = self._products_PJ[:-1].unflatten(0, (self.most_layers, n))
        self._layers: list[LayerSums] = []
        self._valid: list[Tensor | None] = []

    @staticmethod
    def most_layers_of(size: int) -> int:
        """Give the number of layers whose logits, of a size in bytes each, are held together."""
        return MOST_BYTES // size

    @staticmethod
    def _parts(sums: LayerSums, dtype: torch.dtype) -> int:
        """Give the number of parts that products come in."""
        return 1

    @property
    def is_empty(self) -> bool:
        """Whether there is no layer."""
        return not self._layers

    @property
    def is_full(self) -> bool:
        """Whether no other layer fits."""
        return len(self._layers) == self.most_layers

    def goes_with(self, sums: LayerSums, dtype: torch.dtype) -> bool:
        """Tell whether another layer, with states of a type, can be part of the group."""
        return self._host is sums.host and self._n_parts == self._parts(sums, dtype)

    def add(self, sums: LayerSums, h_ND: Tensor) -> NormedStates:
        """Project the hidden states of the next layer."""
        points_SMD, temperature = sums.projection.points_SMD, sums.projection.temperature
        h_ND = h_ND.float()
        norm_N, valid_N = norms = state_norms(h_ND)
        anchor_logits(h_ND, points_SMD, temperature, self._products_GNJ[len(self._layers)], norms)
        self._layers.append(sums)
        self._valid.append(valid_N)
        return NormedStates(h_ND, norm_N, valid_N)

    def take(self) -> tuple[list[LayerSums], PositionRows]:
        """Take the layers and their rows; none is left."""
        layers, self._layers = self._layers, []
        return layers, self._rows(layers)

    def _rows(self, layers: list[LayerSums]) -> PositionRows:
        """Compute soft assignments and their entropies."""
        logits_GNK = self._products_GNJ[: len(layers)]
        rows_GNK = logits_GNK.new_empty(*logits_GNK.shape[:2], columns(*self._shape))
        _, entropy_GNS = assignments(logits_GNK.unflatten(2, self._shape), out=mass(rows_GNK, *self._shape))
        position_entropy(rows_GNK, self._shape[0]).copy_(entropy_GNS)
        rows_GNK[..., -1] = 1.0
        valid, self._valid = self._valid, []
        for rows_NK, valid_N in zip(rows_GNK, valid, strict=True):
            if valid_N is not None:
                rows_NK.masked_fill_(~valid_N.unsqueeze(1), 0.0)
        return PositionRows.of([rows_GNK])


class LayersOnAccelerator(AssignedLayers):
    """The rows of sums of a group of layers, all on one accelerator."""

    def __init__(self, sums: LayerSums, dtype: torch.dtype, n: int, n_more: int) -> None:
        super().__init__(sums, dtype, n, n_more)
        self._norms_P = self._products_PJ.new_empty(len(self._products_PJ))
        self._norms_GN = self._norms_P[:-1].unflatten(0, self._products_GNJ.shape[:2])
        device, n_products = self._products_PJ.device, len(self._products_PJ) * self._n_parts
        self._parts_E = torch.arange(n_products, dtype=torch.int32, device=device)
        self._offsets = torch.arange(0, n_products + 1, self._n_parts, dtype=torch.int32, device=device)

    @staticmethod
    def most_layers_of(size: int) -> int:
        """Give the number of layers whose logits, of a size in bytes each, are held together."""
        return max(MOST_BYTES_ELSEWHERE // size, min(FEW_LAYERS, 2 * MOST_BYTES_ELSEWHERE // size))

    @staticmethod
    def _parts(sums: LayerSums, dtype: torch.dtype) -> int:
        return sums.projection.n_parts(dtype)

    def add(self, sums: LayerSums, h_ND: Tensor) -> NormedStates:
        """Compute the products of the next layer with the anchors, and its norms."""
        if self._n_parts == 1:
            h_ND = h_ND.float()  # one copy for both, and norms of float64 cannot be taken in float32
        sums.projection.products(h_ND, out=self._products_GNJ[len(self._layers)])
        norm_N = self._norms_GN[len(self._layers)]
        torch.linalg.vector_norm(h_ND, dim=-1, dtype=torch.float32, out=norm_N)
        torch.threshold_(norm_N, LEAST_NORM, math.inf)
        self._layers.append(sums)
        return NormedStates(h_ND, norm_N)

    def _rows(self, layers: list[LayerSums]) -> PositionRows:
        """Compute soft assignments and their entropies; a last row is of no position, and nothing reads it."""
        n_rows, n_sets = len(layers) * self._n + 1, self._shape[0]
        logits_PSM = self._logits(layers, n_rows).unflatten(-1, self._shape)
        q_PSM = torch.softmax(logits_PSM, dim=-1)  # in one read: into rows of all columns it would take a copy
        others_PR = torch.ones(n_rows, n_sets + 1, dtype=q_PSM.dtype, device=q_PSM.device)
        torch.sum(torch.special.entr(q_PSM, out=logits_PSM), dim=-1, out=position_entropy(others_PR, n_sets))
        flat = (q_PSM.flatten(1), others_PR)
        without_GN = (self._norms_GN[: len(layers)] < math.inf).logical_not_()  # also where a norm is NaN
        return PositionRows(tuple(block[:-1].unflatten(0, without_GN.shape) for block in flat), flat, without_GN)

    def _logits(self, layers: list[LayerSums], n_rows: int) -> Tensor:
        """Add the parts of each product and divide by ‖h‖·ε, in one kernel: [P, S·M]."""
        n_parts = n_rows * self._n_parts
        temperatures = [sums.projection.temperature for sums in layers]
        norms = [(self._norms_P[:n_rows], temperatures[0])]
        if len(set(temperatures)) > 1:  # states of different widths
            last = self._norms_P[n_rows - 1 : n_rows]
            norms = list(zip([*self._norms_GN[: len(layers)], last], [*temperatures, 1.0], strict=True))
        inverse = [
            torch.div(
                torch.tensor(1.0 / temperature, dtype=norm_N.dtype, device="cpu"),
                norm_N.unsqueeze(-1).expand(-1, self._n_parts),
            )
            for norm_N, temperature in norms
        ]
        logits_PK: Tensor = torch.nn.functional.embedding_bag(
            self._parts_E[:n_parts],
            self._products_PJ[:n_rows].reshape(n_parts, -1),
            self._offsets[: n_rows + 1],
            per_sample_weights=(inverse[0] if len(inverse) == 1 else torch.cat(inverse)).flatten(),
            mode="sum",
            include_last_offset=True,
        )
        return logits_PK


def assigned_layers(sums: LayerSums, dtype: torch.dtype, n: int, n_more: int) -> AssignedLayers:
    """Make an empty group of layers for the device of sums; arguments are those of `AssignedLayers`."""
    return (LayersOnAccelerator if is_accelerator(sums.device) else AssignedLayers)(sums, dtype, n, n_more)
