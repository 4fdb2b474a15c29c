"""Shares of the ceiling that each order of n-grams adds, as a figure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from softh_probe.labels import DIRECTIONS
from softh_probe.metrics import levels_of
from softh_probe.report.figure_style import COLOURS, NotebookFigure, layer_axis, plain
from softh_probe.result import ProbeResult

#: What the longest n-grams leave of the ceiling.
LEFT = "left of the ceiling"
_LEFT_COLOUR = "0.6"
_VERSIONS = {"": "raw", "_corrected": "corrected for chance"}


def shares_by_layer(result: ProbeResult, unit: str = "efficiency") -> Figure:
    """Draw, layer by layer, which share of the ceiling each order of n-grams adds, and what is left; raw and corrected.

    One column of panels for each direction whose unigrams were measured.
    """
    directions = [d for d in DIRECTIONS if levels_of(d, result.label_sets)]
    figure = NotebookFigure(figsize=(2.4 + 4 * max(1, len(directions)), 6), layout="constrained")
    grid = figure.subplots(len(_VERSIONS), max(1, len(directions)), sharex=True, sharey=True, squeeze=False)
    table = result.to_pandas(means=False)
    for line, (suffix, version) in zip(grid, _VERSIONS.items(), strict=True):
        for axes, direction in zip(line, directions, strict=False):
            _stack(axes, table, levels_of(direction, result.label_sets), suffix)
            axes.set_title(f"{direction}, {version}", loc="left", fontsize="medium")
    figure.supxlabel(layer_axis(result.places), fontsize="medium")
    figure.supylabel("share of the ceiling", fontsize="medium")
    handles = {key: h for axes in grid.flat for h, key in zip(*axes.get_legend_handles_labels(), strict=True)}
    if handles:
        figure.legend([*handles.values()][::-1], [*handles][::-1], loc="outside right upper", frameon=False)
    return figure


def _stack(axes: Axes, table: pd.DataFrame, levels: Sequence[str], suffix: str) -> None:
    """Stack the shares of one direction: the upper edge of each order is the share that all up to it account for."""
    shares = table[table.metric == f"information_share{suffix}"]
    below: np.ndarray | None = None
    for i, level in enumerate(levels):
        of_level = shares[shares.label_set == level]
        x, value = of_level.layer.to_numpy(float), of_level.value.to_numpy(float)
        above = value if below is None else below + value
        base = np.zeros(len(x)) if below is None else below
        order = plain(level.partition("_")[2])
        axes.fill_between(x, base, above, color=COLOURS[i], alpha=0.75, linewidth=0, label=order)
        axes.plot(x, above, color=COLOURS[i], linewidth=1, marker="o", markersize=2.5)
        below = above
    if below is not None and np.isfinite(below).any():
        axes.fill_between(x, below, 1.0, color=_LEFT_COLOUR, alpha=0.3, linewidth=0, label=LEFT)
    axes.axhline(1.0, color="0.5", linestyle=":", linewidth=1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
