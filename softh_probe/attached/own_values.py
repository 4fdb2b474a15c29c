"""Checks of masks and labels that users give for forward passes."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from torch import Tensor

from softh_probe.attached.sequences import RESERVED_COLUMNS
from softh_probe.errors import InputError


def checked_labels(labels: Mapping[str, object], ngram_sets: Collection[str]) -> dict[str, np.ndarray]:
    """Check labels of one's own and give them as integers on the host.

    Raises:
        InputError: they are no integer tensors [B] or [B, T], or their name is taken.
    """
    checked = {}
    for name, values in labels.items():
        if not isinstance(values, Tensor) or values.is_floating_point() or values.ndim not in (1, 2):
            raise InputError(f"{name}: expected an integer tensor [B] or [B, T], got {_described(values)}")
        if name in ngram_sets:
            raise InputError(f"{name}: this is one of the probe's n-gram label sets; choose another name")
        if name in RESERVED_COLUMNS:
            raise InputError(f"{name}: choose another name, this one is taken")
        checked[name] = values.cpu().long().numpy()
    return checked


def checked_mask(mask: object, block: str = "masked") -> Tensor:
    """Check a mask.

    Args:
        mask: the mask.
        block: the probe's method that takes it.

    Raises:
        InputError: it is no tensor [B, T] or [B].
    """
    if not isinstance(mask, Tensor) or mask.ndim not in (1, 2):
        raise InputError(f"mask: expected a tensor [B, T], or [B] for pooled hidden states, got {_described(mask)}")
    no, yes = ("at padding", "at real positions") if block == "masked" else ("where none counts", "where one does")
    if mask.is_complex():
        raise InputError(f"mask: expected booleans or numbers, 0 {no}, got {_described(mask)}")
    if mask.dtype.is_signed and bool((mask < 0).any()):
        raise InputError(
            f"mask: expected 0 {no} and 1 {yes}, got negative values; of a mask that is added to logits, give mask >= 0"
        )
    return mask


def _described(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
