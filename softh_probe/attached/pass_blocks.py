"""Blocks in which users say of the next forward passes what a model's arguments do not show."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from softh_probe.attached.own_values import checked_labels, checked_mask
from softh_probe.attached.pass_context import PassContext


class PassBlocks:
    """The blocks of a probe, each of which holds for the forward passes inside it."""

    _settings: dict[str, Any]

    @property
    def context(self) -> PassContext:
        """Facts about the next forward passes, for code that runs the model."""
        raise NotImplementedError

    @contextmanager
    def labelled(self, **labels: object) -> Iterator[None]:
        """Set labels of one's own for the forward passes inside the block.

        >>> import torch
        >>> from softh_probe import SoftEntropyProbe
        >>> net = torch.nn.Linear(4, 8).eval()
        >>> probe = SoftEntropyProbe(net, modules={"out": net}, anchor_sets=1)
        >>> with probe, probe.labelled(language=["de", "en", "de", None]):
        ...     _ = net(torch.randn(4, 4))
        >>> probe.result().conditional_entropy("language")[["label", "count"]].values.tolist()
        [['de', 2], ['en', 1]]

        Args:
            labels: one label set each: [B], the same for a whole sequence, or [B, T], one for each token that the model
                is fed. Strings in a list (or nested lists), an array or a column of a table, where None is no label;
                or integers, in a tensor, too, where −1 is none. No label leaves a position out of that set, but not
                of the count: that is what `counted` is for. Every label that is counted keeps a row of sums to the
                end in each layer, and its name, however many there are: `label_rows` bounds those of n-grams alone.

        Raises:
            InputError: labels are neither, strings and integers are mixed in a set, or a set's name is taken.
        """
        with self.context.labelled(checked_labels(labels, self._settings["labels"])):
            yield

    @contextmanager
    def masked(self, mask: Tensor) -> Iterator[None]:
        """Mark the real positions of the forward passes inside the block, where the model gets no mask.

        Other positions are padding: n-gram labels do not reach them, as they do those that `counted` leaves out. For
        the tokens of the assistant alone, or of answers, take `counted`: what comes before them is text. A mask of
        another shape is an error. Of pooled hidden states [B, D], a mask [B, T] counts the rows that have any real
        token.

        Args:
            mask: [B, T], 0 at padding; of more columns than the tokens that the model is fed, the last ones count.
                With modules that are fed no token ids, [B, T] of their hidden states, or [B] where these are pooled.
        """
        with self.context.masked(checked_mask(mask)):
            yield

    @contextmanager
    def counted(self, mask: Tensor) -> Iterator[None]:
        """Choose the positions that count in the forward passes inside the block, among the real ones.

        Take it for the assistant's tokens alone, say: with the mask of a chat template
        (`return_assistant_tokens_mask=True`). Other positions are text, which n-gram labels see, unlike what `masked`
        says is padding. Inside `generate`, a mask of the prompts also counts all tokens that follow. A block inside
        another one takes the place of its mask.

        >>> import torch
        >>> from softh_probe import SoftEntropyProbe
        >>> net = torch.nn.Linear(4, 8).eval()
        >>> probe = SoftEntropyProbe(net, modules={"out": net})
        >>> with probe, probe.counted(torch.tensor([[0, 1, 1], [0, 0, 1]])):
        ...     _ = net(torch.randn(2, 3, 4))
        >>> probe.positions
        3

        Args:
            mask: [B, T], 0 where a position does not count; of the shapes that `masked` takes.
        """
        with self.context.counted(checked_mask(mask, "counted")):
            yield

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the forward passes inside the block."""
        with self.context.paused():
            yield
