"""Versions of a probe's state, as `SoftEntropyProbe.state_dict` makes it and snapshots hold it.

5  `anchors` of its settings names the draw, and it has the choices that were made for the user.
4  Its anchors are of the published draw, which its settings call iid (antithetic in pairs).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from softh_probe.errors import InputError
from softh_probe.estimators.recipes import with_kind_of_today

STATE_VERSION = 5
#: The version whose settings need another name for their anchors, and nothing else.
VERSION_WITHOUT_RECIPE = 4


def state_of_today(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Convert a state of an earlier version.

    Raises:
        InputError: this version does not read it.
    """
    version = state.get("version")
    if version == VERSION_WITHOUT_RECIPE:
        return {**state, "version": STATE_VERSION, "settings": with_kind_of_today(state["settings"])}
    if version != STATE_VERSION:
        raise InputError(
            f"state: expected version {STATE_VERSION} or {VERSION_WITHOUT_RECIPE}, got {version!r}; other states are "
            "not converted: continue with the version of softh_probe that made it, or measure again"
        )
    return state
