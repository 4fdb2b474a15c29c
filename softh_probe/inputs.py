"""What a forward pass is fed: which positions are real tokens, and which tokens they are."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from softh_probe.errors import ProbeError


@dataclass(frozen=True, kw_only=True)
class Fed:
    """The tokens of one forward pass, on the host.

    Attributes:
        real_BT: bool, False at padding.
        ids_BT: int64 token ids; None where the model is fed embeddings.
    """

    real_BT: np.ndarray
    ids_BT: np.ndarray | None


def arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What a module is about to be called with, by its forward's names of the arguments."""
    try:
        given = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
    except TypeError:
        return {}  # the call itself is wrong, and says so better than a probe can
    return {**given.get("kwargs", {}), **given}


def require_tokens(given: dict[str, Any], outer: dict[str, Any]) -> None:
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
    if isinstance(ids, Tensor) and isinstance(embeds, Tensor) and ids.shape[:2] != embeds.shape[:2]:
        raise ProbeError(
            f"input_ids: the model takes {list(ids.shape[:2])} tokens but feeds {list(embeds.shape[:2])} positions to "
            "its blocks (prompts that were trained, images), so it is unknown which of them are which tokens"
        )


def read_inputs(given: dict[str, Any], outer: dict[str, Any]) -> Fed | None:
    """What a backbone is about to be fed: `input_ids` or `inputs_embeds`, and `attention_mask`, of its arguments.

    With a cache, the mask covers past and new tokens: its last T columns are those of the T new ones. Without a
    mask all positions are real: padding is never guessed from token ids.

    Args:
        given: the backbone's arguments.
        outer: those of the model around it, for a few models do not hand the mask on (rwkv).

    Returns:
        None if the module takes neither token ids nor embeddings nor a mask (any torch module).

    Raises:
        ProbeError: a mask that is not [B, T], for one is then left to guess which positions are real.
    """
    ids, embeds, mask = (given.get(name) for name in ("input_ids", "inputs_embeds", "attention_mask"))
    if not isinstance(mask, Tensor) or mask.ndim != 2:  # not handed on, or made into one for each kind of layer
        mask = mask if outer.get("attention_mask") is None else outer["attention_mask"]
    fed = ids if isinstance(ids, Tensor) else embeds
    if not isinstance(fed, Tensor) or fed.ndim < 2:
        return None
    n_sequences, n_tokens = fed.shape[:2]
    if not isinstance(ids, Tensor):  # the model around it embeds the tokens, and images beside them
        outer_ids = outer.get("input_ids")
        ids = outer_ids if isinstance(outer_ids, Tensor) and outer_ids.shape == fed.shape[:2] else None
    if mask is None:
        real_BT = np.ones((n_sequences, n_tokens), dtype=bool)
    elif isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[0] == n_sequences and mask.shape[1] >= n_tokens:
        real_BT = mask[:, mask.shape[1] - n_tokens :].cpu().numpy() != 0
    else:
        shape = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ProbeError(f"attention_mask: expected [B, T] = {[n_sequences, n_tokens]}, got {shape}")
    return Fed(real_BT=real_BT, ids_BT=ids.cpu().numpy() if isinstance(ids, Tensor) else None)
