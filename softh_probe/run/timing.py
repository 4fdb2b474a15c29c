"""The time that a run will take, from a few of its batches that are measured beforehand."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

from softh_probe.config import RunConfig
from softh_probe.errors import SofthProbeError
from softh_probe.models.placement import synchronize
from softh_probe.models.source import ModelSource, weights_at_hand
from softh_probe.probe import SoftEntropyProbe
from softh_probe.run.feed import Feed
from softh_probe.run.forward import Batch, run_batches
from softh_probe.run.pipeline import load_model, new_probe
from softh_probe.run.provenance import check_model

#: Batches that are timed, and seconds after which no other one is begun.
_MOST_BATCHES, _ENOUGH_SECONDS = 5, 20.0


class Timing(NamedTuple):
    """How long a run takes.

    Attributes:
        seconds: of all forward passes of one process, expected; None where nobody knows how many tokens come.
        tokens_per_second: of one process, with the probe.
        batches: the number of batches that this was measured on.
        load_seconds: that the weights took to load.
        device: of the model's first weight.
    """

    seconds: float | None
    tokens_per_second: float
    batches: int
    load_seconds: float
    device: str


def time_run(config: RunConfig, source: ModelSource, feed: Feed, device_map: str | None) -> Timing | str:
    """Load the weights and measure a few batches, evenly chosen where the whole corpus is known.

    Args:
        config: the run, with `tokens_per_batch` and `max_length`.
        source: the checkpoint.
        feed: documents and batches, which nobody reads afterwards.
        device_map: where the weights go.

    Returns:
        The time expected, or the reason why it is not known.
    """
    kwargs = config.model_kwargs or {}
    if not weights_at_hand(source, config.allow_pickle, variant=kwargs.get("variant")):
        return "the weights are not on this machine yet"
    start = time.perf_counter()
    try:
        checkpoint = load_model(config, source, device_map)
        loaded = time.perf_counter()
        with checkpoint:
            probe = new_probe(config, checkpoint.model, feed.rows)
            batches = feed.some_batches(_MOST_BATCHES, partial(check_model, checkpoint))
            spent = _time_batches(probe, checkpoint.model, batches)
    except SofthProbeError as error:
        return str(error)
    rate = sum(n for n, _ in spent) / sum(seconds for _, seconds in spent)
    return Timing(
        seconds=None if feed.n_tokens is None else feed.n_tokens / rate,
        tokens_per_second=rate,
        batches=len(spent),
        load_seconds=loaded - start,
        device=checkpoint.info["devices"][0],
    )


def _time_batches(probe: SoftEntropyProbe, model: Any, batches: Iterator[Batch]) -> list[tuple[int, float]]:
    """Measure the tokens and the seconds of each batch; the first one runs twice, since a first pass is slow."""
    spent: list[tuple[int, float]] = []
    begun = time.perf_counter()

    def measured() -> Iterator[Batch]:
        yield (first := next(batches))
        batch: Batch | None = first
        while batch is not None and time.perf_counter() - begun < _ENOUGH_SECONDS:
            synchronize()
            start = time.perf_counter()
            yield batch
            synchronize()
            spent.append((batch.labels.n_tokens, time.perf_counter() - start))
            batch = next(batches, None)

    run_batches(probe, model, measured(), progress=False)
    return spent
