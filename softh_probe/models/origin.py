"""Where the result of a model that other code runs comes from: model, tokenizer, texts, versions and time."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from torch import nn

from softh_probe.models.identity import MeasuredWeights
from softh_probe.versions import versions


class Origin:
    """The origin of the results of an attached probe.

    Args:
        model: the part of the model that is measured.
        tokenizer: what may be the tokenizer of its tokens; anything else is ignored.

    Attributes:
        weights: the model's, as they were measured.
    """

    def __init__(self, model: nn.Module, tokenizer: object = None) -> None:
        self.weights = MeasuredWeights(model)
        self._model, self._tokenizer = model, describe_tokenizer(tokenizer)

    def fresh(self) -> Origin:
        """Make that of a probe of the same model which has measured nothing."""
        made = copy.copy(self)
        made.weights = MeasuredWeights(self._model)
        return made

    def describe(self, corpus: Mapping[str, Any], *, name: str | None, notes: str | None) -> dict[str, Any]:
        """Give entries of a result's `info` (JSON values); waits for the devices that hold the weights.

        Args:
            corpus: what was fed.
            name: of the result, for titles.
            notes: whatever its reader should know.
        """
        return describe_origin(corpus, model=self.weights.describe(), tokenizer=self._tokenizer, name=name, notes=notes)


def describe_origin(
    corpus: Mapping[str, Any],
    *,
    model: dict[str, Any] | None,
    tokenizer: dict[str, Any] | None,
    name: str | None,
    notes: str | None,
) -> dict[str, Any]:
    """Give entries of a result's `info` (JSON values); the model is None where states come from elsewhere."""
    return {
        "name": name,
        "notes": notes,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": model,
        "tokenizer": tokenizer,
        "corpus": dict(corpus),
        "versions": versions(),
    }


def describe_tokenizer(tokenizer: object) -> dict[str, Any] | None:
    """Describe a tokenizer, or the one of a processor (JSON values); None where it is neither."""
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    if not hasattr(tokenizer, "all_special_ids"):
        return None
    return {
        "tokenizer": getattr(tokenizer, "name_or_path", None) or None,
        "class": type(tokenizer).__name__,
        "n_tokens": len(tokenizer) if hasattr(tokenizer, "__len__") else None,
    }
