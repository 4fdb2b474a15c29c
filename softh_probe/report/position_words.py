"""Information over bins of positions: values for figures and pages, and a finding in words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from softh_probe.analysis.layers import extreme
from softh_probe.analysis.sites import lead_site, of_site
from softh_probe.metrics import ENTROPIES
from softh_probe.position_bins import ALL_BINS, POSITION_SET
from softh_probe.report.bit_words import label_bits
from softh_probe.report.extreme_words import alike_words
from softh_probe.report.page_data import numbers
from softh_probe.result import ProbeResult

#: Metrics that pages show over bins.
_SHOWN = (
    "entropy",
    "mutual_information",
    "mutual_information_corrected",
    "mutual_information_null",
    "mutual_information_max",
)
_CORRECTED, _RAW = "mutual_information_corrected", "mutual_information"


class OverBins(NamedTuple):
    """Information about a label set [bins, layers], missing where a bin has none, and which metric it is."""

    values: pd.DataFrame
    metric: str

    @property
    def words(self) -> str:
        """Say whether it is corrected."""
        return "corrected for chance" if self.metric == _CORRECTED else "raw"


def over_bins(table: pd.DataFrame, label_set: str) -> OverBins:
    """Give the information about a label set in each bin and layer.

    It is the corrected one where that is known: chance gives more in bins of few positions.

    Args:
        table: that of `ProbeResult.by_position`.
        label_set: name of the set.
    """
    table = table[table.position != ALL_BINS]
    names = table.position.unique()
    table = table[table.label_set == label_set]
    metric = _CORRECTED if table.value[table.metric == _CORRECTED].notna().any() else _RAW
    table = table[table.metric == metric]
    wide = table.pivot(index="position", columns="name", values="value")
    return OverBins(wide.reindex(index=names, columns=list(dict.fromkeys(table.name))), metric)


def position_data(result: ProbeResult) -> dict[str, Any] | None:
    """Convert the values of bins to JSON values, in units of log m: for each metric and label set [bin][layer].

    None where there are no bins.
    """
    if not result.bins:
        return None
    log_m = math.log(result.n_anchors)
    bins = {name: one for name, one in result.bins.items() if name != ALL_BINS}
    series: dict[str, list[Any]] = {}
    for b, one in enumerate(bins.values()):
        for label_set, metric, values_RS in one.metrics():
            if metric in _SHOWN:
                key = f"{metric}|{label_set}"
                scale = log_m if metric in ENTROPIES else 1.0
                series.setdefault(key, [None] * len(bins))[b] = numbers((values_RS.mean(dim=1) / scale).tolist())
    return {"bins": [*bins], "positions": [one.info["positions"] for one in bins.values()], "series": series}


def position_line(result: ProbeResult) -> str | None:
    """Say how information changes with the position, in the layer where it changes most; None without bins."""
    if not result.bins or not result.label_sets:
        return None
    result = of_site(result, lead_site(result))
    label_set = result.label_sets[0]
    found = over_bins(result.by_position("nats"), label_set)
    ends = [*_known_ends(found.values)]
    words = _of_position(result.bins[ALL_BINS])
    if not ends:
        return f"by position: information about {label_set} is not known in two bins{words}"
    layer, first, last = max(ends, key=lambda end: abs(end[2][1] - end[1][1]))
    said = [f"{label_bits(result.bins[name], label_set).of(nats)} at {name}" for name, nats in (first, last)]
    return f"by position: information about {label_set} in {layer}, {found.words}: {', '.join(said)}{words}"


def _of_position(whole: ProbeResult) -> str:
    """Say how much information there is about the position, in the layer where it is highest; empty where unknown."""
    found = extreme(whole, POSITION_SET, _RAW)
    if found is None:
        return ""
    value_RS = next(v for name, metric, v in whole.metrics() if (name, metric) == (POSITION_SET, _RAW))
    value = label_bits(whole, POSITION_SET).of(float(value_RS[found.row].mean()))
    alike = f", not distinguishable from {words}" if (words := alike_words(found, with_distance=False)) else ""
    return f"; of the position itself {value}, highest in {whole.rows[found.row]}{alike}"


def _known_ends(values: pd.DataFrame) -> Iterator[tuple[str, tuple[str, float], tuple[str, float]]]:
    """Yield each layer with the first and the last bin of which its value is known, where these are two."""
    for layer in values.columns:
        known = values[layer][np.isfinite(values[layer].to_numpy(float))]
        if len(known) > 1:
            ends = [(str(known.index[i]), float(known.iloc[i])) for i in (0, -1)]
            yield str(layer), ends[0], ends[1]
