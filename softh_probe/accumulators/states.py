"""Versions of a probe's state, as `SoftEntropyProbe.state_dict` makes it and snapshots hold it.

8  Its layers have the sum of their unit vectors.
7  It has a sample of documents, and the rows of an attached probe say which of the user's own labels are of positions.
6  Its settings have `label_rows`; the rows of an attached probe have the threshold of the sample of labels, of each
   label its number, its counts and the probability that it is followed, and the sketch of those that are not.
5  `anchors` of its settings names the draw, and it has the choices that were made for the user.
4  Its anchors are of the published draw, which its settings call iid (antithetic in pairs).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from softh_probe.accumulators.document_sample import DocumentSample
from softh_probe.accumulators.label_sampling import ALL
from softh_probe.choices import Choices
from softh_probe.errors import InputError, short_repr
from softh_probe.estimators.recipes import how_to_continue, how_to_continue_one_set, with_kind_of_today
from softh_probe.labels import COLUMN_PREFIX
from softh_probe.layer_places import RESIDUAL

STATE_VERSION = 8
#: The version from which on documents are sampled.
VERSION_WITH_DOCUMENTS = 7
#: The version whose settings need another name for their anchors.
VERSION_WITHOUT_RECIPE = 4
#: Fact about the rows of a plan: documents were not sampled from its first batch on.
WITHOUT_DOCUMENTS = "without_documents"
#: Versions that are read.
VERSIONS = (STATE_VERSION, 7, 6, 5, VERSION_WITHOUT_RECIPE)
#: Settings that states may lack, as they were before there was a choice.
_UNTIL_TODAY: Mapping[str, Any] = {"positions": "all", "skip_special_tokens": [], "sites": [RESIDUAL], "center": False}


def state_of_today(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Convert a state of an earlier version.

    Raises:
        InputError: this version does not read it.
    """
    version = state.get("version") if isinstance(state, Mapping) else short_repr(state)
    if version not in VERSIONS:
        today, *earlier, last = map(str, VERSIONS)
        raise InputError(
            f"state: expected version {today}, {', '.join(earlier)} or {last}, got {version!r}; other states are "
            "not converted: continue with the version of softh_probe that made it, or measure again"
        )
    if version == STATE_VERSION:
        return state
    if version == VERSION_WITH_DOCUMENTS:
        return {**state, "version": STATE_VERSION}  # a layer without its sum of unit vectors has no anisotropy
    choices = _of_documents(state)
    if version == VERSION_WITH_DOCUMENTS - 1:
        return {**state, "version": STATE_VERSION, "rows": _with_documents(state["rows"]), "choices": choices}
    settings = with_kind_of_today(state["settings"]) if version == VERSION_WITHOUT_RECIPE else state["settings"]
    return {
        **state,
        "version": STATE_VERSION,
        "settings": {"label_rows": "all", **settings},
        "rows": _with_documents(_rows_of_today(state["rows"], state["layers"])),
        "choices": choices,
    }


def require_settings(ours: Mapping[str, Any], theirs: Mapping[str, Any], where: str) -> None:
    """Refuse to continue from, or to add, a measurement with other settings.

    Args:
        ours, theirs: settings of two probes.
        where: what is done with the other.

    Raises:
        InputError: they differ; "all" label rows can be thinned.
    """
    for name, value in ours.items():
        other = theirs.get(name, _UNTIL_TODAY.get(name))
        if other != value and (name, other) != ("label_rows", "all"):
            remedy = how_to_continue(other, "anchors=") if name == "anchors" else ""
            remedy += how_to_continue_one_set(other, value, "anchor_sets=") if name == "anchor_sets" else ""
            remedy += f"; use label_rows={other!r} here, or add 'all'" if name == "label_rows" else ""
            raise InputError(f"{where}: expected {name}={value!r}, got {other!r}{remedy}")


def _of_documents(state: Mapping[str, Any]) -> list[Any]:
    """Add to a state's choices that documents were not sampled, where labels may be of whole documents."""
    made = Choices.from_json(state.get("choices", ()))
    if state["rows"].get("own") or any(str(name).startswith(COLUMN_PREFIX) for name in state["settings"]["labels"]):
        reason = "the state is of an earlier version, which took positions as drawn one by one; measure again"
        made.add("chance of labels of documents", "that of positions", reason)
    return made.to_json()


def _with_documents(rows: Mapping[str, Any]) -> Mapping[str, Any]:
    """Say that documents were not sampled: the null of all labels stays that of positions."""
    if "ngrams" not in rows:  # a plan's
        return {**rows, WITHOUT_DOCUMENTS: True}
    return {**rows, "documents": DocumentSample().state_dict(), "position_sets": sorted(rows["own"])}


def _rows_of_today(rows: Mapping[str, Any], layers: Mapping[str, Mapping[str, Tensor]]) -> Mapping[str, Any]:
    """Add to the rows of an attached probe what earlier versions did not keep: every label was followed."""
    if "ngrams" not in rows:  # a plan's
        return rows
    ends = torch.tensor([0, *map(len, rows["rows"])]).cumsum(0).tolist()
    return {
        **rows,
        "numbers": [torch.arange(begin, end) for begin, end in pairwise(ends)],
        "counts": _counts(rows, layers),
        "missing": [torch.zeros(len(part), dtype=torch.int64) for part in rows["rows"]],
        "crossing": [torch.zeros(len(part), dtype=torch.int64) for part in rows["rows"]],
        "probability": [torch.ones(len(part), dtype=torch.float64) for part in rows["rows"]],
        "threshold": ALL,
        "sketch": torch.zeros(0, 0, dtype=torch.int32),
    }


def _counts(rows: Mapping[str, Any], layers: Mapping[str, Mapping[str, Tensor]]) -> list[Tensor]:
    """Recover the count of each label: the last column of a layer's live rows, or 1 where a row may be shared."""
    live = next((layer["open"] for layer in layers.values()), torch.zeros(0, 1))
    n_rows = max((int(part.max()) + 1 for part in rows["rows"] if len(part)), default=0)
    positions = torch.zeros(max(n_rows, len(live)), dtype=torch.long)  # the layer may lack the last rows
    positions[: len(live)] = live[:, -1].cpu().long()
    counts = [positions[part].clamp_min(1) for part in rows["rows"]]
    return [torch.where(shared, 1, part) for part, shared in zip(counts, rows["shared"], strict=True)]
