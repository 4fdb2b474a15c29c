"""Add one batch's hidden states to the running sums of its layers, several layers at a time.

Each layer's hidden states are projected onto the anchors as the layer runs, into one tensor for several layers. The
rest, from the softmax to the label tables, runs for these layers together: layer by layer, a small model would
mostly pay for starting small operations.

Shape suffixes: G layers, N positions, E positions in bags, L bags, S anchor sets, M anchors, J = S·M, D width, K
columns of a row of sums (see `softh_probe.accumulators.label_tables`), k of a block of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar

import torch
from torch import Tensor

from softh_probe.accumulators.assigned_layers import AssignedLayers, PositionRows, assigned_layers
from softh_probe.accumulators.centers import centered
from softh_probe.accumulators.directions import Directions, NormedStates
from softh_probe.accumulators.dispatch import Dispatch
from softh_probe.accumulators.label_tables import add_bags
from softh_probe.accumulators.layer_sums import LayerSums
from softh_probe.accumulators.row_stack import beside, runs
from softh_probe.errors import ProbeError


class BatchAccumulator:
    """Add one batch to the sums of layers, on the device of each layer.

    Args:
        dispatch: the rows that positions are added to, the same for all layers; in host memory.
    """

    #: Whether the positions of the batch are counted.
    counts: ClassVar[bool] = True

    def __init__(self, dispatch: Dispatch) -> None:
        self.dispatch = dispatch
        self._dispatches: dict[torch.device, Dispatch] = {}
        # On each device one for the sums of each number of products, and of bins: they are added together.
        self._on_device: dict[tuple[torch.device, int, int, int], DeviceAccumulator] = {}

    @property
    def changed(self) -> list[LayerSums]:
        """Sums whose label tables the batch was added to so far."""
        return [sums for adding in self._on_device.values() for sums in adding.changed]

    @property
    def added(self) -> list[LayerSums]:
        """Sums whose documents the batch was added to so far."""
        return [sums for adding in self._on_device.values() for sums in adding.added]

    def add(self, sums: LayerSums, hidden: Tensor) -> None:
        """Add one layer's hidden states [..., D]; the leading dimensions are the batch's positions."""
        device = hidden.device
        if device not in self._dispatches:
            self._dispatches[device] = self.dispatch.to(device)
        kind = (device, sums.n_sets, sums.n_anchors, len(sums.bins))
        if kind not in self._on_device:
            self._on_device[kind] = self._on_new_device(self._dispatches[device])
        with _without_autocast(device):
            self._on_device[kind].add(sums, hidden)

    def add_waiting_only(self, sums: LayerSums) -> None:
        """Add the waiting positions of a layer, in a batch that has no others."""
        self.add(sums, sums.projection.points_SMD.new_empty(0, sums.dim))

    def finish(self) -> None:
        """Add the last group of layers; sums are complete after this."""
        for (device, *_), adding in self._on_device.items():
            with _without_autocast(device):
                adding.finish()

    def _on_new_device(self, labels: Dispatch) -> DeviceAccumulator:
        return DeviceAccumulator(labels)


def _without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Compute in float32 inside the block; entering torch.autocast costs far more than asking for its state."""
    enabled = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if enabled else nullcontext()


