"""Thresholds of the sample of labels: rows fit, and the largest expected standard error over the sets is least.

A label of count n is followed if u < n/τ (`softh_probe.accumulators.label_sampling`). The threshold τ of a set decides
the standard error of the set's information: a label that is followed with probability π = n/τ stands for 1/π labels, so
its n·H(p̂_x), which deviates by n·sd(H) from what labels of its count have in the mean, adds n²·sd(H)²·(1 − π)/π to the
variance of the sum. With one common error for all sets, each set has one threshold; the least common error at which the
rows fit is found by bisection. It is the least maximum: a set with a smaller error than the others' would only take
rows from them.

Shape suffixes: C counts of labels, L labels, X sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from softh_probe.accumulators.label_sampling import ALL, inclusion
from softh_probe.planned.lifetimes import rows_in_use

#: Standard deviation of H(p̂_x) among labels of one set and count, in log m. It was 0.09 to 0.15 on SmolLM2, and for few
#: labels 0.17 (`scripts/study_label_sampling.py`). It scales the expected errors and does not change the thresholds.
ENTROPY_SD = 0.15

_STEPS = 48  # of the bisection: the error is found to 1e-14 of its largest value


class CountHistogram:
    """The labels of a set that occur several times, by count, as its expected standard error needs them.

    The variance Σ n²·(1 − π)/π over labels of counts n < τ equals Σ n·(τ − n). It grows with τ, in straight pieces.

    >>> counts = CountHistogram(np.array([2, 3]), np.array([100, 10]), n_positions=400)
    >>> counts.error(1.0), round(counts.error(4.0), 4), round(counts.threshold(counts.error(4.0)), 4)
    (0.0, 0.0078, 4.0)

    Args:
        counts_C: counts, in any order; those of labels that occur once do not matter.
        labels_C: labels of each count.
        n_positions: positions that have a label of the set.
    """

    def __init__(self, counts_C: np.ndarray, labels_C: np.ndarray, n_positions: int) -> None:
        several = (counts_C > 1) & (labels_C > 0)
        order = np.argsort(counts_C[several], kind="stable")
        self._counts, labels = (values[several][order].astype(np.float64) for values in (counts_C, labels_C))
        self._positions = np.cumsum(self._counts * labels)
        self._squares = np.cumsum(self._counts**2 * labels)
        self._scale = ENTROPY_SD / max(n_positions, 1)

    def error(self, threshold: float) -> float:
        """Compute the expected standard error of the set's information at a threshold, in log m."""
        below = int(np.searchsorted(self._counts, threshold))
        if not below:
            return 0.0
        variance = threshold * self._positions[below - 1] - self._squares[below - 1]
        return float(self._scale * np.sqrt(max(variance, 0.0)))

    def threshold(self, error: float) -> float:
        """Compute the threshold at which the expected standard error is this one: the inverse of `error`."""
        if not len(self._counts):
            return ALL
        variance = (error / self._scale) ** 2
        before = np.concatenate([[0.0], self._positions[:-1]]), np.concatenate([[0.0], self._squares[:-1]])
        at_counts = self._counts * before[0] - before[1]
        last = int(np.searchsorted(at_counts, variance, side="right")) - 1
        return float((variance + self._squares[last]) / self._positions[last])


@dataclass(frozen=True, kw_only=True)
class LiveLabels:
    """The labels of a set that occur in several batches, in the order of one process.

    Attributes:
        counts_L, first_L, last_L: count, first batch and last batch of each.
        u_L: its uniform number.
        histogram: of all labels of the set.
    """

    counts_L: np.ndarray
    first_L: np.ndarray
    last_L: np.ndarray
    u_L: np.ndarray
    histogram: CountHistogram

    def largest_error(self) -> float:
        """Compute an expected standard error at which none of the labels is followed."""
        ratio = self.counts_L / np.maximum(self.u_L, 2.0**-53)
        return 2.0 * self.histogram.error(float(ratio.max(initial=1.0)))


def choose_thresholds(sets: Sequence[LiveLabels], label_rows: int, n_batches: int) -> list[float]:
    """Choose the threshold of each set so that at most `label_rows` labels are alive at a time.

    Args:
        sets: the labels of each set; together more of them are alive at a time.
        label_rows: rows at a time at most.
        n_batches: batches of the corpus.

    Returns:
        The thresholds, whose expected standard errors are the same, and as small as they can be.
    """

    def fit(thresholds: list[float]) -> bool:
        followed = [s.u_L < inclusion(s.counts_L, t) for s, t in zip(sets, thresholds, strict=True)]
        first = np.concatenate([s.first_L[f] for s, f in zip(sets, followed, strict=True)])
        last = np.concatenate([s.last_L[f] for s, f in zip(sets, followed, strict=True)])
        return int(rows_in_use(first, last, n_batches).max()) <= label_rows

    low, high = 0.0, max(s.largest_error() for s in sets)
    found = [s.histogram.threshold(high) for s in sets]
    for _ in range(_STEPS):
        middle = (low + high) / 2
        thresholds = [s.histogram.threshold(middle) for s in sets]
        if fit(thresholds):
            high, found = middle, thresholds
        else:
            low = middle
    return found
