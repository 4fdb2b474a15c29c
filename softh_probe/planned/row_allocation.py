"""Linear-scan allocation of rows to the labels of a corpus whose batches are fixed.

A label that occurs once needs no row, nor does one that occurs in a single batch. Every other label takes a row at its
first batch and frees it after its last one. The labels of all sets are numbered together: kept labels first (their
number is their row), then live labels, which take and free rows, then batch-local labels, which occur in one batch
only. Singletons, which occur once, share the number after the last, and labels that take no part, because labels are
sampled, the number after that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from softh_probe.accumulators.label_sampling import ALL
from softh_probe.errors import InputError
from softh_probe.labels import LabelRows, LabelSet
from softh_probe.planned.held_sets import choose_held
from softh_probe.planned.label_sample import sample_labels
from softh_probe.planned.lifetimes import Lifetimes, lifetimes_of, rows_in_use
from softh_probe.planned.population import Population

if TYPE_CHECKING:
    from softh_probe.data.corpus import Corpus

#: A column with at most this many distinct values keeps a row for each, so that results show each.
KEPT_LABELS = 1000


@dataclass(frozen=True, kw_only=True)
class RowAllocation:
    """Rows and lifetimes of all labels of a corpus, as plain arrays that can be stored.

    X label sets. Buckets are the pools of retired labels: one for each set and count, or one for each label in sets
    whose labels are shown one by one.

    Attributes:
        ngrams: for each order, the dense id of the n-gram that ends at each token.
        numbers: for each set, the number of each label id; the last entry is for positions without a label.
        n_positions: positions that count.
        keeps_labels: [X], whether all labels of the set have kept rows.
        kept_sets, kept_ids: for each kept row its set and its label's id, −1 for positions without a label.
        singleton_sets: sets whose labels take and free rows.
        singleton_labels: for each of these, how many labels occur once and have no bucket.
        occurs_once: for each number, whether its labels occur once. The last number but one is that of singletons, the
            last that of labels that take no part.
        live_rows: row of each live label; n_live: how many rows there are.
        live_starts: live labels are ordered by their first batch; those of batch b are live_starts[b:b+2].
        peak_rows: [X], live rows of each set when most are in use.
        retired: live labels ordered by their last batch. Those of batch b are retired_starts[b:b+2]; those of several
            shares, and those that are held, come last.
        bucket_of: bucket of each live, then each batch-local label.
        bucket_sets, bucket_counts, bucket_labels, bucket_ids: for each bucket its set, its labels' count, how many
            labels of that set and count there are, and the label's id where it holds one by choice, else −1.
        bucket_followed: for each bucket, how many of these take part and are pooled in it.
        thresholds: [X], the threshold of the sample of each set's labels (`label_sampling`); 1 where all take part.
        held: [X], whether all labels of the set that occur several times are live to the end (`held_sets`).
    """

    ngrams: list[np.ndarray]
    numbers: list[np.ndarray]
    n_positions: int
    keeps_labels: np.ndarray
    kept_sets: np.ndarray
    kept_ids: np.ndarray
    singleton_sets: np.ndarray
    singleton_labels: np.ndarray
    occurs_once: np.ndarray
    live_rows: np.ndarray
    live_starts: np.ndarray
    n_live: int
    peak_rows: np.ndarray
    retired: np.ndarray
    retired_starts: np.ndarray
    bucket_of: np.ndarray
    bucket_sets: np.ndarray
    bucket_counts: np.ndarray
    bucket_labels: np.ndarray
    bucket_ids: np.ndarray
    bucket_followed: np.ndarray
    thresholds: np.ndarray
    held: np.ndarray

    @property
    def n_kept(self) -> int:
        """Kept rows."""
        return len(self.kept_sets)

    @property
    def n_bagged(self) -> int:
        """Kept, live and batch-local labels: all that have a number of their own."""
        return len(self.occurs_once) - 2

    @property
    def is_sampled(self) -> bool:
        """Whether labels take no part."""
        return bool((self.thresholds > ALL).any())

    @property
    def has_rows_at_end(self) -> np.ndarray:
        """[X], whether every label of the set that occurs several times has a row after the last batch."""
        found: np.ndarray = self.keeps_labels | self.held
        return found

    @property
    def bucket_probability(self) -> np.ndarray:
        """For each bucket, the probability that a label of it takes part."""
        found: np.ndarray = np.minimum(1.0, self.bucket_counts / self.thresholds[self.bucket_sets])
        return found

    def arrays(self) -> dict[str, np.ndarray]:
        """Give all arrays under flat names, to store them."""
        found: dict[str, np.ndarray] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):
                found |= {f"{field.name}.{i}": array for i, array in enumerate(value)}
            else:
                found[field.name] = np.asarray(value)
        return found

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> RowAllocation:
        """Restore an allocation from its `arrays`."""
        values: dict[str, Any] = {}
        for field in fields(cls):
            if field.type == "int":
                values[field.name] = int(arrays[field.name].item())
            elif field.type == "np.ndarray":
                values[field.name] = arrays[field.name]
            else:
                n = sum(name.startswith(f"{field.name}.") for name in arrays)
                values[field.name] = [arrays[f"{field.name}.{i}"] for i in range(n)]
        return cls(**values)


def ngram_ids(tokens: np.ndarray, offsets: np.ndarray, max_order: int) -> list[np.ndarray]:
    """Number the n-grams that end at each token exactly and densely, for n = 1 … max_order.

    An n-gram is its (n−1)-gram and its last token, so each order is interned from the one below: ids are exact,
    never hashed, and equal n-grams have equal ids.

    >>> ngram_ids(np.array([7, 8, 7, 8, 9]), np.array([0, 5]), 2)
    [array([0, 1, 0, 1, 2], dtype=int32), array([-1,  0,  1,  0,  2], dtype=int32)]

    Args:
        tokens: [n_tokens], documents one after the other.
        offsets: [n_documents + 1], start of each document.

    Returns:
        An int32 array [n_tokens] per order; −1 where the document has fewer than n tokens up to there.
    """
    unigram, distinct = pd.factorize(tokens)
    ids = [unigram.astype(np.int32)]
    depth = np.arange(len(tokens)) - np.repeat(offsets[:-1], np.diff(offsets))
    for order in range(2, max_order + 1):
        defined = depth >= order - 1
        previous = np.roll(ids[-1], 1)[defined].astype(np.int64)
        interned, _ = pd.factorize(previous * len(distinct) + unigram[defined])
        longer = np.full(len(tokens), -1, dtype=np.int32)
        longer[defined] = interned
        ids.append(longer)
    return ids


def _ngrams(corpus: Corpus, label_sets: Sequence[LabelSet]) -> list[np.ndarray]:
    highest = max((s.order for s in label_sets), default=0)
    return ngram_ids(corpus.tokens, corpus.offsets, highest) if highest else []


def label_ids(
    corpus: Corpus, population: Population, ngrams: Sequence[np.ndarray], label_set: LabelSet, documents: Any
) -> np.ndarray:
    """Find the set's label ids at the counted positions of documents; −1 where there is none."""
    if label_set.direction == "column":
        ids_N: np.ndarray = np.repeat(corpus.columns[label_set.column].ids[documents], population.counts(documents))
        return ids_N
    ahead = label_set.order if label_set.direction == "output" else 0
    ids_N = ngrams[label_set.order - 1][population.tokens(documents) + ahead]
    return ids_N


