"""correlations.html: a heat map of correlations, the models behind each cell, and a table."""

from __future__ import annotations

import math
from typing import Any

from softh_probe.analysis.point_correlation import Correlations
from softh_probe.report.page import render
from softh_probe.report.page_data import amount, numbers

_SCRIPTS = ("ink.js", "ticks.js", "base.js", "table.js", "correlations.js", "start.js")


def correlations_page(found: Correlations) -> str:
    """Render the page; whatever is in names of models and benchmarks is shown as text."""
    n, m = len(found.points), found.table["benchmark"].nunique()
    return render(
        "correlations",
        own_scripts=_SCRIPTS,
        title="Metrics and benchmark scores",
        subtitle=f"{n} models, {m} benchmark{'s' * (m > 1)}, {len(found.table)} tests"
        + (f"; given {', '.join(found.control)}" if found.control else ""),
        findings=[],
        warnings=found.unmatched,
        rule="",
        notes=found.notes,
        data=_data(found),
    )


def _data(found: Correlations) -> dict[str, Any]:
    """Give what the scripts read: lines refer to metrics, benchmarks and groups by their numbers."""
    table = found.table
    metrics = [*dict.fromkeys(zip(table["label_set"], table["metric"], strict=True))]
    benchmarks, groups = ([*dict.fromkeys(table[name])] for name in ("benchmark", "group"))
    values = [
        [point.values[key].value if key in point.values else float("nan") for point in found.points] for key in metrics
    ]
    places = [{key: i for i, key in enumerate(of)} for of in (metrics, benchmarks, groups)]
    lines = [
        {
            "metric": places[0][line["label_set"], line["metric"]],
            "benchmark": places[1][line["benchmark"]],
            "group": places[2][line["group"]],
            "n": int(line["n"]),
            **{kind: _parts(line, kind) for kind in found.kinds},
        }
        for line in table.to_dict("records")
    ]
    return {
        "kind": "correlations",
        "metrics": metrics,
        "benchmarks": benchmarks,
        "groups": groups,
        "kinds": found.kinds,
        "models": [
            {
                "name": p.name,
                "family": p.family or "unknown family",
                "size": f"{amount(p.n_parameters)} parameters" if p.n_parameters else "",
            }
            for p in found.points
        ],
        "values": [numbers(of) for of in values],
        "scores": [numbers(found.matched.scores[name]) for name in benchmarks],
        "lines": lines,
    }


def _parts(line: dict[Any, Any], kind: str) -> list[float | None]:
    """Give the coefficient, its p-value, both ends of its interval, and q."""
    r, low, high = numbers([line[kind], line[f"{kind}_low"], line[f"{kind}_high"]], 4)
    p, q = (None if math.isnan(line[name]) else float(f"{line[name]:.3g}") for name in (f"{kind}_p", f"{kind}_q"))
    return [r, p, low, high, q]
