"""Nearest neighbours: KSG between a discrete and a continuous variable.

Ross 2014 (PLoS ONE 9(2): e87357) takes the distance from each state to its k-th nearest neighbour with the same label,
and counts the m states of any label within it (the neighbour included, the state itself not):

    I = ψ(N) + <ψ(k)> − <ψ(N_x)> − <ψ(m)>        ψ digamma; means over the N positions; N_x positions of the label

Labels of one position have no neighbour and are left out; of labels of at most k positions, k is all others. This
is the formula of scikit-learn's `mutual_info_classif`, which however takes the dimensions of the states one by one.
Here distances are Euclidean distances of several dimensions: principal components, since in high dimension all
distances are alike.

Shape suffixes: N positions, D width of a hidden state, K dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.special import digamma
from sklearn.neighbors import KDTree, NearestNeighbors  # type: ignore[import-untyped]

from rivals.components import principal_components
from rivals.estimator import Estimator
from softh_probe.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Ksg(Estimator):
    """Ross's nearest-neighbour information of the states' principal components, in nats; it may be below 0.

    Attributes:
        dimensions: number of principal components.
        neighbours: k.
    """

    needs_all: ClassVar[bool] = True
    most_positions: int | None = 10_000
    dimensions: int = 8
    neighbours: int = 3

    @property
    def name(self) -> str:
        return "nearest neighbours (KSG, Ross)"

    @property
    def passes(self) -> int:
        return 2

    def _estimate(self, states_ND: np.ndarray, labels_N: np.ndarray) -> float:
        values_NK = principal_components(states_ND, self.dimensions).of(states_ND)
        return ross_information(values_NK, labels_N, self.neighbours)


def ross_information(values_NK: np.ndarray, labels_N: np.ndarray, neighbours: int) -> float:
    """Compute Ross's estimate of I(X;Z), in nats, from all dimensions jointly.

    >>> values = np.concatenate([np.arange(10.0), 100 + np.arange(10.0)])[:, None]
    >>> labels = np.repeat([0, 1], 10)
    >>> round(ross_information(values, labels, 3), 4)  # about log 2 and positive: the labels are apart
    0.7188

    Raises:
        InputError: no label occurs twice.
    """
    _, label_N, count_L = np.unique(labels_N, return_inverse=True, return_counts=True)
    repeated_N = count_L[label_N] > 1
    values_NK, labels_N = values_NK[repeated_N], labels_N[repeated_N]
    if not len(labels_N):
        raise InputError("labels_N: expected a label that occurs twice, got none")
    radius_N, k_N, n_N = (np.empty(len(labels_N)) for _ in range(3))
    for label in np.unique(labels_N):
        own_N = np.flatnonzero(labels_N == label)
        k = min(neighbours, len(own_N) - 1)
        distances = NearestNeighbors(n_neighbors=k, algorithm="kd_tree").fit(values_NK[own_N]).kneighbors()[0]
        # Just below the distance of the k-th one: it is left out of the count, and the state itself is in instead.
        radius_N[own_N], k_N[own_N], n_N[own_N] = np.nextafter(distances[:, -1], 0), k, len(own_N)
    m_N = KDTree(values_NK).query_radius(values_NK, radius_N, count_only=True)
    return float(digamma(len(labels_N)) + np.mean(digamma(k_N) - digamma(n_N) - digamma(m_N)))
