"""The files of bins of positions, beside those of a result: by_position.csv, .parquet and .safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from softh_probe.errors import short_repr
from softh_probe.part_files import PartFiles
from softh_probe.position_bins import ALL_BINS, POSITION_SET, first_place


def _check(bins: Mapping[str, Mapping[str, Any]]) -> None:
    first = [first_place(name) for name in bins if name != ALL_BINS]
    if not first or bins.get(ALL_BINS, {}).get("label_sets") != [POSITION_SET]:
        raise ValueError(f"expected bins and {ALL_BINS}, got {short_repr([*bins])}")


BIN_FILES = PartFiles(
    name="by_position",
    key="bins",
    own={"positions": int, "labelled_positions": dict, "label_sampling": dict, "document_labels": None},
    shared=("settings", "anchors", "n_blocks"),
    check=_check,
)
