"""A method of somebody else's object, wrapped for a while."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


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

    Args:
        owner: an object, a class or a module; without such a method it stays as it is.
    """
    original = getattr(owner, name, None)
    if original is None:
        yield
        return
    before = vars(owner).get(name)

    @functools.wraps(original)
    def method(*args: Any, **kwargs: Any) -> Any:
        return wrapper(original, *args, **kwargs)

    setattr(owner, name, method)
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)
