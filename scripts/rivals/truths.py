"""Labels and states whose information is known.

- Clusters: von Mises–Fisher clusters of equal weight on the sphere. I(cluster; Z) by numerical integration.
- Independent labels: I = 0.
- A noisy channel: states determine a label, which is then changed, with probability p, to another one of the k:
  I = log k − H_b(p) − p log(k − 1).

Shape suffixes: N positions, D width of a hidden state, K clusters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import entr, logsumexp

from rivals.estimator import chunks
from rivals.quadrature import cluster_information
from softh_probe.errors import InputError

Draw = Callable[[int, int], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Truth:
    """A distribution of states and labels.

    Attributes:
        name: what tables call it.
        information: I(X;Z) in nats.
        draw: (positions, seed) -> states float32 [N, D] and labels int64 [N], drawn independently.
    """

    name: str
    information: float
    draw: Draw


def clusters(k: int, dim: int, concentration: float, cosine: float = 0.0, directions: int = 0) -> Truth:
    """Make k von Mises–Fisher clusters whose labels are the clusters; arguments as in `cluster_information`.

    Args:
        directions: seed of the mean directions, which every draw shares.
    """
    means_KD = mean_directions(k, dim, cosine, directions)

    def draw(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        chance = np.random.default_rng(seed)
        labels_N = chance.integers(k, size=n)
        return von_mises_fisher(means_KD, labels_N, concentration, chance), labels_N

    information = cluster_information(k, dim, concentration, cosine)
    return Truth(name=f"{k} clusters, d = {dim}, κ = {concentration:g}", information=information, draw=draw)


def independent(truth: Truth, k: int) -> Truth:
    """Give the states of a truth k equally frequent labels that are independent of them."""

    def draw(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        labels_N = np.random.default_rng([seed, 1]).integers(k, size=n)
        return truth.draw(n, seed)[0], labels_N

    return Truth(name=f"{k} independent labels", information=0.0, draw=draw)


def noisy_channel(k: int, dim: int, flipped: float, signal: float = 0.5, directions: int = 0) -> Truth:
    """Make states that determine one of k labels, which a channel then changes.

    A state is s·μ_c + √(1−s²)·u: μ_c is one of k orthonormal directions, u uniform on the unit sphere of what is
    orthogonal to all of them. So the state determines c, however small the signal s.

    >>> round(noisy_channel(2, 8, 0.5).information, 12)
    0.0

    Args:
        k: number of labels, at least 2.
        dim: width d of the states, above k.
        flipped: probability p of another label, each of the k − 1 others alike.
        signal: s, above 0 and below 1.
        directions: seed of the directions, which every draw shares.

    Raises:
        InputError: an argument is out of range.
    """
    if k < 2 or dim <= k:
        raise InputError(f"dim: expected two labels or more, and more dimensions than labels ({k}), got {dim}")
    if not 0 <= flipped <= 1:
        raise InputError(f"flipped: expected a probability, got {flipped!r}")
    if not 0 < signal < 1:
        raise InputError(f"signal: expected above 0 and below 1, got {signal!r}")
    means_KD = mean_directions(k, dim, 0.0, directions)

    def draw(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        chance = np.random.default_rng(seed)
        sent_N = chance.integers(k, size=n)
        told_N = changed(sent_N, k, flipped, chance)
        states_ND = np.empty((n, dim), dtype=np.float32)
        for part in chunks(n):
            rest_ND = chance.standard_normal((part.stop - part.start, dim))
            rest_ND -= (rest_ND @ means_KD.T) @ means_KD
            rest_ND *= math.sqrt(1 - signal**2) / np.linalg.norm(rest_ND, axis=1, keepdims=True)
            states_ND[part] = signal * means_KD[sent_N[part]] + rest_ND
        return states_ND, told_N

    information = math.log(k) - entropy_of_errors(flipped, k)
    return Truth(name=f"{k} labels, changed with p = {flipped:g}", information=information, draw=draw)


def changed(labels_N: np.ndarray, k: int, p: float, chance: np.random.Generator) -> np.ndarray:
    """Change each label 0 … k − 1, by itself, with probability p to one of the k − 1 others, each alike."""
    n = len(labels_N)
    shift_N = np.where(chance.random(n) < p, chance.integers(1, k, size=n), 0)
    return np.asarray((labels_N + shift_N) % k, dtype=np.int64)


def entropy_of_errors(wrong: float, k: int) -> float:
    """Compute H_b(e) + e log(k − 1), in nats: what a channel with p = e adds, and Fano's bound at an error of e."""
    return float(entr(wrong) + entr(1 - wrong)) + wrong * math.log(k - 1)


