"""The n-gram labels that are followed, of which there are never more than rows allow.

At first every label is. When the rows would no longer do, the threshold τ of the sample of labels (`label_sampling`)
rises by a quarter until they do. A label of count n so far, whose number is u, then stays while u < n/τ. A label that
is absent enters if u < 1/τ: it would have passed whenever it had occurred before, so it has not, and nothing of it is
missing. One that is given up or refused never comes back. A label is followed if u is below all that it has passed: the
least of these is its probability π.

Keys of n-grams are their tokens' bytes. They are exact, so that the labels of two probes can be merged. All that is
held here grows with the rows, not with the text.

Shape suffixes: N positions, n tokens of an n-gram, L labels of a batch, K labels in all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import compress, repeat
from typing import Any

import numpy as np
import torch

from softh_probe.accumulators.label_sampling import ALL, inclusion, uniform_numbers
from softh_probe.attached.shared_rows import RowAssignment, SharedRows
from softh_probe.labels import LabelRows, LabelSet

#: Factor by which the threshold rises.
STEP = 1.25
#: Parts of [0, 1) of which is known whether a followed label's number lies there. Few hold any but those near 0.
N_SLOTS = 2**20

_NONE = np.zeros(0, dtype=np.int64)


class LiveLabels:
    """Number the n-grams of all label sets that are followed, and assign rows to them.

    Args:
        label_sets: the n-gram label sets.
        label_rows: rows at most, or "all".
        seed: of the sample of labels.

    Attributes:
        threshold: τ.
        rows: the rows of the labels.
    """

    def __init__(self, label_sets: Sequence[LabelSet], label_rows: LabelRows, seed: int) -> None:
        self.threshold = ALL
        self.rows = SharedRows()
        self._label_sets, self._label_rows, self._seed = label_sets, label_rows, seed
        self._tables = self._new_tables([()] * len(label_sets))
        # Longer than there are labels; the first `_n_known` have entered with a probability.
        self._counts_K, self._probability_K, self._n_known = _NONE, np.zeros(0), 0
        # Of each set, whether a label is followed whose u is in a slot; known where the threshold has risen.
        self._is_taken = [np.zeros(0, dtype=bool)] * len(label_sets)

    def __len__(self) -> int:
        return sum(map(len, self._tables))

    @property
    def most_rows(self) -> int | None:
        """Rows at most; None for any number."""
        return None if self._label_rows == "all" else self._label_rows

    def of_set(self, x: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Find the rows of a set's labels, whether each may be shared, and their probabilities."""
        numbers = _values(self._tables[x])
        return *self.rows.lookup(numbers), self._probability_K[numbers]

    def find(self, x: int, tokens_Nn: np.ndarray) -> np.ndarray:
        """Find the numbers of n-grams of a set, and let new ones enter; −1 where a label is not followed."""
        table = self._tables[x]
        if self.threshold == ALL:
            return _numbers(table, _keys(tokens_Nn))
        u_N = uniform_numbers(tokens_Nn, self._label_sets[x].name, self._seed)
        slots_N, enters_N = _slots(u_N), u_N < 1.0 / self.threshold
        some = np.flatnonzero(enters_N | self._is_taken[x][slots_N])  # most positions' labels are found nowhere
        keys = _keys(tokens_Nn[some])
        found = np.fromiter(map(table.get, keys, repeat(-1)), dtype=np.int64, count=len(keys))
        is_new = (found < 0) & enters_N[some]
        found[is_new] = _numbers(table, list(compress(keys, is_new.tolist())))
        self._is_taken[x][slots_N[some[is_new]]] = True
        numbers_N = np.full(len(u_N), -1)
        numbers_N[some] = found
        return numbers_N

    def assign(
        self, labels_L: np.ndarray, sizes_L: np.ndarray, is_once_L: np.ndarray, positions_L: np.ndarray
    ) -> RowAssignment:
        """Count the labels of a batch and find their rows; give up labels, of the batch or not, where these do not do.

        Args:
            labels_L, is_once_L, positions_L: as `SharedRows.assign` takes them.
            sizes_L: positions of each label.
        """
        self._extend(1.0 / self.threshold)
        self._counts_K[labels_L] += sizes_L
        return self._assign(self._fitting(labels_L, is_once_L, positions_L), labels_L, is_once_L, positions_L)

    # --- parts of the data ------------------------------------------------------------------------------------

    def merge(self, other: LiveLabels) -> tuple[np.ndarray, RowAssignment]:
        """Take over the labels of another part of the data.

        The larger threshold holds. A label that one part lacks stays if its number would have let it in there, for then
        it did not occur; else it may have been given up or refused, and is given up. A frequent label that was certain
        where it is known stays nevertheless: lost, it would be missing from all that follows. A part that gave it up
        had seen it fewer times than its threshold by then; what it has seen since is missing from the label's sums.

        Returns:
            The rows of the other part's labels there, and here.
        """
        n_ours = len(self)
        pairs = list(zip(self._tables, other._tables, strict=True))
        labels_L = np.concatenate([_NONE, *(_numbers(ours, list(theirs)) for ours, theirs in pairs)])
        theirs_L = np.concatenate([_NONE, *(_values(theirs) for _, theirs in pairs)])
        rows_L, is_shared_L = other.rows.lookup(theirs_L)
        self._extend(1.0)
        self._counts_K[labels_L] += other._counts_K[theirs_L]
        stays_K = None
        if (self.threshold, other.threshold) != (ALL, ALL):
            stays_K = self._common(n_ours, labels_L, other._probability_K[theirs_L], other.threshold)
        stays_K = self._fitting(labels_L, is_shared_L, rows_L, stays_K)
        return rows_L, self._assign(stays_K, labels_L, is_shared_L, rows_L)

    def state_dict(self) -> dict[str, Any]:
        """Copy the labels of each set in the order of their numbers, and what is known of each."""
        numbers = [_values(table) for table in self._tables]
        found = [self.rows.lookup(part) for part in numbers]
        return {
            "ngrams": [torch.from_numpy(tokens) for tokens in self._tokens()],
            "rows": [torch.from_numpy(rows) for rows, _ in found],
            "shared": [torch.from_numpy(is_shared) for _, is_shared in found],
            "numbers": [torch.from_numpy(part) for part in numbers],
            "counts": [torch.from_numpy(self._counts_K[part]) for part in numbers],
            "probability": [torch.from_numpy(self._probability_K[part]) for part in numbers],
            "threshold": self.threshold,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> np.ndarray | None:
        """Replace all labels by those of a state, as far as their rows are allowed here.

        Returns:
            The rows of the state that stay, in their order here; None where all do.
        """
        self.threshold, self.rows = state["threshold"], SharedRows()
        numbers, rows, is_shared, counts, probability = (
            np.concatenate([_NONE, *(part.numpy() for part in state[name])])
            for name in ("numbers", "rows", "shared", "counts", "probability")
        )
        by_number = np.argsort(numbers)
        self.rows.load(rows[by_number].astype(np.int64), is_shared[by_number].astype(bool))
        self._tables = self._new_tables(
            zip(_keys(tokens.numpy()), part.tolist(), strict=True)
            for tokens, part in zip(state["ngrams"], state["numbers"], strict=True)
        )
        self._counts_K, self._probability_K = counts[by_number], probability[by_number].astype(np.float64)
        self._n_known = len(numbers)
        stays_K = self._fitting(_NONE, _NONE.astype(bool), _NONE)
        if stays_K is None:
            self._mark_slots()
            return None
        self._keep(stays_K)
        return self.rows.close_gaps()

    # --- parts ------------------------------------------------------------------------------------------------

    def _common(
        self, n_ours: int, labels_L: np.ndarray, probability_L: np.ndarray, their_threshold: float
    ) -> np.ndarray:
        """Take the larger threshold and the least probabilities of two parts; return which labels stay.

        Args:
            n_ours: labels of this part; they come first.
            labels_L, probability_L: labels of the other part, and their probabilities there.
            their_threshold: that of the other part.
        """
        is_ours_K = np.arange(len(self)) < n_ours
        is_theirs_K = np.zeros(len(self), dtype=bool)
        is_theirs_K[labels_L] = True
        known_K = self._probability_K[: len(self)]  # ones where a label is new here
        known_K[labels_L] = np.minimum(known_K[labels_L], probability_L)
        passed_K = np.where(is_ours_K, known_K, np.minimum(known_K, 1.0 / self.threshold))
        passed_K = np.where(is_theirs_K, passed_K, np.minimum(passed_K, 1.0 / their_threshold))
        self.threshold = max(self.threshold, their_threshold)
        is_whole_K = self._uniform_numbers() < passed_K
        is_frequent_K = (known_K == 1.0) & (self._counts_K[: len(self)] >= self.threshold)
        known_K[is_whole_K] = passed_K[is_whole_K]
        stays_K: np.ndarray = is_whole_K | is_frequent_K
        return stays_K

    def _fitting(
        self,
        labels_L: np.ndarray,
        is_once_L: np.ndarray,
        positions_L: np.ndarray,
        stays_K: np.ndarray | None = None,
    ) -> np.ndarray | None:
        """Raise the threshold until the rows do for a batch; return which labels stay, or None where all do."""
        most = self.most_rows
        if most is None or self.rows.most_rows(labels_L) <= most:
            return stays_K
        use = self.rows.use_after(len(self), labels_L, is_once_L, positions_L)
        following_K = np.ones(len(self), dtype=bool) if stays_K is None else stays_K
        if use.n_rows(following_K) <= most:
            return stays_K
        counts_K, u_K = self._counts_K[: len(self)], self._uniform_numbers()
        while use.n_rows(following_K) > most:
            self.threshold *= STEP
            following_K = following_K & (u_K < counts_K / self.threshold)
        passed_K = inclusion(counts_K, self.threshold)
        self._probability_K[: len(self)] = np.minimum(self._probability_K[: len(self)], passed_K)
        return following_K

    def _assign(
        self, stays_K: np.ndarray | None, labels_L: np.ndarray, is_once_L: np.ndarray, positions_L: np.ndarray
    ) -> RowAssignment:
        """Give up labels, then assign rows to the others of a batch."""
        if stays_K is None:
            return self.rows.assign(labels_L, is_once_L, positions_L)
        stays_L, number_K = stays_K[labels_L], np.cumsum(stays_K) - 1
        freed = self._keep(stays_K)
        placed = self.rows.assign(number_K[labels_L[stays_L]], is_once_L[stays_L], positions_L[stays_L])
        rows_L = np.full(len(labels_L), -1)
        rows_L[stays_L] = placed.rows_L
        return replace(placed, rows_L=rows_L, freed=freed)

    def _keep(self, stays_K: np.ndarray) -> np.ndarray:
        """Give up all other labels and number the rest anew; return the rows that are free now."""
        freed = self.rows.keep(stays_K)
        number_K = np.cumsum(stays_K) - 1
        kept = []
        for table in self._tables:
            numbers = _values(table)
            stays = stays_K[numbers]
            kept.append(zip(compress(table, stays.tolist()), number_K[numbers[stays]].tolist(), strict=True))
        self._tables = self._new_tables(kept)
        n_before, self._n_known = len(stays_K), len(self)
        self._counts_K = self._counts_K[:n_before][stays_K]
        self._probability_K = self._probability_K[:n_before][stays_K]
        self._mark_slots()
        return freed

    def _mark_slots(self) -> None:
        """Mark the slots of the numbers u of all labels, where not all labels are followed."""
        if self.threshold == ALL:
            return
        u_K = self._uniform_numbers()
        for x, table in enumerate(self._tables):
            self._is_taken[x] = np.zeros(N_SLOTS, dtype=bool)
            self._is_taken[x][_slots(u_K[_values(table)])] = True

    def _extend(self, probability: float) -> None:
        """Extend what is known of each label to new ones, which entered with a probability."""
        n = len(self)
        if n > len(self._counts_K):
            n_more = max(n, 2 * len(self._counts_K)) - len(self._counts_K)
            self._counts_K = np.concatenate([self._counts_K, np.zeros(n_more, dtype=np.int64)])
            self._probability_K = np.concatenate([self._probability_K, np.zeros(n_more)])
        self._probability_K[self._n_known : n] = probability
        self._n_known = n

    def _new_tables(self, tables: Iterable[Iterable[tuple[bytes, int]]]) -> list[dict[bytes, int]]:
        """Make a dictionary for each set that numbers new n-grams."""
        return [defaultdict(self.rows.next_label.__next__, items) for items in tables]

    def _tokens(self) -> Iterator[np.ndarray]:
        """Yield the tokens of each set's labels [L, n]."""
        for label_set, table in zip(self._label_sets, self._tables, strict=True):
            yield np.frombuffer(b"".join(table), dtype=np.int32).reshape(-1, label_set.order).copy()

    def _uniform_numbers(self) -> np.ndarray:
        """Compute u of all labels."""
        u_K = np.empty(len(self))
        for label_set, table, tokens in zip(self._label_sets, self._tables, self._tokens(), strict=True):
            u_K[_values(table)] = uniform_numbers(tokens, label_set.name, self._seed)
        return u_K


def _slots(u_N: np.ndarray) -> np.ndarray:
    slots_N: np.ndarray = (u_N * N_SLOTS).astype(np.int64)
    return slots_N


def _values(table: Mapping[Any, int]) -> np.ndarray:
    return np.fromiter(table.values(), dtype=np.int64, count=len(table))


def _numbers(table: Mapping[bytes, int], ngrams: Sequence[bytes]) -> np.ndarray:
    """Find the number of each n-gram; new ones take the next numbers."""
    return np.fromiter(map(table.__getitem__, ngrams), dtype=np.int64, count=len(ngrams))


def _keys(tokens_Ln: np.ndarray) -> list[bytes]:
    """Key n-grams by opaque values of 4·n bytes."""
    if not len(tokens_Ln):
        return []
    return np.ascontiguousarray(tokens_Ln, dtype=np.int32).view(f"V{4 * tokens_Ln.shape[1]}").reshape(-1).tolist()
