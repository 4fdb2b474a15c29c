"""The tidy table of a result: one line for each layer, label set and metric, then the lines of the mean over layers.

Shape suffixes: R rows (layers), S anchor sets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from softh_probe.layer_means import MEAN, compute_means, mean_standard_errors
from softh_probe.layer_places import RESIDUAL
from softh_probe.metrics import ENTROPIES, unit_scale

if TYPE_CHECKING:
    from softh_probe.result import ProbeResult


def tidy_table(result: ProbeResult, unit: str, *, means: bool = True) -> pd.DataFrame:
    """Build the table of `ProbeResult.to_pandas`.

    Raises:
        InputError: the unit is unknown.
    """
    table = layer_table(result, unit)
    if not means:
        return table
    parts = [table.astype({"layer": "Int64"}), mean_table(result, unit)]
    return pd.concat([part for part in parts if len(part)], ignore_index=True)


def layer_table(result: ProbeResult, unit: str) -> pd.DataFrame:
    """Build the lines of the layers; `layer` is int64.

    Raises:
        InputError: the unit is unknown.
    """
    scale = unit_scale(unit, result.n_anchors)
    errors = {
        "se": result.standard_errors(),
        "sampling_sd": result.sampling_sds() if result.sampled_sets else {},
        "p_value": result.p_values(),
    }
    errors = {name: found for name, found in errors.items() if found}
    missing_R = torch.full((len(result.rows),), math.nan, dtype=torch.float64)
    indices = np.array(result.places.indices, dtype=np.int64)
    parts = []
    for label_set, metric, values_RS in result.metrics():
        factor = scale if metric in ENTROPIES else 1.0
        part = {"layer": indices, "name": result.rows, "label_set": label_set, "metric": metric}
        part |= _value_and_sd(values_RS * factor)
        for name, found in errors.items():
            of_metric_R = found.get((label_set, metric), missing_R)
            part[name] = (of_metric_R if name == "p_value" else of_metric_R * factor).numpy()
        parts.append(pd.DataFrame(part))
    table = pd.concat(parts, ignore_index=True)
    if result.sites != [RESIDUAL]:
        table["site"] = np.tile(result.places.sites, len(parts))
    row = np.tile(np.arange(len(result.rows)), len(parts))
    return table.iloc[row.argsort(kind="stable")].reset_index(drop=True)


def mean_table(result: ProbeResult, unit: str) -> pd.DataFrame:
    """Build the lines of the means over layers, with the columns of `layer_table`; `layer` is <NA>, of Int64.

    Raises:
        InputError: the unit is unknown.
    """
    scale = unit_scale(unit, result.n_anchors)
    lines = [line for name, layers in result.mean_rows.items() for line in _lines(result, name, layers, scale)]
    if not lines:
        return pd.DataFrame()
    table = pd.DataFrame(lines)
    return table.astype({"layer": "Int64"})


def _lines(result: ProbeResult, name: str, layers: Sequence[str], scale: float) -> list[dict[str, Any]]:
    """List the lines of one row of means."""
    rows = [result.rows.index(layer) for layer in layers]
    se_of = mean_standard_errors(result.influence, result.tensors, result.label_sets, rows)
    has_se, has_p = bool(result.standard_errors()), bool(result.p_values())
    found = []
    for label_set, metric, values_1S, error_1 in compute_means(result.tensors, result.label_sets, rows):
        factor = scale if metric in ENTROPIES else 1.0
        columns = {column: values.item() for column, values in _value_and_sd(values_1S * factor).items()}
        line = {"layer": None, "name": name, "label_set": label_set, "metric": metric, **columns}
        if has_se:
            line["se"] = se_of.get((label_set, metric), math.nan) * factor
        if result.sampled_sets:
            line["sampling_sd"] = math.nan if math.isnan(columns["value"]) else error_1.item() * factor
        if has_p:
            line["p_value"] = math.nan
        if result.sites != [RESIDUAL]:
            line["site"] = RESIDUAL if name == MEAN else name.removeprefix(f"{MEAN}.")
        found.append(line)
    return found


def _value_and_sd(values_RS: Tensor) -> dict[str, Any]:
    """Give mean and standard deviation over anchor sets, [R] each; the latter is NaN with a single set."""
    sd_R = values_RS.std(dim=1) if values_RS.shape[1] > 1 else torch.full_like(values_RS[:, 0], math.nan)
    return {"value": values_RS.mean(dim=1).numpy(), "sd": sd_R.numpy()}
