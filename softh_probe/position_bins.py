"""Bins of the position in a document, each twice as wide as the one before (0, 1, 2-3, 4-7, …)."""

from __future__ import annotations

#: Name of all positions together, beside the names of bins.
ALL_BINS = "all"
#: The label set whose labels are the bins.
POSITION_SET = "position"


def bin_name(number: int) -> str:
    """Name a bin by its first and last place; its number is that of the binary digits of its places.

    >>> [bin_name(number) for number in range(5)]
    ['0', '1', '2-3', '4-7', '8-15']
    """
    first, last = 2 ** (number - 1) if number else 0, 2**number - 1
    return f"{first}-{last}" if number > 1 else f"{last}"


def first_place(name: str) -> int:
    """Give the first place of a bin by its name; raise ValueError if it is no bin's.

    >>> first_place("4-7")
    4
    """
    first = int(name.partition("-")[0])
    if first < 0 or bin_name(first.bit_length()) != name:
        raise ValueError(f"{name!r} is no bin of positions")
    return first
