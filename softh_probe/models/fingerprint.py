"""Fingerprint of a model's weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

from softh_probe.hashing import bytes_sha256, text_sha256

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def weights_fingerprint(model: nn.Module) -> str | None:
    """Compute the SHA-256 of the weights as loaded, in hex: of sorted names, dtypes, shapes and bytes.

    >>> layer = nn.Linear(2, 2)
    >>> before = weights_fingerprint(layer)
    >>> layer.bias.data[0] += 1
    >>> weights_fingerprint(layer) == before
    False

    It covers parameters and persistent buffers, and does not depend on strides, devices, files, shards or tied
    memory. Poolers are left out: where a checkpoint lacks them they are random, and no hidden state of a layer passes
    through one. Memory: a copy of one tensor for each of four threads.

    Weights that processes hold between them (DTensors) are gathered one by one: all of these have to call this.

    Returns:
        The digest; None where a tensor is offloaded and cannot be read back.
    """

    def line(item: tuple[str, Tensor]) -> str:
        name, tensor = item
        values = _values(model, name, tensor)
        whole = values.full_tensor() if is_distributed(values) else values
        raw = whole.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return f"{name} {tensor.dtype} {tuple(tensor.shape)} {bytes_sha256(raw.data)}\n"

    stored = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    tensors = {
        part: tensor
        for name, value in stored.items()
        for part, tensor in ([(name, value)] if is_distributed(value) else parts_of(name, value))
    }
    n_threads = 1 if any(map(is_distributed, tensors.values())) else min(4, os.cpu_count() or 1)
    try:
        with ThreadPoolExecutor(n_threads) as pool:  # hashlib works without the GIL
            lines = pool.map(line, sorted((name, tensors[name]) for name in tensors if not is_pooler(name)))
            return text_sha256("".join(lines))
    except LookupError:
        return None


def parts_of(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """List the plain tensors that a tensor consists of: itself, or the parts of a quantized one."""
    if hasattr(tensor, "__tensor_flatten__"):
        for part in tensor.__tensor_flatten__()[0]:
            if isinstance(value := getattr(tensor, part), Tensor):  # a DTensor has its mesh, too
                yield from parts_of(f"{name}.{part}", value)
    else:
        yield name, tensor


def is_distributed(tensor: Tensor) -> TypeGuard[DTensor]:
    """Test whether processes hold a tensor between them."""
    if not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def _values(model: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """Read a tensor, from accelerate's store where it is offloaded.

    Raises:
        LookupError: it is offloaded and not in accelerate's store.
    """
    if not tensor.is_meta:
        return tensor
    module, _, leaf = name.rpartition(".")
    hook = getattr(model.get_submodule(module), "_hf_hook", None)
    for part in getattr(hook, "hooks", [hook]):
        if getattr(part, "weights_map", None) is not None:
            stored: Tensor = part.weights_map[leaf]
            return stored
    raise LookupError(name)


def is_pooler(key: str) -> bool:
    """Test whether a weight belongs to a pooler; no hidden state of a layer passes through one."""
    return "pooler" in key.split(".")
