"""Try with half as much when memory does not suffice."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from accelerate.utils import find_executable_batch_size

from softh_probe.errors import InputError

T = TypeVar("T")


def with_less_memory(attempt: Callable[[int], T], start: int, halved: Callable[[], int], problem: str) -> T:
    """Call a function until it has enough memory.

    >>> with_less_memory(lambda batch: batch, 8, lambda: 4, "one request")
    8

    Args:
        attempt: takes the size of a batch.
        start: the first size.
        halved: gives the next one, after a lack of memory; 0 gives up.
        problem: what does not fit even in the smallest batch, and the remedy.

    Raises:
        InputError: not even the smallest batch fits.
    """
    try:
        found: T = find_executable_batch_size(attempt, starting_batch_size=start, reduce_batch_size_fn=halved)()
    except RuntimeError as error:
        if "No executable batch size" in str(error):
            raise InputError(f"out of memory, even with {problem}") from error
        raise
    return found
