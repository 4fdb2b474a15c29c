"""The running sums of one layer: add a batch, merge, and come out as state.

Shape suffixes: N positions, L bags, P label sets whose labels come and go, W bootstrap replicates, X = 1 + P + W
sums of positions whatever their labels, R positions of the sample, S anchor sets, M anchors, D width, K columns of a
row of sums (see `softh_probe.tables`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from softh_probe.batch_labels import BatchLabels, Merged
from softh_probe.errors import ProbeError
from softh_probe.estimator import log_assignments
from softh_probe.sampling import N_REPLICATES
from softh_probe.tables import HostWorker, LabelTables, columns


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
        n_single, n_sample: P and R.
        n_kept, n_open, n_buckets: rows of the tables.
    """

    STATE = ("total", "single", "replicates", "sample")

    def __init__(
        self,
        points_SMD: Tensor,
        temperature: float,
        *,
        host: HostWorker | None = None,
        n_single: int = 0,
        n_sample: int = 0,
        n_kept: int = 0,
        n_open: int = 0,
        n_buckets: int = 0,
    ) -> None:
        self.points_SMD, self.temperature = points_SMD, temperature
        self.n_sets, self.n_anchors, self.dim = points_SMD.shape
        self._n_mass = self.n_sets * self.n_anchors
        self._host = host
        here = points_SMD.device
        shape = (self.n_sets, self.n_anchors)
        on_host = torch.device("cpu") if host else here
        self._tables = LabelTables(shape, on_host, n_kept=n_kept, n_open=n_open, n_buckets=n_buckets)
        self.waiting: dict[int, Tensor] = {}  # by number of their sequences, rows of positions that wait [C, K]
        with torch.inference_mode(False):
            n_sums = 1 + n_single + N_REPLICATES
            self._sums_XK = torch.zeros(n_sums, columns(*shape), dtype=torch.float64, device=here)
            self.total, self.single = self._sums_XK[0], self._sums_XK[1 : 1 + n_single]
            self.replicates = self._sums_XK[1 + n_single :, : self._n_mass]
            self.sample = torch.zeros(n_sample, self._n_mass, dtype=torch.float32, device=here)

    @property
    def tables(self) -> LabelTables:
        """The label tables, once everything is added."""
        if self._host:
            self._host.finish()
        return self._tables

    @torch.no_grad()
    def add(self, hidden: Tensor, labels: BatchLabels) -> None:
        """Add one batch of hidden states [..., D] whose leading dimensions are the batch's N positions."""
        h_ND = hidden.detach().reshape(-1, self.dim)
        if labels.computed is not None:
            h_ND = h_ND.index_select(0, labels.computed)
        with torch.autocast(hidden.device.type, enabled=False):
            rows_NK = self._features(h_ND.float())
            if labels.number is not None:
                rows_NK = self._with_waiting(rows_NK, labels)
            if len(labels.bag_offsets) == 1:  # nothing counts
                return
            bags_LK = torch.nn.functional.embedding_bag(
                labels.bag_positions, rows_NK, labels.bag_offsets, mode="sum", include_last_offset=True
            )
            n_weighted = labels.weights_XL.shape[1]
            self._sums_XK.addmm_(labels.weights_XL, bags_LK[:n_weighted].double())
            if len(labels.sample_slots):
                sampled_RK = rows_NK.index_select(0, labels.sample_positions)
                self.sample.index_copy_(0, labels.sample_slots, sampled_RK[:, : self._n_mass])
        bags_LK = bags_LK[n_weighted:]
        if not len(bags_LK):  # no label: nothing for the tables
            return
        if self._host:
            self._host.add(self._tables, bags_LK, labels.on_host)
        else:
            self._tables.add(bags_LK, labels)

    def settle(self, labels: BatchLabels) -> None:
        """Add positions that wait, without a batch."""
        self.add(self.points_SMD.new_empty(0, self.dim), labels)

    def drop(self, number: int) -> None:
        """Give up what waits of these sequences."""
        self.waiting.pop(number, None)

    def _with_waiting(self, rows_NK: Tensor, labels: BatchLabels) -> Tensor:
        """Rows of the batch, then those that waited; some wait on."""
        assert labels.number is not None
        assert labels.held_positions is not None
        waited_CK = self.waiting.pop(labels.number, None)
        if labels.n_carried:
            if waited_CK is None or len(waited_CK) != labels.n_carried:
                raise ProbeError("positions that waited for their labels are not there")
            rows_NK = torch.cat([rows_NK, waited_CK])
        if len(labels.held_positions):
            self.waiting[labels.number] = rows_NK.index_select(0, labels.held_positions)
        return rows_NK

    def _features(self, h_ND: Tensor) -> Tensor:
        """Rows of sums that each position alone would give; all zero where the hidden state has no direction."""
        log_q_NSM, valid_N = log_assignments(h_ND, self.points_SMD, self.temperature)
        rows_NK = h_ND.new_empty(len(h_ND), len(self.total))
        mass_NSM = rows_NK[:, : self.n_sets * self.n_anchors].unflatten(1, (self.n_sets, self.n_anchors))
        mass_NSM.copy_(torch.softmax(log_q_NSM, dim=-1))  # that is exp(log q), and on a CPU many times as fast
        rows_NK[:, -self.n_sets - 1 : -1] = -(log_q_NSM.mul_(mass_NSM)).sum(dim=-1)
        rows_NK[:, -1] = 1.0
        if valid_N is not None:
            rows_NK.masked_fill_(~valid_N.unsqueeze(1), 0.0)
        return rows_NK

    def state_dict(self) -> dict[str, Tensor]:
        owners = ((self.STATE, self), (LabelTables.STATE, self.tables))
        return {name: getattr(owner, name).clone() for names, owner in owners for name in names}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name in self.STATE:
            getattr(self, name).copy_(state[name])
        for name in LabelTables.STATE:
            setattr(self.tables, name, state[name].to(getattr(self.tables, name)))

    def merge(self, other: LayerSums, rows: Merged) -> None:
        """Add another part's sums."""
        self.total += other.total.to(self.total)
        self.single += other.single.to(self.single)
        self.replicates += other.replicates.to(self.replicates)
        theirs, slots = rows.sample.to(self.sample.device), rows.slots.to(self.sample.device)
        self.sample.index_copy_(0, slots, other.sample.to(self.sample)[theirs])
        self.tables.merge(other.tables, rows)
