"""The positions of a corpus that count: every n-gram label is defined there, and the policies of positions hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from softh_probe.labels import LabelSet, context

if TYPE_CHECKING:
    from softh_probe.data.corpus import Corpus

#: The error where policies and labels leave nothing.
NO_POSITION = (
    "positions: no document has a position at which every n-gram is defined and the policies hold; ask for other "
    "positions, or for lower n-gram orders"
)


class Population:
    """Find the positions of documents that count, the same for all label sets.

    Args:
        corpus: the tokenised documents.
        label_sets: the label sets, whose n-grams have to be defined.
    """

    def __init__(self, corpus: Corpus, label_sets: Sequence[LabelSet]) -> None:
        self._corpus = corpus
        self._before, self._after = context(label_sets)
        self._tokens: np.ndarray | None = None
        if corpus.counted is not None:
            depth = np.arange(corpus.n_tokens) - np.repeat(corpus.offsets[:-1], corpus.lengths)
            left = np.repeat(corpus.lengths, corpus.lengths) - 1 - depth
            counts = corpus.counted & (depth >= self._before) & (left >= self._after)
            self._tokens = np.flatnonzero(counts)
            self._starts = np.concatenate([[0], np.cumsum(counts)])[corpus.offsets]

    @property
    def n_defined(self) -> int:
        """Number of positions at which every n-gram is defined, whether policies hold there or not."""
        return int(self._defined(slice(None)).sum())

    def counts(self, documents: Any = slice(None)) -> np.ndarray:
        """Count the positions of each document that count: int64 [n]."""
        if self._tokens is not None:
            kept: np.ndarray = np.diff(self._starts)[documents]
            return kept
        return self._defined(documents)

    def tokens(self, documents: np.ndarray) -> np.ndarray:
        """Give the index in the corpus of each position that counts, document by document: int64 [N]."""
        counts = self.counts(documents)
        if self._tokens is None:
            first: np.ndarray = self._corpus.offsets[documents] + self._before
            return ranges(first, counts)
        found: np.ndarray = self._tokens[ranges(self._starts[documents], counts)]
        return found

    def places(self, documents: np.ndarray) -> np.ndarray:
        """Give the number in its document of each position that counts, from 0: int64 [N]."""
        found: np.ndarray = self.tokens(documents) - np.repeat(self._corpus.offsets[documents], self.counts(documents))
        return found

    def padded(self, documents: np.ndarray) -> np.ndarray:
        """Give the place of each position that counts in a batch of documents padded on the right: int64 [N]."""
        longest = int(self._corpus.lengths[documents].max())
        row = np.arange(len(documents)) * longest
        found: np.ndarray = self.places(documents) + np.repeat(row, self.counts(documents))
        return found

    def _defined(self, documents: Any) -> np.ndarray:
        """Count the positions of each document at which every n-gram is defined."""
        found: np.ndarray = np.maximum(self._corpus.lengths[documents] - self._before - self._after, 0)
        return found


def ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Concatenate the integers starts[i] … starts[i] + counts[i] − 1 of each i.

    >>> ranges(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    ends = np.cumsum(counts)
    numbers: np.ndarray = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - counts), counts)
    return numbers
