"""What a forward pass is fed: which positions are real tokens, and which tokens they are."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from softh_probe.errors import ProbeError


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """The tokens of one forward pass, on the host.

    Attributes:
        real_BT: bool, False at padding.
        ids_BT: int64 token ids; None where the model is fed embeddings.
        mask_known: whether anything told which positions are real.
        starts_BT: bool, True where another text begins in the middle of a row; None where none does.
    """

    real_BT: np.ndarray
    ids_BT: np.ndarray | None
    mask_known: bool = True
    starts_BT: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class InputHints:
    """What code that runs the model knows of the next forward pass, and the model is not told. None is unknown.

    Attributes:
        ids_BL: the sequences so far: their last tokens are those that the model is fed.
        mask_BL: which of them, or of the last ones, are real.
        ends_B: how many tokens of each sequence count; what comes after is fed for the sake of the others.
    """

    ids_BL: Tensor | None = None
    mask_BL: Tensor | None = None
    ends_B: np.ndarray | None = None


def arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What a module is about to be called with, by its forward's names of the arguments."""
    try:
        given = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
    except TypeError:
        return {}  # the call itself is wrong, and says so better than a probe can
    return {**given.get("kwargs", {}), **given}


def require_tokens(given: Mapping[str, Any], outer: Mapping[str, Any], n_virtual: int = 0) -> None:
    """Refuse a backbone that is not fed the tokens that the model around it takes, but what that made of them.

    Its positions (latents, a shorter sequence, tokens put before the text) are then other ones, and as many only by
    chance. Arguments are those of `read_inputs`.
    """
    fed = any(isinstance(given.get(name), Tensor) for name in ("input_ids", "inputs_embeds"))
    masks = (given.get("attention_mask"), outer.get("attention_mask"), outer.get("input_ids"))
    if not fed and any(isinstance(value, Tensor) for value in masks):
        raise ProbeError(
            "input_ids: the part of the model that holds the blocks is fed neither these nor inputs_embeds, so it is "
            "unknown which of its positions are which tokens; name the modules to probe with modules={name: module}"
        )
    ids, embeds = outer.get("input_ids"), given.get("inputs_embeds")
    if not isinstance(ids, Tensor) or not isinstance(embeds, Tensor):
        return
    if embeds.shape[:2] not in (ids.shape[:2], (ids.shape[0], ids.shape[1] + n_virtual)):
        raise ProbeError(
            f"input_ids: the model takes {list(ids.shape[:2])} tokens but feeds {list(embeds.shape[:2])} positions to "
            "its blocks (images, say), so it is unknown which of them are which tokens"
        )


def read_inputs(
    given: Mapping[str, Any],
    outer: Mapping[str, Any],
    told: InputHints | None = None,
    *,
    n_past: int = 0,
    n_virtual: int = 0,
) -> TokenBatch | None:
    """What a backbone is about to be fed: `input_ids` or `inputs_embeds`, `attention_mask` and `position_ids`.

    With a cache, the mask covers past and new tokens: its last T columns are those of the T new ones. Without a
    mask all positions are real: padding is never guessed from token ids. Positions that start again in the middle
    of a row are another text's, packed into it.

    Args:
        given: the backbone's arguments.
        outer: those of the model around it, for a few models do not hand the mask on (rwkv).
        told: what is known besides.
        n_past: tokens in the cache.
        n_virtual: trained prompts that may be put before the first token; they are none.

    Returns:
        None if the module takes neither token ids nor embeddings nor a mask (any torch module).

    Raises:
        ProbeError: a mask that cannot be read, for one is then left to guess which positions are real.
    """
    ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
    fed = ids if isinstance(ids, Tensor) else embeds
    if not isinstance(fed, Tensor) or fed.ndim < 2:
        return None
    if given.get("read_index") is not None:
        raise ProbeError(
            "generate_batch: continuous batching feeds pieces of many texts in one row, from which nobody can tell "
            "what belongs together; use model.generate"
        )
    n_sequences, n_tokens = fed.shape[:2]
    known = outer.get("input_ids") if told is None or told.ids_BL is None else told.ids_BL
    if not isinstance(ids, Tensor):  # the model around it embeds the tokens, and images beside them
        ids = known if isinstance(known, Tensor) and known.shape[0] == n_sequences else None
        if ids is not None and told is not None:
            ids = ids[:, -n_tokens:]
    prompt = 0
    if ids is not None and ids.shape[1] != n_tokens:
        prompt = n_virtual if ids.shape[1] + n_virtual == n_tokens else 0
        ids = np.pad(_numpy(ids), ((0, 0), (n_virtual, 0)), constant_values=-1) if prompt else None
    real_BT = _real(given, outer, told, (n_sequences, n_tokens), n_past)
    mask_known = told is not None or any(a.get("attention_mask") is not None for a in (given, outer))
    real_BT[:, :prompt] = False
    if told is not None and told.ends_B is not None and told.ids_BL is not None:
        last = told.ids_BL.shape[1]
        real_BT &= np.arange(last - n_tokens, last) < told.ends_B[:, None]
    return TokenBatch(
        real_BT=real_BT,
        ids_BT=None if ids is None else _numpy(ids),
        mask_known=mask_known,
        starts_BT=_starts(given, outer, real_BT),
    )


