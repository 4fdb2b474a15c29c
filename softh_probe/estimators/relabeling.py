"""Chance for labels of whole documents: information of labels that are exchanged between documents.

A document's states are alike, so documents are the sample, not positions. The null of a label set is the plug-in
information that the same labels have after they have been exchanged between documents, or within groups of documents
(the two answers to one prompt). It depends on a layer only through each document's sum of soft assignments S_d and its
number of positions n_d. With E_d = S_d − n_d p̄, a relabeling has the class sums E_x = Σ_{d in x} E_d and

    I = Σ_x (n_x/N) KL(p̄ + E_x/n_x ‖ p̄) = H(p̄) − Σ_x (n_x/N) H(p̂_x).

Sums of deviations keep informations of 1e-6 nats right where differences of entropies in float32 would not.

A sample of D documents stands for all D_all of them. To second order, information by chance is proportional to
1/documents. So V ≤ D_all virtual documents are relabeled, and their information is multiplied by V/D_all. Labels give
up documents in proportion, but rare ones, for which the second order is not enough, keep 16 or all of theirs. Within
groups V = D, and what the groups alone say of the labels does not shrink with the number of documents: there a
relabeling's deviation from the mean of all is multiplied by sqrt(D/D_all) instead.

Shape suffixes: D documents of the sample, V slots of virtual documents, C labels, W relabelings, S anchor sets, M
anchors, B a block of anchors, G groups, Q cells (labels within groups).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from softh_probe.errors import InputError

#: Relabelings of a set of at most FEW_LABELS labels, and of more. With few labels the null varies much between
#: relabelings and p-values decide; with many, its sd is a small part of it, and each relabeling costs more.
RELABELINGS, RELABELINGS_OF_MANY, FEW_LABELS = 999, 199, 64
#: Virtual documents for each label, and of all labels, where the data has as many. With 64 documents a label the second
#: order suffices; 16,384 of them leave 16 to each of 1,000 labels. If there are more labels, some are left out.
DOCUMENTS_PER_LABEL, FEWEST_DOCUMENTS_PER_LABEL, MAX_VIRTUAL_DOCUMENTS = 64, 16, 16_384
#: Labels of which a sample of documents still gives p-values. With more, each has too few virtual documents, and the
#: null is low by more than relabelings differ.
MOST_LABELS_OF_SAMPLE = MAX_VIRTUAL_DOCUMENTS // DOCUMENTS_PER_LABEL
#: Informations that differ by less are equal: the observed one is computed in another way, from float32 sums.
RELATIVE_ROUNDING, ROUNDING_NATS = 1e-6, 5e-7
#: Values of a temporary tensor: what fits a CPU's cache, and what keeps an accelerator busy (16 MB in float32).
_CPU_VALUES, _GPU_VALUES = 1 << 17, 1 << 22
_BLOCK = 128
_ABOVE_MINUS_ONE = -1 + 2**-24


@dataclass(frozen=True, kw_only=True)
class DocumentLabels:
    """One label set over the documents of a sample.

    Attributes:
        label_D: int64 [D], label 0 … C − 1 of each document of the sample.
        documents_C: int64 [C], documents of each label in the whole data; counts of label_D where the sample is all.
        group_D: int64 [D], labels are exchanged between documents of equal number; None: between all.
    """

    label_D: np.ndarray
    documents_C: np.ndarray
    group_D: np.ndarray | None = None

    def __post_init__(self) -> None:
        n, labels, sampled = len(self.label_D), len(self.documents_C), self.label_D
        if n == 0:
            raise InputError("label_D: expected the label of one document or more, got none")
        if sampled.min() < 0 or sampled.max() >= labels:
            found = f"{sampled.min()} to {sampled.max()}"
            raise InputError(f"label_D: expected labels from 0 to {labels - 1}, the length of documents_C, got {found}")
        if np.any(np.bincount(sampled, minlength=labels) > self.documents_C):
            raise InputError("documents_C: expected at least the documents of the sample for each label, got fewer")
        if self.group_D is not None and len(self.group_D) != n:
            raise InputError(f"group_D: expected a group for each of {n:,} documents, got {len(self.group_D):,}")

    @property
    def documents(self) -> int:
        """Number D_all of documents in the whole data."""
        return int(self.documents_C.sum())


@dataclass(frozen=True, kw_only=True)
class NullInformation:
    """Plug-in information of relabelings.

    Attributes:
        information_WS: float64 [W, S], of each relabeling and anchor set, in nats.
        sampling_error: relative standard error of all of them, where a sample of the documents was relabeled.
    """

    information_WS: Tensor
    sampling_error: float = 0.0

    @property
    def mean_S(self) -> Tensor:  # noqa: N802, a shape suffix
        """Expected information by chance [S], in nats."""
        return self.information_WS.mean(dim=0)

    @property
    def sd(self) -> float:
        """Standard deviation, over relabelings, of the mean over anchor sets, in nats."""
        return float(self.information_WS.mean(dim=1).std())

    def p_value(self, information: float) -> float:
        """Compute how often labels exchanged at random say as much as the observed ones, those included.

        The observed labels count as one more relabeling, so that the value is never 0 and tests hold their level
        (Phipson and Smyth 2010, "Permutation p-values should never be zero"). With many labels, relabelings differ by
        less than the sample's error: each is drawn with an error of that size, or a chance that is slightly too low
        would make everything significant.

        Args:
            information: mean over anchor sets of the observed plug-in information, in nats.

        Returns:
            (1 + number of relabelings with at least this information) / (W + 1).
        """
        least = information - RELATIVE_ROUNDING * abs(information) - ROUNDING_NATS
        error_W = self.sampling_error * _normal_draws(len(self.information_WS))
        reached = int((self.information_WS.mean(dim=1) * error_W.exp() >= least).sum())
        return (1 + reached) / (1 + len(self.information_WS))


class Relabelings:
    """Relabelings of one label set, drawn once and used for every layer.

    >>> labels = DocumentLabels(label_D=np.arange(40) % 2, documents_C=np.array([20, 20]))
    >>> mass_DSM = torch.rand(40, 1, 8, generator=torch.Generator().manual_seed(0))
    >>> null = Relabelings(labels).null(mass_DSM, mass_DSM[:, 0].sum(dim=1))
    >>> len(null.information_WS), 0 < null.mean_S.item() < 0.02, null.p_value(0.1)
    (999, True, 0.001)

    Args:
        labels: the label set.
        seed: seed of the generator that exchanges labels; equal arguments give equal relabelings.
    """

    def __init__(self, labels: DocumentLabels, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        n_labels = len(labels.documents_C)
        draws = RELABELINGS if n_labels <= FEW_LABELS else RELABELINGS_OF_MANY
        if labels.group_D is None:
            documents_C, document_V, self._scale = _virtual(labels)
            slots: Iterator[np.ndarray] = (document_V[rng.permutation(len(document_V))] for _ in range(draws))
        else:
            documents_C, self._scale = np.bincount(labels.label_D), 1.0
            document_V = np.arange(len(labels.label_D), dtype=np.int32)
            slots = _exchanged(labels.label_D, labels.group_D, rng, draws)
        self._repeats_D = torch.from_numpy(np.bincount(document_V, minlength=len(labels.label_D))).double()
        # The sums of the most frequent label are those of all documents minus the others'.
        sizes = np.sort(documents_C[documents_C > 0])[:-1]
        self._document_WV = torch.from_numpy(np.stack([row[: sizes.sum()] for row in slots]))
        self._starts_C = torch.from_numpy(np.cumsum(sizes) - sizes).int()
        is_sample = len(labels.label_D) < labels.documents
        self._groups = None if labels.group_D is None or not is_sample else _Groups(labels.label_D, labels.group_D)
        self._has_groups = labels.group_D is not None
        self._shrink = math.sqrt(len(labels.label_D) / labels.documents)

    def null(self, mass_DSM: Tensor, positions_D: Tensor) -> NullInformation:
        """Compute the plug-in information of every relabeling in one layer.

        Args:
            mass_DSM: sums of the soft assignments of each document of the sample, S_d.
            positions_D: number of positions of each document, n_d; 0 is allowed.

        Returns:
            The informations, on the CPU.

        Raises:
            InputError: the sums are not those of the documents of the label set.
        """
        documents = len(self._repeats_D)
        if mass_DSM.ndim != 3 or not len(mass_DSM) == len(positions_D) == documents:
            expected = f"[{documents}, S, M] of the documents of the label set"
            raise InputError(f"mass_DSM: expected sums {expected}, got {list(mass_DSM.shape)}")
        device = mass_DSM.device
        n_D, repeats_D = positions_D.to(device, torch.float64), self._repeats_D.to(device)
        n_all = (n_D @ repeats_D).clamp_min(1e-300)
        n_WC = self._class_sums(n_D.unsqueeze(1))(slice(None)).squeeze(-1).clamp_min(0)
        information_WS = n_WC.new_zeros(len(n_WC), mass_DSM.shape[1])
        squares_D = torch.zeros_like(n_D)
        for s in range(mass_DSM.shape[1]):
            for block_DB in mass_DSM[:, s].split(_BLOCK, dim=1):
                p_B, relative_DB = _relative_deviations(block_DB.double(), n_D, repeats_D, n_all)
                squares_D += relative_DB.double().square() @ p_B
                class_sums = self._class_sums(relative_DB)
                for part in self._parts(device, p_B.numel()):
                    divergence_WC = _divergence(class_sums(part), n_WC[part].unsqueeze(-1), p_B)
                    information_WS[part, s] += (divergence_WC * n_WC[part]).sum(dim=1) / n_all
        error = self._sampling_error(squares_D, n_D)
        return NullInformation(information_WS=self._scale * information_WS.cpu(), sampling_error=error)

    def _sampling_error(self, squares_D: Tensor, n_D: Tensor) -> float:
        """Compute the relative standard error of informations by chance, to second order Σ_d Σ_j E_dj²/p̄_j / (Σ n_d)².

        Within groups it is left out, since their own part of the information has another one.
        """
        documents, squares, length = len(n_D), squares_D.mean(), n_D.mean()
        if self._has_groups or not self._shrink < 1 or documents < 2 or not (squares > 0 and length > 0):
            return 0.0
        influence_D = squares_D / squares - 2 * n_D / length
        return float(influence_D.std()) * math.sqrt((1 - self._shrink**2) / documents)

    def _class_sums(self, value_DB: Tensor) -> Callable[[slice], Tensor]:
        """Prepare sums of values of documents over the labels of some relabelings: part -> [W, C, B].

        embedding_bag gathers and sums in float32 or float64; it is no matrix product, so TF32 does not concern it.
        """
        device = value_DB.device
        all_B = (self._repeats_D.to(device) @ value_DB.double()).to(value_DB.dtype)
        expected_CB = None if self._groups is None else self._groups.expected(value_DB)

        def sums(part: slice) -> Tensor:
            document_WV = self._document_WV[part].to(device)
            rows, slots = document_WV.shape
            sums_WCB = value_DB.new_zeros(rows, len(self._starts_C) + 1, value_DB.shape[1])
            if slots:
                starts_WC = self._starts_C + slots * torch.arange(rows, dtype=torch.int32).unsqueeze(1)
                found = embedding_bag(document_WV.view(-1), value_DB, starts_WC.view(-1).to(device), mode="sum")
                sums_WCB[:, :-1] = found.view(rows, -1, value_DB.shape[1])
            sums_WCB[:, -1] = all_B - sums_WCB[:, :-1].sum(dim=1)
            return sums_WCB if expected_CB is None else torch.lerp(expected_CB, sums_WCB, self._shrink)

        return sums

    def _parts(self, device: torch.device, columns: int) -> Iterator[slice]:
        """Split the relabelings so that temporary tensors stay small."""
        values = _CPU_VALUES if device.type == "cpu" else _GPU_VALUES
        slots = self._document_WV.shape[1] if device.type != "cpu" else 0
        step = max(1, values // max((len(self._starts_C) + 1) * columns, slots))
        return (slice(at, at + step) for at in range(0, len(self._document_WV), step))


def _normal_draws(draws: int) -> Tensor:
    """Give evenly spaced quantiles of the standard normal distribution, in a random order that is always the same."""
    at = torch.randperm(draws, generator=torch.Generator().manual_seed(0)).double()
    quantiles: Tensor = torch.special.ndtri((at + 0.5) / draws)
    return quantiles


def _virtual(labels: DocumentLabels) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the virtual documents of each label [C], the document of the sample in each slot, int32 [V], and a factor.

    Informations are multiplied by the factor. It is V/D_all, or as if all labels were there where some are left out.
    """
    sampled, wanted = len(labels.label_D), DOCUMENTS_PER_LABEL * len(labels.documents_C)
    limit = max(sampled, min(wanted, MAX_VIRTUAL_DOCUMENTS))
    ascending_C = np.sort(labels.documents_C)
    least_C = np.minimum(ascending_C, FEWEST_DOCUMENTS_PER_LABEL)[:-1]
    every = max(1, -(-int(least_C.sum()) // limit))
    chosen_C = np.append(np.arange(every // 2, len(least_C), every), len(least_C))
    reduced_C = _reduced(ascending_C[chosen_C], limit)
    count, left_out = int(reduced_C.sum()), least_C.sum() / max(least_C[chosen_C[:-1]].sum(), 1) if every > 1 else 1.0
    document_V = (np.arange(count) * sampled // count).astype(np.int32)
    return reduced_C, document_V, float(count * left_out / labels.documents)


def _reduced(ascending_C: np.ndarray, limit: int) -> np.ndarray:
    """Reduce counts in proportion, but none below FEWEST_DOCUMENTS_PER_LABEL.

    The most frequent label is not summed: the limit is for the others, and twice the limit for all.
    """

    def at(share: float) -> np.ndarray:
        least_C = np.minimum(ascending_C, FEWEST_DOCUMENTS_PER_LABEL)
        counts_C: np.ndarray = np.maximum(least_C, np.floor(share * ascending_C).astype(np.int64))
        return counts_C

    def fits(counts_C: np.ndarray) -> bool:
        return bool(counts_C[:-1].sum() <= limit and counts_C.sum() <= 2 * limit)

    low, high = (1.0, 1.0) if fits(ascending_C) else (0.0, 1.0)
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if fits(at(middle)) else (low, middle)
    return ascending_C if low == 1 else at(low)


def _exchanged(label_D: np.ndarray, group_D: np.ndarray, rng: np.random.Generator, draws: int) -> Iterator[np.ndarray]:
    """Exchange labels within groups: yield documents in the order of their new labels, rare labels first."""
    group_D = np.unique(group_D, return_inverse=True)[1]
    frequency_D = np.bincount(label_D)[label_D]
    # The label of the i-th place, where places are sorted by group, and the places in the order of labels.
    by_group = np.argsort(group_D, kind="stable")
    by_label = np.lexsort((label_D[by_group], frequency_D[by_group]))
    for _ in range(draws):
        yield np.argsort(group_D + rng.random(len(group_D)))[by_label].astype(np.int32)


class _Groups:
    """Class sums in expectation over relabelings within groups, labels in the order of the class sums."""

    def __init__(self, label_D: np.ndarray, group_D: np.ndarray) -> None:
        group_D, frequency_D = np.unique(group_D, return_inverse=True)[1], np.bincount(label_D)[label_D]
        rank_D = np.unique(np.stack([frequency_D, label_D]), axis=1, return_inverse=True)[1].reshape(-1)
        cell_2Q, count_Q = np.unique(np.stack([rank_D, group_D]), axis=1, return_counts=True)
        size_G = np.bincount(group_D)
        self._document_D = torch.from_numpy(np.argsort(group_D, kind="stable"))
        self._starts_G = torch.from_numpy(np.cumsum(size_G) - size_G)
        self._group_Q = torch.from_numpy(cell_2Q[1])
        self._share_Q = torch.from_numpy(count_Q / size_G[cell_2Q[1]])
        self._starts_C = torch.from_numpy(np.searchsorted(cell_2Q[0], np.arange(cell_2Q[0].max() + 1)))

    def expected(self, value_DB: Tensor) -> Tensor:
        """Compute the class sums [C, B] where each document has the mean label of its group."""
        device = value_DB.device
        sums_GB = embedding_bag(self._document_D.to(device), value_DB, self._starts_G.to(device), mode="sum")
        group_Q, starts_C, share_Q = self._group_Q.to(device), self._starts_C.to(device), self._share_Q.to(value_DB)
        return embedding_bag(group_Q, sums_GB, starts_C, mode="sum", per_sample_weights=share_Q)


def _relative_deviations(mass_DB: Tensor, n_D: Tensor, repeats_D: Tensor, n_all: Tensor) -> tuple[Tensor, Tensor]:
    """Compute p̄ and E_d / p̄ in float32; 0 for an anchor without any mass."""
    p_B = repeats_D @ mass_DB / n_all
    deviation_DB = mass_DB - n_D.unsqueeze(1) * p_B
    return p_B, torch.where(p_B > 0, deviation_DB / p_B, 0.0).float()


def _divergence(sums_WCB: Tensor, n_WC1: Tensor, p_B: Tensor) -> Tensor:
    """Compute Σ_j p̄_j ((1 + r) log(1 + r) − r) of the relative deviations r = E_x/(n_x p̄): [W, C] float64.

    Over all anchors Σ_j p̄_j r_j = 0, so that this is KL(p̂_x ‖ p̄). Every term is at least 0: the sum does not cancel.
    """
    ratio = sums_WCB.mul_((1 / n_WC1).masked_fill_(n_WC1 == 0, 0).float()).clamp_min_(_ABOVE_MINUS_ONE)
    terms = torch.log1p(ratio).mul_(ratio + 1).sub_(ratio).mul_(p_B.float())
    return terms.sum(dim=-1).double()
