"""Figures of the comparison: a panel for each estimator, costs, and layers of the model.

On the page, ink follows its colour scheme: figures are drawn with the inks below, which the page's variables replace.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from rivals.lineup import Rival
from rivals.study import DIM, SEPARATION, Plan
from rivals.study_statistics import Told, headline, of_headline
from rivals.study_words import short_size
from softh_probe.report.figure_style import COLOURS, boxes_for_missing_glyphs, lay_out, short

INK, SOFT, LINE = "#1b1f24", "#59636e", "#d9dee3"
_VARIABLES = {INK: "var(--ink)", SOFT: "var(--soft)", LINE: "var(--line)"}
_STYLE = {
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "axes.linewidth": 0.8,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "grid.color": LINE,
    "font.size": 9,
    "axes.titlesize": 9.5,
    "legend.frameon": False,
    "svg.hashsalt": "softh_probe",
}
_TRUTH = {"color": SOFT, "linestyle": ":", "linewidth": 1.3, "zorder": 1}
COLUMNS = 4


def agreement_figure(table: pd.DataFrame, rivals: Sequence[Rival], plan: Plan) -> Figure:
    """Draw estimates against the truth, with a panel for each estimator."""
    base = table[table.factor == 1]
    channel, clusters = base[base.part == "channel"], base[base.part == "clusters"].query("n == @plan.n")
    series: dict[str, tuple[pd.DataFrame, str, str]] = {
        f"noisy channel, d = {dim:,}": (channel[channel.dim == dim], colour, "o")
        for dim, colour in zip(plan.dims, (COLOURS[5], COLOURS[0], COLOURS[2]), strict=False)
    }
    series[f"clusters, d = {DIM}"] = clusters[clusters.dim == DIM], COLOURS[4], "s"
    for part, words, colour in (("languages", "languages", COLOURS[3]), ("tags", "parts of speech", COLOURS[1])):
        rows = of_headline(base, part)
        if len(rows):
            series[f"{words}, {headline(base, part)}"] = rows, colour, "D"
    most = float(base.high.max())
    with matplotlib.rc_context(_STYLE):
        figure, panels, key = _grid(len(rivals))
        for axes, rival in zip(panels, rivals, strict=True):
            axes.set_title(short(rival.name, 40), loc="left")
            axes.plot([0, most], [0, most], **_TRUTH)
            found: list[float] = []
            for rows, colour, marker in series.values():
                own = rows[rows.estimator == rival.name].sort_values("high")
                axes.plot(own.high, own.value, color=colour, marker=marker, markersize=3.2, linewidth=1.1)
                found += own.value.dropna().to_list()
            axes.set_xlim(-0.06, most * 1.06)
            _beyond(axes, found, -0.2, most * 1.15)
        for axes in panels[::COLUMNS]:
            axes.set_ylabel("estimate, nats")
        for axes in panels[-COLUMNS:]:
            axes.set_xlabel("I(X;Z), nats")
        entries = [([], colour, marker, "-", name) for name, (_, colour, marker) in series.items()]
        _key(key, [*entries, ([], SOFT, "", ":", "the truth")])
        lay_out(figure)
    return figure


def moves_figure(table: pd.DataFrame, told: Sequence[Told], plan: Plan) -> Figure:
    """Draw the estimate of one truth over widths, sizes and settings, with a panel for each estimator."""
    rows = table[(table.part == "clusters") & (table.x == SEPARATION)]
    truth = float(rows.high.iloc[0])
    groups = {
        "width d": ([short_size(dim) for dim in plan.dims], COLOURS[0]),
        "positions n": ([short_size(n) for n in plan.sizes], COLOURS[4]),
        "setting": ([f"×{factor:g}" for factor in plan.factors], COLOURS[2]),
    }
    with matplotlib.rc_context(_STYLE):
        figure, panels, key = _grid(len(told))
        for axes, one in zip(panels, told, strict=True):
            axes.set_title(short(one.rival.name, 40), loc="left")
            axes.axhline(truth, **_TRUTH)
            at, ticks = 0, []
            for (names, colour), values in zip(groups.values(), (one.by_dim, one.by_size, one.by_knob), strict=True):
                places = at + np.arange(len(names))
                axes.plot(places, values, color=colour, marker="o", markersize=3.5, linewidth=1.2)
                ticks += [*zip(places, names, strict=True)]
                at += len(names) + 0.8
            axes.set_xticks([place for place, _ in ticks], [name for _, name in ticks], fontsize=6.5)
            axes.set_xlim(-0.5, at - 1.3)
            found = [value for value in (*one.by_dim, *one.by_size, *one.by_knob) if np.isfinite(value)]
            _beyond(axes, found, -0.1, truth * 1.9)
        for axes in panels[::COLUMNS]:
            axes.set_ylabel("estimate, nats")
        entries = [([], colour, "o", "-", name) for name, (_, colour) in groups.items()]
        _key(key, [*entries, ([], SOFT, "", ":", f"the truth, {truth:.2f} nats")])
        lay_out(figure)
    return figure


def cost_figure(table: pd.DataFrame, rivals: Sequence[Rival], plan: Plan) -> Figure:
    """Draw time and memory over the size of the states."""
    rows = table[(table.part == "clusters") & (table.x == SEPARATION) & (table.factor == 1)]
    rows = rows[(rows.dim == DIM) | ((rows.n == plan.largest[0]) & (rows.dim == plan.largest[1]))]
    rows = rows.assign(size=rows.n * rows.dim * 4 / 2**20).sort_values("size")
    with matplotlib.rc_context(_STYLE):
        figure, left, right = _pair()
        for rival, look in zip(rivals, _looks(rivals), strict=True):
            own = rows[rows.estimator == rival.name]
            left.plot(own["size"], own.seconds.clip(lower=1e-3), label=short(rival.name, 40), **look)
            right.plot(own["size"], own.memory_mib.clip(lower=1), **look)
        for axes, title in ((left, "Seconds of one core"), (right, "Memory beside the states, MiB")):
            axes.set(xscale="log", yscale="log", title=title, xlabel="size of the states, MiB (n × d × 4 bytes)")
            axes.title.set_ha("left")
            axes.title.set_x(0)
            axes.set_xticks(list(dict.fromkeys(rows["size"])), [f"{size:,.0f}" for size in dict.fromkeys(rows["size"])])
            axes.xaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_minor_formatter(NullFormatter())
        figure.legend(loc="outside right center")
        lay_out(figure)
    return figure


def layers_figure(table: pd.DataFrame, rivals: Sequence[Rival]) -> Figure | None:
    """Draw estimates of layers of the model, with the bounds of the truth; there is none without a model."""
    base = table[(table.factor == 1) & (table.x == 0)]
    parts = [(part, base[base.part == part]) for part in ("languages", "tags")]
    if any(rows.empty for _, rows in parts):
        return None
    with matplotlib.rc_context(_STYLE):
        figure, *panels = _pair()
        titles = ("Languages", "Parts of speech")
        for axes, (_, rows), title in zip(panels, parts, titles, strict=True):
            layers = list(dict.fromkeys(rows.layer))
            places = np.arange(len(layers))
            bounds = rows.drop_duplicates("layer").set_index("layer").loc[layers]
            axes.fill_between(places, bounds.low, bounds.high, color=SOFT, alpha=0.25, linewidth=0)
            for rival, look in zip(rivals, _looks(rivals), strict=True):
                own = rows[rows.estimator == rival.name].set_index("layer").reindex(layers)
                label = short(rival.name, 40) if axes is panels[0] else None
                axes.plot(places, own.value, label=label, **look)
            axes.set_xticks(places, [short(layer) for layer in layers])
            axes.set_title(title, loc="left")
            axes.set_ylabel("estimate, nats")
            top = 1.4 * bounds.high.max()
            axes.set(xlim=(-0.2, len(layers) - 0.8), ylim=(-0.2, top))
            most = rows[rows.value > top].groupby("estimator", sort=False).value.max()
            beyond = "; ".join(f"{short(name, 40)}: up to {value:.1f}" for name, value in most.items())
            axes.text(0.02, 0.97, beyond, transform=axes.transAxes, va="top", color=SOFT)
        panels[0].fill_between([], [], [], color=SOFT, alpha=0.25, label="where the truth is")
        figure.legend(loc="outside right center")
        lay_out(figure)
    return figure


def svg(figure: Figure) -> str:
    """Draw a figure as the content of a page, with the page's inks and no ground."""
    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE), boxes_for_missing_glyphs():
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return text


