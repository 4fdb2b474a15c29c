"""Hooks at the edges of a module's calls: what it takes, and what it gives, with all changes that hooks of others make.

A module calls its hooks in the order of a dictionary, so that hooks which others register later, or move to the front,
would see other values. `HookEdges.restore` puts ours back to the edges: as each forward pass begins, and at each call,
for hooks that are registered during a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import takewhile
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from softh_probe.patching import hooked, is_own_hook

BeforeCall = Callable[[tuple[Any, ...], dict[str, Any]], None]
AfterCall = Callable[[Any], None]


def _ignore(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    pass


def _ignore_output(output: Any) -> None:
    pass


class HookEdges:
    """The hooks of one module that stay at the edges of its calls. They observe, and return nothing.

    Args:
        module: the module.
        arrive: called with the arguments of each call, positional and by name, before the pre-hooks of others.
        enter: called with them after these hooks, when the module takes them.
        give: called with the output, before the hooks of others.
        leave: called with the output, after the hooks of others.
        unseen: called with the module where another hook runs after ours, so that nobody knows what it makes of it.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        leave: AfterCall,
        unseen: Callable[[nn.Module], None],
        arrive: BeforeCall = _ignore,
        enter: BeforeCall = _ignore,
        give: AfterCall = _ignore_output,
    ) -> None:
        self._module = module
        self._observers = arrive, enter, leave, unseen
        self._give_output = give
        self._handles: tuple[RemovableHandle, ...] = ()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Register the hooks inside the block."""
        before, after = self._module.register_forward_pre_hook, self._module.register_forward_hook
        with ExitStack() as stack:
            self._handles = (
                stack.enter_context(hooked(before, self._arrive, with_kwargs=True, prepend=True)),
                stack.enter_context(hooked(before, self._enter, with_kwargs=True)),
                stack.enter_context(hooked(after, self._leave)),
            )
            if self._give_output is not _ignore_output:
                self._handles += (stack.enter_context(hooked(after, self._give, prepend=True)),)
            yield

    def restore(self) -> None:
        """Put the hooks back to the edges."""
        for handle, is_last in zip(self._handles, (False, True, True, False), strict=False):
            hooks = handle.hooks_dict_ref()
            if hooks is not None and handle.id in hooks:
                hooks.move_to_end(handle.id, last=is_last)

    @property
    def has_others_before(self) -> bool:
        """Whether hooks of others may change what the module takes."""
        return not all(map(is_own_hook, self._handles[0].hooks_dict_ref() or ()))

    @property
    def has_others_after(self) -> bool:
        """Whether hooks of others may change what the module gives."""
        return not all(map(is_own_hook, self._handles[2].hooks_dict_ref() or ()))

    def _arrive(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arrive, *_ = self._observers
        arrive(args, kwargs)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._check_order(self._handles[1])
        self.restore()
        _, enter, *_ = self._observers
        enter(args, kwargs)

    def _give(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._give_output(output)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._check_order(self._handles[2])
        _, _, leave, _ = self._observers
        leave(output)

    def _check_order(self, ours: RemovableHandle) -> None:
        """Report a hook of others that runs after ours, having been registered in the meantime."""
        later = takewhile(lambda hook_id: hook_id != ours.id, reversed(ours.hooks_dict_ref() or {}))
        if not all(map(is_own_hook, later)):
            *_, unseen = self._observers
            unseen(self._module)
