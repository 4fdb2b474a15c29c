"""Forward passes that did not count: how many, and why."""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Mapping

from softh_probe.choices import Choice

TRAINING = "in training mode"
TRACED = "that torch.jit or torch.export traced"
NESTED = "that code began inside another one of the model"
OTHER_ADAPTERS = "with other adapters than those that were active when the probe's block began"
OTHER_MODEL = "of another model that shares modules with the probed one"
OTHER_PROBE = "of a thread that is inside the block of a probe of its own"
LAYERS_ALONE = "calls of a layer outside of a forward pass of the probed model"
PAUSED = ""  # somebody has asked for these, so they are not recorded

_ABOUT = "forward passes"
_REASONS = {
    TRAINING: "evaluations alone are measured",
    TRACED: "their hidden states are examples; run the model itself",
    NESTED: "the outer one counts; run the model before it, not in a hook",
    OTHER_ADAPTERS: "the model that is evaluated counts, not its reference; attach a probe while the others are active",
    OTHER_MODEL: "attach a probe to that model to measure it",
    OTHER_PROBE: "that probe measures them",
    LAYERS_ALONE: "run the model itself, or give modules={name: module} with the part as the model",
}


class LeftOut:
    """Count the forward passes that did not count, by reason; threads may share it."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._said: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def were_in_training(self) -> bool:
        """Whether there were forward passes, all of them in training mode."""
        return list(self._counts) == [TRAINING]

    def __str__(self) -> str:
        """List the counts in brackets, to end an error with; empty where there are none."""
        listed = ", ".join(choice.chosen for choice in self.choices())
        return f" ({listed})" if listed else ""

    def add(self, reason: str, n: int = 1) -> None:
        """Count a forward pass, unless it was `PAUSED`."""
        if reason:
            with self._lock:
                self._counts[reason] += n

    def update(self, counts: Mapping[str, int]) -> None:
        """Add the counts of another part of the same measurement."""
        for reason, n in counts.items():
            self.add(reason, n)

    def to_json(self) -> dict[str, int]:
        """Give the counts by reason."""
        return dict(self._counts)

    def choices(self) -> list[Choice]:
        """Describe the counts; training mode is documented, so nobody is warned of it."""
        return [
            Choice(
                about=_ABOUT,
                chosen=f"{n} {reason} did not count",
                reason=_REASONS.get(reason, "see the documentation"),
                certain=reason == TRAINING,
            )
            for reason, n in self._counts.items()
        ]

    def warn(self) -> None:
        """Warn of what was left out since the last time."""
        choices = self.choices()
        for choice, (reason, n) in zip(choices, self._counts.items(), strict=True):
            if n > self._said[reason] and not choice.certain:
                warnings.warn(str(choice), stacklevel=4)
        self._said = self._counts.copy()
