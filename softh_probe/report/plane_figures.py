"""Figures of models as points: the information plane, and bars of the distance to the bound.

>>> from softh_probe.analysis.model_points import PointValue
>>> values = {("input_unigram", "mutual_information"): PointValue(value=0.5, sd=0.01),
...           ("output_unigram", "mutual_information"): PointValue(value=0.3, sd=0.02)}
>>> points = [ModelPoint(name=name, model=name, family="llama", values=values) for name in ("one", "two")]
>>> plane_of_models(points, "unigram").axes[0].get_xlabel()
'I(input; Z) (share of log m)'
>>> [bar.get_width().round(3).item() for bar in distance_to_bound(points, "unigram").axes[0].patches]
[0.2, 0.2]

Checkpoints of one training run are joined in order of steps, and points are then coloured by step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from softh_probe.analysis.model_points import ModelPoint
from softh_probe.errors import InputError, short_repr
from softh_probe.report.figure_style import COLOURS, NotebookFigure, lay_out, leave_empty, short
from softh_probe.report.label_places import place_labels
from softh_probe.report.page_data import UNIT_NAMES, amount
from softh_probe.report.plane_data import INFORMATIONS, limits_of, paths_of, places_of, plane_orders, spreads_of
from softh_probe.report.step_ticks import log_place, log_ticks

_UNIT = UNIT_NAMES["efficiency"]
#: What points are coloured by: these, or a group of each point by its name.
COLOURED_BY = ("family", "step")
#: Groups with a colour and marker of their own; the others share one.
_MARKERS = ("o", "s", "^")
_HATCHES = {"o": "", "s": "////", "^": "...."}
_MOST_GROUPS = len(COLOURS[:7]) * len(_MARKERS)
#: Areas of markers in square points, of the fewest parameters and the most; those of checkpoints hide each other less.
_AREAS, _PATH_AREAS = (16.0, 150.0), (14.0, 54.0)
#: Most bars that have a name; and most labels for which a smaller panel has room.
_MOST_NAMED, _FEW_NAMES = 60, 12
_OTHER = "0.6"


def plane_of_models(
    points: Sequence[ModelPoint],
    order: str | None = None,
    metric: str = INFORMATIONS[0],
    colour_by: str | Mapping[str, str | None] | None = None,
) -> Figure:
    """Draw models and checkpoints as points: I(input; Z) horizontally, I(output; Z) vertically, ± sd over anchor sets.

    On the dotted diagonal, optimality is 1. The area of a point is by the logarithm of its parameters. Names stand
    where there is room; how many have none is told above the axes.

    Args:
        points: with both informations of an order that is drawn; others are left out.
        order: "unigram", …; None draws a panel for each.
        metric: "mutual_information" or "mutual_information_corrected".
        colour_by: "family", "step", or a group of each point by its name; None is the step where there are training
            runs, else the family.

    Raises:
        InputError: no point has both informations, or `colour_by` is none of these.
    """
    points, orders = _known(points, order, metric)
    paths = paths_of(points)
    names = _labels(points, paths)
    colours, sizes = _colours(points, colour_by), _PATH_AREAS if paths else _AREAS
    areas = _areas(points, sizes)
    is_single = len(orders) == 1
    width, height = (6.6, 6.6) if is_single or sum(map(bool, names)) > _FEW_NAMES else (5.0, 4.3)
    figure, panels = _panels(len(orders), width, height, keys=3.0)
    for axes, one in zip(panels, orders, strict=True):
        _draw_plane(axes, points, one, metric, colours, areas)
        axes.set(xlabel=f"I(input; Z) ({_UNIT})", ylabel=f"I(output; Z) ({_UNIT})")
        axes.set_title(_title("Information plane", one, metric) if is_single else one, loc="left")
    if not is_single:
        figure.suptitle(_title("Information plane", "", metric), x=0.01, ha="left", fontsize="medium")
    colours.explain(figure, panels)
    _size_key(figure, points, sizes, below=bool(paths))
    lay_out(figure)
    for axes, one in zip(panels, orders, strict=True):
        x, y = places_of(points, one, metric)
        place_labels(axes, x, y, names, areas)
    return figure


def _draw_plane(
    axes: Axes, points: Sequence[ModelPoint], order: str, metric: str, colours: _Colours, areas: np.ndarray
) -> None:
    """Draw points over their bars of spread, these over the paths, and all over the bound."""
    x, y = places_of(points, order, metric)
    known = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    points, x, y, areas = [points[int(i)] for i in known], x[known], y[known], areas[known]
    of_points, markers = [colours.of_points[i] for i in known], [colours.markers[i] for i in known]
    paths, spreads = paths_of(points), spreads_of(points, order, metric)
    (left, right), (low, high) = limits_of(x, y, spreads)
    ends = [min(left, low), max(right, high)]
    axes.plot(ends, ends, color="0.5", linestyle=":", linewidth=1, zorder=1, label="bound")
    for of_it in map(list, paths.values()):
        axes.plot(x[of_it], y[of_it], color="0.6", linewidth=1, zorder=1.5)
    alpha = 0.5 if len(x) <= _MOST_NAMED else 0.25
    bars: dict[str, Any] = {"fmt": "none", "ecolor": of_points, "elinewidth": 0.7, "alpha": alpha, "zorder": 2}
    axes.errorbar(x, y, xerr=_drawn(spreads[0]), yerr=_drawn(spreads[1]), **bars)
    for marker in dict.fromkeys(markers):
        with_it = [i for i, one in enumerate(markers) if one == marker]
        own: dict[str, Any] = {"c": [of_points[i] for i in with_it], "s": areas[with_it], "marker": marker}
        axes.scatter(x[with_it], y[with_it], edgecolor="white", linewidth=0.3 if paths else 0.6, zorder=3, **own)
    axes.set(xlim=(left, right), ylim=(low, high))
    axes.spines[["top", "right"]].set_visible(False)


def distance_to_bound(
    points: Sequence[ModelPoint],
    order: str | None = None,
    metric: str = INFORMATIONS[0],
    colour_by: str | Mapping[str, str | None] | None = None,
) -> Figure:
    """Draw I(input; Z) − I(output; Z) as a bar for each point, the least first: 0 is the bound, optimality 1.

    The bars have no spread: both informations are of the same anchors, so most of that is common to them.

    Args, Raises: as in `plane_of_models`.
    """
    points, orders = _known(points, order, metric)
    colours = _colours(points, colour_by)
    is_single = len(orders) == 1
    width, height = (8.0, 1.4 + 0.2 * len(points)) if len(points) <= _MOST_NAMED else (9.0, 4.5)
    figure, panels = _panels(len(orders), width if is_single else 0.7 * width, height, keys=0.0 if is_single else 3.0)
    for axes, one in zip(panels, orders, strict=True):
        _draw_distances(axes, points, one, metric, colours)
        axes.set_title(_title("Distance to the bound", one, metric) if is_single else one, loc="left")
    if not is_single:
        figure.suptitle(_title("Distance to the bound", "", metric), x=0.01, ha="left", fontsize="medium")
    colours.explain(figure, panels, bars=True)
    return figure


def _draw_distances(axes: Axes, points: Sequence[ModelPoint], order: str, metric: str, colours: _Colours) -> None:
    """Draw bars from the left with names, or where these are too many from below without."""
    x, y = places_of(points, order, metric)
    in_order = np.argsort(x - y, kind="stable")[: np.isfinite(x - y).sum()]  # what is not known sorts last
    distances = (x - y)[in_order]
    n = len(distances)
    of_bars: dict[str, Any] = {
        "color": [colours.of_points[i] for i in in_order],
        "hatch": [_HATCHES[colours.markers[i]] for i in in_order],
        "edgecolor": "white",
        "linewidth": 0,
    }
    if len(points) <= _MOST_NAMED:
        axes.barh(range(n), distances, **of_bars)
        axes.set_yticks(range(n), [short(points[i].name, 40) for i in in_order], fontsize=8)
        axes.set(xlabel=f"I(input; Z) − I(output; Z) ({_UNIT}); 0 is the bound", ylim=(n - 0.4, -0.6))
        axes.axvline(0, color="0.5", linestyle=":", linewidth=1)
    else:
        axes.bar(range(n), distances, width=1.0, **of_bars)
        axes.set(ylabel=f"I(input; Z) − I(output; Z)\n({_UNIT}); 0 is the bound", xlim=(-0.6, n - 0.4))
        axes.set_xlabel(f"{n:,} points, sorted; their names are in report.html")
        axes.axhline(0, color="0.5", linestyle=":", linewidth=1)
    axes.spines[["top", "right"]].set_visible(False)


@dataclass(frozen=True, kw_only=True)
class _Colours:
    """Colours of points, and what they stand for.

    Attributes:
        of_points, markers: a colour and a marker a point.
        groups: number of points, colour and marker of each group; empty where colours are of steps.
        steps: of the points that have one, where colours are of steps.
    """

    of_points: list[Any]
    markers: list[str]
    groups: dict[str, tuple[int, Any, str]]
    steps: list[int]

    def explain(self, figure: Figure, panels: Sequence[Axes], *, bars: bool = False) -> None:
        """Add a legend of groups, or a colour bar of steps."""
        if self.steps:
            least = min((step for step in self.steps if step), default=1)
            ticks = log_ticks(sorted(self.steps), 3.5)
            norm = Normalize(log_place(min(self.steps), least), log_place(max(self.steps), least))
            bar = figure.colorbar(ScalarMappable(norm, colormaps["viridis"]), ax=[*panels], pad=0.02, shrink=0.8)
            bar.set_label("training step (log scale)")
            bar.set_ticks([log_place(tick, least) for tick in ticks], labels=[f"{tick:,}" for tick in ticks])
            bar.minorticks_off()
        elif len(self.groups) > 1:
            handles = [
                Patch(facecolor=colour, hatch=_HATCHES[marker], edgecolor="white", linewidth=0, label=label)
                if bars
                else Line2D([], [], linestyle="", marker=marker, color=colour, label=label)
                for label, colour, marker in (
                    (f"{short(name, 28)} ({n})", colour, marker) for name, (n, colour, marker) in self.groups.items()
                )
            ]
            figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize="small")


def _colours(points: Sequence[ModelPoint], colour_by: str | Mapping[str, str | None] | None) -> _Colours:
    if colour_by is None:
        colour_by = "step" if paths_of(points) else "family"
    if isinstance(colour_by, str) and colour_by not in COLOURED_BY:
        expected = " or ".join(map(repr, COLOURED_BY))
        raise InputError(f"colour_by: expected {expected}, or groups by the points' names, got {short_repr(colour_by)}")
    if colour_by == "step":
        return _step_colours(points)
    groups = [point.family if isinstance(colour_by, str) else colour_by.get(point.name) for point in points]
    return _group_colours([group or "unknown" for group in groups])


def _step_colours(points: Sequence[ModelPoint]) -> _Colours:
    steps = [point.step for point in points if point.step is not None]
    least = min((step for step in steps if step), default=1)
    places = [log_place(step, least) for step in steps] or [0.0]
    norm = Normalize(min(places), max(min(places) + 1e-9, *places))
    scale = colormaps["viridis"]
    found = [_OTHER if point.step is None else scale(norm(log_place(point.step, least))) for point in points]
    return _Colours(of_points=found, markers=["o"] * len(points), groups={}, steps=steps)


def _group_colours(groups: Sequence[str]) -> _Colours:
    counts = Counter(groups).most_common()
    of_group: dict[str, tuple[Any, str]] = {}
    for n, (group, _) in enumerate(counts):
        own = n < _MOST_GROUPS
        of_group[group] = (COLOURS[n % 7], _MARKERS[n // 7]) if own else (_OTHER, "o")
    legend = {group: (n, *of_group[group]) for group, n in counts[:_MOST_GROUPS]}
    if others := counts[_MOST_GROUPS:]:
        legend[f"{len(others)} others"] = (sum(n for _, n in others), _OTHER, "o")
    return _Colours(
        of_points=[of_group[group][0] for group in groups],
        markers=[of_group[group][1] for group in groups],
        groups=legend,
        steps=[],
    )


def _known(points: Sequence[ModelPoint], order: str | None, metric: str) -> tuple[list[ModelPoint], list[str]]:
    """Select the points that have a place in the plane of an order, or of some; and the orders that are drawn.

    Raises:
        InputError: none has.
    """
    orders = plane_orders(points, metric)
    drawn = orders if order is None else [order] if order in orders else []
    if not drawn:
        sought = "n-grams" if order is None else f"input_{order} and output_{order}"
        known = ", ".join(orders) or "none"
        raise InputError(f"order: no point has {metric} about {sought}; orders that points have: {known}")
    places = [places_of(points, one, metric) for one in drawn]
    is_known = np.any([np.isfinite(x) & np.isfinite(y) for x, y in places], axis=0)
    return [point for point, known in zip(points, is_known, strict=True) if known], drawn


def _panels(n: int, width: float, height: float, keys: float) -> tuple[Figure, list[Axes]]:
    """Make a figure of n panels of some inches, in rows of two, with some for the keys beside them."""
    n_columns = min(2, n)
    n_rows = -(-n // n_columns)
    size = (width * n_columns + keys, height * n_rows)
    figure = NotebookFigure(figsize=size, layout="constrained")
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    leave_empty(grid, n)
    return figure, [*grid.flat[:n]]


def _drawn(sd: np.ndarray) -> np.ndarray | None:
    return np.nan_to_num(sd) if np.isfinite(sd).any() else None


def _areas(points: Sequence[ModelPoint], areas: tuple[float, float]) -> np.ndarray:
    """Give the areas of markers by the logarithm of parameters; alike where all have as many."""
    known = _parameters(points)
    return np.array([_area(point.n_parameters, known, areas) if known else 0.25 * sum(areas) for point in points])


def _parameters(points: Sequence[ModelPoint]) -> tuple[int, int] | None:
    """Find the fewest parameters and the most, where they differ."""
    known = [point.n_parameters for point in points if point.n_parameters]
    return (min(known), max(known)) if len(set(known)) > 1 else None


def _area(n: int | None, known: tuple[int, int], areas: tuple[float, float]) -> float:
    least, most = np.log(known)
    share = (np.log(n) - least) / (most - least) if n else 0.0  # not known: the smallest
    return float(areas[0] + share * (areas[1] - areas[0]))


def _size_key(figure: Figure, points: Sequence[ModelPoint], areas: tuple[float, float], *, below: bool) -> None:
    """Add a legend of three sizes: the fewest parameters, the most, and those midway on a log scale."""
    known = _parameters(points)
    if known is None:
        return
    sizes = [known[0], round(np.sqrt(known[0] * known[1])), known[1]]
    mark: dict[str, Any] = {"linestyle": "", "marker": "o", "color": "0.6"}
    handles = [Line2D([], [], **mark, markersize=np.sqrt(_area(n, known, areas)), label=amount(n)) for n in sizes]
    title = "parameters" + " (not known: smallest)" * any(not point.n_parameters for point in points)
    look: dict[str, Any] = {"title": title, "frameon": False, "fontsize": "small", "title_fontsize": "small"}
    figure.legend(
        handles=handles, loc="outside lower center" if below else "outside right lower", ncols=3 if below else 1, **look
    )


def _labels(points: Sequence[ModelPoint], paths: Mapping[str, Sequence[int]]) -> list[str]:
    """Name the points: of one training run the first and last checkpoint, of several the last by the run's name."""
    joined = {i for of_it in paths.values() for i in of_it}
    if len(paths) == 1:
        named = {i: points[i].name for of_it in paths.values() for i in (of_it[0], of_it[-1])}
    else:
        named = {of_it[-1]: series.rstrip("/").rpartition("/")[2] for series, of_it in paths.items()}
    return [named.get(i, "" if i in joined else point.name) for i, point in enumerate(points)]


def _title(what: str, order: str, metric: str) -> str:
    of_it = [*filter(None, [order]), *["corrected"] * (metric == INFORMATIONS[1])]
    return " · ".join(filter(None, [what, ", ".join(of_it)]))
