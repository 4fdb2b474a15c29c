"""From one layer's running sums to its entropies.

Shape suffixes: X label sets, S anchor sets, M anchors, L labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from softh_probe.estimator import entropy
from softh_probe.sums import LayerSums
from softh_probe.tables import mass, position_entropy, weighted_entropy


class Rows(Protocol):
    """What the rows of the running sums mean: `Plan` or `GrowingRows`."""

    @property
    def set_names(self) -> list[str]: ...
    @property
    def keeps_labels(self) -> list[bool]: ...
    @property
    def kept_sets(self) -> np.ndarray: ...
    @property
    def kept_names(self) -> list[str | None]: ...
    @property
    def open_sets(self) -> np.ndarray: ...
    @property
    def single_sets(self) -> np.ndarray: ...
    @property
    def single_labels(self) -> np.ndarray: ...
    @property
    def bucket_sets(self) -> np.ndarray: ...
    @property
    def bucket_counts(self) -> np.ndarray: ...
    @property
    def bucket_labels(self) -> np.ndarray: ...
    @property
    def bucket_names(self) -> list[str | None]: ...


_ROWS_AT_ONCE = 8192  # of a table of labels, while their entropies are taken in float64


def named_labels(rows: Rows) -> list[tuple[str, str]]:
    """Label set and name of each label that results show one by one, in the order of their statistics."""
    sets = [*rows.kept_sets.tolist(), *rows.bucket_sets.tolist()]
    names = [*rows.kept_names, *rows.bucket_names]
    return [(rows.set_names[i], name) for i, name in zip(sets, names, strict=True) if name is not None]


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
    label_positions: Tensor
    label_entropy: Tensor


def layer_statistics(sums: LayerSums, rows: Rows) -> LayerStatistics:
    """Close the books of one layer: every row that is still there is folded into its set's totals."""
    total, tables, (n_sets, n_anchors) = sums.total.cpu(), sums.tables, sums.points_SMD.shape[:2]
    single = sums.single.cpu()
    kept, opened = tables.kept[: len(rows.kept_names)].cpu(), tables.open[: len(rows.open_sets)].cpu()
    folded = tables.folded.cpu()
    kept_sets, open_sets = torch.from_numpy(rows.kept_sets), torch.from_numpy(rows.open_sets)
    bucket_sets, single_sets = torch.from_numpy(rows.bucket_sets), torch.from_numpy(rows.single_sets)
    keeps_labels = torch.tensor(rows.keeps_labels, dtype=torch.bool)
    has_label = torch.tensor([name is not None for name in rows.kept_names], dtype=torch.bool)

    # Positions without a label have a row of their own; a set that keeps all its labels' rows is their sum.
    labelled = total.repeat(len(keeps_labels), 1)
    labelled[keeps_labels] = 0.0
    sign = torch.where(keeps_labels[kept_sets], has_label.double(), -(~has_label).double())
    labelled.index_add_(0, kept_sets, sign.unsqueeze(1) * kept)

    # Covered positions are those whose label is not the only one of its kind.
    covered = labelled.clone()
    weighted = torch.zeros(len(keeps_labels), n_sets, dtype=torch.float64)
    for part_sets, part in _parts(kept_sets[has_label], kept[has_label], open_sets, opened):
        weighted.index_add_(0, part_sets, weighted_entropy(mass(part, n_sets, n_anchors)))
        alone = part[:, -1] == 1
        covered.index_add_(0, part_sets[alone], -part[alone])
    weighted.index_add_(0, bucket_sets, folded[:, :n_sets])
    covered.index_add_(0, single_sets, -single)
    pooled = torch.from_numpy(rows.single_labels) > 0
    weighted.index_add_(0, single_sets[pooled], position_entropy(single[pooled], n_sets))

    one_by_one = torch.tensor([name is not None for name in rows.bucket_names], dtype=torch.bool)
    label_positions = torch.cat([kept[has_label][:, -1], torch.from_numpy(rows.bucket_counts)[one_by_one].double()])
    label_weighted = torch.cat(
        [weighted_entropy(mass(kept[has_label], n_sets, n_anchors)), folded[one_by_one, :n_sets]]
    )
    return LayerStatistics(
        mass=mass(total, n_sets, n_anchors),
        positions=total[-1],
        position_entropy=position_entropy(total, n_sets) / total[-1],
        entropy_document_sd=entropy(sums.replicates.cpu().unflatten(1, (n_sets, n_anchors))).std(dim=0),
        labelled_positions=labelled[:, -1],
        covered_positions=covered[:, -1],
        labelled_entropy=entropy(mass(labelled, n_sets, n_anchors)),
        labelled_position_entropy=position_entropy(labelled, n_sets) / labelled[:, -1:],
        conditional_entropy=weighted / labelled[:, -1:],
        label_positions=label_positions,
        label_entropy=label_weighted / label_positions.unsqueeze(1),
    )


def _parts(kept_sets: Tensor, kept: Tensor, open_sets: Tensor, opened: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of labels and their sets, some thousands at a time, in float64."""
    yield kept_sets, kept
    for sets, rows in zip(open_sets.split(_ROWS_AT_ONCE), opened.split(_ROWS_AT_ONCE), strict=True):
        yield sets, rows.double()
