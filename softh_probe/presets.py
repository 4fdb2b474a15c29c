"""Settings that a name stands for, to continue what another tool measured. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from softh_probe.errors import InputError
from softh_probe.estimators.recipes import KINDS
from softh_probe.labels import DIRECTIONS, NGRAM_SETS, ORDERS

#: Names of presets.
Like = Literal["soft-entropy-0.1.5"]
#: Settings by the name of the preset. soft-entropy 0.1.5 reads `hidden_states` of transformers without the embeddings:
#: the output of each block but the last, and that of the final norm.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "soft-entropy-0.1.5": {
        "anchors": "published",
        "anchor_sets": 1,
        "calibration": "amos",
        "max_length": 128,
        "overflow": "truncate",
        "positions": "all",
        "layers": None,
        "mean_over": ("1:-2", -1),
        "sites": ("residual",),
        "modules": None,
        "dtype": "float32",
    }
}
#: What cannot be continued, and why.
LIMITS: Mapping[str, str] = {
    "soft-entropy-0.1.5": "numbers that soft-entropy measured in bfloat16 or float16 cannot be continued, since its "
    "counters lose mass (80% after 10,000 documents), nor those of a tokenizer that pads on the left, since pads were "
    "taken for text; on a GPU it drew other anchors, which --anchors FILE takes"
}


def preset_values(like: str, fields: Sequence[dataclasses.Field[Any]], given: Mapping[str, Any]) -> dict[str, Any]:
    """Give the settings of a preset; anchors of a file stay what they are.

    Args:
        like: name of the preset.
        fields: of the configuration.
        given: its values, by name.

    Raises:
        InputError: a value that the user gave is not that of the preset.
    """
    defaults = {field.name: field.default for field in fields}
    wanted = dict(PRESETS[like])
    if given["anchors"] not in KINDS:
        del wanted["anchors"]
    for name, value in wanted.items():
        if given[name] not in (defaults[name], value):
            raise InputError(
                f"{name}: like {like} it is {_said(value)}, got {_said(given[name])}; leave one of them out"
            )
    return wanted


def describe_preset(like: str, values: Mapping[str, Any]) -> str:
    """Say which settings a preset stands for.

    Args:
        values: the settings of the run, by name.
    """
    return ", ".join(f"{name} {_said(values[name])}" for name in PRESETS[like] if values[name] is not None)


def check_both_directions(like: str, labels: Sequence[str]) -> None:
    """Refuse label sets of which one direction is missing: the preset measures both, at the same positions.

    Raises:
        InputError: a direction of an order is missing, or a set is none of n-grams.
    """
    orders = dict.fromkeys(name.partition("_")[2] for name in labels)
    wanted = [f"{direction}_{order}" for order in orders if order in ORDERS for direction in DIRECTIONS]
    if {*wanted} != {*labels} or not labels:
        listed = ",".join(wanted or NGRAM_SETS[:2])
        raise InputError(f"labels: like {like} both directions of each order are measured; give --labels {listed}")


def _said(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
