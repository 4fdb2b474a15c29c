"""Rows that labels share until they occur a second time.

Most n-grams occur once: the sums of such a label are its position's own assignment. So each position has one row,
which its labels share as long as they occur nowhere else. A label that occurs again takes a row of its own. Rows whose
labels are given up are taken again.

Shape suffixes: L labels of a batch, P positions whose row is shared, K labels in all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

import numpy as np

_NONE = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class RowAssignment:
    """Rows of the labels of a batch.

    Attributes:
        rows_L: the row of each label; −1 where it shares that of its position, or is given up.
        positions_P, rows_P: positions that get a row, and their rows.
        left, taken: rows that labels shared until now, and rows of their own that they take instead. The former are
            added to the latter before the batch is.
        freed: rows whose labels are given up, to be emptied before all else; some may be taken again at once.
    """

    rows_L: np.ndarray
    positions_P: np.ndarray
    rows_P: np.ndarray
    left: np.ndarray
    taken: np.ndarray
    freed: np.ndarray = field(default_factory=lambda: _NONE)


@dataclass(frozen=True, kw_only=True)
class RowUse:
    """Which rows all labels would use after a batch.

    Attributes:
        is_own_K: whether each label would have a row of its own.
        group_K: of each other label, a number that those which share its row have in common.
        n_groups: how many of these numbers there may be.
    """

    is_own_K: np.ndarray
    group_K: np.ndarray
    n_groups: int

    def n_rows(self, stays_K: np.ndarray) -> int:
        """Count the rows of the labels that stay."""
        shares_row = np.zeros(self.n_groups, dtype=bool)
        shares_row[self.group_K[stays_K & ~self.is_own_K]] = True
        return int((stays_K & self.is_own_K).sum()) + int(shares_row.sum())


class SharedRows:
    """Assign rows to the labels of several sets; labels are numbered in the order of their first occurrence.

    Attributes:
        next_label: gives the next label its number.
        n_rows: rows there are; all but those that were given up are in use.
    """

    def __init__(self) -> None:
        self.next_label = count()
        self.n_rows = 0
        self._row_of = _NONE  # by label; −1 before it has a row
        self._n_sharing = _NONE  # by row: labels that share it; 0 where it belongs to one label
        self._free = _NONE  # rows that were given up, ascending

    @property
    def n_used(self) -> int:
        """Rows that are in use."""
        return self.n_rows - len(self._free)

    def assign(self, labels_L: np.ndarray, is_once_L: np.ndarray, positions_L: np.ndarray) -> RowAssignment:
        """Find the rows of the labels of a batch, and take new ones.

        Args:
            labels_L: distinct labels.
            is_once_L: whether each occurs once in the batch.
            positions_L: the position of each label that occurs once.
        """
        rows_L = self._rows_of(labels_L)
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
        self._free = np.setdiff1d(np.arange(self.n_rows), rows)

    # --- giving up labels -------------------------------------------------------------------------------------

    def most_rows(self, labels_L: np.ndarray) -> int:
        """Bound the rows in use after a batch of these labels from above: each takes one that has none of its own."""
        rows_L = self._rows_of(labels_L)
        n_own = (self._n_sharing[rows_L[rows_L >= 0]] == 0).sum()
        return self.n_used + len(labels_L) - int(n_own)

    def use_after(self, n_labels: int, labels_L: np.ndarray, is_once_L: np.ndarray, positions_L: np.ndarray) -> RowUse:
        """Find which rows labels 0 … n_labels − 1 would use after a batch; arguments as in `assign`."""
        rows_K = self._rows_of(np.arange(n_labels))
        is_shared_K = rows_K >= 0
        is_shared_K[is_shared_K] = self._n_sharing[rows_K[is_shared_K]] > 0
        group_K = np.where(is_shared_K, rows_K, 0)
        is_own_K = ~is_shared_K
        alone_L = is_once_L & (rows_K[labels_L] < 0)
        is_own_K[labels_L] = ~alone_L
        positions_P, which = np.unique(positions_L[alone_L], return_inverse=True)
        group_K[labels_L[alone_L]] = self.n_rows + which.reshape(-1)
        return RowUse(is_own_K=is_own_K, group_K=group_K, n_groups=self.n_rows + len(positions_P))

    def keep(self, stays_K: np.ndarray) -> np.ndarray:
        """Give up all other labels, and number those that stay anew, in the same order.

        Returns:
            The rows that are free now, ascending.
        """
        rows_K = self._rows_of(np.arange(len(stays_K)))
        gone = rows_K[~stays_K & (rows_K >= 0)]
        shared = gone[self._n_sharing[gone] > 0]
        own = gone[self._n_sharing[gone] == 0]
        self._n_sharing[: self.n_rows] -= np.bincount(shared, minlength=self.n_rows)
        shared = np.unique(shared)
        freed = np.sort(np.concatenate([own, shared[self._n_sharing[shared] == 0]]))
        self._free = np.union1d(self._free, freed)
        self._row_of = rows_K[stays_K]
        self.next_label = count(len(self._row_of))
        return freed

    def close_gaps(self) -> np.ndarray:
        """Number rows anew so that none is free; return the row that each was before."""
        before = np.setdiff1d(np.arange(self.n_rows), self._free)
        self._row_of = np.where(self._row_of < 0, -1, np.searchsorted(before, self._row_of))
        self._n_sharing, self._free, self.n_rows = self._n_sharing[before], _NONE, len(before)
        return before

    # --- parts ------------------------------------------------------------------------------------------------

    def _rows_of(self, labels: np.ndarray) -> np.ndarray:
        """Find the row of each label; −1 before it has one."""
        self._row_of = _grown(self._row_of, int(labels.max(initial=-1)) + 1, -1)
        found: np.ndarray = self._row_of[labels]
        return found

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
        """Take rows, free ones first, each shared by a number of labels; 0 for a row of one label."""
        free, self._free = np.split(self._free, [len(n_sharing)])
        n_new = len(n_sharing) - len(free)
        rows = np.concatenate([free, np.arange(self.n_rows, self.n_rows + n_new)])
        self.n_rows += n_new
        self._n_sharing = _grown(self._n_sharing, self.n_rows, 0)
        self._n_sharing[rows] = n_sharing
        return rows


def _grown(values: np.ndarray, n: int, fill: int) -> np.ndarray:
    """Return the array itself, or, where it is too short, a copy of at least twice its length."""
    if n <= len(values):
        return values
    return np.concatenate([values, np.full(max(n, 2 * len(values)) - len(values), fill, dtype=np.int64)])
