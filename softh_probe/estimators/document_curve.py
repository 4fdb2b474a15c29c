"""How the bias of a label falls with its number of documents: a curve from documents that are drawn by chance.

The jackknife takes a bias b(n) of n documents to be proportional to 1/n: it measures (n − 1)(b(n − 1) − b(n)). In few
documents that are unlike each other b(n) falls more slowly, and more of it stays than is taken away. For labels that
say nothing b(n) = E KL(p̂_n ‖ p̄) can be measured: draw n documents. Documents of a label that says something are more
alike. They scatter as means of c documents drawn by chance do, so that their bias is b(c n). The factor c is the one
that gives what the jackknife measured. At c = 1 the correction is the null; as c grows it becomes the jackknife.

Shape suffixes: D documents, R groups of documents, G powers of 2, C labels, F factors c, S anchor sets, M
anchors, B a block of anchors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

#: Fewer documents do not show how a bias falls with their number.
FEWEST_DOCUMENTS = 8
#: Documents that are drawn in all shuffles together, and most shuffles.
_DRAWN, _SHUFFLES = 16_384, 64
#: Fewest groups of n documents, of a shuffle and of all, whose mean divergence is a point of the curve.
_GROUPS, _ALL_GROUPS = 4, 256
#: Anchors at a time.
_BLOCK = 128
#: Factors c.
_FACTORS_F = torch.logspace(0, 4, 65, dtype=torch.float64)
_TINY = 1e-300
_FURTHER = 32


@dataclass(frozen=True)
class DocumentCurve:
    """The bias b(n) of labels that say nothing, in nats.

    Attributes:
        g_GS: [G, S], n b(n) at n = 1, 2, 4, …
    """

    g_GS: Tensor

    def __call__(self, n_FC: Tensor) -> Tensor:
        """Evaluate b at numbers of documents of at least 1: [F, C, S]. Cubic, since its fall is needed."""
        at_FC = n_FC.log2()
        below_FC = at_FC.long().clamp(0, len(self.g_GS) - 2)
        t_FC1 = (at_FC - below_FC).unsqueeze(-1)
        slope_GS = torch.gradient(self.g_GS, dim=0)[0]
        g_FCS, next_FCS = self.g_GS[below_FC], self.g_GS[below_FC + 1]
        first_FCS, last_FCS = slope_GS[below_FC], slope_GS[below_FC + 1]
        rise_FCS = next_FCS - g_FCS
        bend_FCS = (1 - t_FC1) * (first_FCS - rise_FCS) + t_FC1 * (rise_FCS - last_FCS)
        return (g_FCS + t_FC1 * rise_FCS + t_FC1 * (1 - t_FC1) * bend_FCS) / n_FC.unsqueeze(-1)

    def ratios(self, documents_C: Tensor, share_C: Tensor, measured_S: Tensor) -> tuple[Tensor, Tensor]:
        """Estimate the bias of entropies over what the jackknife measures of it, about 1 where documents are many.

        Args:
            documents_C: number of documents of each label, 2 or more.
            share_C: share of each label of the positions.
            measured_S: what the jackknife measured of the conditional entropy, in nats.

        Returns:
            For the conditional entropy, and for the entropy of all documents together: [S] each.
        """
        count_C, at_C = documents_C.double().unique(return_inverse=True)
        weight_C1 = share_C.new_zeros(len(count_C)).index_add_(0, at_C, share_C).unsqueeze(1)
        bias_FS, fall_FS = ((part * weight_C1).sum(dim=1) for part in self._bias_and_fall(count_C))
        of_all_FS, fall_of_all_FS = (part.squeeze(1) for part in self._bias_and_fall(documents_C.double().sum()[None]))
        curves = (fall_FS, bias_FS / fall_FS, of_all_FS / fall_of_all_FS)
        # What the jackknife measures falls as c grows.
        by_set = zip(measured_S.cpu(), *(curve.T.flip(1).cpu() for curve in curves), strict=True)
        ratios_S2 = measured_S.new_tensor([_at(*of_set) for of_set in by_set])
        return ratios_S2[:, 0], ratios_S2[:, 1]

    def _bias_and_fall(self, count_C: Tensor) -> tuple[Tensor, Tensor]:
        """Compute b(c n) and (n − 1)(b(c (n − 1)) − b(c n)) [F, C, S]."""
        factor_F1 = _FACTORS_F.to(count_C.device).unsqueeze(1)
        bias_FCS = self(factor_F1 * count_C)
        return bias_FCS, (self(factor_F1 * (count_C - 1)) - bias_FCS) * (count_C - 1).unsqueeze(1)


def _at(measured: Tensor, fall_F: Tensor, *ratios_F: Tensor) -> list[float]:
    """Return ratios where the fall is the measured one, at the nearest end where none is; 1 where nothing falls."""
    possible = fall_F > 0
    if not possible.any():
        return [1.0] * len(ratios_F)
    rising = fall_F[possible].cummax(dim=0).values.numpy()
    return [float(np.interp(measured.item(), rising, ratio_F[possible].numpy())) for ratio_F in ratios_F]


def document_curve(mass_DSM: Tensor, positions_D: Tensor) -> DocumentCurve:
    """Measure the curve in documents that are put together at random.

    >>> mass_DSM = torch.rand(64, 1, 20, generator=torch.Generator().manual_seed(0)).double()
    >>> curve = document_curve(mass_DSM, mass_DSM[:, 0].sum(dim=1))
    >>> [round(b.item(), 3) for b in curve(torch.tensor([[1.0, 10.0, 100.0]])).flatten()]
    [0.2, 0.018, 0.002]

    Args:
        mass_DSM: sums of the soft assignments of each document.
        positions_D: number of positions of each document.
    """
    n_documents, n_D = len(mass_DSM), positions_D.double().unsqueeze(1)
    n_all, generator = n_D.sum().clamp_min(_TINY), torch.Generator().manual_seed(0)
    shuffles = max(1, min(_SHUFFLES, _DRAWN // n_documents))
    orders = [torch.randperm(n_documents, generator=generator).to(n_D.device) for _ in range(shuffles)]
    largest = n_documents // max(_GROUPS, _ALL_GROUPS // shuffles)
    sizes = [2**i for i in range(max(largest, 1).bit_length())]
    limit_S = n_D.new_zeros(mass_DSM.shape[1])
    divergence_GS = n_D.new_zeros(len(sizes), mass_DSM.shape[1])
    for s in range(mass_DSM.shape[1]):
        for block_DB in mass_DSM[:, s].split(_BLOCK, dim=1):
            block_DB = block_DB.double()
            p_B = block_DB.sum(dim=0) / n_all
            square_B = (block_DB - n_D * p_B).square_().sum(dim=0)
            # As n grows, KL tends to half of χ².
            limit_S[s] += torch.where(p_B > 0, square_B / p_B, 0.0).sum() * n_documents / (2 * n_all**2)
            for order in orders:
                divergence_GS[:, s] += _divergences(block_DB[order], n_D[order], p_B, len(sizes))
    limit_S *= n_documents / max(n_documents - 1, 1)
    return DocumentCurve(_products(divergence_GS / shuffles, limit_S, sizes[-1] / n_documents))


def _products(divergence_GS: Tensor, limit_S: Tensor, share: float) -> Tensor:
    """Compute n b(n) from E KL(p̂_n ‖ p̂_D) = b(n) − b(D); the largest n is this share of D.

    Beyond that n, n b(n) is taken to near its limit as 1/n does.
    """
    n_G1 = 2.0 ** torch.arange(len(divergence_GS)).to(limit_S).unsqueeze(1)
    largest_S = (n_G1[-1] * divergence_GS[-1] + limit_S * (share - share**2)) / (1 - share**2)
    of_all_S = (limit_S + (largest_S - limit_S) * share) * share / n_G1[-1]
    further_G1 = 2.0 ** torch.arange(1, _FURTHER).to(limit_S).unsqueeze(1)
    return torch.cat([n_G1 * (divergence_GS + of_all_S), limit_S + (largest_S - limit_S) / further_G1])


def _divergences(mass_RB: Tensor, n_R1: Tensor, p_B: Tensor, n_sizes: int) -> Tensor:
    """Compute the mean of KL(p̂ ‖ p̄) over groups of 1, 2, 4, … documents, weighted by their positions: [G]."""
    found = []
    for size in range(n_sizes):
        if size:
            mass_RB, n_R1 = (x[: len(x) // 2 * 2].unflatten(0, (-1, 2)).sum(dim=1) for x in (mass_RB, n_R1))
        ratio_RB = torch.where(p_B > 0, mass_RB / n_R1.clamp_min(_TINY) / p_B, 0.0)
        found.append(torch.special.xlogy(ratio_RB, ratio_RB).mul_(n_R1).sum(dim=0) @ p_B / n_R1.sum().clamp_min(_TINY))
    return torch.stack(found)
