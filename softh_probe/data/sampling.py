"""Rows in random order: a uniform sample, or all of them.

Each row draws a number from a generator with the seed, and rows come in the order of their numbers. So every order is
as likely as any other, and the same in all processes; a sample is the beginning of the order of all.
"""

from __future__ import annotations

import heapq
import json
import random
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


def sample(rows: Iterable[T], seed: int, most: int) -> list[T]:
    """Draw rows without replacement, in random order; only the sample is kept in memory.

    >>> sample("abcdef", seed=0, most=3)
    ['e', 'b', 'a']

    Args:
        rows: the rows, in an order that is always the same; all are read.
        seed: seed of the order.
        most: number of rows to draw.
    """
    draw = _generator(seed)
    # The second number decides where two are equal, so that rows are never compared.
    drawn = heapq.nsmallest(most, ((draw(), number, row) for number, row in enumerate(rows)))
    return [row for _, _, row in drawn]


def permuted(rows: Iterable[tuple[Any, T]], seed: int) -> Iterator[tuple[Any, T]]:
    """Give all rows in random order; the first half of each waits in a temporary file, the second in memory.

    >>> list(permuted([(letter, i) for i, letter in enumerate("abcdef")], seed=0))
    [('e', 4), ('b', 1), ('a', 0), ('f', 5), ('c', 2), ('d', 3)]

    Args:
        rows: a large value of JSON and a small one of any kind each, in an order that is always the same.
        seed: seed of the order.
    """
    draw = _generator(seed)
    numbers, starts, kept = array("d"), array("q", [0]), []
    with tempfile.TemporaryFile() as file:
        for large, small in rows:
            numbers.append(draw())
            kept.append(small)
            starts.append(starts[-1] + file.write(json.dumps(large, default=str).encode()))
        for row in np.argsort(np.frombuffer(numbers), kind="stable"):
            file.seek(starts[row])
            yield json.loads(file.read(starts[row + 1] - starts[row])), kept[row]


def _generator(seed: int) -> Callable[[], float]:
    return random.Random(f"softh_probe {seed}").random
