"""Figures of results of several sites: a line for each site, and attention heads as heat maps of layers and heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from softh_probe.analysis.sites import HEADS, lines_of, of_site
from softh_probe.report.figure_style import (
    COLOURS,
    NotebookFigure,
    heat_map,
    interval_edges,
    interval_key,
    layer_axis,
    layer_ticks,
    panel_order,
    plain,
    sampling_band,
    sampling_key,
    style_axes,
)
from softh_probe.report.page_data import UNIT_NAMES
from softh_probe.result import ProbeResult


def sites_by_layer(result: ProbeResult, unit: str = "efficiency") -> Figure:
    """Draw entropy, and information about each label set, of every layer: a panel each, in it a line for each site."""
    panels = [("entropy", ""), *(("mutual_information", name) for name in panel_order(result.label_sets))]
    figure, grid = _grid(len(panels), 3.0, 2.4)
    tables = {site: of_site(result, site).to_pandas(unit, means=False) for site in lines_of(result)}
    for axes, (metric, label_set) in zip(grid, panels, strict=False):
        y_label = f"{'I(X;Z)' if label_set else 'H(Z)'} ({UNIT_NAMES[unit]})"
        style_axes(axes, plain(label_set) if label_set else "entropy", "", y_label)
        for i, (site, table) in enumerate(tables.items()):
            part = table[(table.metric == metric) & (table.label_set == label_set)]
            _line(axes, part, COLOURS[i % len(COLOURS)], site.replace("_", " "))
    if result.sampled_sets:
        sampling_key(grid[-1])
    if result.standard_errors():
        interval_key(grid[-1])
    figure.supxlabel(layer_axis(of_site(result, lines_of(result)[0]).places), fontsize="medium")
    figure.legend(*grid[-1].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return figure


def heads_by_layer(result: ProbeResult, unit: str = "efficiency") -> Figure:
    """Draw entropy, and information about each label set, of every attention head: a heat map of layers and heads."""
    heads = of_site(result, HEADS)
    panels = [("entropy", ""), *(("mutual_information", name) for name in panel_order(result.label_sets))]
    figure, grid = _grid(len(panels), 4.0, 0.8 + 0.16 * (1 + max(head_numbers(heads))))
    table = heads.to_pandas(unit, means=False)
    table["head"] = table.name.map(dict(zip(heads.rows, head_numbers(heads), strict=True)))
    for axes, (metric, label_set) in zip(grid, panels, strict=False):
        part = table[(table.metric == metric) & (table.label_set == label_set)]
        wide = part.pivot_table(index="head", columns="layer", values="value", dropna=False)
        image = heat_map(axes, wide.columns.to_numpy(float), wide.index.to_numpy(float), wide.to_numpy(float))
        axes.set_title(plain(label_set) if label_set else "entropy", loc="left", fontsize="medium")
        for axis, places in ((axes.xaxis, wide.columns), (axes.yaxis, wide.index)):
            layer_ticks(axis, [*map(int, places)])
        figure.colorbar(image, ax=axes, pad=0.01, label=f"{'I(X;Z)' if label_set else 'H(Z)'} ({UNIT_NAMES[unit]})")
    figure.supxlabel("layer", fontsize="medium")
    figure.supylabel("attention head (from 0)", fontsize="medium")
    return figure


def head_numbers(heads: ProbeResult) -> list[int]:
    """Give the number of the head of each row.

    >>> head_numbers(ProbeResult(rows=["layer.1.head.0", "layer.1.head.11"], label_sets=[], tensors={}))
    [0, 11]
    """
    return [int(row.rpartition(".")[2]) for row in heads.rows]


def _grid(n_panels: int, width: float, height: float) -> tuple[Figure, Sequence[Axes]]:
    n_columns = max(1, min(4, (n_panels + 1) // 2))
    n_rows = -(-n_panels // n_columns)
    figure = NotebookFigure(figsize=(2.6 + width * n_columns, 1 + height * n_rows), layout="constrained")
    grid = list(figure.subplots(n_rows, n_columns, squeeze=False).flat)
    for axes in grid[n_panels:]:
        axes.set_visible(False)
    return figure, grid[:n_panels]


def _line(axes: Axes, part: Any, colour: str, label: str) -> None:
    x, y, sd = (part[column].to_numpy(float) for column in ("layer", "value", "sd"))
    axes.plot(x, y, color=colour, marker="o", markersize=3, linewidth=1.5, label=label)
    axes.fill_between(x, y - sd, y + sd, color=colour, alpha=0.15, linewidth=0)
    if "sampling_sd" in part:
        sampling_band(axes, x, y, part.sampling_sd, colour)
    if "se" in part:
        interval_edges(axes, x, y, part.se, colour)
