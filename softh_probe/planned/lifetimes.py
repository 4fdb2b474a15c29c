"""Lifetimes of labels: how often each occurs, in which batch first and in which last.

Shape suffixes: N positions, L labels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Lifetimes:
    """Count, first batch and last batch of each label of one set.

    Attributes:
        count, first, last: [L], by label id.
        has_unlabelled: whether positions have no label.
        followed: bool [L], labels that take part, where labels are sampled; None where all do.
    """

    count: np.ndarray
    first: np.ndarray
    last: np.ndarray
    has_unlabelled: bool
    followed: np.ndarray | None = None

    @property
    def is_live(self) -> np.ndarray:
        """Labels that take part and occur in several batches [L]."""
        return self._take_part((self.count > 1) & (self.first < self.last))

    def is_batch_local(self, *, with_singletons: bool) -> np.ndarray:
        """Find the labels that occur in a single batch and need a number [L]; singletons only where asked for."""
        return self._take_part((self.count > (0 if with_singletons else 1)) & (self.first == self.last))

    @property
    def is_left_out(self) -> np.ndarray:
        """Labels that occur several times and take no part [L]."""
        found: np.ndarray = np.zeros(len(self.count), dtype=bool) if self.followed is None else ~self.followed
        return found & (self.count > 1)

    def held_to(self, end: int) -> Lifetimes:
        """Let the labels that occur several times live to `end`, the number after that of the last batch."""
        return replace(self, last=np.where(self.count > 1, end, self.last).astype(self.last.dtype))

    def _take_part(self, found: np.ndarray) -> np.ndarray:
        return found if self.followed is None else found & self.followed


def lifetimes_of(ids_N: np.ndarray, batch_N: np.ndarray) -> Lifetimes:
    """Find the lifetimes of labels.

    >>> found = lifetimes_of(np.array([0, 1, 0, -1]), np.array([0, 0, 1, 1]))
    >>> found.count.tolist(), found.first.tolist(), found.last.tolist(), found.has_unlabelled
    ([2, 1], [0, 0], [1, 0], True)

    Args:
        ids_N: id of the label at each position; −1 where there is none.
        batch_N: batch of each position, ascending.
    """
    labelled = ids_N >= 0
    has_unlabelled = not labelled.all()
    if has_unlabelled:
        ids_N, batch_N = ids_N[labelled], batch_N[labelled]
    count = np.bincount(ids_N)
    first, last = np.zeros(len(count), dtype=np.int32), np.zeros(len(count), dtype=np.int32)
    last[ids_N] = batch_N  # of repeated ids the last assignment stays
    first[ids_N[::-1]] = batch_N[::-1]
    return Lifetimes(count=count, first=first, last=last, has_unlabelled=has_unlabelled)


def rows_in_use(first: np.ndarray, last: np.ndarray, n_batches: int) -> np.ndarray:
    """Count the rows in use in each batch [n_batches], of labels that live from batch `first` to batch `last`.

    >>> rows_in_use(np.array([0, 0, 1]), np.array([1, 2, 2]), n_batches=3).tolist()
    [2, 3, 2]
    """
    started = np.cumsum(np.bincount(first, minlength=n_batches))
    ended = np.bincount(last, minlength=n_batches)[:n_batches]
    rows: np.ndarray = started - (np.cumsum(ended) - ended)
    return rows