def _real(
    given: Mapping[str, Any], outer: Mapping[str, Any], told: InputHints | None, shape: tuple[int, int], n_past: int
) -> np.ndarray:
    """Which positions are real tokens, by the first mask that says so; all, where there is none."""
    n_sequences, n_tokens = shape
    mask = given.get("attention_mask")
    if isinstance(mask, Mapping):  # one for each kind of layer
        mask = mask.get("full_attention", next(iter(mask.values()), None))
    two = [told.mask_BL if told else None, mask, outer.get("attention_mask")]
    for candidate in two:
        if isinstance(candidate, Tensor) and candidate.ndim == 2 and candidate.shape[0] == n_sequences:
            missing = n_tokens - candidate.shape[1]
            if missing <= 0:
                return _numpy(candidate[:, -n_tokens:] != 0)  # numpy has no bfloat16
    if mask is None:
        mask = outer.get("attention_mask")
    if mask is None:
        return np.ones(shape, dtype=bool)
    if isinstance(mask, Tensor) and mask.ndim == 4 and mask.shape[0] in (1, n_sequences) and mask.shape[2] == n_tokens:
        # [B, 1, T, S]: a token is real where it may attend to itself.
        past = n_past if mask.shape[3] >= n_past + n_tokens else mask.shape[3] - n_tokens
        if past >= 0:
            own = mask[:, 0].diagonal(offset=past, dim1=1, dim2=2)
            own_BT = _numpy(own if not own.is_floating_point() else own.float() > -1.0) != 0
            return np.broadcast_to(own_BT, shape).copy()
    got = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
    raise ProbeError(
        f"attention_mask: expected [B, T] = {[n_sequences, n_tokens]}, got {got}; say which tokens are real with "
        "probe.masked(mask)"
    )


def _starts(given: Mapping[str, Any], outer: Mapping[str, Any], real_BT: np.ndarray) -> np.ndarray | None:
    """Where position_ids start again, or, without them, where a row packed for flash attention says so."""
    again = np.zeros(real_BT.shape, dtype=bool)
    positions, lengths = (
        given.get(name) if isinstance(given.get(name), Tensor) else outer.get(name)
        for name in ("position_ids", "cu_seq_lens_q")
    )
    if isinstance(positions, Tensor) and positions.ndim == 2 and positions.shape[1] == real_BT.shape[1]:
        numbers = _numpy(positions)
        again[:, 1:] = (numbers[:, 1:] <= numbers[:, :-1]) & real_BT[:, 1:] & real_BT[:, :-1]
    elif isinstance(lengths, Tensor) and len(real_BT) == 1:
        starts = _numpy(lengths)
        again[0, starts[(starts > 0) & (starts < real_BT.shape[1])]] = True
    return again if again.any() else None


def _numpy(tensor: Tensor | np.ndarray) -> np.ndarray:
    return tensor if isinstance(tensor, np.ndarray) else tensor.cpu().numpy()