def mean_directions(k: int, dim: int, cosine: float, seed: int) -> np.ndarray:
    """Draw k unit vectors [K, D], float64, every two of which have the given cosine; otherwise uniform.

    Raises:
        InputError: there are too few dimensions for k of them.
    """
    if dim < k + (cosine > 0):
        raise InputError(f"dim: expected at least {k + (cosine > 0)} dimensions for {k} directions, got {dim}")
    n_drawn = k + (cosine > 0)
    gauss_DK = np.random.default_rng(seed).standard_normal((dim, n_drawn))
    orthonormal_DK, triangle = np.linalg.qr(gauss_DK)
    orthonormal_KD = (orthonormal_DK * np.sign(np.diag(triangle))).T  # uniform only with these signs
    shared_D = orthonormal_KD[k] if cosine > 0 else 0.0
    return np.asarray(math.sqrt(1 - cosine) * orthonormal_KD[:k] + math.sqrt(cosine) * shared_D)


def von_mises_fisher(
    means_KD: np.ndarray, labels_N: np.ndarray, concentration: float, chance: np.random.Generator
) -> np.ndarray:
    """Draw a state from the von Mises–Fisher distribution of each label's mean direction: [N, D], float32.

    The cosine with the mean direction is drawn by rejection (Wood 1994), the rest uniformly. scipy's sampler would
    compute a [D, D] rotation for each mean direction.
    """
    n, dim = len(labels_N), means_KD.shape[1]
    t_N1 = _cosines(n, dim, concentration, chance)[:, None]
    states_ND = np.empty((n, dim), dtype=np.float32)
    for part in chunks(n):
        mean_ND = means_KD[labels_N[part]]
        rest_ND = chance.standard_normal(mean_ND.shape)
        rest_ND -= (rest_ND * mean_ND).sum(axis=1, keepdims=True) * mean_ND
        rest_ND *= np.sqrt(1 - t_N1[part] ** 2) / np.linalg.norm(rest_ND, axis=1, keepdims=True)
        states_ND[part] = t_N1[part] * mean_ND + rest_ND
    return states_ND


def _cosines(n: int, dim: int, concentration: float, chance: np.random.Generator) -> np.ndarray:
    """Draw cosines with density ∝ exp(κt) (1 − t²)^((d−3)/2) [N]."""
    free = dim - 1
    b = free / (2 * concentration + math.hypot(2 * concentration, free))
    x = (1 - b) / (1 + b)
    at_x = concentration * x + free * math.log1p(-(x**2))
    found: list[np.ndarray] = []
    while sum(map(len, found)) < n:
        beta_N = chance.beta(free / 2, free / 2, size=n)
        w_N = (1 - (1 + b) * beta_N) / (1 - (1 - b) * beta_N)
        accepted_N = concentration * w_N + free * np.log1p(-x * w_N) - at_x >= np.log(chance.random(n))
        found.append(w_N[accepted_N])
    return np.concatenate(found)[:n]


def sampled_cluster_information(
    means_KD: np.ndarray, concentration: float, n: int, seed: int = 0
) -> tuple[float, float]:
    """Estimate I(cluster; Z) of any mean directions from the exact posterior of states that are drawn.

    Returns:
        The mean over n states of log k + log P(c|z), in nats, and its standard error.
    """
    chance = np.random.default_rng(seed)
    labels_N = chance.integers(len(means_KD), size=n)
    logits_NK = concentration * von_mises_fisher(means_KD, labels_N, concentration, chance).astype(float) @ means_KD.T
    log_p_N = logits_NK[np.arange(n), labels_N] - logsumexp(logits_NK, axis=1)
    return math.log(len(means_KD)) + float(log_p_N.mean()), float(log_p_N.std(ddof=1) / math.sqrt(n))
