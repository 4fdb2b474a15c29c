"""Prompt tuning (PEFT): trained positions in front of the tokens, which are not text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from softh_probe.attached.tracker import InputTracker


@contextmanager
def install(model: nn.Module, tracker: InputTracker) -> Iterator[None]:
    """Set the number of positions that a PEFT model puts before its tokens, or into its cache."""
    config = getattr(model, "active_peft_config", None)
    if getattr(config, "is_prompt_learning", False):
        tracker.context.n_virtual = int(getattr(config, "num_virtual_tokens", 0) or 0)
    try:
        yield
    finally:
        tracker.context.n_virtual = 0
