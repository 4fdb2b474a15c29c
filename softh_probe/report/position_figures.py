"""Information over bins of the position in the document, as a figure."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from softh_probe.report.figure_style import NotebookFigure, leave_empty, panel_order, plain
from softh_probe.report.page_data import UNIT_NAMES
from softh_probe.report.position_words import over_bins
from softh_probe.result import ProbeResult


def information_by_position(result: ProbeResult, unit: str = "efficiency") -> Figure:
    """Draw I(X;Z) over the bins of positions, a line for each layer, one panel for each label set.

    It is corrected for chance where that is known, since chance gives more in bins of few positions.

    Raises:
        InputError: the result has no bins.
    """
    names = panel_order(result.label_sets)
    n_columns = max(1, min(4, len(names)))
    n_rows = max(1, -(-len(names) // n_columns))
    figure = NotebookFigure(figsize=(2.4 + 3.2 * n_columns, 1 + 2.8 * n_rows), layout="constrained")
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    colours = {name: place for name, place in zip(result.rows, result.places.indices, strict=True)}
    last = max(1, *colours.values())
    table = result.by_position(unit)
    for axes, label_set in zip(grid.flat, names, strict=False):
        found = over_bins(table, label_set)
        x = np.arange(len(found.values))
        for layer in found.values.columns:
            colour = colormaps["viridis"](colours[layer] / last)
            axes.plot(x, found.values[layer].to_numpy(float), color=colour, linewidth=1.3, marker="o", markersize=3)
        _style(axes, f"{plain(label_set)}, {found.words}", list(found.values.index))
    leave_empty(grid, len(names))
    figure.supxlabel("position in the document", fontsize="medium")
    figure.supylabel(f"I(X;Z) ({UNIT_NAMES[unit]})", fontsize="medium")
    mappable = ScalarMappable(Normalize(0, last), colormaps["viridis"])
    figure.colorbar(mappable, ax=list(grid.flat), label="layer", pad=0.02, shrink=0.8, ticks=MaxNLocator(integer=True))
    return figure


def _style(axes: Axes, title: str, bins: list[str]) -> None:
    axes.set_title(title, loc="left", fontsize="medium")
    axes.set_xticks(range(len(bins)), bins, rotation=45, fontsize="small", ha="right")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
