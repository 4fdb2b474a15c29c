"""Where the positions of one forward pass go: the instructions that all layers share.

Within a batch a label is a bag of positions, and so is a sequence. Bags are sorted once per batch; each layer then
sums its soft assignments bag by bag and adds the results to its rows. Of positions that are in no bag, padding above
all, nothing is computed.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

#: Positions that are summed at a time in float32; sums of 131,072 would lose 1e-4 of their mass.
N_SUMMED = 256
#: Where more of a batch's positions than these are in bags, computing all of them is cheaper than picking them out.
MOST = 0.85


@dataclass(frozen=True, kw_only=True)
class Dispatch:
    """Which rows of the running sums each position is added to.

    Positions are numbered as the layers compute their soft assignments: those of the batch that are computed, then C
    that waited from before. Bags of them come in six groups, one after the other: sequences, and single positions,
    both in pieces of at most `N_SUMMED`; labels whose rows are kept to the end, in such pieces too; labels whose rows
    are open, for they may occur again; those whose rows are open for the last time; and labels that occur in this
    batch only. Labels that occur once in the whole corpus have no bag of their own: the entropy of their position's
    own assignment is all there is to know.

    Attributes:
        shape: (B, T) of the batch; n_tokens: how many of them are no padding; n_counted: how many count.
        computed: int64, positions of the batch that are computed, of its B·T; None where all are.
        bag_positions: int32 [E], positions bag by bag; bag_offsets: int32 [n_bags + 1].
        weights_XL: float64 [X, L], how often the bags of the first two groups are added to each of the sums of
            positions whatever their labels (`LayerSums`): the total has all sequences; each set whose labels come
            and go has the single positions whose label of the set occurs once in the corpus; each bootstrap
            replicate has a sequence as often as it drew its document.
        kept_rows, live_rows, retiring_rows: int64, the rows of the third, fourth and fifth group.
        retired_buckets: int64, the buckets that the labels of the last two groups are pooled in.
        sample_positions, sample_slots: int64, positions whose assignments are kept, and where among those kept.
        n_kept, n_live: rows that must exist before the batch is added.
        left_rows, taken_rows: int64, open rows that labels shared until now, and those of their own that they take
            instead: what is in the former is added to the latter, before the batch is.
        number: of the sequences, whose waiting positions layers have kept; None where nothing waits.
        n_carried: C, how many of these there are.
        held_positions: int64, positions that wait from now on.
        made_from: where this is a copy on an accelerator, the original.
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
    left_rows: Tensor | None = None
    taken_rows: Tensor | None = None
    number: int | None = None
    n_carried: int = 0
    held_positions: Tensor | None = None
    made_from: Dispatch | None = None

    @property
    def on_host(self) -> Dispatch:
        """The same in host memory, where it was made."""
        return self.made_from or self

    def to(self, device: torch.device) -> Dispatch:
        tensors: dict[str, Any] = {
            field.name: value.to(device, non_blocking=True)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **tensors, made_from=self.on_host)


@dataclass(frozen=True, kw_only=True)
class DecodeStep:
    """One more token for each sequence of a cache, counted together with those of later steps.

    Attributes:
        shape: (B, 1).
    """

    shape: tuple[int, int]


class MergeMap(NamedTuple):
    """Where another's labels and sample are among these.

    Attributes:
        kept_rows: of each of its kept rows the one it is added to.
        from_rows, to_rows: its open rows, some more than once, and those they are added to.
        left_rows, taken_rows: as in `Dispatch`, before that.
        sample, slots: positions of its sample that are taken over, and the slots they go to.
    """

    kept_rows: Tensor
    from_rows: Tensor
    to_rows: Tensor
    left_rows: Tensor
    taken_rows: Tensor
    sample: Tensor
    slots: Tensor


class Bags(NamedTuple):
    """Positions bag by bag; where each bag starts among them, and what it is a bag of."""

    positions_E: np.ndarray
    starts_L: np.ndarray
    groups_L: np.ndarray


_NO_BAGS = Bags(*np.zeros((3, 0), dtype=np.int64))
_NO_SETS = np.zeros((0, 0), dtype=bool)


