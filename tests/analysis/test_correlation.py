"""Correlations against scipy and regressions; intervals against planted correlations."""

import math

import numpy as np
import pytest
from scipy import stats

from scripts.study_correlation import coverage
from softh_probe.analysis.correlation import correlations, false_discovery, partial_correlation
from softh_probe.errors import InputError


@pytest.fixture(scope="module")
def tables():
    """Values with ties, scores, and two controls that drive both: 23 models."""
    random = np.random.default_rng(5)
    controls = random.standard_normal((23, 2))
    values = controls @ random.standard_normal((2, 4)) + random.standard_normal((23, 4))
    values[:, 3] = values[:, 3].round()
    scores = controls @ random.standard_normal((2, 3)) + random.standard_normal((23, 3))
    return values, scores, controls


def regression_residuals(column, controls):
    """By the normal equations, with an intercept."""
    design = np.column_stack([np.ones(len(column)), controls])
    return column - design @ np.linalg.solve(design.T @ design, design.T @ column)


@pytest.mark.parametrize(("kind", "reference"), [("pearson", stats.pearsonr), ("spearman", stats.spearmanr)])
def test_coefficients_and_p_values_are_scipys(tables, kind, reference):
    values, scores, _ = tables
    found = correlations(values, scores, n_resamples=10)[kind]
    for x in range(4):
        for y in range(3):
            expected = reference(values[:, x], scores[:, y])
            assert found.r_XY[x, y] == pytest.approx(expected.statistic, abs=1e-9)
            assert found.p_XY[x, y] == pytest.approx(expected.pvalue, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("kind", ["pearson", "spearman"])
@pytest.mark.parametrize("n_controls", [1, 2])
def test_partial_correlations_are_a_regressions(tables, kind, n_controls):
    """The coefficient is that of residuals; its p-value is that of a slope in a regression on metric and controls."""
    values, scores, controls = (stats.rankdata(t, axis=0) if kind == "spearman" else t for t in tables)
    controls = controls[:, :n_controls]
    found = correlations(tables[0], tables[1], tables[2][:, :n_controls], n_resamples=10)[f"partial_{kind}"]
    for x in range(4):
        for y in range(3):
            left = [regression_residuals(column, controls) for column in (values[:, x], scores[:, y])]
            assert found.r_XY[x, y] == pytest.approx(np.corrcoef(*left)[0, 1], abs=1e-9)
            design = np.column_stack([np.ones(23), controls, values[:, x]])
            slopes, squares, *_ = np.linalg.lstsq(design, scores[:, y], rcond=None)
            dof = 23 - 2 - n_controls
            error = math.sqrt(squares[0] / dof * np.linalg.inv(design.T @ design)[-1, -1])
            assert found.p_XY[x, y] == pytest.approx(2 * stats.t.sf(abs(slopes[-1]) / error, dof), abs=1e-9)


def test_what_only_size_drives_is_gone_under_control():
    random = np.random.default_rng(2)
    size = random.standard_normal((60, 1))
    value, score = (size + 0.3 * random.standard_normal((60, 1)) for _ in range(2))
    found = correlations(value, score, size, n_resamples=500)
    for kind in ("pearson", "spearman"):
        assert found[kind].p_XY[0, 0] < 1e-9
        partial = found[f"partial_{kind}"]
        assert partial.p_XY[0, 0] > 0.05
        assert partial.low_XY[0, 0] < 0 < partial.high_XY[0, 0]


def test_pearsons_interval_is_that_of_resampled_models(tables):
    """Each test alone, by a loop over resamples."""
    values, scores, _ = tables
    found = correlations(values, scores, n_resamples=400, seed=3)["pearson"]
    x, y = values[:, 1], scores[:, 2]
    counts = np.random.default_rng((3, 23)).multinomial(23, np.full(23, 1 / 23), size=400)
    drawn = [np.arctanh(np.corrcoef(np.repeat(x, c), np.repeat(y, c))[0, 1]) for c in counts]
    middle, half = np.arctanh(np.corrcoef(x, y)[0, 1]), stats.t.ppf(0.975, 21) * np.std(drawn, ddof=1)
    assert found.low_XY[1, 2] == pytest.approx(np.tanh(middle - half), abs=1e-9)
    assert found.high_XY[1, 2] == pytest.approx(np.tanh(middle + half), abs=1e-9)


def test_spearmans_interval_is_scipys(tables):
    """Up to the resamples, which are others."""
    values, scores, _ = tables
    found = correlations(values, scores, n_resamples=20_000)["spearman"]
    for x, y in ((0, 0), (3, 1)):
        expected = stats.bootstrap(
            (values[:, x], scores[:, y]),
            lambda a, b: stats.spearmanr(a, b).statistic,
            paired=True,
            n_resamples=4000,
            method="BCa",
            rng=np.random.default_rng(0),
            vectorized=False,
        ).confidence_interval
        assert found.low_XY[x, y] == pytest.approx(expected.low, abs=0.05)
        assert found.high_XY[x, y] == pytest.approx(expected.high, abs=0.05)


@pytest.mark.parametrize("rho", [0.0, 0.8])
def test_intervals_hold_the_planted_correlation(rho):
    """A few draws; `scripts/study_correlation.py` has many."""
    found = coverage(20, rho, 60, n_resamples=200)
    assert all(found[kind] >= 0.85 for kind in ("pearson", "spearman", "partial_pearson"))


@pytest.mark.slow
@pytest.mark.parametrize("n_models", [20, 47])
@pytest.mark.parametrize("rho", [0.0, 0.5, 0.8])
def test_500_intervals_hold_the_planted_correlation_in_93_to_97_percent(n_models, rho):
    found = coverage(n_models, rho, 500, n_resamples=500)
    for kind in ("pearson", "spearman"):
        assert 0.93 <= found[kind] <= 0.97, kind


def test_constant_columns_have_no_correlation_and_spoil_no_other(tables):
    values, scores, controls = tables
    constant = np.full((23, 1), 0.1 + 0.2)
    alone = correlations(values, scores, controls, n_resamples=200)
    found = correlations(np.hstack([values, constant]), scores, controls, n_resamples=200)
    for kind, of in found.items():
        for name in ("r_XY", "p_XY", "low_XY", "high_XY"):
            assert np.isnan(getattr(of, name)[4]).all()
            np.testing.assert_allclose(getattr(of, name)[:4], getattr(alone[kind], name), atol=1e-9)


def test_what_a_control_explains_whole_has_no_partial_correlation(tables):
    _, scores, controls = tables
    value = 3 * controls[:, :1] - 7
    found = correlations(value, scores, controls, n_resamples=100)
    assert np.isfinite(found["pearson"].r_XY).all()
    assert np.isnan(found["partial_pearson"].r_XY).all()


def test_models_on_one_line_have_a_correlation_of_one_and_no_interval():
    x = np.arange(6.0)[:, None]
    found = correlations(x, -2 * x)
    for kind in ("pearson", "spearman"):
        assert found[kind].r_XY[0, 0] == pytest.approx(-1)
        assert found[kind].p_XY[0, 0] == pytest.approx(0, abs=1e-9)
        assert np.isnan(found[kind].low_XY[0, 0])


def test_false_discovery_is_that_of_benjamini_and_hochberg():
    p = np.random.default_rng(0).uniform(size=30) ** 3
    order = np.argsort(p)
    steps = p[order] * 30 / np.arange(1, 31)
    expected = np.minimum.accumulate(steps[::-1])[::-1]
    given = np.append(p, np.nan)
    found = false_discovery(given)
    np.testing.assert_allclose(found[order], np.minimum(expected, 1))
    assert np.isnan(found[30])


def test_too_few_models_and_missing_values_are_refused():
    x = np.arange(4.0)[:, None]
    with pytest.raises(InputError, match="models: expected at least 5 to correlate, got 4"):
        correlations(x, x)
    x = np.array([[1.0], [2], [3], [np.nan], [5]])
    with pytest.raises(InputError, match="values: expected finite numbers"):
        correlations(x, x)


def test_partial_correlation_survives_scales_far_apart(tables):
    values, scores, controls = tables
    scaled = partial_correlation(values * 1e-8 + 5, scores * 1e9, controls * [1e10, 1e-6] + 3)
    np.testing.assert_allclose(scaled, partial_correlation(values, scores, controls), atol=1e-6)
