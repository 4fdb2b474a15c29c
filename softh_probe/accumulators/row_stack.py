"""Rows of several layers in one tensor, so that an accelerator adds a batch to all of them with one kernel.

Shape suffixes: A layers of a stack, G of them one after the other, R rows, L labels, K columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from softh_probe.accelerators import is_accelerator

_SMALL = 2**28  # bytes of a table


class RowStack:
    """Rows of several layers, zero at first: [A, R, K].

    Args:
        shape: (A, R, K).
        most_rows: rows of a layer at most, beyond which no memory is taken ahead; None for any number.

    Attributes:
        rows_ARK: the rows.
    """

    def __init__(
        self, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device, most_rows: int | None = None
    ) -> None:
        self._most_rows = most_rows
        self._longer: Tensor | None = None  # of which a stack that grew is the first rows
        with torch.inference_mode(False):  # what is made in inference mode could not be updated outside of it
            self.rows_ARK = torch.zeros(shape, dtype=dtype, device=device)

    def grow(self, n_rows: int) -> None:
        """Extend each layer to `n_rows` zero-filled rows, if it has fewer.

        Memory is taken ahead. On a CPU a small stack takes eight times what it needs, since memory that nothing has
        touched costs nothing there.
        """
        rows_ARK = self.rows_ARK
        n_layers, n_old, n_columns = rows_ARK.shape
        if n_rows <= n_old:
            return
        with torch.inference_mode(False):
            if self._longer is None or self._longer.shape[1] < n_rows:
                times = 8 if rows_ARK.device.type == "cpu" and rows_ARK.nbytes < _SMALL else 2
                ahead = min(times * n_old, self._most_rows or times * n_old)
                self._longer = rows_ARK.new_empty(n_layers, max(n_rows, ahead), n_columns)
                self._longer[:, :n_old] = rows_ARK
            self._longer[:, n_old:n_rows] = 0.0
            self.rows_ARK = self._longer[:, :n_rows]

    def require_columns(self, n_columns: int) -> None:
        """Set all rows to zero if they have another number of columns, and give them this one."""
        n_layers, n_rows, n_before = self.rows_ARK.shape
        if n_columns != n_before:
            with torch.inference_mode(False):
                self.rows_ARK, self._longer = self.rows_ARK.new_zeros(n_layers, n_rows, n_columns), None


class InStack(Protocol):
    """One layer of a stack."""

    @property
    def stack(self) -> Any:
        """The stack, which is compared by identity."""

    @property
    def place(self) -> int:
        """Its place there."""


class Run(NamedTuple):
    """Layers that lie one after the other in a stack.

    Attributes:
        stack: the stack.
        places: of the layers, in the stack.
        of_group: of the layers, in the group that was taken apart.
    """

    stack: Any
    places: slice
    of_group: slice


def runs(group: Sequence[InStack]) -> Iterator[Run]:
    """Take a group of layers apart into runs that lie one after the other in a stack.

    >>> class Layer(NamedTuple):
    ...     stack: str
    ...     place: int
    >>> [(run.stack, run.of_group) for run in runs([Layer("a", 6), Layer("a", 7), Layer("b", 0)])]
    [('a', slice(0, 2, None)), ('b', slice(2, 3, None))]
    """
    places = enumerate(pairwise(group), 1)
    cuts = [i for i, (one, next_) in places if one.stack is not next_.stack or next_.place != one.place + 1]
    for start, end in pairwise([0, *cuts, len(group)] if group else ()):
        first = group[start]
        yield Run(first.stack, slice(first.place, first.place + end - start), slice(start, end))


def add_at(rows_GRK: Tensor, at_L: Tensor, values_GLK: Tensor) -> None:
    """Add values to some rows of each layer."""
    if is_accelerator(rows_GRK.device):
        rows_GRK.index_add_(1, at_L, values_GLK)
        return
    for rows_RK, values_LK in zip(rows_GRK, values_GLK, strict=True):  # twice as fast on a CPU
        rows_RK.index_add_(0, at_L, values_LK)


def copy_of(rows_GRK: Tensor, at_L: Tensor) -> Tensor:
    """Copy some rows of each layer: [G, L, K]."""
    if is_accelerator(rows_GRK.device):
        return rows_GRK.index_select(1, at_L)
    found_GLK = rows_GRK.new_empty(len(rows_GRK), len(at_L), rows_GRK.shape[2])
    for rows_RK, found_LK in zip(rows_GRK, found_GLK, strict=True):  # twice as fast on a CPU
        torch.index_select(rows_RK, 0, at_L, out=found_LK)
    return found_GLK


def beside(rows: Tensor, blocks: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Pair blocks of columns that lie side by side with the columns of rows that they stand for.

    >>> [(ours.tolist(), block.tolist()) for ours, block in beside(torch.arange(3), [torch.ones(2), torch.zeros(1)])]
    [([0, 1], [1.0, 1.0]), ([2], [0.0])]
    """
    widths = [block.shape[-1] for block in blocks]
    return zip(rows.split(widths, dim=-1), blocks, strict=True)
