"""Information of labels of whole documents, corrected for the number of documents: a jackknife over documents.

Plug-in information is too high because each label is seen in few documents. To first order its bias falls as
1/documents, whatever the documents are like. The jackknife measures such a bias: for k units that are drawn alike,

    bias = (k − 1) · mean over units of (I₋ᵤ − I),

where I₋ᵤ lacks unit u (Quenouille 1956, "Notes on bias in estimation"; Miller 1974, "The jackknife: a review"; Efron
and Tibshirani 1993, "An introduction to the bootstrap", chapters 10 and 11). Which units are alike depends on the
groups within which labels could be exchanged:

- No groups. The documents of a label are a stratum: its number of documents is given, each is drawn alike. Without
  document d, the sums of its label are those of the other k − 1, times k/(k − 1), so that labels keep their shares.
- Groups, most of whose documents have a label of their own in it (the two answers to a prompt). The group is the unit.
  A part that its documents share moves all their labels together: it cancels in the information, and in I₋ᵤ. A group of
  one document is a unit like the others: what it would share with another does not cancel in the information either.
- Other groups (the languages of a corpus). They are few and given. The documents of one label in one group are a
  stratum, as above. Documents that are alone in theirs count as the other documents of the sample do on average.

In all three, the terms of I₋ᵤ − I that are linear in the changes Δ of the sums add up to 0 over all units. Over a
sample of them they would not, and would drown the bias. They are known exactly, and are left out. What remains for each
unit is, with n' and p̂' those without the unit,

    (Σ_x n'_x KL(p̂'_x ‖ p̂_x) − N' KL(p̂' ‖ p̂)) / N' − (L − I Δn) Δn / (N N'),       L = Σ_x Σ_j Δ_xj log(p̂_xj/p̂_j).

Where labels have few documents that are unlike each other, the first order is not enough. So where documents are the
units, the parts of H(Z|X) and H(Z) are multiplied by what biases of that size are over their first order in documents
that are drawn by chance (`document_curve`). For groups there is no such curve.

The first order assumes nothing of documents, their lengths or states, except that units are independent. Its multiple
assumes that the documents of all labels scatter in the shape of chance. What is left of the bias, in nats, mean /
maximum of the error of the mean (`python scripts/study_document_labels.py`):

    documents a label                    2                5               20              100
    plug-in                        .596 / .943      .279 / .543      .092 / .187      .017 / .037
    plug-in minus the null         .234 / .583      .116 / .398      .045 / .166      .009 / .040
    corrected                      .108 / .255      .034 / .101      .004 / .015      .002 / .004

Of labels that say nothing, .12 of .94 is left with 50 labels of 2 documents, .015 of .090 with 2 labels of 20, nothing
with 8 or 50 labels of 5 or more. Of pairs, .05 of .12 is left with 10 pairs, .004 of .034 with 50.

Shape suffixes: D documents of the sample, C labels, U units, Q changes of one label (documents, or the documents of one
label in one group), S anchor sets, M anchors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from softh_probe.errors import InputError
from softh_probe.estimators.document_curve import FEWEST_DOCUMENTS, document_curve
from softh_probe.estimators.relabeling import DocumentLabels

#: Values of a temporary tensor in float64: 8 MB.
_VALUES = 1 << 20


def corrected_by_documents(
    labels: DocumentLabels, mass_DSM: Tensor, positions_D: Tensor, mass_CSM: Tensor, positions_C: Tensor
) -> Tensor:
    """Compute plug-in information minus its bias, over the labels of at least 2 documents.

    >>> label_D, generator = np.arange(60) % 3, torch.Generator().manual_seed(0)
    >>> mass_DSM = torch.rand(60, 1, 8, generator=generator).double() + torch.eye(8)[label_D].unsqueeze(1) / 2
    >>> positions_D = mass_DSM.sum(dim=(1, 2))
    >>> sums = torch.stack([mass_DSM[label_D == x].sum(dim=0) for x in range(3)])
    >>> labels = DocumentLabels(label_D=label_D, documents_C=np.bincount(label_D))
    >>> corrected = corrected_by_documents(labels, mass_DSM, positions_D, sums, sums.sum(dim=(1, 2)))
    >>> [round(x, 2) for x in corrected.tolist()]
    [0.03]

    Args:
        labels: the label set, over a sample of the documents.
        mass_DSM: sums of the soft assignments of each document of the sample.
        positions_D: number of positions of each document; 0 is allowed.
        mass_CSM: sums of the soft assignments of each label over the whole data.
        positions_C: number of positions of each label in the whole data.

    Returns:
        Corrected information in nats [S], float64; NaN where no label has two documents, since one document does not
        tell what it has in common with others of its label. It may be below 0, as must be if its mean is to be right.

    Raises:
        InputError: the sums are not those of the documents and labels of the label set.
    """
    _check(labels, mass_DSM, positions_D, mass_CSM, positions_C)
    repeated_C = labels.documents_C >= 2
    kept_D = np.flatnonzero(repeated_C[labels.label_D])
    if not len(kept_D):
        return torch.full(mass_DSM.shape[1:2], torch.nan, dtype=torch.float64, device=mass_DSM.device)
    plug_in = _PlugIn(mass_CSM, positions_C, torch.from_numpy(labels.documents_C))
    rows_D = torch.from_numpy(kept_D).to(mass_DSM.device)
    sample = _Sample(
        mass_DSM=mass_DSM[rows_D],
        positions_D=positions_D[rows_D].double(),
        label_D=torch.from_numpy(labels.label_D[kept_D]).to(mass_DSM.device),
        all_documents=int(labels.documents_C[repeated_C].sum()),
    )
    if labels.group_D is None:
        strata = _Strata(sample.label_D, plug_in.documents_C, mass_CSM, plug_in.n_C)
        bias_S = _bias_by_document(plug_in, sample, sample, strata)
    else:
        bias_S = _bias_with_groups(plug_in, sample, labels.group_D[kept_D])
    return plug_in.information_S - bias_S


def _check(
    labels: DocumentLabels, mass_DSM: Tensor, positions_D: Tensor, mass_CSM: Tensor, positions_C: Tensor
) -> None:
    n_documents, n_labels = len(labels.label_D), len(labels.documents_C)
    if mass_DSM.ndim != 3 or not len(mass_DSM) == len(positions_D) == n_documents:
        expected = f"[{n_documents}, S, M] of the documents of the label set"
        raise InputError(f"mass_DSM: expected sums {expected}, got {list(mass_DSM.shape)}")
    if mass_CSM.shape != (n_labels, *mass_DSM.shape[1:]) or len(positions_C) != n_labels:
        wanted = [n_labels, *mass_DSM.shape[1:]]
        raise InputError(f"mass_CSM: expected sums {wanted} of the labels, got {list(mass_CSM.shape)}")


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """Documents of the sample whose label another document has, and how many documents they stand for."""

    mass_DSM: Tensor
    positions_D: Tensor
    label_D: Tensor
    all_documents: int

    def part(self, rows_D: Tensor) -> _Sample:
        """Select some documents; they stand for as many as before."""
        return _Sample(
            mass_DSM=self.mass_DSM[rows_D],
            positions_D=self.positions_D[rows_D],
            label_D=self.label_D[rows_D],
            all_documents=self.all_documents,
        )

    @property
    def weight(self) -> float:
        """Documents that each of the sample stands for."""
        return self.all_documents / len(self.label_D)

    @property
    def step(self) -> int:
        """Documents at a time, so that temporary tensors stay small."""
        return max(1, _VALUES // self.mass_DSM[0].numel())


class _PlugIn:
    """Sums over the whole data, and how information changes with them."""

    def __init__(self, mass_CSM: Tensor, positions_C: Tensor, documents_C: Tensor) -> None:
        self._mass_CSM, self.n_C = mass_CSM, positions_C.double()
        self.documents_C = documents_C.to(self.n_C)
        self.kept_C = self.documents_C >= 2
        parts_C = self.kept_C.nonzero().squeeze(1).split(max(1, _VALUES // mass_CSM[0].numel()))
        self.n = self.n_C[self.kept_C].sum().clamp_min(1e-300)
        self._p_SM = (
            torch.stack([mass_CSM[part].sum(dim=0, dtype=torch.float64) for part in parts_C]).sum(dim=0) / self.n
        )
        self.information_S = torch.zeros_like(self._p_SM[:, 0])
        for part in parts_C:
            ratio_CSM = self._of_labels(part)[1]
            self.information_S += (mass_CSM[part].double() * ratio_CSM).sum(dim=(0, 2)) / self.n

    def _of_labels(self, label_Q: Tensor) -> tuple[Tensor, Tensor]:
        """Compute p̂_x and log(p̂_x / p̂) [Q, S, M]; the logarithm is 0 where the label has no mass that could change."""
        p_QSM = self._mass_CSM[label_Q].double() / self.n_C[label_Q].clamp_min(1e-300).view(-1, 1, 1)
        return p_QSM, torch.where(p_QSM > 0, p_QSM / self._p_SM, 1.0).log_()

    def terms(self, label_Q: Tensor, change_QSM: Tensor, change_Q: Tensor) -> tuple[Tensor, Tensor]:
        """Compute n'_x KL(p̂'_x ‖ p̂_x) and L [Q, S] of changes of the sums of one label."""
        p_QSM, log_ratio_QSM = self._of_labels(label_Q)
        linear_QS = (change_QSM * log_ratio_QSM).sum(dim=-1)
        return _divergence(p_QSM, self.n_C[label_Q], change_QSM, change_Q), linear_QS

    def remainder(self, of_labels_US: Tensor, linear_US: Tensor, change_USM: Tensor, change_U: Tensor) -> Tensor:
        """Compute the three parts [3, U, S] of I₋ᵤ − I without its linear part, from the change of all sums.

        The first minus the others is (Σ_x n'_x KL(p̂'_x ‖ p̂_x) − N' KL(p̂' ‖ p̂)) / N' − (L − I Δn) Δn / (N N').
        """
        change_U1 = change_U.unsqueeze(1)
        of_all_US = _divergence(self._p_SM, self.n, change_USM, change_U)
        of_lengths_US = (linear_US - self.information_S * change_U1) * change_U1 / self.n
        n_U1 = self.n + change_U1
        parts_3US = torch.stack([of_labels_US, of_all_US, of_lengths_US])
        return torch.where(n_U1 > 0, parts_3US / n_U1, 0.0)


def _divergence(p_QSM: Tensor, n_Q: Tensor, change_QSM: Tensor, change_Q: Tensor) -> Tensor:
    """Compute n' KL(p̂' ‖ p̂) [Q, S] after a change of the sums, with terms that do not cancel; 0 where n' is 0."""
    after_Q11 = (n_Q + change_Q).view(-1, 1, 1)
    deviation_QSM = (change_QSM - change_Q.view(-1, 1, 1) * p_QSM) / after_Q11
    ratio_QSM = torch.where((p_QSM > 0) & (after_Q11 > 0), deviation_QSM / p_QSM, 0.0).clamp_min_(-1)
    terms_QSM = p_QSM * (torch.special.xlog1py(1 + ratio_QSM, ratio_QSM) - ratio_QSM)
    divergence_QS: Tensor = terms_QSM.sum(dim=-1)
    return divergence_QS * after_Q11.squeeze(-1).clamp_min(0)


