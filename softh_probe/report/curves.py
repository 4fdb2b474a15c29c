"""Figures by name, and any curve of a result alone, on axes of one's own: one metric over the layers."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from softh_probe.analysis.sites import HEADS, lead_site
from softh_probe.errors import InputError, require_string
from softh_probe.labels import spellings
from softh_probe.metrics import ENTROPIES, METRICS, unit_scale
from softh_probe.report.figure_style import layer_axis, one_panel, plain
from softh_probe.report.figures import FIGURES, entropy_by_label
from softh_probe.report.page_data import UNIT_NAMES
from softh_probe.result import ProbeResult

#: Columns of the table that are drawn as errors, by the word for them; "both" are the anchors' and the documents'.
ERRORS = {"sd": ("sd",), "se": ("se",), "both": ("sd", "se")}
#: What gives a result such a column.
_MEASURED_BY = {"sd": "anchor_sets=2 or more", "se": "the intervals of a run (--intervals)"}
_NAMES = [metric.name for metric in METRICS]
#: Words for a metric, or for a family of metrics, that are not its name in the table.
_FAMILIES = {"information": "mutual_information", "overview": ""}
_SYMBOLS = {"mutual_information": "I(X;Z)", "conditional_entropy": "H(Z|X)", "entropy": "H(Z)"}


def plot(result: ProbeResult, figure: str, unit: str, **curve: Any) -> Figure:
    """Draw a figure by its name, or one curve.

    Args:
        result: the result.
        figure: name of the figure, of a label set whose labels are shown one by one, or of a metric.
        unit: as in `ProbeResult.to_pandas`.
        curve: what `draw_curve` takes, as far as it is given; anything but None asks for one curve.

    Raises:
        InputError: the figure, the unit, or what chooses the curve is unknown.
    """
    unit_scale(unit, result.n_anchors)  # raises if the unit is unknown
    require_string("figure", figure)
    for chosen in ("label_set", "metric", "site"):
        if curve.get(chosen) is not None:
            require_string(chosen, curve[chosen])
    curve = {name: value for name, value in curve.items() if value is not None}
    sets = list(dict.fromkeys(name for name, _ in result.labels))
    is_set = bool(spellings(figure) & {*sets})
    if curve or (figure in _NAMES and figure not in FIGURES and not is_set):
        return draw_curve(result, figure, unit, **curve)
    if figure in FIGURES:
        return FIGURES[figure](result, unit)
    if is_set:
        return entropy_by_label(result, figure, unit)
    raise InputError(f"figure: expected one of {', '.join([*FIGURES, *sets])}, or a metric, got {figure!r}")


def draw_curve(
    result: ProbeResult,
    figure: str,
    unit: str,
    *,
    label_set: str | None = None,
    metric: str | None = None,
    ax: Axes | None = None,
    error: str | None = None,
    site: str | None = None,
    **line: Any,
) -> Figure:
    """Draw one metric over the layers.

    Args:
        result: the result.
        figure: the metric, or the family that short names of metrics are of: "information", "optimality", …
        unit: as in `ProbeResult.to_pandas`.
        label_set, metric, ax, error, site, line: as `ProbeResult.plot` takes them.

    Raises:
        InputError: there is no such curve, or it has no such error; the message names those that there are.
    """
    table = result.to_pandas(unit, means=False)
    name = _metric(table, figure, metric)
    part = _of_set(table[table.metric == name], name, label_set)
    part = _of_site(part, result, site)
    columns = _errors(part, name, error)
    axes = _axes(ax, result, name, unit)
    label_set = part.label_set.iloc[0]
    line = {"marker": "o", "markersize": 3, "label": f"{plain(name)} {plain(label_set)}".strip(), **line}
    try:
        (drawn,) = axes.plot(part.layer.to_numpy(float), part.value.to_numpy(float), **line)
    except AttributeError as unknown:
        raise InputError(
            f"plot: {unknown}; it takes figure, unit, label_set, metric, ax, error, site, and properties of lines "
            "(color, label, linestyle, …)"
        ) from None
    x, y, colour = part.layer.to_numpy(float), part.value.to_numpy(float), drawn.get_color()
    if "sd" in columns:
        sd = part.sd.to_numpy(float)
        axes.fill_between(x, y - sd, y + sd, color=colour, alpha=0.2, linewidth=0)
    if "se" in columns:
        axes.errorbar(x, y, yerr=part.se.to_numpy(float), fmt="none", ecolor=colour, elinewidth=1, capsize=2)
    root = axes.figure.canvas.figure  # axes may be in a part of a figure
    return root


def _metric(table: pd.DataFrame, figure: str, metric: str | None) -> str:
    """Find the metric that is meant by the name of a figure and a short name."""
    found = list(dict.fromkeys(table.metric))
    family = _FAMILIES.get(figure, figure)
    if family and family not in _NAMES:
        raise InputError(
            f"figure: {figure!r} is no single curve, which label_set, metric, ax, error and site choose; expected "
            f"information, or a metric: {', '.join(found)}"
        )
    names = [family] if metric is None else [f"{family}_{metric}", metric, f"mutual_information_{metric}"]
    for name in names:
        if name in found:
            return name
    got = f", got {metric or figure!r}" if metric or family else ", to be drawn alone"
    raise InputError(f"metric: expected one of {', '.join(found)}{got}")


def _of_set(part: pd.DataFrame, metric: str, label_set: str | None) -> pd.DataFrame:
    """Choose the label set of a metric; it need not be named where there is one."""
    sets = list(dict.fromkeys(part.label_set))
    if label_set is None and len(sets) > 1:
        raise InputError(f"label_set: expected one of {', '.join(sets)}, whose {metric} is to be drawn")
    wanted = {sets[0]} if label_set is None else spellings(label_set)
    chosen = [name for name in sets if name in wanted]
    if not chosen:
        there_are = f"expected one of {', '.join(sets)}" if sets != [""] else f"{metric} is of no label set"
        raise InputError(f"label_set: {there_are}, got {label_set!r}")
    of_set: pd.DataFrame = part[part.label_set == chosen[0]]
    return of_set


def _of_site(part: pd.DataFrame, result: ProbeResult, site: str | None) -> pd.DataFrame:
    """Choose the rows of a site that has one a layer; a head counts as one."""
    lead = lead_site(result)
    wanted = site or lead
    if wanted in result.sites and wanted != HEADS:
        return part if "site" not in part else part[part.site == wanted]
    if wanted.startswith("head."):
        rows = part[part.name.str.endswith(f".{wanted}")]
        if len(rows):
            return rows
    heads = " or head.0, head.1, … of attention_heads" if HEADS in result.sites else ""
    single = ", ".join(one for one in result.sites if one != HEADS)
    raise InputError(f"site: expected {single}{heads}, got {wanted!r}")


def _errors(part: pd.DataFrame, metric: str, error: str | None) -> tuple[str, ...]:
    """List the columns that are drawn as errors."""
    if error is None:
        return ()
    if error not in ERRORS:
        raise InputError(f"error: expected {', '.join(ERRORS)} or None, got {error!r}")
    for column in ERRORS[error]:
        if column not in part or part[column].isna().all():
            of = "the result" if column == "sd" else f"{metric} of the result"
            raise InputError(f"error: {of} has no {column}, which takes {_MEASURED_BY[column]}; error=None draws none")
    return ERRORS[error]


def _axes(ax: Any, result: ProbeResult, metric: str, unit: str) -> Axes:
    """Give the axes to draw on, their own labels kept; new ones where there are none."""
    places, quantity = layer_axis(result.places), _quantity(metric, unit)
    if ax is None:
        return one_panel("", places, quantity)[1]
    if not isinstance(ax, Axes):
        raise InputError(f"ax: expected the axes of matplotlib, got {type(ax).__name__}; of several, give one: axes[0]")
    if not ax.get_xlabel():
        ax.set_xlabel(places)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not ax.get_ylabel():
        ax.set_ylabel(quantity)
    return ax


def _quantity(metric: str, unit: str) -> str:
    """Name what a metric measures, with its unit.

    >>> _quantity("mutual_information_corrected", "bits"), _quantity("optimality", "bits")
    ('I(X;Z), corrected (bits)', 'optimality')
    """
    for stem, symbol in _SYMBOLS.items():
        if metric.startswith(stem):
            rest = plain(metric.removeprefix(stem)).strip()
            return f"{symbol}{f', {rest}' if rest else ''} ({UNIT_NAMES[unit]})"
    return plain(metric) + (f" ({UNIT_NAMES[unit]})" if metric in ENTROPIES else "")