def sort_into_bags(groups_SN: np.ndarray, positions_N: np.ndarray, n_groups: int, n_pieced: int = 0) -> Bags:
    """Positions sorted by label.

    >>> sort_into_bags(np.array([[1, 0, 1]]), np.array([4, 5, 6]), n_groups=2)
    Bags(positions_E=array([5, 4, 6]), starts_L=array([0, 1]), groups_L=array([0, 1]))

    Args:
        groups_SN: [n_label_sets, N], the label of each position in each set, numbered over all sets;
            n_groups or more means that the position has no bag in that set.
        positions_N: [N], the positions.
        n_pieced: the first so many groups are cut into bags of at most `N_SUMMED` positions.
    """
    flat = groups_SN.reshape(-1)
    order = np.argsort(flat, kind="stable")
    ordered = flat[order]
    pieced, end = np.searchsorted(ordered, [n_pieced, n_groups])
    whole = np.flatnonzero(np.diff(ordered[pieced:end], prepend=-1)) + pieced
    starts = np.concatenate([_starts_of_pieces(ordered[:pieced]), whole])
    return Bags(positions_N[order[:end] % len(positions_N)], starts, ordered[starts])


def sort_by_sets(member_PN: np.ndarray, positions_N: np.ndarray) -> tuple[Bags, np.ndarray]:
    """Positions sorted by the sets they belong to, in bags of at most `N_SUMMED`; those of no set are left out.

    >>> bags, member_PL = sort_by_sets(np.array([[True, False, True], [True, False, False]]), np.array([4, 5, 6]))
    >>> bags.positions_E.tolist(), bags.starts_L.tolist(), bags.groups_L.tolist()
    ([6, 4], [0, 1], [0, 1])
    >>> member_PL.tolist()
    [[True, True], [False, True]]

    Args:
        member_PN: [P, N], bool, which sets each position belongs to.
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
    """Bags of at most `N_SUMMED` positions, which come sorted by their groups."""
    starts = _starts_of_pieces(groups_E)
    return Bags(positions_E, starts, groups_E[starts])


def _starts_of_pieces(groups_E: np.ndarray) -> np.ndarray:
    starts = np.flatnonzero(np.diff(groups_E, prepend=-1))
    within = np.arange(len(groups_E)) - np.repeat(starts, np.diff(starts, append=len(groups_E)))
    return np.flatnonzero(within % N_SUMMED == 0)


def _weights(weights_WQ: np.ndarray, weights_PL: np.ndarray) -> np.ndarray:
    (n_replicates, n_sequences), (n_singleton_sets, n_singles) = weights_WQ.shape, weights_PL.shape
    weights_XL = np.zeros((1 + n_singleton_sets + n_replicates, n_sequences + n_singles))
    weights_XL[0, :n_sequences] = 1.0
    weights_XL[1 : 1 + n_singleton_sets, n_sequences:] = weights_PL
    weights_XL[1 + n_singleton_sets :, :n_sequences] = weights_WQ
    return weights_XL


def build_dispatch(
    *,
    shape: tuple[int, int],
    sequences: Bags,
    weights_WB: np.ndarray,
    labels: Bags,
    sampled: np.ndarray,
    singles: Bags = _NO_BAGS,
    single_PL: np.ndarray = _NO_SETS,
    n_carried: int = 0,
    held: np.ndarray | None = None,
    **others: Any,
) -> Dispatch:
    """The instructions of a batch, whose positions are numbered as they come, 0 … B·T − 1, then C that waited.

    Args:
        sequences: counted positions of each sequence; weights_WB: how often each occurs in each replicate.
        labels: of rows that are kept, open and ending, and of labels that occur in this batch only.
        sampled: positions whose assignments are kept; held: those that wait from now on.
        singles: positions by the sets in which their labels occur once, of the P sets whose labels come and go;
            single_PL: which sets those of each bag are.
        others: attributes of `Dispatch`, as arrays or whatever they are.
    """
    n_fed = shape[0] * shape[1]
    held = np.zeros(0, dtype=np.int64) if held is None else held
    all_bags = [sequences, singles, labels]
    ends = np.cumsum([len(bags.positions_E) for bags in all_bags])
    offsets = [bags.starts_L + start for bags, start in zip(all_bags, [0, *ends[:-1]], strict=True)]
    is_used = np.zeros(n_fed + n_carried, dtype=bool)
    is_used[sequences.positions_E] = True
    is_used[held] = True
    computed = np.flatnonzero(is_used[:n_fed])
    numbers = np.arange(n_fed + n_carried)
    if picks := len(computed) < MOST * n_fed:
        numbers[computed] = np.arange(len(computed))
        numbers[n_fed:] -= n_fed - len(computed)
    given: dict[str, Any] = {
        "bag_positions": numbers[np.concatenate([bags.positions_E for bags in all_bags])].astype(np.int32),
        "bag_offsets": np.concatenate([*offsets, ends[-1:]]).astype(np.int32),
        "weights_XL": _weights(weights_WB[:, sequences.groups_L], single_PL),
        "sample_positions": numbers[sampled],
        "held_positions": numbers[held],
        **others,
    }
    given = {name: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for name, x in given.items()}
    return Dispatch(shape=shape, computed=torch.from_numpy(computed) if picks else None, n_carried=n_carried, **given)
