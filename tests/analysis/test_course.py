"""The course of a value through training, in words."""

import math

import numpy as np
import pytest

from softh_probe.analysis.course import MOST_POINTS, course, turning_points

STEPS = [f"{step:,}" for step in (0, 1, 10, 100, 1000, 2000, 4000, 8000)]


def constant(se):
    return lambda i, j: se


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], "rises from step 0 to 8,000"),
        ([7, 6, 5, 4, 3, 2, 1, 0], "falls from step 0 to 8,000"),
        ([0, 1, 2, 3, 4, 3, 2, 1], "rises from step 0 to 1,000, then falls to 8,000"),
        ([0, 3, 2, 1, 4, 5, 6, 7], "rises from step 0 to 1, then falls to 100, then rises to 8,000"),
        ([0, 0, 0, 1, 4, 4, 4, 4], "rises from step 10 to 1,000"),
        ([0, 4, 4, 4, 4, 4, 4, 0], "rises from step 0 to 1, then falls from 4,000 to 8,000"),
        ([0, 1, 2, 3, 4, 5, 6, 6.9], "rises from step 0 to 8,000"),
        ([0, 1, 2, 3, 4, 5, 6, 5.9], "rises from step 0 to 4,000"),
    ],
)
def test_rises_and_falls_without_noise(values, expected):
    assert course(STEPS, values) == f"{expected}; noise over documents was not measured"


def test_a_value_within_noise_does_not_change():
    values = [0.5, 0.51, 0.49, 0.5, 0.52, 0.5, 0.48, 0.51]
    assert course(STEPS, values, constant(0.05)) == "does not change beyond noise from step 0 to 8,000"
    assert course(STEPS, [0.5] * 8, constant(0.05)) == "is the same from step 0 to 8,000"


def test_turning_points_within_noise_are_given_up():
    values = [0, 0.2, 0.12, 0.4, 0.6, 0.8, 0.74, 1.0]
    assert course(STEPS, values, constant(0.001)).startswith("rises from step 0 to 1, then falls to 10, then rises")
    said = course(STEPS, values, constant(0.08))
    assert said == "rises from step 0 to 8,000; changes beyond noise: 0 → 8,000"
    noisy = course(STEPS, [0.0, 1.0, 0.2, 0.3, 0.25, 0.32, 0.28, 0.31], constant(0.1))
    assert noisy == "rises from step 0 to 1, then falls to 10; changes beyond noise: 0 → 1, 1 → 10"


def test_slow_changes_beyond_noise_are_told():
    values = [0.0, 0.02, 0.03, 0.04, 1.0, 1.01, 1.02, 1.03]
    said = course(STEPS, values, constant(0.004))
    assert said == "rises from step 100 to 1,000; changes beyond noise: 0 → 100, 100 → 1,000, 1,000 → 8,000"
    assert course(STEPS, values, constant(0.1)).endswith("beyond noise: 100 → 1,000")


def test_the_number_of_changes_is_corrected_for():
    values = [0, 1, 0, 1, 0, 1, 0, 1]
    assert "beyond noise: 0 → 1, 1 → 10" in course(STEPS, values, constant(0.3))
    alone, of_seven = 1 / 1.97, 1 / 2.4  # one change is beyond noise where z is 1.96, one of seven where it is 2.69
    assert course(STEPS[:2], values[:2], constant(alone)).startswith("rises")
    assert course(STEPS, values, constant(of_seven)).startswith("does not change beyond noise")


def test_few_checkpoints_and_missing_values():
    assert course(["0"], [1.0], constant(1)) == ""
    assert course([], []) == ""
    asked = []
    said = course(STEPS, [math.nan, 1, math.nan, 2, 3, math.nan, 4, math.nan], lambda i, j: asked.append((i, j)) or 0.1)
    assert said == "rises from step 1 to 4,000; changes beyond noise: 1 → 4,000"
    assert {*asked} == {(1, 6)}


def test_checkpoints_without_steps_have_names():
    said = course(["base", "tuned"], [1.0, 2.0], constant(0.1), what="checkpoint")
    assert said == "rises from checkpoint base to tuned; changes beyond noise: base → tuned"


def test_noise_that_is_known_in_part():
    said = course(STEPS, [0, 1, 2, 3, 4, 3, 2, 1], lambda i, j: 0.1 if i == 0 else math.nan)
    assert said == "rises from step 0 to 1,000, then falls to 8,000; changes beyond noise: 0 → 1,000"


def test_few_turning_points_are_kept_of_many():
    random = np.random.default_rng(0)
    for values in (random.normal(size=500), np.cumsum(random.normal(size=500)), np.zeros(5), np.tile([0.0, 1.0], 50)):
        found = turning_points(values)
        assert found[0] == 0
        assert found[-1] == len(values) - 1
        assert len(found) <= MOST_POINTS or len({*values}) == 2
        assert found == sorted({*found})


def test_few_documents_make_less_of_a_change():
    values = [0, 1, 2, 3, 4, 5, 6, 7]
    assert "beyond noise: 0 → 8,000" in course(STEPS, values, constant(2), units_of_change=constant(300))
    assert course(STEPS, values, constant(2), units_of_change=constant(3)).startswith("does not change beyond noise")
