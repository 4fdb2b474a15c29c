"""The entropy of each label of a set that shows its labels one by one, as a table.

Shape suffixes: R rows (layers), L labels, S anchor sets.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from softh_probe.errors import InputError
from softh_probe.labels import spellings
from softh_probe.metrics import unit_scale

if TYPE_CHECKING:
    from softh_probe.result import ProbeResult


def by_label_table(result: ProbeResult, label_set: str, unit: str = "efficiency") -> pd.DataFrame:
    """Build the table of H(Z|X=x); see `ProbeResult.conditional_entropy`.

    Raises:
        InputError: the set does not show its labels one by one, or the unit is unknown.
    """
    sets = spellings(label_set)
    chosen = [i for i, (in_set, _) in enumerate(result.labels) if in_set in sets]
    if not chosen:
        shown = ", ".join(dict.fromkeys(s for s, _ in result.labels)) or "none"
        raise InputError(f"label_set: {label_set!r} does not show its labels one by one; those that do: {shown}")
    values_RLS = result.tensors["label_entropy"][:, chosen] * unit_scale(unit, result.n_anchors)
    counts_RL = result.tensors["label_positions"][:, chosen].long()
    n_rows, n_labels = counts_RL.shape
    table = pd.DataFrame(
        {
            "layer": np.repeat(np.array(result.places.indices, dtype=np.int64), n_labels),
            "name": np.repeat(result.rows, n_labels),
            "label": [result.labels[i][1] for i in chosen] * n_rows,
            "count": counts_RL.flatten().numpy(),
            "value": values_RLS.mean(dim=2).flatten().numpy(),
        }
    )
    sd_RL = values_RLS.std(dim=2) if values_RLS.shape[2] > 1 else torch.full_like(values_RLS[..., 0], math.nan)
    return table.assign(sd=sd_RL.flatten().numpy())
