"""From one layer's running sums to its entropies.

Shape suffixes: X label sets, S anchor sets, M anchors, L labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from softh_probe.estimator import entropy
from softh_probe.sums import LayerSums


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
    def bucket_sets(self) -> np.ndarray: ...
    @property
    def bucket_counts(self) -> np.ndarray: ...
    @property
    def bucket_labels(self) -> np.ndarray: ...


@dataclass(frozen=True, kw_only=True)
class LayerStatistics:
    """Entropies of one layer in nats, float64 on the CPU.

    Attributes:
        mass: [S, M], the running sums of soft assignments over all counted positions.
        positions: [], the positions they were summed over.
        position_entropy: [S], mean entropy of the positions' own assignments.
        labelled_positions: [X], positions that have a label of the set.
        covered_positions: [X], those whose label occurs at least twice.
        labelled_entropy: [X, S], H(Z) of the positions that have a label.
        labelled_position_entropy: [X, S], mean entropy of their own assignments.
        conditional_entropy: [X, S], H(Z|X).
        kept_mass: [L, S, M] and kept_positions: [L], of each label whose row was kept.
    """

    mass: Tensor
    positions: Tensor
    position_entropy: Tensor
    labelled_positions: Tensor
    covered_positions: Tensor
    labelled_entropy: Tensor
    labelled_position_entropy: Tensor
    conditional_entropy: Tensor
    kept_mass: Tensor
    kept_positions: Tensor


def layer_statistics(sums: LayerSums, rows: Rows) -> LayerStatistics:
    """Close the books of one layer: every row that is still there is folded into its set's totals."""
    total = sums.total.cpu()
    kept, opened = sums.kept[: len(rows.kept_names)].cpu(), sums.open[: len(rows.open_sets)].cpu().double()
    folded = sums.folded.cpu()
    kept_sets, open_sets = torch.from_numpy(rows.kept_sets), torch.from_numpy(rows.open_sets)
    bucket_sets = torch.from_numpy(rows.bucket_sets)
    keeps_labels = torch.tensor(rows.keeps_labels, dtype=torch.bool)
    has_label = torch.tensor([name is not None for name in rows.kept_names], dtype=torch.bool)

    # Positions without a label have a row of their own; a set that keeps all its labels' rows is their sum.
    labelled = total.repeat(len(keeps_labels), 1)
    labelled[keeps_labels] = 0.0
    sign = torch.where(keeps_labels[kept_sets], has_label.double(), -(~has_label).double())
    labelled.index_add_(0, kept_sets, sign.unsqueeze(1) * kept)

    weighted = torch.zeros(len(keeps_labels), sums.n_sets, dtype=torch.float64)
    covered = torch.zeros(len(keeps_labels), dtype=torch.float64)
    for sets, labels in ((kept_sets[has_label], kept[has_label]), (open_sets, opened)):
        weighted.index_add_(0, sets, sums.weighted_entropy(labels))
        covered.index_add_(0, sets, torch.where(labels[:, -1] >= 2, labels[:, -1], 0.0))
    weighted.index_add_(0, bucket_sets, folded[:, : sums.n_sets])
    repeated = rows.bucket_counts >= 2
    in_buckets = torch.from_numpy(rows.bucket_counts * rows.bucket_labels * repeated).double()
    covered.index_add_(0, bucket_sets, in_buckets)

    count = labelled[:, -1]
    return LayerStatistics(
        mass=sums.mass(total),
        positions=total[-1],
        position_entropy=sums.position_entropy(total) / total[-1],
        labelled_positions=count,
        covered_positions=covered,
        labelled_entropy=entropy(sums.mass(labelled)),
        labelled_position_entropy=sums.position_entropy(labelled) / count.unsqueeze(1),
        conditional_entropy=weighted / count.unsqueeze(1),
        kept_mass=sums.mass(kept[has_label]),
        kept_positions=kept[has_label][:, -1],
    )
