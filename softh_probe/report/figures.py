"""Figures of a result: functions that return matplotlib figures, for papers and notebooks."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from softh_probe.result import ProbeResult

UNIT_NAMES = {"efficiency": "share of log m", "nats": "nats", "bits": "bits"}

#: Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")

_CHANCE_LINES = (
    ("mutual_information_max", "if every label were unique", "0.5", ":"),
    ("mutual_information", "raw", COLOURS[0], "-"),
    ("mutual_information_null", "by chance", COLOURS[4], "-"),
    ("mutual_information_corrected", "corrected", COLOURS[2], "--"),
)


def entropy_by_layer(result: ProbeResult, unit: str = "efficiency") -> Figure:
    """H(Z) of every layer, with the sd over anchor sets where there are several."""
    figure, axes = _axes("Entropy of the hidden states", f"H(Z) ({UNIT_NAMES[unit]})")
    _line(axes, result, unit, "entropy", "", COLOURS[0], label=None)
    return figure


def information_by_layer(result: ProbeResult, unit: str = "efficiency") -> Figure:
    """I(X;Z) of every layer with each label set: inputs solid, outputs dashed, in the same colour for each order."""
    figure, axes = _axes("Information about the labels", f"I(X;Z) ({UNIT_NAMES[unit]})")
    kinds = list(dict.fromkeys(name.removeprefix("input_").removeprefix("output_") for name in result.label_sets))
    for label_set in result.label_sets:
        kind = label_set.removeprefix("input_").removeprefix("output_")
        colour = COLOURS[kinds.index(kind) % len(COLOURS)]
        style = "--" if label_set.startswith("output_") else "-"
        _line(axes, result, unit, "mutual_information", label_set, colour, label=_plain(label_set), linestyle=style)
    if result.label_sets:
        figure.legend(loc="outside right upper", frameon=False)
    return figure


def chance_by_layer(result: ProbeResult, unit: str = "efficiency") -> Figure:
    """I(X;Z) of every layer between what chance gives (shaded) and what unique labels would give; and corrected."""
    names = result.label_sets
    n_columns = max(1, min(4, (len(names) + 1) // 2))
    n_rows = max(1, -(-len(names) // n_columns))
    figure = Figure(figsize=(3 + 2.6 * n_columns, 1 + 2.4 * n_rows), layout="constrained")
    grid = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
    table = result.to_pandas(unit)
    ordered = sorted(names, key=lambda name: name.startswith("output_"))  # inputs above, outputs below
    for axes, name in zip(grid.flat, ordered, strict=False):
        of_set = table[table.label_set == name].pivot_table(index="layer", columns="metric", values="value")
        of_set = of_set.reindex(columns=[metric for metric, *_ in _CHANCE_LINES])
        for metric, label, colour, style in _CHANCE_LINES:
            axes.plot(of_set.index, of_set[metric], style, color=colour, label=label, linewidth=1.5)
        axes.fill_between(of_set.index, 0, of_set.mutual_information_null, color=COLOURS[4], alpha=0.3, linewidth=0)
        axes.set_title(_plain(name), loc="left", fontsize="medium")
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", alpha=0.3)
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    figure.supxlabel("layer (0: embeddings; last: final norm)", fontsize="medium")
    figure.supylabel(f"I(X;Z) ({UNIT_NAMES[unit]})", fontsize="medium")
    if names:
        figure.legend(*grid.flat[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return figure


def _plain(label_set: str) -> str:
    """A label set's name as text: no part of it is a formula."""
    return label_set.replace("_", " ").replace("$", r"\$")


def _axes(title: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left")
    axes.set_xlabel("layer (0: embeddings; last: final norm)")
    axes.set_ylabel(y_label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    return figure, axes


def _line(
    axes: Axes,
    result: ProbeResult,
    unit: str,
    metric: str,
    label_set: str,
    colour: str,
    *,
    label: str | None,
    linestyle: str = "-",
) -> None:
    table = result.to_pandas(unit)
    table = table[(table.metric == metric) & (table.label_set == label_set)]
    x, y, sd = (table[column].to_numpy(float) for column in ("layer", "value", "sd"))
    axes.plot(x, y, color=colour, linestyle=linestyle, marker="o", markersize=3, label=label)
    axes.fill_between(x, y - sd, y + sd, color=colour, alpha=0.15, linewidth=0)
