"""p-values of differences, and Holm's correction for their number.

Source: Holm, S. (1979). A simple sequentially rejective multiple test procedure. Scandinavian Journal of Statistics 6.
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr, stdtr

#: Differences of whose corrected p-value is below this are called beyond noise.
ALPHA = 0.05
#: Values are sums of float32: differences of this size, in nats or of ratios, may come from rounding.
ROUNDING = 1e-7


def p_values(difference_R: np.ndarray, se_R: np.ndarray, n_units: float | np.ndarray = np.inf) -> np.ndarray:
    """Compute two-sided p-values of differences around 0, by Student's t with a degree of freedom less than units.

    The standard errors are those of the delta method, which lack the factor sqrt(n / (n − 1)) of a sample of n units.

    >>> p_values(np.array([0.0, 1.96, -1.96]), np.array([0.0, 1.0, 1.0])).round(3).tolist()
    [1.0, 0.05, 0.05]
    >>> p_values(np.array([1.96]), np.array([1.0]), n_units=3).round(3).tolist()
    [0.251]

    Args:
        difference_R: in nats, or of ratios.
        se_R: their standard errors; NaN where they are not known, and then the p-value is NaN.
        n_units: units that the standard errors come from. One unit says nothing of noise: the p-value is NaN.
    """
    n_R = np.broadcast_to(np.where(np.asarray(n_units) < 2, np.nan, n_units), difference_R.shape)
    t_R = np.abs(difference_R) / np.hypot(se_R / np.sqrt(1 - 1 / n_R), ROUNDING)
    p_R: np.ndarray = 2 * np.where(np.isinf(n_R), ndtr(-t_R), stdtr(n_R - 1, -t_R))
    return p_R


def holm(p_R: np.ndarray) -> np.ndarray:
    """Correct p-values for their number: below α, the chance of any false one among them is at most α.

    >>> holm(np.array([0.01, 0.04, np.nan, 0.03])).round(3).tolist()
    [0.03, 0.06, nan, 0.06]

    Args:
        p_R: p-values in any order; those that are NaN stand for no test.
    """
    corrected_R = np.full(len(p_R), np.nan)
    order = np.argsort(p_R, kind="stable")[: np.count_nonzero(~np.isnan(p_R))]
    times = np.arange(len(order), 0, -1)
    corrected_R[order] = np.minimum(np.maximum.accumulate(p_R[order] * times), 1.0)
    return corrected_R
