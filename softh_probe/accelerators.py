"""Whether tensors of a device are computed as on an accelerator: without waiting for it, with few and large kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_everywhere = False


def is_accelerator(device: torch.device) -> bool:
    """Tell whether a device is computed on as an accelerator is."""
    return _everywhere or device.type != "cpu"


@contextmanager
def accelerator_path() -> Iterator[None]:
    """Compute on every device as on an accelerator inside the block: to count its operations, and to test them."""
    global _everywhere
    before, _everywhere = _everywhere, True
    try:
        yield
    finally:
        _everywhere = before
