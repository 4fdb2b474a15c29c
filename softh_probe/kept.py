"""What a process keeps in memory for the runs that follow: tokenizers, tokens, plans."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

#: Values of a kind that are kept: the last ones. Of corpora, the largest of them, there is one at a time.
_MOST = {"corpus": 1}
_MOST_OTHERS = 3


class Kept:
    """The last values of each kind, by a key that tells everything they depend on.

    >>> kept = Kept()
    >>> kept.find("corpus", "a"), kept.keep("corpus", "a", 1), kept.find("corpus", "a")
    (None, None, 1)
    >>> kept.find("corpus", "b"), kept.find("corpus", "a")  # one corpus makes way for the next before that is read
    (None, None)

    Nobody may change what is kept.
    """

    def __init__(self) -> None:
        self._values: dict[str, OrderedDict[Any, Any]] = {}

    def find(self, kind: str, key: Any) -> Any:
        """Give the value of a key; None where it is not kept, and then the oldest one makes way for it."""
        of_kind = self._values.setdefault(kind, OrderedDict())
        if key in of_kind:
            of_kind.move_to_end(key)
            return of_kind[key]
        while len(of_kind) >= _MOST.get(kind, _MOST_OTHERS):
            of_kind.popitem(last=False)
        return None

    def keep(self, kind: str, key: Any, value: Any) -> None:
        """Keep a value; it must not be None."""
        self.find(kind, key)
        self._values[kind][key] = value
