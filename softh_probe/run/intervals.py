"""Intervals of a planned run: a second forward pass over documents, with the final p̂, and what follows from it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from softh_probe.accumulators.influence_sums import DocumentSums
from softh_probe.analysis.intervals import MeasuredValues, influence_names, influences, standard_errors
from softh_probe.choices import Choices
from softh_probe.config import RunConfig
from softh_probe.errors import Interrupted, LostProcessError
from softh_probe.influence import DocumentInfluence
from softh_probe.planned.plan import Plan
from softh_probe.planned.prepared import batch_documents
from softh_probe.planned.second_pass import SecondPass
from softh_probe.probe import SoftEntropyProbe
from softh_probe.result import ProbeResult
from softh_probe.run.forward import Batch, measurer, run_batches
from softh_probe.run.processes import Processes
from softh_probe.run.signals import StopRequests

#: With fewer units, standard errors are warned of.
FEW_UNITS = 20


def with_intervals(
    result: ProbeResult | None,
    config: RunConfig,
    plan: Plan,
    probe: SoftEntropyProbe,
    model: Any,
    *,
    batching: str,
    processes: Processes,
    stop: StopRequests,
    progress: bool,
) -> ProbeResult | None:
    """Run the second pass over this process's share of its batches, and add standard errors to the result.

    Args:
        result: that of all processes; None in those that are not the first.
        config: the run.
        plan: its plan.
        probe: it has measured all batches, and the sums in it are those of all processes.
        model: the model's backbone.
        batching: one of the `BATCHINGS`.
        processes: those that share the batches.
        stop: requests to stop.
        progress: show a progress bar.

    Raises:
        Interrupted: asked to stop; the snapshot of the first pass is where the run goes on.
    """
    started = time.perf_counter()
    values = processes.from_first(None if result is None else MeasuredValues.of(result))
    second = SecondPass(plan, config.interval_documents)
    groups = batch_documents(config, plan.corpus, batching, among=second.is_measured)
    mine = groups[processes.share :: processes.n_shares]
    found = _Influences(second, values, len(probe.layers))

    def after_batch(done: int) -> None:
        if sums is not None:
            found.add(mine[done - 1], sums.take())
        if asked := processes.stop_together(stop.requested):
            raise _interrupted(asked)

    with probe.second_pass() if processes.measures else nullcontext() as sums:
        run_batches(
            measurer(probe, processes),
            model,
            _batches(plan, second, mine),
            n_tokens=lambda: sum(int(plan.corpus.lengths[windows].sum()) for windows in mine),
            after_batch=after_batch,
            progress=progress,
            stage="intervals",
            processes=processes,
        )
    try:
        found.gather(processes)
    except LostProcessError as error:
        if stop.requested:
            raise _interrupted(stop.requested) from error
        raise
    if result is None:
        return None
    influence = found.influence(result.rows)
    result.tensors.update(standard_errors(influence, result.label_sets))
    result.info["intervals"] = {
        "documents": len(second.documents),
        "of_documents": second.n_documents,
        "units": len(np.unique(second.units)),
        "of_units": second.n_units,
        "sets": second.measured,
        "seconds": time.perf_counter() - started,
    }
    choices = Choices.from_json(result.info["choices"])
    n_units = result.info["intervals"]["units"]
    if n_units < 2:
        choices.add("intervals", "not known", "they are over rows of the data, of which one counts")
    elif n_units < FEW_UNITS:
        reason = f"they are over {n_units} rows of the data; of fewer than {FEW_UNITS}, se comes out too small"
        choices.add("intervals", "rough", reason)
    result.info["choices"] = choices.to_json()
    return replace(result, influence=influence)


def _batches(plan: Plan, second: SecondPass, groups: list[np.ndarray]) -> Iterator[Batch]:
    for windows in groups:
        yield Batch(plan.corpus, windows, second.batch(windows))


def _interrupted(signal: int) -> Interrupted:
    return Interrupted(signal, "in the pass for intervals; the same command resumes with that pass")


class _Influences:
    """Collects the influences of documents from the sums of batches."""

    def __init__(self, second: SecondPass, values: MeasuredValues, n_rows: int) -> None:
        self._second, self._values = second, values
        names = influence_names(values.label_sets, second.measured)
        self._found = {name: torch.zeros(n_rows, len(second.documents), dtype=torch.float64) for name in names}

    def add(self, windows: np.ndarray, sums: DocumentSums) -> None:
        """Add the windows of a batch to their documents."""
        documents = torch.from_numpy(self._second.document_of[windows])
        labelled_BX = torch.from_numpy(self._second.labelled(windows))
        for name, psi_RB in influences(sums, labelled_BX, self._values, self._second.measured).items():
            self._found[name].index_add_(1, documents, psi_RB)

    def gather(self, processes: Processes) -> None:
        """Add up what all processes that measure found, in the first one."""
        for psi_RD in self._found.values() if processes.measures else ():
            processes.add_others(psi_RD)

    def influence(self, rows: list[str]) -> DocumentInfluence:
        """Give the influences as a result holds them."""
        second = self._second
        return DocumentInfluence(
            rows=rows,
            documents=second.documents,
            keys=second.keys,
            units=second.units,
            positions=second.positions,
            n_documents=second.n_documents,
            n_units=second.n_units,
            n_positions=self._values.n_positions,
            values={name: psi_RD.numpy() for name, psi_RD in self._found.items()},
        )
