"""95% bootstrap intervals of correlations, over models.

A percentile interval of few models is too short: of 20, it holds Pearson's ρ in 91 to 93% of draws. Two others hold it,
and Spearman's, in 94 to 97% (`python scripts/study_correlation.py`):

- `fisher_interval`, of Pearson's: artanh r ± t · sd, with the standard deviation over resamples of artanh r, and
  Student's t. Fisher's artanh makes the spread nearly independent of ρ (Fisher, R. A. (1921). On the "probable error"
  of a coefficient of correlation. Metron 1); t makes up for a spread that is itself estimated from few models.
- `bca_interval`, of Spearman's: percentiles that are corrected for bias and skewness (Efron, B. (1987). Better
  bootstrap confidence intervals. Journal of the American Statistical Association 82). Resamples repeat models, which
  are ties: artanh of their rank correlations spreads too far, and the interval would hold ρ in up to 99%.

All tests share their resamples, so that hundreds of tests cost few products of matrices.

Shape suffixes: N models, D columns (X on one side, Y on the other, then K controls), W resamples.
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr, ndtri, stdtrit

_LEVEL = 0.95
_VALUES_AT_ONCE = 2_000_000
_ONE = 1 - 1e-12  # a correlation beyond is 1, up to rounding
_NO_SPREAD = 1e-20  # a variance that is rounding, of a column whose variance is 1
_EXPLAINED = 1e-10  # a share of a variance that is left by rounding, of a column that the controls explain whole


class Resamples:
    """Correlations of resampled models, and of all models but one.

    Args:
        columns_ND: values; the sides' columns, then the controls.
        sides: how many columns x and y have.
        ranked: rank the models of each resample, for Spearman's correlation.
        n_resamples, seed: of the bootstrap.

    Attributes:
        plain: r_WXY of W resamples, and r_NXY without each model.
        partial: the same given the controls.
    """

    def __init__(
        self, columns_ND: np.ndarray, sides: tuple[int, int], *, ranked: bool, n_resamples: int, seed: int
    ) -> None:
        n_models = len(columns_ND)
        draws = np.random.default_rng((seed, n_models))
        counts_WN = draws.multinomial(n_models, np.full(n_models, 1 / n_models), size=n_resamples)
        drawn, left_out = (
            _correlations(columns_ND, counts, sides, ranked) for counts in (counts_WN, 1 - np.eye(n_models, dtype=int))
        )
        self.plain = (drawn[0], left_out[0])
        self.partial = (drawn[1], left_out[1])


def fisher_interval(
    r_XY: np.ndarray, drawn_WXY: np.ndarray, left_out_NXY: np.ndarray, dof: int
) -> tuple[np.ndarray, np.ndarray]:
    """Compute artanh r ± t · sd(artanh r over resamples), as correlations.

    Args:
        r_XY: the correlations.
        drawn_WXY: those of resamples.
        left_out_NXY: not needed here.
        dof: degrees of freedom of Student's t.

    Returns:
        Both ends; NaN where r or the spread is not known, or |r| is 1.
    """
    with np.errstate(all="ignore"):
        half_XY = stdtrit(max(dof, 1), (1 + _LEVEL) / 2) * _sd(np.arctanh(_inside(drawn_WXY)))
        z_XY = np.arctanh(_inside(r_XY))
    return _known(r_XY, np.tanh(z_XY - half_XY), np.tanh(z_XY + half_XY))


def bca_interval(
    r_XY: np.ndarray, drawn_WXY: np.ndarray, left_out_NXY: np.ndarray, dof: int
) -> tuple[np.ndarray, np.ndarray]:
    """Compute percentiles of resamples, corrected for bias and skewness; for arguments see `fisher_interval`.

    `left_out_NXY` gives the skewness; `dof` is not needed here.
    """
    n_XY = np.count_nonzero(~np.isnan(drawn_WXY), axis=0)
    with np.errstate(all="ignore"):
        below_XY = (drawn_WXY < r_XY).sum(axis=0) + (drawn_WXY == r_XY).sum(axis=0) / 2
        bias_XY = ndtri(np.clip(below_XY / n_XY, 1 / n_XY, 1 - 1 / n_XY))
        pull_NXY = np.nansum(left_out_NXY, axis=0) / (~np.isnan(left_out_NXY)).sum(axis=0) - left_out_NXY
        skew_XY = np.nansum(pull_NXY**3, axis=0) / (6 * np.nansum(pull_NXY**2, axis=0) ** 1.5)
        shifted_2XY = bias_XY + ndtri(np.array([1 - _LEVEL, 1 + _LEVEL]) / 2)[:, None, None]
        share_2XY = ndtr(bias_XY + shifted_2XY / (1 - np.nan_to_num(skew_XY) * shifted_2XY))
        low_XY, high_XY = _quantiles(drawn_WXY, share_2XY, n_XY)
    return _known(r_XY, low_XY, high_XY)


def _correlations(
    columns_ND: np.ndarray, counts_WN: np.ndarray, sides: tuple[int, int], ranked: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Correlate both sides where model n counts counts_WN[w, n] times: plain and given the controls, [W, X, Y] each."""
    n_x, n_xy = sides[0], sum(sides)
    scale_D = columns_ND.std(axis=0)
    values_ND = (columns_ND - columns_ND.mean(axis=0)) / np.where(scale_D > 0, scale_D, 1.0)
    at_once = max(1, _VALUES_AT_ONCE // values_ND.size)
    plain, partial = [], []
    for start in range(0, len(counts_WN), at_once):
        c_WDD = _covariances(values_ND, counts_WN[start : start + at_once], ranked)
        plain.append(_normalised(c_WDD, n_x, n_xy))
        partial.append(_normalised(_given(c_WDD, n_xy), n_x, n_xy) if c_WDD.shape[1] > n_xy else plain[-1])
    return np.concatenate(plain), np.concatenate(partial)


def _covariances(values_ND: np.ndarray, counts_WN: np.ndarray, ranked: bool) -> np.ndarray:
    """Compute the covariances [W, D, D] of values, or of their ranks, that count several times; ranks span 0 to 1."""
    weights_WN = counts_WN / counts_WN.sum(axis=1, keepdims=True)
    if ranked:
        of_columns = [_ranks(column_N, weights_WN) for column_N in values_ND.T]
        values_WND = np.stack(of_columns, axis=2)
    else:
        values_WND = np.broadcast_to(values_ND, (len(weights_WN), *values_ND.shape))
    mean_W1D = weights_WN[:, None, :] @ values_WND
    rooted_WND = (values_WND - mean_W1D) * np.sqrt(weights_WN)[:, :, None]
    c_WDD: np.ndarray = rooted_WND.transpose(0, 2, 1) @ rooted_WND
    return c_WDD


def _ranks(column_N: np.ndarray, weights_WN: np.ndarray) -> np.ndarray:
    """Rank a column where model n has a weight [W, N]: the weight below it and half of that which is equal to it."""
    _, place_N = np.unique(column_N, return_inverse=True)
    order = np.argsort(place_N, kind="stable")
    starts = np.flatnonzero(np.diff(place_N[order], prepend=-1))
    equal_WG = np.add.reduceat(weights_WN[:, order], starts, axis=1)
    middle_WG: np.ndarray = equal_WG.cumsum(axis=1) - equal_WG / 2
    return middle_WG[:, place_N]


def _given(c_WDD: np.ndarray, n_xy: int) -> np.ndarray:
    """Compute the covariances that are left once the controls, the last columns, are taken out by regression."""
    across_WDK, controls_WKK = c_WDD[:, :, n_xy:], c_WDD[:, n_xy:, n_xy:]
    left_WDD: np.ndarray = c_WDD - across_WDK @ np.linalg.pinv(controls_WKK, hermitian=True) @ across_WDK.transpose(
        0, 2, 1
    )
    size_WD = np.diagonal(c_WDD, axis1=1, axis2=2)
    rounding_WD = np.diagonal(left_WDD, axis1=1, axis2=2) <= _EXPLAINED * size_WD
    left_WDD[rounding_WD, :] = 0.0
    left_WDD.transpose(0, 2, 1)[rounding_WD, :] = 0.0
    return left_WDD


def _normalised(c_WDD: np.ndarray, n_x: int, n_xy: int) -> np.ndarray:
    """Turn covariances into the correlations of both sides [W, X, Y]; NaN where a column has no spread."""
    spread_WD = np.sqrt(np.maximum(np.diagonal(c_WDD, axis1=1, axis2=2), 0.0))
    spread_WD = np.where(spread_WD**2 > _NO_SPREAD, spread_WD, np.nan)
    r_WXY: np.ndarray = c_WDD[:, :n_x, n_x:n_xy] / (spread_WD[:, :n_x, None] * spread_WD[:, None, n_x:n_xy])
    return np.clip(r_WXY, -1.0, 1.0, out=r_WXY)


def _quantiles(drawn_WXY: np.ndarray, share_2XY: np.ndarray, n_XY: np.ndarray) -> np.ndarray:
    """Interpolate a quantile of its own for each test; values that are NaN do not count."""
    sorted_WXY = np.sort(drawn_WXY, axis=0)  # NaN last
    at_2XY = np.nan_to_num(share_2XY) * np.maximum(n_XY - 1, 0)
    lower_2XY = np.floor(at_2XY).astype(int)
    upper_2XY = np.minimum(lower_2XY + 1, np.maximum(n_XY - 1, 0))
    low_2XY, high_2XY = (np.take_along_axis(sorted_WXY, at, axis=0) for at in (lower_2XY, upper_2XY))
    quantile_2XY: np.ndarray = low_2XY + (high_2XY - low_2XY) * (at_2XY - lower_2XY)
    return quantile_2XY


def _sd(values_WXY: np.ndarray) -> np.ndarray:
    known_WXY = ~np.isnan(values_WXY)
    n_XY = np.maximum(known_WXY.sum(axis=0), 1)
    mean_XY = np.where(known_WXY, values_WXY, 0.0).sum(axis=0) / n_XY
    deviation_WXY = np.where(known_WXY, values_WXY - mean_XY, 0.0)
    sd_XY: np.ndarray = np.sqrt((deviation_WXY**2).sum(axis=0) / np.maximum(n_XY - 1, 1))
    return sd_XY


def _inside(r: np.ndarray) -> np.ndarray:
    """Keep correlations off ±1, where artanh is infinite."""
    inside: np.ndarray = np.clip(r, -_ONE, _ONE)
    return inside


def _known(r_XY: np.ndarray, low_XY: np.ndarray, high_XY: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give no interval where there is no correlation, or where models lie on one line, as all resamples then do."""
    known_XY = np.abs(r_XY) < _ONE
    return np.where(known_XY, low_XY, np.nan), np.where(known_XY, high_XY, np.nan)
