"""Figures of a result: functions that return matplotlib figures, for papers and notebooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from softh_probe.analysis.alignment import equally_deep
from softh_probe.analysis.sites import HEADS, lead_site, lines_of, of_site
from softh_probe.labels import DIRECTIONS, ORDERS
from softh_probe.metrics import levels_of
from softh_probe.report.figure_style import (
    COLOURS,
    DEPTH_AXIS,
    NotebookFigure,
    heat_map,
    interval_edges,
    interval_key,
    layer_axis,
    layer_ticks,
    leave_empty,
    one_panel,
    panel_order,
    plain,
    sampling_band,
    sampling_key,
    short,
    style_axes,
    wrapped,
)
from softh_probe.report.label_samples import TOLD
from softh_probe.report.page_data import MOST_LABELS, UNIT_NAMES
from softh_probe.report.position_figures import information_by_position
from softh_probe.report.share_figures import shares_by_layer
from softh_probe.report.site_figures import heads_by_layer, sites_by_layer
from softh_probe.result import ProbeResult

_CHANCE_LINES = (
    ("mutual_information_max", "if every label were unique", "0.5", ":"),
    ("mutual_information", "raw", COLOURS[0], "-"),
    ("mutual_information_null", "by chance", COLOURS[4], "-"),
    ("mutual_information_corrected", "corrected", COLOURS[2], "--"),
)
_CHANCE_SD = "mutual_information_null_sd"


def entropy_by_layer(result: ProbeResult, unit: str = "efficiency") -> Figure:
    """Draw H(Z) of every layer, with the sd over anchor sets if there are several."""
    figure, axes = one_panel("Entropy of the hidden states", layer_axis(result.places), f"H(Z) ({UNIT_NAMES[unit]})")
    _line(axes, result, unit, "entropy", "", COLOURS[0], label=None)
    if result.standard_errors():
        interval_key(axes)
        figure.legend(loc="outside right upper", frameon=False)
    return figure


def information_by_layer(result: ProbeResult, unit: str = "efficiency") -> Figure:
    """Draw I(X;Z) of every layer with each label set: inputs solid, outputs dashed, a colour for each order."""
    figure, axes = one_panel("Information about the labels", layer_axis(result.places), f"I(X;Z) ({UNIT_NAMES[unit]})")
    _information_lines(axes, result, unit)
    _band_keys(axes, result)
    if result.label_sets:
        figure.legend(loc="outside right upper", frameon=False)
    return figure


def chance_by_layer(result: ProbeResult, unit: str = "efficiency") -> Figure:
    """Draw I(X;Z) of every layer: raw, corrected, by chance (shaded), and its bound for unique labels."""
    names = result.label_sets
    n_columns = max(1, min(4, (len(names) + 1) // 2))
    n_rows = max(1, -(-len(names) // n_columns))
    figure = NotebookFigure(figsize=(3 + 2.6 * n_columns, 1 + 2.4 * n_rows), layout="constrained")
    grid = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
    table = result.to_pandas(unit, means=False)
    left_out = len(result.rows) < result.places.last  # marks show which layers were measured
    marks: dict[str, Any] = {"marker": "o", "markersize": 3} if left_out else {}
    for axes, name in zip(grid.flat, panel_order(names), strict=False):
        part = table[table.label_set == name]
        of_set = part.pivot_table(index="layer", columns="metric", values="value")
        of_set = of_set.reindex(columns=[*(metric for metric, *_ in _CHANCE_LINES), _CHANCE_SD])
        for metric, label, colour, style in _CHANCE_LINES:
            axes.plot(of_set.index, of_set[metric], style, color=colour, label=label, linewidth=1.5, **marks)
            if name in result.sampled_sets and metric in TOLD:
                line = part[part.metric == metric]
                sampling_band(axes, line.layer, line.value, line.sampling_sd, colour)
            if "se" in part and metric == "mutual_information":
                line = part[part.metric == metric]
                interval_edges(axes, line.layer, line.value, line.se, colour)
        _shade_chance(axes, of_set)
        axes.set_title(plain(name), loc="left", fontsize="medium")
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", alpha=0.3)
    leave_empty(grid, len(names))
    figure.supxlabel(layer_axis(result.places), fontsize="medium")
    figure.supylabel(f"I(X;Z) ({UNIT_NAMES[unit]})", fontsize="medium")
    _band_keys(grid.flat[0], result)
    if names:
        figure.legend(*grid.flat[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return figure


def _shade_chance(axes: Axes, of_set: pd.DataFrame) -> None:
    """Shade what chance gives, and its sd over relabelings where labels are of whole documents."""
    null, sd = of_set.mutual_information_null, of_set[_CHANCE_SD]
    axes.fill_between(of_set.index, 0, null, color=COLOURS[4], alpha=0.3, linewidth=0)
    if sd.notna().any():
        axes.fill_between(of_set.index, null - sd, null + sd, color=COLOURS[4], alpha=0.45, linewidth=0)


def optimality_by_layer(result: ProbeResult, unit: str = "efficiency") -> Figure:
    """Draw the optimality of every layer, I(output; Z) / I(input; Z): raw solid, corrected dashed."""
    title = "Optimality: how much of what layers hold helps to predict"
    figure, axes = one_panel(title, layer_axis(result.places), "optimality (ratio)")
    _optimality_lines(axes, result, unit)
    if axes.lines:
        axes.axhline(1.0, color="0.5", linestyle=":", linewidth=1)
        axes.set_ylim(bottom=0)
        _band_keys(axes, result)
        figure.legend(loc="outside right upper", frameon=False)
    return figure


def information_plane(result: ProbeResult, unit: str = "efficiency", metric: str = "mutual_information") -> Figure:
    """Draw I(input; Z) against I(output; Z), one point for each layer, joined in order; one panel for each order.

    On the diagonal, both informations are equal. `metric` may be "mutual_information_corrected".
    """
    orders = _orders(result)
    figure = NotebookFigure(figsize=(1.4 + 3.4 * max(1, len(orders)), 3.9), layout="constrained")
    grid = figure.subplots(1, max(1, len(orders)), squeeze=False)[0]
    for axes, order in zip(grid, orders, strict=False):
        _plane(axes, result, unit, order, metric)
        axes.set_title(order, loc="left", fontsize="medium")
    if orders:
        _layer_bar(figure, grid, result.places.indices)
    else:
        grid[0].set_visible(False)
    return figure


def entropy_by_label(result: ProbeResult, label_set: str, unit: str = "efficiency") -> Figure:
    """Draw H(Z|X=x) of each label (rows) in every layer (columns), for a set with shown labels, frequent ones first."""
    table = result.conditional_entropy(label_set, unit)
    counts = table.groupby("label", sort=False)["count"].max().sort_values(ascending=False, kind="stable")
    counts = counts.head(MOST_LABELS)
    wide = table.pivot_table(index="label", columns="layer", values="value", dropna=False, sort=False)
    values = wide.reindex(counts.index).to_numpy(float)
    figure = NotebookFigure(figsize=(8, 1.6 + 0.26 * len(counts)), layout="constrained")
    axes = figure.add_subplot()
    image = heat_map(axes, wide.columns.to_numpy(float), range(len(counts)), values)
    axes.invert_yaxis()
    axes.set_yticks(range(len(counts)), [f"{short(str(k))} ({n:,})" for k, n in counts.items()])
    axes.set_title(f"Entropy by {plain(label_set.removeprefix('column:'))}", loc="left")
    axes.set_xlabel(layer_axis(result.places))
    axes.set_ylabel("label (positions)")
    layer_ticks(axes.xaxis, result.places.indices)
    figure.colorbar(image, ax=axes, label=f"H(Z|x) ({UNIT_NAMES[unit]})", pad=0.01)
    return figure


def overview(result: ProbeResult, unit: str = "efficiency") -> Figure:
    """Draw entropy, information, optimality and the information plane of one result in one figure."""
    orders = _orders(result)
    names = ["entropy"] + ["information"] * bool(result.label_sets) + ["optimality", "plane"] * bool(orders)
    n_columns = min(2, len(names))
    n_rows = -(-len(names) // n_columns)
    figure = NotebookFigure(figsize=(1.6 + 4.6 * n_columns, 3.6 * n_rows), layout="constrained")
    grid = list(figure.subplots(n_rows, n_columns, squeeze=False).flat)
    x_label = layer_axis(result.places)
    style_axes(grid[0], "Entropy", x_label, f"H(Z) ({UNIT_NAMES[unit]})")
    _line(grid[0], result, unit, "entropy", "", COLOURS[0], label=None)
    if result.label_sets:
        style_axes(grid[1], "Information about the labels", x_label, f"I(X;Z) ({UNIT_NAMES[unit]})")
        _information_lines(grid[1], result, unit)
        _band_keys(grid[1], result)
        figure.legend(*grid[1].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    if orders:
        style_axes(grid[2], "Optimality: raw (solid), corrected (dashed)", x_label, "optimality (ratio)")
        _optimality_lines(grid[2], result, unit)
        grid[2].set_ylim(bottom=0)
        _plane(grid[3], result, unit, orders[0], "mutual_information")
        grid[3].set_title(f"Information plane, {orders[0]}", loc="left")
        _layer_bar(figure, [grid[3]], result.places.indices)
    return figure


def compared_by_depth(
    results: Sequence[ProbeResult],
    titles: Sequence[str],
    metric: str = "entropy",
    unit: str = "efficiency",
) -> Figure:
    """Draw one metric of several results by label set, each layer at its place in the model.

    That is its index where the models have equally many blocks, and else its relative depth, index / (L + 1).
    """
    sets = [""] if metric == "entropy" else list(dict.fromkeys(s for result in results for s in result.label_sets))
    n_columns = max(1, min(4, (len(sets) + 1) // 2))
    n_rows = max(1, -(-len(sets) // n_columns))
    figure = NotebookFigure(figsize=(3.6 + 3 * n_columns, 1.4 + 2.4 * n_rows), layout="constrained")
    grid = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
    tables = [result.to_pandas(unit, means=False) for result in results]
    places = [result.places for result in results]
    same = equally_deep(places)
    axis = max((layer_axis(one) for one in places), key=len) if same else DEPTH_AXIS
    for axes, label_set in zip(grid.flat, sets, strict=False):
        for i, (table, title) in enumerate(zip(tables, titles, strict=True)):
            part = table[(table.metric == metric) & (table.label_set == label_set)]
            if len(part):
                y, sd = part.value.to_numpy(float), part.sd.to_numpy(float)
                x = part.layer.to_numpy(float) / (1 if same else max(1, places[i].last))
                colour = COLOURS[i % len(COLOURS)]
                axes.plot(x, y, color=colour, label=wrapped(title), linewidth=1.5)
                axes.fill_between(x, y - sd, y + sd, color=colour, alpha=0.15, linewidth=0)
                if "sampling_sd" in part:
                    sampling_band(axes, x, y, part.sampling_sd, colour)
                if "se" in part:
                    interval_edges(axes, x, y, part.se, colour)
        axes.set_title(plain(label_set) if label_set else "Entropy", loc="left", fontsize="medium")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
    leave_empty(grid, len(sets))
    if metric != "entropy" and any(result.sampled_sets for result in results):
        sampling_key(grid.flat[0])
    if any("se" in table and table.se[table.metric == metric].notna().any() for table in tables):
        interval_key(grid.flat[0])
    figure.supxlabel(axis, fontsize="medium")
    figure.supylabel(f"{'H(Z)' if metric == 'entropy' else 'I(X;Z)'} ({UNIT_NAMES[unit]})", fontsize="medium")
    if sets:
        handles = {k: h for axes in grid.flat for h, k in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles.keys(), loc="outside right upper", frameon=False)
    return figure


def _of_lead(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw the site that stands for a result of several: figures of layers have one value a layer."""

    @wraps(draw)
    def of_lead(result: ProbeResult, *args: Any, **kwargs: Any) -> Figure:
        return draw(of_site(result, lead_site(result)), *args, **kwargs)

    return of_lead


