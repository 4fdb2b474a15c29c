"""Where the positions of one forward pass go: the instructions that all layers share.

A label is, within a batch, a bag of positions. Bags are sorted once per batch; each layer then sums its soft
assignments bag by bag and adds the results to its rows.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class BatchLabels:
    """Which rows of the running sums each of N = B·T positions is added to.

    The bags come in three groups, one after the other: labels whose rows are kept to the end, labels whose rows
    are open (seen before, or to be seen again), and labels that occur in this batch only. Labels that occur
    once in the whole corpus have no bag: the entropy of their position's own assignment is all there is to know.

    Attributes:
        shape: (B, T) of the batch; n_tokens: how many of them are no padding; n_counted: how many count.
        counted_N: float32, 1 where the position counts, else 0.
        bag_positions: int32 [E], positions bag by bag; bag_offsets: int32 [n_bags + 1].
        kept_rows, open_rows: int64, the rows of the first two groups of bags.
        single_PN: float32 [n_pools, N], of sets whose labels come and go, 1 where the position's label occurs once.
        retired_rows: int64, open rows that end with this batch.
        ended_buckets: int64, the buckets that labels which are over are pooled in: those of the third group, then
            those of the retired rows.
        sample_positions, sample_slots: int64, positions whose assignments are kept, and where among those kept.
        weights_WB: float64 [n_replicates, B], how often each sequence occurs in each bootstrap replicate.
        n_kept, n_open: rows that must exist before the batch is added.
        left_rows, taken_rows: int64, open rows that labels shared until now, and those of their own that they take
            instead: what is in the former is added to the latter, before the batch is.
        number: of the sequences, whose waiting positions layers have kept; None where nothing waits.
        carried_sequences: int64 [C], the sequence of each of these; they are positions N … N + C − 1, and tensors of
            N positions here have N + C.
        held_positions: int64, positions that wait from now on.
        made_from: where this is a copy on an accelerator, the original.
    """

    shape: tuple[int, int]
    n_tokens: int
    n_counted: int
    counted_N: Tensor
    bag_positions: Tensor
    bag_offsets: Tensor
    kept_rows: Tensor
    open_rows: Tensor
    single_PN: Tensor
    retired_rows: Tensor
    ended_buckets: Tensor
    sample_positions: Tensor
    sample_slots: Tensor
    weights_WB: Tensor
    n_kept: int
    n_open: int
    left_rows: Tensor | None = None
    taken_rows: Tensor | None = None
    number: int | None = None
    carried_sequences: Tensor | None = None
    held_positions: Tensor | None = None
    made_from: BatchLabels | None = None

    @property
    def on_host(self) -> BatchLabels:
        """The same in host memory, where it was made."""
        return self.made_from or self

    def to(self, device: torch.device) -> BatchLabels:
        tensors: dict[str, Any] = {
            field.name: value.to(device, non_blocking=True)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **tensors, made_from=self.on_host)


class Merged(NamedTuple):
    """Where another's labels and sample are among these.

    Attributes:
        kept_rows: of each of its kept rows the one it is added to.
        from_rows, to_rows: its open rows, some more than once, and those they are added to.
        left_rows, taken_rows: as in `BatchLabels`, before that.
        sample, slots: positions of its sample that are taken over, and the slots they go to.
    """

    kept_rows: Tensor
    from_rows: Tensor
    to_rows: Tensor
    left_rows: Tensor
    taken_rows: Tensor
    sample: Tensor
    slots: Tensor


def sort_into_bags(groups_SN: np.ndarray, positions_N: np.ndarray, n_groups: int) -> tuple[np.ndarray, ...]:
    """Positions sorted by label.

    >>> sort_into_bags(np.array([[1, 0, 1]]), np.array([4, 5, 6]), n_groups=2)
    (array([0, 1]), array([5, 4, 6], dtype=int32), array([0, 1, 3], dtype=int32))

    Args:
        groups_SN: [n_label_sets, N], the label of each position in each set, numbered over all sets;
            n_groups or more means that the position has no bag in that set.
        positions_N: [N], the positions.

    Returns:
        The labels that occur, ascending; their positions, label by label; where each label's positions start.
    """
    flat = groups_SN.reshape(-1)
    order = np.argsort(flat, kind="stable")
    ordered = flat[order]
    end = np.searchsorted(ordered, n_groups)
    starts = np.flatnonzero(np.diff(ordered[:end], prepend=-1))
    return (
        ordered[starts],
        positions_N[order[:end] % len(positions_N)].astype(np.int32),
        np.append(starts, end).astype(np.int32),
    )