@dataclass(frozen=True)
class _Strata:
    """Strata of the documents: the stratum of each, and documents, sums and positions of each stratum."""

    stratum_D: Tensor
    documents_Q: Tensor
    mass_QSM: Tensor
    positions_Q: Tensor

    def jackknife(self, plug_in: _PlugIn, sample: _Sample) -> Tensor:
        """Sum (k − 1)/k (I₋d − I) over documents, without its linear part, in three parts [3, S].

        They are that of H(Z|X), that of H(Z), to be subtracted, and what labels of unequal length add.
        """
        sums_3S = torch.zeros_like(plug_in.information_S).expand(3, -1).clone()
        for rows in torch.arange(len(self.stratum_D), device=sums_3S.device).split(sample.step):
            at, part = self.stratum_D[rows], sample.part(rows)
            k_D = self.documents_Q[at]
            k_D11 = k_D.view(-1, 1, 1)
            # The sums of the other k − 1 documents times k/(k − 1), minus those of all k.
            change_DSM = (self.mass_QSM[at].double() - k_D11 * part.mass_DSM.double()) / (k_D11 - 1)
            change_D = (self.positions_Q[at] - k_D * part.positions_D) / (k_D - 1)
            parts_3DS = plug_in.remainder(*plug_in.terms(part.label_D, change_DSM, change_D), change_DSM, change_D)
            sums_3S += ((1 - 1 / k_D).unsqueeze(1) * parts_3DS).sum(dim=1)
        return sums_3S * sample.weight