def _by_anchors(metric: str) -> Callable[..., Figure]:
    """Draw a metric with each number of anchors and calibration."""

    def by_anchors(result: ProbeResult, unit: str = "efficiency") -> Figure:
        found = {name: of_site(one, lead_site(one)) for name, one in result.variants.items()}
        return compared_by_depth(list(found.values()), list(found), metric, unit)

    return by_anchors


#: Figures by name, as in `ProbeResult.plot` and in file names.
FIGURES: dict[str, Callable[..., Figure]] = {
    "overview": _of_lead(overview),
    "entropy": _of_lead(entropy_by_layer),
    "information": _of_lead(information_by_layer),
    "chance": _of_lead(chance_by_layer),
    "optimality": _of_lead(optimality_by_layer),
    "plane": _of_lead(information_plane),
    "shares": _of_lead(shares_by_layer),
    "by_position": _of_lead(information_by_position),
    "by_anchors_entropy": _by_anchors("entropy"),
    "by_anchors": _by_anchors("mutual_information"),
    "sites": sites_by_layer,
    "heads": heads_by_layer,
}


def figures_of(result: ProbeResult) -> list[str]:
    """List the figures for which a result has values."""
    orders, sets = bool(_orders(result)), bool(result.label_sets)
    missing = {"optimality", "plane"} if not orders else set()
    missing |= {"information", "chance"} if not sets else set()
    missing |= {"by_position"} if not (result.bins and sets) else set()
    missing |= {"by_anchors_entropy"} if not result.others else set()
    missing |= {"by_anchors"} if not (result.others and sets) else set()
    missing |= {"shares"} if not any(levels_of(d, result.label_sets) for d in DIRECTIONS) else set()
    missing |= {"heads"} if HEADS not in result.sites else set()
    missing |= {"sites"} if len(lines_of(result)) < 2 else set()
    if lead_site(result) == HEADS:  # lines of many heads cannot be told apart
        return ["heads"]
    return [name for name in FIGURES if name not in missing]


