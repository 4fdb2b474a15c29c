"""Rows that labels share until they occur a second time.

Most n-grams occur once: the sums of such a label are its position's own assignment. So each position has one row,
which its labels share as long as they occur nowhere else. A label that occurs again takes a row of its own.

Shape suffixes: L labels, P positions whose row is shared.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

import numpy as np

_NONE = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class RowAssignment:
    """Rows of the labels of a batch.

    Attributes:
        rows_L: the row of each label; −1 where it shares that of its position.
        positions_P, rows_P: positions that get a row, and their rows.
        left, taken: rows that labels shared until now, and rows of their own that they take instead. The former are
            added to the latter before the batch is.
    """

    rows_L: np.ndarray
    positions_P: np.ndarray
    rows_P: np.ndarray
    left: np.ndarray
    taken: np.ndarray


class SharedRows:
    """Assign rows to the labels of several sets; labels are numbered in the order of their first occurrence.

    Attributes:
        next_label: gives the next label its number.
        n_rows: rows that are taken.
    """

    def __init__(self) -> None:
        self.next_label = count()
        self.n_rows = 0
        self._row_of = _NONE  # by label; −1 before it has a row
        self._n_sharing = _NONE  # by row: labels that share it; 0 where it belongs to one label

    def assign(self, labels_L: np.ndarray, is_once_L: np.ndarray, positions_L: np.ndarray) -> RowAssignment:
        """Find the rows of the labels of a batch, and take new ones.

        Args:
            labels_L: distinct labels.
            is_once_L: whether each occurs once in the batch.
            positions_L: the position of each label that occurs once.
        """
        self._row_of = _grown(self._row_of, int(labels_L.max(initial=-1)) + 1, -1)
        rows_L = self._row_of[labels_L]
        is_new_L = rows_L < 0
        is_shared_L = ~is_new_L
        is_shared_L[is_shared_L] = self._n_sharing[rows_L[is_shared_L]] > 0
        left, taken = self._leave(labels_L[is_shared_L])
        own = labels_L[is_new_L & ~is_once_L]
        self._row_of[own] = self._take(np.zeros(len(own), dtype=np.int64))
        sharing_L = is_new_L & is_once_L
        positions_P, which, n_sharing_P = np.unique(positions_L[sharing_L], return_inverse=True, return_counts=True)
        rows_P = self._take(n_sharing_P)
        self._row_of[labels_L[sharing_L]] = rows_P[which.reshape(-1)]
        rows_L = np.where(sharing_L, -1, self._row_of[labels_L])
        return RowAssignment(rows_L=rows_L, positions_P=positions_P, rows_P=rows_P, left=left, taken=taken)

    def lookup(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Find the row of each label, and whether it may share the row, having occurred once."""
        rows = self._row_of[labels]
        return rows, self._n_sharing[rows] > 0

    def load(self, rows: np.ndarray, is_shared: np.ndarray) -> None:
        """Restore the rows that `lookup` gave for labels 0, 1, 2 and so on."""
        self.next_label, self._row_of = count(len(rows)), rows.astype(np.int64)
        self.n_rows = int(rows.max(initial=-1)) + 1
        self._n_sharing = np.bincount(rows[is_shared], minlength=self.n_rows).astype(np.int64)

    def _leave(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Give labels rows of their own instead of shared ones; the last label of a row keeps it."""
        order = np.argsort(self._row_of[labels], kind="stable")
        labels, rows = labels[order], self._row_of[labels[order]]
        _, last, n_leaving = np.unique(rows[::-1], return_index=True, return_counts=True)
        last = len(rows) - 1 - last
        emptied = last[self._n_sharing[rows[last]] == n_leaving]
        self._n_sharing[rows[last]] -= n_leaving
        leaves = np.ones(len(rows), dtype=bool)
        leaves[emptied] = False
        taken = self._take(np.zeros(leaves.sum(), dtype=np.int64))
        self._row_of[labels[leaves]] = taken
        return rows[leaves], taken

    def _take(self, n_sharing: np.ndarray) -> np.ndarray:
        """Take new rows, each shared by a number of labels; 0 for a row of one label."""
        rows = np.arange(self.n_rows, self.n_rows + len(n_sharing))
        self.n_rows += len(rows)
        self._n_sharing = _grown(self._n_sharing, self.n_rows, 0)
        self._n_sharing[rows] = n_sharing
        return rows


def _grown(values: np.ndarray, n: int, fill: int) -> np.ndarray:
    """Return the array itself, or, where it is too short, a copy of at least twice its length."""
    if n <= len(values):
        return values
    return np.concatenate([values, np.full(max(n, 2 * len(values)) - len(values), fill, dtype=np.int64)])
