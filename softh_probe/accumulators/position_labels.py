"""Bins of positions as the labels of a label set of their own: the sums of a bin are those of its label."""

from __future__ import annotations

import numpy as np
import torch

from softh_probe.accumulators.layer_sums import LayerStack, LayerSums
from softh_probe.accumulators.row_labels import RowLabels, TableSizes
from softh_probe.estimators.projection import Projection
from softh_probe.position_bins import POSITION_SET


def bins_as_labels(sums: LayerSums) -> LayerSums:
    """Give the sums of a layer with its bins of positions as the only labels, in host memory."""
    sizes = TableSizes(n_kept=len(sums.bins), n_sample=len(sums.sample))
    projection = Projection(sums.projection.points_SMD.cpu(), sums.projection.temperature)
    found = LayerSums(LayerStack(projection, sizes=sizes, with_direction=False))
    for name in ("total", "replicates", "sample"):
        getattr(found, name).copy_(getattr(sums, name))
    found.tables.kept.copy_(torch.stack([of_bin.total for of_bin in sums.bins]))
    return found


def position_labels(rows: RowLabels) -> RowLabels:
    """Describe the rows of `bins_as_labels`, by the rows of the layer's own sums."""
    return RowLabels(
        set_names=[POSITION_SET],
        keeps_labels=[True],
        kept_sets=np.zeros(len(rows.bins), dtype=np.int64),
        kept_names=[*rows.bins],
        thresholds=np.ones(1),
        sample_order=rows.sample_order,
    )
