"""Choices that are made for the user: recorded in results, and warned of where they are not certain."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from softh_probe.errors import one_line


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One choice that the user left open.

    >>> print(Choice(about="text_column", chosen="text", reason="the only column of strings", certain=True))
    text_column: text (the only column of strings)
    """

    about: str
    """The argument or aspect: "text_column", "encoding", "padding", a layer's name, …"""
    chosen: str
    """The value that was used."""
    reason: str
    """The grounds, and how to choose otherwise."""
    certain: bool = False
    """Whether nothing else could have been meant; such a choice is recorded, but not warned of."""

    def __str__(self) -> str:
        return one_line(f"{self.about}: {self.chosen} ({self.reason})")


class Choices:
    """The choices of one measurement, each once, in the order in which they were made.

    >>> choices = Choices()
    >>> choices.add("encoding", "utf-16", "by the byte order mark", certain=True)
    >>> choices.add("padding", "none", "padding reaches real tokens in this model")
    >>> choices.warnings()
    ['padding: none (padding reaches real tokens in this model)']
    """

    def __init__(self, choices: Iterable[Choice] = (), *, warn: bool = False) -> None:
        self._choices = dict.fromkeys(choices)
        self._warn = warn

    def __iter__(self) -> Iterator[Choice]:
        return iter(self._choices)

    def add(self, about: str, chosen: str, reason: str, *, certain: bool = False) -> None:
        """Record a choice; with `warn=True`, an uncertain one is also warned of, the first time."""
        choice = Choice(about=about, chosen=chosen, reason=reason, certain=certain)
        if self._warn and not certain and choice not in self._choices:
            warnings.warn(str(choice), stacklevel=3)
        self._choices[choice] = None

    def update(self, others: Iterable[Choice]) -> None:
        """Record the choices of another part of the same measurement."""
        self._choices |= dict.fromkeys(others)

    def warnings(self) -> list[str]:
        """List the choices that are not certain, a line each."""
        return [str(choice) for choice in self if not choice.certain]

    def to_json(self) -> list[dict[str, Any]]:
        """Convert to JSON values, as results and states carry them."""
        return [asdict(choice) for choice in self]

    @classmethod
    def from_json(cls, values: Iterable[Mapping[str, Any]]) -> Choices:
        """Restore what `to_json` gave."""
        return cls(Choice(**value) for value in values)
