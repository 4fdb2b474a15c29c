"""What is known of each followed label: its count, what its sums lack, and the probability that it is followed.

A label of count n is followed while its number u < n/τ, so its probability π is the least n/τ that it has passed. But a
label that becomes frequent only after τ has risen would be lost to chance, and with it, in an evaluation of one task
after another, whole tasks. So labels that are not followed are counted too (`frequency_sketch`), and one whose count
reaches τ enters late. Its sums lack the positions before. It is pending until it has been seen as often as it was
missed, and is certain (π = 1) from then on. So is every other label at that point, for it would have entered late, had
it not been followed before.

Shape suffixes: L labels of a batch, K labels in all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from softh_probe.accumulators.label_sampling import ALL, inclusion

#: Least count at which a label enters late: few positions have another entropy than twice as many.
LEAST_LATE = 32
#: The probability that stands for a pending label.
PENDING = 0.0


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one of two parts of the data knows of the labels of both [K].

    Attributes:
        is_there: whether it follows a label.
        count, missing, probability: as in `Inclusion`. Of a label that it does not follow, `count` and `missing` are
            what it may have seen of it.
        is_complete: whether it follows a label by the label's number u, or has seen none of it.
    """

    is_there: np.ndarray
    count: np.ndarray
    missing: np.ndarray
    probability: np.ndarray
    is_complete: np.ndarray


class Inclusion:
    """Count, missing positions and probability of each label, by its number.

    Attributes:
        n_known: labels there are.
    """

    #: Per label: positions so far; those of them that its sums lack; the positions it would lack had it entered when it
    #: became frequent, 0 where it has not; π.
    FIELDS = ("count", "missing", "crossing", "probability")

    def __init__(self) -> None:
        self.n_known = 0
        self._arrays = {name: np.zeros(0, dtype=np.int64) for name in self.FIELDS[:-1]}
        self._arrays["probability"] = np.zeros(0, dtype=np.float64)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name][: self.n_known]

    def extend(self, n_labels: int, probability: float) -> None:
        """Add new labels, which entered with a probability."""
        for name, array in self._arrays.items():
            if n_labels > len(array):
                longer = np.zeros(max(n_labels, 2 * len(array)), dtype=array.dtype)
                longer[: self.n_known] = array[: self.n_known]
                self._arrays[name] = longer
            self._arrays[name][self.n_known : n_labels] = probability if name == "probability" else 0
        self.n_known = n_labels

    def enter_late(self, labels_L: np.ndarray, missing_L: np.ndarray) -> None:
        """Make new labels pending, of which so many positions were not seen."""
        self["count"][labels_L] = self["missing"][labels_L] = missing_L
        self["crossing"][labels_L] = np.maximum(missing_L, 1)
        self["probability"][labels_L] = PENDING

    def count(self, labels_L: np.ndarray, sizes_L: np.ndarray, threshold: float) -> None:
        """Count the positions of a batch's labels; frequent labels become certain."""
        before_L = self["count"][labels_L]
        self["count"][labels_L] += sizes_L
        if threshold == ALL:
            return
        count_L, crossing_L = before_L + sizes_L, self["crossing"][labels_L]
        is_certain_L = self["probability"][labels_L] == 1.0
        crosses_L = (count_L >= frequent(threshold)) & ~is_certain_L & (crossing_L == 0)
        crossing_L = np.where(crosses_L, np.maximum(before_L, 1), crossing_L)
        becomes_certain_L = (crossing_L > 0) & (count_L >= 2 * crossing_L)
        self["probability"][labels_L[becomes_certain_L]] = 1.0
        self["crossing"][labels_L] = np.where(becomes_certain_L, 0, crossing_L)

    def passes(self, threshold: float, u_K: np.ndarray) -> np.ndarray:
        """Find the labels that stay at a threshold [K]."""
        is_pending_K = self["probability"] == PENDING
        stays_K: np.ndarray = np.where(
            is_pending_K, self["count"] >= frequent(threshold), u_K < self["count"] / threshold
        )
        return stays_K

    def raise_to(self, threshold: float) -> None:
        """Lower the probabilities to those of a threshold that has risen."""
        probability_K = self["probability"]
        np.minimum(probability_K, inclusion(self["count"], threshold), out=probability_K)
        self["crossing"][(self["count"] < frequent(threshold)) & (probability_K > PENDING)] = 0

    def keep(self, stays_K: np.ndarray) -> None:
        """Forget all other labels."""
        self._arrays = {name: self[name][stays_K] for name in self.FIELDS}
        self.n_known = int(stays_K.sum())

    def load(self, **arrays: np.ndarray) -> None:
        """Replace all by these."""
        self._arrays = {name: arrays[name].astype(self._arrays[name].dtype) for name in self.FIELDS}
        self.n_known = len(arrays["count"])

    def merge(self, ours: Part, theirs: Part, threshold: float) -> np.ndarray:
        """Take over what two parts of the data know; return which labels stay [K].

        A label is certain if it would be followed whatever its number: if a part follows it as certain or pending, it
        is frequent, and seen at least as often as missed, also by one that entered late there. Else it stays with the
        lesser probability if both parts are complete. Else it is pending while it is frequent.
        """
        count_K = ours.count + theirs.count
        late = []  # what one that entered late would lack
        for part in (ours, theirs):
            whatever_u_K = part.is_there & ((part.probability == 1.0) | (part.probability == PENDING))
            late.append((whatever_u_K, np.where(whatever_u_K, part.missing, part.count)))
        missing_late_K = late[0][1] + late[1][1]
        is_frequent_K = count_K >= frequent(threshold)
        is_certain_K = (late[0][0] | late[1][0]) & is_frequent_K & (count_K >= 2 * missing_late_K)
        is_complete_K = ours.is_complete & theirs.is_complete
        self["count"][:], self["missing"][:] = count_K, ours.missing + theirs.missing
        least_K = np.minimum(ours.probability, theirs.probability)
        self["probability"][:] = np.where(is_certain_K, 1.0, np.where(is_complete_K, least_K, PENDING))
        is_pending_K = ~is_certain_K & ~is_complete_K
        self["crossing"][:] = np.where(is_pending_K, np.maximum(missing_late_K, 1), 0)
        stays_K: np.ndarray = is_certain_K | is_complete_K | is_frequent_K
        return stays_K


def frequent(threshold: float) -> float:
    """Compute the count at which a label is followed whatever its number."""
    return max(threshold, LEAST_LATE)