def _bias_by_document(plug_in: _PlugIn, sample: _Sample, units: _Sample, strata: _Strata) -> Tensor:
    """Compute the bias [S] where documents are the units, beyond its first order if they are enough to tell."""
    of_labels_S, of_all_S, of_lengths_S = strata.jackknife(plug_in, units)
    if len(sample.mass_DSM) >= FEWEST_DOCUMENTS:
        kept_C = plug_in.kept_C
        curve = document_curve(sample.mass_DSM, sample.positions_D)
        share_C = plug_in.n_C[kept_C] / plug_in.n
        for_labels_S, for_all_S = curve.ratios(plug_in.documents_C[kept_C], share_C, of_labels_S)
        of_labels_S, of_all_S = for_labels_S * of_labels_S, for_all_S * of_all_S
    bias_S: Tensor = of_labels_S - of_all_S - of_lengths_S
    return bias_S


def _bias_with_groups(plug_in: _PlugIn, sample: _Sample, group_D: np.ndarray) -> Tensor:
    """Compute the bias [S] by groups, or by documents of one label in one group."""
    cells_2D = np.stack([group_D, sample.label_D.cpu().numpy()])
    cell_D = np.unique(cells_2D, axis=1, return_inverse=True)[1].reshape(-1)
    together = np.flatnonzero(np.bincount(cell_D)[cell_D] >= 2)
    if 2 * len(together) <= len(cell_D):
        return _bias_by_group(plug_in, sample, np.unique(group_D, return_inverse=True)[1])
    units = sample.part(torch.from_numpy(together).to(sample.label_D.device))
    strata = _strata(units, np.unique(cell_D[together], return_inverse=True)[1])
    return _bias_by_document(plug_in, sample, units, strata)


