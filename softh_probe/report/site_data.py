"""Data of a page of several sites: a run for each site, and tables of layers and heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from softh_probe.analysis.sites import HEADS, of_site
from softh_probe.report.page_data import numbers, run_data, values_by_key
from softh_probe.report.site_figures import head_numbers
from softh_probe.result import ProbeResult

#: Metrics of heads that a page shows.
_OF_HEADS = ("entropy", "mutual_information", "mutual_information_corrected")


def site_data(result: ProbeResult, site: str, title: str) -> dict[str, Any]:
    """Convert one site of a result as `run_data` does; of heads, the mean over those of a layer."""
    data = run_data(of_site(result, site), title)
    return data if site != HEADS else _mean_over_heads(data)


def _mean_over_heads(data: dict[str, Any]) -> dict[str, Any]:
    """Average the heads of each layer; their errors, which are not independent, are left out."""
    layers = list(dict.fromkeys(data["layers"]))
    place = np.array([layers.index(layer) for layer in data["layers"]])

    def averaged(values: list[float | None]) -> list[float | None]:
        known = np.array([np.nan if value is None else value for value in values])
        return numbers([float(known[place == n].mean()) for n in range(len(layers))])

    return {
        **data,
        "rows": [f"layer.{layer}.head.mean" for layer in layers],
        "layers": layers,
        "series": {key: {"v": averaged(of["v"])} for key, of in data["series"].items()},
        "labels": [],
    }


def heads_data(results: Sequence[ProbeResult], titles: Sequence[str]) -> dict[str, Any]:
    """Give, of each result with heads, its layers, and by "metric|label set" a line of values for each head."""
    found = []
    for result, title in zip(results, titles, strict=True):
        if HEADS in result.sites:
            own = of_site(result, HEADS)
            layers, heads = own.places.indices, head_numbers(own)
            columns = sorted(set(layers))
            series = {}
            for key, values_RS in values_by_key(own).items():
                if key.split("|")[0] in _OF_HEADS:
                    wide = np.full((max(heads) + 1, len(columns)), np.nan)
                    wide[heads, [columns.index(layer) for layer in layers]] = values_RS.mean(dim=1).numpy()
                    series[key] = [numbers(line) for line in wide]
            found.append({"title": title, "layers": columns, "log_m": run_log_m(own), "series": series})
    return {"heads": found} if found else {}


def run_log_m(result: ProbeResult) -> float:
    """Give log m in nats."""
    return float(np.log(result.n_anchors))
