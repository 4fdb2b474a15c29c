"""What chance adds to the information of rare labels: the null, and an estimate corrected for it.

The mean p̂_x of a label's n soft assignments q has, on average, less entropy than the label's true mean p_x:

    b_x(n) = H(p_x) − E H(p̂_x) = E KL(p̂_x ‖ p_x),       b_x(1) = H(p_x) − E H(q)

and plug-in information is too high by Σ_x P(x) b_x(n_x). What is measured of labels that occur n times is their
mean divergence W = E H(p̂_x) − E H(q) = b(1) − b(n); what is sought is b(n). `bias_curves` draws the curves
n -> b(n) of reference labels from a uniform sample of the layer's soft assignments:

- Chance: the reference label is any position. Its curve is measured, not modelled, and gives the null: the
  plug-in information that labels of the same counts have in random order.
- Labels that share a part ρ of the positions' variance: the logits log q of a random position, shrunk by √ρ
  towards the layer's mean, are the label's centre; those of other positions, shrunk by √(1−ρ), scatter about it.

A measured W lies between those of two reference labels, and b(n) / W is interpolated between theirs. At the one end
(ρ = 1, W = 0) that is 1/(n − 1), for small deviations have b(n) = b(1)/n; at the other it is that of chance.

This is a model. It assumes that a label's positions are drawn independently, that labels of one count are alike, so
that their mean W stands for each, and that a label's states scatter about one centre in the shape in which all do.
How far that leads, as absolute error in units of log m, mean / most (`python scripts/study_correction.py`):

                                               n = 2          n = 4          n = 8          n = 16         n = 64
    23 simulations                         .014 / .061    .012 / .052    .010 / .038    .008 / .023    .004 / .011
        plug-in                            .249 / .568    .171 / .479    .113 / .383    .071 / .302    .024 / .156
    SmolLM2, thinned n-grams (--model)     .005 / .027    .004 / .017    .003 / .007    .002 / .010    .003 / .008
        plug-in                            .097 / .300    .060 / .200    .036 / .129    .020 / .075    .006 / .028
    the same, neighbouring occurrences     .029 / .065    .024 / .063    .016 / .048    .009 / .037    .004 / .015

It is too low where a label has several tight modes (by .05 with 4), and too high where labels of one count
are not alike (.06 where half of them say nothing) or repeat within a document (the last line).

Shape suffixes: R rows of the sample, H groups of them, S anchor sets, M anchors, K curves, G counts of the grid, C rows
of labels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from softh_probe.errors import InputError
from softh_probe.estimator import entropy

#: How often the sample is shuffled for the curve of chance.
SHUFFLES = 4
#: Parts ρ of the variance that reference labels share; how many labels for each, and how many positions of each.
SHARED = (0.15, 0.35, 0.6, 0.85)
CENTRES, SCATTER = 16, 128
#: Curves that start below this, in nats, are of labels whose positions are alike; their shape is float32 rounding.
ROUNDING = 1e-5


@dataclass(frozen=True, kw_only=True)
class BiasCurves:
    """b(n) of reference labels in nats, as g(n) = b(n) / v(n) with v(n) = (1/n − 1/N) / (1 − 1/N).

    v is how the variance of a mean of n falls when n of N positions are drawn, none twice; g varies slowly with n.

    Attributes:
        inverse_G: [G], 1/n in increasing order, from 0 to 1.
        g_KGS: [K, G, S]; the first curve is that of chance, then come labels that share more and more.
        n_positions: N.
    """

    inverse_G: Tensor
    g_KGS: Tensor
    n_positions: int

    def __call__(self, counts_C: Tensor) -> Tensor:
        """b(n) of every curve: [K, C, S]; 0 from n = N on."""
        inverse_C = 1.0 / counts_C.double()
        return _interpolate(inverse_C, self.inverse_G, self.g_KGS) * _v(inverse_C, self.n_positions).unsqueeze(1)


def bias_curves(
    sample_RSM: Tensor, mass_SM: Tensor, position_entropy_S: Tensor, n_positions: int, *, seed: int = 0
) -> BiasCurves:
    """The curves of one layer.

    >>> q = torch.rand(600, 1, 20, generator=torch.Generator().manual_seed(0)).pow(8)
    >>> q = q / q.sum(dim=-1, keepdim=True)
    >>> curves = bias_curves(q, q.sum(dim=0), entropy(q).mean(dim=0), 600)
    >>> for n, (bias,) in zip((1, 10, 600), chance_information(curves, torch.tensor([1, 10, 600])).tolist()):
    ...     print(n, round(bias, 2))
    1 1.28
    10 0.19
    600 0.0

    Args:
        sample_RSM: soft assignments of a uniform sample of the positions, none twice. With 2,048 rows the null
            is right within 0.001 log m.
        mass_SM: sums of the soft assignments of all positions.
        position_entropy_S: mean entropy of the soft assignments of all positions, in nats.
        n_positions: N.
        seed: of the generator that draws from the sample; equal arguments give equal curves.

    Raises:
        InputError: the sample is empty, or not of the sums' anchors.
    """
    if sample_RSM.ndim != 3 or len(sample_RSM) == 0 or sample_RSM.shape[1:] != mass_SM.shape:
        expected = f"[R, {', '.join(map(str, mass_SM.shape))}] of one position or more"
        raise InputError(f"sample_RSM: expected soft assignments {expected}, got {list(sample_RSM.shape)}")
    # One anchor set at a time: what is computed from its sample fits a CPU's caches.
    parts = zip(sample_RSM.unbind(dim=1), mass_SM, position_entropy_S, strict=True)
    draws = _draws(len(sample_RSM), seed)
    found = [_curves(q_RM.float(), mass_M, of_positions, n_positions, draws) for q_RM, mass_M, of_positions in parts]
    inverse_G = found[0][0]
    return BiasCurves(inverse_G=inverse_G, g_KGS=torch.stack([g for _, g in found], dim=-1), n_positions=n_positions)


def _curves(
    q_RM: Tensor, mass_M: Tensor, position_entropy: Tensor, n_positions: int, draws: _Draws
) -> tuple[Tensor, Tensor]:
    """1/n [G] and g [K, G] of one anchor set."""
    mean_M = mass_M.double() / mass_M.double().sum()
    q_RM = q_RM.clamp_min(torch.finfo(torch.float32).tiny)
    sizes, entropy_G = _mean_entropies(q_RM[draws.shuffled_HR], len(q_RM) // 16, distinct=1)

    # E KL(p̂ ‖ p̄) rather than H(p̄) − E H(p̂): what the sample's own mean deviates by drops out.
    cross = -(q_RM.double().mean(dim=0) @ mean_M.clamp_min(1e-300).log())
    inverse_G = 1.0 / torch.tensor(sizes, dtype=torch.float64)
    small_G = (cross - entropy_G) / _v(inverse_G, n_positions)
    # As n grows, KL tends to half of χ².
    variance_M = (q_RM - q_RM.mean(dim=0)).square_().sum(dim=0).double() / max(len(q_RM) - 1, 1)
    limit = (variance_M / mean_M.clamp_min(1e-300)).sum() / 2
    inverse_G = torch.cat([inverse_G.new_zeros(1), inverse_G])
    chance_G = torch.cat([limit.unsqueeze(0), small_G])
    # n = 1 is known of all positions, not of the sample only.
    exact = entropy(mean_M) - position_entropy.double()
    chance_G = chance_G * torch.where(chance_G[-1] > 0, exact / chance_G[-1], 1.0)

    curves = [chance_G]
    if len(q_RM) >= SCATTER:
        logits_RM = q_RM.log()
        curves += [_reference_curve(logits_RM, *one, inverse_G) for one in zip(SHARED, *draws[1:], strict=True)]
    return inverse_G, torch.stack(curves)


def chance_information(curves: BiasCurves, counts_C: Tensor) -> Tensor:
    """c0(n) = H(p̄) − E H(mean of n of the N positions, none drawn twice), in nats.

    [C, S], float64, of counts n of 1 or more; falls from H(Z) − mean H(q) at n = 1 to 0 at n = N.
    """
    return curves(counts_C)[0]


def null_information(curves: BiasCurves, counts_C: Tensor, labels_C: Tensor) -> Tensor:
    """Expected plug-in I(X;Z), in nats, of labels of the same counts that are assigned at random.

    Args:
        counts_C: counts n of labels; an n may stand in several rows.
        labels_C: how many labels each row pools.

    Returns:
        [S], float64; NaN without labels.
    """
    positions_C = (counts_C * labels_C).double()
    n_labelled = positions_C.sum()
    # Where some positions have no label, H(Z) is of a random part of all positions as well.
    of_part_S = chance_information(curves, n_labelled.clamp_min(1).reshape(1))[0]
    return positions_C @ chance_information(curves, counts_C) / n_labelled - of_part_S


def corrected_information(
    curves: BiasCurves,
    counts_C: Tensor,
    labels_C: Tensor,
    weighted_entropy_CS: Tensor,
    position_entropy_CS: Tensor,
    covered_entropy_S: Tensor,
) -> Tensor:
    """I(X;Z), in nats, over the positions whose label occurs at least twice, corrected for small counts.

    Args:
        counts_C: counts n of labels; rows of n = 1 are left out, and rows of the same n taken together.
        labels_C: how many labels each row pools.
        weighted_entropy_CS: Σ_x n·H(p̂_x) over the row's labels, in nats.
        position_entropy_CS: sum over their positions of the entropy of the soft assignment, in nats.
        covered_entropy_S: H(Z) of the positions whose label occurs at least twice, in nats.

    Returns:
        [S], float64; at most H(Z) − mean H(q) of these positions. It is not cut off at 0, so that its mean is 0
        where labels say nothing. NaN where no label occurs twice.
    """
    repeated = (counts_C >= 2) & (labels_C > 0)
    counts, row_C = counts_C[repeated].unique(return_inverse=True)
    n_sets = weighted_entropy_CS.shape[1]
    rows = torch.cat([(counts_C * labels_C).unsqueeze(1), weighted_entropy_CS, position_entropy_CS], dim=1).double()
    sums = rows.new_zeros(len(counts), rows.shape[1]).index_add(0, row_C, rows[repeated])
    positions, of_counts = sums[:, 0], sums[:, 1:] / sums[:, :1]
    label_entropy = of_counts[:, :n_sets]
    divergence = (label_entropy - of_counts[:, n_sets:]).clamp_min(0.0)
    conditional = label_entropy + _bias(curves, counts, divergence)
    return covered_entropy_S.double() - positions @ conditional / positions.sum()


def _bias(curves: BiasCurves, counts_C: Tensor, divergence_CS: Tensor) -> Tensor:
    """b(n) of labels of count n ≥ 2 whose mean divergence is W: [C, S]."""
    first_KCS, bias_KCS = curves(torch.ones_like(counts_C)), curves(counts_C)
    nothing_1CS = torch.zeros_like(bias_KCS[:1])
    v_C1 = _v(1.0 / counts_C.double(), curves.n_positions).unsqueeze(1)
    # From the label that is one point (W = 0, b(n) = v·b(1)) to chance.
    left_KCS = torch.where(first_KCS > ROUNDING, bias_KCS / first_KCS, v_C1)
    left_KCS = torch.cat([left_KCS, nothing_1CS + v_C1]).flip(0).clamp_max(1 - 1e-9)
    ratio_KCS = (left_KCS / (1 - left_KCS)).cummax(dim=0).values
    known_KCS = (torch.cat([first_KCS, nothing_1CS]).flip(0) * (1 - left_KCS)).cummax(dim=0).values
    ratio_CS = ratio_KCS[0]
    for k in range(1, len(ratio_KCS)):
        step = (known_KCS[k] - known_KCS[k - 1]).clamp_min(1e-300)
        part = ((divergence_CS - known_KCS[k - 1]) / step).clamp(0.0, 1.0)
        ratio_CS = ratio_CS + part * (ratio_KCS[k] - ratio_KCS[k - 1])
    return ratio_CS * divergence_CS


class _Draws(NamedTuple):
    """Rows of a sample that go into its curves, the same for all layers and anchor sets.

    Attributes:
        shuffled_HR: all rows in random order, H = `SHUFFLES` times.
        centres: for each of `SHARED`, the rows that are centres, [H] with H = `CENTRES`.
        scattered: for each of `SHARED`, the rows around each centre, [H, `SCATTER`].
    """

    shuffled_HR: Tensor
    centres: list[Tensor]
    scattered: list[Tensor]


@lru_cache(maxsize=4)
def _draws(n_rows: int, seed: int) -> _Draws:
    generator = torch.Generator().manual_seed(seed)

    def shuffled(times: int, n: int) -> Tensor:
        return torch.stack([torch.randperm(n_rows, generator=generator)[:n] for _ in range(times)])

    everything = shuffled(SHUFFLES, n_rows)
    pairs = [(shuffled(1, CENTRES)[0], shuffled(CENTRES, SCATTER)) for _ in SHARED] if n_rows >= SCATTER else []
    return _Draws(everything, [centres for centres, _ in pairs], [scattered for _, scattered in pairs])


def _reference_curve(
    logits_RM: Tensor, shared: float, centres_H: Tensor, scattered_HR: Tensor, inverse_G: Tensor
) -> Tensor:
    """g [G] of labels that share a part of the positions' variance, drawn from infinitely many positions."""
    mean_M = logits_RM.mean(dim=0)
    # mean + √ρ·(centre − mean) + √(1−ρ)·(other − mean)
    near, far = shared**0.5, (1 - shared) ** 0.5
    around_HM = mean_M * (1 - near - far) + near * logits_RM[centres_H]
    logits_HRM = logits_RM[scattered_HR].mul_(far).add_(around_HM.unsqueeze(1))
    q_HRM = torch.softmax(logits_HRM, dim=-1).clamp_min_(torch.finfo(torch.float32).tiny)
    sizes, entropy_G = _mean_entropies(q_HRM, SCATTER)
    # b(n) ∝ 1/n at the large end: two counts there give the entropy of infinitely many positions.
    last, half = entropy_G[sizes.index(SCATTER)], entropy_G[sizes.index(SCATTER // 2)]
    first = next(i for i, n in enumerate(sizes) if n <= SCATTER // 4)
    n_G = torch.tensor(sizes[first:], dtype=torch.float64)
    own_G = torch.cat([n_G.new_zeros(1), 1.0 / n_G])
    g_G = torch.cat([SCATTER * (last - half).unsqueeze(0), n_G * (2 * last - half - entropy_G[first:])])
    return _interpolate(inverse_G, own_G, g_G.unsqueeze(1)).squeeze(1)


def _mean_entropies(q_HRM: Tensor, largest: int, distinct: int | None = None) -> tuple[list[int], Tensor]:
    """Mean entropy of the means of n rows of a group, for n = 1, 2, 3, 4, 6, 8, 12 … down from `largest` to 1.

    Args:
        q_HRM: rows of H groups, none of whose assignments is 0.
        distinct: groups, the first ones, that are of different rows; the others are the same ones in another order.

    Returns:
        The n in falling order, and the mean entropy of each, float64 in nats.
    """

    def mean_entropy(sums_HRM: Tensor, n: int) -> Tensor:
        return math.log(n) - sums_HRM.log().mul_(sums_HRM).sum(dim=-1).mean(dtype=torch.float64) / n

    found = {1: mean_entropy(q_HRM[:distinct], 1)}
    for first in (2, 3):
        sums, size = q_HRM, 1
        while size * (group := first if size == 1 else 2) <= largest:
            size *= group
            n_sums = sums.shape[1] // group
            sums = sum(sums[:, i : n_sums * group : group] for i in range(1, group)) + sums[:, : n_sums * group : group]
            found[size] = mean_entropy(sums, size)
    sizes = sorted(found, reverse=True)
    return sizes, torch.stack([found[n] for n in sizes])


def _v(inverse_C: Tensor, n_positions: int) -> Tensor:
    last = 1.0 / max(n_positions, 2)
    return ((inverse_C - last) / (1.0 - last)).clamp_min(0.0)


def _interpolate(x_C: Tensor, x_G: Tensor, values_GS: Tensor) -> Tensor:
    """Linear in x, along the last dimension but one: [..., G, S] -> [..., C, S]."""
    upper_C = torch.searchsorted(x_G, x_C).clamp(1, len(x_G) - 1)
    weight_C1 = ((x_C - x_G[upper_C - 1]) / (x_G[upper_C] - x_G[upper_C - 1])).unsqueeze(1)
    return torch.lerp(values_GS[..., upper_C - 1, :], values_GS[..., upper_C, :], weight_C1)
