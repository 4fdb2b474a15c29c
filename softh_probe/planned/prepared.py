"""The plan of a run, computed or from the cache."""

from __future__ import annotations

import dataclasses

import numpy as np

from softh_probe.cache import Cache, cache_folder, key_of
from softh_probe.config import RunConfig, tokens_per_batch_on
from softh_probe.data.corpus import Corpus, length_batches
from softh_probe.errors import InputError
from softh_probe.hashing import arrays_sha256
from softh_probe.kept import Kept
from softh_probe.labels import parse_label_sets
from softh_probe.planned.plan import Plan
from softh_probe.planned.population import Population
from softh_probe.planned.position_bins import plan_bins
from softh_probe.planned.row_allocation import RowAllocation

#: Ways to group documents into batches: of similar lengths, with padding; of equal lengths, without; one by one.
PADDED, EQUAL_LENGTHS, SINGLE_DOCUMENTS = BATCHINGS = ("padded", "equal lengths", "single documents")


def batch_documents(
    config: RunConfig, corpus: Corpus, batching: str = PADDED, among: np.ndarray | None = None
) -> list[np.ndarray]:
    """Group the documents that have a position that counts into batches.

    Args:
        config: the run.
        corpus: the documents.
        batching: one of the `BATCHINGS`.
        among: bool [n_documents], those to group; None groups all.
    """
    keep = Population(corpus, parse_label_sets(config.labels)).counts() > 0
    keep = keep if among is None else keep & among
    tokens_per_batch = config.tokens_per_batch or tokens_per_batch_on("cpu")
    if batching == SINGLE_DOCUMENTS:
        tokens_per_batch = 1
    return length_batches(corpus.lengths, tokens_per_batch, keep, equal=batching == EQUAL_LENGTHS)


def plan_run(
    config: RunConfig, corpus: Corpus, n_processes: int = 1, batching: str = PADDED, kept: Kept | None = None
) -> Plan:
    """Group a corpus into batches and allocate the rows of its labels, or load the allocation from the cache.

    Args:
        config: the run's configuration: label sets, their rows, seed, tokens of a batch, bins of positions, cache.
        corpus: the tokenised documents.
        n_processes: processes that share the batches.
        batching: one of the `BATCHINGS`.
        kept: keeps the allocation in memory, for the runs that follow.

    Raises:
        InputError: the corpus gives fewer batches than there are processes.
    """
    label_sets = parse_label_sets(config.labels)
    batches = batch_documents(config, corpus, batching)
    if 0 < len(batches) < n_processes:
        tokens_per_batch = config.tokens_per_batch or tokens_per_batch_on("cpu")
        raise InputError(
            f"tokens_per_batch: the corpus makes {len(batches)} batches of up to {tokens_per_batch:,} tokens, for "
            f"{n_processes} processes; start fewer, or set --tokens-per-batch lower"
        )
    cache = Cache(cache_folder(config.cache), kept)
    key = key_of(
        corpus=corpus.sha256,
        columns=arrays_sha256(*(column.ids for column in corpus.columns.values())),
        counted=corpus.counted_sha256,
        labels=config.labels,
        per_label=config.per_label,
        batches=arrays_sha256(*batches) if batches else "",
        shares=n_processes,
        sample=None if config.label_rows == "all" else (config.label_rows, config.seed),
        intervals=config.intervals,
        arrays=[field.name for field in dataclasses.fields(RowAllocation)],
    )
    stored = cache.load("plan", key)
    allocation = RowAllocation.from_arrays(stored[0]) if stored else None
    plan = Plan(
        corpus,
        label_sets,
        batches,
        config.per_label,
        allocation,
        n_processes,
        label_rows=config.label_rows,
        seed=config.seed,
        within=config.permute_within,
        intervals=config.intervals,
    )
    if not stored:
        cache.store("plan", key, plan.allocation.arrays(), {})
    if config.by_position:
        plan.bins = plan_bins(
            plan,
            batches,
            config.per_label,
            n_processes,
            label_rows=config.label_rows,
            seed=config.seed,
            within=config.permute_within,
        )
    return plan
