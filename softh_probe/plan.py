"""The plan of rows: where each label lives, when the whole corpus is known before the forward pass.

Every label's first and last batch is known. A label that occurs once needs no row, one that occurs within a
single batch neither; every other takes a row at its first batch and gives it back after its last one, when its
entropy is computed and pooled with that of the labels of the same count. So the tables are as long as the
largest number of labels alive at once, and the same plan serves all layers and all checkpoints of a tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from softh_probe.batch_labels import BatchLabels, sort_into_bags
from softh_probe.errors import InputError
from softh_probe.labels import LabelSet, context, ngram_ids, shortest_document

if TYPE_CHECKING:
    from softh_probe.corpus import Corpus

#: A column with at most this many distinct values keeps a row for each to the end, so that results show each.
KEPT_LABELS = 1000


class Plan:
    """Rows of every label of a corpus whose batches are fixed.

    Labels of all sets are numbered together: first the kept ones (their number is their row), then the open
    ones, which come and go, then the closed ones, which occur in one batch only, then those that occur once.

    Attributes:
        label_sets: the label sets, whose order numbers them.
        batches: the documents of each batch.
        n_positions: positions that will be counted.
        n_too_short: documents of which no position counts; they are not run.
        n_kept, n_open: rows of the two tables; n_buckets: pools of labels of one set and one count.
        keeps_labels: of each set, whether all its labels keep their rows to the end.
        kept_sets, kept_names: of each kept row its set and its label (None: positions without a label).
        bucket_sets, bucket_counts, bucket_labels: of each bucket its set, its labels' count, how many they are.
    """

    def __init__(self, corpus: Corpus, label_sets: Sequence[LabelSet], batches: Sequence[np.ndarray]) -> None:
        self.corpus = corpus
        self.label_sets = tuple(label_sets)
        self.batches = list(batches)
        self._before, self._after = context(label_sets)
        needed = shortest_document(label_sets)
        self.n_too_short = int((corpus.lengths < needed).sum())
        if self.n_too_short == corpus.n_documents:
            raise InputError(
                f"labels: every document is too short: one position needs {needed} tokens, the longest document "
                f"has {corpus.lengths.max()}; ask for lower n-gram orders or longer documents"
            )
        orders = [s.order for s in label_sets]
        self._ngrams = ngram_ids(corpus.tokens, corpus.offsets, max(orders)) if any(orders) else []
        self._number_labels()

    def batch(self, index: int) -> BatchLabels:
        """What the hooks need to know of one batch, its documents right-padded to the longest."""
        documents = self.batches[index]
        longest = int(self.corpus.lengths[documents].max())
        n_rows_before = np.arange(len(documents)) * longest
        positions_N, groups_SN = self._positions(documents, n_rows_before), self._groups(documents)
        labels, bag_positions, bag_offsets = sort_into_bags(groups_SN, positions_N, self._n_bagged)
        kept_end, open_end = np.searchsorted(labels, [self.n_kept, self.n_kept + len(self._open_rows)])
        counted_N = torch.zeros(len(documents) * longest, dtype=torch.float32)
        counted_N[positions_N] = 1.0
        single_PN = torch.zeros(len(self._pooled_sets), len(counted_N), dtype=torch.float32)
        single_PN[:, positions_N] = torch.from_numpy(groups_SN[self._pooled_sets] >= self._n_bagged).float()
        retired = self._retired[self._retired_starts[index] : self._retired_starts[index + 1]]
        return BatchLabels(
            shape=(len(documents), longest),
            n_tokens=int(self.corpus.lengths[documents].sum()),
            n_counted=len(positions_N),
            counted_N=counted_N,
            bag_positions=torch.from_numpy(bag_positions),
            bag_offsets=torch.from_numpy(bag_offsets),
            kept_rows=torch.from_numpy(labels[:kept_end].astype(np.int64)),
            open_rows=torch.from_numpy(self._open_rows[labels[kept_end:open_end] - self.n_kept]),
            closed_buckets=torch.from_numpy(self._bucket_of[labels[open_end:] - self.n_kept]),
            single_PN=single_PN,
            retired_rows=torch.from_numpy(self._open_rows[retired]),
            retired_buckets=torch.from_numpy(self._bucket_of[retired]),
            n_kept=self.n_kept,
            n_open=self.n_open,
        )

    @property
    def set_names(self) -> list[str]:
        return [s.name for s in self.label_sets]

    @property
    def open_sets(self) -> np.ndarray:
        """Sets of the open rows still in use when all batches are done: none."""
        return np.zeros(0, dtype=np.int64)

    @property
    def n_labels(self) -> int:
        """Distinct labels of all sets."""
        return sum(name is not None for name in self.kept_names) + int(self.bucket_labels.sum())

    def bytes_per_layer(self, n_anchors: int, anchor_sets: int) -> int:
        """Memory that one layer's sums take, in bytes."""
        columns = anchor_sets * (n_anchors + 1) + 1
        return columns * (8 + 8 * self.n_kept + 4 * self.n_open) + 16 * anchor_sets * self.n_buckets

    def _positions(self, documents: np.ndarray, document_starts: np.ndarray) -> np.ndarray:
        """Counted positions of documents, given where each document's tokens start."""
        counts = self._n_counted(documents)
        return _ranges(document_starts + self._before, counts)

    def _n_counted(self, documents: np.ndarray) -> np.ndarray:
        return np.maximum(self.corpus.lengths[documents] - self._before - self._after, 0)

    def _ids(self, label_set: LabelSet, documents: np.ndarray) -> np.ndarray:
        """The set's label ids at the counted positions of documents; −1 where there is none."""
        if label_set.direction == "column":
            return np.repeat(self.corpus.columns[label_set.column].ids[documents], self._n_counted(documents))
        tokens = self._positions(documents, self.corpus.offsets[documents])
        ahead = label_set.order if label_set.direction == "output" else 0
        return self._ngrams[label_set.order - 1][tokens + ahead]

    def _groups(self, documents: np.ndarray) -> np.ndarray:
        groups = [number[self._ids(s, documents)] for s, number in zip(self.label_sets, self._numbers, strict=True)]
        return np.stack(groups) if groups else np.zeros((0, int(self._n_counted(documents).sum())), np.int32)

    def _number_labels(self) -> None:
        documents = np.concatenate(self.batches)
        batch_of_document = np.repeat(np.arange(len(self.batches)), [len(b) for b in self.batches])
        batch_N = np.repeat(batch_of_document, self._n_counted(documents)).astype(np.int32)
        self.n_positions = len(batch_N)
        lives = [_lives(self._ids(s, documents), batch_N) for s in self.label_sets]

        self.keeps_labels = kept = [
            s.direction == "column" and len(life.count) <= KEPT_LABELS for s, life in self._zip(lives)
        ]
        self.kept_names: list[str | None] = []
        for s, life in zip(self.label_sets, lives, strict=True):
            if not len(life.count):
                raise InputError(f"labels: {s.name} is null in every document that is long enough; leave it out")
        kept_sets: list[int] = []
        first_kept = []
        for i, (label_set, life) in enumerate(self._zip(lives)):
            first_kept.append(len(kept_sets))
            names: list[str | None] = list(self.corpus.columns[label_set.column].names) if kept[i] else []
            names += [None] if life.has_unlabelled else []
            self.kept_names += names
            kept_sets += [i] * len(names)
        self.kept_sets = np.array(kept_sets, dtype=np.int64)
        self.n_kept = len(kept_sets)

        pooled = [i for i in range(len(lives)) if not kept[i]]
        self._pooled_sets = np.array(pooled, dtype=np.int64)
        opened = [np.flatnonzero(lives[i].is_open) for i in pooled]
        closed = [np.flatnonzero(lives[i].is_closed) for i in pooled]
        n_open_labels, n_closed = sum(map(len, opened)), sum(map(len, closed))
        self._n_bagged = self.n_kept + n_open_labels + n_closed

        self._numbers = [np.full(len(life.count) + 1, self._n_bagged, dtype=np.int32) for life in lives]
        for i, life in enumerate(lives):
            if kept[i]:
                self._numbers[i][:-1] = first_kept[i] + np.arange(len(life.count))
            if life.has_unlabelled:  # ids of −1 find their number at the end
                self._numbers[i][-1] = first_kept[i] + (len(life.count) if kept[i] else 0)
        first, last = (_gather([getattr(lives[i], name) for i in pooled], opened) for name in ("first", "last"))
        by_first = np.argsort(first, kind="stable")
        number = np.empty(n_open_labels, dtype=np.int32)
        number[by_first] = self.n_kept + np.arange(n_open_labels, dtype=np.int32)
        _scatter(self._numbers, pooled, opened, number)
        _scatter(self._numbers, pooled, closed, self.n_kept + n_open_labels + np.arange(n_closed, dtype=np.int32))

        self._open_rows, self.n_open = _allocate_rows(first[by_first], last[by_first], len(self.batches))
        self._retired = np.argsort(last[by_first], kind="stable")
        self._retired_starts = np.searchsorted(last[by_first][self._retired], np.arange(len(self.batches) + 1))

        count = np.concatenate(
            [
                _gather([lives[i].count for i in pooled], opened)[by_first],
                _gather([lives[i].count for i in pooled], closed),
            ]
        )
        set_of = np.concatenate([_owner(pooled, opened)[by_first], _owner(pooled, closed)])
        keys, bucket_of, n_labels = np.unique(
            np.stack([set_of, count]), axis=1, return_inverse=True, return_counts=True
        )
        self._bucket_of = len(pooled) + bucket_of.reshape(-1).astype(np.int64)
        self.bucket_sets = np.concatenate([self._pooled_sets, keys[0]])
        self.bucket_counts = np.concatenate([np.ones(len(pooled), dtype=np.int64), keys[1]])
        self.bucket_labels = np.concatenate([[int((lives[i].count == 1).sum()) for i in pooled], n_labels])
        self.n_buckets = len(self.bucket_sets)

    def _zip(self, lives: Sequence[_Lives]) -> zip[tuple[LabelSet, _Lives]]:
        return zip(self.label_sets, lives, strict=True)


