"""Decode steps that wait to be counted together."""

from __future__ import annotations

import numpy as np

from softh_probe.attached.inputs import TokenBatch
from softh_probe.attached.sequences import CachedSequences

Labels = dict[str, np.ndarray]

#: Positions at which the queue is flushed. A layer's work on one position is mostly overhead.
MAX_QUEUED = 256


class StepQueue:
    """Queue of the decode steps of one cache: one token for each of its sequences.

    Attributes:
        sequences: the sequences of the queued steps; None while the queue is empty.
    """

    def __init__(self) -> None:
        self.sequences: CachedSequences | None = None
        self._steps: list[tuple[TokenBatch, Labels]] = []

    @property
    def is_full(self) -> bool:
        """Whether enough positions are queued to count them."""
        return self.sequences is not None and len(self._steps) * self.sequences.shape[0] >= MAX_QUEUED

    def add(self, sequences: CachedSequences, tokens: TokenBatch, labels: Labels) -> None:
        """Queue a step of the sequences of this queue."""
        self.sequences = sequences
        sequences.n_queued += 1
        self._steps.append((tokens, labels))

    def undo(self) -> None:
        """Remove the last step: its forward pass failed."""
        assert self.sequences is not None
        self.sequences.n_queued -= 1
        self._steps.pop()

    def take(self) -> tuple[CachedSequences, TokenBatch, Labels] | None:
        """Take all steps as one token batch [B, n_steps] with its labels [B, n_steps]; None where there are none."""
        sequences, steps = self.sequences, self._steps
        self.sequences, self._steps = None, []
        if not steps or sequences is None:
            return None
        sequences.n_queued = 0
        none = np.full((sequences.shape[0], 1), -1)
        ids = [none if tokens.ids_BT is None else tokens.ids_BT for tokens, _ in steps]
        real_BT = np.concatenate([tokens.real_BT for tokens, _ in steps], axis=1)
        names = dict.fromkeys(name for _, labels in steps for name in labels)
        own = {name: np.concatenate([labels.get(name, none) for _, labels in steps], axis=1) for name in names}
        counted_BT = None
        if any(tokens.counted_BT is not None for tokens, _ in steps):
            everywhere = np.ones((sequences.shape[0], 1), dtype=bool)
            counted = [everywhere if tokens.counted_BT is None else tokens.counted_BT for tokens, _ in steps]
            counted_BT = np.concatenate(counted, axis=1)
        return sequences, TokenBatch(real_BT=real_BT, ids_BT=np.concatenate(ids, axis=1), counted_BT=counted_BT), own
