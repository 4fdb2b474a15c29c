"""Values of JSON files: lines of objects, objects one after the other, or one list of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from softh_probe.data.arrow_guard import DEEPEST

_SPACE = re.compile(r"[ \t\n\r]*")
_NEAR = 16  # characters before the end of a chunk where a value that goes on in the next one may break off


class RepeatedKeys(dict[str, Any]):
    """An object of which a key stands twice; only its last value is known."""

    repeated: frozenset[str] = frozenset()


def json_values(chunks: Iterator[str]) -> Iterator[Any]:
    r"""Read the values of a JSON file as they stand in it, a few at a time.

    >>> list(json_values(iter(['{"text": "a"}\n{"te', 'xt": null}\n'])))
    [{'text': 'a'}, {'text': None}]
    >>> list(json_values(iter(['[{"text": "a"}, {"text": "b"}]'])))
    [{'text': 'a'}, {'text': 'b'}]

    Args:
        chunks: the file's text, in any pieces.

    Yields:
        Each line's or other value; if the file is one list, its items.

    Raises:
        ValueError: no JSON, with the row where it breaks off.
    """
    text = _Text(chunks)
    if text.next_character() != "[":
        while text.next_character():
            yield text.value()
        return
    text.at += 1
    more = text.next_character() != "]"
    while more:
        yield text.value()
        character = text.next_character()
        if character not in (",", "]"):
            raise text.error("expected ',' or ']' after an item of the list")
        more = character == ","
        text.at += more
    text.at += 1
    if text.next_character():
        raise text.error("there is more after the end of the list")


class _Text:
    """The text that is to be read next."""

    def __init__(self, chunks: Iterator[str]) -> None:
        self.text, self.at, self.row = "", 0, 0
        self._chunks = chunks
        self._decoder = json.JSONDecoder(object_pairs_hook=_object, strict=False)

    def next_character(self) -> str:
        """Go to the next character that is no space; empty at the end."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]  # it matches nothing, too
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._read_on():
                return ""

    def value(self) -> Any:
        """Read the value that stands here."""
        self.next_character()
        self.row += 1
        while True:
            try:
                value, self.at = self._decoder.raw_decode(self.text, self.at)
                return value
            except json.JSONDecodeError as error:
                open_ended = error.msg.startswith("Unterminated string") or error.pos > len(self.text) - _NEAR
                if not (open_ended and self._read_on()):
                    raise self.error(error.msg) from error
            except RecursionError as error:
                raise self.error(f"values nest deeper than {DEEPEST} lists and objects") from error

    def error(self, what: str) -> ValueError:
        return ValueError(f"row {self.row}: {what}")

    def _read_on(self) -> bool:
        """Drop what was read, and add as much as is left, so that a long value is not begun too often."""
        pieces = [self.text[self.at :]]
        wanted, size = max(1, len(pieces[0])), 0
        for chunk in self._chunks:
            pieces.append(chunk)
            size += len(chunk)
            if size >= wanted:
                break
        self.text, self.at = "".join(pieces), 0
        return size > 0


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) == len(pairs):
        return value
    keys = [key for key, _ in pairs]
    twice = RepeatedKeys(value)
    twice.repeated = frozenset(key for key in value if keys.count(key) > 1)
    return twice
