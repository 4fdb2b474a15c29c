"""What of others is changed for a while: a method is wrapped, compiled code runs as it was written."""

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
    is_over: bool = False


_wrapped: WeakKeyDictionary[Any, _Wrapped] = WeakKeyDictionary()


@contextmanager
def replaced(owner: Any, name: str, wrapper: Callable[..., Any]) -> Iterator[None]:
    """Inside the block, `owner.name(*arguments)` calls `wrapper(original, *arguments)`.

    >>> from types import SimpleNamespace
    >>> bell = SimpleNamespace(ring=lambda times: times * "ding ")
    >>> with replaced(bell, "ring", lambda ring, times: ring(2 * times)):
    ...     bell.ring(1)
    'ding ding '
    >>> bell.ring(1)
    'ding '

    Blocks may end in any order.

    Args:
        owner: an object, a class or a module; without such a method it stays as it is.
    """
    original = getattr(owner, name, None)
    if original is None:
        yield
        return
    ours = _Wrapped(before=vars(owner).get(name))

    @functools.wraps(original)
    def method(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs) if ours.is_over else wrapper(original, *args, **kwargs)

    setattr(owner, name, method)
    _wrapped[method] = ours
    try:
        yield
    finally:
        ours.is_over = True
        top = vars(owner).get(name)
        while top in _wrapped and _wrapped[top].is_over:  # what others have put on top stays
            top = _wrapped.pop(top).before
        if top is None:
            delattr(owner, name)
        else:
            setattr(owner, name, top)


_stances: list[Any] = []  # the one that the first block set, for each block


@contextmanager
def uncompiled() -> Iterator[None]:
    """Inside the block, code that torch.compile compiled runs as it was written: compiled, it would skip hooks."""
    _stances.append(_stances[0] if _stances else torch.compiler.set_stance("force_eager"))
    try:
        yield
    finally:
        stance = _stances.pop()
        if not _stances:
            stance.__exit__(None, None, None)