@dataclass(frozen=True, kw_only=True)
class _Lives:
    """Of each label of one set: how often it occurs, and its first and last batch."""

    count: np.ndarray
    first: np.ndarray
    last: np.ndarray
    has_unlabelled: bool

    @property
    def is_open(self) -> np.ndarray:
        return (self.count > 1) & (self.first < self.last)

    @property
    def is_closed(self) -> np.ndarray:
        return (self.count > 1) & (self.first == self.last)


def _lives(ids_N: np.ndarray, batch_N: np.ndarray) -> _Lives:
    labelled = ids_N >= 0
    has_unlabelled = not labelled.all()
    if has_unlabelled:
        ids_N, batch_N = ids_N[labelled], batch_N[labelled]
    count = np.bincount(ids_N)
    first, last = np.zeros(len(count), dtype=np.int32), np.zeros(len(count), dtype=np.int32)
    last[ids_N] = batch_N  # of repeated ids the last assignment stays
    first[ids_N[::-1]] = batch_N[::-1]
    return _Lives(count=count, first=first, last=last, has_unlabelled=has_unlabelled)


def _allocate_rows(first: np.ndarray, last: np.ndarray, n_batches: int) -> tuple[np.ndarray, int]:
    """Rows for labels that live from batch first to batch last, ordered by first; and how many rows it takes."""
    rows = np.empty(len(first), dtype=np.int64)
    starts = np.searchsorted(first, np.arange(n_batches + 1))
    by_last = np.argsort(last, kind="stable")
    ends = np.searchsorted(last[by_last], np.arange(n_batches + 1))
    free, n_free, n_rows = np.empty(len(first), dtype=np.int64), 0, 0
    for b in range(n_batches):
        n_new = starts[b + 1] - starts[b]
        n_reused = min(n_new, n_free)
        n_free -= n_reused
        rows[starts[b] : starts[b] + n_reused] = free[n_free : n_free + n_reused]
        rows[starts[b] + n_reused : starts[b + 1]] = np.arange(n_rows, n_rows + n_new - n_reused)
        n_rows += n_new - n_reused
        ended = rows[by_last[ends[b] : ends[b + 1]]]
        free[n_free : n_free + len(ended)] = ended
        n_free += len(ended)
    return rows, int(n_rows)


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The integers starts[i] … starts[i] + counts[i] − 1 for each i, one after the other."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - counts), counts)


def _gather(arrays: list[np.ndarray], indices: list[np.ndarray]) -> np.ndarray:
    parts = [array[index] for array, index in zip(arrays, indices, strict=True)]
    return np.concatenate([np.zeros(0, dtype=np.int64), *parts]).astype(np.int64)


def _scatter(targets: list[np.ndarray], owners: list[int], indices: list[np.ndarray], values: np.ndarray) -> None:
    """Hand out values, in order, to targets[owners[i]][indices[i]]."""
    taken = 0
    for owner, index in zip(owners, indices, strict=True):
        targets[owner][index] = values[taken : taken + len(index)]
        taken += len(index)


def _owner(owners: list[int], indices: list[np.ndarray]) -> np.ndarray:
    return np.repeat(np.array(owners, dtype=np.int64), [len(index) for index in indices])
