"""Facts about forward passes that a model's arguments do not show: masks, labels, hints, which sequences count."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor

from softh_probe.attached.inputs import InputHints, TokenBatch
from softh_probe.errors import ProbeError


class PassContext:
    """State that users and adapters set for the forward passes inside a block.

    Attributes:
        hints: an adapter's hints for the next forward pass; used once.
        tentative: whether drafts are fed, which count only once they are accepted.
        n_virtual: trained prompts that the model puts before its tokens.
        pad_id: the pad token, as far as the model's config says; to warn of padding that has no mask.
    """

    def __init__(self, *, pad_id: int | None = None) -> None:
        self.hints: InputHints | None = None
        self.tentative = False
        self.n_virtual = 0
        self.pad_id = pad_id
        self._labels: dict[str, np.ndarray] = {}
        self._mask: Tensor | None = None
        self._fallback_masks: tuple[Tensor | None, Tensor | None] = None, None
        self._counts_B: np.ndarray | None = None
        self._n_pauses = 0

    @property
    def is_paused(self) -> bool:
        """Whether forward passes do not count at the moment."""
        return self._n_pauses > 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the forward passes inside the block."""
        self._n_pauses += 1
        try:
            yield
        finally:
            self._n_pauses -= 1

    @contextmanager
    def masked(self, mask: Tensor) -> Iterator[None]:
        """Set the mask [B, T] of the forward passes inside the block."""
        previous, self._mask = self._mask, mask
        try:
            yield
        finally:
            self._mask = previous

    @contextmanager
    def fallback_mask(self, mask: Tensor | None, decoder_mask: Tensor | None = None) -> Iterator[None]:
        """Set the masks [B, T] of forward passes inside the block for which nothing else gives one.

        Args:
            mask: of a model that reads tokens alone.
            decoder_mask: of a decoder that also reads an encoder's output.
        """
        previous, self._fallback_masks = self._fallback_masks, (mask, decoder_mask)
        try:
            yield
        finally:
            self._fallback_masks = previous

    @contextmanager
    def only_sequences(self, counts_B: np.ndarray | None) -> Iterator[None]:
        """Restrict the count to some sequences [B] of the forward passes inside the block; beams and samples follow."""
        previous, self._counts_B = self._counts_B, counts_B
        try:
            yield
        finally:
            self._counts_B = previous

    @contextmanager
    def labelled(self, labels: Mapping[str, np.ndarray]) -> Iterator[None]:
        """Set the user's own labels [B] or [B, T] of the forward passes inside the block, by set."""
        previous, self._labels = self._labels, dict(labels)
        try:
            yield
        finally:
            self._labels = previous

    def take_hints(self, inputs: Mapping[str, Any]) -> InputHints | None:
        """Take the hints for a forward pass, with the user's mask, or else the fallback mask."""
        hints, self.hints = self.hints, None
        if self._mask is not None:
            return dataclasses.replace(hints or InputHints(), mask_BL=self._mask)
        if hints is None:
            fallback = self._fallback_masks[inputs.get("encoder_hidden_states") is not None]
            return None if fallback is None else InputHints(mask_BL=fallback)
        return hints

    def exclude_sequences(self, tokens: TokenBatch) -> None:
        """Mark the tokens of sequences that do not count as padding.

        Raises:
            ProbeError: the batch is no multiple of the sequences that `only_sequences` knows.
        """
        if self._counts_B is None:
            return
        n_known, n_fed = len(self._counts_B), len(tokens.real_BT)
        times, rest = divmod(n_fed, max(1, n_known))
        if rest:
            raise ProbeError(f"input_ids: expected {n_known} sequences, or so many of each, got {n_fed}")
        tokens.real_BT[~np.repeat(self._counts_B, times)] = False

    def own_labels(self, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        """Give the user's own labels [B, T] of a forward pass.

        Raises:
            ProbeError: they are neither [B] nor [B, T].
        """
        labels = {}
        for name, values in self._labels.items():
            if values.shape not in (shape, shape[:1]):
                raise ProbeError(f"{name}: expected labels {list(shape)}, got {list(values.shape)}")
            labels[name] = np.broadcast_to(values.reshape(len(values), -1), shape)
        return labels
