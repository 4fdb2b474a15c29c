"""Recognise stored tensors that are no weights: what a model computes itself, such as causal masks and positions.

Older versions of transformers saved these with the weights. Each is recognised by its values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_RELATIVE = 0.01  # inverse frequencies may be stored in bfloat16
_VERY_NEGATIVE = -1000.0  # what masks add to logits


def is_computed(name: str, stored: Tensor, model: nn.Module) -> bool:
    """Test whether a stored tensor holds what a model computes itself.

    Args:
        name: its name in the file.
        stored: its values.
        model: the loaded model.
    """
    leaf = name.rpartition(".")[2]
    if leaf in ("_extra_state", "version"):  # of other programs
        return True
    if stored.is_meta or not stored.numel():
        return not stored.numel()
    if leaf.endswith("inv_freq"):
        return any(_close(stored.flatten(), known) for known in _frequencies(model))
    if re.search(r"(^|_)(cos|sin)(_|$)", leaf):
        return _is_rotary_table(leaf, stored, model)
    if name.startswith(("rope_freqs.", "rope_factors")):  # of .gguf files: what frequencies are divided by
        return _divide_frequencies(stored.flatten(), model)
    if leaf in ("masked_bias", "scale_attn"):
        return stored.numel() == 1
    return _is_buffer(name, stored, model) or _is_causal_mask(stored) or _is_count(stored)


def _close(stored: Tensor, known: Tensor) -> bool:
    if stored.shape != known.shape:
        return False
    return torch.allclose(stored.float(), known.float().to(stored.device), rtol=_RELATIVE, atol=0)


def _frequencies(model: nn.Module) -> Iterator[Tensor]:
    """List the inverse frequencies of rotary positions that a model uses, and those that it scales."""
    sizes = set()
    for name, buffer in model.named_buffers():
        if name.endswith("inv_freq") and not buffer.is_meta:
            sizes.add(buffer.numel())
            yield buffer.flatten().cpu()
    for base in _bases(getattr(model, "config", None)):
        for size in sizes:
            yield base ** (-torch.arange(size, dtype=torch.float32) / size)


def _divide_frequencies(factors: Tensor, model: nn.Module) -> bool:
    """Test whether a model's frequencies are those of its base divided by factors."""
    used = [b.flatten().cpu() for name, b in model.named_buffers() if name.endswith("inv_freq") and not b.is_meta]
    return any(
        _close(known / factors, mine) for mine in used for known in _frequencies(model) if known.shape == factors.shape
    )


def _bases(config: Any) -> set[float]:
    """Find the bases of rotary positions in a config, which may hold one for each kind of layer."""
    found: set[float] = set()
    waiting = [value for value in (config, getattr(config, "text_config", None)) if value is not None]
    waiting = [vars(value) for value in waiting]
    while waiting:
        for key, value in waiting.pop().items():
            if isinstance(value, dict):
                waiting.append(value)
            elif key in ("rope_theta", "rotary_emb_base", "rope_local_base_freq") and isinstance(value, int | float):
                found.add(float(value))
    return found


def _is_rotary_table(leaf: str, stored: Tensor, model: nn.Module) -> bool:
    """Test for cosines or sines of positions times inverse frequencies: [..., positions, width]."""
    rows = stored.reshape(-1, stored.shape[-1]).float()
    half = rows.shape[1] // 2
    angle = torch.cos if "cos" in leaf else torch.sin
    return len(rows) > 1 and any(
        torch.allclose(rows[1, :half], angle(known.float()), atol=_RELATIVE)
        for known in _frequencies(model)
        if len(known) == half
    )


def _is_buffer(name: str, stored: Tensor, model: nn.Module) -> bool:
    """Test for a buffer of the model, perhaps of fewer or more rows, such as sinusoidal positions."""
    for known_name, known in model.named_buffers():
        if not (name == known_name or name.endswith(f".{known_name}")) or known.is_meta:
            continue
        if known.ndim != stored.ndim:
            return False
        common = tuple(slice(min(sizes)) for sizes in zip(known.shape, stored.shape, strict=True))
        return torch.allclose(known[common].cpu().float(), stored[common].float(), rtol=_RELATIVE, atol=_RELATIVE)
    return False


def _is_causal_mask(stored: Tensor) -> bool:
    """Test for a square of 1 (or 0) up to the diagonal, perhaps of a window, and 0 (or very negative) after it."""
    if stored.ndim < 2 or stored.shape[-1] != stored.shape[-2] or stored.shape[-1] < 2:
        return False
    if stored.numel() != stored.shape[-1] ** 2:
        return False
    square = stored.reshape(stored.shape[-2:]).float()
    later = torch.ones_like(square, dtype=torch.bool).triu(1)
    diagonal, before = square.diagonal(), square[~later]
    if bool((diagonal == 1).all()):
        return bool((square[later] == 0).all()) and bool(((before == 0) | (before == 1)).all())
    return bool((square <= 0).all()) and bool((square[later] <= _VERY_NEGATIVE).all()) and bool((before == 0).all())


def _is_count(stored: Tensor) -> bool:
    """Test for whole numbers that count up by one in each row, as positions do, or are all zero, as types are."""
    if stored.is_floating_point() or stored.dtype == torch.bool or not stored.ndim:
        return False
    rows = stored.reshape(-1, stored.shape[-1]).long()
    return bool((rows == 0).all()) or (rows.shape[1] > 1 and bool((rows.diff(dim=1) == 1).all()))
