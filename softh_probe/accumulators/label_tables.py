"""The label tables of one layer: a row of sums for each label, and the pooled entropies of retired labels.

Shape suffixes: G layers, S anchor sets, M anchors, L labels, K = S·M + S + 1 columns of a row of sums:

    [ mass of each anchor (S·M) | sum of the positions' own assignment entropies (S) | number of positions (1) ]

Rows of single positions and the sums of bags may come in blocks of columns, which lie side by side: on an accelerator
that of the mass, which a softmax gives, and that of the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from softh_probe.accelerators import is_accelerator
from softh_probe.accumulators.dispatch import Dispatch, MergeMap
from softh_probe.accumulators.row_labels import TableSizes
from softh_probe.accumulators.row_stack import RowStack, add_at, beside, copy_of, runs

_ROWS_AT_ONCE = 65536
#: Further columns of a pool of retired labels where labels are sampled.
N_SQUARES = 3


class TableStack:
    """The label tables of several layers of one device, which have the same rows.

    Args:
        shape: (S, M).
        device: of the tables.
        sizes: of the tables at the start; kept and live rows grow with the batches.
        n_layers: A, how many layers.

    Attributes:
        kept, live, retired: see `LabelTables`.
    """

    def __init__(self, shape: tuple[int, int], device: torch.device, sizes: TableSizes, n_layers: int = 1) -> None:
        self.device = device
        self.n_sets, self.n_anchors = shape
        n_columns = columns(*shape)
        n_sums = 2 * self.n_sets + N_SQUARES * sizes.with_squares
        self.kept = RowStack((n_layers, sizes.n_kept, n_columns), torch.float64, device)
        self.live = RowStack((n_layers, sizes.n_live, n_columns), torch.float32, device, sizes.most_live)
        self.retired = RowStack((n_layers, sizes.n_buckets, n_sums), torch.float64, device)


class LabelTables:
    """Accumulate the soft assignments of one layer's labels, on one device.

        kept     [n_kept, K]      float64  labels whose rows are kept to the end
        live     [n_live, K]      float32  labels that occurred and will, or may, occur again
        retired  [n_buckets, 2S]  float64  pools of retired labels: Σ n·H(p̂_x), Σ of assignment entropies

    With a sample of labels the pools have three more columns: of each label's two sums, averaged over anchor sets, the
    square of the first, their product, and the square of the second.

    Args:
        stack: the tables of several layers, of which these are some rows.
        place: the place of the layer in the stack.
    """

    #: Attributes that are the state, and their keys on disk.
    STATE: ClassVar = {"kept": "kept", "live": "open", "retired": "folded"}

    def __init__(self, stack: TableStack, place: int = 0) -> None:
        self.stack, self.place, self.device = stack, place, stack.device

    @property
    def kept(self) -> Tensor:
        """Rows of labels that are kept to the end."""
        return self.stack.kept.rows_ARK[self.place]

    @property
    def live(self) -> Tensor:
        """Rows of labels that may occur again."""
        return self.stack.live.rows_ARK[self.place]

    @property
    def retired(self) -> Tensor:
        """Pools of labels that occur no more."""
        return self.stack.retired.rows_ARK[self.place]

    @torch.no_grad()
    def retire(self, rows: Tensor, buckets: Tensor) -> None:
        """Add the live rows of labels that occur no more to their buckets; the rows stay as they are."""
        for some, of_some in zip(rows.split(_ROWS_AT_ONCE), buckets.split(_ROWS_AT_ONCE), strict=True):
            self.retired.index_add_(0, of_some, _remains([self.live.index_select(0, some)], self.stack))

    def load(self, state: Mapping[str, Tensor], live_rows: Tensor | None = None) -> None:
        """Copy the tables of a state; of its live rows, those that are named, if any are. Further rows are zero."""
        tables = {name: state[key] for name, key in self.STATE.items()}
        if live_rows is not None:
            tables["live"] = _chosen_rows(tables["live"], live_rows)
        for name, table in tables.items():
            stack: RowStack = getattr(self.stack, name)
            stack.require_columns(table.shape[1])
            stack.grow(len(table))
            ours = getattr(self, name)
            ours[: len(table)].copy_(table)
            ours[len(table) :].zero_()

    def merge(self, other: LabelTables, rows: MergeMap) -> None:
        """Add the tables of another part of the data."""
        self.retired.add_(other.retired.to(self.retired))
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
        """Extend a table, and those of the other layers of the stack, to `n_rows` rows, if it has fewer."""
        getattr(self.stack, name).grow(n_rows)


@torch.inference_mode()  # the bags may come from such, and are changed in place
def add_bags(tables: Sequence[LabelTables], bags: Sequence[Tensor], labels: Dispatch) -> None:
    """Add one batch to the tables of several layers of one device.

    Args:
        tables: of each layer.
        bags: for each layer the sums of each bag, in the order of the dispatch, in blocks of columns [G, L, k]; they
            are overwritten.
        labels: the dispatch, on the device of the tables.
    """
    for run in runs(tables):
        _add_bags(run.stack, run.places, [block[run.of_group] for block in bags], labels)


def _add_bags(stack: TableStack, places: slice, bags: Sequence[Tensor], labels: Dispatch) -> None:
    ends = [len(labels.kept_rows), len(labels.kept_rows) + len(labels.live_rows)]
    kept, live, retired = zip(*(block.tensor_split(ends, dim=1) for block in bags), strict=True)
    if kept[0].shape[1]:
        stack.kept.grow(labels.n_kept)
        for kept_GRk, block in beside(stack.kept.rows_ARK[places], kept):
            add_at(kept_GRk, labels.kept_rows, block.double())
    stack.live.grow(labels.n_live)
    live_GRK = stack.live.rows_ARK[places]
    if live[0].shape[1] or labels.freed_rows is not None:
        _add_live(live_GRK, live, labels)
    if len(labels.retiring_rows):
        _take_retiring(live_GRK, retired, labels)
    if retired[0].shape[1]:
        add_at(stack.retired.rows_ARK[places], labels.retired_buckets, _remains(retired, stack))


def _add_live(live_GRK: Tensor, bags: Sequence[Tensor], labels: Dispatch) -> None:
    """Empty and move live rows, then add bags to them; rows that no label has used are not read."""
    if labels.freed_rows is not None:
        live_GRK.index_fill_(1, labels.freed_rows, 0.0)
    if labels.left_rows is not None and labels.taken_rows is not None:
        add_at(live_GRK, labels.taken_rows, copy_of(live_GRK, labels.left_rows))
    ends = [len(labels.live_rows) - (labels.n_new or 0)]
    old_rows, new_rows = labels.live_rows.tensor_split(ends)
    for rows_GRk, block in beside(live_GRK, bags):
        old_GLk, new_GLk = block.tensor_split(ends, dim=1)
        add_at(rows_GRk, old_rows, old_GLk)
        if labels.n_new:
            rows_GRk.index_copy_(1, new_rows, new_GLk)


def _take_retiring(live_GRK: Tensor, bags: Sequence[Tensor], labels: Dispatch) -> None:
    """Add the live rows that labels leave to their bags, the first ones."""
    taken_GLK = copy_of(live_GRK, labels.retiring_rows)
    if labels.n_new is None:  # rows of other labels will be added to them
        live_GRK.index_fill_(1, labels.retiring_rows, 0.0)
    for taken_GLk, block in beside(taken_GLK, bags):
        block[:, : len(labels.retiring_rows)].add_(taken_GLk)


def _remains(retired: Sequence[Tensor], of: TableStack) -> Tensor:
    """Compute what each label adds to its bucket of a table: blocks of K columns -> [..., columns of `retired`]."""
    weighted_LS = weighted_entropy(mass(retired[0], of.n_sets, of.n_anchors), retired[-1][..., -1:].double())
    sums = [weighted_LS, position_entropy(retired[-1], of.n_sets)]
    if of.retired.rows_ARK.shape[2] > 2 * of.n_sets:
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
    """View the sums of soft assignments of rows, or of the first block of their columns: [..., K] -> [..., S, M]."""
    mass_SM: Tensor = rows[..., : n_sets * n_anchors].unflatten(-1, (n_sets, n_anchors))
    return mass_SM


def position_entropy(rows: Tensor, n_sets: int) -> Tensor:
    """View the sums of the positions' own assignment entropies of rows, or of their last block, in nats: [..., S]."""
    return rows[..., -n_sets - 1 : -1]


def weighted_entropy(mass_LSM: Tensor, count_L1: Tensor | None = None) -> Tensor:
    """Compute n·H(p̂), positions times the entropy of their mean assignment, in nats: [..., M] -> [...], float64.

    With s the mass and n its total, n·H = n·log n − Σ_j s_j·log s_j. No mass gives 0: a label without a valid
    position has no distribution and no weight.

    Args:
        mass_LSM: the mass of each anchor.
        count_L1: n, float64, where it is known; the total of the mass otherwise.
    """
    n = mass_LSM.sum(dim=-1).double() if count_L1 is None else count_L1
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
