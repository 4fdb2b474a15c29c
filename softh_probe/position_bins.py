"""Bins of the position in a document, each twice as wide as the one before (0, 1, 2-3, 4-7, …)."""

from __future__ import annotations

import numpy as np

#: Name of all positions together, beside the names of bins.
ALL_BINS = "all"
#: The label set whose labels are the bins.
POSITION_SET = "position"


def bins_of(places_N: np.ndarray) -> np.ndarray:
    """Find the number of the bin of each place in a document, from 0: int [N].

    >>> bins_of(np.array([0, 1, 2, 3, 4, 7, 8])).tolist()
    [0, 1, 2, 2, 3, 3, 4]
    """
    _, exponents_N = np.frexp(places_N.astype(np.float64))
    found: np.ndarray = exponents_N.astype(np.int64)
    return found


def bin_name(number: int) -> str:
    """Name a bin by its first and last place.

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
    if bin_name(int(bins_of(np.array([first]))[0])) != name:
        raise ValueError(f"{name!r} is no bin of positions")
    return first
