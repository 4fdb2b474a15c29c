"""Key-value caches: when one is reordered, cropped or emptied, so is what the probe knows of its sequences."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers.cache_utils import Cache

from softh_probe.feed import Feed

_listeners: list[Feed] = []
_originals: list[tuple[type, str, Any]] = []


@contextmanager
def follow(model: nn.Module, feed: Feed) -> Iterator[None]:
    """Tell a feed what happens to caches."""
    if not _listeners:
        _listen()
    _listeners.append(feed)
    try:
        yield
    finally:
        _listeners.remove(feed)
        if not _listeners:
            while _originals:
                owner, name, original = _originals.pop()
                setattr(owner, name, original)


def _listen() -> None:
    events: dict[str, Callable[[Feed, Any, Any], None]] = {
        "reorder_cache": lambda feed, cache, beams: feed.select(cache, _rows(beams)),
        "batch_select_indices": lambda feed, cache, rows: feed.select(cache, _rows(rows)),
        "batch_repeat_interleave": lambda feed, cache, times: feed.repeat(cache, int(times)),
        "crop": lambda feed, cache, n_tokens: feed.crop(cache, int(n_tokens)),
        "reset": lambda feed, cache, _: feed.lose(cache),
    }
    for owner in (Cache, *_subclasses(Cache)):
        for name, event in events.items():
            if name in vars(owner):
                _originals.append((owner, name, vars(owner)[name]))
                setattr(owner, name, _telling(vars(owner)[name], event))


def _telling(original: Callable[..., Any], event: Callable[[Feed, Any, Any], None]) -> Callable[..., Any]:
    @functools.wraps(original)
    def method(cache: Any, *args: Any, **kwargs: Any) -> Any:
        outcome = original(cache, *args, **kwargs)
        for feed in _listeners:
            event(feed, cache, next(iter((*args, *kwargs.values())), None))
        return outcome

    return method


def _rows(indices: Any) -> np.ndarray:
    rows = indices.cpu().numpy() if isinstance(indices, Tensor) else np.asarray(indices)
    return np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)


def _subclasses(cls: type) -> list[type]:
    direct: list[type] = cls.__subclasses__()
    return [inner for sub in direct for inner in (sub, *_subclasses(sub))]
