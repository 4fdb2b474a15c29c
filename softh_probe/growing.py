"""Rows that grow: where labels live when the future is unknown, attached to somebody else's evaluation.

Every label that occurs takes a row for good. n-grams are keyed by their tokens' bytes and labels of one's own by
their number, so keys are exact and two probes' rows can be matched to merge them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from softh_probe.batch_labels import BatchLabels, sort_into_bags
from softh_probe.labels import LabelSet, context
from softh_probe.sampling import SAMPLE_SIZE, GrowingSample, poisson_weights, position_keys, sequence_key


class GrowingRows:
    """Rows of the labels seen so far; each batch's labels are found from its tokens.

    n-grams take open rows, labels of one's own (`SoftEntropyProbe.labelled`) take kept ones, in sets that appear
    with their first batch. The attributes that results read are those of `Plan`.
    """

    n_buckets = 0
    n_sample = SAMPLE_SIZE
    single_sets = single_labels = np.zeros(0, dtype=np.int64)
    bucket_sets = bucket_counts = bucket_labels = np.zeros(0, dtype=np.int64)
    bucket_names: list[str | None] = []  # noqa: RUF012

    def __init__(self, label_sets: Sequence[LabelSet]) -> None:
        self.label_sets = tuple(label_sets)
        self._before, self._after = context(label_sets)
        self._open = _tables(len(self.label_sets))
        self._kept: dict[str, dict[int, int]] = {}
        self._next_kept = count()
        self._sample = GrowingSample()
        self._n_sequences = 0

    @property
    def sample_order(self) -> np.ndarray:
        """Slots of the sample in the order of their positions' keys: one order however they came."""
        return np.argsort(self._sample.keys, kind="stable")

    @property
    def set_names(self) -> list[str]:
        return [s.name for s in self.label_sets] + list(self._kept)

    @property
    def keeps_labels(self) -> list[bool]:
        return [False] * len(self.label_sets) + [True] * len(self._kept)

    @property
    def n_open(self) -> int:
        return sum(len(table) for table in self._open)

    @property
    def n_kept(self) -> int:
        return sum(len(table) for table in self._kept.values())

    @property
    def open_sets(self) -> np.ndarray:
        return _owners(self._open, 0, self.n_open)

    @property
    def kept_sets(self) -> np.ndarray:
        return _owners(list(self._kept.values()), len(self.label_sets), self.n_kept)

    @property
    def kept_names(self) -> list[str | None]:
        by_row = {row: str(label) for table in self._kept.values() for label, row in table.items()}
        return [by_row[row] for row in range(len(by_row))]

    def batch(self, real_BT: np.ndarray, ids_BT: np.ndarray | None, own: Mapping[str, np.ndarray]) -> BatchLabels:
        """What the hooks need to know of one forward pass.

        Args:
            real_BT: bool [B, T], False at padding.
            ids_BT: token ids; may be None where there are no n-gram label sets.
            own: labels of one's own, by set, [B, T]; negative where a position has none.
        """
        counted_BT = self._counted(real_BT)
        sequence_N, position_N = np.nonzero(counted_BT)
        for name in own:
            self._kept.setdefault(name, defaultdict(self._next_kept.__next__))
        kept = [_rows(self._kept[name], labels[counted_BT]) for name, labels in own.items()]
        opened = []
        for label_set, table in zip(self.label_sets, self._open, strict=True):
            assert ids_BT is not None, "n-gram label sets need token ids"
            start_N = position_N + (1 if label_set.direction == "output" else 1 - label_set.order)
            opened.append(_rows(table, _ngrams(ids_BT, label_set.order, sequence_N, start_N)))
        n_kept, n_open = self.n_kept, self.n_open
        groups = [np.where(rows < 0, n_kept + n_open, rows) for rows in kept] + [n_kept + rows for rows in opened]
        groups_SN = np.stack(groups) if groups else np.zeros((0, len(position_N)), dtype=np.int64)
        flat_N = np.flatnonzero(counted_BT)
        labels, bag_positions, bag_offsets = sort_into_bags(groups_SN, flat_N, n_kept + n_open)
        kept_end = np.searchsorted(labels, n_kept)
        none = torch.zeros(0, dtype=torch.int64)
        sequence_keys_B = self._sequence_keys(real_BT, ids_BT)
        places_N = (real_BT.cumsum(axis=1) - 1)[counted_BT]
        taken, slots = self._sample.offer(position_keys(sequence_keys_B[sequence_N], places_N))
        return BatchLabels(
            shape=(counted_BT.shape[0], counted_BT.shape[1]),
            n_tokens=int(real_BT.sum()),
            n_counted=len(flat_N),
            counted_N=torch.from_numpy(counted_BT.reshape(-1).astype(np.float32)),
            bag_positions=torch.from_numpy(bag_positions),
            bag_offsets=torch.from_numpy(bag_offsets),
            kept_rows=torch.from_numpy(labels[:kept_end]),
            open_rows=torch.from_numpy(labels[kept_end:] - n_kept),
            closed_buckets=none,
            single_PN=torch.zeros(0, counted_BT.size, dtype=torch.float32),
            retired_rows=none,
            retired_buckets=none,
            sample_positions=torch.from_numpy(flat_N[taken]),
            sample_slots=torch.from_numpy(slots),
            weights_WB=torch.from_numpy(poisson_weights(sequence_keys_B)),
            n_kept=n_kept,
            n_open=n_open,
        )

    def _sequence_keys(self, real_BT: np.ndarray, ids_BT: np.ndarray | None) -> np.ndarray:
        """A number for each sequence: from its real tokens, or else from how many came before."""
        if ids_BT is not None:
            keys = [sequence_key(ids[real]) for ids, real in zip(ids_BT, real_BT, strict=True)]
        else:
            keys = [sequence_key(np.array([self._n_sequences + b])) for b in range(len(real_BT))]
        self._n_sequences += len(real_BT)
        return np.array(keys, dtype=np.uint64)

    def _counted(self, real_BT: np.ndarray) -> np.ndarray:
        """Real positions whose neighbours, as far as the n-grams reach, are real tokens of the same sequence."""
        counted_BT = real_BT.copy()
        for k in range(1, self._before + 1):
            counted_BT[:, k:] &= real_BT[:, :-k]
            counted_BT[:, :k] = False
        for k in range(1, self._after + 1):
            counted_BT[:, :-k] &= real_BT[:, k:]
            counted_BT[:, -k:] = False
        return counted_BT

    def state_dict(self) -> dict[str, Any]:
        """Keys in the order of their rows: of each n-gram set its tokens [L, n], of each own set its labels [L]."""
        ngrams = [
            torch.from_numpy(np.frombuffer(b"".join(table), dtype=np.int32).reshape(-1, s.order).copy())
            for s, table in zip(self.label_sets, self._open, strict=True)
        ]
        own = {name: torch.tensor(list(table), dtype=torch.int64) for name, table in self._kept.items()}
        in_rows = [list(table.values()) for table in self._open] + [
            list(table.values()) for table in self._kept.values()
        ]
        rows = [torch.tensor(r, dtype=torch.int64) for r in in_rows]
        sample = torch.from_numpy(self._sample.keys.view(np.int64).copy())
        return {"ngrams": ngrams, "own": own, "rows": rows, "sample": sample, "sequences": self._n_sequences}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._sample, self._n_sequences = GrowingSample(), state["sequences"]
        self._sample.keys = state["sample"].numpy().view(np.uint64).copy()
        rows = [r.tolist() for r in state["rows"]]
        self._open = _tables(len(self.label_sets), start=sum(len(tokens) for tokens in state["ngrams"]))
        for table, tokens, table_rows in zip(self._open, state["ngrams"], rows, strict=False):
            table.update(zip(_keys(tokens.numpy()), table_rows, strict=True))
        self._next_kept = count(sum(len(labels) for labels in state["own"].values()))
        self._kept = {}
        for (name, labels), table_rows in zip(state["own"].items(), rows[len(self._open) :], strict=True):
            self._kept[name] = defaultdict(self._next_kept.__next__)
            self._kept[name].update(zip(labels.tolist(), table_rows, strict=True))

    def merge(self, other: GrowingRows) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Take in another's labels and sample.

        Returns:
            Where its kept rows and its open rows are among these; which slots of its sample go to which of these.
        """
        kept_rows = np.zeros(other.n_kept, dtype=np.int64)
        for name, theirs in other._kept.items():
            ours = self._kept.setdefault(name, defaultdict(self._next_kept.__next__))
            kept_rows[list(theirs.values())] = [ours[label] for label in theirs]
        open_rows = np.zeros(other.n_open, dtype=np.int64)
        for ours_n, theirs_n in zip(self._open, other._open, strict=True):
            open_rows[list(theirs_n.values())] = [ours_n[tokens] for tokens in theirs_n]
        taken, slots = self._sample.offer(other._sample.keys)
        self._n_sequences += other._n_sequences
        sample = torch.from_numpy(taken), torch.from_numpy(slots)
        return torch.from_numpy(kept_rows), torch.from_numpy(open_rows), sample


def _tables(n: int, start: int = 0) -> list[dict[bytes, int]]:
    """Dictionaries that give each new key the next row; rows are shared out among all of them."""
    next_row = count(start)
    return [defaultdict(next_row.__next__) for _ in range(n)]


def _owners(tables: Sequence[Mapping[Any, int]], first_set: int, n_rows: int) -> np.ndarray:
    owners = np.zeros(n_rows, dtype=np.int64)
    for i, table in enumerate(tables):
        owners[list(table.values())] = first_set + i
    return owners


def _rows(table: Mapping[Any, int], labels: np.ndarray) -> np.ndarray:
    """The row of each label, new ones taken as needed; −1 for a negative label."""
    if labels.dtype.kind != "V":
        distinct, inverse = np.unique(labels, return_inverse=True)
        rows = [table[label] if label >= 0 else -1 for label in distinct.tolist()]
        return np.array(rows, dtype=np.int64)[inverse]
    return np.fromiter(map(table.__getitem__, labels.tolist()), dtype=np.int64, count=len(labels))


def _ngrams(ids_BT: np.ndarray, order: int, sequence_N: np.ndarray, start_N: np.ndarray) -> np.ndarray:
    """The n tokens from start on, as opaque values of 4·n bytes, [N]."""
    if not len(start_N):
        return np.zeros(0, dtype=f"V{4 * order}")
    windows = sliding_window_view(ids_BT.astype(np.int32), order, axis=1)
    return np.ascontiguousarray(windows[sequence_N, start_N]).view(f"V{4 * order}").reshape(-1)


def _keys(tokens_Ln: np.ndarray) -> list[bytes]:
    return np.ascontiguousarray(tokens_Ln, dtype=np.int32).view(f"V{4 * tokens_Ln.shape[1]}").reshape(-1).tolist()
