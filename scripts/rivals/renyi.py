"""Matrix-based Rényi information from a Gram matrix.

Giraldo, Rao and Principe 2015 (arXiv 1211.2459) define the entropy of a sample by the eigenvalues of its normalised
Gram matrix A_ij = K_ij / (N √(K_ii K_jj)), of trace 1, and information by the Hadamard product:

    S_α(A) = log(Σ_i λ_i(A)^α) / (1 − α),        S_1(A) = −Σ_i λ_i log λ_i  as α → 1
    I_α(A; B) = S_α(A) + S_α(B) − S_α(A∘B / tr(A∘B))

Skean et al. 2025 ("Layer by Layer", arXiv 2502.02013) take such entropies, at α → 1 and with the linear kernel, of the
layers of LLMs. Labels have the equality kernel. Then S(B) = H(X), as the eigenvalues of B are the labels' frequencies;
and A∘B is block diagonal, so that its eigenvalues are those of one block for each label. It is not Shannon's
information between distributions: it needs no density, and depends on the kernel.

Shape suffixes: N positions, D width of a hidden state, L labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.linalg import eigvalsh
from scipy.spatial.distance import pdist, squareform
from scipy.special import entr

from rivals.estimator import Estimator
from softh_probe.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Renyi(Estimator):
    """Matrix-based Rényi information at α → 1, in nats: N² memory, N³ time.

    Attributes:
        kernel: "linear", the cosine of two states once it is normalised; or "gaussian", exp(−|z − z'|² / 2σ²).
        width: σ of the Gaussian kernel as a multiple of the median distance of two states.
    """

    needs_all: ClassVar[bool] = True
    most_positions: int | None = 2000
    kernel: str = "gaussian"
    width: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel not in ("linear", "gaussian"):
            raise InputError(f"kernel: expected linear or gaussian, got {self.kernel!r}")

    @property
    def name(self) -> str:
        return f"matrix-based Rényi, {self.kernel} kernel"

    @property
    def passes(self) -> int:
        return 1

    def _estimate(self, states_ND: np.ndarray, labels_N: np.ndarray) -> float:
        gram_NN = self._gram(states_ND.astype(np.float64))
        own_N = [np.flatnonzero(labels_N == label) for label in range(labels_N.max() + 1)]
        blocks = np.concatenate([eigvalsh(gram_NN[np.ix_(rows, rows)]) for rows in own_N])
        of_labels = spectral_entropy(np.bincount(labels_N) / len(labels_N))
        return spectral_entropy(eigvalsh(gram_NN)) + of_labels - spectral_entropy(blocks)

    def _gram(self, states_ND: np.ndarray) -> np.ndarray:
        """Compute the normalised Gram matrix [N, N], of trace 1."""
        n = len(states_ND)
        if self.kernel == "linear":
            norm_N1 = np.linalg.norm(states_ND, axis=1, keepdims=True)
            if not norm_N1.all():
                raise InputError("states_ND: expected states that are not zero, for the cosine; leave these out")
            unit_ND = states_ND / norm_N1
            return np.asarray(unit_ND @ unit_ND.T / n)
        squares = pdist(states_ND, "sqeuclidean")
        scale = 2 * self.width**2 * np.median(squares)
        if not scale > 0:
            raise InputError("states_ND: expected states that differ, got the same one for half of all pairs or more")
        return np.asarray((squareform(np.exp(-squares / scale)) + np.eye(n)) / n)


def spectral_entropy(eigenvalues: np.ndarray) -> float:
    """Compute S_1 = −Σ λ log λ, in nats, of eigenvalues that sum to 1; those that rounding made negative count as 0.

    >>> round(spectral_entropy(np.array([0.5, 0.5, 0.0])), 4)
    0.6931
    """
    return float(entr(np.clip(eigenvalues, 0.0, None)).sum())
