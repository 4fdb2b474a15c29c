"""Dispatch of one forward pass: the accumulator rows that each position is added to, the same for all layers.

Within a batch a label is a bag of positions, and so is a sequence. Bags are sorted once per batch. Each layer then
sums its soft assignments bag by bag and adds the sums to its rows. Positions in no bag, such as padding, are not
computed.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

#: Positions of one float32 sum at most. Sums of 131,072 positions would lose 1e-4 of their mass.
MAX_BAG = 256
#: Share of a batch's positions in bags from which computing all positions is cheaper than gathering these.
DENSE_SHARE = 0.85


@dataclass(frozen=True, kw_only=True)
class Dispatch:
    """Rows of the running sums that each position of a batch is added to.

    Positions are numbered in the order in which layers compute their soft assignments: computed positions of the
    batch, then C waiting positions of earlier batches. Bags come in six groups, one after the other:

        sequences              in pieces of at most `MAX_BAG` positions
        singleton positions    in such pieces: positions whose label occurs once in the corpus
        kept labels            in such pieces: their rows stay to the end
        live labels            their rows stay, since the label may occur again
        retiring labels        their rows are freed after this batch
        batch-local labels     they occur in this batch only and have no row

    A label that occurs once in the corpus has no bag of its own: its entropy is that of its position's assignment.

    Attributes:
        shape: (B, T) of the batch.
        n_tokens: tokens of the batch without padding; n_counted: positions that count.
        n_sequence_positions: positions in the bags of sequences: each position that counts, once.
        computed: int64, computed positions among the B·T of the batch; None where all are computed.
        bag_positions: int32 [E], positions bag by bag; bag_offsets: int32 [n_bags + 1].
        weights_XL: float64 [X, L], how often each bag of the first two groups is added to each of the sums over
            positions (`LayerSums`). The total has all sequences. Each set with singletons has the positions whose
            label of the set occurs once. Each bootstrap replicate has a sequence as often as it drew its document.
        kept_rows, live_rows, retiring_rows: int64, rows of the third, fourth and fifth group.
        retired_buckets: int64, buckets in which the labels of the last two groups are pooled.
        sample_positions, sample_slots: int64, positions whose assignments are kept, and their slots in the sample.
        n_kept, n_live, n_documents: rows that must exist before the batch is added.
        n_new: how many of `live_rows`, the last ones, no label has used before, or another one that left its sums
            there. None: unused rows are zero, and rows that labels leave are emptied.
        left_rows, taken_rows: int64, live rows that labels shared until now, and rows of their own that they take
            instead. The former are added to the latter before the batch is.
        freed_rows: int64, live rows whose labels are given up; they are emptied before all else, and may be among
            `taken_rows` and `live_rows`.
        document_bags, document_slots: int64, bags of the first group whose documents are in the sample of documents,
            and their slots.
        emptied_slots: int64, slots of documents that left that sample; they are emptied first.
        number: the number of the sequences of which positions wait; None where none can.
        n_carried: C, the waiting positions of earlier batches.
        held_positions: int64, positions that wait after this batch.
        made_from: the original in host memory, where this is a copy on an accelerator.
        bins: dispatches of the bins of positions, whose sums are kept too; None where none of the batch's positions is
            in a bin. Their positions are numbered as here.
    """

    shape: tuple[int, int]
    n_tokens: int
    n_counted: int
    computed: Tensor | None
    bag_positions: Tensor
    bag_offsets: Tensor
    weights_XL: Tensor
    kept_rows: Tensor
    live_rows: Tensor
    retiring_rows: Tensor
    retired_buckets: Tensor
    sample_positions: Tensor
    sample_slots: Tensor
    n_kept: int
    n_live: int
    n_sequence_positions: int = 0
    n_new: int | None = None
    left_rows: Tensor | None = None
    taken_rows: Tensor | None = None
    freed_rows: Tensor | None = None
    n_documents: int = 0
    document_bags: Tensor | None = None
    document_slots: Tensor | None = None
    emptied_slots: Tensor | None = None
    number: int | None = None
    n_carried: int = 0
    held_positions: Tensor | None = None
    made_from: Dispatch | None = None
    bins: tuple[Dispatch | None, ...] = ()

    @property
    def on_host(self) -> Dispatch:
        """The dispatch in host memory, where it was made."""
        return self.made_from or self

    @property
    def moves_rows(self) -> bool:
        """Whether rows are emptied or given to other labels or documents, whatever the layer's states."""
        moved = (self.freed_rows, self.left_rows, self.emptied_slots)
        return any(rows is not None and len(rows) for rows in moved)

    def counted(self, n: int) -> Tensor:
        """Give 1 for each of N computed and C waiting positions that counts, and 0 for the others: [N + C], float32."""
        positions = self.bag_positions[: self.n_sequence_positions]
        counted = torch.zeros(n + self.n_carried, dtype=torch.float32, device=positions.device)
        return counted.index_fill_(0, positions.long(), 1.0)

    def to(self, device: torch.device) -> Dispatch:
        """Copy the dispatch to a device without waiting for it."""
        tensors: dict[str, Any] = {
            field.name: value.to(device, non_blocking=True)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        bins = tuple(one and one.to(device) for one in self.bins)
        return dataclasses.replace(self, **tensors, made_from=self.on_host, bins=bins)


@dataclass(frozen=True, kw_only=True)
class DecodeStep:
    """One more token for each sequence of a cache, counted together with those of later steps.

    Attributes:
        shape: (B, 1).
    """

    shape: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Regrouping:
    """Waiting positions that are kept under another number from now on: other sequences are fed together.

    Attributes:
        number: the new one.
        parts: numbers so far, and int64 places of the positions among those kept under each, in their new order.
        emptied: numbers under which nothing is kept any more.
    """

    number: int
    parts: tuple[tuple[int, Tensor], ...]
    emptied: tuple[int, ...] = ()


class MergeMap(NamedTuple):
    """Map the rows and the sample of another part of the data to rows and slots here.

    Attributes:
        kept_rows: for each of its kept rows, the row here.
        from_rows, to_rows: its live rows, some of them several times, and the rows here.
        left_rows, taken_rows, freed_rows: as in `Dispatch`; they are applied first.
        sample, slots: positions of its sample that are taken over, and their slots here.
        documents, document_slots: documents of its sample that are added, and their slots here; emptied_slots: those
            that are emptied first.
    """

    kept_rows: Tensor
    from_rows: Tensor
    to_rows: Tensor
    left_rows: Tensor
    taken_rows: Tensor
    freed_rows: Tensor
    sample: Tensor
    slots: Tensor
    documents: Tensor
    document_slots: Tensor
    emptied_slots: Tensor


class Bags(NamedTuple):
    """Positions bag by bag, the start of each bag among them, and the group (label or sequence) of each bag."""

    positions_E: np.ndarray
    starts_L: np.ndarray
    groups_L: np.ndarray


_NO_BAGS = Bags(*np.zeros((3, 0), dtype=np.int64))
_NO_SETS = np.zeros((0, 0), dtype=bool)


def sort_into_bags(groups_SN: np.ndarray, positions_N: np.ndarray, n_groups: int, n_pieced: int = 0) -> Bags:
    """Sort positions by label.

    >>> sort_into_bags(np.array([[1, 0, 1]]), np.array([4, 5, 6]), n_groups=2)
    Bags(positions_E=array([5, 4, 6]), starts_L=array([0, 1]), groups_L=array([0, 1]))

    Args:
        groups_SN: [n_label_sets, N], the label of each position in each set, numbered over all sets; n_groups or
            more means that the position has no bag in that set.
        positions_N: [N], the positions.
        n_pieced: number of first groups that are cut into bags of at most `MAX_BAG` positions.
    """
    flat = groups_SN.reshape(-1)
    in_bags = np.flatnonzero(flat < n_groups)  # most positions of long n-grams are in none, and need no sorting
    order = in_bags[np.argsort(flat[in_bags], kind="stable")]
    ordered = flat[order]
    pieced = np.searchsorted(ordered, n_pieced)
    whole = np.flatnonzero(np.diff(ordered[pieced:], prepend=-1)) + pieced
    starts = np.concatenate([_starts_of_pieces(ordered[:pieced]), whole])
    return Bags(positions_N[order % len(positions_N)], starts, ordered[starts])


def sort_by_sets(member_PN: np.ndarray, positions_N: np.ndarray) -> tuple[Bags, np.ndarray]:
    """Sort positions by the sets they belong to, in bags of at most `MAX_BAG`; leave out those of no set.

    >>> bags, member_PL = sort_by_sets(np.array([[True, False, True], [True, False, False]]), np.array([4, 5, 6]))
    >>> bags.positions_E.tolist(), bags.starts_L.tolist(), bags.groups_L.tolist()
    ([6, 4], [0, 1], [0, 1])
    >>> member_PL.tolist()
    [[True, True], [False, True]]

    Args:
        member_PN: [P, N], bool, membership of each position in each set.
        positions_N: [N], the positions.

    Returns:
        The bags, and the sets that the positions of each belong to, [P, L].
    """
    some = np.flatnonzero(member_PN.any(axis=0))
    member_PN, positions_N = member_PN[:, some], positions_N[some]
    packed_QN = np.packbits(np.pad(member_PN, ((0, 1), (0, 0))), axis=0)  # a row more, for there may be none
    packed_N = np.ascontiguousarray(packed_QN.T).view(f"S{len(packed_QN)}").reshape(-1)
    _, example, groups_N = np.unique(packed_N, return_index=True, return_inverse=True)
    order = np.argsort(groups_N, kind="stable")
    bags = in_pieces(groups_N[order], positions_N[order])
    return bags, member_PN[:, example[bags.groups_L]]


def in_pieces(groups_E: np.ndarray, positions_E: np.ndarray) -> Bags:
    """Cut positions that are sorted by group into bags of at most `MAX_BAG`."""
    starts = _starts_of_pieces(groups_E)
    return Bags(positions_E, starts, groups_E[starts])


def _starts_of_pieces(groups_E: np.ndarray) -> np.ndarray:
    starts = np.flatnonzero(np.diff(groups_E, prepend=-1))
    within = np.arange(len(groups_E)) - np.repeat(starts, np.diff(starts, append=len(groups_E)))
    return np.flatnonzero(within % MAX_BAG == 0)


def _weights(weights_WQ: np.ndarray, weights_PL: np.ndarray) -> np.ndarray:
    (n_replicates, n_sequences), (n_singleton_sets, n_singletons) = weights_WQ.shape, weights_PL.shape
    weights_XL = np.zeros((1 + n_singleton_sets + n_replicates, n_sequences + n_singletons))
    weights_XL[0, :n_sequences] = 1.0
    weights_XL[1 : 1 + n_singleton_sets, n_sequences:] = weights_PL
    weights_XL[1 + n_singleton_sets :, :n_sequences] = weights_WQ
    return weights_XL


def _of_documents(sequences: Bags, slots_B: np.ndarray | None) -> dict[str, np.ndarray]:
    slots_Q = None if slots_B is None else slots_B[sequences.groups_L]
    if slots_Q is None or not (slots_Q >= 0).any():
        return {}
    bags = np.flatnonzero(slots_Q >= 0)
    return {"document_bags": bags, "document_slots": slots_Q[bags]}


def build_dispatch(
    *,
    shape: tuple[int, int],
    sequences: Bags,
    weights_WB: np.ndarray,
    labels: Bags,
    sampled: np.ndarray,
    singletons: Bags = _NO_BAGS,
    singleton_PL: np.ndarray = _NO_SETS,
    n_carried: int = 0,
    held: np.ndarray | None = None,
    slots_B: np.ndarray | None = None,
    like: Dispatch | None = None,
    **others: Any,
) -> Dispatch:
    """Build the dispatch of a batch from positions numbered 0 … B·T − 1, then C that waited.

    Args:
        shape: (B, T).
        sequences: counted positions of each sequence.
        weights_WB: how often each sequence occurs in each bootstrap replicate.
        labels: bags of the kept, live, retiring and batch-local labels.
        sampled: positions whose assignments are kept.
        singletons: positions by the sets in which their labels occur once, of the P sets with singletons.
        singleton_PL: membership of each of these bags in each set.
        n_carried: C.
        held: positions that wait after this batch.
        slots_B: slot of each sequence's document in the sample of documents; negative where it is not in it.
        like: a dispatch of the same batch, some of whose computed positions these are; they are numbered as there.
        others: further attributes of `Dispatch`, as arrays or plain values.
    """
    n_fed = shape[0] * shape[1]
    held = np.zeros(0, dtype=np.int64) if held is None else held
    all_bags = [sequences, singletons, labels]
    ends = np.cumsum([len(bags.positions_E) for bags in all_bags])
    offsets = [bags.starts_L + start for bags, start in zip(all_bags, [0, *ends[:-1]], strict=True)]
    used = np.concatenate([sequences.positions_E, held])
    computed = _computed(n_fed, used) if like is None else like.computed
    numbers = np.arange(n_fed + n_carried)
    if computed is not None:
        numbers[computed.numpy()] = np.arange(len(computed))
        numbers[n_fed:] -= n_fed - len(computed)
    given: dict[str, Any] = {
        "bag_positions": numbers[np.concatenate([bags.positions_E for bags in all_bags])].astype(np.int32),
        "bag_offsets": np.concatenate([*offsets, ends[-1:]]).astype(np.int32),
        "weights_XL": _weights(weights_WB[:, sequences.groups_L], singleton_PL),
        "sample_positions": numbers[sampled],
        "held_positions": numbers[held],
        **_of_documents(sequences, slots_B),
        **others,
    }
    given = {name: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for name, x in given.items()}
    n_sequence_positions = len(sequences.positions_E)
    return Dispatch(
        shape=shape, computed=computed, n_carried=n_carried, n_sequence_positions=n_sequence_positions, **given
    )


def _computed(n_fed: int, used: np.ndarray) -> Tensor | None:
    """Choose the computed positions among those that are fed; None for all."""
    is_used = np.zeros(n_fed, dtype=bool)
    is_used[used[used < n_fed]] = True
    computed = np.flatnonzero(is_used)
    return torch.from_numpy(computed) if len(computed) < DENSE_SHARE * n_fed else None
