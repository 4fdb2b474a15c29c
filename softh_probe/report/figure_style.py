"""What all figures share: paper, axes, colours, and text that is shown as text."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Iterable

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

LAYER_AXIS = "layer (0: embeddings; last: final norm)"

#: Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")


class Picture(Figure):
    """A matplotlib figure that a notebook shows, whatever backend it uses."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")  # of a label's script: shown as boxes
            self.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()


def one_panel(title: str, y_label: str) -> tuple[Figure, Axes]:
    """A figure of one panel, dressed."""
    figure = Picture(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    dress(axes, title, y_label)
    return figure, axes


def dress(axes: Axes, title: str, y_label: str, x_label: str = LAYER_AXIS) -> None:
    """Title, names of the axes, ticks at whole numbers."""
    axes.set_title(title, loc="left")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)


def short(label: str, longest: int = 24) -> str:
    """A label as text on one line: no part of it is a formula."""
    line = " ".join("".join(c if c.isprintable() else " " for c in label).split()).replace("$", r"\$")
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def wrapped(title: str) -> str:
    """A title as text on several short lines."""
    return textwrap.fill(short(title, 60), 24)


def plain(label_set: str) -> str:
    """A label set's name as text on one line."""
    return short(label_set.replace("_", " "), 40)


def panel_order(label_sets: Iterable[str]) -> list[str]:
    """Inputs above, outputs below, all others last.

    >>> panel_order(["topic", "output_unigram", "input_unigram"])
    ['input_unigram', 'output_unigram', 'topic']
    """
    rank = {"input": 0, "output": 1}
    return sorted(label_sets, key=lambda name: rank.get(name.partition("_")[0], 2))
