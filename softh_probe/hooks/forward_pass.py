"""The state of one forward pass: the labels of its positions, the layers measured so far, and what one still awaits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from softh_probe.accumulators.batch import BatchAccumulator
from softh_probe.accumulators.dispatch import DecodeStep, Dispatch
from softh_probe.hooks.chain import ResidualChain, is_same_state
from softh_probe.hooks.hook_points import hidden_state


class ForwardPass:
    """State of one forward pass.

    Args:
        labels: the labels of its positions; None until its first hidden states are known.
        make_accumulator: makes the accumulator of its batch.

    Attributes:
        layers: the layers so far, in their order.
        n_block_calls: calls of blocks so far.
        block: name of the block that runs, inside its call.
        chain: evidence that these are blocks.
        last: what the last block or norm gave.
        pending: layer and output of the last block, where the state awaits the next block.
        given: arguments of the named modules that run.
    """

    def __init__(
        self,
        labels: Dispatch | DecodeStep | None,
        make_accumulator: Callable[[Dispatch], BatchAccumulator] = BatchAccumulator,
    ) -> None:
        self.labels = labels
        self.layers: dict[str, None] = {}
        self.n_block_calls = 0
        self.block: str | None = None
        self.chain = ResidualChain()
        self.last: object = None
        self.pending: tuple[str, object] | None = None
        self.given: dict[str, Mapping[str, Any]] = {}
        self._is_handed_on = False
        self._make_accumulator = make_accumulator
        self._accumulator: BatchAccumulator | None = None

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Leading dimensions that hidden states may have; without a second one, a position is a row."""
        if self.labels is None:
            return [(-1, -1)]
        n_sequences, n_tokens = self.labels.shape
        return [(n_sequences, n_tokens)] + [(n_sequences,)] * (n_tokens == 1)

    @property
    def accumulator(self) -> BatchAccumulator:
        """The accumulator of the batch, made when its first layer is added."""
        if self._accumulator is None:
            assert isinstance(self.labels, Dispatch)
            self._accumulator = self._make_accumulator(self.labels)
        return self._accumulator

    def has_pooled(self, output: object) -> bool:
        """Whether this is one state for each sequence, of those that have several positions."""
        if self.labels is None or self.labels.shape[1] == 1 or not isinstance(output, Tensor) or output.is_nested:
            return False
        return tuple(output.shape[:-1]) in ((self.labels.shape[0],), (self.labels.shape[0], 1))

    def arrive(self, state: Tensor) -> None:
        """Note the state that the model hands to the next block or norm, before hooks of others change it."""
        if self.pending is not None:
            layer, given = self.pending
            self._is_handed_on = is_same_state(state, hidden_state(given, layer))

    def settle(self, taken: object = None) -> tuple[str, object] | None:
        """Take the pending layer with its state: what the next one takes, where the model itself hands it on unchanged.

        Args:
            taken: the input of the next block or norm, after all hooks; None at the end of the pass.
        """
        pending, self.pending = self.pending, None
        if pending is not None and taken is not None and self._is_handed_on:
            return pending[0], taken
        return pending


class ThreadsPass(threading.local):
    """Whether a thread is inside a forward pass of the model, and which, if it counts."""

    forward_pass: ForwardPass | None = None
    is_inside = False
