"""Figures of a sweep: functions of its table that return matplotlib figures, for papers and notebooks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Colormap, ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from softh_probe.labels import ORDERS

#: Layers whose path through the information plane is drawn, at most; evenly from the first to the last.
_MOST_PATHS = 8


def layers_by_step(table: pd.DataFrame) -> Figure | None:
    """Layer x step: H(Z), and I(X;Z) of each label set, panel by panel, for each model.

    Args:
        table: a sweep's table (sweep.parquet), in units of log m. Checkpoints without a step are drawn in their order.
    """
    panels = [("entropy", "")]
    panels += [("mutual_information", s) for s in table.label_set[table.metric == "mutual_information"].unique()]
    models = _series(table)
    if not models:
        return None
    n_columns = min(4, len(panels))
    n_rows = -(-len(panels) // n_columns)  # of each model
    size = (1.5 + 3.2 * n_columns, 1 + 2.8 * n_rows * len(models))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(n_rows * len(models), n_columns, squeeze=False)
    for block, (model, of_model) in zip(np.split(grid, len(models)), models.items(), strict=True):
        for axes, (metric, label_set) in zip(block.flat, panels, strict=False):
            part = of_model[(of_model.metric == metric) & (of_model.label_set == label_set)]
            _heatmap(axes, part)
            name = "H(Z)" if metric == "entropy" else f"I(X;Z), {_plain(label_set)}"
            axes.set_title(name if len(models) == 1 else f"{_short(model)}: {name}", loc="left", fontsize="medium")
        for axes in block.flat[len(panels) :]:
            axes.set_visible(False)
        for axes in block[:, 0]:
            axes.set_ylabel("layer")
    figure.suptitle("Through training, in shares of log m", fontsize="medium", x=0.01, ha="left")
    return figure


def information_plane(table: pd.DataFrame) -> Figure | None:
    """The path through training of I(input; Z) and I(output; Z), layer by layer, for each n-gram order.

    Paths start light and end dark; None where no order has both directions, or no model two checkpoints.
    """
    sets = set(table.label_set)
    orders = [order for order in ORDERS if f"input_{order}" in sets and f"output_{order}" in sets]
    models = {m: part for m, part in _series(table).items() if part.checkpoint.nunique() > 1}
    if not orders or not models:
        return None
    figure = Figure(figsize=(1.5 + 4 * len(orders), 1 + 3.6 * len(models)), layout="constrained")
    grid = figure.subplots(len(models), len(orders), squeeze=False)
    for row, (model, of_model) in zip(grid, models.items(), strict=True):
        for axes, order in zip(row, orders, strict=True):
            norm = _paths(axes, of_model, order)
            axes.set_title(order if len(models) == 1 else f"{_short(model)}: {order}", loc="left", fontsize="medium")
            axes.set_xlabel("I(input; Z)")
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.3)
        row[0].set_ylabel("I(output; Z)")
        figure.colorbar(ScalarMappable(norm, _dark("Greys")), ax=list(row), label=_axis_name(of_model), shrink=0.8)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, title="layer")
    figure.suptitle("The information plane through training, in shares of log m", fontsize="medium", x=0.01, ha="left")
    return figure


FIGURES: dict[str, Callable[[pd.DataFrame], Figure | None]] = {
    "layers_by_step": layers_by_step,
    "information_plane": information_plane,
}


def _series(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Each model's lines, with `x`: the step where all have one, else their number."""
    if table.empty:
        return {}
    with_steps = {model: part for model, part in table.groupby("model", sort=False) if part.step.notna().all()}
    others = table[~table.model.isin(with_steps)]
    found = {str(model): part.assign(x=part.step.astype(float)) for model, part in with_steps.items()}
    if not others.empty:  # a list of different models is one row of panels
        found["models"] = others.assign(x=pd.factorize(others.checkpoint)[0].astype(float))
    return found


def _axis_name(part: pd.DataFrame) -> str:
    return "step" if part.step.notna().all() else "checkpoint"


def _heatmap(axes: Axes, part: pd.DataFrame) -> None:
    wide = part.pivot_table(index="layer", columns="x", values="value")
    if wide.empty:
        axes.set_visible(False)
        return
    # Steps are spaced as they come, often by powers of two: columns of one width, named by their step.
    image = axes.imshow(wide, aspect="auto", origin="lower", cmap="viridis", interpolation="nearest")
    positions = np.unique(np.linspace(0, wide.shape[1] - 1, min(6, wide.shape[1])).round().astype(int))
    if part.step.notna().all():
        names = [f"{wide.columns[p]:,.0f}" for p in positions]
        axes.set_xlabel("step")
    else:
        by_number = part.drop_duplicates("x").set_index("x").checkpoint
        names = [_plain(_short(by_number[wide.columns[p]])) for p in positions]
    axes.set_xticks(positions, names, rotation=45, ha="right", fontsize="small")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.figure.colorbar(image, ax=axes)


def _paths(axes: Axes, part: pd.DataFrame, order: str) -> Normalize:
    """Draw each layer's path; returns how steps become shades."""
    part = part[part.metric == "mutual_information"]
    x, y = (
        part[part.label_set == f"{side}_{order}"].pivot_table(index="x", columns="layer", values="value")
        for side in ("input", "output")
    )
    steps = x.index.to_numpy(float)
    wide_range = steps.min() >= 0 and steps.max() > 50 * max(1.0, np.median(np.diff(steps)) if len(steps) > 1 else 1.0)
    norm = LogNorm(steps[steps > 0].min(), steps.max()) if wide_range else Normalize(steps.min(), steps.max())
    shades = np.nan_to_num(np.ma.filled(norm(np.maximum(steps, norm.vmin or 0.0)), 0.0))
    layers = x.columns[
        np.unique(np.linspace(0, len(x.columns) - 1, min(_MOST_PATHS, len(x.columns))).round().astype(int))
    ]
    names = part.drop_duplicates("layer").set_index("layer").name
    colours = ("Blues", "Oranges", "Greens", "Purples", "Reds", "YlOrBr", "Greys", "RdPu")
    for layer, scale in zip(layers, colours, strict=False):
        points = np.column_stack([x[layer], y[layer]])
        colour = _dark(scale)
        segments = np.stack([points[:-1], points[1:]], axis=1)
        axes.add_collection(LineCollection(list(segments), colors=colour(shades[1:]), linewidths=1.2))
        axes.scatter(points[:, 0], points[:, 1], color=colour(shades), s=9)
        axes.plot([], [], color=colour(0.8), label=_plain(names[layer]))
    axes.autoscale_view()
    return norm


def _dark(name: str) -> Colormap:
    """A colour from light, but seen on white, to dark."""
    return ListedColormap(colormaps[name](np.linspace(0.3, 1.0, 256)))


def _short(name: str) -> str:
    return name.rstrip("/").split("/")[-1]


def _plain(text: str) -> str:
    """A name as text: no part of it is a formula."""
    return str(text).replace("_", " ").replace("$", r"\$")
