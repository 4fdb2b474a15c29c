"""Wall time of the stages of a run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Measures wall time by stage, in seconds.

    >>> seconds = Stopwatch()
    >>> with seconds("load"):
    ...     pass
    >>> list(seconds.spent)
    ['load']
    """

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the time of the block to that of a stage."""
        start = time.perf_counter()
        yield
        self.spent[stage] = self.spent.get(stage, 0.0) + time.perf_counter() - start
