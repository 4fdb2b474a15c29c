"""Small-sample bias of plug-in information: its value by chance (the null), and a correction.

The mean p̂_x of a label's n soft assignments q has, on average, less entropy than the label's true mean p_x:

    b_x(n) = H(p_x) − E H(p̂_x) = E KL(p̂_x ‖ p_x),       b_x(1) = H(p_x) − E H(q)

Plug-in information is therefore too high by Σ_x P(x) b_x(n_x). For labels that occur n times, the mean divergence
W = E H(p̂_x) − E H(q) = b(1) − b(n) is measured, and b(n) is estimated from it. `bias_curves` draws the curves
n -> b(n) of reference labels from a uniform sample of the layer's soft assignments:

- Chance: all positions have the reference label. Its curve is measured, not modelled, and gives the null: the expected
  plug-in information of labels of the same counts that are assigned at random.
- Labels that share a part ρ of the positions' variance: the logits log q of a random position, shrunk by √ρ
  towards the layer's mean, are the label's centre; those of other positions, shrunk by √(1−ρ), scatter about it.

A measured W lies between those of two reference labels, and b(n) / W is interpolated between theirs. At ρ = 1, where
W = 0, the ratio is 1/(n − 1), because small deviations have b(n) = b(1)/n; at the other end it is the ratio of chance.

The correction is a model. It assumes that a label's positions are drawn independently, that labels of one count are
alike, so that their mean W stands for each, and that the states of each label scatter about one centre in the same
shape as all states. Absolute error in units of log m, mean / maximum (`python scripts/study_correction.py`):

                                               n = 2          n = 4          n = 8          n = 16         n = 64
    23 simulations                         .013 / .060    .011 / .050    .010 / .036    .007 / .024    .004 / .014
        plug-in                            .250 / .569    .173 / .473    .114 / .383    .071 / .297    .025 / .152
    SmolLM2, thinned n-grams (--model)     .005 / .035    .003 / .017    .002 / .007    .002 / .005    .004 / .010
        plug-in                            .097 / .308    .061 / .210    .036 / .136    .020 / .077    .006 / .032
    the same, neighbouring occurrences     .030 / .074    .023 / .061    .016 / .049    .010 / .036    .004 / .008

The corrected information is too low if a label has several tight modes (by .06 with 4), and too high if labels of one
count are not alike (by .06 if half of them are uninformative) or repeat within a document (the last line).

Shape suffixes: N positions, R rows of the sample, H groups of rows, S anchor sets, M anchors, K curves, G counts of
the grid, C counts of labels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from softh_probe.errors import InputError
from softh_probe.estimators.soft_entropy import assignments, entropy

#: Number of shuffles of the sample for the curve of chance.
SHUFFLES = 4
#: Parts ρ of the variance that reference labels share.
SHARED = (0.15, 0.35, 0.6, 0.85)
#: Number of reference labels for each ρ, and of positions for each label.
CENTRES, SCATTER = 16, 128
#: Curves with b(1) below this, in nats, belong to labels whose positions are alike; their shape is float32 rounding.
ROUNDING = 1e-5
#: Share of b(1) by which b(n) of chance has to be lower: W, which is what is left, says nothing of b(n) below it.
LEAST_DROP = 0.05
_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, kw_only=True)
class BiasCurves:
    """Curves b(n) of reference labels in nats, as g(n) = b(n) / v(n) with v(n) = (1/n − 1/N) / (1 − 1/N).

    v(n) is the relative variance of the mean of n of N positions drawn without replacement; g varies slowly with n.

    Attributes:
        inverse_G: [G], 1/n in increasing order, from 0 to 1.
        g_KGS: [K, G, S]; the curve of chance first, then those of reference labels in increasing order of ρ.
        n_positions: number N of the layer's positions.
    """

    inverse_G: Tensor
    g_KGS: Tensor
    n_positions: int

    def __call__(self, counts_C: Tensor) -> Tensor:
        """Evaluate b(n) of every curve at counts [C]: [K, C, S]; 0 for n ≥ N."""
        inverse_C = 1.0 / counts_C.double()
        return _interpolate(inverse_C, self.inverse_G, self.g_KGS) * _v(inverse_C, self.n_positions).unsqueeze(1)

    def part(self, curves: slice) -> BiasCurves:
        """Select some of the curves."""
        return BiasCurves(inverse_G=self.inverse_G, g_KGS=self.g_KGS[curves], n_positions=self.n_positions)


def bias_curves(
    sample_RSM: Tensor, mass_SM: Tensor, position_entropy_S: Tensor, n_positions: int, *, seed: int = 0
) -> BiasCurves:
    """Compute the bias curves of one layer from a sample of its soft assignments.

    >>> q = torch.rand(600, 1, 20, generator=torch.Generator().manual_seed(0)).pow(8)
    >>> q = q / q.sum(dim=-1, keepdim=True)
    >>> curves = bias_curves(q, q.sum(dim=0), entropy(q).mean(dim=0), 600)
    >>> for n, (bias,) in zip((1, 10, 600), chance_information(curves, torch.tensor([1, 10, 600])).tolist()):
    ...     print(n, round(bias, 2))
    1 1.28
    10 0.19
    600 0.0

    Args:
        sample_RSM: soft assignments of positions drawn uniformly without replacement. With 2,048 rows the null is
            accurate to 0.001 log m.
        mass_SM: sums of the soft assignments of all positions.
        position_entropy_S: mean entropy of the soft assignments of all positions, in nats.
        n_positions: number N of the layer's positions.
        seed: seed of the generator that draws from the sample; equal arguments give equal curves.

    Raises:
        InputError: the sample is empty, or its anchors are not those of the sums.
    """
    if sample_RSM.ndim != 3 or len(sample_RSM) == 0 or sample_RSM.shape[1:] != mass_SM.shape:
        expected = f"[R, {', '.join(map(str, mass_SM.shape))}] of one position or more"
        raise InputError(f"sample_RSM: expected soft assignments {expected}, got {list(sample_RSM.shape)}")
    # One anchor set at a time, so that intermediate values fit a CPU's caches.
    parts = zip(sample_RSM.unbind(dim=1), mass_SM, position_entropy_S, strict=True)
    draws = _draws(len(sample_RSM), seed)
    found = [_curves(q_RM.float(), mass_M, of_positions, n_positions, draws) for q_RM, mass_M, of_positions in parts]
    inverse_G = found[0][0]
    return BiasCurves(inverse_G=inverse_G, g_KGS=torch.stack([g for _, g in found], dim=-1), n_positions=n_positions)


def _curves(
    q_RM: Tensor, mass_M: Tensor, position_entropy: Tensor, n_positions: int, draws: _Draws
) -> tuple[Tensor, Tensor]:
    """Compute 1/n [G] and g [K, G] of one anchor set."""
    mean_M = mass_M.double() / mass_M.double().sum()
    q_RM = q_RM.clamp_min(_TINY)
    log_q_RM = q_RM.log()
    entropy_R = -(log_q_RM * q_RM).sum(dim=-1)
    sizes, entropy_G = _mean_entropies(q_RM, entropy_R, draws.shuffled_HR, len(q_RM) // 16)

    # E KL(p̂ ‖ p̄) rather than H(p̄) − E H(p̂): the deviation of the sample's mean from p̄ cancels.
    cross = -(q_RM.double().mean(dim=0) @ mean_M.clamp_min(1e-300).log())
    inverse_G = 1.0 / torch.tensor(sizes, dtype=torch.float64)
    small_G = (cross - entropy_G) / _v(inverse_G, n_positions)
    # As n grows, KL tends to half of χ².
    variance_M = (q_RM - q_RM.mean(dim=0)).square_().sum(dim=0).double() / max(len(q_RM) - 1, 1)
    limit = (variance_M / mean_M.clamp_min(1e-300)).sum() / 2
    inverse_G = torch.cat([inverse_G.new_zeros(1), inverse_G])
    chance_G = torch.cat([limit.unsqueeze(0), small_G])
    # b(1) is known from all positions, not only from the sample.
    exact = entropy(mean_M) - position_entropy.double()
    chance_G = chance_G * torch.where(chance_G[-1] > 0, exact / chance_G[-1], 1.0)

    if len(q_RM) < SCATTER:
        return inverse_G, chance_G.unsqueeze(0)
    return inverse_G, torch.cat([chance_G.unsqueeze(0), _reference_curves(log_q_RM, draws, inverse_G)])


def chance_information(curves: BiasCurves, counts_C: Tensor) -> Tensor:
    """Evaluate the curve of chance: b(n) = H(p̄) − E H(mean q of n of the N positions), in nats.

    The n positions are drawn without replacement; `bias_curves` has an example.

    Args:
        curves: those of one layer.
        counts_C: counts n, at least 1.

    Returns:
        [C, S], float64; decreases from H(Z) − mean H(q) at n = 1 to 0 at n = N.
    """
    return curves.part(slice(1))(counts_C)[0]


def null_information(curves: BiasCurves, counts_C: Tensor, labels_C: Tensor) -> Tensor:
    """Compute the expected plug-in I(X;Z), in nats, of labels of the same counts that are assigned at random.

    >>> q = torch.rand(600, 1, 20, generator=torch.Generator().manual_seed(0)).pow(8)
    >>> q = q / q.sum(dim=-1, keepdim=True)
    >>> curves = bias_curves(q, q.sum(dim=0), entropy(q).mean(dim=0), 600)
    >>> counts, labels = torch.tensor([10, 300]), torch.tensor([[60, 0], [0, 2]])  # 60 labels of 10, or 2 of 300
    >>> [round(null, 2) for null in null_information(curves, counts, labels).flatten().tolist()]
    [0.19, 0.0]

    Args:
        curves: those of one layer.
        counts_C: distinct counts n of labels.
        labels_C: number of labels of each count, [..., C].

    Returns:
        [..., S], float64; NaN without labels.
    """
    positions_C = (counts_C * labels_C).double()
    n_labelled = positions_C.sum(dim=-1, keepdim=True)
    # If some positions have no label, H(Z) is that of a random part of all positions, too.
    of_part_S = chance_information(curves, n_labelled.clamp_min(1).reshape(-1))
    null_S = positions_C @ chance_information(curves, counts_C) / n_labelled
    return null_S - of_part_S.view_as(null_S)


def corrected_information(
    curves: BiasCurves,
    counts_C: Tensor,
    labels_C: Tensor,
    weighted_entropy_CS: Tensor,
    position_entropy_CS: Tensor,
    covered_entropy_S: Tensor,
) -> Tensor:
    """Compute I(X;Z), in nats, of the positions whose label occurs at least twice, corrected for small counts.

    Two labels of 300 positions each, drawn at random from the same distribution, carry no information:

    >>> q = torch.rand(600, 1, 20, generator=torch.Generator().manual_seed(0)).pow(8)
    >>> q = q / q.sum(dim=-1, keepdim=True)
    >>> curves = bias_curves(q, q.sum(dim=0), entropy(q).mean(dim=0), 600)
    >>> weighted = 300 * entropy(q.unflatten(0, (2, 300)).sum(dim=1)).sum(dim=0, keepdim=True)
    >>> of_positions, h_S = entropy(q).sum(dim=0, keepdim=True), entropy(q.sum(dim=0))
    >>> count, labels = torch.tensor([300]), torch.tensor([2])
    >>> abs(corrected_information(curves, count, labels, weighted, of_positions, h_S).item()) < 0.01
    True

    Several label sets may be given at once, along leading dimensions of all arguments except the counts.

    Args:
        curves: those of one layer.
        counts_C: distinct counts n of labels; n = 1 is left out.
        labels_C: number of labels of each count.
        weighted_entropy_CS: Σ_x n·H(p̂_x) over these labels, in nats.
        position_entropy_CS: sum over their positions of the entropy of the soft assignment, in nats.
        covered_entropy_S: H(Z) of the positions whose label occurs at least twice, in nats.

    Returns:
        [S], float64; at most H(Z) − mean H(q) of these positions. It is not clipped at 0, so that its mean is 0 for
        uninformative labels. NaN if no label occurs twice, or if there are too few positions to tell the bias.
    """
    corrected = corrected_conditional(curves, counts_C, labels_C, weighted_entropy_CS, position_entropy_CS)
    positions_C1 = corrected.positions_C.unsqueeze(-1)
    conditional_S = (positions_C1 * corrected.conditional_CS).sum(dim=-2) / positions_C1.sum(dim=-2)
    return covered_entropy_S.double() - conditional_S


class CorrectedConditional(NamedTuple):
    """H(Z|X=x), in nats, of the labels of each count n ≥ 2, corrected for small counts.

    Attributes:
        counts_C: the counts, at least 2.
        positions_C: positions of the labels of each, [..., C].
        divergence_CS: mean divergence W, [..., C, S].
        bias_CS: estimated b(n), [..., C, S].
        conditional_CS: their mean plug-in entropy and b(n), [..., C, S].
    """

    counts_C: Tensor
    positions_C: Tensor
    divergence_CS: Tensor
    bias_CS: Tensor
    conditional_CS: Tensor


def corrected_conditional(
    curves: BiasCurves, counts_C: Tensor, labels_C: Tensor, weighted_entropy_CS: Tensor, position_entropy_CS: Tensor
) -> CorrectedConditional:
    """Compute the corrected H(Z|X=x) of the labels of each count; arguments as in `corrected_information`."""
    repeated = counts_C >= 2
    counts = counts_C[repeated]
    positions_C = (counts * labels_C[..., repeated]).double()
    n_C1 = positions_C.unsqueeze(-1).clamp_min(1)
    label_entropy_CS = weighted_entropy_CS[..., repeated, :].double() / n_C1
    own_CS = position_entropy_CS[..., repeated, :].double() / n_C1
    divergence_CS = (label_entropy_CS - own_CS).clamp_min(0.0)
    bias_CS = _bias(curves, counts, divergence_CS).where(positions_C.unsqueeze(-1) > 0, 0.0)
    return CorrectedConditional(counts, positions_C, divergence_CS, bias_CS, label_entropy_CS + bias_CS)


def bias_slope(curves: BiasCurves, corrected: CorrectedConditional) -> Tensor:
    """Differentiate the estimated b(n) by the mean divergence W: [..., C, S]."""
    step_CS = (corrected.divergence_CS * 1e-3).clamp_min(1e-9)
    beside = [_bias(curves, corrected.counts_C, corrected.divergence_CS + sign * step_CS) for sign in (-1, 1)]
    return (beside[1] - beside[0]) / (2 * step_CS)


def bias_excess(curves: BiasCurves, corrected: CorrectedConditional, sd_C1: Tensor) -> Tensor:
    """Estimate by how much b(n) is too large because W is uncertain, to second order: [..., C, S].

    Args:
        sd_C1: standard error of W of each count, [..., C, 1].
    """
    w_CS = corrected.divergence_CS
    beside = [_bias(curves, corrected.counts_C, (w_CS + sign * sd_C1).clamp_min(0.0)) for sign in (-1, 1)]
    excess_CS = (beside[0] + beside[1]) / 2 - corrected.bias_CS
    return excess_CS.where(corrected.positions_C.unsqueeze(-1) > 0, 0.0)


def _bias(curves: BiasCurves, counts_C: Tensor, divergence_CS: Tensor) -> Tensor:
    """Estimate b(n), [..., C, S], of labels of count n ≥ 2 from their mean divergence W; NaN where it says nothing."""
    first_K1S, bias_KCS = curves(counts_C.new_ones(1)), curves(counts_C)
    v_1C1 = _v(1.0 / counts_C.double(), curves.n_positions).reshape(1, -1, 1)
    # From the label whose positions are all alike (W = 0, b(n) = v·b(1)) to chance.
    left_KCS = torch.where(first_K1S > ROUNDING, bias_KCS / first_K1S, v_1C1)
    is_told_CS = left_KCS[0] < 1 - LEAST_DROP  # in small samples the curve of chance may not fall at all
    left_KCS = torch.cat([left_KCS, v_1C1.expand_as(bias_KCS[:1])]).flip(0).clamp_max(1 - 1e-9)
    ratio_KCS = (left_KCS / (1 - left_KCS)).cummax(dim=0).values
    first_K1S = torch.cat([first_K1S, torch.zeros_like(first_K1S[:1])]).flip(0)
    known_KCS = (first_K1S * (1 - left_KCS)).cummax(dim=0).values
    ratio_CS = ratio_KCS[0]
    for known, step, more in zip(known_KCS, known_KCS.diff(dim=0), ratio_KCS.diff(dim=0), strict=False):
        part_CS = ((divergence_CS - known) / step.clamp_min(1e-300)).clamp(0.0, 1.0)
        ratio_CS = ratio_CS + part_CS * more
    return torch.where(is_told_CS, ratio_CS * divergence_CS, math.nan)


class _Draws(NamedTuple):
    """Random indices of the sample's rows, the same for all layers and anchor sets.

    Attributes:
        shuffled_HR: all rows in random order, H = `SHUFFLES` times.
        centres_KH: for each ρ of `SHARED`, the rows that are centres, H = `CENTRES`.
        scattered_KHR: for each ρ of `SHARED`, the rows around each centre, R = `SCATTER`.
    """

    shuffled_HR: Tensor
    centres_KH: Tensor
    scattered_KHR: Tensor


@lru_cache(maxsize=4)
def _draws(n_rows: int, seed: int) -> _Draws:
    generator = torch.Generator().manual_seed(seed)

    def shuffled(times: int, n: int) -> Tensor:
        return torch.stack([torch.randperm(n_rows, generator=generator)[:n] for _ in range(times)])

    everything = shuffled(SHUFFLES, n_rows)
    pairs = [(shuffled(1, CENTRES)[0], shuffled(CENTRES, SCATTER)) for _ in SHARED]
    return _Draws(everything, *map(torch.stack, zip(*pairs, strict=True)))


def _reference_curves(logits_RM: Tensor, draws: _Draws, inverse_G: Tensor) -> Tensor:
    """Compute g [K, G] of the reference labels of `SHARED`, for positions drawn from infinitely many."""
    mean_M = logits_RM.mean(dim=0)
    shared_K11 = torch.tensor(SHARED, dtype=logits_RM.dtype).view(-1, 1, 1)
    # mean + √ρ·(centre − mean) + √(1−ρ)·(other − mean)
    near_K11, far_K11 = shared_K11.sqrt(), (1 - shared_K11).sqrt()
    around_KHM = mean_M * (1 - near_K11 - far_K11) + near_K11 * logits_RM[draws.centres_KH]
    shape = draws.scattered_KHR.shape
    logits_KHRM = logits_RM.index_select(0, draws.scattered_KHR.reshape(-1)).unflatten(0, shape)
    logits_KHRM.mul_(far_K11.unsqueeze(3)).add_(around_KHM.unsqueeze(2))
    q_KHRM, entropy_KHR = assignments(logits_KHRM)
    q_NM, entropy_N = q_KHRM.clamp_min_(_TINY).flatten(0, 2), entropy_KHR.flatten()
    sizes, entropy_KG = _mean_entropies(q_NM, entropy_N, torch.arange(shape.numel()).view(shape), SCATTER)
    # b(n) ∝ 1/n at the large end: two counts there give the entropy of infinitely many positions.
    last_K1, half_K1 = (entropy_KG[:, sizes.index(n)].unsqueeze(1) for n in (SCATTER, SCATTER // 2))
    first = next(i for i, n in enumerate(sizes) if n <= SCATTER // 4)
    n_G = torch.tensor(sizes[first:], dtype=torch.float64)
    own_G = torch.cat([n_G.new_zeros(1), 1.0 / n_G])
    g_KG = torch.cat([SCATTER * (last_K1 - half_K1), n_G * (2 * last_K1 - half_K1 - entropy_KG[:, first:])], dim=1)
    return _interpolate(inverse_G, own_G, g_KG.unsqueeze(2)).squeeze(2)


def _mean_entropies(q_NM: Tensor, entropy_N: Tensor, rows_HR: Tensor, largest: int) -> tuple[list[int], Tensor]:
    """Compute the mean entropy of means of n rows of a group, for n = 1, 2, 3, 4, 6, 8, 12 … up to `largest`.

    Args:
        q_NM: soft assignments, all positive.
        entropy_N: the entropy of each.
        rows_HR: [..., H, R], the rows of each of H groups.
        largest: upper bound of n.

    Returns:
        The n in decreasing order, and the mean entropy of each, [..., G], float64 in nats.
    """
    found = {1: entropy_N[rows_HR].mean(dim=(-2, -1), dtype=torch.float64)}
    for size in (2, 3):
        bags_HRn = rows_HR[..., : rows_HR.shape[-1] // size * size].unflatten(-1, (-1, size))
        sums_LM = torch.nn.functional.embedding_bag(bags_HRn.reshape(-1, size), q_NM, mode="sum")
        sums_HRM = sums_LM.unflatten(0, bags_HRn.shape[:-1])
        while size <= largest:
            x_log_x_HR = sums_HRM.log().mul_(sums_HRM).sum(dim=-1)
            found[size] = math.log(size) - x_log_x_HR.mean(dim=(-2, -1), dtype=torch.float64) / size
            paired = sums_HRM.shape[-2] // 2 * 2
            sums_HRM = sums_HRM[..., 0:paired:2, :] + sums_HRM[..., 1:paired:2, :]
            size *= 2
    sizes = sorted(found, reverse=True)
    return sizes, torch.stack([found[n] for n in sizes], dim=-1)


def _v(inverse_C: Tensor, n_positions: int) -> Tensor:
    """Compute v(n) of `BiasCurves` from 1/n."""
    last = 1.0 / max(n_positions, 2)
    return ((inverse_C - last) / (1.0 - last)).clamp_min(0.0)


def _interpolate(x_C: Tensor, x_G: Tensor, values_GS: Tensor) -> Tensor:
    """Interpolate linearly in x, along the last dimension but one: [..., G, S] -> [..., C, S]."""
    upper_C = torch.searchsorted(x_G, x_C).clamp(1, len(x_G) - 1)
    weight_C1 = ((x_C - x_G[upper_C - 1]) / (x_G[upper_C] - x_G[upper_C - 1])).unsqueeze(1)
    return torch.lerp(values_GS[..., upper_C - 1, :], values_GS[..., upper_C, :], weight_C1)
