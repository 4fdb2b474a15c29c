"""Thresholds of the sample of labels: the rows fit, and no smaller error would do."""

from itertools import pairwise

import numpy as np
import pytest

from softh_probe.planned.lifetimes import rows_in_use
from softh_probe.planned.thresholds import ENTROPY_SD, CountHistogram, LiveLabels, choose_thresholds

N_BATCHES = 30


def error_of(counts, labels, n_positions, threshold):
    """The expected standard error, label by label."""
    variance = 0.0
    for n, how_many in zip(counts, labels, strict=True):
        for _ in range(how_many):
            probability = min(1.0, n / threshold)
            variance += n**2 * (1 - probability) / probability if n > 1 else 0.0
    return ENTROPY_SD * variance**0.5 / n_positions


def live_labels(seed, n_labels=400, most=50):
    """Labels whose counts fall off as those of words do, and how they live."""
    generator = np.random.default_rng(seed)
    counts = np.minimum(generator.zipf(1.6, n_labels) + 1, most)
    lives = np.sort(generator.integers(0, N_BATCHES, (n_labels, 2)), axis=1)
    kept = lives[:, 0] < lives[:, 1]
    labels_C = np.bincount(counts)
    return LiveLabels(
        counts_L=counts[kept],
        first_L=lives[kept, 0],
        last_L=lives[kept, 1],
        u_L=generator.random(kept.sum()),
        histogram=CountHistogram(np.arange(len(labels_C)), labels_C, n_positions=3000),
    )


def rows(sets, thresholds):
    """Rows alive at a time, batch by batch and label by label."""
    alive = [0] * N_BATCHES
    for labels, threshold in zip(sets, thresholds, strict=True):
        for n, first, last, u in zip(labels.counts_L, labels.first_L, labels.last_L, labels.u_L, strict=True):
            if u < n / threshold:
                for batch in range(first, last + 1):
                    alive[batch] += 1
    return max(alive)


@pytest.mark.parametrize("threshold", [1.0, 2.0, 2.5, 5.0, 7.3, 400.0])
def test_the_expected_error_is_the_sum_over_labels_and_has_an_inverse(threshold):
    counts, labels = np.array([7, 1, 2, 40, 5]), np.array([3, 1000, 60, 1, 9])
    histogram = CountHistogram(counts, labels, n_positions=1300)
    error = histogram.error(threshold)
    assert error == pytest.approx(error_of(counts, labels, 1300, threshold))
    assert histogram.threshold(error) == pytest.approx(max(threshold, 2.0))  # below the least count all are followed


def test_a_set_whose_labels_all_occur_once_is_exact():
    histogram = CountHistogram(np.array([1]), np.array([10]), n_positions=10)
    assert (histogram.error(1e9), histogram.threshold(0.5)) == (0.0, 1.0)


@pytest.mark.parametrize("label_rows", [1, 7, 60, 200])
def test_rows_fit_and_no_smaller_error_would_do(label_rows):
    sets = [live_labels(seed) for seed in range(3)]
    assert rows(sets, [1.0] * 3) > label_rows
    chosen = choose_thresholds(sets, label_rows, N_BATCHES)
    assert rows(sets, chosen) <= label_rows
    errors = [s.histogram.error(t) for s, t in zip(sets, chosen, strict=True)]
    assert errors == pytest.approx([errors[0]] * 3)
    smaller = [s.histogram.threshold(errors[0] * (1 - 1e-6)) for s in sets]
    assert rows(sets, smaller) > label_rows
    for i, s in enumerate(sets):  # one set alone cannot be better off at the others' expense
        worse = [s.histogram.threshold(errors[0] * 1.01) if j != i else chosen[i] for j, s in enumerate(sets)]
        assert max(s.histogram.error(t) for s, t in zip(sets, worse, strict=True)) > errors[0]


def test_more_rows_never_lose_a_label():
    sets = [live_labels(seed) for seed in range(3)]
    chosen = [choose_thresholds(sets, label_rows, N_BATCHES) for label_rows in (5, 20, 80, 200)]
    for fewer, more in pairwise(chosen):
        assert all(a >= b for a, b in zip(fewer, more, strict=True))


def test_rows_in_use_are_those_of_a_count_by_hand():
    labels = live_labels(0)
    found = rows_in_use(labels.first_L, labels.last_L, N_BATCHES)
    assert found.max() == rows([labels], [1.0])