def allocate_rows(
    corpus: Corpus,
    label_sets: Sequence[LabelSet],
    batches: Sequence[np.ndarray],
    per_label: Sequence[str] = (),
    share_starts: Sequence[int] = (0,),
    label_rows: LabelRows = "all",
    seed: int = 0,
    intervals: bool = False,
    ngrams: list[np.ndarray] | None = None,
) -> RowAllocation:
    """Number the labels of all sets and allocate their rows.

    Args:
        corpus: the tokenised corpus.
        label_sets: the label sets, in the order of their numbers.
        batches: the documents of each batch.
        per_label: names of the sets whose labels are shown one by one.
        share_starts: the first batch of each process's share; batches were dealt to them one by one.
        label_rows: rows at a time at most, in the order of one process, of n-gram sets that are not in `per_label`;
            where their labels need more, a sample takes part. "all" is no limit.
        seed: of the sample.
        intervals: hold the rows of label sets to the end, as far as they fit (`held_sets`).
        ngrams: the ids of the n-grams of all orders, where they are known (`ngram_ids`).

    Raises:
        InputError: a column has no label anywhere.
    """
    ngrams = _ngrams(corpus, label_sets) if ngrams is None else ngrams
    population = Population(corpus, label_sets)

    lifetimes_in = partial(_lifetimes, corpus, population, ngrams, label_sets)
    lifetimes = lifetimes_in(batches)
    for s, lifetime in zip(label_sets, lifetimes, strict=True):
        if not len(lifetime.count):
            raise InputError(f"labels: {s.name} is null in every document that is long enough; leave it out")

    n_sets = len(label_sets)
    kept = [
        s.direction == "column" and len(lifetime.count) <= KEPT_LABELS
        for s, lifetime in zip(label_sets, lifetimes, strict=True)
    ]
    one_by_one = [i for i in range(n_sets) if label_sets[i].name in per_label and not kept[i]]
    moving = [i for i in range(n_sets) if not kept[i]]
    held = choose_held({i: lifetimes[i] for i in moving}, label_rows) if intervals else []
    in_full = {*one_by_one, *held}
    may_be_sampled = [i for i in moving if label_rows != "all" and label_sets[i].order and i not in in_full]
    sample = sample_labels(
        corpus,
        ngrams,
        label_sets,
        _in_one_process(lifetimes_in, batches, share_starts, lifetimes, may_be_sampled),
        label_rows=label_rows,
        seed=seed,
    )
    for i, followed in sample.followed.items():
        lifetimes[i] = replace(lifetimes[i], followed=followed)
    for i in held:
        lifetimes[i] = lifetimes[i].held_to(len(batches))
    kept_sets: list[int] = []
    kept_ids: list[int] = []
    first_kept = []
    for i, lifetime in enumerate(lifetimes):
        first_kept.append(len(kept_sets))
        ids = list(range(len(lifetime.count))) * kept[i] + [-1] * lifetime.has_unlabelled
        kept_ids += ids
        kept_sets += [i] * len(ids)

    live = [np.flatnonzero(lifetimes[i].is_live) for i in moving]
    batch_local = [np.flatnonzero(lifetimes[i].is_batch_local(with_singletons=i in one_by_one)) for i in moving]
    left_out = [np.flatnonzero(lifetimes[i].is_left_out) for i in moving]
    n_kept, n_live_labels, n_batch_local = len(kept_sets), sum(map(len, live)), sum(map(len, batch_local))
    n_bagged = n_kept + n_live_labels + n_batch_local
    numbers = [np.full(len(lifetime.count) + 1, n_bagged, dtype=np.int32) for lifetime in lifetimes]
    for i, lifetime in enumerate(lifetimes):
        if kept[i]:
            numbers[i][:-1] = first_kept[i] + np.arange(len(lifetime.count))
        if lifetime.has_unlabelled:  # ids of −1 find their number at the end
            numbers[i][-1] = first_kept[i] + (len(lifetime.count) if kept[i] else 0)
    first, last = (_gather([getattr(lifetimes[i], name) for i in moving], live) for name in ("first", "last"))
    by_first = np.argsort(first, kind="stable")
    number = np.empty(n_live_labels, dtype=np.int32)
    number[by_first] = n_kept + np.arange(n_live_labels, dtype=np.int32)
    _scatter(numbers, moving, live, number)
    _scatter(numbers, moving, batch_local, n_kept + n_live_labels + np.arange(n_batch_local, dtype=np.int32))
    _scatter(numbers, moving, left_out, np.full(sum(map(len, left_out)), n_bagged + 1, dtype=np.int32))
    first, last = first[by_first], last[by_first]
    share_of_first, share_of_last = (np.searchsorted(share_starts, batch, side="right") for batch in (first, last))
    last = np.where(share_of_first == share_of_last, last, len(batches))
    live_rows, n_live = _assign_rows(first, last, len(batches))
    retired = np.argsort(last, kind="stable")

    def of_each(values: list[np.ndarray]) -> np.ndarray:
        """Values of each live label, in the order of numbers, then of each batch-local one, then of those left out."""
        parts = [_gather(values, live)[by_first], _gather(values, batch_local), _gather(values, left_out)]
        return np.concatenate(parts)

    set_of = of_each([np.full(len(lifetimes[i].count), i) for i in moving])
    count_of = of_each([lifetimes[i].count for i in moving])
    id_of = np.where(np.isin(set_of, one_by_one), of_each([np.arange(len(lifetimes[i].count)) for i in moving]), -1)
    by_itself = id_of >= 0
    key = set_of * (int(count_of.max(initial=0)) + 1) + count_of
    of_one = set_of * (int(id_of.max(initial=0)) + 1) + id_of  # an order that no batching changes
    key[by_itself] = key.max(initial=0) + 1 + of_one[by_itself]
    _, example, bucket_of, n_labels = np.unique(key, return_index=True, return_inverse=True, return_counts=True)
    bucket_of = bucket_of.reshape(-1)[: n_live_labels + n_batch_local]
    return RowAllocation(
        ngrams=ngrams,
        numbers=numbers,
        n_positions=int(population.counts(np.concatenate(batches)).sum()),
        keeps_labels=np.array(kept, dtype=bool),
        kept_sets=np.array(kept_sets, dtype=np.int64),
        kept_ids=np.array(kept_ids, dtype=np.int64),
        singleton_sets=np.array(moving, dtype=np.int64),
        singleton_labels=np.array(
            [(i not in one_by_one) * (lifetimes[i].count == 1).sum() for i in moving], dtype=np.int64
        ),
        occurs_once=np.concatenate([np.zeros(n_kept, dtype=bool), count_of[: len(bucket_of)] == 1, [True, False]]),
        live_rows=live_rows,
        live_starts=np.searchsorted(first, np.arange(len(batches) + 1)),
        n_live=n_live,
        peak_rows=_rows_at_peak(first, last, set_of[:n_live_labels], len(batches), n_sets),
        retired=retired,
        retired_starts=np.searchsorted(last[retired], np.arange(len(batches) + 1)),
        bucket_of=bucket_of,
        bucket_sets=set_of[example],
        bucket_counts=count_of[example],
        bucket_labels=n_labels,
        bucket_ids=id_of[example],
        bucket_followed=np.bincount(bucket_of, minlength=len(n_labels)),
        thresholds=sample.thresholds,
        held=np.isin(np.arange(n_sets), held),
    )


