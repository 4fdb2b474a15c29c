"""Style of all figures: size, axes, colours, and labels that matplotlib does not read as formulas."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import NonUniformImage
from matplotlib.ticker import FixedLocator, MaxNLocator
from numpy.typing import ArrayLike

from softh_probe.layer_places import EMBEDDINGS, FINAL_NORM, LayerPlaces

DEPTH_AXIS = "relative depth (layer / (L + 1); 0: embeddings, 1: final norm)"
HEAD_AXIS = "layer and head"

#: Half of the 95% interval, in standard errors.
Z95 = 1.96

#: Okabe and Ito's colours, distinct for colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")


@contextmanager
def boxes_for_missing_glyphs() -> Iterator[None]:
    """Draw scripts without a font as boxes, without a warning for each letter."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


class NotebookFigure(Figure):
    """A matplotlib figure that notebooks show with any backend."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        with boxes_for_missing_glyphs():
            self.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()


def lay_out(figure: Figure) -> None:
    """Lay out a figure once and for all; otherwise each drawing of it, in any format, does so again."""
    FigureCanvasAgg(figure)
    if (layout := figure.get_layout_engine()) is not None:
        with boxes_for_missing_glyphs():
            layout.execute(figure)
    figure.set_layout_engine("none")


def head_ticks(axis: Axis, names: Sequence[str], places: Sequence[float]) -> None:
    """Set a dozen ticks of heads by layer and head: `1.h0` is head 0 of layer 1."""
    every = -(-len(names) // 12)
    short_names = [name.removeprefix("layer.").replace(".head.", ".h") for name in names]
    axis.set_ticks(list(places)[::every], short_names[::every])


def layer_axis(places: LayerPlaces) -> str:
    """Label an axis of layers.

    >>> from softh_probe.layer_places import place_layers
    >>> layer_axis(place_layers(["embeddings", "layer.10", "final_norm"], {"n_blocks": 30}))
    'layer (0: embeddings; 31: final norm)'
    """
    if not places.n_blocks:
        return "module (in the order given)"
    pairs = zip(places.indices, places.names, strict=True)
    ends = [f"{index}: {name.replace('_', ' ')}" for index, name in pairs if name in (EMBEDDINGS, FINAL_NORM)]
    return f"layer ({'; '.join(ends)})" if ends else "layer"


def heat_map(axes: Axes, x: ArrayLike, y: ArrayLike, values: np.ndarray) -> NonUniformImage:
    """Draw values [len(y), len(x)] as cells around their places on both axes; each reaches halfway to the next."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    extent = (x.min() - _margin(x), x.max() + _margin(x), y.min() - _margin(y), y.max() + _margin(y))
    image = NonUniformImage(axes, cmap="viridis", interpolation="nearest", extent=extent)
    image.set_data(x, y, values)
    axes.add_image(image)
    axes.set_xlim(extent[:2])
    axes.set_ylim(extent[2:])
    return image


def _margin(places: np.ndarray) -> float:
    """Half of the least distance between cells."""
    return 0.5 * float(np.diff(np.sort(places)).min()) if len(places) > 1 else 0.5


def layer_ticks(axis: Axis, layers: Sequence[float]) -> None:
    """Set ticks of the cells of a heat map: whole numbers, or the layers themselves where some were left out."""
    if any(layer % 1 for layer in layers):
        return  # relative depths
    whole = list(layers) == list(range(len(layers)))
    axis.set_major_locator(MaxNLocator(integer=True) if whole else FixedLocator(list(layers), nbins=12))


def one_panel(title: str, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """Make a figure with one styled panel."""
    figure = NotebookFigure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    style_axes(axes, title, x_label, y_label)
    return figure, axes


def style_axes(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """Set a panel's title and axis labels, and ticks at whole numbers."""
    axes.set_title(title, loc="left")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)


def leave_empty(grid: np.ndarray, n: int) -> None:
    """Hide the panels after the first n; those above a hidden one get the ticks of the axis that they share with it."""
    for axes in grid.flat[n:]:
        axes.set_visible(False)
    for axes in grid.flat[max(0, n - grid.shape[1]) : n]:
        axes.tick_params(labelbottom=True)


def sampling_band(axes: Axes, x: ArrayLike, y: ArrayLike, error: ArrayLike, colour: Any) -> None:
    """Draw the standard error by the sampling of labels: a stronger band than that of the sd over anchor sets."""
    y, error = np.asarray(y, float), np.asarray(error, float)
    if (error > 0).any():
        axes.fill_between(x, y - error, y + error, color=colour, alpha=0.45, linewidth=0)


def sampling_key(axes: Axes) -> None:
    """Add that band to the entries of the legend."""
    axes.fill_between([], [], [], color="0.4", alpha=0.6, linewidth=0, label="± sampling of labels")


def interval_edges(axes: Axes, x: ArrayLike, y: ArrayLike, se: ArrayLike, colour: Any) -> None:
    """Draw the 95% interval over documents: dotted edges without a fill, unlike the bands of the anchors."""
    y, half = np.asarray(y, float), Z95 * np.asarray(se, float)
    if np.isfinite(half).any():
        for edge in (y - half, y + half):
            axes.plot(x, edge, color=colour, linestyle=(0, (1, 2)), linewidth=0.9)


def interval_key(axes: Axes) -> None:
    """Add these edges to the entries of the legend."""
    label = "95% interval over documents\n(± 1.96 standard errors)"
    axes.plot([], [], color="0.4", linestyle=(0, (1, 2)), linewidth=0.9, label=label)


def short(label: str, longest: int = 24) -> str:
    """Shorten a label to one line and escape it, so that no part is drawn as a formula."""
    line = " ".join("".join(c if c.isprintable() else " " for c in label).split()).replace("$", r"\$")
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def wrapped(title: str) -> str:
    """Wrap a title into short lines."""
    return textwrap.fill(short(title, 60), 24)


def plain(label_set: str) -> str:
    """Format a label set's name on one line."""
    return short(label_set.replace("_", " "), 40)


def panel_order(label_sets: Iterable[str]) -> list[str]:
    """Sort label sets for panels: inputs first, then outputs, then others.

    >>> panel_order(["topic", "output_unigram", "input_unigram"])
    ['input_unigram', 'output_unigram', 'topic']
    """
    rank = {"input": 0, "output": 1}
    return sorted(label_sets, key=lambda name: rank.get(name.partition("_")[0], 2))
