"""Padding, as a mask of the user's or an argument of the model says it.

Shape suffixes: B sequences, T positions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from softh_probe.errors import ProbeError

_REMEDY = "say which positions are real with probe.masked(mask)"

#: Masks of attention, of heads, or of an encoder's tokens, and marks of replaced or of special positions.
_NOT_PADDING = re.compile(
    r"attn_mask|src_mask|tgt_mask|memory_|causal|head_mask|encoder_attention|decoder_|global_|bool_masked|time_indices|"
    r"label|target|loss|prompt|special_tokens"
)
_LENGTHS = re.compile(r"(^|_)(lengths?|lens?)$")


class Padding(NamedTuple):
    """What an argument says of the positions of a forward pass.

    Attributes:
        argument: its name.
        real: bool [B, T], False at padding; None where it may say so, but how is unknown.
        is_certain: whether the name has one meaning.
    """

    argument: str
    real: np.ndarray | None
    is_certain: bool


def fit_mask(
    mask: Tensor, shape: tuple[int, ...], *, n_past: int = 0, n_virtual: int = 0, block: str = "masked"
) -> np.ndarray:
    """Fit a mask of the user's to the tokens that the model is fed; give a bool array [B, T].

    Args:
        mask: [B, T], or of more columns, of which the last ones count; with a cache, [B, T] or past and new tokens.
        shape: (B, T) of the forward pass.
        n_past: tokens in the cache.
        n_virtual: positions of trained prompts before the first token.
        block: the probe's method that took the mask.

    Raises:
        ProbeError: the mask is of another shape.
    """
    n_sequences, n_tokens = shape
    widths = {n_tokens, n_past + n_tokens, n_past + n_tokens - n_virtual}
    if mask.ndim == 2 and mask.shape[0] == n_sequences:
        width = mask.shape[1]
        if width >= n_tokens and (width in widths or not n_past):
            return _is_nonzero(mask[:, width - n_tokens :])
        if width == n_tokens - n_virtual:
            return np.pad(_is_nonzero(mask), ((0, 0), (n_virtual, 0)))
    past = f" or, with those in the cache, {[n_sequences, n_past + n_tokens]}" if n_past else ""
    raise ProbeError(
        f"mask: expected [B, T] = {list(shape)}{past} as the model is fed, got {list(mask.shape)}; give probe.{block} "
        "a mask for each forward pass"
    )


def fit_position_mask(mask: Tensor, shape: tuple[int, ...], block: str = "masked") -> np.ndarray:
    """Fit a mask of the user's to hidden states of a model that is fed no tokens; give a bool array [B, T].

    Args:
        mask: [B, T]; for pooled hidden states [B, D] also [B], and of [B, T] a row counts if any of its positions is
            real.
        shape: (B, T), or (B,) of pooled hidden states.
        block: the probe's method that took the mask.

    Raises:
        ProbeError: the mask is of another shape.
    """
    if tuple(mask.shape) == shape or (len(shape) == 1 and mask.ndim == 2 and mask.shape[0] == shape[0]):
        return _by_row(_is_nonzero(mask), shape)
    expected = f"[B, T] = {list(shape)}" if len(shape) > 1 else f"[B] = {list(shape)} or [B, T]"
    raise ProbeError(
        f"mask: expected {expected} as the hidden states are, got {list(mask.shape)}; give probe.{block} a value "
        "for each of their positions (a class token is one, too)"
    )


def flat(given: Mapping[str, Any]) -> dict[str, Any]:
    """Give arguments with the entries of those that are mappings themselves, such as a batch."""
    inner = {name: item for value in given.values() if isinstance(value, Mapping) for name, item in value.items()}
    return {**{name: item for name, item in inner.items() if isinstance(name, str)}, **given}


def widest(shape: tuple[int, ...], *given: Mapping[str, Any]) -> int:
    """Give the number of positions of hidden states [B, T, D], or of masks that cover more.

    Args:
        shape: (B, T).
        given: arguments, of which some may be masks.
    """
    masks = [value for values in given for name, value in values.items() if _is_read(name)]
    widths = [mask.shape[1] for mask in masks if isinstance(mask, Tensor) and mask.ndim == 2]
    return max(shape[1], *widths, 0)


def find_padding(given: Mapping[str, Any], shape: tuple[int, ...], *, only_known: bool = False) -> Padding | None:
    """Find the argument of a model or module that says which of its positions are real.

    Args:
        given: its arguments.
        shape: (B, T) of its positions, or (B,) of pooled hidden states.
        only_known: leave out arguments that merely look like masks.

    Returns:
        None where no argument says anything, or none of the positions is padding.

    Raises:
        ProbeError: an argument tells of padding, but not of these positions.
    """
    for name, value in given.items():
        real = _reading(name, value, given)
        if real is None:
            continue
        if real.ndim == 1:  # lengths
            padding = Padding(name, _within(name, real, shape), is_certain=False)
        else:
            padding = Padding(name, _fitted(name, real, shape), is_certain=True)
        if padding.real is not None and not padding.real.all():
            return padding
    unread = (
        name
        for name, value in given.items()
        if "mask" in name
        and not (_is_read(name) or _NOT_PADDING.search(name))
        and isinstance(value, Tensor)
        and (name.startswith("pixel_") or (not only_known and tuple(value.shape) == shape))
        and len(np.unique(_is_nonzero(value))) == 2
    )
    return next((Padding(name, None, is_certain=False) for name in unread), None)


def _reading(name: str, value: object, given: Mapping[str, Any]) -> np.ndarray | None:
    """Read a mask [B, T] as bools, True at real positions, or lengths [B]; None where the argument is neither."""
    if _LENGTHS.search(name) and not _NOT_PADDING.search(name):
        lengths = np.asarray(value.cpu() if isinstance(value, Tensor) else value if isinstance(value, list) else None)
        return lengths if lengths.ndim == 1 and lengths.dtype.kind in "iu" else None
    if not isinstance(value, Tensor) or value.ndim != 2 or not _is_read(name):
        return None
    if name == "attention_mask":
        return _is_nonzero(value)
    if _is_of_keys(name, given):
        return None
    if value.is_floating_point():  # added to the attention's logits
        return np.asarray((value.float() > -1.0).cpu().numpy())
    return ~_is_nonzero(value)


def _is_read(name: str) -> bool:
    return name == "attention_mask" or (name.endswith("key_padding_mask") and not name.startswith("memory"))


def _is_of_keys(name: str, given: Mapping[str, Any]) -> bool:
    """Whether a mask is that of the keys of an attention whose positions, those of the queries, are others."""
    if name == "src_key_padding_mask":
        return "tgt" in given
    return name == "key_padding_mask" and "query" in given and given["query"] is not given.get("key")


def _within(name: str, lengths_B: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """Mark the first positions of each sequence [B, T]; None where lengths are of others, or say nothing."""
    if len(lengths_B) != shape[0]:
        return None
    if len(shape) < 2:
        return np.asarray(lengths_B > 0)[:, None]
    if lengths_B.max() > shape[1]:
        if (lengths_B == lengths_B[0]).all():
            return None  # of something longer, of which none is padding
        raise ProbeError(
            f"{name}: expected lengths of at most {shape[1]}, as many as there are positions, got "
            f"{lengths_B.max()}; {_REMEDY}"
        )
    return np.asarray(np.arange(shape[1]) < lengths_B[:, None])


def _fitted(name: str, real: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    if real.all():
        return None
    if real.shape == shape or (len(shape) == 1 and len(real) == shape[0]):
        return _by_row(real, shape)
    raise ProbeError(
        f"{name}: expected [B, T] = {list(shape)} as the hidden states are, got {list(real.shape)}; {_REMEDY}"
    )


def _by_row(real: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Give [B, T]; of pooled hidden states, a row counts if any of its positions does."""
    return real if len(shape) > 1 else np.asarray(real.reshape(len(real), -1).any(axis=1)).reshape(-1, 1)


def _is_nonzero(mask: Tensor) -> np.ndarray:
    return np.asarray((mask != 0).cpu().numpy())
