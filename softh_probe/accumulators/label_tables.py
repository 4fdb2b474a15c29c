"""The label tables of one layer: a row of sums for each label, and the pooled entropies of retired labels.

Shape suffixes: G layers, S anchor sets, M anchors, L labels, K = S·M + S + 1 columns of a row of sums:

    [ mass of each anchor (S·M) | sum of the positions' own assignment entropies (S) | number of positions (1) ]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from softh_probe.accelerators import is_accelerator
from softh_probe.accumulators.dispatch import Dispatch, MergeMap

_ROWS_AT_ONCE = 65536
_SMALL = 2**28  # bytes of a table
#: Further columns of a pool of retired labels where labels are sampled.
N_SQUARES = 3


class LabelTables:
    """Accumulate the soft assignments of one layer's labels, on one device.

        kept     [n_kept, K]      float64  labels whose rows are kept to the end
        live     [n_live, K]      float32  labels that occurred and will, or may, occur again
        retired  [n_buckets, 2S]  float64  pools of retired labels: Σ n·H(p̂_x), Σ of assignment entropies

    With a sample of labels the pools have three more columns: of each label's two sums, averaged over anchor sets, the
    square of the first, their product, and the square of the second.

    Args:
        shape: (S, M).
        n_kept, n_live, n_buckets: rows at the start; kept and live rows grow with the batches.
        with_squares: whether the pools have the columns of a sample of labels.
        most_live: live rows at most, beyond which no memory is taken ahead; None for any number.
    """

    #: Attributes that are the state, and their keys on disk.
    STATE: ClassVar = {"kept": "kept", "live": "open", "retired": "folded"}

    def __init__(
        self,
        shape: tuple[int, int],
        device: torch.device,
        *,
        n_kept: int = 0,
        n_live: int = 0,
        n_buckets: int = 0,
        with_squares: bool = False,
        most_live: int | None = None,
    ) -> None:
        self.n_sets, self.n_anchors = shape
        self._most = {"live": most_live}
        self.device = device
        n_columns = columns(*shape)
        # Tensors made in inference mode could not be updated outside of it later.
        with torch.inference_mode(False):
            self.kept = torch.zeros(n_kept, n_columns, dtype=torch.float64, device=device)
            self.live = torch.zeros(n_live, n_columns, dtype=torch.float32, device=device)
            n_sums = 2 * self.n_sets + N_SQUARES * with_squares
            self.retired = torch.zeros(n_buckets, n_sums, dtype=torch.float64, device=device)
        self._longer: dict[str, Tensor] = {}  # the longer table of which each grown one is the first rows

    @torch.no_grad()
    def retire(self, rows: Tensor, buckets: Tensor) -> None:
        """Add the live rows of labels that occur no more to their buckets; the rows stay as they are."""
        for some, of_some in zip(rows.split(_ROWS_AT_ONCE), buckets.split(_ROWS_AT_ONCE), strict=True):
            self.retired.index_add_(0, of_some, _remains(self.live.index_select(0, some), self))

    def take(self, rows: Tensor, *, are_emptied: bool) -> Tensor:
        """Copy live rows that labels leave; set them to zero where those of other labels will be added to them."""
        taken_LK = self.live.index_select(0, rows)
        if are_emptied:
            self.live.index_fill_(0, rows, 0.0)
        return taken_LK

    def load(self, state: Mapping[str, Tensor], live_rows: Tensor | None = None) -> None:
        """Copy the tables of a state; of its live rows, those that are named, if any are."""
        for name, key in self.STATE.items():
            ours = getattr(self, name)
            table = state[key] if name != "live" or live_rows is None else _chosen_rows(state[key], live_rows)
            if ours.shape == table.shape:
                ours.copy_(table)
            else:
                self._longer.pop(name, None)
                setattr(self, name, table.to(ours, copy=True))

    def merge(self, other: LabelTables, rows: MergeMap) -> None:
        """Add the tables of another part of the data."""
        self.retired += other.retired.to(self.retired)
        self.make_room(rows)
        self.grow("kept", _end(rows.kept_rows))
        self.grow("live", _end(rows.to_rows))
        _add_rows(self.kept, rows.kept_rows, other.kept, torch.arange(len(rows.kept_rows)))
        _add_rows(self.live, rows.to_rows, other.live, rows.from_rows)

    def make_room(self, rows: MergeMap) -> None:
        """Move rows so that those of another part of the data can be added."""
        self.grow("live", max(_end(rows.taken_rows), _end(rows.freed_rows)))
        self.move(rows.freed_rows, rows.left_rows, rows.taken_rows)

    def move(self, freed_rows: Tensor | None, left_rows: Tensor | None, taken_rows: Tensor | None) -> None:
        """Empty live rows, then add others to rows of a single label; see `Dispatch`. The rows exist."""
        if freed_rows is not None and len(freed_rows):
            self.live.index_fill_(0, freed_rows.to(self.device), 0.0)
        if left_rows is not None and taken_rows is not None:
            _add_rows(self.live, taken_rows, self.live, left_rows)

    def grow(self, name: str, n_rows: int) -> None:
        """Extend a table to `n_rows` zero-filled rows, if it has fewer.

        Memory is taken ahead: a table is the first rows of a longer one. On a CPU a small table takes eight times
        what it needs, since memory that nothing has touched costs nothing there.
        """
        table = getattr(self, name)
        n_old, n_columns = table.shape
        if n_rows <= n_old:
            return
        with torch.inference_mode(False):
            longer = self._longer.get(name)
            if longer is None or longer.data_ptr() != table.data_ptr() or len(longer) < n_rows:
                times = 8 if table.device.type == "cpu" and table.nbytes < _SMALL else 2
                ahead = min(times * n_old, self._most.get(name) or times * n_old)
                longer = table.new_empty(max(n_rows, ahead), n_columns)
                longer[:n_old] = table
                self._longer[name] = longer
            longer[n_old:n_rows] = 0.0
            setattr(self, name, longer[:n_rows])


@torch.inference_mode()  # the bags may come from such, and are changed in place
def add_bags(tables: Sequence[LabelTables], bags_GLK: Tensor, labels: Dispatch) -> None:
    """Add one batch to the tables of several layers of one device.

    Args:
        tables: of each layer.
        bags_GLK: for each layer the sums of each bag, in the order of the dispatch; overwritten.
        labels: the dispatch, on the device of the tables.
    """
    n_kept, n_live, n_retiring = len(labels.kept_rows), len(labels.live_rows), len(labels.retiring_rows)
    retired_GLK = bags_GLK[:, n_kept + n_live :]
    for table, bags_LK, retired_LK in zip(tables, bags_GLK, retired_GLK, strict=True):
        if n_kept:
            table.grow("kept", labels.n_kept)
            table.kept.index_add_(0, labels.kept_rows, bags_LK[:n_kept].double())
        if n_live or labels.freed_rows is not None:
            table.grow("live", labels.n_live)
            if labels.freed_rows is not None:
                table.live.index_fill_(0, labels.freed_rows, 0.0)
            if labels.left_rows is not None and labels.taken_rows is not None:
                table.live.index_add_(0, labels.taken_rows, table.live[labels.left_rows])
            n_added = n_live - (labels.n_new or 0)
            table.live.index_add_(0, labels.live_rows[:n_added], bags_LK[n_kept : n_kept + n_added])
            if labels.n_new:
                table.live.index_copy_(0, labels.live_rows[n_added:], bags_LK[n_kept + n_added : n_kept + n_live])
        if n_retiring:
            retired_LK[:n_retiring].add_(table.take(labels.retiring_rows, are_emptied=labels.n_new is None))
    if retired_GLK.shape[1]:
        for table, remains in zip(tables, _remains(retired_GLK, tables[0]), strict=True):
            table.retired.index_add_(0, labels.retired_buckets, remains)


def _remains(retired_LK: Tensor, table: LabelTables) -> Tensor:
    """Compute what each label adds to its bucket of a table: [..., K] -> [..., columns of `retired`]."""
    weighted_LS = weighted_entropy(mass(retired_LK, table.n_sets, table.n_anchors))
    sums = [weighted_LS, position_entropy(retired_LK, table.n_sets)]
    if table.retired.shape[1] > 2 * table.n_sets:
        sums.append(squares(*sums))
    return torch.cat(sums, dim=-1)


def squares(weighted_LS: Tensor, own_LS: Tensor) -> Tensor:
    """Square and multiply the two sums of each label, averaged over anchor sets: [..., S], [..., S] -> [..., 3]."""
    weighted_L, own_L = weighted_LS.double().mean(dim=-1), own_LS.double().mean(dim=-1)
    return torch.stack([weighted_L.square(), weighted_L * own_L, own_L.square()], dim=-1)


def columns(n_sets: int, n_anchors: int) -> int:
    """Compute K, the columns of a row of sums."""
    return n_sets * n_anchors + n_sets + 1


def mass(rows: Tensor, n_sets: int, n_anchors: int) -> Tensor:
    """View the sums of soft assignments of rows: [..., K] -> [..., S, M]."""
    mass_SM: Tensor = rows[..., : n_sets * n_anchors].unflatten(-1, (n_sets, n_anchors))
    return mass_SM


def position_entropy(rows: Tensor, n_sets: int) -> Tensor:
    """View the sums of the positions' own assignment entropies, in nats: [..., K] -> [..., S]."""
    return rows[..., -n_sets - 1 : -1]


