"""Add batches of hidden states to the sums of their layers, where a source of labels says: the one way to do so.

Hooks bring the states of a forward pass layer by layer (`softh_probe.hooks.recorder`); a meter is given those of all
layers at once (`softh_probe.hooks.piece_recorder`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from softh_probe.accumulators.batch import BatchAccumulator
from softh_probe.accumulators.centers import n_positions
from softh_probe.accumulators.dispatch import Dispatch, Regrouping
from softh_probe.accumulators.model_sums import ModelSums
from softh_probe.choices import Choices
from softh_probe.errors import ProbeError
from softh_probe.hooks.label_source import BatchSource


class BatchRecorder:
    """Add hidden states to the sums of their layers, and count their positions.

    Args:
        source: the labels of each batch.
        sums: the sums of every layer.
        centers: whether states minus their mean are measured, too, as rows of their own.

    Attributes:
        n_blocks: block calls of a forward pass, as far as they are known; 0 where they are not.
        positions, tokens: counted so far.
        problems: errors so far, as one line each.
        choices: what was chosen for the user; warned of at once.
        make_accumulator: makes the accumulator of each batch that is fed.
        centered_on: positions whose mean is subtracted in rows of centered states; 0 before any.
    """

    def __init__(self, source: BatchSource, sums: ModelSums, *, centers: bool = False) -> None:
        self.n_blocks = 0
        self.positions = self.tokens = self.centered_on = 0
        self._centers = centers
        self.problems: list[str] = []
        self.choices = source.choices
        self.make_accumulator: Callable[[Dispatch], BatchAccumulator] = BatchAccumulator
        self._source, self._sums = source, sums
        self._steps: dict[str, list[Tensor]] = {}

    def wants(self, layer: str) -> bool:
        """Whether a layer is to be measured."""
        raise NotImplementedError

    def flush(self) -> None:
        """Count all that can be counted without another forward pass; one in another thread is waited for."""
        with self._source.lock:
            self._source.flush()
            self.drain()

    def drain(self) -> None:
        """Apply what is ready, in its order, then drop the waiting positions of sequences that ended."""
        ended = self._source.take_ended()
        for ready in self._source.take_ready():
            if isinstance(ready, Regrouping):
                self._sums.regroup(ready)
                continue
            accumulator = BatchAccumulator(ready)
            if ready.shape[1]:
                self._add_steps(accumulator)
            else:
                self._add_waiting(accumulator)
            self._finish(accumulator)
        self._sums.drop(ended)

    # --- what results say of it -------------------------------------------------------------------------------

    def choices_made(self) -> list[dict[str, Any]]:
        """Give all choices as JSON values."""
        return self.choices.to_json()

    def notes(self) -> dict[str, Any]:
        """Give choices and counts as JSON values, for `add_notes`."""
        found: dict[str, Any] = {"choices": self.choices.to_json()}
        return {**found, **({"centered_on": self.centered_on} if self.centered_on else {})}

    def add_notes(self, notes: Mapping[str, Any]) -> None:
        """Add those of another part of the same measurement; states of earlier versions have none."""
        self.choices.update(Choices.from_json(notes.get("choices", ())))
        self.centered_on = self.centered_on or notes.get("centered_on", 0)

    # --- problems ---------------------------------------------------------------------------------------------

    def note(self, problem: Exception, where: str) -> None:
        """Keep a problem for the end of the block: an evaluation does not fail because it is measured."""
        known = isinstance(problem, ProbeError)
        if self._source.fails_fast and not known:
            raise problem
        self.problems.append(str(problem) if known else f"{where}: {type(problem).__name__}: {problem}")

    def raise_problems(self) -> None:
        """Raise ProbeError if there was any problem; names the first three."""
        if self.problems:
            distinct = list(dict.fromkeys(self.problems))
            more = f"; and {len(distinct) - 3} more" if len(distinct) > 3 else ""
            raise ProbeError("; ".join(distinct[:3]) + more)

    # --- parts ------------------------------------------------------------------------------------------------

    def _queue_step(self, rows: Iterable[str], hidden: Tensor) -> None:
        """Keep the hidden states of a decode step for the rows of a layer, to be added together with others."""
        step = hidden.detach().clone()
        for row in rows:
            self._steps.setdefault(row, []).append(step)

    def _add(self, accumulator: BatchAccumulator, rows: Iterable[str], hidden: Tensor) -> None:
        """Add the hidden states of a layer to its rows, with other anchors too where they are counted."""
        for row in rows:
            for sums in (self._sums, *self._sums.others) if accumulator.counts else (self._sums,):
                accumulator.add(sums.of(row, hidden, self.expected_layers), hidden)

    def expected_layers(self) -> Mapping[str, tuple[int | None, torch.device]]:
        """Find width and device of the layers that are measured, in their order, as far as they are known."""
        raise NotImplementedError

    def _add_waiting(self, accumulator: BatchAccumulator) -> None:
        """Add positions that waited to every layer, without a forward pass."""
        try:
            for sums in (self._sums, *self._sums.others):
                for layer in sums.measured:
                    accumulator.add_waiting_only(sums[layer])
        except Exception as problem:
            self.note(problem, "labels")

    def _add_steps(self, accumulator: BatchAccumulator) -> None:
        """Add the hidden states of decode steps that were kept to be added together."""
        n_steps = accumulator.dispatch.shape[1]
        steps, self._steps = self._steps, {}
        for layer, parts in steps.items():
            try:
                if len(parts) < n_steps:
                    raise ProbeError(f"{layer}: expected {n_steps} steps, got {len(parts)}")
                hidden = torch.stack([step.flatten(0, -2) for step in parts[:n_steps]], dim=1)
                self._add(accumulator, [layer], hidden)
                if parts[n_steps:]:
                    self._steps[layer] = parts[n_steps:]
            except Exception as problem:
                self.note(problem, layer)

    def _finish(self, accumulator: BatchAccumulator, *, counts: bool = True) -> None:
        """Add what is left of a batch, and count it; rows move also in layers that it was not added to."""
        if accumulator.counts and self._centers and not self.centered_on:
            self.centered_on = n_positions(accumulator.dispatch)
        try:
            accumulator.finish()
            self._sums.move_rows(accumulator.dispatch, accumulator.changed, accumulator.added)
        except Exception as problem:
            self.note(problem, "sums")
        if counts and accumulator.counts:
            self.positions += accumulator.dispatch.n_counted
            self.tokens += accumulator.dispatch.n_tokens
