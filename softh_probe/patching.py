"""Temporary changes of other libraries: wrapped methods, and compiled code that runs uncompiled."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch


@dataclass
class _Wrapped:
    before: Any
    has_ended: bool = False


_wrapped: WeakKeyDictionary[Any, _Wrapped] = WeakKeyDictionary()


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
    original = getattr(owner, name, None)
    if original is None:
        yield
        return
    wrapped = _Wrapped(before=vars(owner).get(name))

    @functools.wraps(original)
    def method(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs) if wrapped.has_ended else wrapper(original, *args, **kwargs)

    setattr(owner, name, method)
    _wrapped[method] = wrapped
    try:
        yield
    finally:
        wrapped.has_ended = True
        top = vars(owner).get(name)
        while top in _wrapped and _wrapped[top].has_ended:  # wrappers that others have put on top stay
            top = _wrapped.pop(top).before
        if top is None:
            delattr(owner, name)
        else:
            setattr(owner, name, top)


_stances: list[Any] = []  # one entry for each block inside: the stance that the first of them set


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run code that torch.compile compiled as it was written inside the block: compiled code would skip hooks."""
    _stances.append(_stances[0] if _stances else torch.compiler.set_stance("force_eager"))
    try:
        yield
    finally:
        stance = _stances.pop()
        if not _stances:
            stance.__exit__(None, None, None)
