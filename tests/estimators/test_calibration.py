"""The temperature against high-precision Bessel functions."""

import math

import mpmath
import pytest

from softh_probe import temperature
from softh_probe.errors import InputError
from softh_probe.estimators.calibration import resolve_temperature, vmf_divergence

DESIGN_VALUES = [
    (100, 8, 0.0480786848),
    (100, 64, 0.0370494750),
    (100, 576, 0.0135661835),
    (100, 4096, 0.00513984561),
    (100, 16384, 0.00257317370),
    (1000, 576, 0.0110106579),
]


def divergence_by_mpmath(kappa: mpmath.mpf, dim: int) -> mpmath.mpf:
    """KL(vMF ‖ Uniform) straight from its definition with Bessel functions of 50 digits."""
    order = mpmath.mpf(dim) / 2 - 1
    ratio = mpmath.besseli(order + 1, kappa) / mpmath.besseli(order, kappa)
    log_z = mpmath.loggamma(order + 1) + order * mpmath.log(2 / kappa) + mpmath.log(mpmath.besseli(order, kappa))
    return kappa * ratio - log_z


@pytest.mark.parametrize(("n_anchors", "dim", "expected"), DESIGN_VALUES)
def test_published_values(n_anchors, dim, expected):
    """Quoted to nine digits; the one for d=8 is off by 2.4e-9 (50 digits give 0.048078684917)."""
    assert temperature(n_anchors, dim) == pytest.approx(expected, rel=5e-9)


@pytest.mark.parametrize("n_anchors", [2, 3, 10, 100, 1000, 65_536])
@pytest.mark.parametrize("dim", [2, 3, 4, 5, 8, 10, 16, 24, 30, 33, 50, 128, 576, 1000, 4096, 16_384, 65_536])
def test_exact_to_1e_9_over_the_whole_range(n_anchors, dim):
    """Newton's correction in 50 digits, (KL(κ) − log m) / (κ·KL'(κ)), is the relative error of ε."""
    epsilon = temperature(n_anchors, dim)
    with mpmath.workdps(50):
        kappa = 1 / mpmath.mpf(epsilon)
        step = kappa * mpmath.mpf("1e-15")
        low, high = divergence_by_mpmath(kappa - step, dim), divergence_by_mpmath(kappa + step, dim)
        slope = (high - low) / (2 * step)
        relative_error = (divergence_by_mpmath(kappa, dim) - mpmath.log(n_anchors)) / (kappa * slope)
    assert abs(relative_error) < 1e-9


@pytest.mark.parametrize(("kappa", "dim"), [(199.0, 3), (201.0, 3), (201.0, 28), (230.0, 32), (5e4, 5), (1e9, 2)])
def test_divergence_on_both_sides_of_the_switch(kappa, dim):
    with mpmath.workdps(50):
        expected = divergence_by_mpmath(mpmath.mpf(kappa), dim)
    assert vmf_divergence(kappa, dim) == pytest.approx(float(expected), rel=1e-11)


def test_leading_order_is_the_limit_of_large_dimension():
    assert temperature(100, 576, method="leading_order") == 1 / math.sqrt(2 * 576 * math.log(100))
    assert temperature(100, 65_536) == pytest.approx(temperature(100, 65_536, "leading_order"), rel=1e-3)


def test_a_number_is_the_temperature_itself():
    assert resolve_temperature(0.25, 100, 64) == 0.25
    assert resolve_temperature("exact", 100, 64) == temperature(100, 64)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: temperature(1, 64), "n_anchors"),
        (lambda: temperature(100, 1), "dim"),
        (lambda: temperature(100, 64, method="fast"), "exact, leading_order"),
        (lambda: resolve_temperature("fast", 100, 64), "exact, leading_order, amos"),
        (lambda: resolve_temperature(-1.0, 100, 64), "positive"),
        (lambda: resolve_temperature(float("nan"), 100, 64), "positive"),
    ],
)
def test_bad_arguments_are_named(call, named):
    with pytest.raises(InputError, match=named):
        call()


@pytest.mark.parametrize(
    ("dim", "expected"), [(64, 0.0362298791), (576, 0.0135414190), (768, 0.0117678219), (4096, 0.0051385816)]
)
def test_amos_is_the_temperature_of_the_published_package(dim, expected):
    assert temperature(100, dim, "amos") == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("n_anchors", [2, 100, 1000])
@pytest.mark.parametrize("dim", [8, 64, 576, 4096, 65_536])
def test_amos_equals_the_package_itself(n_anchors, dim):
    calibration = pytest.importorskip("soft_entropy.temp_calibration")
    assert temperature(n_anchors, dim, "amos") == pytest.approx(calibration.find_eps(n_anchors, dim), rel=1e-9)


@pytest.mark.parametrize("n_anchors", [2, 1000, 65_536])
@pytest.mark.parametrize("dim", [3, 4, 16, 65_536])
def test_amos_solves_its_bound_where_the_package_finds_no_root(n_anchors, dim):
    with mpmath.workdps(50):
        kappa, half = 1 / mpmath.mpf(temperature(n_anchors, dim, "amos")), mpmath.mpf(dim) / 2
        order = half - 1
        root = mpmath.sqrt(kappa**2 + order**2)
        phi = root - order + order * mpmath.log(2 * order / (order + root))
        bound = kappa**2 / (half + mpmath.sqrt(kappa**2 + half**2)) - phi
    assert float(bound) == pytest.approx(math.log(n_anchors), rel=1e-9)


def test_amos_has_no_bound_in_two_dimensions():
    with pytest.raises(InputError, match="calibration: amos has no bound for hidden states of width 2; take exact"):
        temperature(100, 2, "amos")
