"""Entropies of one layer, from its running sums.

Shape suffixes: X label sets, S anchor sets, M anchors, L labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from softh_probe.accumulators.label_tables import mass, position_entropy, weighted_entropy
from softh_probe.accumulators.layer_sums import LayerSums
from softh_probe.accumulators.row_labels import RowLabels
from softh_probe.estimators.bias_correction import bias_curves, corrected_information, null_information
from softh_probe.estimators.soft_entropy import entropy

_ROWS_AT_ONCE = 8192  # of a table of labels, while their entropies are taken in float64


@dataclass(frozen=True, kw_only=True)
class LayerStatistics:
    """Entropies of one layer in nats, float64 on the CPU.

    Attributes:
        mass: [S, M], the running sums of soft assignments over all counted positions.
        positions: [], the positions they were summed over.
        entropy_document_sd: [S], standard deviation of H(Z) over bootstrap replicates of the documents.
        position_entropy: [S], mean entropy of the positions' own assignments.
        labelled_positions: [X], positions that have a label of the set.
        covered_positions: [X], those whose label occurs at least twice.
        labelled_entropy: [X, S], H(Z) of the positions that have a label.
        labelled_position_entropy: [X, S], mean entropy of their own assignments.
        conditional_entropy: [X, S], H(Z|X).
        null_information: [X, S], expected I(X;Z) of labels of the same counts assigned at random.
        corrected_information: [X, S], I(X;Z) of the covered positions, corrected for small counts; NaN without any.
        label_positions: [L] and label_entropy: [L, S], H(Z|X=x), of each label of the sets that show every label.
    """

    mass: Tensor
    positions: Tensor
    entropy_document_sd: Tensor
    position_entropy: Tensor
    labelled_positions: Tensor
    covered_positions: Tensor
    labelled_entropy: Tensor
    labelled_position_entropy: Tensor
    conditional_entropy: Tensor
    null_information: Tensor
    corrected_information: Tensor
    label_positions: Tensor
    label_entropy: Tensor


def layer_statistics(sums: LayerSums, rows: RowLabels) -> LayerStatistics:
    """Compute a layer's plug-in entropies, null and corrected information from its accumulators.

    Args:
        sums: the layer's running sums.
        rows: the label of each of their rows.
    """
    total, tables, (n_sets, n_anchors) = sums.total.cpu(), sums.tables, sums.points_SMD.shape[:2]
    single = sums.singleton.cpu()
    kept, live = tables.kept[: len(rows.kept_names)].cpu(), tables.live[: len(rows.live_sets)].cpu()
    retired = tables.retired.cpu()
    kept_sets, live_sets = torch.from_numpy(rows.kept_sets), torch.from_numpy(rows.live_sets)
    bucket_sets, singleton_sets = torch.from_numpy(rows.bucket_sets), torch.from_numpy(rows.singleton_sets)
    keeps_labels = torch.tensor(rows.keeps_labels, dtype=torch.bool)
    has_label = torch.tensor([name is not None for name in rows.kept_names], dtype=torch.bool)

    # Positions without a label have a row of their own; a set that keeps all its labels' rows is their sum.
    labelled = total.repeat(len(keeps_labels), 1)
    labelled[keeps_labels] = 0.0
    sign = torch.where(keeps_labels[kept_sets], has_label.double(), -(~has_label).double())
    labelled.index_add_(0, kept_sets, sign.unsqueeze(1) * kept)

    # Covered positions are those whose label is not the only one of its kind.
    covered = labelled.clone().index_add_(0, singleton_sets, -single)
    by_count = _ByCount(len(keeps_labels), n_sets)
    for part_sets, part in _parts(kept_sets[has_label], kept[has_label], live_sets, live):
        entropies = weighted_entropy(mass(part, n_sets, n_anchors)), position_entropy(part, n_sets)
        by_count.add(part_sets, part[:, -1].long(), torch.ones(len(part)), *entropies)
        alone = part[:, -1] == 1
        covered.index_add_(0, part_sets[alone], -part[alone])
    for x, shared in enumerate(rows.shared_rows):
        once = sum((live[part].sum(dim=0, dtype=torch.float64) for part in _pieces(shared)), torch.zeros_like(total))
        covered[x] -= once
        of_positions = position_entropy(once, n_sets).unsqueeze(0)
        by_count.add(torch.tensor([x]), torch.tensor([1]), once[-1:], of_positions, of_positions)
    counts, n_labels = torch.from_numpy(rows.bucket_counts), torch.from_numpy(rows.bucket_labels)
    by_count.add(bucket_sets, counts, n_labels, retired[:, :n_sets], retired[:, n_sets:])
    n_singleton_sets = torch.from_numpy(rows.singleton_labels)
    pooled, alone_entropy = n_singleton_sets > 0, position_entropy(single, n_sets)
    ones = torch.ones_like(n_singleton_sets)
    by_count.add(*(t[pooled] for t in (singleton_sets, ones, n_singleton_sets, alone_entropy, alone_entropy)))

    positions = total[-1]
    all_mass = mass(total, n_sets, n_anchors)
    sample = sums.sample.cpu()[torch.from_numpy(rows.sample_order)].unflatten(1, (n_sets, n_anchors))
    curves = bias_curves(
        sample[sample.sum(dim=(1, 2)) > 0], all_mass, position_entropy(total, n_sets) / positions, int(positions)
    )
    covered_entropy = entropy(mass(covered, n_sets, n_anchors))
    counts_C, labels_XC, weighted_XCS, of_positions_XCS = by_count.tables()

    one_by_one = torch.tensor([name is not None for name in rows.bucket_names], dtype=torch.bool)
    label_positions = torch.cat([kept[has_label][:, -1], torch.from_numpy(rows.bucket_counts)[one_by_one].double()])
    label_weighted = torch.cat(
        [weighted_entropy(mass(kept[has_label], n_sets, n_anchors)), retired[one_by_one, :n_sets]]
    )
    return LayerStatistics(
        mass=all_mass,
        positions=positions,
        position_entropy=position_entropy(total, n_sets) / positions,
        entropy_document_sd=entropy(sums.replicates.cpu().unflatten(1, (n_sets, n_anchors))).std(dim=0),
        labelled_positions=labelled[:, -1],
        covered_positions=covered[:, -1],
        labelled_entropy=entropy(mass(labelled, n_sets, n_anchors)),
        labelled_position_entropy=position_entropy(labelled, n_sets) / labelled[:, -1:],
        conditional_entropy=weighted_XCS.sum(dim=1) / labelled[:, -1:],
        null_information=null_information(curves, counts_C, labels_XC),
        corrected_information=corrected_information(
            curves, counts_C, labels_XC, weighted_XCS, of_positions_XCS, covered_entropy
        ),
        label_positions=label_positions,
        label_entropy=label_weighted / label_positions.unsqueeze(1),
    )


class _ByCount:
    """Entropies of the labels of all sets, pooled by the labels' counts."""

    def __init__(self, n_label_sets: int, n_anchor_sets: int) -> None:
        self._n_label_sets, self._n_anchor_sets = n_label_sets, n_anchor_sets
        self._parts: list[tuple[Tensor, ...]] = []

    def add(self, sets_C: Tensor, counts_C: Tensor, labels_C: Tensor, weighted_CS: Tensor, own_CS: Tensor) -> None:
        """Add pools of labels of one set and count: their number, Σ n·H(p̂_x), and Σ of assignment entropies."""
        sums = torch.cat([labels_C.double().unsqueeze(1), weighted_CS.double(), own_CS.double()], dim=1)
        self._parts.append((sets_C, counts_C, sums))

    def tables(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute distinct counts n [C], and for each set and count the labels [X, C] and their sums [X, C, S]."""
        sets, counts, sums = (torch.cat(column) for column in zip(*self._parts, strict=True))
        counts_C, c = counts.unique(return_inverse=True)
        shape = (self._n_label_sets, len(counts_C))
        pooled = sums.new_zeros(shape[0] * shape[1], sums.shape[1])
        pooled.index_add_(0, sets * shape[1] + c, sums)
        # A label none of whose positions had a direction has no entropy either.
        pooled, counts_C = pooled.unflatten(0, shape)[:, counts_C > 0], counts_C[counts_C > 0]
        labels, *entropies = pooled.split([1, self._n_anchor_sets, self._n_anchor_sets], dim=2)
        return counts_C, labels.squeeze(2), entropies[0], entropies[1]


def _parts(kept_sets: Tensor, kept: Tensor, live_sets: Tensor, live: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows that belong to one label, and their sets, in chunks, in float64."""
    yield kept_sets, kept
    for sets, rows in zip(live_sets.split(_ROWS_AT_ONCE), live.split(_ROWS_AT_ONCE), strict=True):
        own = sets >= 0
        yield sets[own], rows[own].double()


def _pieces(rows: np.ndarray) -> tuple[Tensor, ...]:
    pieces: tuple[Tensor, ...] = torch.from_numpy(rows).split(_ROWS_AT_ONCE)
    return pieces
