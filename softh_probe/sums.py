"""The running sums of one layer: add a batch, retire labels, merge, and come out as entropies.

Shape suffixes: N positions, S anchor sets, M anchors, D width, K = S·M + S + 1 columns of a row of sums:

    [ mass of each anchor (S·M) | sum of the positions' own assignment entropies (S) | number of positions (1) ]
"""

from __future__ import annotations

import torch
from torch import Tensor

from softh_probe.batch_labels import BatchLabels
from softh_probe.estimator import entropy, log_assignments


class LayerSums:
    """Running sums of one layer, on that layer's device.

    The state is four tensors: everything that copies, saves or merges sums goes by this list.

        total   [K]             float64  over all counted positions
        kept    [n_kept, K]     float64  labels whose rows are wanted at the end
        open    [n_open, K]     float32  labels that occurred and will, or may, occur again
        folded  [n_buckets, 2S] float64  of labels that are over, pooled: Σ n·H(p̂_x), Σ of assignment entropies
    """

    STATE = ("total", "kept", "open", "folded")

    def __init__(
        self, points_SMD: Tensor, temperature: float, *, n_kept: int = 0, n_open: int = 0, n_buckets: int = 0
    ) -> None:
        """Empty sums beside the anchors, on the device where those are."""
        self.points_SMD, self.temperature = points_SMD, temperature
        self.n_sets, self.n_anchors, self.dim = points_SMD.shape
        device, n_columns = points_SMD.device, self.n_sets * self.n_anchors + self.n_sets + 1
        # Tensors made in inference mode could not be updated outside of it later.
        with torch.inference_mode(False):
            self.total = torch.zeros(n_columns, dtype=torch.float64, device=device)
            self.kept = torch.zeros(n_kept, n_columns, dtype=torch.float64, device=device)
            self.open = torch.zeros(n_open, n_columns, dtype=torch.float32, device=device)
            self.folded = torch.zeros(n_buckets, 2 * self.n_sets, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, hidden: Tensor, labels: BatchLabels) -> None:
        """Add one batch of hidden states [..., D] whose leading dimensions are the batch's N positions."""
        with torch.autocast(hidden.device.type, enabled=False):
            self._add(hidden.detach().reshape(-1, self.dim).float(), labels)

    def _add(self, h_ND: Tensor, labels: BatchLabels) -> None:
        rows_NK = self._features(h_ND)
        self.total += labels.counted_N @ rows_NK
        if len(labels.single_PN):
            entropy_PS = labels.single_PN @ rows_NK[:, -self.n_sets - 1 : -1]
            self.folded[: len(entropy_PS)] += entropy_PS.repeat(1, 2)
        if len(labels.bag_offsets) > 1:
            self._add_bags(rows_NK, labels)
        if len(labels.retired_rows):
            self.folded.index_add_(0, labels.retired_buckets, self._fold(self.open[labels.retired_rows]))
            self.open.index_fill_(0, labels.retired_rows, 0.0)

    def _features(self, h_ND: Tensor) -> Tensor:
        """Rows of sums that each position alone would give; all zero where the hidden state has no direction."""
        log_q_NSM, valid_N = log_assignments(h_ND, self.points_SMD, self.temperature)
        rows_NK = h_ND.new_empty(len(h_ND), len(self.total))
        mass_NSM = rows_NK[:, : self.n_sets * self.n_anchors].unflatten(1, (self.n_sets, self.n_anchors))
        torch.exp(log_q_NSM, out=mass_NSM)
        rows_NK[:, -self.n_sets - 1 : -1] = -(log_q_NSM.mul_(mass_NSM)).sum(dim=-1)
        rows_NK[:, -1] = 1.0
        return rows_NK.masked_fill_(~valid_N.unsqueeze(1), 0.0)

    def _add_bags(self, rows_NK: Tensor, labels: BatchLabels) -> None:
        bags = torch.nn.functional.embedding_bag(
            labels.bag_positions, rows_NK, labels.bag_offsets, mode="sum", include_last_offset=True
        )
        n_kept, n_open = len(labels.kept_rows), len(labels.open_rows)
        if n_kept:
            self.kept = _with_rows(self.kept, labels.n_kept)
            self.kept.index_add_(0, labels.kept_rows, bags[:n_kept].double())
        if n_open:
            self.open = _with_rows(self.open, labels.n_open)
            self.open.index_add_(0, labels.open_rows, bags[n_kept : n_kept + n_open])
        if len(labels.closed_buckets):
            self.folded.index_add_(0, labels.closed_buckets, self._fold(bags[n_kept + n_open :]))

    def _fold(self, rows_LK: Tensor) -> Tensor:
        """What remains of labels that are over: n·H(p̂_x) and the sum of assignment entropies, [L, 2S] float64."""
        rows_LK = rows_LK.double()
        return torch.cat([self.weighted_entropy(rows_LK), self.position_entropy(rows_LK)], dim=1)

    def mass(self, rows: Tensor) -> Tensor:
        """[..., K] -> [..., S, M]."""
        return rows[..., : self.n_sets * self.n_anchors].unflatten(-1, (self.n_sets, self.n_anchors))

    def position_entropy(self, rows: Tensor) -> Tensor:
        """Sum over positions of the entropy of their own assignment, in nats: [..., K] -> [..., S]."""
        return rows[..., -self.n_sets - 1 : -1]

    def weighted_entropy(self, rows: Tensor) -> Tensor:
        """Number of positions times the entropy of their mean assignment, in nats: [..., K] -> [..., S]."""
        count = rows[..., -1:]
        # A label all of whose positions were invalid has no distribution, and no weight either.
        return torch.where(count > 0, count * entropy(self.mass(rows)), 0.0)

    def state_dict(self) -> dict[str, Tensor]:
        return {name: getattr(self, name).clone() for name in self.STATE}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name in self.STATE:
            setattr(self, name, state[name].to(getattr(self, name)))

    def merge(self, other: LayerSums, kept_rows: Tensor, open_rows: Tensor) -> None:
        """Add another part's sums; row i of its tables is row kept_rows[i], open_rows[i] of these."""
        self.total += other.total.to(self.total)
        self.folded += other.folded.to(self.folded)
        for name, rows in (("kept", kept_rows), ("open", open_rows)):
            table = _with_rows(getattr(self, name), int(rows.max()) + 1 if len(rows) else 0)
            theirs = getattr(other, name)[: len(rows)]
            table.index_add_(0, rows[: len(theirs)].to(table.device), theirs.to(table))
            setattr(self, name, table)


def _with_rows(table: Tensor, n_rows: int) -> Tensor:
    """The table itself, or, where it is too short, a copy at least twice as long."""
    if n_rows <= len(table):
        return table
    with torch.inference_mode(False):
        longer = torch.zeros(max(n_rows, 2 * len(table)), table.shape[1], dtype=table.dtype, device=table.device)
    longer[: len(table)] = table
    return longer