def _lifetimes(
    corpus: Corpus,
    population: Population,
    ngrams: Sequence[np.ndarray],
    label_sets: Sequence[LabelSet],
    batches: Sequence[np.ndarray],
    which: Iterable[int] | None = None,
) -> list[Lifetimes]:
    """Find the lifetimes of the labels of all sets, or of some, by number."""
    documents = np.concatenate(batches)
    batch_of_document = np.repeat(np.arange(len(batches)), [len(b) for b in batches])
    batch_N = np.repeat(batch_of_document, population.counts(documents)).astype(np.int32)
    sets = label_sets if which is None else [label_sets[i] for i in which]
    return [lifetimes_of(label_ids(corpus, population, ngrams, s, documents), batch_N) for s in sets]


def _in_one_process(
    lifetimes_in: Callable[[Sequence[np.ndarray], Sequence[int]], list[Lifetimes]],
    batches: Sequence[np.ndarray],
    share_starts: Sequence[int],
    lifetimes: Sequence[Lifetimes],
    which: Sequence[int],
) -> dict[int, Lifetimes]:
    """Find the lifetimes of the labels of some sets if one process took all batches in their order before sharing."""
    if len(share_starts) == 1:
        return {i: lifetimes[i] for i in which}
    shares = [batches[start:end] for start, end in zip(share_starts, [*share_starts[1:], len(batches)], strict=True)]
    in_order = [batch for dealt in zip_longest(*shares) for batch in dealt if batch is not None]
    return dict(zip(which, lifetimes_in(in_order, which), strict=True))


