"""Calibration: the temperature ε of the soft assignment.

ε makes one soft assignment as sharp as m anchors can resolve. It is the inverse of the concentration κ at which a von
Mises-Fisher density on the unit sphere S^(d−1) has a divergence of log m nats from the uniform density (Conklin 2025,
arXiv 2505.23960):

    KL(vMF(κ) ‖ Uniform) = κ·(log Z)'(κ) − log Z(κ) = log m,    Z(κ) = ₀F₁(; d/2; κ²/4)

Z is the ratio of the two densities' normalisers. It is evaluated without Bessel functions, which under- and overflow
for large orders: as its power series, whose terms are all positive, or, where κ is far larger than the order, as
Hankel's expansion for large arguments (DLMF 10.40.1).

`amos` takes a lower bound of the divergence in its place, as `soft-entropy` 0.1.5 does, whose numbers it continues. It
follows from Amos' bounds of ratios of Bessel functions (Amos 1974, Math. Comp. 28, 239):

    G(d/2, d/2, κ)·κ − Φ⁺(κ) = log m,    G(α, β, κ) = κ / (α + sqrt(κ² + β²))
    Φ⁺(κ) = r − ν + ν log(2ν / (ν + r)),    ν = d/2 − 1,  r = sqrt(κ² + ν²)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from numbers import Real

import numpy as np
from scipy.optimize import brentq
from scipy.special import logsumexp

from softh_probe.errors import InputError, short_repr

METHODS = ("exact", "leading_order", "amos")
#: Temperatures with which float32 can hold the logits. Close to either bound, an assignment is one-hot or uniform.
_LEAST, _MOST = 1e-12, 1e12


@lru_cache(maxsize=1024)
def temperature(n_anchors: int, dim: int, method: str = "exact") -> float:
    """Compute the temperature ε of the softmax over cosine similarities (dimensionless).

    >>> round(temperature(100, 576), 12)
    0.013566183548
    >>> round(temperature(100, 576, method="leading_order"), 12)
    0.01372937977
    >>> round(temperature(100, 576, method="amos"), 12)
    0.013541419003

    Args:
        n_anchors: number of anchors m, at least 2.
        dim: width d of the hidden states, at least 2.
        method: "exact" solves KL(vMF(1/ε) ‖ Uniform) = log m to 1e-9 relative for d and m up to 65,536;
            "leading_order" is its limit for large d, 1/sqrt(2·d·log m); "amos" is the root of a lower bound of the
            divergence, the temperature of `soft-entropy` 0.1.5.

    Raises:
        InputError: n_anchors or dim is below 2, or the method is unknown; or it is "amos" and dim is 2.
    """
    if n_anchors < 2:
        raise InputError(f"n_anchors: expected at least 2, got {n_anchors}; the published value is 100")
    if dim < 2:
        raise InputError(f"dim: expected hidden states of width 2 or more, got {dim}")
    leading_order = 1.0 / math.sqrt(2.0 * dim * math.log(n_anchors))
    if method == "leading_order":
        return leading_order
    if method not in METHODS:
        raise InputError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    if method == "amos" and dim == 2:
        raise InputError("calibration: amos has no bound for hidden states of width 2; take exact")
    divergence = vmf_divergence if method == "exact" else _amos_bound
    return 1.0 / _solve_increasing(lambda kappa: divergence(kappa, dim), math.log(n_anchors), 1.0 / leading_order)


def resolve_temperature(calibration: str | float, n_anchors: int, dim: int) -> float:
    """Compute the temperature of a calibration as users give it.

    >>> resolve_temperature(0.02, 100, 576)
    0.02
    >>> resolve_temperature("exact", 100, 576) == temperature(100, 576)
    True

    Args:
        calibration: a method of `temperature` ("exact", "leading_order" or "amos"), or the temperature ε itself.
        n_anchors: number of anchors m, at least 2.
        dim: width d of the hidden states, at least 2.

    Raises:
        InputError: the method is unknown, or the number is not a usable temperature.
    """
    if isinstance(calibration, str):
        if calibration not in METHODS:
            raise InputError(
                f"calibration: expected {', '.join(METHODS)}, or the temperature as a number, got {calibration!r}"
            )
        return temperature(n_anchors, dim, method=calibration)
    if not (isinstance(calibration, Real) and not isinstance(calibration, bool) and _LEAST <= calibration <= _MOST):
        raise InputError(
            f"calibration: a temperature must be a positive finite number, {_LEAST:g} to {_MOST:g}, got "
            f"{short_repr(calibration)}"
        )
    return float(calibration)


def vmf_divergence(kappa: float, dim: int) -> float:
    """Compute KL(vMF(κ) ‖ Uniform) on S^(d−1), in nats; it increases with κ, from 0 at κ = 0.

    On S², Z(κ) = sinh(κ)/κ, and the divergence is κ·coth(κ) − 1 − log Z(κ):

    >>> vmf_divergence(1e-9, 3) < 1e-15
    True
    >>> round(vmf_divergence(2.0, 3) - (2.0 / math.tanh(2.0) - 1.0 - math.log(math.sinh(2.0) / 2.0)), 9)
    0.0

    Args:
        kappa: concentration κ of the von Mises-Fisher density, positive.
        dim: d, at least 2.
    """
    order = dim / 2.0 - 1.0
    if kappa > 200.0 and kappa > order * order:
        return _divergence_by_hankel(kappa, order)
    return _divergence_by_series(kappa, dim)


def _divergence_by_series(kappa: float, dim: int) -> float:
    """Compute the divergence from the power series of Z.

    Z = Σ_k t_k with t_k = (κ²/4)^k / (k!·(d/2)_k), so that κ·(log Z)' = 2·E[k] under the weights t_k.
    """
    # Past the largest term, near k(k + d/2) = κ²/4, every ratio t_k/t_(k−1) falls; at k > κ it is below 1/4.
    k = np.arange(1.0, 200.0 + kappa)
    log_terms = np.concatenate(([0.0], np.cumsum(np.log(kappa * kappa / 4.0 / (k * (k - 1.0 + dim / 2.0))))))
    log_z = logsumexp(log_terms)
    mean_k = float(np.arange(log_terms.size) @ np.exp(log_terms - log_z))
    return 2.0 * mean_k - float(log_z)


def _divergence_by_hankel(kappa: float, order: float) -> float:
    """Compute the divergence from Hankel's expansion of Z (DLMF 10.40.1), for κ far larger than the order ν.

    log Z = κ − (ν+½) log κ + c + log S with S = Σ (−1)^k a_k(ν)/κ^k; the term κ cancels from the divergence.
    """
    s, kappa_ds, term = 1.0, 0.0, 1.0
    for k in range(1, 60):
        ratio = -(4.0 * order * order - (2.0 * k - 1.0) ** 2) / (8.0 * k * kappa)
        if abs(ratio) >= 1.0 or abs(term) < 1e-18:
            break
        term *= ratio
        s += term
        kappa_ds -= k * term
    constant = math.lgamma(order + 1.0) + order * math.log(2.0) - 0.5 * math.log(2.0 * math.pi)
    return (order + 0.5) * (math.log(kappa) - 1.0) - constant - math.log(s) + kappa_ds / s


def _amos_bound(kappa: float, dim: int) -> float:
    """Compute Amos' lower bound of the divergence, in nats, for d of 3 or more; it increases with κ.

    G·κ is R − d/2, with R = sqrt(κ² + d²/4); R − r = (d − 1)/(R + r) has none of the cancellation of large κ.
    """
    half, order = dim / 2.0, dim / 2.0 - 1.0
    outer, root = math.hypot(kappa, half), math.hypot(kappa, order)
    excess = kappa * kappa / (root + order)  # r − ν
    return (dim - 1.0) / (outer + root) - 1.0 + order * math.log1p(excess / (2.0 * order))


def _solve_increasing(function: Callable[[float], float], target: float, start: float) -> float:
    """Find the x > 0 at which an increasing function reaches target, in a bracket that is widened from start."""
    low = high = start
    while function(low) > target:
        low /= 2.0
    while function(high) < target:
        high *= 2.0
    if low == high:
        return low
    root = brentq(
        lambda log_x: function(math.exp(log_x)) - target,
        math.log(low),
        math.log(high),
        xtol=1e-15,
        rtol=1e-14,
    )
    return math.exp(root)
