"""Install hooks on a model, and remove them without a trace."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import nn

from softh_probe.attached.inputs import arguments
from softh_probe.errors import ProbeError
from softh_probe.hooks.hook_points import HookPoints
from softh_probe.hooks.label_source import LabelSource
from softh_probe.hooks.recorder import Recorder
from softh_probe.layer_places import EMBEDDINGS
from softh_probe.patching import replaced, uncompiled


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
        self._outer: dict[str, Any] = {}

    def attach(self) -> None:
        """Install all hooks, or none if one of them cannot be.

        Raises:
            ProbeError: the hooks are installed already.
        """
        if self._installed is not None:
            raise ProbeError("the probe is already attached; leave its block before entering it again")
        self._installed = ExitStack()
        try:
            self._install(self._installed)
        except BaseException:
            self.detach()
            raise

    def detach(self) -> None:
        """Remove the hooks; the model is as it was."""
        if self._installed is not None:
            self._installed.close()
            self._installed = None
        self._recorder.discard()
        self._outer = {}

    def _install(self, installed: ExitStack) -> None:
        points = self._points
        installed.enter_context(uncompiled())
        installed.enter_context(self._source.follow(self._model))
        # Forward methods are wrapped, since some callers call them past the module's hooks.
        for module in self._outer_modules():
            installed.enter_context(replaced(module, "forward", partial(self._outer_forward, module)))
        installed.enter_context(replaced(points.entry, "forward", self._entry_forward))
        for name, module in points.modules.items():
            if module is not points.entry:
                installed.callback(module.register_forward_hook(partial(self._after_module, name)).remove)
        for block in points.blocks[:1]:
            installed.callback(block.register_forward_pre_hook(self._before_first_block, with_kwargs=True).remove)
        for block in dict.fromkeys(points.blocks):
            installed.callback(block.register_forward_hook(self._after_block, with_kwargs=True).remove)
        for norm in points.norms:
            installed.callback(norm.register_forward_hook(self._after_norm).remove)

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
        before = self._outer
        inner = {name: value for name, value in arguments(module, args, kwargs).items() if value is not None}
        self._outer = {**before, **inner, **{k: v for k, v in before.items() if k == "input_ids"}}
        try:
            return forward(*args, **kwargs)
        finally:
            self._outer = before

    def _entry_forward(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        entry = self._points.entry
        self._recorder.begin(lambda: arguments(entry, args, kwargs), self._outer, training=entry.training)
        output = None
        try:
            output = forward(*args, **kwargs)
        finally:
            for name, module in self._points.modules.items():
                if module is entry and output is not None:
                    self._recorder.hidden(name, output)
            self._recorder.end(output)
        return output

    def _before_first_block(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._recorder.first_input(EMBEDDINGS, args or kwargs)

    def _after_block(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self._recorder.block(args or kwargs, output)  # the hidden state comes first, or by its name

    def _after_norm(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._recorder.norm(output)

    def _after_module(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._recorder.hidden(name, output)
