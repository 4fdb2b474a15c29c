"""Products in the precision of float32, whatever the user allows for those of the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_FULL = "ieee"


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Switch TF32 and bfloat16 products of float32 matrices off inside the block; the user's setting is kept.

    >>> torch.set_float32_matmul_precision("high")
    >>> with full_float32(torch.device("cuda")):
    ...     torch.backends.cuda.matmul.fp32_precision
    'ieee'
    >>> torch.backends.cuda.matmul.fp32_precision
    'tf32'
    >>> torch.set_float32_matmul_precision("highest")
    """
    backends: Any = torch.backends
    setting = getattr(backends.mkldnn if device.type == "cpu" else backends.cuda, "matmul", None)
    name = "fp32_precision" if hasattr(setting, "fp32_precision") else "allow_tf32"
    before = getattr(setting, name, False)  # torch < 2.9 has no setting for CPUs
    if before in (False, "none", _FULL):
        yield
        return
    setattr(setting, name, False if before is True else _FULL)
    try:
        yield
    finally:
        _restore(setting, name, before)


@contextmanager
def accumulation_in_float32() -> Iterator[None]:
    """Let products of float16 on CUDA accumulate in float32 inside the block; the user's setting is kept."""
    setting: Any = torch.backends.cuda.matmul
    if not getattr(setting, "allow_fp16_accumulation", False):  # torch < 2.7 has no such setting
        yield
        return
    setting.allow_fp16_accumulation = False
    try:
        yield
    finally:
        setting.allow_fp16_accumulation = True


def _restore(setting: Any, name: str, before: bool | str) -> None:
    if before is not True:
        setattr(setting, name, "none")  # as where it is inherited from a wider setting
    if getattr(setting, name) != before:
        setattr(setting, name, before)
