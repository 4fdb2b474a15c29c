"""Install hooks on a model, and remove them without a trace."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from softh_probe.attached.inputs import arguments
from softh_probe.errors import ProbeError
from softh_probe.hooks.active_adapters import ActiveAdapters
from softh_probe.hooks.callers import is_run_by_another, modules_that_run
from softh_probe.hooks.edges import AfterCall, BeforeCall, HookEdges
from softh_probe.hooks.hook_points import HookPoints
from softh_probe.hooks.label_source import LabelSource
from softh_probe.hooks.left_out import NESTED, OTHER_ADAPTERS, OTHER_MODEL, OTHER_PROBE, PAUSED, TRACED, TRAINING
from softh_probe.hooks.recorder import Recorder
from softh_probe.hooks.seats import Seat, seats_of
from softh_probe.hooks.site_hooks import site_edges
from softh_probe.patching import copies_unchanged, replaced, uncompiled

#: The modules that are measured by blocks of a thread, with repeats.
_measured_in: defaultdict[int, list[nn.Module]] = defaultdict(list)


class ForwardHooks:
    """Hooks on the blocks, norms or named modules of a model; they observe, and hand everything to a recorder.

    Args:
        model: the model that is run.
        points: the modules to hook.
        source: follows what the code around the model does.
        recorder: records what the hooks see.
    """

    def __init__(self, model: nn.Module, points: HookPoints, source: LabelSource, recorder: Recorder) -> None:
        self._model, self._points, self._source, self._recorder = model, points, source, recorder
        self._installed: ExitStack | None = None
        self._caller = _Caller()
        self._parts: set[int] = set()
        self._adapters: ActiveAdapters | None = None
        self._thread = 0
        self._edges: list[HookEdges] = []
        self._site_edges: list[HookEdges] = []
        self._seats: list[Seat] = []

    def attach(self) -> None:
        """Install all hooks, or none if one of them cannot be.

        Raises:
            ProbeError: the hooks are installed already.
        """
        if self._installed is not None:
            raise ProbeError("the probe is already attached; leave its block before entering it again")
        self._installed = ExitStack()
        try:
            with self._recorder.turn():
                self._install(self._installed)
        except BaseException:
            self.detach()
            raise

    def detach(self) -> None:
        """Remove the hooks; the model is as it was. A forward pass in another thread is waited for."""
        with self._recorder.turn():
            if self._installed is not None:
                self._installed.close()
                self._installed = None
            self._recorder.discard()
        self._caller = _Caller()
        self._recorder.left_out.warn()

    def _install(self, installed: ExitStack) -> None:
        points = self._points
        outer = self._outer_modules()
        self._thread = threading.get_ident()
        measured = _measured_in[self._thread]
        measured.append(points.entry)
        installed.callback(measured.remove, points.entry)
        self._parts = {id(module) for module in self._model.modules()}
        self._adapters = ActiveAdapters(points.entry, outer)
        installed.enter_context(uncompiled())
        installed.enter_context(self._source.follow(self._model))
        measured_modules = [*points.modules.values(), *points.blocks, *points.norms, *points.site_modules]
        changed = [*outer, points.entry, *measured_modules]
        installed.enter_context(copies_unchanged(dict.fromkeys(changed), self._recorder.note_replica))
        # Forward methods are wrapped, since some callers call them past the module's hooks.
        for module in outer:
            installed.enter_context(replaced(module, "forward", partial(self._outer_forward, module)))
        installed.enter_context(replaced(points.entry, "forward", self._entry_forward))
        self._seats = seats_of(self._model, measured_modules)
        self._edges, self._site_edges = self._hook_edges(), site_edges(points, self._recorder, self._note_late_hook)
        for hooks in (self._edges, self._site_edges):
            installed.callback(hooks.clear)  # they hold this object
            for edges in hooks:
                installed.enter_context(edges.installed())

    def _hook_edges(self) -> list[HookEdges]:
        """Make the hooks of named modules, blocks and norms."""
        points, recorder = self._points, self._recorder
        named = [
            HookEdges(
                module,
                enter=partial(self._before_module, name, module),
                leave=self._after_entry if module is points.entry else partial(recorder.hidden, name),
                unseen=self._note_late_hook,
            )
            for name, module in points.modules.items()
        ]
        at_norm = partial(recorder.arrive, at_norm=True), partial(recorder.enter, at_norm=True)
        norms = [self._edges_of(norm, *at_norm, recorder.norm) for norm in points.norms]
        blocks = [
            self._edges_of(block, recorder.arrive, recorder.enter, partial(self._after_block, len(named) + i))
            for i, block in enumerate(dict.fromkeys(points.blocks))
        ]
        return named + blocks + norms

    def _edges_of(self, module: nn.Module, arrive: BeforeCall, enter: BeforeCall, leave: AfterCall) -> HookEdges:
        return HookEdges(module, arrive=arrive, enter=enter, leave=leave, unseen=self._note_late_hook)

    def _outer_modules(self) -> list[nn.Module]:
        """List the model and its parts that hold the backbone."""
        entry = self._points.entry
        if self._model is entry:
            return []
        inside = {id(module) for module in entry.modules()}
        return [
            module
            for module in self._model.modules()
            if id(module) not in inside and any(part is entry for part in module.modules())
        ]

    def _outer_forward(self, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        caller = self._caller
        before, entered = caller.arguments, caller.entered
        inner = {name: value for name, value in arguments(module, args, kwargs).items() if value is not None}
        caller.arguments = {**before, **inner, **{k: v for k, v in before.items() if k == "input_ids"}}
        caller.entered = (*entered, module)
        try:
            return forward(*args, **kwargs)
        finally:
            caller.arguments, caller.entered = before, entered

    def _entry_forward(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if (reason := self._why_not_counted()) is not None:
            with self._recorder.aside(reason):
                return forward(*args, **kwargs)
        with self._recorder.turn() as is_ours:
            if not is_ours:
                with self._recorder.aside():
                    return forward(*args, **kwargs)
            return self._counted_forward(forward, *args, **kwargs)

    def _why_not_counted(self) -> str | None:
        """Find the reason why the forward pass that begins does not count; None where it does."""
        entry, thread = self._points.entry, threading.get_ident()
        if self._source.is_paused:
            return PAUSED
        if entry.training:
            return TRAINING
        if torch.jit.is_tracing() or torch.compiler.is_compiling():  # type: ignore[attr-defined,no-untyped-call]
            return TRACED
        if self._caller.is_counted:
            return NESTED
        if thread != self._thread and any(module is entry for module in _measured_in.get(thread, ())):
            return OTHER_PROBE
        if not self._has_its_adapters():
            return OTHER_ADAPTERS
        is_inside = self._model is entry or any(module is self._model for module in self._caller.entered)
        return None if is_inside or not is_run_by_another(self._model, self._parts, entry) else OTHER_MODEL

    def _has_its_adapters(self) -> bool:
        """Whether the model computes with the adapters that were active when the block began, and none is bypassed."""
        assert self._adapters is not None
        try:
            if not self._adapters.are_active():
                return False
        except ProbeError as problem:
            self._recorder.note(problem, "adapters")
            return False
        prompt_models = self._adapters.prompt_models
        run = {id(module) for module in modules_that_run()} if prompt_models else set()
        return all(id(model) in run for model in prompt_models)

    def _counted_forward(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        entry = self._points.entry
        self._begin(args, kwargs)
        output, self._caller.is_counted = None, True
        try:
            output = forward(*args, **kwargs)
        finally:
            self._caller.is_counted = False
            for name, module in self._points.modules.items():
                if module is entry and output is not None:
                    self._recorder.hidden(name, output)
                    self._caller.measured = _identity(output)
            self._recorder.end(output)
        return output

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Begin a forward pass that counts, with our hooks at the edges and every hooked module in its place."""
        entry = self._points.entry
        for edges in (*self._edges, *self._site_edges):
            edges.restore()
        self._recorder.begin(lambda: arguments(entry, args, kwargs), self._caller.arguments)
        for seat in self._seats:
            if not seat.is_taken:
                self._recorder.note_unseen(
                    f"{seat.name}: another module stands in its place, and what that one gives is not measured; put it "
                    "there before the probe is made"
                )

    def _before_module(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if len(args) + len(kwargs) > 1:  # a mask may be among them
            self._recorder.named_input(name, lambda: arguments(module, args, kwargs))

    def _after_entry(self, output: Any) -> None:
        """Report hooks of others that change what the model itself gives, which was measured as its forward ended."""
        measured, self._caller.measured = self._caller.measured, None
        if measured is not None and measured != _identity(output):
            self._recorder.problems.append(
                f"{type(self._points.entry).__name__}: hooks change what the model itself gives after it was measured; "
                "name a module inside it, or probe one that holds it, such as torch.nn.Sequential(model)"
            )

    def _after_block(self, index: int, output: Any) -> None:
        """Record a block's output; the block may be called again, or the next one is, or the norms are."""
        is_last = index + 1 + len(self._points.norms) >= len(self._edges)
        following = self._edges[index : None if is_last else index + 2]
        for edges in following:
            edges.restore()
        self._recorder.block(output, awaits_next=any(edges.has_others_before for edges in following))

    def _note_late_hook(self, module: nn.Module) -> None:
        self._recorder.note_unseen(
            f"{type(module).__name__}: a hook was registered as it was called, and may change its input or output "
            "after that was measured; register it before the forward pass"
        )


class _Caller(threading.local):
    """What a thread has entered of the modules around the backbone, their arguments, and whether the pass counts."""

    entered: tuple[nn.Module, ...] = ()
    arguments: Mapping[str, Any] = MappingProxyType({})
    measured: tuple[int, int] | None = None
    is_counted: bool = False


def _identity(output: object) -> tuple[int, int]:
    """Identify an output, and as far as it shows, how often it was changed in place."""
    in_place = isinstance(output, Tensor) and not output.is_inference()
    return id(output), output._version if in_place and isinstance(output, Tensor) else 0  # noqa: SLF001
