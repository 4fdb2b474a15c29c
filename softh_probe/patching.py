"""Temporary changes of other libraries: wrapped methods, hooks, and compiled code that runs uncompiled.

Copies of a module that is wrapped or hooked here go without: `copies_unchanged`.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any, SupportsIndex
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


@dataclass
class _Wrapped:
    name: str
    original: Any
    before: Any
    has_ended: bool = False


_wrapped: WeakKeyDictionary[Any, _Wrapped] = WeakKeyDictionary()
_changing = threading.RLock()  # threads that wrap the same method do so one after the other


@contextmanager
def replaced(owner: Any, name: str, wrapper: Callable[..., Any]) -> Iterator[None]:
    """Make `owner.name(*arguments)` call `wrapper(original, *arguments)` inside the block.

    >>> from types import SimpleNamespace
    >>> bell = SimpleNamespace(ring=lambda times: times * "ding ")
    >>> with replaced(bell, "ring", lambda ring, times: ring(2 * times)):
    ...     bell.ring(1)
    'ding ding '
    >>> bell.ring(1)
    'ding '

    Blocks may end in any order.

    Args:
        owner: an object, a class or a module; if it lacks the method, nothing changes.
        name: name of the method.
        wrapper: called with the original method and the arguments.
    """
    with _changing:
        original = getattr(owner, name, None)
        wrapped = _Wrapped(name=name, original=original, before=vars(owner).get(name))
        if original is not None:
            method = _method(wrapped, wrapper)
            setattr(owner, name, method)
            _wrapped[method] = wrapped
    try:
        yield
    finally:
        with _changing:
            wrapped.has_ended = True
            _unwrap(owner, name)


def _method(wrapped: _Wrapped, wrapper: Callable[..., Any]) -> Callable[..., Any]:
    original = wrapped.original

    @functools.wraps(original)
    def method(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs) if wrapped.has_ended else wrapper(original, *args, **kwargs)

    return method


def _unwrap(owner: Any, name: str) -> None:
    """Remove the wrappers that have ended, as far as no other one, perhaps somebody else's, stands on top."""
    top = outermost = vars(owner).get(name)
    while top in _wrapped and _wrapped[top].has_ended:
        top = _wrapped.pop(top).before
    if top is outermost:
        return
    if top is None:
        delattr(owner, name)
    else:
        setattr(owner, name, top)


_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()


def lock_of(module: nn.Module) -> threading.RLock:
    """Give the lock of a module, the same for all who ask."""
    with _changing:
        return _locks.setdefault(module, threading.RLock())


# --- hooks, and copies without them ------------------------------------------------------------------------------

_hook_ids: set[int] = set()
_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)


@contextmanager
def hooked(register: Callable[..., RemovableHandle], hook: Callable[..., Any], **how: Any) -> Iterator[RemovableHandle]:
    """Register a hook inside the block; copies of the module go without it.

    A forward pass that another thread runs meanwhile may call the hook before its registration is complete, or after it
    was removed, and then without all arguments. Such calls are ignored.

    Args:
        register: a module's method, such as `block.register_forward_hook`.
        hook: what is called.
        how: arguments of `register`.
    """
    is_installed = False

    def observe(*args: Any) -> Any:
        return hook(*args) if is_installed else None

    handle = register(observe, **how)
    _hook_ids.add(handle.id)
    is_installed = True
    try:
        yield handle
    finally:
        is_installed = False
        handle.remove()
        _hook_ids.discard(handle.id)


def is_own_hook(hook_id: int) -> bool:
    """Whether a hook was registered by `hooked`."""
    return hook_id in _hook_ids


@contextmanager
def copies_unchanged(modules: Iterable[nn.Module], on_replica: Callable[[], None]) -> Iterator[None]:
    """Make copies of modules go without our wrappers and hooks inside the block.

    Copies are made by `copy`, `pickle` and `torch.save`, and by `DataParallel` for each of its devices.

    Args:
        modules: the modules that are wrapped or hooked.
        on_replica: called when `DataParallel` copies one of them.
    """

    def replicate(original: Callable[[], nn.Module]) -> nn.Module:
        on_replica()
        replica = original()
        replica.__dict__ = _without_changes(vars(replica))
        return replica

    with ExitStack() as undo:
        undo.enter_context(replaced(nn.Module, "__reduce_ex__", _reduce_ex))
        for module in modules:
            if hasattr(type(module), "__deepcopy__"):  # a traced or parametrized module copies itself
                undo.enter_context(replaced(module, "__deepcopy__", partial(_deepcopy, module)))
            undo.enter_context(replaced(module, "_replicate_for_data_parallel", replicate))
        yield


def _reduce_ex(original: Callable[..., Any], module: nn.Module, protocol: SupportsIndex) -> Any:
    reduced = original(module, protocol)
    return reduced if isinstance(reduced, str) else tuple(map(_without_changes, reduced))


def _deepcopy(module: nn.Module, original: Callable[..., Any], memo: dict[int, Any]) -> Any:
    bare = object.__new__(type(module))
    bare.__dict__ = _without_changes(vars(module))
    memo[id(module)] = copied = type(module).__deepcopy__(bare, memo)  # type: ignore[attr-defined]
    return copied


def _replicate(original: Callable[..., nn.Module]) -> nn.Module:
    replica = original()
    replica.__dict__ = _without_changes(vars(replica))
    return replica


def _without_changes(state: Any) -> Any:
    """Copy a module's attributes without our wrappers and hooks; anything else is given back as it is."""
    if type(state) is tuple:
        return tuple(map(_without_changes, state))
    if type(state) is not dict:
        return state
    unchanged = {}
    for name, value in state.items():
        if name in _HOOKS and not _hook_ids.isdisjoint(value):
            value = type(value)((key, hook) for key, hook in value.items() if key not in _hook_ids)
        while isinstance(value, FunctionType) and value in _wrapped:
            wrapped = _wrapped[value]
            value = wrapped.before if name == wrapped.name else wrapped.original
        if value is not None or state[name] is None:
            unchanged[name] = value
    return unchanged


_stances: list[Any] = []  # one entry for each block inside: the stance that the first of them set


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run code that torch.compile compiled as it was written inside the block: compiled code would skip hooks."""
    with _changing:
        _stances.append(_stances[0] if _stances else torch.compiler.set_stance("force_eager"))
    try:
        yield
    finally:
        with _changing:
            stance = _stances.pop()
            if not _stances:
                stance.__exit__(None, None, None)
