"""The running sums of one layer: what `adding` adds batches to; they merge, and come out as state.

Shape suffixes: P label sets whose labels come and go, W bootstrap replicates, X = 1 + P + W sums of positions
whatever their labels, R positions of the sample, S anchor sets, M anchors, C positions that wait, K columns of a row
of sums (see `softh_probe.accumulators.label_tables`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from softh_probe.accumulators.dispatch import MergeMap
from softh_probe.accumulators.label_tables import HostWorker, LabelTables, columns
from softh_probe.accumulators.sampling import N_REPLICATES


class LayerSums:
    """Running sums of one layer, on that layer's device; the label tables may be in host memory instead.

    The state is that of the tables, and

        total       [K]       float64  over all counted positions
        single      [P, K]    float64  over positions whose label of a set occurs once
        replicates  [W, S·M]  float64  the mass of each bootstrap replicate of the documents
        sample      [R, S·M]  float32  the assignments of a uniform sample of positions; zero where there is none

    Args:
        points_SMD: the anchors, on the layer's device.
        temperature: ε.
        host: who adds to the tables if they are to be in host memory.
        n_singleton_sets, n_sample: P and R.
        n_kept, n_live, n_buckets: rows of the tables.
    """

    STATE = ("total", "single", "replicates", "sample")

    def __init__(
        self,
        points_SMD: Tensor,
        temperature: float,
        *,
        host: HostWorker | None = None,
        n_singleton_sets: int = 0,
        n_sample: int = 0,
        n_kept: int = 0,
        n_live: int = 0,
        n_buckets: int = 0,
    ) -> None:
        self.points_SMD, self.temperature = points_SMD, temperature
        self.n_sets, self.n_anchors, self.dim = points_SMD.shape
        n_mass = self.n_sets * self.n_anchors
        self.host = host
        here = points_SMD.device
        shape = (self.n_sets, self.n_anchors)
        on_host = torch.device("cpu") if host else here
        self.unfinished_tables = LabelTables(shape, on_host, n_kept=n_kept, n_live=n_live, n_buckets=n_buckets)
        self.waiting: dict[int, Tensor] = {}  # by number of their sequences, rows of positions that wait [C, K]
        with torch.inference_mode(False):
            n_sums = 1 + n_singleton_sets + N_REPLICATES
            self.sums_XK = torch.zeros(n_sums, columns(*shape), dtype=torch.float64, device=here)
            self.total, self.single = self.sums_XK[0], self.sums_XK[1 : 1 + n_singleton_sets]
            self.replicates = self.sums_XK[1 + n_singleton_sets :, :n_mass]
            self.sample = torch.zeros(n_sample, n_mass, dtype=torch.float32, device=here)

    @property
    def tables(self) -> LabelTables:
        """The label tables, once everything is added."""
        if self.host:
            self.host.finish()
        return self.unfinished_tables

    def drop(self, number: int) -> None:
        """Give up what waits of these sequences."""
        self.waiting.pop(number, None)

    def state_dict(self) -> dict[str, Tensor]:
        owners = ((self.STATE, self), (LabelTables.STATE, self.tables))
        return {name: getattr(owner, name).clone() for names, owner in owners for name in names}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name in self.STATE:
            getattr(self, name).copy_(state[name])
        for name in LabelTables.STATE:
            setattr(self.tables, name, state[name].to(getattr(self.tables, name)))

    def merge(self, other: LayerSums, rows: MergeMap) -> None:
        """Add another part's sums."""
        self.total += other.total.to(self.total)
        self.single += other.single.to(self.single)
        self.replicates += other.replicates.to(self.replicates)
        theirs, slots = rows.sample.to(self.sample.device), rows.slots.to(self.sample.device)
        self.sample.index_copy_(0, slots, other.sample.to(self.sample)[theirs])
        self.tables.merge(other.tables, rows)
