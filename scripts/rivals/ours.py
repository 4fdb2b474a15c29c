"""Soft entropy (Conklin 2025, arXiv 2505.23960) by softh_probe: raw, and corrected for small counts.

Both come from the same sums of one pass, as a probe computes them (`accumulators/statistics.py`), for labels that all
have a row. They are means over anchor sets, as in results.

Shape suffixes: N positions, D width of a hidden state, R rows of the sample, S anchor sets, M anchors, L labels,
C distinct counts of labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rivals.estimator import Estimator, chunks
from softh_probe.errors import InputError
from softh_probe.estimators.anchors import Anchors
from softh_probe.estimators.bias_correction import bias_curves, corrected_information
from softh_probe.estimators.soft_entropy import anchor_logits, assignments, entropy

#: Positions of the sample from which the correction draws its bias curves.
SAMPLE = 2048


@dataclass(frozen=True)
class SoftSums:
    """Sums of soft assignments q over one pass.

    Attributes:
        mass_LSM: of each label, float64.
        own_LS: summed entropies of q itself, of each label, float64, in nats.
        count_L: positions of each label.
        sample_RSM: soft assignments of positions drawn uniformly.
    """

    mass_LSM: Tensor
    own_LS: Tensor
    count_L: Tensor
    sample_RSM: Tensor


def soft_sums(states_ND: np.ndarray, labels_N: np.ndarray, anchors: Anchors, seed: int) -> SoftSums:
    """Sum soft assignments over labels 0 … L − 1."""
    n_sets, n_anchors, _ = anchors.points_SMD.shape
    n, n_labels = len(labels_N), int(labels_N.max()) + 1
    mass_LSM = torch.zeros(n_labels, n_sets, n_anchors, dtype=torch.float64)
    own_LS = torch.zeros(n_labels, n_sets, dtype=torch.float64)
    sampled_N = np.zeros(n, dtype=bool)
    sampled_N[np.random.default_rng(seed).choice(n, min(n, SAMPLE), replace=False)] = True
    sample = []
    for part in chunks(n):
        logits_NSM, _ = anchor_logits(torch.from_numpy(states_ND[part]), anchors.points_SMD, anchors.temperature)
        q_NSM, entropy_NS = assignments(logits_NSM)
        x_N = torch.from_numpy(labels_N[part])
        mass_LSM.index_add_(0, x_N, q_NSM.double())
        own_LS.index_add_(0, x_N, entropy_NS.double())
        sample.append(q_NSM[torch.from_numpy(sampled_N[part])])
    return SoftSums(mass_LSM, own_LS, torch.from_numpy(np.bincount(labels_N)), torch.cat(sample))


@dataclass(frozen=True, kw_only=True)
class SoftEntropy(Estimator):
    """Soft mutual information, in nats.

    Attributes:
        corrected: whether it is corrected for small counts; then labels that occur once are left out.
        anchors: number of anchors of a set.
        anchor_sets: set s is drawn with seed + s.
    """

    corrected: bool = False
    anchors: int = 100
    anchor_sets: int = 8

    @property
    def name(self) -> str:
        return "soft entropy, corrected" if self.corrected else "soft entropy"

    @property
    def passes(self) -> int:
        return 1

    def _estimate(self, states_ND: np.ndarray, labels_N: np.ndarray) -> float:
        width = states_ND.shape[1]
        anchors = Anchors.sample(n_anchors=self.anchors, dim=width, n_sets=self.anchor_sets, seed=self.seed)
        sums = soft_sums(states_ND, labels_N, anchors, self.seed)
        information_S = _corrected(sums) if self.corrected else _raw(sums)
        return information_S.mean().item()


def _raw(sums: SoftSums) -> Tensor:
    """Compute plug-in I(X;Z) of each anchor set [S]."""
    share_L1 = (sums.count_L / sums.count_L.sum()).unsqueeze(1)
    return entropy(sums.mass_LSM.sum(dim=0)) - (share_L1 * entropy(sums.mass_LSM)).sum(dim=0)


def _corrected(sums: SoftSums) -> Tensor:
    """Compute corrected I(X;Z) of each anchor set [S]."""
    repeated_L = sums.count_L >= 2
    if not repeated_L.any():
        raise InputError("labels_N: expected a label that occurs twice, got none; the correction needs one")
    n = int(sums.count_L.sum())
    counts_C, of_count_L, labels_C = sums.count_L.unique(return_inverse=True, return_counts=True)
    weighted_LS = sums.count_L.unsqueeze(1) * entropy(sums.mass_LSM)
    by_count_CS = weighted_LS.new_zeros(len(counts_C), weighted_LS.shape[1])
    return corrected_information(
        bias_curves(sums.sample_RSM, sums.mass_LSM.sum(dim=0), sums.own_LS.sum(dim=0) / n, n),
        counts_C,
        labels_C,
        by_count_CS.index_add(0, of_count_L, weighted_LS),
        by_count_CS.index_add(0, of_count_L, sums.own_LS),
        entropy(sums.mass_LSM[repeated_L].sum(dim=0)),
    )
