"""The running sums of one layer, and those of several layers in one tensor for each of their parts.

Shape suffixes: A layers of a stack, P label sets whose labels come and go, W bootstrap replicates, X = 1 + P + W sums
of positions whatever their labels, R positions of the sample, D documents of the sample, S anchor sets, M anchors, C
positions that wait, K columns of a row of sums (see `softh_probe.accumulators.label_tables`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from softh_probe.accumulators.dispatch import MergeMap, Regrouping
from softh_probe.accumulators.host_offload import HostWorker
from softh_probe.accumulators.label_tables import LabelTables, TableStack, columns
from softh_probe.accumulators.row_labels import RowLabels, TableSizes
from softh_probe.accumulators.row_stack import RowStack
from softh_probe.accumulators.sampling import MAX_DOCUMENTS, N_REPLICATES
from softh_probe.estimators.projection import Projection

#: Keys of the sum of unit vectors, and of the vector that is subtracted from states, on disk.
DIRECTION, CENTER = "direction", "center"


class LayerStack:
    """The running sums of layers of one width on one device; see `LayerSums`.

    Args:
        projection: the anchors, on the device.
        n_layers: A, how many layers.
        host: the worker that fills the tables, if they are in host memory.
        sizes: P, R, D and the rows of the tables, and those of each bin of positions.
        with_direction: whether unit vectors are summed; they are not for bins of positions.

    Attributes:
        sums: [A, X, K]; sample: [A, R, S·M]; directions: [A, 1, width], None for bins; tables: the label tables; bins:
            the stacks of the bins of positions.
    """

    def __init__(
        self,
        projection: Projection,
        *,
        n_layers: int = 1,
        host: HostWorker | None = None,
        sizes: TableSizes = TableSizes(),  # noqa: B008 - frozen
        with_direction: bool = True,
    ) -> None:
        self.projection, self.host, self.sizes = projection, host, sizes
        shape = (projection.n_sets, projection.n_anchors)
        here = projection.points_SMD.device
        n_sums = 1 + sizes.n_singleton_sets + N_REPLICATES
        self.sums = RowStack((n_layers, n_sums, columns(*shape)), torch.float64, here)
        self.sample = RowStack((n_layers, sizes.n_sample, projection.n_products), torch.float32, here)
        self.directions = RowStack((n_layers, 1, projection.dim), torch.float64, here) if with_direction else None
        self.tables = TableStack(shape, torch.device("cpu") if host else here, sizes, n_layers)
        self.bins = tuple(
            LayerStack(projection, n_layers=n_layers, host=host, sizes=of_bin, with_direction=False)
            for of_bin in sizes.bins
        )


class LayerSums:
    """Accumulate one layer's soft assignments on its device; the label tables may be in host memory.

    The state is that of the tables, and

        total       [K]       float64  all counted positions
        singleton   [P, K]    float64  positions whose label of a set occurs once
        replicates  [W, S·M]  float64  mass of each bootstrap replicate of the documents
        sample      [R, S·M]  float32  assignments of a uniform sample of positions; zero in empty slots
        documents   [D, K]    float32  sums of each document of a sample of documents; zero in empty slots
        direction   [width]   float64  sum of the unit vectors of all counted positions; NaN where it is not known

    and, where bins of positions are measured, the state of the sums of each, its keys behind "bin.0." and so on.

    Args:
        stack: the sums of several layers, of which these are a part.
        place: the place of the layer in the stack.
        centers: whether the mean of the first states is subtracted from all.

    Attributes:
        direction: None for bins.
        center: what is subtracted from states before all else [width], float32; None where nothing is, or where no
            position was seen yet.
        waiting, waiting_units: by number of their sequences, rows [C, K] and unit vectors [C, width] of positions that
            wait for their labels.
        bins: the sums of each bin of positions.
    """

    #: Attributes that are the state, and their keys on disk.
    STATE: ClassVar = {"total": "total", "singleton": "single", "replicates": "replicates", "sample": "sample"}

    def __init__(self, stack: LayerStack, place: int = 0, *, centers: bool = False) -> None:
        self.stack, self.place = stack, place
        self.projection, self.host = stack.projection, stack.host
        self.dim, self.n_sets, self.n_anchors = self.projection.dim, self.projection.n_sets, self.projection.n_anchors
        self.centers = centers
        self.center: Tensor | None = None
        self.unfinished_tables = LabelTables(stack.tables, place)
        self.waiting: dict[int, Tensor] = {}
        self.waiting_units: dict[int, Tensor] = {}
        sums_XK, n_singleton_sets = stack.sums.rows_ARK[place], stack.sizes.n_singleton_sets
        self.total, self.singleton = sums_XK[0], sums_XK[1 : 1 + n_singleton_sets]
        self.replicates = sums_XK[1 + n_singleton_sets :, : self.projection.n_products]
        self.sample = stack.sample.rows_ARK[place]
        self.direction = None if stack.directions is None else stack.directions.rows_ARK[place, 0]
        with torch.inference_mode(False):
            shape = (stack.sizes.n_documents, columns(self.n_sets, self.n_anchors))
            self.documents = torch.zeros(shape, dtype=torch.float32, device=self.device)
        self.bins = tuple(LayerSums(of_bin, place) for of_bin in stack.bins)

    @property
    def device(self) -> torch.device:
        """Device of the sums, but for tables in host memory."""
        return self.projection.points_SMD.device

    @property
    def tables(self) -> LabelTables:
        """The label tables, after every queued batch is added."""
        if self.host:
            self.host.finish()
        return self.unfinished_tables

    def take_documents(self, n_documents: int, emptied: Tensor | None = None) -> None:
        """Make room for so many documents, and empty the slots of those that left the sample."""
        if (n_more := n_documents - len(self.documents)) > 0:
            n_more = max(n_more, min(len(self.documents), MAX_DOCUMENTS - len(self.documents)))
            with torch.inference_mode(False):
                more = self.documents.new_zeros(n_more, self.documents.shape[1])
                self.documents = torch.cat([self.documents, more])
        if emptied is not None:
            self.documents.index_fill_(0, emptied, 0.0)

    def regroup(self, moved: Regrouping) -> None:
        """Keep waiting positions under another number; see `Regrouping`."""
        for waiting in (self.waiting, self.waiting_units):
            parts = [
                waiting[old].index_select(0, places.to(self.device)) for old, places in moved.parts if old in waiting
            ]
            if parts:
                waiting[moved.number] = torch.cat(parts)
        for number in moved.emptied:
            self.drop(number)

    def drop(self, number: int) -> None:
        """Discard the waiting positions of sequences that ended."""
        self.waiting.pop(number, None)
        self.waiting_units.pop(number, None)

    def state_dict(self) -> dict[str, Tensor]:
        """Copy the state, by its keys on disk."""
        owners = ((self.STATE, self), (LabelTables.STATE, self.tables))
        found = {key: getattr(owner, name).clone() for state, owner in owners for name, key in state.items()}
        found["documents"] = self.documents.clone()
        if self.direction is not None:
            found[DIRECTION] = self.direction.clone()
        if self.center is not None:
            found[CENTER] = self.center.clone()
        for b, sums in enumerate(self.bins):
            found |= {f"bin.{b}.{key}": tensor for key, tensor in sums.state_dict().items()}
        return found

    def load_state_dict(self, state: Mapping[str, Tensor], live_rows: Tensor | None = None) -> None:
        """Replace the sums by those of a state; of its live rows, take those that are named, if any are."""
        for name, key in self.STATE.items():
            getattr(self, name).copy_(state[key])
        if self.centers:
            center = state.get(CENTER)
            self.center = None if center is None else center.to(self.device, torch.float32, copy=True)
        self._load_documents(state)
        if self.direction is not None:
            self.direction.copy_(state.get(DIRECTION, self.direction.new_tensor(torch.nan)))  # not before version 8
        self.tables.load(state, live_rows)
        for b, sums in enumerate(self.bins):
            start = f"bin.{b}."
            sums.load_state_dict({key.removeprefix(start): state[key] for key in state if key.startswith(start)})

    def take_over(self, other: LayerSums) -> None:
        """Take the sums of the same layer, and what waits, from another device."""
        self.load_state_dict(other.state_dict())
        for ours, theirs in ((self.waiting, other.waiting), (self.waiting_units, other.waiting_units)):
            ours |= {number: rows.to(self.device) for number, rows in theirs.items()}

    def retire(self, rows: RowLabels) -> None:
        """Add the live rows that are left after all batches of a plan to their buckets; the rows stay as they are."""
        tables = self.tables
        of_rows = (rows.retired_rows, rows.retired_buckets)
        tables.retire(*(torch.from_numpy(array).to(tables.device) for array in of_rows))
        for sums, of_bin in zip(self.bins, rows.bins.values() if self.bins else (), strict=True):
            sums.retire(of_bin)

    def _load_documents(self, state: Mapping[str, Tensor]) -> None:
        self.documents.zero_()
        if "documents" in state:  # states of before version 7 have none
            self.take_documents(len(state["documents"]))
            self.documents[: len(state["documents"])].copy_(state["documents"])

    def merge(self, other: LayerSums, rows: MergeMap) -> None:
        """Add the sums of another part of the data, whose center is the same."""
        if self.center is None and other.center is not None:
            self.center = other.center.to(self.device)
        self.total += other.total.to(self.total)
        self.singleton += other.singleton.to(self.singleton)
        self.replicates += other.replicates.to(self.replicates)
        theirs, slots = rows.sample.to(self.sample.device), rows.slots.to(self.sample.device)
        self.sample.index_copy_(0, slots, other.sample.to(self.sample)[theirs])
        self.merge_documents(other.documents, rows)
        if self.direction is not None and other.direction is not None:
            self.direction += other.direction.to(self.direction)
        self.tables.merge(other.tables, rows)

    def merge_documents(self, theirs: Tensor | None, rows: MergeMap) -> None:
        """Add documents of another part of the data; it has no states of this layer where `theirs` is None."""
        here = self.documents.device
        ends = [int(slots.max()) + 1 for slots in (rows.document_slots, rows.emptied_slots) if len(slots)]
        self.take_documents(max(ends, default=0), rows.emptied_slots.to(here))
        if theirs is not None:
            there = rows.documents < len(theirs)  # the layer may lack the last ones
            chosen = theirs[rows.documents[there].to(theirs.device)].to(self.documents)
            self.documents.index_add_(0, rows.document_slots[there].to(here), chosen)
