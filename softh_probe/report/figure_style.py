"""Style of all figures: size, axes, colours, and labels that matplotlib does not read as formulas."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Iterable

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

LAYER_AXIS = "layer (0: embeddings; last: final norm)"

#: Okabe and Ito's colours, distinct for colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")


class NotebookFigure(Figure):
    """A matplotlib figure that notebooks show with any backend."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")  # scripts without a font are shown as boxes
            self.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()


def one_panel(title: str, y_label: str) -> tuple[Figure, Axes]:
    """Make a figure with one styled panel."""
    figure = NotebookFigure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    style_axes(axes, title, y_label)
    return figure, axes


def style_axes(axes: Axes, title: str, y_label: str, x_label: str = LAYER_AXIS) -> None:
    """Set a panel's title and axis labels, and ticks at whole numbers."""
    axes.set_title(title, loc="left")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)


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
