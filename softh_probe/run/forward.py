"""The forward pass over a planned corpus: the one loop, and when it writes snapshots."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from softh_probe.data.corpus import pad_batch
from softh_probe.errors import Interrupted, LostProcessError
from softh_probe.planned.plan import Plan
from softh_probe.probe import SoftEntropyProbe
from softh_probe.run.processes import Processes
from softh_probe.run.signals import StopRequests
from softh_probe.run.snapshots import Progress, Snapshots

#: Writing snapshots takes at most this share of the time.
MOST_OF_TIME = 0.01


def forward(
    probe: SoftEntropyProbe,
    model: Any,
    plan: Plan,
    *,
    share: range | None = None,
    first: int = 0,
    after_batch: Callable[[int], None] | None = None,
    progress: bool = True,
) -> None:
    """Run the backbone over the planned batches. The model's head is not run, no hidden state is kept.

    Args:
        share: indices of the batches to run; None is all.
        first: how many of them the probe has measured already.
        after_batch: called after each batch with the number of those done.
    """
    device = model.get_input_embeddings().weight.device
    share = range(len(plan.batches)) if share is None else share
    n_tokens = [int(plan.corpus.lengths[plan.batches[index]].sum()) for index in share]
    with (
        probe,
        torch.inference_mode(),
        _quiet_matmul(),
        tqdm(
            total=sum(n_tokens),
            initial=sum(n_tokens[:first]),
            desc="forward",
            unit="tok",
            unit_scale=True,
            disable=not progress,
            file=sys.stderr,
        ) as bar,
    ):
        for done, index in enumerate(share[first:], start=first + 1):
            input_ids, attention_mask = pad_batch(plan.corpus, plan.batches[index])
            labels = plan.batch(index)
            with probe.batch(labels):
                model(input_ids=input_ids.to(device), attention_mask=attention_mask.to(device))
            if done == first + 1:
                probe.check()  # unusable hidden states show here, not after hours
            bar.update(labels.n_tokens)
            if after_batch is not None:
                after_batch(done)


@contextmanager
def _quiet_matmul() -> Iterator[None]:
    """Bitsandbytes says at each multiplication in 8 bits that it rounds to float16: a line a matrix and batch."""
    logger = logging.getLogger("bitsandbytes.autograd._functions")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class SnapshotTimer:
    """Called after each batch, writes a snapshot when one is due or the run is asked to stop.

    Args:
        start: how far the run was when this process took it up.
        minutes: between snapshots; 0 writes one only when asked to stop.
        say: told what could not be written.

    Raises:
        Interrupted: when called after a request to stop.
    """

    def __init__(
        self,
        snapshots: Snapshots,
        probe: SoftEntropyProbe,
        start: Progress,
        stop: StopRequests,
        *,
        n_batches: int,
        minutes: float,
        say: Callable[[str], None],
    ) -> None:
        self._snapshots, self._probe, self._stop, self._say = snapshots, probe, stop, say
        self._start, self._n_batches = start, n_batches
        self._interval = 60 * minutes if minutes else np.inf
        self._began = time.monotonic()
        self._due = self._began + self._interval
        self._written = start.batches

    @property
    def seconds(self) -> float:
        """That the forward pass took so far, in all processes."""
        return self._start.seconds + time.monotonic() - self._began

    def __call__(self, batches: int) -> None:
        if batches < self._n_batches and (self._stop.requested or time.monotonic() >= self._due):
            self._write(batches)
        if batches < self._n_batches:
            self._end_if_asked()

    def wait(self, processes: Processes) -> None:
        """After the last batch: wait for the other processes; if one is lost, what was measured here is not.

        Raises:
            LostProcessError, or Interrupted after a request to stop.
        """
        try:
            processes.wait()
        except LostProcessError:
            self._write(self._n_batches)
            self._end_if_asked()
            raise

    def _end_if_asked(self) -> None:
        if self._stop.requested:
            where = f"after {self._written:,} of {self._n_batches:,} batches; the same command goes on from there"
            raise Interrupted(self._stop.requested, where if self._written else "and could not write a snapshot")

    def _write(self, batches: int) -> None:
        started = time.monotonic()
        progress = Progress(
            run=self._start.run, batches=batches, seconds=self.seconds, interruptions=self._start.interruptions
        )
        try:
            self._snapshots.write(self._probe, progress)
            self._written = batches
        except OSError as error:
            self._say(f"warning: no snapshot could be written ({error}); going on")
        took = time.monotonic() - started
        self._due = time.monotonic() + max(self._interval, took / MOST_OF_TIME)
