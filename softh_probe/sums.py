"""The running sums of one layer: add a batch, merge, and come out as state.

Shape suffixes: N positions, L bags, P pools of labels that occur once, S anchor sets, M anchors, D width, K columns
of a row of sums (see `softh_probe.tables`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from softh_probe.batch_labels import BatchLabels
from softh_probe.estimator import log_assignments
from softh_probe.tables import HostWorker, LabelTables, columns


class LayerSums:
    """Running sums of one layer, on that layer's device; the label tables may be in host memory instead.

    The state is `total` [K] float64, over all counted positions, and that of the tables.

    Args:
        points_SMD: the anchors, on the layer's device.
        temperature: ε.
        host: who adds to the tables if they are to be in host memory.
        n_kept, n_open, n_buckets: rows of the tables.
    """

    def __init__(
        self,
        points_SMD: Tensor,
        temperature: float,
        *,
        host: HostWorker | None = None,
        n_kept: int = 0,
        n_open: int = 0,
        n_buckets: int = 0,
    ) -> None:
        self.points_SMD, self.temperature = points_SMD, temperature
        self.n_sets, self.n_anchors, self.dim = points_SMD.shape
        self._host = host
        device = torch.device("cpu") if host else points_SMD.device
        shape = (self.n_sets, self.n_anchors)
        self._tables = LabelTables(shape, device, n_kept=n_kept, n_open=n_open, n_buckets=n_buckets)
        with torch.inference_mode(False):
            self.total = torch.zeros(columns(*shape), dtype=torch.float64, device=points_SMD.device)

    @property
    def tables(self) -> LabelTables:
        """The label tables, once everything is added."""
        if self._host:
            self._host.finish()
        return self._tables

    @torch.no_grad()
    def add(self, hidden: Tensor, labels: BatchLabels) -> None:
        """Add one batch of hidden states [..., D] whose leading dimensions are the batch's N positions."""
        with torch.autocast(hidden.device.type, enabled=False):
            rows_NK = self._features(hidden.detach().reshape(-1, self.dim).float())
            self.total += labels.counted_N @ rows_NK
            singles_PS = labels.single_PN @ rows_NK[:, -self.n_sets - 1 : -1]
            bags_LK = torch.nn.functional.embedding_bag(
                labels.bag_positions, rows_NK, labels.bag_offsets, mode="sum", include_last_offset=True
            )
        if self._host:
            self._host.add(self._tables, bags_LK, singles_PS, labels.on_host)
        else:
            self._tables.add(bags_LK, singles_PS, labels)

    def _features(self, h_ND: Tensor) -> Tensor:
        """Rows of sums that each position alone would give; all zero where the hidden state has no direction."""
        log_q_NSM, valid_N = log_assignments(h_ND, self.points_SMD, self.temperature)
        rows_NK = h_ND.new_empty(len(h_ND), len(self.total))
        mass_NSM = rows_NK[:, : self.n_sets * self.n_anchors].unflatten(1, (self.n_sets, self.n_anchors))
        torch.exp(log_q_NSM, out=mass_NSM)
        rows_NK[:, -self.n_sets - 1 : -1] = -(log_q_NSM.mul_(mass_NSM)).sum(dim=-1)
        rows_NK[:, -1] = 1.0
        return rows_NK.masked_fill_(~valid_N.unsqueeze(1), 0.0)

    def state_dict(self) -> dict[str, Tensor]:
        tables = self.tables
        return {"total": self.total.clone()} | {name: getattr(tables, name).clone() for name in tables.STATE}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        tables = self.tables
        self.total = state["total"].to(self.total)
        for name in tables.STATE:
            setattr(tables, name, state[name].to(getattr(tables, name)))

    def merge(self, other: LayerSums, kept_rows: Tensor, open_rows: Tensor) -> None:
        """Add another part's sums; row i of its tables is row kept_rows[i], open_rows[i] of these."""
        self.total += other.total.to(self.total)
        self.tables.merge(other.tables, kept_rows, open_rows)