def _orders(result: ProbeResult) -> list[str]:
    return [o for o in ORDERS if {f"input_{o}", f"output_{o}"} <= set(result.label_sets)]


def _optimality_lines(axes: Axes, result: ProbeResult, unit: str) -> None:
    for i, order in enumerate(_orders(result)):
        colour = COLOURS[i % len(COLOURS)]
        _line(axes, result, unit, "optimality", order, colour, label=order)
        _line(axes, result, unit, "optimality_corrected", order, colour, label=f"{order}, corrected", linestyle="--")


def _plane(axes: Axes, result: ProbeResult, unit: str, order: str, metric: str) -> None:
    table = result.to_pandas(unit, means=False)
    x, y = (
        table[(table.metric == metric) & (table.label_set == f"{direction}_{order}")].value.to_numpy(float)
        for direction in ("input", "output")
    )
    top = max(np.nanmax(np.append(x, 0)), np.nanmax(np.append(y, 0)), 1e-6) * 1.05
    axes.plot([0, top], [0, top], color="0.5", linestyle=":", linewidth=1)
    axes.plot(x, y, color="0.6", linewidth=1, zorder=1)
    axes.scatter(x, y, c=result.places.indices, cmap="viridis", s=26, edgecolor="0.4", linewidth=0.4, zorder=2)
    axes.set_xlim(0, top)
    axes.set_ylim(0, top)
    axes.set_aspect("equal")
    axes.set_xlabel(f"I(input; Z) ({UNIT_NAMES[unit]})")
    axes.set_ylabel(f"I(output; Z) ({UNIT_NAMES[unit]})")
    axes.spines[["top", "right"]].set_visible(False)


