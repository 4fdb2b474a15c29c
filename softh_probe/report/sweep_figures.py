"""Figures of a sweep: functions that draw the rows of one model in sweep.parquet as matplotlib figures.

>>> import pandas as pd
>>> row = {"layer": 0, "name": "embeddings", "metric": "entropy", "label_set": "", "value": 0.9, "sd": 0.01}
>>> table = pd.DataFrame([{"checkpoint": f"step{s}", "step": s, **row} for s in (0, 1, 1000)])
>>> layers_by_step(table, "entropy").get_supxlabel()
'training step (checkpoints evenly spaced)'
>>> metric_by_step(table, "entropy").get_supxlabel()
'training step (log scale)'

Tables have one row for each checkpoint, layer, label set and metric, in units of log m, with the checkpoints in the
order of training. Rows of one name are of one layer; `layer` is where it stands. Means over layers are not drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from softh_probe.errors import InputError
from softh_probe.labels import ORDERS
from softh_probe.metrics import METRICS
from softh_probe.report.figure_style import (
    HEAD_AXIS,
    NotebookFigure,
    head_ticks,
    heat_map,
    interval_edges,
    interval_key,
    layer_ticks,
    leave_empty,
    panel_order,
    plain,
    sampling_band,
    sampling_key,
    short,
)
from softh_probe.report.page_data import UNIT_NAMES
from softh_probe.report.step_ticks import every_nth, log_ticks

_UNIT = UNIT_NAMES["efficiency"]
_RATIOS = tuple(metric.name for metric in METRICS if not metric.has_unit)
LAYER_AXIS = "layer (0: embeddings; last: final norm)"
_STEP_AXIS = "training step (log scale)"
#: Most checkpoints whose paths through the information plane are drawn.
_MAX_PATHS = 12
#: Inches of horizontal axes, rounded down: of a heat map, of one of several panels, and of a single one.
_MAP_INCHES, _PANEL_INCHES, _SINGLE_INCHES = 6.2, 2.3, 3.6


def layers_by_step(table: pd.DataFrame, metric: str, label_set: str | None = None, axis: str = LAYER_AXIS) -> Figure:
    """Draw a metric of every layer (vertical) at each checkpoint (horizontal) as heat maps.

    Args:
        table: of one model.
        metric: one of the table's.
        label_set: of the metric: empty for entropy, an order for optimality; None draws a panel for each.
        axis: what `layer` is.
    """
    part = table[table.metric == metric]
    sets = panel_order(part.label_set.unique()) if label_set is None else [label_set]
    is_single = len(sets) == 1
    n_columns, n_rows = _grid_shape(len(sets))
    size = (8.0, 4.5) if is_single else (0.8 + 3.3 * n_columns, 1.0 + 2.6 * n_rows)
    figure = NotebookFigure(figsize=size, layout="constrained")
    panels = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
    checkpoints = part.drop_duplicates("checkpoint")
    places = {name: i for i, name in enumerate(checkpoints.checkpoint)}
    for axes, one in zip(panels.flat, sets, strict=False):
        grid = _Grid.of(part, metric, one)
        image = heat_map(axes, [places[name] for name in grid.names], grid.layers, grid.values)
        if is_single:
            axes.set_title(_title(metric, one), loc="left")
        else:
            known = grid.values[np.isfinite(grid.values)]
            extent = f": {known.min():.3g} to {known.max():.3g}" if known.size else ""
            axes.set_title(f"{plain(one)}{extent}", loc="left", fontsize="small")
    unit = "ratio" if metric in _RATIOS else _UNIT
    if is_single:
        figure.colorbar(image, ax=panels[0, 0], label=unit, pad=0.01)
    else:
        each = ScalarMappable(Normalize(0, 1), image.get_cmap())
        bar = figure.colorbar(each, ax=panels, label="range of values above each panel", pad=0.01, shrink=0.6)
        bar.set_ticks([0, 1], labels=["least", "most"])
    lead = panels.flat[0]  # whose axes all others share
    step_names = _step_names([*places], [*checkpoints.step])
    every = every_nth(step_names, _MAP_INCHES if is_single else _PANEL_INCHES)
    lead.set_xticks(range(0, len(places), every), step_names[::every])
    if axis == HEAD_AXIS:
        head_ticks(lead.yaxis, grid.layer_names, grid.layers)
    else:
        layer_ticks(lead.yaxis, grid.layers)
    leave_empty(panels, len(sets))
    if not is_single:
        figure.suptitle(f"{_title(metric, '')} ({unit})", x=0.01, ha="left", fontsize="medium")
    figure.supxlabel("training step (checkpoints evenly spaced)", fontsize="medium")
    figure.supylabel(axis, fontsize="medium")
    return figure


def metric_by_step(table: pd.DataFrame, metric: str, layers: Sequence[float] | None = None) -> Figure:
    """Draw a metric of some layers against the training step (log scale); one panel for each label set.

    Bands are the sd over anchor sets, and stronger, where labels were sampled, the standard error by that. Dotted edges
    are the 95% interval over documents, where that was measured.

    Args:
        table, metric: as in `layers_by_step`.
        layers: the layers to draw, by where they stand; None is five, from the first to the last.

    Raises:
        InputError: the table does not have one of the layers.
    """
    part = table[table.metric == metric]
    sets = panel_order(part.label_set.unique())
    n_columns, n_rows = _grid_shape(len(sets))
    figure = NotebookFigure(figsize=(3.4 + 3 * n_columns, 1.4 + 2.6 * n_rows), layout="constrained")
    panels = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
    first, last = float(part.layer.min()), float(part.layer.max())
    grids = [_Grid.of(part, metric, label_set) for label_set in sets]
    longest = max(grids, key=lambda grid: len(grid.names))
    longest.scale_steps(panels.flat[0], _PANEL_INCHES if n_columns > 1 else _SINGLE_INCHES)  # all share its axis
    for axes, label_set, grid in zip(panels.flat, sets, grids, strict=False):
        x = grid.step_places
        for row in grid.rows_of(layers):
            y, sd = grid.values[row], grid.sd[row]
            colour = colormaps["viridis"](0.9 * (grid.layers[row] - first) / ((last - first) or 1))
            marker = "o" if len(x) < 60 else None
            axes.plot(
                x, y, color=colour, marker=marker, markersize=3, linewidth=1.5, label=short(grid.layer_names[row])
            )
            axes.fill_between(x, y - sd, y + sd, color=colour, alpha=0.15, linewidth=0)
            sampling_band(axes, x, y, grid.sampling_sd[row], colour)
            interval_edges(axes, x, y, grid.se[row], colour)
        axes.set_title(_title(metric, label_set) if len(sets) == 1 else plain(label_set), loc="left", fontsize="medium")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
    leave_empty(panels, len(sets))
    if "sampling_sd" in part and (part.sampling_sd > 0).any():
        sampling_key(panels.flat[0])
    if "se" in part and part.se.notna().any():
        interval_key(panels.flat[0])
    unit = "ratio" if metric in _RATIOS else _UNIT
    figure.supylabel(unit if len(sets) == 1 else f"{_title(metric, '')} ({unit})", fontsize="medium")
    figure.supxlabel(_STEP_AXIS if longest.has_steps else "checkpoint", fontsize="medium")
    figure.legend(*panels.flat[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return figure


def plane_through_training(table: pd.DataFrame, metric: str = "mutual_information") -> Figure:
    """Draw the information plane at a dozen checkpoints, each a line through its layers; one panel for each order.

    Horizontal: I(input; Z); vertical: I(output; Z); both are equal on the dotted diagonal. Early checkpoints are dark,
    late ones bright.

    Args:
        table: of one model.
        metric: "mutual_information" or "mutual_information_corrected".
    """
    sets = set(table.label_set[table.metric == metric].unique())
    orders = [order for order in ORDERS if {f"input_{order}", f"output_{order}"} <= sets]
    figure = NotebookFigure(figsize=(2.2 + 3.4 * max(1, len(orders)), 3.9), layout="constrained")
    panels = figure.subplots(1, max(1, len(orders)), squeeze=False)[0]
    for axes, order in zip(panels, orders, strict=False):
        given, output = (_Grid.of(table, metric, f"{direction}_{order}") for direction in ("input", "output"))
        chosen = _spread(len(given.names), _MAX_PATHS)
        for i, checkpoint in enumerate(chosen):
            colour = colormaps["viridis"](i / max(1, len(chosen) - 1))
            x, y = given.values[:, checkpoint], output.values[:, checkpoint]
            axes.plot(x, y, color=colour, marker="o", markersize=2.5, linewidth=1)
            axes.plot(x[:1], y[:1], color=colour, marker="s", markersize=5)
        top = max(np.nanmax(np.append(given.values, 0)), np.nanmax(np.append(output.values, 0)), 1e-6) * 1.05
        axes.plot([0, top], [0, top], color="0.5", linestyle=":", linewidth=1)
        axes.set(xlim=(0, top), ylim=(0, top), aspect="equal")
        axes.locator_params(nbins=5)
        axes.set(xlabel=f"I(input; Z) ({_UNIT})", ylabel=f"I(output; Z) ({_UNIT})")
        axes.set_title(order, loc="left", fontsize="medium")
        axes.spines[["top", "right"]].set_visible(False)
    if orders:
        _step_bar(figure, panels, [given.step_names[i] for i in chosen])
    else:
        panels[0].set_visible(False)
    return figure


@dataclass(frozen=True)
class _Grid:
    """A metric of R layers at C checkpoints.

    Attributes:
        names, steps: [C]; a step is missing where the checkpoint's name has none.
        layer_names, layers: [R]; the layers and where they stand.
        values, sd, sampling_sd, se: [R, C]; errors are missing where they were not measured.
    """

    names: list[str]
    steps: list[Any]
    layer_names: list[str]
    layers: list[float]
    values: np.ndarray
    sd: np.ndarray
    sampling_sd: np.ndarray
    se: np.ndarray

    @classmethod
    def of(cls, table: pd.DataFrame, metric: str, label_set: str = "") -> _Grid:
        """Select a metric and label set from a table."""
        part = table[(table.metric == metric) & (table.label_set == label_set) & table.layer.notna()]
        part = part.assign(layer=part.layer.to_numpy())  # without the means over layers, all are numbers
        checkpoints = part.drop_duplicates("checkpoint")
        names = list(checkpoints.checkpoint)
        places = part.groupby("name", observed=True).layer.max().sort_values(kind="stable")
        columns = ("value", "sd", "sampling_sd", "se")
        part = part.assign(**{column: np.nan for column in columns[2:] if column not in part})
        wide = part.pivot(index="name", columns="checkpoint", values=[*columns])
        arrays = (wide[column].loc[places.index, names].to_numpy(float) for column in columns)
        layers = [*map(str, places.index)]
        return cls(names, list(checkpoints.step), layers, places.tolist(), *arrays)

    def rows_of(self, layers: Sequence[float] | None) -> list[int]:
        """Find the rows of layers by where they stand; None chooses five, from the first to the last."""
        if layers is None:
            targets = np.linspace(self.layers[0], self.layers[-1], 5)
            return sorted({int(np.abs(np.array(self.layers) - target).argmin()) for target in targets})
        if absent := [layer for layer in layers if layer not in self.layers]:
            raise InputError(
                f"layers: {absent[0]} is not in the table; expected any of {', '.join(map(str, self.layers))}"
            )
        return [self.layers.index(layer) for layer in dict.fromkeys(layers)]

    @property
    def has_steps(self) -> bool:
        """Whether every checkpoint has a step."""
        return not any(pd.isna(step) for step in self.steps)

    @property
    def step_names(self) -> list[str]:
        """Labels of the checkpoints: their steps, or their names."""
        return _step_names(self.names, self.steps)

    @property
    def step_places(self) -> list[float]:
        """Places of the checkpoints on an axis of steps: these, or evenly spaced without them."""
        return [float(step) for step in self.steps] if self.has_steps else [float(i) for i in range(len(self.names))]

    def scale_steps(self, axes: Axes, inches: float) -> None:
        """Scale the x axis by log steps (0 included), or evenly without steps.

        Args:
            axes: whose horizontal axis that is.
            inches: of that axis.
        """
        if not self.has_steps:
            every = every_nth(self.step_names, inches)
            axes.set_xticks(range(0, len(self.names), every), self.step_names[::every])
            return
        least = min((step for step in self.steps if step > 0), default=1)
        steps = [int(step) for step in self.steps]
        ticks = log_ticks(steps, inches)
        axes.set_xscale("symlog", linthresh=least, linscale=0.45)  # step 0 is half a decade left of the least
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])


def _step_names(names: Sequence[str], steps: Sequence[Any]) -> list[str]:
    """Label checkpoints: by their steps, or their names."""
    return [short(name) if pd.isna(step) else f"{int(step):,}" for name, step in zip(names, steps, strict=True)]


def _step_bar(figure: Figure, axes: Any, steps: Sequence[str]) -> None:
    """Add the colour bar of checkpoints."""
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, max(1, len(steps) - 1)), colormaps["viridis"]),
        ax=axes,
        label="training step (■: first layer)",
        pad=0.02,
        shrink=0.8,
    )
    bar.set_ticks(range(len(steps)), labels=steps)


def _grid_shape(n: int) -> tuple[int, int]:
    """Choose the columns and rows of n panels: two rows where four columns suffice."""
    n_columns = min(4, -(-n // 2))
    return n_columns, -(-n // n_columns)


def _spread(n: int, most: int) -> list[int]:
    """Choose at most `most` of n indices, evenly, with the first and the last.

    >>> _spread(3, 12), _spread(101, 3)
    ([0, 1, 2], [0, 50, 100])
    """
    return sorted({round(i * (n - 1) / max(1, min(n, most) - 1)) for i in range(min(n, most))})


def _title(metric: str, label_set: str) -> str:
    name = metric.replace("_", " ") + (f" · {plain(label_set)}" if label_set else "")
    return name[:1].upper() + name[1:]
