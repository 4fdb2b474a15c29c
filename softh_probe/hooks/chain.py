"""Evidence, as a model runs, that the modules found are its transformer blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from softh_probe.errors import ProbeError
from softh_probe.hooks.hook_points import hidden_state


class ResidualChain:
    """Whether blocks hand their hidden states to one another, call by call: what makes a list of modules a stack.

    Tensors are compared by where they lie, never by value: a device is not waited for. Something in between may
    change some of them (images that are mixed in, a steering hook), so the links of a stack that is right hold for
    the most part, and those of another list (attentions of a model that has no blocks) for the least.
    """

    def __init__(self) -> None:
        self.links = self.broken = 0
        self.last: Tensor | None = None

    def add(self, taken: Tensor, given: Tensor) -> None:
        """One call: the hidden state it took, and the one it gave."""
        if self.last is not None and taken.device == self.last.device:
            self.links += 1
            self.broken += taken.shape != self.last.shape or not _same_place(taken, self.last)
        self.last = given

    @property
    def holds(self) -> bool:
        return 2 * self.broken <= self.links


def is_time_first(last: object, output: object) -> bool:
    """Whether a last layer with as many sequences as tokens gave [T, B, D], told by the model's output [B, T, D].

    Shapes cannot tell, so values are compared, and the device is waited for.
    """
    try:
        inner, outer = hidden_state(last, "last layer"), hidden_state(output, "output")
    except ProbeError:
        return False  # an output without hidden states tells nothing
    if inner.shape != outer.shape or inner.device != outer.device:
        return False  # the model went on from there
    if _same_place(inner, outer) and inner.stride() == outer.stride():
        return False
    return torch.equal(inner.transpose(0, 1), outer) and not torch.equal(inner, outer)


def _same_place(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.data_ptr() == other.data_ptr() != 0)