def _strata(sample: _Sample, stratum_D: np.ndarray) -> _Strata:
    """Sum documents of the sample by stratum."""
    at_D = torch.from_numpy(stratum_D).to(sample.label_D.device)
    count_Q = torch.bincount(at_D)
    mass_QSM = sample.positions_D.new_zeros(len(count_Q), *sample.mass_DSM.shape[1:])
    for rows in torch.arange(len(at_D), device=at_D.device).split(sample.step):
        mass_QSM.index_add_(0, at_D[rows], sample.mass_DSM[rows].double())
    positions_Q = sample.positions_D.new_zeros(len(count_Q)).index_add_(0, at_D, sample.positions_D)
    return _Strata(at_D, count_Q.to(positions_Q), mass_QSM, positions_Q)


def _bias_by_group(plug_in: _PlugIn, sample: _Sample, group_D: np.ndarray) -> Tensor:
    """Compute (U − 1) times the mean over groups of I₋ᵤ − I, without its linear part: [S]."""
    device, bias_S = sample.label_D.device, torch.zeros_like(plug_in.information_S)
    order_D, size_G = np.argsort(group_D, kind="stable"), np.bincount(group_D)
    part_D = np.repeat((np.cumsum(size_G) - size_G) // sample.step, size_G)  # parts of whole groups
    for rows_D in np.split(order_D, np.flatnonzero(np.diff(part_D)) + 1):
        part, group_R = sample.part(torch.from_numpy(rows_D).to(device)), group_D[rows_D]
        # The documents of one label in one group are one change of the sums of that label.
        pairs_2R = np.stack([group_R, part.label_D.cpu().numpy()])
        cell_2Q, cell_R = np.unique(pairs_2R, axis=1, return_inverse=True)
        cells = _strata(part, cell_R.reshape(-1))
        unit_Q = torch.from_numpy(np.unique(cell_2Q[0], return_inverse=True)[1]).to(device)
        label_Q = torch.from_numpy(cell_2Q[1]).to(device)
        of_label_QS, linear_QS = plug_in.terms(label_Q, -cells.mass_QSM, -cells.positions_Q)
        terms = (of_label_QS, linear_QS, -cells.mass_QSM, -cells.positions_Q)
        n_units = int(unit_Q[-1]) + 1
        of_units = (term.new_zeros(n_units, *term.shape[1:]).index_add_(0, unit_Q, term) for term in terms)
        of_labels_S, of_all_S, of_lengths_S = plug_in.remainder(*of_units).sum(dim=1)
        bias_S += of_labels_S - of_all_S - of_lengths_S
    all_groups = len(size_G) * sample.weight
    return bias_S * ((all_groups - 1) / len(size_G))
