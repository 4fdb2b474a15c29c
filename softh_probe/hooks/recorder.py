"""Record one forward pass after the other: hidden states in, running sums out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from softh_probe.accumulators.dispatch import DecodeStep, Dispatch
from softh_probe.accumulators.model_sums import ModelSums
from softh_probe.choices import Choices
from softh_probe.errors import ProbeError
from softh_probe.hooks.batch_recorder import BatchRecorder
from softh_probe.hooks.callers import modules_that_run
from softh_probe.hooks.forward_pass import ForwardPass, ThreadsPass
from softh_probe.hooks.hook_points import HookPoints, count_calls, hidden_state
from softh_probe.hooks.label_source import LabelSource
from softh_probe.hooks.left_out import LAYERS_ALONE, PAUSED, LeftOut
from softh_probe.hooks.outputs import OutputReader
from softh_probe.hooks.pass_checks import DATA_PARALLEL, PassChecks
from softh_probe.hooks.sites import Site
from softh_probe.layer_places import EMBEDDINGS, FINAL_NORM, block_name

#: Seconds that a forward pass waits for one in another thread.
PATIENCE_S = 600.0


class Recorder(BatchRecorder):
    """Add the hidden states of each forward pass to the sums of their layers, where the label source says.

    Hooks call `begin`, then `hidden`, `block` or `norm` for each layer, then `end`. Nothing here raises into the model
    that is being run: problems are kept for `raise_problems`, unless the label source fails fast. Forward passes of
    several threads are recorded one after the other.

    Args:
        source: the labels of each forward pass.
        sums: the sums of every layer.
        points: the hooked modules.

    Attributes:
        layers: names of the layers to measure; None measures all.
        left_out: forward passes that did not count.
    """

    _source: LabelSource

    def __init__(self, source: LabelSource, sums: ModelSums, points: HookPoints) -> None:
        super().__init__(source, sums, centers=points.centers)
        self.layers: Collection[str] | None = None
        self.n_blocks = count_calls(points)
        self.left_out = LeftOut()
        self._points = points
        self._readers = {
            layer: OutputReader(layer, output, points.entry, self.choices) for layer, output in points.outputs.items()
        }
        self._thread = ThreadsPass()
        self._checks = PassChecks(points, finds_layout=bool(self._readers))

    def wants(self, layer: str) -> bool:
        """Whether a layer is to be measured."""
        return self._points.measures(layer) if self.layers is None else layer in self.layers

    @property
    def measures_sites(self) -> bool:
        """Whether a block that counts runs in this thread."""
        return self._pass is not None and self._pass.block is not None

    def expected_layers(self) -> dict[str, tuple[int | None, torch.device]]:
        """Find width and device of the rows that are measured, in their order, as far as they are known beforehand."""
        widths = self._points.layer_widths(self.n_blocks)
        devices = self._points.layer_devices(self.n_blocks)
        return {row: (widths.get(row), device) for row, device in devices.items() if self.wants(row)}

    # --- a forward pass ---------------------------------------------------------------------------------------

    @contextmanager
    def turn(self) -> Iterator[bool]:
        """Wait until no other thread's forward pass is under way; False where it does not end."""
        is_ours = self._source.lock.acquire(timeout=PATIENCE_S)
        if not is_ours:
            self.problems.append(
                f"the model is run by several threads, and a forward pass waited {PATIENCE_S:g} s for that of another "
                "thread, so it was not measured; run the model in one thread at a time"
            )
        try:
            yield is_ours
        finally:
            if is_ours:
                self._source.lock.release()

    @contextmanager
    def aside(self, reason: str = PAUSED) -> Iterator[None]:
        """Run a forward pass that does not count, for a reason."""
        self.left_out.add(reason)
        thread = self._thread
        before = self._pass, thread.is_inside
        self._pass, thread.is_inside = None, True
        try:
            yield
        finally:
            self._pass, thread.is_inside = before

    def begin(self, inputs: Callable[[], Mapping[str, Any]], outer: Mapping[str, Any]) -> None:
        """Begin a forward pass that counts, in its `turn`.

        Args:
            inputs: gives the backbone's arguments by name; outer: those of the model around it.
        """
        self.drain()
        self._thread.is_inside = True
        try:
            self._pass = ForwardPass(self._source.begin(inputs(), outer), self.make_accumulator)
        except Exception as problem:
            self.note(problem, "labels")
        self.drain()

    def arrive(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, at_norm: bool = False) -> None:
        """Record what the model hands to a block or norm that it calls, before hooks of others change it."""
        current = self._pass
        if current is None or (at_norm and current.pending is None):
            return
        layer = FINAL_NORM if at_norm else block_name(current.n_block_calls + 1)
        try:
            state = hidden_state(args or kwargs, layer)  # it comes first, or by its name
            current.arrive(state)
            if not at_norm:
                current.chain.take(state)
        except Exception as problem:
            self.note(problem, layer)

    def enter(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, at_norm: bool = False) -> None:
        """Record what a block takes, or a norm: the state of the block before it, or that of the embeddings."""
        current = self._pass
        if current is None or (at_norm and current.n_block_calls < self.n_blocks):
            return
        taken = args or kwargs
        if (state := current.settle(taken)) is not None:
            self.hidden(*state)
        if at_norm:
            return
        if not current.n_block_calls:
            self.hidden(EMBEDDINGS, taken)
        current.block = block_name(current.n_block_calls + 1)

    def site(self, site: Site, value: object) -> None:
        """Record the states of a site of the block that runs; other calls of its module do not count."""
        current = self._pass
        if current is None or current.block is None:
            return
        layer, *_ = rows = site.rows(current.block)
        if not any(map(self.wants, rows)):
            current.layers.update(dict.fromkeys(rows))
            return
        try:
            states = list(site.states(current.block, hidden_state(value, layer), current.shapes[0]))
        except Exception as problem:
            self.note(problem, layer)
            return
        for row, hidden in states:
            self.hidden(row, hidden)

    def block(self, output: object, *, awaits_next: bool = False) -> None:
        """Record the state that a transformer block gave.

        Args:
            output: what the block gave.
            awaits_next: whether hooks of others may change it as the next block takes it.
        """
        current = self._pass
        if current is None:
            self._note_alone()
            return
        current.n_block_calls += 1
        current.block = None
        layer = block_name(current.n_block_calls)
        if awaits_next:
            current.pending = layer, output
        else:
            self.hidden(layer, output)
        if isinstance(current.labels, DecodeStep):  # the sequences' first pass has confirmed the blocks
            return
        try:
            current.last = output
            current.chain.give(hidden_state(output, layer))
        except Exception as problem:
            self.note(problem, layer)

    def norm(self, output: object) -> None:
        """Record a call of a norm: after the last block it is the final one."""
        current = self._pass
        if current is not None and current.n_block_calls >= self.n_blocks:
            if self.layers is None and current.has_pooled(output):  # a class token's, in vision models
                self.choices.add(FINAL_NORM, "not measured", "it gives one state for each sequence", certain=True)
                return
            current.last = output
            self.hidden(FINAL_NORM, output)

    def hidden(self, layer: str, value: object) -> None:
        """Add one layer's hidden states; those of a decode step are kept, to be added together with others."""
        current = self._pass
        if current is None:
            self._note_alone()
            return
        if layer in current.layers:
            self.problems.append(f"{layer}: called twice in a forward pass; its calls are of different depth")
            return
        rows = self._points.rows_of(layer)
        current.layers.update(dict.fromkeys(rows))
        wanted = [row for row in rows if self.wants(row)]
        if not wanted:
            return
        try:
            hidden = self._states(layer, value, current)
            if isinstance(current.labels, DecodeStep):
                self._queue_step(wanted, hidden)
            else:
                self._add(current.accumulator, wanted, hidden)
        except Exception as problem:
            self.note(problem, layer)

    def named_input(self, layer: str, given: Callable[[], Mapping[str, Any]]) -> None:
        """Note the arguments of a named module, which may tell of padding."""
        if self._pass is not None:
            self._pass.given[layer] = given()

    def end(self, output: Any) -> None:
        """End a forward pass, counted or not; `output` is None where it failed."""
        current = self._pass
        if current is not None and (state := current.settle()) is not None:
            self.hidden(*state)
        self._pass, self._thread.is_inside = None, False
        if current is not None and isinstance(current.labels, Dispatch):
            self._finish(current.accumulator, counts=bool(current.layers))
        if current is not None and isinstance(current.labels, DecodeStep) and output is None:
            for layer in current.layers:
                if self._steps.get(layer):
                    self._steps[layer].pop()
        self._source.finish(output)
        self.drain()
        if current is not None:
            self.n_blocks = max(self.n_blocks, current.n_block_calls)
            self.problems += self._checks.problems(current, self.n_blocks, output)

    def discard(self) -> None:
        """Give up the forward pass under way, and all sequences whose caches may be fed again."""
        current, self._pass = self._pass, None
        if current is not None and isinstance(current.labels, Dispatch):
            self._sums.move_rows(current.labels, current.accumulator.changed, current.accumulator.added)
        self._source.reset()
        self.drain()

    # --- what results say of it -------------------------------------------------------------------------------

    def choices_made(self) -> list[dict[str, Any]]:
        """Give all choices as JSON values, those of forward passes that did not count among them."""
        return Choices([*self.choices, *self.left_out.choices()]).to_json()

    def notes(self) -> dict[str, Any]:
        """Give choices and counts as JSON values, for `add_notes`."""
        left_out = self.left_out.to_json()
        return {**super().notes(), **({"left_out": left_out} if left_out else {})}

    def add_notes(self, notes: Mapping[str, Any]) -> None:
        """Add those of another part of the same measurement; states of earlier versions have none."""
        super().add_notes(notes)
        self.left_out.update(notes.get("left_out", {}))

    # --- problems ---------------------------------------------------------------------------------------------

    def note_unseen(self, problem: str) -> None:
        """Keep the problem that a forward pass computes something that hooks do not see."""
        if self._pass is not None:
            self.problems.append(problem)

    def note_replica(self) -> None:
        """Keep the problem that copies of the model run, which nobody looks into."""
        self.problems.append(DATA_PARALLEL)

    # --- parts ------------------------------------------------------------------------------------------------

    @property
    def _pass(self) -> ForwardPass | None:
        """The forward pass of this thread that counts."""
        return self._thread.forward_pass

    @_pass.setter
    def _pass(self, forward_pass: ForwardPass | None) -> None:
        self._thread.forward_pass = forward_pass

    def _states(self, layer: str, value: object, current: ForwardPass) -> Tensor:
        """Find the hidden states of a layer, whose shape is that of the forward pass; the first ones determine it."""
        reader = self._readers.get(layer)
        shape = None if current.labels is None else current.labels.shape
        found = value if layer in self._points.modules else hidden_state(value, layer)
        hidden, real_BT = (hidden_state(found, layer), None) if reader is None else reader.read(found, shape)
        if hidden.is_mps:
            hidden = hidden.cpu()  # Apple's GPUs have no float64
        given = current.given.pop(layer, {})
        if current.labels is None and hidden.ndim not in (2, 3):
            raise ProbeError(
                f"{layer}: expected hidden states [B, T, D] or [B, D], got {list(hidden.shape)}; name the modules with "
                "their layout: modules={name: (module, None, 'BCHW')}, or 'BHWC'"
            )
        if current.labels is None:
            current.labels = self._source.begin_positions(tuple(hidden.shape[:-1]), given, real_BT)
            if real_BT is not None:
                hidden = torch.nn.functional.pad(hidden, (0, 0, 0, current.labels.shape[1] - hidden.shape[1]))
        elif given or real_BT is not None:
            self._source.check_padding(given, real_BT)
        if hidden.shape[:-1] not in (expected := current.shapes):
            remedy = "; measure modules that give other positions with a probe of their own" if reader else ""
            raise ProbeError(f"{layer}: expected hidden states {[*expected[0], 'D']}, got {list(hidden.shape)}{remedy}")
        if reader is not None and self._source.tells_positions_apart:
            reader.confirm(tuple(hidden.shape[:-1]))
        return hidden

    def _note_alone(self) -> None:
        """Count the call of a layer outside of a forward pass."""
        entry = self._points.entry
        if self._thread.is_inside or self._source.is_paused or entry.training:
            return
        if all(module is not entry for module in modules_that_run()):  # else it began before the block
            self.left_out.add(LAYERS_ALONE)