def _grid(n: int) -> tuple[Figure, list[Axes], Axes]:
    """Make panels, in rows of four, and one more for the key."""
    rows = -(-(n + 1) // COLUMNS)
    figure = Figure(figsize=(11.2, 2.35 * rows), layout="constrained")
    grid = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes in grid[:n]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.6, linewidth=0.6)
        axes.set_axisbelow(True)
    for axes in grid[n:]:
        axes.axis("off")
    return figure, list(grid[:n]), grid[n]


def _pair() -> tuple[Figure, Axes, Axes]:
    figure = Figure(figsize=(11.2, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.6, linewidth=0.6)
    return figure, left, right


def _beyond(axes: Axes, values: Sequence[float], low: float, high: float) -> None:
    """Set the limits of a panel, and tell what lies beyond them."""
    axes.set_ylim(low, high)
    if values and max(values) > high:
        axes.text(0.98, 0.04, f"up to {max(values):.1f}", transform=axes.transAxes, ha="right", color=SOFT)
    if values and min(values) < low:
        axes.text(0.03, 0.9, f"down to −{-min(values):.1f}", transform=axes.transAxes, color=SOFT)


def _key(axes: Axes, entries: Sequence[tuple[list[float], str, str, str, str]]) -> None:
    for at, colour, marker, style, name in entries:
        axes.plot(at, at, color=colour, marker=marker, markersize=4, linestyle=style, label=short(name, 40))
    axes.legend(loc="center left")


def _looks(rivals: Sequence[Rival]) -> Iterator[dict[str, object]]:
    """Give each estimator a look; ours are the thick ones."""
    colours = [COLOURS[i] for i in (5, 5, 2, 4, 3, 3, 0, 6, 6)]
    others = iter(range(len(rivals)))
    seen: set[str] = set()
    for rival in rivals:
        if rival.name.startswith("soft entropy"):
            style = "--" if "corrected" in rival.name else "-"
            yield {
                "color": COLOURS[1],
                "linestyle": style,
                "linewidth": 2.4,
                "marker": "o",
                "markersize": 4,
                "zorder": 3,
            }
            continue
        colour = colours[next(others) % len(colours)]
        colour = SOFT if colour == COLOURS[6] else colour
        yield {"color": colour, "linestyle": "--" if colour in seen else "-", "marker": "o", "markersize": 3}
        seen.add(colour)
