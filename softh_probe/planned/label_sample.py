"""The sample of n-gram labels that take part in a planned run, where the rows of all do not fit.

Which labels take part depends on the corpus, its batches in the order of one process, the number of rows and the seed:
neither on the model nor on the number of processes.

Shape suffixes: L labels of a set, n tokens of an n-gram, X label sets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from softh_probe.accumulators.label_sampling import ALL, inclusion, uniform_numbers
from softh_probe.labels import LabelRows, LabelSet
from softh_probe.planned.lifetimes import Lifetimes, rows_in_use
from softh_probe.planned.thresholds import CountHistogram, LiveLabels, choose_thresholds

if TYPE_CHECKING:
    from softh_probe.data.corpus import Corpus


class LabelSample(NamedTuple):
    """The labels that take part.

    Attributes:
        thresholds: [X], the threshold of each set; 1 where all its labels take part.
        followed: for each set with a higher threshold, whether each label takes part, bool [L].
    """

    thresholds: np.ndarray
    followed: dict[int, np.ndarray]


def sample_labels(
    corpus: Corpus,
    ngrams: Sequence[np.ndarray],
    label_sets: Sequence[LabelSet],
    lifetimes: Mapping[int, Lifetimes],
    *,
    label_rows: LabelRows,
    seed: int,
) -> LabelSample:
    """Decide which labels take part. Labels that occur once always do: they need no row.

    Args:
        corpus: the tokenised corpus.
        ngrams: for each order, the dense id of the n-gram that ends at each token.
        label_sets: all label sets.
        lifetimes: the labels of each set that may be sampled, by the set's number, in the order of one process.
        label_rows: rows at a time at most, over these sets; "all" is no limit.
        seed: of the sample.
    """
    thresholds: np.ndarray = np.full(len(label_sets), ALL)
    if label_rows == "all" or most_rows(lifetimes.values()) <= label_rows:
        return LabelSample(thresholds, {})
    uniform = {
        x: _uniform_numbers(corpus, ngrams[label_sets[x].order - 1], label_sets[x], lives, seed)
        for x, lives in lifetimes.items()
    }
    sets = [_live_labels(lives, uniform[x]) for x, lives in lifetimes.items()]
    n_batches = 1 + max(int(s.last_L.max(initial=0)) for s in sets)
    chosen = choose_thresholds(sets, label_rows, n_batches)
    followed = {
        x: uniform[x] < inclusion(lives.count, threshold)
        for (x, lives), threshold in zip(lifetimes.items(), chosen, strict=True)
    }
    followed = {x: found for x, found in followed.items() if not found.all()}
    for x, threshold in zip(lifetimes, chosen, strict=True):
        thresholds[x] = threshold if x in followed else ALL
    return LabelSample(thresholds, followed)


def most_rows(lifetimes: Iterable[Lifetimes]) -> int:
    """Count the labels that are alive at a time at most, over several sets."""
    live = [(lives.first[found], lives.last[found]) for lives in lifetimes if (found := lives.is_live).any()]
    if not live:
        return 0
    first, last = (np.concatenate(parts) for parts in zip(*live, strict=True))
    return int(rows_in_use(first, last, 1 + int(last.max())).max())


def _uniform_numbers(corpus: Corpus, ids: np.ndarray, label_set: LabelSet, lives: Lifetimes, seed: int) -> np.ndarray:
    """Compute the uniform number of each label that occurs several times [L]; of the others it is 0."""
    end_L = np.zeros(len(lives.count), dtype=np.int64)  # a token at which the n-gram ends
    ends = np.flatnonzero((ids >= 0) & (ids < len(end_L)))
    end_L[ids[ends]] = ends
    several = np.flatnonzero(lives.count > 1)
    tokens_Ln = corpus.tokens[end_L[several, None] + np.arange(1 - label_set.order, 1)]
    u_L = np.zeros(len(end_L))
    u_L[several] = uniform_numbers(tokens_Ln, label_set.name, seed)
    return u_L


def _live_labels(lives: Lifetimes, u_L: np.ndarray) -> LiveLabels:
    live = np.flatnonzero(lives.is_live)
    labels_C = np.bincount(lives.count)
    counts_C = np.flatnonzero(labels_C)
    return LiveLabels(
        counts_L=lives.count[live],
        first_L=lives.first[live],
        last_L=lives.last[live],
        u_L=u_L[live],
        histogram=CountHistogram(counts_C, labels_C[counts_C], n_positions=int(lives.count.sum())),
    )