def _assign_rows(first: np.ndarray, last: np.ndarray, n_batches: int) -> tuple[np.ndarray, int]:
    """Assign rows to labels that live from batch `first` to batch `last`, ordered by `first`; count the rows.

    A label whose last batch is n_batches keeps its row.
    """
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


def _rows_at_peak(first: np.ndarray, last: np.ndarray, set_of: np.ndarray, n_batches: int, n_sets: int) -> np.ndarray:
    """Count the live rows of each set in the batch in which most are in use; the sum is the number of rows."""
    peak = int(np.argmax(rows_in_use(first, last, n_batches)))
    return np.bincount(set_of[(first <= peak) & (last >= peak)], minlength=n_sets)


def _gather(arrays: list[np.ndarray], indices: list[np.ndarray]) -> np.ndarray:
    parts = [array[index] for array, index in zip(arrays, indices, strict=True)]
    return np.concatenate([np.zeros(0, dtype=np.int64), *parts]).astype(np.int64)


def _scatter(targets: list[np.ndarray], owners: list[int], indices: list[np.ndarray], values: np.ndarray) -> None:
    """Write values, in order, to targets[owners[i]][indices[i]]."""
    taken = 0
    for owner, index in zip(owners, indices, strict=True):
        targets[owner][index] = values[taken : taken + len(index)]
        taken += len(index)