class DeviceAccumulator:
    """Add one batch to the sums of the layers of one device, several at a time.

    Args:
        labels: the dispatch, on that device.
    """

    def __init__(self, labels: Dispatch) -> None:
        self.changed: list[LayerSums] = []
        self.added: list[LayerSums] = []
        self._labels = labels
        self._group: AssignedLayers | None = None
        self._directions = Directions(labels)
        self._bags: tuple[Tensor, Tensor] | None = None
        self._bins = [None if one is None else DeviceAccumulator(one) for one in labels.bins]

    @torch.inference_mode()
    def add(self, sums: LayerSums, hidden: Tensor) -> None:
        """Project a layer's hidden states; see `BatchAccumulator.add`."""
        h_ND = hidden.detach().reshape(-1, sums.dim)
        if self._labels.computed is not None:
            h_ND = h_ND.index_select(0, self._labels.computed)
        if sums.centers:
            h_ND = centered(sums, h_ND, self._labels)
        if self._group is not None and not self._group.goes_with(sums, h_ND.dtype):
            self._add_layers()
            self._group = None
        if self._group is None:
            self._group = assigned_layers(sums, h_ND.dtype, len(h_ND), self._labels.n_carried)
        self.add_directions(sums, self._group.add(sums, h_ND))
        if self._group.is_full:
            self._add_layers()

    @torch.inference_mode()
    def finish(self) -> None:
        """Add the last group of layers."""
        self._add_layers()

    def _add_layers(self) -> None:
        if self._group is None or self._group.is_empty:
            return
        layers, rows = self._group.take()
        self._directions.finish()
        if self._labels.number is not None:
            rows = self._with_waiting(layers, rows)
        if len(self._labels.bag_offsets) > 1:  # something counts
            self.add_rows(layers, rows)
        for b, adding in enumerate(self._bins):
            if adding is not None and layers[0].bins:
                adding.add_rows([sums.bins[b] for sums in layers], rows)

    def add_directions(self, sums: LayerSums, states: NormedStates) -> None:
        """Add a layer's unit vectors to the sum of its directions."""
        self._directions.add(sums, states)

    def add_rows(self, layers: list[LayerSums], rows: PositionRows) -> None:
        """Add the rows of sums of single positions to the sums of their layers."""
        labels = self._labels
        bags = self._sum_bags(rows)
        n_weighted = labels.weights_XL.shape[1]
        sampled_GRk = rows.at(labels.sample_positions, rows.blocks[0]) if len(labels.sample_slots) else None
        for run in runs(layers):
            for sums_GXk, block in beside(run.stack.sums.rows_ARK[run.places], bags):
                weights_GXL = labels.weights_XL.expand(len(sums_GXk), -1, -1)
                sums_GXk.baddbmm_(weights_GXL, block[run.of_group, :n_weighted].double())
            if sampled_GRk is not None:
                sample_GRJ = run.stack.sample.rows_ARK[run.places]
                sample_GRJ.index_copy_(1, labels.sample_slots, sampled_GRk[run.of_group, :, : sample_GRJ.shape[2]])
        if labels.document_slots is not None or labels.emptied_slots is not None:
            self.added += layers
            self._add_documents(layers, bags)
        bags = [block[:, n_weighted:] for block in bags]
        if not bags[0].shape[1]:  # no label: nothing for the tables
            return
        self.changed += layers
        if host := layers[0].host:
            for g, sums in enumerate(layers):
                host.add(sums.unfinished_tables, [block[g : g + 1] for block in bags], labels.on_host)
        else:
            add_bags([sums.tables for sums in layers], bags, labels)

    def _add_documents(self, layers: list[LayerSums], bags: Sequence[Tensor]) -> None:
        """Add the sums of sequences to the documents of the sample, those that left it first emptied."""
        labels = self._labels
        for sums in layers:
            sums.take_documents(labels.n_documents, labels.emptied_slots)
        if labels.document_slots is not None and labels.document_bags is not None:
            of_documents = [block.index_select(1, labels.document_bags) for block in bags]
            for g, sums in enumerate(layers):
                for documents_Dk, block in beside(sums.documents, of_documents):
                    documents_Dk.index_add_(0, labels.document_slots, block[g])

    def _with_waiting(self, layers: list[LayerSums], rows: PositionRows) -> PositionRows:
        """Append the rows of positions that waited, and keep those of positions that wait after this batch."""
        labels = self._labels
        assert labels.number is not None
        assert labels.held_positions is not None
        waited = [sums.waiting.pop(labels.number, None) for sums in layers]
        if labels.n_carried:
            there = [rows_CK for rows_CK in waited if rows_CK is not None and len(rows_CK) == labels.n_carried]
            if len(there) < len(layers):
                raise ProbeError("positions that waited for their labels are not there")
            blocks = beside(torch.stack(there), rows.emptied().blocks)
            rows = PositionRows.of([torch.cat([block, ours], dim=1) for ours, block in blocks])
        if len(labels.held_positions):
            held = [rows.at(labels.held_positions, block) for block in rows.blocks]
            for sums, held_CK in zip(layers, torch.cat(held, dim=-1), strict=True):
                sums.waiting[labels.number] = held_CK
        return rows

    def _sum_bags(self, rows: PositionRows) -> list[Tensor]:
        """Sum the rows of single positions bag by bag: [G, L, k] of each block of their columns."""
        n_layers, n_rows = rows.blocks[0].shape[:2]
        return [block.unflatten(0, (n_layers, -1)) for block in rows.sum_bags(*self._bags_of(n_layers, n_rows))]

    def _bags_of(self, n_layers: int, n_rows: int) -> tuple[Tensor, Tensor]:
        """Repeat bag positions and offsets for each layer; the layers' rows lie one after the other."""
        positions_E, offsets_L = self._labels.bag_positions, self._labels.bag_offsets
        n_positions, n_bags = len(positions_E), len(offsets_L) - 1
        if self._bags is None or len(self._bags[1]) <= n_layers * n_bags:  # only the last groups have fewer layers
            layers_G1 = torch.arange(n_layers, dtype=torch.int32, device=positions_E.device).unsqueeze(1)
            starts_G1 = n_positions * layers_G1
            offsets = torch.cat([(offsets_L[:-1] + starts_G1).flatten(), starts_G1[-1] + n_positions])
            self._bags = (positions_E + n_rows * layers_G1).flatten(), offsets
        positions, offsets = self._bags
        return positions[: n_layers * n_positions], offsets[: n_layers * n_bags + 1]
