"""Principal components of hidden states, from one pass over them.

Shape suffixes: N positions, D width of a hidden state, K components.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh

from rivals.estimator import chunks
from softh_probe.errors import InputError


@dataclass(frozen=True)
class Components:
    """The directions of most variance, and the states' mean.

    Attributes:
        mean_D: float64.
        directions_DK: orthonormal columns, in decreasing order of variance, float64.
    """

    mean_D: np.ndarray
    directions_DK: np.ndarray

    def of(self, states_ND: np.ndarray) -> np.ndarray:
        """Project states: [N, K], float64."""
        return np.asarray((states_ND - self.mean_D) @ self.directions_DK)


def principal_components(states_ND: np.ndarray, n_components: int) -> Components:
    """Find the principal components from the covariance of the states, summed in float64, in one pass.

    >>> states = np.array([[0, 0, 0], [2, 0, 0], [4, 0, 0]], dtype=np.float32)
    >>> abs(principal_components(states, 1).of(states)).ravel().tolist()
    [2.0, 0.0, 2.0]

    Raises:
        InputError: the states have fewer dimensions.
    """
    n, dim = states_ND.shape
    if n_components > dim:
        raise InputError(f"dimensions: expected at most the states' width {dim}, got {n_components}")
    shift_D = states_ND[0].astype(np.float64)  # a large common mean would cancel badly
    sum_D, squares_DD = np.zeros(dim), np.zeros((dim, dim))
    for part in chunks(n):
        centred_ND = states_ND[part] - shift_D
        sum_D += centred_ND.sum(axis=0)
        squares_DD += centred_ND.T @ centred_ND
    mean_D = sum_D / n
    covariance_DD = squares_DD / n - np.outer(mean_D, mean_D)
    _, directions_DK = eigh(covariance_DD, subset_by_index=(dim - n_components, dim - 1))
    return Components(mean_D + shift_D, directions_DK[:, ::-1])
