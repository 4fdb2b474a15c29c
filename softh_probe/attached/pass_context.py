"""Facts about forward passes that a model's arguments do not show: masks, labels, hints, which sequences count."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softh_probe.attached.inputs import InputHints, TokenBatch
from softh_probe.attached.kept_labels import KeptLabels
from softh_probe.attached.own_values import OwnLabels
from softh_probe.errors import ProbeError


class PassContext:
    """State that users and adapters set for the forward passes inside a block.

    A block holds in the thread that enters it. Blocks of the thread that follows the model, which is the one that
    entered the probe's own block, also hold in threads that have entered no such block themselves.

    Args:
        kept: the user's own labels so far.
        pad_id: as below.

    Attributes:
        n_virtual: trained prompts that the model puts before its tokens.
        pad_id: the pad token, as far as the model's config says; to warn of padding that has no mask.
    """

    def __init__(self, *, pad_id: int | None = None, kept: KeptLabels | None = None) -> None:
        self._kept = KeptLabels() if kept is None else kept
        self.n_virtual = 0
        self.pad_id = pad_id
        self._thread = threading.local()
        self._main: dict[str, Any] = self._own

    def follow(self) -> None:
        """Let the blocks of this thread also hold in threads without any."""
        self._main = self._own

    @property
    def hints(self) -> InputHints | None:
        """An adapter's hints for the next forward pass of this thread; used once."""
        return self._own.get("hints")

    @hints.setter
    def hints(self, hints: InputHints | None) -> None:
        self._own["hints"] = hints

    @property
    def tentative(self) -> bool:
        """Whether this thread feeds drafts, which count only once they are accepted."""
        return bool(self._own.get("tentative"))

    @tentative.setter
    def tentative(self, tentative: bool) -> None:
        self._own["tentative"] = tentative

    @property
    def is_paused(self) -> bool:
        """Whether forward passes do not count at the moment."""
        return bool(self._get("is_paused"))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the forward passes inside the block."""
        with self._setting("is_paused", True):
            yield

    @contextmanager
    def masked(self, mask: Tensor) -> Iterator[None]:
        """Set the mask [B, T] of the forward passes inside the block."""
        with self._setting("mask", mask):
            yield

    @contextmanager
    def counted(self, mask: Tensor) -> Iterator[None]:
        """Set the positions [B, T] that count, of the forward passes inside the block."""
        with self._setting("counted", mask):
            yield

    @contextmanager
    def fallback_mask(self, mask: Tensor | None, decoder_mask: Tensor | None = None) -> Iterator[None]:
        """Set the masks [B, T] of forward passes inside the block for which nothing else gives one.

        Args:
            mask: of a model that reads tokens alone.
            decoder_mask: of a decoder that also reads an encoder's output.
        """
        with self._setting("fallback_masks", (mask, decoder_mask)):
            yield

    @contextmanager
    def completions(self, mask: Tensor | None, decoder_mask: Tensor | None = None) -> Iterator[None]:
        """Set which tokens [B, T] of the forward passes are a completion's; `fallback_mask` tells the two apart."""
        with self._setting("completions", (mask, decoder_mask)):
            yield

    @contextmanager
    def only_sequences(self, counts_B: np.ndarray | None) -> Iterator[None]:
        """Restrict the count to some sequences [B] of the forward passes inside the block; beams and samples follow."""
        with self._setting("counts_B", counts_B):
            yield

    @contextmanager
    def labelled(self, labels: Mapping[str, OwnLabels]) -> Iterator[None]:
        """Set the user's own labels [B] or [B, T] of the forward passes inside the block, by set.

        Raises:
            InputError: a set has labels of the other kind already.
        """
        for name, of_set in labels.items():
            self._kept.require_kind(name, of_set)
        with self._setting("labels", dict(labels)):
            yield

    @contextmanager
    def generating(self) -> Iterator[GeneratedRows]:
        """Let own labels [B] follow the rows that `generate` makes of each sequence, as far as they become known."""
        rows = GeneratedRows()
        with self._setting("generated", rows):
            yield rows

    @property
    def is_generating(self) -> bool:
        """Whether this thread is inside `generate`."""
        return "generated" in self._own

    @property
    def mask(self) -> Tensor | None:
        """The user's mask, [B, T] or [B]."""
        mask: Tensor | None = self._get("mask")
        return mask

    @property
    def counted_of_positions(self) -> Tensor | None:
        """The positions that count as the user gave them, [B, T] or [B]."""
        mask: Tensor | None = self._get("counted")
        return mask

    def counted_mask(self, hints: InputHints | None, n_past: int) -> Tensor | None:
        """Give the positions of a forward pass that count as the user says, with its past or without."""
        mask = self.counted_of_positions
        return None if mask is None else self._grown(mask, None if hints is None else hints.ids_BL, n_past)

    @property
    def fallback(self) -> Tensor | None:
        """The mask [B, T] that holds where nothing else gives one."""
        mask: Tensor | None = self._get("fallback_masks", (None, None))[0]
        return mask

    @property
    def has_labels(self) -> bool:
        """Whether there are labels of the user's own."""
        return bool(self._get("labels"))

    @property
    def position_label_sets(self) -> list[str]:
        """Names of the user's own label sets that are given [B, T], one label for each position."""
        return [name for name, values in self._get("labels", {}).items() if values.codes.ndim > 1]

    def take_hints(self, inputs: Mapping[str, Any], n_past: int = 0) -> InputHints | None:
        """Take the hints for a forward pass, with the user's mask, or else the fallback mask.

        Args:
            inputs: the backbone's arguments.
            n_past: tokens in the cache.
        """
        hints, self.hints = self.hints, None
        is_decoder = inputs.get("encoder_hidden_states") is not None
        completion = self._get("completions", (None, None))[is_decoder]
        mask = self.mask
        if mask is not None and mask.ndim > 1:
            hints = hints or InputHints()
            hints = dataclasses.replace(hints, mask_BL=self._grown(mask, hints.ids_BL, n_past), is_own_mask=True)
        elif hints is None:
            fallback = self._get("fallback_masks", (None, None))[is_decoder]
            hints = None if fallback is None else InputHints(mask_BL=fallback)
        return hints if hints is None else dataclasses.replace(hints, completion_BL=completion)

    def _grown(self, mask: Tensor, ids_BL: Tensor | None, n_past: int) -> Tensor:
        """Extend a mask of the prompts of `generate` to the rows it makes of each, and to the tokens that follow.

        Of a prompt that is fed in pieces, it is cut after the piece at hand.
        """
        if not self.is_generating or ids_BL is None or mask.ndim < 2:
            return mask
        rows = self._own["generated"]
        if rows.n_prompt is not None and ids_BL.shape[1] < rows.n_prompt:
            mask = mask[:, : n_past + ids_BL.shape[1]]
        if len(mask) != len(ids_BL) and len(mask) == rows.n_sequences:
            mask = mask.repeat_interleave(rows.n_each, dim=0)
        n_new = max(0, ids_BL.shape[1] - mask.shape[1])
        return torch.cat([mask, mask.new_ones(len(mask), n_new)], dim=1)

    def exclude_sequences(self, tokens: TokenBatch) -> None:
        """Mark the tokens of sequences that do not count as padding.

        Raises:
            ProbeError: the batch is no multiple of the sequences that `only_sequences` knows.
        """
        counts_B = self._get("counts_B")
        if counts_B is None:
            return
        n_known, n_fed = len(counts_B), len(tokens.real_BT)
        times, rest = divmod(n_fed, max(1, n_known))
        if rest:
            raise ProbeError(f"input_ids: expected {n_known} sequences, or so many of each, got {n_fed}")
        tokens.real_BT[~np.repeat(counts_B, times)] = False

    def own_labels(self, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        """Give the numbers of the user's own labels [B, T] of a forward pass.

        Raises:
            ProbeError: they are neither [B] nor [B, T].
        """
        labels = {}
        for name, of_set in self._get("labels", {}).items():
            values = self._kept.numbers(name, of_set)
            if values.shape not in (shape, shape[:1]) and self.is_generating:
                values = self._own["generated"].follow(values)
            if values.shape not in (shape, shape[:1]):
                raise ProbeError(
                    f"{name}: expected labels {list(shape)}, got {list(values.shape)}; give one for each row that the "
                    "model is fed, or for each sequence that model.generate is given"
                )
            labels[name] = np.broadcast_to(values.reshape(len(values), -1), shape)
        return labels

    # --- facts of a thread ------------------------------------------------------------------------------------

    @property
    def _own(self) -> dict[str, Any]:
        return vars(self._thread)

    def _get(self, name: str, default: Any = None) -> Any:
        """Find what this thread has set, else what the main one has."""
        own = self._own
        return own[name] if name in own else self._main.get(name, default)

    @contextmanager
    def _setting(self, name: str, value: Any) -> Iterator[None]:
        own = self._own
        before = {name: own[name]} if name in own else {}
        own[name] = value
        try:
            yield
        finally:
            own.pop(name, None)
            own.update(before)


class GeneratedRows:
    """The rows that `generate` makes of each sequence that it is given: beams or samples, one after the other.

    Attributes:
        n_sequences: sequences that were given; None before they are known.
        n_each: rows of each of them.
        n_prompt: tokens of the prompts, padding included; None before they are known.
    """

    def __init__(self) -> None:
        self.n_sequences: int | None = None
        self.n_each = 1
        self.n_prompt: int | None = None

    def follow(self, values_B: np.ndarray) -> np.ndarray:
        """Repeat values [B] of the sequences for each of their rows; other values are given back as they are."""
        return np.repeat(values_B, self.n_each) if values_B.shape == (self.n_sequences,) else values_B
