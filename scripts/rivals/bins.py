"""Bins of equal width in each dimension: the estimator of the information bottleneck's debate.

Shwartz-Ziv and Tishby 2017 (arXiv 1703.00810) cut the output of each tanh unit into 30 equal bins of [−1, 1], and
take plug-in information of the joint pattern of all units' bins. Hidden states have no bounds that are known
beforehand, so a first pass finds each dimension's smallest and largest value. With the thousands of dimensions of an
LLM every position has a pattern of its own, and I = H(X) whatever the states say; so few dimensions are taken: the
first ones, or principal components.

Shape suffixes: N positions, D width of a hidden state, K dimensions that are cut.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import mutual_info_score  # type: ignore[import-untyped]

from rivals.components import Components, principal_components
from rivals.estimator import Estimator, chunks
from softh_probe.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Bins(Estimator):
    """Plug-in information between labels and the joint pattern of bins of some dimensions, in nats.

    Attributes:
        dimensions: number k of dimensions.
        bins: of each dimension, at most 256.
        principal: whether dimensions are principal components (one more pass), or the first ones.
    """

    dimensions: int = 3
    bins: int = 30
    principal: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bins > 256:
            raise InputError(f"bins: expected at most 256, got {self.bins}")

    @property
    def name(self) -> str:
        return "bins of principal components" if self.principal else "bins of first dimensions"

    @property
    def passes(self) -> int:
        return 3 if self.principal else 2

    def _estimate(self, states_ND: np.ndarray, labels_N: np.ndarray) -> float:
        if self.dimensions > states_ND.shape[1]:
            width = states_ND.shape[1]
            raise InputError(f"dimensions: expected at most the states' width {width}, got {self.dimensions}")
        components = principal_components(states_ND, self.dimensions) if self.principal else None
        low_K, high_K = np.full(self.dimensions, np.inf), np.full(self.dimensions, -np.inf)
        for part in chunks(len(states_ND)):
            values_NK = self._values(states_ND[part], components)
            low_K = np.minimum(low_K, values_NK.min(axis=0))
            high_K = np.maximum(high_K, values_NK.max(axis=0))
        bins_NK = np.empty((len(states_ND), self.dimensions), dtype=np.uint8)
        for part in chunks(len(states_ND)):
            bins_NK[part] = bin_numbers(self._values(states_ND[part], components), low_K, high_K, self.bins)
        pattern_N = np.unique(bins_NK, axis=0, return_inverse=True)[1]
        return float(mutual_info_score(labels_N, pattern_N.ravel()))

    def _values(self, states_ND: np.ndarray, components: Components | None) -> np.ndarray:
        if components is not None:
            return components.of(states_ND)
        return states_ND[:, : self.dimensions].astype(np.float64)


def bin_numbers(values_NK: np.ndarray, low_K: np.ndarray, high_K: np.ndarray, bins: int) -> np.ndarray:
    """Number the bins of equal width between low and high that hold the values; a constant dimension has one bin.

    >>> bin_numbers(np.array([[0.0], [0.4], [0.5], [1.0]]), np.zeros(1), np.ones(1), 2).ravel().tolist()
    [0, 0, 1, 1]
    """
    width_K = np.where(high_K > low_K, high_K - low_K, 1.0)
    return np.asarray(np.clip((values_NK - low_K) / width_K * bins, 0, bins - 1), dtype=np.uint8)
