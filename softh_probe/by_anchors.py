"""One measurement with several numbers of anchors, or several calibrations: its results and their table.

The result shows the first of them. `result.others` has the others, and `result.variants` all, each as the result of a
run with it alone. by_anchors.csv, .parquet and .safetensors hold them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from softh_probe.errors import InputError, short_repr
from softh_probe.estimators.variants import SEVERAL, Variant, name_of
from softh_probe.part_files import PartFiles
from softh_probe.result_files import OF_DIRECTIONS

if TYPE_CHECKING:
    from softh_probe.result import ProbeResult


def _check(others: Mapping[str, Mapping[str, Any]]) -> None:
    for name, head in others.items():
        settings = head.get("settings")
        if not isinstance(settings, dict) or not {*SEVERAL} <= settings.keys():
            raise ValueError(f"{name}: expected its settings, got {short_repr(settings)}")


ANCHOR_FILES = PartFiles(
    name="by_anchors",
    key="others",
    own={
        **{"settings": dict, "anchors": list, "labelled_positions": dict, "label_sampling": dict},
        "document_labels": None,
    },
    shared=("n_blocks", "positions", "tokens"),
    check=_check,
)


def variants_of(result: ProbeResult) -> dict[str, ProbeResult]:
    """Give the results of `ProbeResult.variants`."""
    if not result.others:
        return {}
    shared = dict(result.info)
    first = replace(result, others={})
    whole = {name: replace(one, info={**shared, **_own(result, one)}) for name, one in result.others.items()}
    all_of_it = [_variant(one) for one in (first, *whole.values())]
    several = [name for i, name in enumerate(SEVERAL) if len({one[i] for one in all_of_it}) > 1]
    names = [", ".join(f"{name}={getattr(one, name)}" for name in several) for one in all_of_it]
    return dict(zip(names, (first, *whole.values()), strict=True))


def by_anchors_table(result: ProbeResult, unit: str) -> pd.DataFrame:
    """Build the table of `ProbeResult.by_anchors`.

    Raises:
        InputError: the result has one number of anchors and one calibration, or the unit is unknown.
    """
    if not result.others:
        raise InputError(
            "by_anchors: the result has one number of anchors and one calibration; measure again with several, as in "
            "--n-anchors 100,50,200"
        )
    parts = [one.to_pandas(unit).assign(**_variant(one)._asdict()) for one in result.variants.values()]
    table = pd.concat(parts, ignore_index=True)
    table["calibration"] = table.calibration.astype(str)  # names and temperatures
    first = ["layer", "name", *SEVERAL]
    return table[[*first, *(column for column in table if column not in first)]]


def add_other(result: ProbeResult, other: ProbeResult) -> None:
    """Add the result of the same measurement with other anchors; what no anchor decides is this one's."""
    name = name_of(_variant(other), _variant(result))
    tensors = {**other.tensors, **{key: result.tensors[key].clone() for key in OF_DIRECTIONS if key in result.tensors}}
    result.others[name] = replace(other, tensors=tensors)


def _variant(result: ProbeResult) -> Variant:
    return Variant(**{name: result.info["settings"][name] for name in SEVERAL})


def _own(result: ProbeResult, other: ProbeResult) -> dict[str, Any]:
    """Give the information that is the other's own: its settings, in the configuration too, and its anchors."""
    own = {key: other.info[key] for key in ANCHOR_FILES.own if key in other.info}
    if "config" in result.info:
        own["config"] = {**result.info["config"], **_variant(other)._asdict()}
    return own