def _layer_bar(figure: Figure, axes: Any, layers: Sequence[int]) -> None:
    mappable = ScalarMappable(Normalize(min(layers), max(min(layers) + 1, *layers)), colormaps["viridis"])
    figure.colorbar(mappable, ax=axes, label="layer", pad=0.02, shrink=0.8, ticks=MaxNLocator(integer=True))


def _information_lines(axes: Axes, result: ProbeResult, unit: str) -> None:
    kinds = list(dict.fromkeys(_kind(name) for name in result.label_sets))
    for label_set in result.label_sets:
        colour = COLOURS[kinds.index(_kind(label_set)) % len(COLOURS)]
        style = "--" if label_set.startswith("output_") else "-"
        _line(axes, result, unit, "mutual_information", label_set, colour, label=plain(label_set), linestyle=style)


def _band_keys(axes: Axes, result: ProbeResult) -> None:
    """Add the bands that are there beside those of the anchors to the entries of the legend."""
    if result.sampled_sets:
        sampling_key(axes)
    if result.standard_errors():
        interval_key(axes)


def _kind(label_set: str) -> str:
    return label_set.removeprefix("input_").removeprefix("output_")


def _line(
    axes: Axes,
    result: ProbeResult,
    unit: str,
    metric: str,
    label_set: str,
    colour: str,
    *,
    label: str | None,
    linestyle: str = "-",
) -> None:
    table = result.to_pandas(unit, means=False)
    table = table[(table.metric == metric) & (table.label_set == label_set)]
    x, y, sd = (table[column].to_numpy(float) for column in ("layer", "value", "sd"))
    axes.plot(x, y, color=colour, linestyle=linestyle, marker="o", markersize=3, label=label)
    axes.fill_between(x, y - sd, y + sd, color=colour, alpha=0.15, linewidth=0)
    if "sampling_sd" in table:
        sampling_band(axes, x, y, table.sampling_sd, colour)
    if "se" in table:
        interval_edges(axes, x, y, table.se, colour)
