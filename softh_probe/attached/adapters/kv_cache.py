"""Key-value caches: follow their reorderings, crops and resets."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn
from transformers.cache_utils import Cache

if TYPE_CHECKING:
    from softh_probe.attached.tracker import InputTracker


_trackers: list[InputTracker] = []
_originals: list[tuple[type, str, Any]] = []


@contextmanager
def install(model: nn.Module, tracker: InputTracker) -> Iterator[None]:
    """Report the changes of all caches to a tracker."""
    if not _trackers:
        _observe_caches()
    _trackers.append(tracker)
    try:
        yield
    finally:
        _trackers.remove(tracker)
        if not _trackers:
            while _originals:
                owner, name, original = _originals.pop()
                setattr(owner, name, original)


def _observe_caches() -> None:
    events: dict[str, Callable[[InputTracker, Any, Any], None]] = {
        "reorder_cache": lambda tracker, cache, beams: tracker.select(cache, _rows(beams)),
        "batch_select_indices": lambda tracker, cache, rows: tracker.select(cache, _rows(rows)),
        "batch_repeat_interleave": lambda tracker, cache, times: tracker.repeat(cache, int(times)),
        "crop": lambda tracker, cache, n_tokens: tracker.crop(cache, int(n_tokens)),
        "reset": lambda tracker, cache, _: tracker.evict(cache),
    }
    for owner in (Cache, *_subclasses(Cache)):
        for name, event in events.items():
            if name in vars(owner):
                _originals.append((owner, name, vars(owner)[name]))
                setattr(owner, name, _reporting(vars(owner)[name], event))


def _reporting(original: Callable[..., Any], event: Callable[[InputTracker, Any, Any], None]) -> Callable[..., Any]:
    @functools.wraps(original)
    def method(cache: Any, *args: Any, **kwargs: Any) -> Any:
        outcome = original(cache, *args, **kwargs)
        for tracker in _trackers:
            event(tracker, cache, next(iter((*args, *kwargs.values())), None))
        return outcome

    return method


def _rows(indices: Any) -> np.ndarray:
    rows = indices.cpu().numpy() if isinstance(indices, Tensor) else np.asarray(indices)
    return np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)


def _subclasses(cls: type) -> list[type]:
    direct: list[type] = cls.__subclasses__()
    return [inner for sub in direct for inner in (sub, *_subclasses(sub))]
