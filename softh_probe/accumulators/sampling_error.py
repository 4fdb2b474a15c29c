"""Standard errors by the sampling of labels.

Labels are followed independently, each with a known probability π (Poisson sampling). Let u be what a label adds to an
estimate, linearised, and ū the mean of u per position over its stratum. Then the variance of the estimate is estimated
by Σ (1 − π) w² (u − n·ū)² over the followed labels, with their weights w (Särndal, Swensson and Wretman 1992, sections
3.5 and 7.3). Values are means over anchor sets, and so are the u.

Shape suffixes: I followed labels or pools of them, X label sets, C counts, S anchor sets, M anchors, L live rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from softh_probe.accumulators.label_pools import chunks
from softh_probe.accumulators.label_tables import mass, position_entropy, squares, weighted_entropy
from softh_probe.accumulators.label_weights import BucketWeights, LiveWeights
from softh_probe.accumulators.row_labels import RowLabels
from softh_probe.estimators.bias_correction import (
    BiasCurves,
    CorrectedConditional,
    bias_excess,
    bias_slope,
    chance_information,
)
from softh_probe.estimators.soft_entropy import entropy

#: Labels that are followed with π < 1 below which no standard error is known; that of corrected information needs as
#: many that occur several times.
LEAST_LABELS = 5


@dataclass(frozen=True, kw_only=True)
class SampledLabels:
    """Labels of one set that are followed with π < 1; each entry is one label, or pools several of one count and π.

    Attributes:
        counts_I, followed_I: the labels' count, and how many there are.
        weights_I, probability_I: w and π of each.
        strata_I: the stratum of each.
        scale_I: the label's positions over those in its sums; more than 1 where it entered late.
        sums_I2: sums of n·H(p̂_x) and of the positions' own assignment entropies, means over anchor sets, in nats.
        squares_I3: sums of the square of the first, their product, and the square of the second.
        cross_I: mean over anchor sets of Σ_j s_j log p_j, of each label's mass s, with p the distribution of the
            covered positions where that is estimated from the labels too; else 0.
        entropy_bias_S: by how much the entropy of the covered positions is too low on average, for the same reason: to
            second order half the sum of p's relative variances (Miller 1955).
        counts_known: whether the counts of all labels of the set are known, also of those that are not followed.
    """

    counts_I: Tensor
    followed_I: Tensor
    weights_I: Tensor
    probability_I: Tensor
    strata_I: Tensor
    scale_I: Tensor
    sums_I2: Tensor
    squares_I3: Tensor
    cross_I: Tensor
    entropy_bias_S: Tensor
    counts_known: bool

    def error(self, first_I: Tensor, second_I: Tensor, constant_I: Tensor) -> float:
        """Compute the standard error of an estimate to which a label adds first·n·H(p̂_x) + second·own + constant."""
        if self.followed_I.sum() < LEAST_LABELS:
            return math.nan
        _, part_I = self.strata_I.unique(return_inverse=True)
        n_parts = int(part_I.max()) + 1

        def by_part(values_I: Tensor) -> Tensor:
            return values_I.new_zeros(n_parts).index_add_(0, part_I, values_I)[part_I]

        linear_I = first_I * self.sums_I2[:, 0] + second_I * self.sums_I2[:, 1]
        positions_I = self.weights_I * self.counts_I * self.followed_I
        per_position_I = by_part(self.weights_I * (linear_I + self.followed_I * constant_I)) / by_part(positions_I)
        rest_I = constant_I - self.counts_I * per_position_I
        coefficients_I3 = torch.stack([first_I.square(), 2 * first_I * second_I, second_I.square()], dim=1)
        quadratic_I = (coefficients_I3 * self.squares_I3).sum(dim=1)
        deviations_I = quadratic_I + 2 * rest_I * linear_I + self.followed_I * rest_I.square()
        size_I = by_part(self.followed_I)
        unbiased_I = size_I / (size_I - 1)  # a stratum of one label tells of no deviation
        variance = ((1 - self.probability_I) * self.weights_I.square() * deviations_I * unbiased_I).sum()
        return math.sqrt(max(float(variance), 0.0)) if variance.isfinite() else math.nan


def labels_of_buckets(rows: RowLabels, weights: BucketWeights, retired: Tensor, x: int, n_sets: int) -> SampledLabels:
    """Collect the sampled labels of one set of a plan, which lie in its buckets."""
    chosen = (rows.bucket_sets == x) & (rows.bucket_probability < 1) & (rows.bucket_followed > 0)
    pools = retired[torch.from_numpy(chosen)]
    sums_I2 = torch.stack([pools[:, :n_sets].mean(dim=1), pools[:, n_sets : 2 * n_sets].mean(dim=1)], dim=1)
    return SampledLabels(
        counts_I=torch.from_numpy(rows.bucket_counts[chosen]).double(),
        followed_I=torch.from_numpy(rows.bucket_followed[chosen]).double(),
        weights_I=torch.from_numpy(weights.weights_I[chosen]),
        probability_I=torch.from_numpy(rows.bucket_probability[chosen]),
        strata_I=torch.from_numpy(weights.strata_I[chosen]),
        scale_I=torch.ones(int(chosen.sum()), dtype=torch.float64),
        sums_I2=sums_I2,
        squares_I3=pools[:, 2 * n_sets :],
        cross_I=torch.zeros(int(chosen.sum()), dtype=torch.float64),
        entropy_bias_S=torch.zeros(n_sets, dtype=torch.float64),
        counts_known=True,
    )


def labels_of_rows(rows: RowLabels, weights: LiveWeights, live: Tensor, x: int, covered_SM: Tensor) -> SampledLabels:
    """Collect the sampled labels of one attached set, which have live rows; they are one stratum.

    Args:
        rows, weights: the label of each live row, and its weight.
        live: the live rows [L, K].
        x: the set.
        covered_SM: mass of the positions whose label occurs at least twice.
    """
    n_sets, n_anchors = covered_SM.shape
    n_covered = covered_SM.sum(dim=1).mean()
    p_SM = (covered_SM / covered_SM.sum(dim=1, keepdim=True)).clamp_min(1e-300)
    own = torch.from_numpy((rows.live_sets == x) & (rows.live_probability < 1)).nonzero().squeeze(1)
    shared = torch.from_numpy(rows.shared_probability[x] < 1)
    at_I = torch.cat([own, torch.from_numpy(rows.shared_rows[x])[shared]])
    weights_I = torch.cat([weights.own_L[own], weights.shared[x][shared]])
    probability_I = torch.cat(
        [torch.from_numpy(rows.live_probability)[own], torch.from_numpy(rows.shared_probability[x])[shared]]
    )
    sums, products, crosses, counts = [], [], [], []
    entropy_bias_S = torch.zeros(n_sets, dtype=torch.float64)
    for part, weight, probability in chunks(at_I, weights_I, probability_I):
        row_LK = live[part].double()
        mass_LSM, n = mass(row_LK, n_sets, n_anchors), row_LK[:, -1]
        entropies = weighted_entropy(mass_LSM), position_entropy(row_LK, n_sets)
        sums.append(torch.stack([value_LS.mean(dim=1) for value_LS in entropies], dim=1))
        products.append(squares(*entropies))
        crosses.append((mass_LSM * p_SM.log()).sum(dim=2).mean(dim=1))
        counts.append(n)
        chi_square_LS = ((mass_LSM - n.reshape(-1, 1, 1) * p_SM).square() / p_SM).sum(dim=2)
        entropy_bias_S += ((1 - probability) * (weight / n_covered).square() * (n > 1)) @ chi_square_LS / 2
    counts_I = torch.cat(counts)
    return SampledLabels(
        counts_I=counts_I,
        followed_I=torch.ones_like(counts_I),
        weights_I=weights_I,
        probability_I=probability_I,
        strata_I=torch.zeros_like(counts_I),
        scale_I=torch.cat([torch.from_numpy(rows.live_scale)[own], torch.ones(int(shared.sum()), dtype=torch.float64)]),
        sums_I2=torch.cat(sums),
        squares_I3=torch.cat(products),
        cross_I=torch.cat(crosses),
        entropy_bias_S=entropy_bias_S,
        counts_known=False,
    )


class SamplingErrors(NamedTuple):
    """Standard errors by the sampling of labels, of means over anchor sets; in nats, or positions."""

    conditional_entropy: float = 0.0
    null_information: float = 0.0
    corrected_information: float = 0.0
    covered_positions: float = 0.0
    entropy_of_labels: float = 0.0


def sampling_errors(
    labels: SampledLabels,
    curves: BiasCurves,
    corrected: CorrectedConditional,
    covered_SM: Tensor,
    n_labelled: Tensor,
) -> SamplingErrors:
    """Compute the standard errors of one set's estimates.

    Args:
        labels: the set's labels that are followed with π < 1.
        curves: bias curves of the layer.
        corrected: corrected entropies of the set's labels by count [C], of all that are followed.
        covered_SM: mass of the positions whose label occurs at least twice.
        n_labelled: positions that have a label of the set.
    """
    n_I, none_I = labels.counts_I, torch.zeros_like(labels.counts_I)
    conditional = labels.error(none_I + 1 / n_labelled, none_I, none_I)
    null, covered, of_labels = _errors_of_counts(labels, curves, n_labelled)
    if labels.followed_I[n_I >= 2].sum() < LEAST_LABELS:
        return SamplingErrors(conditional, null, math.nan, covered, of_labels)
    slope_C = bias_slope(curves, corrected).mean(dim=1)
    bias_C, divergence_C = corrected.bias_CS.mean(dim=1), corrected.divergence_CS.mean(dim=1)
    n_covered = corrected.positions_C.sum()
    mean = (corrected.positions_C * corrected.conditional_CS.mean(dim=1)).sum() / n_covered
    is_covered_I = n_I >= 2
    c_I = torch.searchsorted(corrected.counts_C, n_I.long().clamp_min(2)).clamp_max(len(slope_C) - 1)
    slope_I = slope_C[c_I]
    constant_I = -n_I * (bias_C - slope_C * divergence_C - mean)[c_I]
    if not labels.counts_known:
        constant_I = constant_I - labels.cross_I - n_I * entropy(covered_SM).mean()
    first_I, second_I, constant_I = (
        torch.where(is_covered_I, value_I / n_covered, 0.0) for value_I in (-(1 + slope_I), slope_I, constant_I)
    )
    return SamplingErrors(conditional, null, labels.error(first_I, second_I, constant_I), covered, of_labels)


def _errors_of_counts(labels: SampledLabels, curves: BiasCurves, n_labelled: Tensor) -> tuple[float, float, float]:
    """Compute the standard errors of the null, the covered positions and H(X), which depend on counts alone."""
    if labels.counts_known:
        return 0.0, 0.0, 0.0
    n_I, none_I = labels.counts_I, torch.zeros_like(labels.counts_I)
    by_chance_I = chance_information(curves, n_I).mean(dim=1)
    null = labels.error(none_I, none_I, n_I * by_chance_I / n_labelled)
    covered = labels.error(none_I, none_I, (n_I == 1).double())
    part_I = torch.xlogy(n_I, labels.scale_I * n_I) / n_labelled  # of H(X) = log N − Σ_x n log n / N
    of_labels = labels.error(none_I, none_I, part_I)
    if not (n_I == 1).any() and len(n_I):  # about as many labels of one position as one that is followed stands for
        covered = float(labels.weights_I.max())
        null = max(null, covered * float((chance_information(curves, n_I.new_ones(1)).mean()) / n_labelled))
        of_labels = max(of_labels, covered * float((labels.weights_I @ part_I) / (labels.weights_I @ n_I)))
    return null, covered, of_labels


def correction_bias(labels: SampledLabels, curves: BiasCurves, corrected: CorrectedConditional) -> Tensor:
    """Estimate by how much the corrected information is too low because few labels of a count tell their mean W: [S].

    The correction is a convex function of W. Its excess is computed from the variance of W among the labels of a count,
    which labels of similar counts have in common.
    """
    n_counts = len(corrected.counts_C)
    covered = labels.counts_I >= 2
    c_I = torch.searchsorted(corrected.counts_C, labels.counts_I[covered].long())
    n_I, followed_I = labels.counts_I[covered], labels.followed_I[covered]
    first_I, product_I, second_I = labels.squares_I3[covered].unbind(dim=1)
    values = torch.stack(
        [
            followed_I,
            (labels.sums_I2[covered, 0] - labels.sums_I2[covered, 1]) / n_I,
            (first_I - 2 * product_I + second_I) / n_I.square(),
            followed_I * (1 - labels.probability_I[covered]),
        ]
    )
    m_C, sum_C, squares_C, left_out_C = values.new_zeros(4, n_counts).index_add_(1, c_I, values)
    within_C = (squares_C - sum_C.square() / m_C.clamp_min(1)).clamp_min(0.0)
    octave_C = corrected.counts_C.double().log2().floor().long()
    pooled = values.new_zeros(2, int(octave_C.max()) + 1) if n_counts else values.new_zeros(2, 0)
    pooled.index_add_(1, octave_C, torch.stack([within_C, (m_C - 1).clamp_min(0.0)]))
    variance_C = (pooled[0] / pooled[1].clamp_min(1))[octave_C]
    sd_C1 = (variance_C * left_out_C / m_C.clamp_min(1).square()).sqrt().unsqueeze(1)
    excess_CS = bias_excess(curves, corrected, sd_C1)
    return (corrected.positions_C @ excess_CS) / corrected.positions_C.sum()
