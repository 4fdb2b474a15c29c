"""What a run feeds the model: batches of documents, and the rows of their labels.

There are two: `softh_probe.run.planned_feed.PlannedFeed`, whose corpus is known before the model runs, and
`softh_probe.run.streamed_feed.StreamedFeed`, which reads documents as they come. A run uses this interface alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from softh_probe.choices import Choice
from softh_probe.config import RunConfig
from softh_probe.data.corpus import Corpus
from softh_probe.planned.announced import AnnouncedRows
from softh_probe.planned.sums_memory import SumsMemory
from softh_probe.probe import SoftEntropyProbe
from softh_probe.run.forward import Batch
from softh_probe.run.processes import Processes

T = TypeVar("T")


class Feed(Protocol):
    """The documents of a run, as far as they are read before the model runs, and their batches."""

    @property
    def choices(self) -> Iterable[Choice]:
        """What was chosen for the user so far, for tokenizer and data."""
        ...

    @property
    def trial(self) -> Corpus:
        """Documents on which the model is tried before it measures any: all of them, or the first that were read."""
        ...

    @property
    def n_longer(self) -> int | None:
        """Documents longer than `max_length`; None before the last one is read."""
        ...

    @property
    def rows(self) -> AnnouncedRows:
        """The rows of all labels."""
        ...

    @property
    def n_batches(self) -> int | None:
        """Batches of this process; None where nobody knows."""
        ...

    @property
    def n_tokens(self) -> int | None:
        """Tokens of the batches of this process, estimated where they are not known; None where nobody knows."""
        ...

    def group(self, batching: str) -> None:
        """Group documents into batches, in one of the `BATCHINGS`.

        Raises:
            InputError: there are too few documents, or none is long enough.
        """
        ...

    @property
    def n_defined(self) -> int | None:
        """Positions that count without policies of positions; None before the last document is read."""
        ...

    def describe_corpus(self) -> str:
        """Describe the documents, for a log line."""
        ...

    def describe_batches(self) -> str:
        """Describe the batches, for a log line."""
        ...

    def sizes(self) -> dict[str, int | None]:
        """Give the number of documents, tokens, positions and batches of all processes, where they are known."""
        ...

    def place_sums(
        self,
        devices: Mapping[str, torch.device],
        needed: Mapping[str, int] | None = None,
        widths: Mapping[str, int | None] | None = None,
    ) -> SumsMemory:
        """Decide where the sums of each layer go; see `place_sums`.

        Raises:
            InputError: there is not as much memory as they take.
        """
        ...

    def fingerprint(self) -> dict[str, Any]:
        """Identify the documents and their batches, the same in all processes (JSON values)."""
        ...

    def batches(self, first: int, check: Callable[[Corpus], None]) -> Iterator[Batch]:
        """Give the batches of this process, each when the one before it was measured.

        Args:
            first: number of batches that this process has measured already.
            check: checks of documents that were not read before whether the model can take them.

        Raises:
            InputError: documents cannot be read, or are none that the model takes.
        """
        ...

    def some_batches(self, n: int, check: Callable[[Corpus], None]) -> Iterator[Batch]:
        """Give up to n batches of this process, evenly chosen among those that are known, to time them.

        Args:
            n: their number.
            check: as `batches` takes it.
        """
        ...

    def state(self) -> dict[str, Any]:
        """Give where reading goes on after the batch that was given last (JSON values); nothing where all is read."""
        ...

    def join(self, probe: SoftEntropyProbe) -> None:
        """Add the sums of all processes to those of the first, after the last batch.

        Raises:
            InputError: the documents have no token, position or label, or processes read others.
        """
        ...

    def corpus_info(self) -> dict[str, Any]:
        """Describe the corpus for a result (JSON values)."""
        ...

    def warnings(self) -> list[str]:
        """List what limits the result."""
        ...


def placing(config: RunConfig, processes: Processes) -> dict[str, Any]:
    """Select what decides how large sums are and where they go; arguments of `place_sums`."""
    return {
        "n_anchors": [variant.n_anchors for variant in config.variants],
        "anchor_sets": config.anchor_sets,
        "sums_memory_gb": config.sums_memory_gb,
        "n_processes": processes.n_measuring_here,
    }


def evenly_chosen(given: Sequence[T], n: int) -> list[T]:
    """Choose up to n of a sequence, evenly and in order.

    >>> evenly_chosen(range(10), 3), evenly_chosen(range(2), 3)
    ([0, 4, 9], [0, 1])
    """
    places = np.linspace(0, len(given) - 1, min(n, len(given))).astype(int)
    return [given[place] for place in places]
