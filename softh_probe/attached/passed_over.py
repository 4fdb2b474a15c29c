"""Positions that would count, but for the policies of positions."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


class PassedOver:
    """Count positions that policies leave out; where each distinct prefix counts once, their prefixes.

    Attributes:
        n: how many there are.
        prefixes: keys of prefixes, where these count.
    """

    def __init__(self, n: int = 0, prefixes: Collection[bytes] = ()) -> None:
        self.n, self.prefixes = n, set(prefixes)

    def add(self, n: int, prefixes: Collection[bytes] | None = None) -> None:
        """Add n positions, or those of their prefixes that are new."""
        if prefixes is None:
            self.n += n
            return
        known = len(self.prefixes)
        self.prefixes.update(prefixes)
        self.n += len(self.prefixes) - known

    def merge(self, other: PassedOver) -> None:
        """Add those of another part of the data."""
        self.n += other.n
        self.prefixes |= other.prefixes

    def state_dict(self) -> dict[str, Any]:
        """Give what `of_state` reads; nothing where all positions counted."""
        return {"passed_over": {"positions": self.n, "prefixes": packed(self.prefixes)}} if self.n else {}

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> PassedOver:
        """Continue from the state of rows."""
        part = state.get("passed_over")
        return cls() if part is None else cls(part["positions"], unpacked(part["prefixes"]))


def packed(keys: Collection[bytes]) -> Tensor:
    """Write keys of prefixes as a tensor, int64 [N, 2]."""
    return torch.from_numpy(np.frombuffer(b"".join(keys), dtype=np.int64).reshape(-1, 2).copy())


def unpacked(keys_N2: Tensor) -> set[bytes]:
    """Read keys of prefixes."""
    return set(np.ascontiguousarray(keys_N2.numpy()).view("V16").reshape(-1).tolist())
