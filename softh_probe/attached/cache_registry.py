"""The sequences of each key-value cache that has been fed."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

from transformers.cache_utils import Cache

from softh_probe.attached.sequences import CachedSequences


class CacheRegistry:
    """Map caches to the sequences they hold, as long as the caches live.

    Attributes:
        ended: numbers of sequences whose cache is gone, was emptied or changed unseen.
    """

    def __init__(self) -> None:
        self.ended: list[int] = []
        self._entries: dict[int, tuple[weakref.ref[Any], CachedSequences, int]] = {}

    def sequences_of(self, cache: Any, current: CachedSequences | None = None) -> CachedSequences | None:
        """Find the sequences of a cache, if every token in it was seen.

        Args:
            current: the sequences of the forward pass under way, whose cache may hold its tokens already.
        """
        entry = self._entries.get(id(cache)) if cache is not None else None
        if entry is None:
            return None
        _, sequences, n_unseen = entry
        length = cache_length(cache)
        if length is not None and sequences is not current and length - n_unseen != sequences.n_fed:
            self.evict(cache)  # tokens were added or removed unseen
            return None
        return sequences

    def remember(self, cache: Any, sequences: CachedSequences) -> None:
        """Register the sequences of a cache, in place of any before."""
        if self.get(cache) is sequences:
            return
        self.evict(cache)
        key, number = id(cache), sequences.number

        def on_collection(_: object) -> None:
            self._entries.pop(key, None)
            self.ended.append(number)

        length = cache_length(cache)
        n_unseen = 0 if length is None else length - sequences.n_fed
        self._entries[key] = (weakref.ref(cache, on_collection), sequences, n_unseen)

    def get(self, cache: Any) -> CachedSequences | None:
        """Give the sequences that are registered for a cache, whatever was added to it since."""
        entry = self._entries.get(id(cache))
        return None if entry is None else entry[1]

    def evict(self, cache: Any) -> None:
        """Forget a cache; its sequences end."""
        if (entry := self._entries.pop(id(cache), None)) is not None:
            self.ended.append(entry[1].number)

    def waiting(self) -> list[CachedSequences]:
        """List the sequences of which positions wait for their labels, or may be noted as not counted."""
        held = [sequences for _, sequences, _ in list(self._entries.values())]
        return [sequences for sequences in held if len(sequences.waiting_rows) or "counted" in sequences.columns]

    def clear(self) -> None:
        """Forget all caches; their sequences end."""
        self.ended = [sequences.number for _, sequences, _ in list(self._entries.values())] + self.ended
        self._entries = {}

    def take_ended(self) -> list[int]:
        """Take the numbers of sequences that ended since the last call."""
        ended, self.ended = self.ended, []
        return ended


def find_cache(values: object) -> Cache | None:
    """Find the cache among a model's arguments or in its output."""
    items = values.values() if isinstance(values, Mapping) else values if isinstance(values, tuple) else ()
    return next((value for value in items if isinstance(value, Cache)), None)


def cache_length(cache: Any) -> int | None:
    """Count the tokens in a cache, where it knows without a look at its tensors."""
    try:
        length = cache.get_seq_length()
    except Exception:  # caches without attention layers know no length
        return None
    return length if isinstance(length, int) else None
