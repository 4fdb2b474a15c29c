"""The mean over layers, in words."""

from __future__ import annotations

import math

from softh_probe.analysis.model_points import lead_mean, point_values
from softh_probe.errors import abbreviated, one_line
from softh_probe.labels import ORDERS
from softh_probe.layer_places import block_index, block_name
from softh_probe.result import ProbeResult
from softh_probe.tidy_table import mean_table

#: Most layers, and most label sets, that are named.
_MAX_NAMES, _MAX_SETS = 6, 4


def mean_facts(result: ProbeResult) -> list[tuple[str, str]]:
    """Give the values of the mean over layers, and which layers these are; nothing where there is no mean.

    In units of log m. Optimality is told where it was measured, else the information about some label sets.
    """
    table = mean_table(result, "efficiency")
    if table.empty:
        return []
    row = lead_mean({*table.name})
    own = table[table.name == row]
    value = {key: one.value for key, one in point_values(own).items()}
    said = [f"entropy {_number(value['', 'entropy'])}"]
    for order in ORDERS:
        if (order, "optimality") in value:
            of_means, of_layers = (_number(value[order, name]) for name in ("optimality", "optimality_mean_of_layers"))
            said.append(f"optimality ({order}) {of_means} (mean of ratios {of_layers})")
    if len(said) == 1:
        known = {name: value[name, "mutual_information"] for name in result.label_sets[:_MAX_SETS]}
        said += [f"information ({one_line(name.removeprefix('column:'))}) {_number(v)}" for name, v in known.items()]
    return [(f"mean of {_layers(result.mean_rows[row])}", ", ".join(said))]


def mean_lines(result: ProbeResult) -> list[str]:
    """Say the same in a line."""
    return [f"{name}: {said}" for name, said in mean_facts(result)]


def _layers(names: list[str]) -> str:
    """Name layers; neighbouring blocks by their ends.

    >>> _layers(["layer.1", "layer.2", "layer.3"]), _layers(["embeddings", "layer.2"])
    ('layers 1–3', 'embeddings, layer.2')
    """
    first = block_index(names[0])
    if first is not None and len(names) > 1 and names == [block_name(first + i) for i in range(len(names))]:
        return f"layers {first}–{first + len(names) - 1}"
    return abbreviated([one_line(name) for name in names], _MAX_NAMES)


def _number(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.2f}"
