#!/usr/bin/env python3
"""python scripts/study_document_labels.py

Errors of the null and the correction of labels of whole documents (`estimators/relabeling.py`,
`estimators/document_correction.py`), in documents whose truth is known. A document's hidden states are the centre of
its label, a part that the document shares, and noise; lengths vary from 1 to 60. The truth is the information in
infinitely many documents.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from softh_probe import sample_anchors, temperature
from softh_probe.estimators.document_correction import corrected_by_documents
from softh_probe.estimators.relabeling import DocumentLabels, Relabelings
from softh_probe.estimators.soft_entropy import anchor_logits, assignments, entropy

DIM, ANCHORS = 64, 100
#: Parts of the variance that labels and documents have.
WORLDS = {
    "labels say nothing, documents alike": (0.0, 0.05),
    "labels say nothing": (0.0, 0.3),
    "labels say little": (0.03, 0.2),
    "labels say much": (0.3, 0.2),
    "labels say much, documents alike": (0.3, 0.03),
}
LABELS, DOCUMENTS_PER_LABEL = (2, 8, 50), (2, 5, 20, 100)
#: Documents of all repetitions together, and most repetitions.
DRAWN, REPEATS = 6000, 100
generator = torch.Generator().manual_seed(0)
rng = np.random.default_rng(0)
directions, epsilon = sample_anchors(ANCHORS, DIM, 0).unsqueeze(0), temperature(ANCHORS, DIM)


@dataclass(frozen=True)
class World:
    """Centres of labels [C, D], and the parts of the variance of labels, documents and groups."""

    centre_CD: Tensor
    of_label: float
    of_document: float
    of_group: float = 0.0

    @property
    def of_position(self) -> float:
        return 1 - self.of_label - self.of_document - self.of_group

    def documents(self, label_D: np.ndarray, group_D: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
        """Sums of soft assignments [D, 1, M] and lengths [D] of new documents."""
        n_D = np.ceil(rng.lognormal(1.5, 1, len(label_D))).clip(1, 60).astype(np.int64)
        at_N = torch.from_numpy(np.repeat(np.arange(len(label_D)), n_D))
        shared_DD = self.of_document**0.5 * noise(len(label_D))
        shared_DD += self.of_label**0.5 * self.centre_CD[torch.from_numpy(label_D)]
        if group_D is not None:
            shared_DD += self.of_group**0.5 * noise(int(group_D.max()) + 1)[torch.from_numpy(group_D)]
        q_NSM = soft_assignments(shared_DD[at_N] + self.of_position**0.5 * noise(len(at_N)))
        mass_DSM = torch.zeros(len(label_D), *q_NSM.shape[1:]).index_add_(0, at_N, q_NSM)
        return mass_DSM, torch.from_numpy(n_D).float()

    def truth(self, draws: int = 20_000) -> float:
        """Information in infinitely many documents of equally frequent labels."""
        rest = (1 - self.of_label) ** 0.5
        halves_2CSM = torch.stack(
            [
                torch.stack(
                    [soft_assignments(self.of_label**0.5 * c + rest * noise(draws)).mean(dim=0) for c in centres]
                )
                for centres in (self.centre_CD, self.centre_CD)
            ]
        )
        # The bias is proportional to 1/draws.
        of_halves = (plain_information(halves_2CSM[0]) + plain_information(halves_2CSM[1])) / 2
        return 2 * plain_information(halves_2CSM.mean(dim=0)) - of_halves


def noise(count: int) -> Tensor:
    return torch.randn(count, DIM, generator=generator)


def soft_assignments(h_ND: Tensor) -> Tensor:
    return assignments(anchor_logits(h_ND, directions, epsilon)[0])[0]


def plain_information(p_CSM: Tensor) -> float:
    return (entropy(p_CSM.double().mean(dim=0)) - entropy(p_CSM.double()).mean(dim=0)).item()


def label_sums(mass_DSM: Tensor, n_D: Tensor, label_D: np.ndarray) -> tuple[Tensor, Tensor, float]:
    """Sums and positions of each label, and plug-in information."""
    at_D, count = torch.from_numpy(label_D), int(label_D.max()) + 1
    mass_CSM = torch.zeros(count, *mass_DSM.shape[1:], dtype=torch.float64).index_add_(0, at_D, mass_DSM.double())
    n_C = torch.zeros(count, dtype=torch.float64).index_add_(0, at_D, n_D.double())
    conditional = (n_C / n_C.sum()) @ entropy(mass_CSM).nan_to_num()
    return mass_CSM, n_C, (entropy(mass_CSM.sum(dim=0)) - conditional).item()


def errors(
    world: World, label_D: np.ndarray, group_D: np.ndarray | None, truth: float
) -> dict[str, tuple[float, float]]:
    """Mean of estimate − truth, and its standard error."""
    labels = DocumentLabels(label_D=label_D, documents_C=np.bincount(label_D), group_D=group_D)
    relabelings, found = Relabelings(labels), defaultdict(list)
    for repeat in range(max(12, min(REPEATS, DRAWN // len(label_D)))):
        mass_DSM, n_D = world.documents(label_D, group_D)
        mass_CSM, n_C, plug_in = label_sums(mass_DSM, n_D, label_D)
        found["plug-in"].append(plug_in - truth)
        if repeat < 12:
            found["less null"].append(plug_in - relabelings.null(mass_DSM, n_D).mean_S.item() - truth)
        corrected = corrected_by_documents(labels, mass_DSM, n_D, mass_CSM, n_C).item()
        found["corrected"].append(corrected - truth)
    return {name: (float(np.mean(x)), float(np.std(x) / len(x) ** 0.5)) for name, x in found.items()}


def line(name: str, truth: float, found: dict[str, tuple[float, float]]) -> None:
    print(f"{name:50s} {truth:7.4f}", *(f"{mean:+9.4f}±{se:.4f}" for mean, se in found.values()), flush=True)


def study_correction() -> None:
    print(f"estimate − truth, nats{'':29s}   truth          plug-in        less null        corrected")
    worst: dict[int, list[tuple[float, ...]]] = defaultdict(list)
    for name, (of_label, of_document) in WORLDS.items():
        for n_labels in LABELS:
            world = World(noise(n_labels), of_label, of_document)
            truth = world.truth()
            for k in DOCUMENTS_PER_LABEL:
                if not 10 <= k * n_labels <= 1000:
                    continue
                found = errors(world, np.repeat(np.arange(n_labels), k), None, truth)
                line(f"{name}, {n_labels} x {k}", truth, found)
                worst[k].append(tuple(abs(mean) for mean, _ in found.values()))
    print("\ndocuments a label: mean / most of the absolute error of the mean")
    for k, rows in sorted(worst.items()):
        print(f"{k:4d}   ", "   ".join(f"{np.mean(x):.4f} / {max(x):.4f}" for x in zip(*rows, strict=True)))


def study_groups() -> None:
    print("\npairs, whose two documents share a part")
    for of_label in (0.0, 0.05):
        for pairs in (10, 50, 250):
            world = World(noise(2), of_label, 0.05, of_group=0.3)
            truth, label_D, group_D = world.truth(100_000), np.arange(2 * pairs) % 2, np.arange(2 * pairs) // 2
            line(f"part of labels {of_label}, {pairs} pairs", truth, errors(world, label_D, group_D, truth))
            alone = np.arange(2 * pairs) % 5 != 0  # a fifth of the documents is missing
            found = errors(world, label_D[alone], group_D[alone], truth)
            line(f"part of labels {of_label}, {pairs} pairs, some halves", truth, found)


def study_samples() -> None:
    print("\nnull of a sample of documents over that of all, 1,000 of 5,000 documents (of 50,000: 4,096)")
    for n_labels in (2, 8, 200, 1000):
        for n_all, n_sample in ((5000, 1000), (50_000, 4096)):
            world = World(noise(1), 0.0, 0.2)
            label_D = rng.integers(n_labels, size=n_all) * rng.integers(2, size=n_all)  # one label has half of them
            mass_DSM, n_D = world.documents(np.zeros(n_all, dtype=np.int64))
            whole = [label_sums(mass_DSM, n_D, rng.permutation(label_D))[2] for _ in range(100)]
            rows = rng.permutation(n_all)[:n_sample]
            labels = DocumentLabels(label_D=label_D[rows], documents_C=np.bincount(label_D))
            null = Relabelings(labels).null(mass_DSM[rows], n_D[rows])
            ratios = null.mean_S.item() / np.mean(whole), null.sd / np.std(whole)
            print(f"{n_labels:5d} labels, {n_all:6,d}: mean {ratios[0]:.3f}, sd {ratios[1]:.3f}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    study_correction()
    study_groups()
    study_samples()
