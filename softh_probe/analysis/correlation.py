"""Correlations of columns with columns: Pearson's, Spearman's, and both given controls.

Sources: Spearman, C. (1904). The proof and measurement of association between two things. American Journal of
Psychology 15. Fisher, R. A. (1924). The distribution of the partial correlation coefficient. Metron 3. Benjamini, Y.,
Hochberg, Y. (1995). Controlling the false discovery rate. Journal of the Royal Statistical Society B 57.

Shape suffixes: N models, D columns, X columns on one side, Y on the other, K controls.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr
from scipy.stats import false_discovery_control, rankdata

from softh_probe.analysis.correlation_intervals import Resamples, bca_interval, fisher_interval
from softh_probe.errors import InputError

#: Fewest models of which correlations are computed.
FEWEST_MODELS = 5
#: A column whose spread is smaller than this share of its size is constant up to rounding.
ROUNDING = 1e-10
#: A correlation nearer to 1 or −1 is that, but for rounding.
_ROUNDING_OF_ONE = 1e-14


@dataclass(frozen=True, kw_only=True)
class Estimates:
    """Correlations of each column x with each column y.

    Attributes:
        r_XY: the coefficients; NaN where a column is constant, also where it is once the controls are taken out.
        p_XY: two-sided p-values of no correlation, by Student's t.
        low_XY, high_XY: the 95% bootstrap interval over models; NaN where |r| is 1, which resamples repeat.
    """

    r_XY: np.ndarray
    p_XY: np.ndarray
    low_XY: np.ndarray
    high_XY: np.ndarray


def correlations(
    x_NX: np.ndarray, y_NY: np.ndarray, controls_NK: np.ndarray | None = None, *, n_resamples: int = 2000, seed: int = 0
) -> dict[str, Estimates]:
    """Correlate every column of one table with every column of another.

    >>> x_N1 = np.array([[1.0], [2.0], [3.0], [4.0], [5.0], [6.0]])
    >>> found = correlations(x_N1, x_N1**3 + np.array([[0.0], [0], [0], [40], [0], [0]]))
    >>> round(float(found["spearman"].r_XY[0, 0]), 3), round(float(found["spearman"].p_XY[0, 0]), 3)
    (1.0, 0.0)
    >>> sorted(found)
    ['pearson', 'spearman']

    Args:
        x_NX: finite values of N models, at least `FEWEST_MODELS`.
        y_NY: the same models' scores.
        controls_NK: what is held constant in "partial_pearson" and "partial_spearman"; without any, there are no such.
        n_resamples: bootstrap resamples of models.
        seed: of the resamples; equal seeds give equal intervals.

    Returns:
        Estimates by name: "pearson", "spearman", and with controls "partial_pearson" and "partial_spearman".

    Raises:
        InputError: too few models, or values that are not finite.
    """
    controls_NK = np.empty((len(x_NX), 0)) if controls_NK is None else controls_NK
    n_models, n_controls = len(x_NX), controls_NK.shape[1]
    if n_models < FEWEST_MODELS:
        raise InputError(f"models: expected at least {FEWEST_MODELS} to correlate, got {n_models}")
    columns_ND = np.concatenate([x_NX, y_NY, controls_NK], axis=1)
    if not np.isfinite(columns_ND).all():
        raise InputError("values: expected finite numbers; leave models without a value out before")
    sides = (x_NX.shape[1], y_NY.shape[1])
    found = {}
    for kind, method in (("pearson", fisher_interval), ("spearman", bca_interval)):
        ranked = kind == "spearman"
        x, y, controls = (rankdata(part, axis=0) if ranked else part for part in (x_NX, y_NY, controls_NK))
        resamples = Resamples(columns_ND, sides, ranked=ranked, n_resamples=n_resamples, seed=seed)
        for name, given, replicates in (
            (kind, controls[:, :0], resamples.plain),
            (f"partial_{kind}", controls, resamples.partial),
        )[: 2 if n_controls else 1]:
            r_XY = partial_correlation(x, y, given)
            dof = n_models - 2 - given.shape[1]
            low_XY, high_XY = method(r_XY, *replicates, dof)
            found[name] = Estimates(r_XY=r_XY, p_XY=p_value(r_XY, dof), low_XY=low_XY, high_XY=high_XY)
    return found


def partial_correlation(x_NX: np.ndarray, y_NY: np.ndarray, controls_NK: np.ndarray) -> np.ndarray:
    """Correlate what a linear regression on the controls, with an intercept, leaves of both sides.

    With no controls this is Pearson's correlation; of ranks it is Spearman's.

    >>> size_N1 = np.array([[1.0], [2.0], [3.0], [4.0], [5.0]])
    >>> noise_N1 = np.array([[1.0], [-1.0], [0.0], [-1.0], [1.0]])
    >>> x_N1, y_N1 = size_N1 + noise_N1, size_N1 - noise_N1
    >>> round(float(partial_correlation(x_N1, y_N1, size_N1)[0, 0]), 3)
    -1.0

    Returns:
        r_XY; NaN where nothing is left of a side but rounding.
    """
    r_XY: np.ndarray = _unit(_residuals(x_NX, controls_NK)).T @ _unit(_residuals(y_NY, controls_NK))
    is_whole = np.abs(r_XY) > 1 - _ROUNDING_OF_ONE
    r_XY[is_whole] = np.sign(r_XY[is_whole])
    return r_XY


def p_value(r: np.ndarray, dof: int) -> np.ndarray:
    """Compute the two-sided p-value of a correlation by Student's t = r sqrt(dof / (1 − r²)).

    >>> p_value(np.array([0.0, 0.5, 1.0]), 8).round(4).tolist()
    [1.0, 0.1411, 0.0]

    Args:
        r: correlations; NaN stays NaN.
        dof: degrees of freedom: N − 2, less one for each control; below 1 nothing is known, and p is NaN.
    """
    if dof < 1:
        return np.full(np.shape(r), np.nan)
    with np.errstate(divide="ignore"):
        t = np.abs(r) * np.sqrt(dof / ((1 - np.abs(r)) * (1 + np.abs(r))))
    p: np.ndarray = 2 * stdtr(dof, -t)
    return p


def false_discovery(p_T: np.ndarray) -> np.ndarray:
    """Correct p-values for their number: of all tests with q below α, a share of at most α is expected to be false.

    >>> false_discovery(np.array([0.01, 0.04, np.nan, 0.03])).round(3).tolist()
    [0.03, 0.04, nan, 0.04]

    Args:
        p_T: p-values of one family of tests; those that are NaN stand for no test.
    """
    q_T = np.full(len(p_T), np.nan)
    tested = ~np.isnan(p_T)
    if tested.any():
        q_T[tested] = false_discovery_control(p_T[tested])
    return q_T


def is_constant(columns_ND: np.ndarray) -> np.ndarray:
    """Tell which columns have one value, up to rounding: bool [D].

    >>> is_constant(np.array([[1.0, 0.3], [1.0, 0.1 + 0.2], [2.0, 0.3]])).tolist()
    [False, True]
    """
    constant: np.ndarray = np.ptp(columns_ND, axis=0) <= ROUNDING * np.abs(columns_ND).max(axis=0)
    return constant


def _residuals(columns_ND: np.ndarray, controls_NK: np.ndarray) -> np.ndarray:
    """Take out the mean and the controls; what is left by rounding alone is exactly 0."""
    centred_ND: np.ndarray = columns_ND - columns_ND.mean(axis=0)
    centred_ND[:, is_constant(columns_ND)] = 0.0
    if not controls_NK.shape[1]:
        return centred_ND
    centred_NK = controls_NK - controls_NK.mean(axis=0)
    scale_K = np.linalg.norm(centred_NK, axis=0)
    scaled_NK = centred_NK / np.where(scale_K > 0, scale_K, 1.0)
    fitted_ND = scaled_NK @ np.linalg.lstsq(scaled_NK, centred_ND, rcond=None)[0]
    left_ND: np.ndarray = centred_ND - fitted_ND
    left_ND[:, np.linalg.norm(left_ND, axis=0) <= ROUNDING * np.linalg.norm(centred_ND, axis=0)] = 0.0
    return left_ND


def _unit(columns_ND: np.ndarray) -> np.ndarray:
    """Scale columns to norm 1; those of norm 0 become NaN."""
    norm_D = np.linalg.norm(columns_ND, axis=0)
    with np.errstate(invalid="ignore"):
        unit_ND: np.ndarray = columns_ND / np.where(norm_D > 0, norm_D, np.nan)
    return unit_ND
