"""Evidence, as a model runs, that the modules found are its transformer blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from softh_probe.errors import ProbeError
from softh_probe.hooks.hook_points import hidden_state


class ResidualChain:
    """Count the links of a stack of blocks: the output of each block call is the input of the next.

    Tensors are compared by address, never by value, so that no device is waited for. Images that are mixed in may
    change some of them. So most links of a right stack hold, and few of another list (attentions of a model that has no
    blocks).
    """

    def __init__(self) -> None:
        self.links = self.broken = 0
        self.last: Tensor | None = None

    def take(self, taken: Tensor) -> None:
        """Add the hidden state that the model hands to a block."""
        if self.last is not None and taken.device == self.last.device:
            self.links += 1
            self.broken += not is_same_state(taken, self.last)

    def give(self, given: Tensor) -> None:
        """Add the hidden state that a block gave."""
        self.last = given

    @property
    def holds(self) -> bool:
        """Whether at least half of the links hold."""
        return 2 * self.broken <= self.links


def is_time_first(last: object, output: object) -> bool:
    """Whether a last layer with as many sequences as tokens gave [T, B, D], where the model's output is [B, T, D].

    Shapes are equal, so values are compared; this waits for the device.
    """
    try:
        inner, outer = hidden_state(last, "last layer"), hidden_state(output, "output")
    except ProbeError:
        return False  # the output holds no hidden states
    if inner.shape != outer.shape or inner.device != outer.device:
        return False  # the model computed more after this layer
    if _same_place(inner, outer) and inner.stride() == outer.stride():
        return False
    return torch.equal(inner.transpose(0, 1), outer) and not torch.equal(inner, outer)


def is_same_state(one: Tensor, other: Tensor) -> bool:
    """Whether two hidden states are one tensor, or lie at one place."""
    if one.is_nested or other.is_nested:  # they have no shape
        return one is other
    return one.shape == other.shape and one.device == other.device and _same_place(one, other)


def _same_place(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.data_ptr() == other.data_ptr() != 0)
