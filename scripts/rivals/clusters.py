"""Hard clusters of hidden states: k-means, or the nearest of random anchors.

Voita, Sennrich and Titov 2019 (arXiv 1909.01380) cluster hidden states by mini-batch k-means (Sculley 2010, here
scikit-learn's), and take plug-in information between clusters and token identities.

The nearest random anchor is what soft entropy (Conklin 2025, arXiv 2505.23960) tends to as its temperature tends to 0.

Shape suffixes: N positions, D width of a hidden state, M anchors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.cluster import MiniBatchKMeans  # type: ignore[import-untyped]
from sklearn.metrics import mutual_info_score  # type: ignore[import-untyped]

from rivals.estimator import Estimator, chunks
from softh_probe import sample_anchors
from softh_probe.errors import InputError


@dataclass(frozen=True, kw_only=True)
class KMeans(Estimator):
    """Plug-in information between labels and the clusters of mini-batch k-means, in nats.

    Attributes:
        clusters: their number, at most `batch`.
        batch: positions of a step.
        epochs: passes that fit the centres; one more assigns the positions.
    """

    clusters: int = 100
    batch: int = 4096
    epochs: int = 3

    @property
    def name(self) -> str:
        return "mini-batch k-means"

    @property
    def passes(self) -> int:
        return self.epochs + 1

    def _estimate(self, states_ND: np.ndarray, labels_N: np.ndarray) -> float:
        n = len(states_ND)
        if self.clusters > min(n, self.batch):  # the first batch places the centres
            most = min(n, self.batch)
            raise InputError(f"clusters: expected at most {most}, a batch's positions, got {self.clusters}")
        chance = np.random.default_rng(self.seed)
        means = MiniBatchKMeans(self.clusters, random_state=self.seed, n_init=1)
        for _ in range(self.epochs):
            order_N = chance.permutation(n)
            for part in chunks(n, self.batch):
                means.partial_fit(states_ND[order_N[part]])
        cluster_N = np.concatenate([means.predict(states_ND[part]) for part in chunks(n)])
        return float(mutual_info_score(labels_N, cluster_N))


@dataclass(frozen=True, kw_only=True)
class NearestAnchor(Estimator):
    """Plug-in information between labels and the anchor of largest cosine, in nats: a mean over anchor sets.

    Attributes:
        anchors: number of anchors of a set.
        anchor_sets: set s is drawn with seed + s, as softh_probe draws it.
    """

    anchors: int = 100
    anchor_sets: int = 8

    @property
    def name(self) -> str:
        return "nearest random anchor"

    @property
    def passes(self) -> int:
        return 1

    def _estimate(self, states_ND: np.ndarray, labels_N: np.ndarray) -> float:
        width = states_ND.shape[1]
        sets = [sample_anchors(self.anchors, width, self.seed + s).numpy() for s in range(self.anchor_sets)]
        nearest_SN = np.empty((self.anchor_sets, len(states_ND)), dtype=np.int64)
        for part in chunks(len(states_ND)):
            for s, anchors_MD in enumerate(sets):
                nearest_SN[s, part] = (states_ND[part] @ anchors_MD.T).argmax(axis=1)
        return float(np.mean([mutual_info_score(labels_N, nearest_N) for nearest_N in nearest_SN]))
