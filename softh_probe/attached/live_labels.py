"""The n-gram labels that are followed, of which there are never more than rows allow.

At first every label is. When the rows would no longer do, the threshold τ of the sample of labels (`label_sampling`)
rises by a quarter until they do. A label of count n so far, whose number is u, then stays while u < n/τ. A label that
is absent enters if u < 1/τ: it would have passed whenever it had occurred before, so it has not, and nothing of it is
missing. Others come back only once they are frequent (`inclusion`). A label is followed if u is below all that it has
passed: the least of these is its probability π.

Keys of n-grams are their tokens' bytes. They are exact, so that the labels of two probes can be merged. All that is
held here grows with the rows, not with the text.

Shape suffixes: N positions, n tokens of an n-gram, L labels of a batch, K labels in all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import compress, repeat
from typing import Any, NamedTuple

import numpy as np
import torch

from softh_probe.accumulators.label_sampling import ALL, uniform_numbers
from softh_probe.attached.frequency_sketch import FrequencySketch
from softh_probe.attached.inclusion import PENDING, Inclusion, Part, frequent
from softh_probe.attached.shared_rows import RowAssignment, SharedRows
from softh_probe.labels import LabelRows, LabelSet

#: Factor by which the threshold rises.
STEP = 1.25
#: Parts of [0, 1) of which is known whether a followed label's number lies there. Few hold any but those near 0.
N_SLOTS = 2**20

#: What is known of each label, and its keys in a state.
_KEYS = {"count": "counts", "missing": "missing", "crossing": "crossing", "probability": "probability"}
_NONE = np.zeros(0, dtype=np.int64)


class RowsOfSet(NamedTuple):
    """Rows of the labels of one set [L].

    Attributes:
        rows: the row of each.
        is_shared: whether it may be shared.
        probability: the probability that the label is followed.
        scale: its positions over those in its sums.
    """

    rows: np.ndarray
    is_shared: np.ndarray
    probability: np.ndarray
    scale: np.ndarray


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
        self._inclusion = Inclusion()
        self._sketch: FrequencySketch | None = None  # of labels that are not followed, once there are any
        # Of each set, whether a label is followed whose u is in a slot; known where the threshold has risen.
        self._is_taken = [np.zeros(0, dtype=bool)] * len(label_sets)

    def __len__(self) -> int:
        return sum(map(len, self._tables))

    @property
    def most_rows(self) -> int | None:
        """Rows at most; None for any number."""
        return None if self._label_rows == "all" else self._label_rows

    def of_set(self, x: int) -> RowsOfSet:
        """Find the rows of a set's labels that are not pending."""
        numbers = _values(self._tables[x])
        numbers = numbers[self._inclusion["probability"][numbers] > PENDING]
        count, missing, probability = (self._inclusion[name][numbers] for name in ("count", "missing", "probability"))
        return RowsOfSet(*self.rows.lookup(numbers), probability, count / (count - missing))

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
        self._extend(1.0 / self.threshold)
        self._enter_late(x, tokens_Nn, u_N, numbers_N)
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
        self._inclusion.count(labels_L, sizes_L, self.threshold)
        return self._assign(self._fitting(labels_L, is_once_L, positions_L), labels_L, is_once_L, positions_L)

    # --- parts of the data ------------------------------------------------------------------------------------

    def merge(self, other: LiveLabels) -> tuple[np.ndarray, RowAssignment]:
        """Take over the labels of another part of the data.

        The larger threshold holds. Of a label that one part lacks, that part has seen nothing if the label's number
        would have let it in, and else what its sketch tells.

        Returns:
            The rows of the other part's labels there, and here.
        """
        n_ours = len(self)
        pairs = list(zip(self._tables, other._tables, strict=True))
        labels_L = np.concatenate([_NONE, *(_numbers(ours, list(theirs)) for ours, theirs in pairs)])
        theirs_L = np.concatenate([_NONE, *(_values(theirs) for _, theirs in pairs)])
        rows_L, is_shared_L = other.rows.lookup(theirs_L)
        self._extend(1.0)
        stays_K = None
        if (self.threshold, other.threshold) == (ALL, ALL):
            self._inclusion.count(labels_L, other._inclusion["count"][theirs_L], ALL)
        else:
            stays_K = self._common(n_ours, other, labels_L, theirs_L)
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
            **{key: [torch.from_numpy(self._inclusion[name][part]) for part in numbers] for name, key in _KEYS.items()},
            "threshold": self.threshold,
            "sketch": torch.from_numpy(
                np.zeros((0, 0), np.int32) if self._sketch is None else self._sketch.cells.copy()
            ),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> np.ndarray | None:
        """Replace all labels by those of a state, as far as their rows are allowed here.

        Returns:
            The rows of the state that stay, in their order here; None where all do.
        """
        self.threshold, self.rows = state["threshold"], SharedRows()
        numbers, rows, is_shared, *known = (
            np.concatenate([_NONE, *(part.numpy() for part in state[name])])
            for name in ("numbers", "rows", "shared", *_KEYS.values())
        )
        by_number = np.argsort(numbers)
        self.rows.load(rows[by_number].astype(np.int64), is_shared[by_number].astype(bool))
        self._tables = self._new_tables(
            zip(_keys(tokens.numpy()), part.tolist(), strict=True)
            for tokens, part in zip(state["ngrams"], state["numbers"], strict=True)
        )
        self._inclusion.load(**{name: part[by_number] for name, part in zip(_KEYS, known, strict=True)})
        self._sketch = None
        if len(state["sketch"]):
            self._sketch = self._new_sketch()
            self._sketch.cells = state["sketch"].numpy().copy()
        stays_K = self._fitting(_NONE, _NONE.astype(bool), _NONE)
        if stays_K is None:
            if self.threshold > ALL:
                self._mark_slots(self._uniform_numbers())
            return None
        self._keep(stays_K)
        return self.rows.close_gaps()

    # --- parts ------------------------------------------------------------------------------------------------

    def _enter_late(self, x: int, tokens_Nn: np.ndarray, u_N: np.ndarray, numbers_N: np.ndarray) -> None:
        """Count the n-grams of a set that are not followed, and let in those that are frequent, in place."""
        assert self._sketch is not None
        absent = np.flatnonzero(numbers_N < 0)
        self._sketch.add(u_N[absent])
        late = absent[self._sketch.estimate(u_N[absent]) >= frequent(self.threshold)]
        if not len(late):
            return
        self._sketch.add(u_N[late], -1)  # these will be in their sums
        numbers_N[late] = _numbers(self._tables[x], _keys(tokens_Nn[late]))
        self._is_taken[x][_slots(u_N[late])] = True
        self._extend(PENDING)
        self._inclusion.enter_late(numbers_N[late], self._sketch.estimate(u_N[late]))

    def _common(self, n_ours: int, other: LiveLabels, labels_L: np.ndarray, theirs_L: np.ndarray) -> np.ndarray:
        """Take over the larger threshold and what is known of the labels; return which stay.

        Args:
            n_ours: labels of this part; they come first.
            other: the other part.
            labels_L, theirs_L: the numbers of its labels here and there.
        """
        u_K = self._uniform_numbers()
        is_ours_K = np.arange(len(self)) < n_ours
        is_theirs_K = np.zeros(len(self), dtype=bool)
        is_theirs_K[labels_L] = True
        ours = self._part(is_ours_K, u_K, np.arange(n_ours), np.arange(n_ours))
        theirs = other._part(is_theirs_K, u_K, labels_L, theirs_L)
        self.threshold = max(self.threshold, other.threshold)
        if self._sketch is None:
            self._sketch = self._new_sketch()
        if other._sketch is not None:
            self._sketch.merge(other._sketch)
        return self._inclusion.merge(ours, theirs, self.threshold)

    def _part(self, is_there_K: np.ndarray, u_K: np.ndarray, there: np.ndarray, own: np.ndarray) -> Part:
        """Tell what this part knows of the labels of two: `own` are the numbers here of its labels `there`."""
        # One that it lacks and would have let in has not occurred.
        missing_K = np.zeros(len(u_K), dtype=np.int64)
        unknown_K = ~is_there_K & (u_K >= 1.0 / self.threshold)
        if self._sketch is not None:
            missing_K[unknown_K] = self._sketch.estimate(u_K[unknown_K])
        count_K, probability_K = missing_K.copy(), np.full(len(u_K), 1.0 / self.threshold)
        for values_K, name in ((count_K, "count"), (missing_K, "missing"), (probability_K, "probability")):
            values_K[there] = self._inclusion[name][own]
        is_complete_K = np.where(is_there_K, probability_K > PENDING, ~unknown_K)
        return Part(
            is_there=is_there_K,
            count=count_K,
            missing=missing_K,
            probability=probability_K,
            is_complete=is_complete_K,
        )

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
        u_K = self._uniform_numbers()
        while use.n_rows(following_K) > most:
            self.threshold *= STEP
            following_K = following_K & self._inclusion.passes(self.threshold, u_K)
        self._inclusion.raise_to(self.threshold)
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
        if self._sketch is None:
            self._sketch = self._new_sketch()
        held_K, u_K = self._inclusion["count"] - self._inclusion["missing"], self._uniform_numbers()
        self._sketch.add(u_K[~stays_K], held_K[~stays_K])
        freed = self.rows.keep(stays_K)
        number_K = np.cumsum(stays_K) - 1
        kept = []
        for table in self._tables:
            numbers = _values(table)
            stays = stays_K[numbers]
            kept.append(zip(compress(table, stays.tolist()), number_K[numbers[stays]].tolist(), strict=True))
        self._tables = self._new_tables(kept)
        self._inclusion.keep(stays_K)
        self._mark_slots(u_K[stays_K])
        return freed

    def _mark_slots(self, u_K: np.ndarray) -> None:
        """Mark the slots of the numbers u of all labels."""
        for x, table in enumerate(self._tables):
            self._is_taken[x] = np.zeros(N_SLOTS, dtype=bool)
            self._is_taken[x][_slots(u_K[_values(table)])] = True

    def _extend(self, probability: float) -> None:
        """Extend what is known of each label to new ones, which entered with a probability."""
        self._inclusion.extend(len(self), probability)

    def _new_sketch(self) -> FrequencySketch:
        return FrequencySketch(self.most_rows or 1)

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
