"""Rows in random order: all of them, or a uniform sample."""

from __future__ import annotations

import heapq
import pickle
import random
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def shuffled(rows: Iterable[T], seed: int, most: int | None = None) -> Iterator[T]:
    """Give rows in random order.

    Each row draws a number from a generator with this seed, and rows come in the order of their numbers. So every order
    is as likely as any other; a sample is uniform, the same in all processes, and the beginning of a larger sample with
    the same seed. All rows are read. A sample is kept in memory; without `most`, rows wait in a temporary file.

    >>> list(shuffled("abcdef", seed=0, most=3)) == list(shuffled("abcdef", seed=0))[:3]
    True

    Args:
        rows: the rows, in an order that is always the same.
        seed: seed of the order.
        most: number of rows to draw; None for all.
    """
    draw = random.Random(f"softh_probe {seed}").random
    if most is not None:
        # The second number decides where two are equal, so that rows are never compared.
        drawn = heapq.nsmallest(most, ((draw(), number, row) for number, row in enumerate(rows)))
        return (row for _, _, row in drawn)
    return _from_disk(rows, draw)


def _from_disk(rows: Iterable[T], draw: Callable[[], float]) -> Iterator[T]:
    keys, starts = array("d"), array("q")
    with tempfile.TemporaryFile() as file:
        for row in rows:
            keys.append(draw())
            starts.append(file.tell())
            pickle.dump(row, file)
        for number in np.argsort(np.frombuffer(keys), kind="stable"):
            file.seek(starts[number])
            yield pickle.load(file)
