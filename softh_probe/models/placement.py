"""Number format and device of a model: checks that cost nothing, made before anything is loaded."""

from __future__ import annotations

from typing import Literal

import torch

from softh_probe.errors import InputError

DTYPES = ("auto", "float32", "bfloat16", "float16")
SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")  # accelerate's names for placements on several devices


def accelerator() -> str | None:
    """Name the kind of accelerator at hand ("cuda", "mps"); None where there is none."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return device.type if device else None


def synchronize() -> None:
    """Wait until the accelerator has done what it was told; without one there is nothing to wait for."""
    if accelerator():
        torch.accelerator.synchronize()


def check_placement(dtype: str, device_map: str | None) -> str:
    """Resolve the device or placement of a model from its configuration, without loading it.

    Args:
        dtype: one of `DTYPES`.
        device_map: a device, one of `SPREAD`, or None for the accelerator, else the CPU.

    Returns:
        A device ("cpu", "cuda", "cuda:1") or one of `SPREAD`.

    Raises:
        InputError: unknown dtype, or no such device.
    """
    check_dtype(dtype)
    return check_device(device_map)


def check_dtype(dtype: str) -> torch.dtype | Literal["auto"]:
    """Resolve the name of a number format as `from_pretrained` takes it.

    Raises:
        InputError: unknown dtype.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r}: unknown; expected one of {', '.join(DTYPES)}")
    if dtype == "auto":
        return "auto"
    found: torch.dtype = getattr(torch, dtype)
    return found


def check_device(device_map: str | None) -> str:
    """Resolve a device or placement; None is the accelerator, else the CPU.

    Raises:
        InputError: no such device.
    """
    kind = accelerator()
    here = ["cpu", *SPREAD]
    if kind:
        here += [kind, *(f"{kind}:{index}" for index in range(torch.accelerator.device_count()))]
    if device_map is not None and device_map not in here:
        raise InputError(f"device_map {device_map!r}: no such device here; expected one of {', '.join(here)}")
    return device_map or kind or "cpu"