def weighted_entropy(mass_LSM: Tensor) -> Tensor:
    """Compute n·H(p̂), positions times the entropy of their mean assignment, in nats: [..., M] -> [...], float64.

    With s the mass and n its total, n·H = n·log n − Σ_j s_j·log s_j. No mass gives 0: a label without a valid
    position has no distribution and no weight.
    """
    n = mass_LSM.sum(dim=-1).double()
    if is_accelerator(mass_LSM.device):  # half the memory traffic there, but twice the time on a CPU
        of_shares: Tensor = torch.special.entr(mass_LSM).sum(dim=-1)
        return torch.xlogy(n, n) + of_shares
    tiny = torch.finfo(mass_LSM.dtype).tiny
    return torch.xlogy(n, n) - mass_LSM.clamp_min(tiny).log_().mul_(mass_LSM).sum(dim=-1)


def _chosen_rows(table: Tensor, rows: Tensor) -> Tensor:
    """Copy rows of a table; those beyond its end are zero."""
    chosen, there = table.new_zeros(len(rows), table.shape[1]), rows < len(table)
    chosen[there.to(table.device)] = table[rows[there].to(table.device)]
    return chosen


def _add_rows(table: Tensor, to_rows: Tensor, other: Tensor, from_rows: Tensor) -> None:
    """Add rows of another table, or of the same one, in chunks; rows beyond its end are zero."""
    for to, rows in zip(to_rows.split(_ROWS_AT_ONCE), from_rows.split(_ROWS_AT_ONCE), strict=True):
        there = rows < len(other)
        table.index_add_(0, to[there].to(table.device), other[rows[there].to(other.device)].to(table))


def _end(rows: Tensor) -> int:
    return int(rows.max()) + 1 if len(rows) else 0
