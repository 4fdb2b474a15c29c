"""Labels of points that touch neither each other nor a point: as many as have room, crowded points last."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox
from numpy.typing import ArrayLike

from softh_probe.report.figure_style import boxes_for_missing_glyphs, short

#: Ways from a point to its label, by preference: the corners, where no bar of its spread runs, then its sides.
_WAYS = ((1, -1), (-1, -1), (1, 1), (-1, 1), (1, 0), (-1, 0), (0, 1), (0, -1))
#: Points between a marker and its label, from the nearest labels to those that a thin line joins to their points.
_AWAY = (0.0, 9.0, 18.0)
#: Points between a marker and the nearest label, and between two labels.
_GAP = 2.0
#: Letters of a label.
_LONGEST = 32
#: Side of the square that a marker fills, as a share of its diameter: labels may reach into its corners.
_FILLED = 0.9


def place_labels(
    axes: Axes, x: ArrayLike, y: ArrayLike, names: Sequence[str], sizes: ArrayLike, fontsize: float = 7.5
) -> None:
    """Label the points of a figure that is otherwise complete, and tell in its title how many have no room.

    Args:
        axes: with its limits set, of a figure that is laid out: that decides how far points are from each other.
        x, y: places of the points; one that is NaN has no label.
        names: their labels; an empty one is none.
        sizes: of their markers, areas in square points as in `Axes.scatter`.
        fontsize: in points.
    """
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    x, y = np.asarray(x, float), np.asarray(y, float)
    known = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    pixels = figure.dpi / 72  # of a point
    at = axes.transData.transform(np.column_stack([x, y])[known])
    radii = np.sqrt(np.asarray(sizes, float)[known]) / 2 * pixels
    taken = np.array([_square(point, _FILLED * r) for point, r in zip(at, radii, strict=True)]).reshape(-1, 4)
    frame = axes.get_window_extent()
    n_named = left_out = 0
    for i in _crowded_last(at):
        if not (name := short(names[known[i]], _LONGEST)):
            continue
        n_named += 1
        size = _size_of(axes, name, fontsize)
        found = (one for one in _candidates(at[i], radii[i], size, pixels) if _is_free(one.box, taken, frame))
        if (chosen := next(found, None)) is None:
            left_out += 1
        else:
            taken = np.vstack([taken, chosen.box])
            place = axes.transData.inverted().transform(at[i])
            _add_label(axes, name, place, np.array(chosen.offset) / pixels, chosen.is_far, fontsize)
    if left_out:
        told = f"{left_out} of {n_named} without a label"
        axes.set_title(told, loc="right", fontsize="x-small", color="0.4")


def _size_of(axes: Axes, name: str, fontsize: float) -> Bbox:
    """Measure a label, in pixels."""
    with boxes_for_missing_glyphs():
        text = axes.text(0, 0, name, fontsize=fontsize)
        size = text.get_window_extent()
        text.remove()
    return size


@dataclass(frozen=True)
class _Candidate:
    """A place for a label, in pixels.

    Attributes:
        offset: of its lower left corner from its point.
        box: left, low, right and high edge, with half of the gap around it.
        is_far: whether a line has to join it to its point.
    """

    offset: tuple[float, float]
    box: tuple[float, float, float, float]
    is_far: bool


def _add_label(axes: Axes, text: str, place: np.ndarray, offset: np.ndarray, is_far: bool, fontsize: float) -> None:
    """Add a label whose lower left corner is some points away from its place."""
    line = {"arrowstyle": "-", "color": "0.65", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 0}
    label = axes.annotate(
        text,
        (float(place[0]), float(place[1])),
        (float(offset[0]), float(offset[1])),
        textcoords="offset points",
        fontsize=fontsize,
        ha="left",
        va="bottom",
        zorder=4,
        arrowprops={**line, "zorder": 2.5, "relpos": (float(offset[0] < 0), float(offset[1] < 0))} if is_far else None,
    )
    label.set_in_layout(False)
    label.set_path_effects([withStroke(linewidth=2, foreground="white")])  # bars of spread pass behind it


def _crowded_last(at: np.ndarray) -> list[int]:
    """Order points by the distance to the nearest other one, the farthest first."""
    if len(at) < 2:
        return [*range(len(at))]
    apart = np.linalg.norm(at[:, None] - at[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    return [int(i) for i in np.argsort(-apart.min(axis=1), kind="stable")]


def _square(at: np.ndarray, half: float) -> tuple[float, float, float, float]:
    return at[0] - half, at[1] - half, at[0] + half, at[1] + half


def _candidates(at: np.ndarray, radius: float, size: Bbox, pixels: float) -> Iterator[_Candidate]:
    """Give the places for a label of a size, nearest first; `pixels` are those of a point."""
    gap = _GAP * pixels / 2
    for further in _AWAY:
        away = radius + (_GAP + further) * pixels
        for dx, dy in _WAYS:
            out = away * (_FILLED if dx and dy else 1.0)
            left = {1: out, -1: -out - size.width, 0: -size.width / 2}[dx]
            low = {1: out, -1: -out - size.height, 0: -size.height / 2}[dy]
            x0, y0 = at[0] + left, at[1] + low
            box = (x0 - gap, y0 - gap, x0 + size.width + gap, y0 + size.height + gap)
            yield _Candidate((left, low), box, further > 0)


def _is_free(box: tuple[float, float, float, float], taken: np.ndarray, frame: Bbox) -> bool:
    x0, y0, x1, y1 = box
    if x0 < frame.x0 or y0 < frame.y0 or x1 > frame.x1 or y1 > frame.y1:
        return False
    return not ((taken[:, 0] < x1) & (x0 < taken[:, 2]) & (taken[:, 1] < y1) & (y0 < taken[:, 3])).any()
