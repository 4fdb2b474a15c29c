"""The length of documents where the configuration leaves it open: the default, or what the model takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from softh_probe.choices import Choices
from softh_probe.config import DEFAULT_MAX_LENGTH, RunConfig

Config = TypeVar("Config", bound=RunConfig)


def with_max_length(config: Config, limit: int | None, *, before: Mapping[str, Any] | None = None) -> Config:
    """Set `max_length` where it is null.

    Args:
        config: the configuration of a run or a sweep.
        limit: the tokens that the model takes at most; None if it has no limit.
        before: the configuration of the unfinished run or sweep that goes on, whose length stays.
    """
    if config.max_length is not None:
        return config
    if before and isinstance(before.get("max_length"), int):
        return dataclasses.replace(config, max_length=before["max_length"])
    return dataclasses.replace(config, max_length=min(limit or DEFAULT_MAX_LENGTH, DEFAULT_MAX_LENGTH))


def record_max_length(given: RunConfig, used: RunConfig, choices: Choices, *, n_longer: int | None = None) -> None:
    """Record a length that is shorter than the default.

    Args:
        given: the configuration as the user gave it.
        used: the same with a length.
        choices: records the length; it is certain where no document is longer.
        n_longer: documents that are longer; None if it is unknown.
    """
    if given.max_length is None and used.max_length is not None and used.max_length < DEFAULT_MAX_LENGTH:
        longer = "" if n_longer is None else f", {n_longer:,} documents are longer"
        reason = f"the model takes no more than that{longer}; the default is {DEFAULT_MAX_LENGTH}"
        choices.add("max_length", str(used.max_length), reason, certain=n_longer == 0)
