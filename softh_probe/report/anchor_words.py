"""Values with several numbers of anchors or calibrations: data for pages, a table and a line in words."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from softh_probe.analysis.sites import lead_site, of_site
from softh_probe.layer_means import MEAN
from softh_probe.report.site_data import site_data
from softh_probe.result import ProbeResult


class AnchorRow(NamedTuple):
    """Means over layers with one number of anchors and calibration, as text.

    Attributes:
        name: what it is.
        shares: H(Z), then I(X;Z) of each label set, in shares of log m, with the standard deviation over anchor sets.
    """

    name: str
    shares: list[str]


def anchors_data(result: ProbeResult) -> list[dict[str, Any]]:
    """Convert the results of all variants to JSON values, as pages do with several results."""
    return [site_data(one, lead_site(one), name) for name, one in result.variants.items()]


def anchor_rows(result: ProbeResult) -> list[AnchorRow]:
    """Build the table of means over layers; empty where there are none."""
    rows: list[AnchorRow] = []
    if not result.mean_rows:
        return rows
    for name, one in result.variants.items():
        table = of_site(one, lead_site(one)).to_pandas()
        table = table[table.name == MEAN].set_index(["metric", "label_set"])
        keys = [("entropy", ""), *(("mutual_information", label_set) for label_set in one.label_sets)]
        pairs = [(table.value.get(key, math.nan), table.sd.get(key, math.nan)) for key in keys]
        rows.append(AnchorRow(name, [_with_sd(value, sd) for value, sd in pairs]))
    return rows


def anchors_line(result: ProbeResult) -> str | None:
    """Say what entropy, averaged over layers, is with each number of anchors; None where there is one alone."""
    rows = anchor_rows(result)
    if not rows:
        return None
    said = "; ".join(f"{row.shares[0]} with {row.name}" for row in rows)
    return f"entropy, mean over layers, in shares of log m: {said}"


def _with_sd(value: float, sd: float) -> str:
    if math.isnan(value):
        return "not known"
    return f"{value:.3f}" + ("" if math.isnan(sd) else f" ± {sd:.3f}")
