"""I(cluster; Z) of k von Mises–Fisher clusters, by numerical integration that is exact for any k and d.

Cluster c has the density ∝ exp(κ μ_c·z) on the unit sphere of R^d; clusters are equally frequent, and every two mean
directions have the cosine ρ ≥ 0. With orthonormal e_0 … e_k, μ_c = √ρ e_0 + √(1−ρ) e_c and t_c = e_c·z, the posterior
is softmax_c(a t_c) with a = κ√(1−ρ), for t_0 cancels. By symmetry, for a state z of cluster 1,

    I = log k + E a t_1 − E log S,        S = Σ_c exp(a t_c)
    E log S = ∫ (exp(−e^v) − E exp(−e^v S)) dv        over all v (Frullani)

Of z, (t_0, …, t_k) has the density ∝ exp(κ μ_1·z) (1 − |t|²)^(ν−1), ν = (d−k−1)/2. The power is an inverse Laplace
transform, which turns the ball into Gaussians that are independent given λ:

    (1 − |t|²)^(ν−1) / Γ(ν) = 1/(2πi) ∫ e^(λ(1 − |t|²)) λ^(−ν) dλ        along Re λ = constant > 0

so E exp(−s S) is an integral over λ of one integral in t_1 times the (k−1)-th power of one in t_2. All three sums are
trapezoidal, where they converge exponentially. The line of λ goes through the saddle point.

Shape suffixes: Y points of λ, T points of t, V points of v.
"""

from __future__ import annotations

import math

import numpy as np

from rivals.estimator import chunks
from softh_probe.errors import InputError

#: What is left out of the integral over λ, relative to its integrand's maximum.
_LEFT_OUT = 1e-15
#: Standard deviations of t that are integrated over, on both sides.
_REACH = 9.0
#: Step of v, and of a·t: both resolve exp(−e^v), which is analytic for |Im v| < π/2, to e^(−π²/step).
_STEP = 0.25
_FEWEST_FREE = 16
_MOST_APART = 20.0


def cluster_information(k: int, dim: int, concentration: float, cosine: float = 0.0) -> float:
    """Compute I(cluster; Z) in nats, to about 1e-9.

    >>> round(cluster_information(10, 64, 30.0), 6) < math.log(10)
    True

    Args:
        k: number of clusters, at least 2.
        dim: width d of the states, at least k + 17: with fewer the integral over λ converges too slowly.
        concentration: κ, positive; κ√(1−ρ) at most 20 √d, where the clusters are apart, and I = log k, long before.
        cosine: ρ between every two mean directions, at least 0 and below 1.

    Raises:
        InputError: an argument is out of range.
    """
    if k < 2 or dim - k - 1 < _FEWEST_FREE:
        raise InputError(
            f"dim: expected two clusters or more, and at least {k + 1 + _FEWEST_FREE} dimensions, got {dim}"
        )
    if not 0 <= cosine < 1:
        raise InputError(f"cosine: expected at least 0 and below 1, got {cosine!r}")
    most = _MOST_APART * math.sqrt(dim / (1 - cosine))
    if not 0 < concentration <= most:
        raise InputError(f"concentration: expected above 0, at most {most:g}, got {concentration!r}")
    a = concentration * math.sqrt(1 - cosine)
    lambda_Y, weight_Y = _line(k, dim, concentration)
    saddle = lambda_Y[0].real
    centre, reach = a / (2 * saddle), _REACH / math.sqrt(2 * saddle)
    offset_T = np.arange(-reach, reach, min(reach / 200, _STEP / a))
    first, other = _Gaussian(lambda_Y, a, centre + offset_T), _Gaussian(lambda_Y, 0.0, offset_T)
    norm = weight_Y.sum().real
    mean_t = (weight_Y @ first.mean_of(first.t_T[:, None])).real.item() / norm
    # log S is between a·t_1 and log k + a·max t; beyond these, both terms of the integrand are 1, or 0.
    v_V = np.arange(-a * (centre + reach) - math.log(k) - 40, a * (reach - centre) + 5, _STEP)
    laplace_V = np.empty(len(v_V))
    for part in chunks(len(v_V), 256):
        fronts = [np.exp(-np.exp(np.minimum(v_V[part] + a * one.t_T[:, None], 700))) for one in (first, other)]
        of_s_YV = first.mean_of(fronts[0]) * other.mean_of(fronts[1]) ** (k - 1)
        laplace_V[part] = (weight_Y @ of_s_YV).real / norm
    # E log S relative to a·centre, so that nothing far from the fronts is integrated.
    relative = _STEP * float((np.exp(-np.exp(np.minimum(v_V + a * centre, 700))) - laplace_V).sum())
    return float(math.log(k) + a * mean_t - a * centre - relative)


class _Gaussian:
    """Means under the complex Gaussian density ∝ exp(at − λt²) by the trapezoidal rule, for every λ of the line."""

    def __init__(self, lambda_Y: np.ndarray, a: float, t_T: np.ndarray):
        self.t_T = t_T
        lambda_Y1 = lambda_Y[:, None]
        density_YT = np.exp(a * t_T - lambda_Y1 * t_T**2 - a**2 / (4 * lambda_Y1)) * np.sqrt(lambda_Y1 / math.pi)
        self._weight_YT = density_YT * (t_T[1] - t_T[0])

    def mean_of(self, value_TV: np.ndarray) -> np.ndarray:
        """Compute means of real values [Y, V], complex."""
        return np.asarray(self._weight_YT.real @ value_TV + 1j * (self._weight_YT.imag @ value_TV))


def _line(k: int, dim: int, concentration: float) -> tuple[np.ndarray, np.ndarray]:
    """Lay points λ on the vertical line through the saddle of e^λ λ^(−d/2) e^(κ²/4λ), with that as their weights.

    Only the upper half: the lower one has the conjugate values, so that real parts suffice. The first is the saddle.
    """
    saddle = (dim / 2 + math.hypot(dim / 2, concentration)) / 2
    # What is integrated decays at least as |λ/saddle|^(−ν).
    nu = (dim - k - 1) / 2
    y_Y = np.arange(0.0, math.sqrt(_LEFT_OUT ** (-2 / nu) - 1), 0.04 / math.sqrt(nu)) * saddle
    lambda_Y = saddle + 1j * y_Y

    def exponent(at: np.ndarray) -> np.ndarray:
        return np.asarray(at - dim / 2 * np.log(at) + concentration**2 / (4 * at))

    weight_Y = np.exp(exponent(lambda_Y) - exponent(lambda_Y[:1]))
    weight_Y[0] /= 2
    return lambda_Y, weight_Y
