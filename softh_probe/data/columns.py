"""Columns of a data set that are read: the text, named or inferred, and the labels, at any depth of a struct."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from softh_probe.choices import Choices
from softh_probe.data.kinds import Kind, is_number, leaves
from softh_probe.errors import InputError

TEXT_COLUMNS = (
    *("text", "content", "body", "document", "sentence", "passage", "article"),
    *("messages", "conversations", "conversation"),
)

_NO_TEXT = {  # names of the only column of strings that make it unlikely to be the text
    *("id", "_id", "ids", "uid", "uuid", "guid", "idx", "index", "key", "hash", "sha", "sha1", "sha256", "md5", "doi"),
    *("url", "uri", "link", "path", "file", "filename", "file_name", "source", "domain", "license", "author"),
    *("lang", "language", "locale", "label", "class", "category", "topic", "tag", "type", "split", "subset"),
    *("date", "time", "datetime", "timestamp", "created", "created_at", "updated_at"),
}

_PANDAS_INDEX = re.compile(r"__index_level_\d+__")  # rows' names, which pandas writes to .parquet

Path = tuple[str, ...]  # the name of a column, then keys of structs


def find_path(name: str, kinds: Mapping[str, Kind]) -> Path | None:
    """Find a column by its name, or a key of a struct by its dotted name; a literal name takes precedence.

    >>> from softh_probe.data.kinds import kind_of_values
    >>> struct = kind_of_values([{"en": "Hello"}])
    >>> find_path("translation.en", {"translation": struct})
    ('translation', 'en')
    >>> find_path("translation.en", {"translation": struct, "translation.en": Kind()})
    ('translation.en',)

    Returns:
        The path; None where there is no such column.
    """
    if name in kinds:
        return (name,)
    head, _, tail = name.rpartition(".")
    while head:
        if head in kinds:
            rest = find_path(tail, kinds[head].fields)
            if rest is not None:
                return (head, *rest)
        head, _, before = head.rpartition(".")
        tail = f"{before}.{tail}"
    return None


def value_at(row: Mapping[str, Any], path: Path, where: str) -> Any:
    """Take the value at a path out of a row; None where a struct on the way is null or lacks the key.

    Raises:
        InputError: a value on the way is no struct.
    """
    value: Any = row[path[0]]
    for i, key in enumerate(path[1:], start=1):
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise InputError(
                f"data: {'.'.join(path[:i])!r} holds a {type(value).__name__} in {where}; expected a struct with the "
                f"key {key!r}"
            )
        value = value.get(key)
    return value


def split_names(text_column: str, kinds: Mapping[str, Kind]) -> list[str]:
    """Split the names of text columns at commas, unless a column has a comma in its name."""
    if find_path(text_column, kinds):
        return [text_column]
    return list(dict.fromkeys(name.strip() for name in text_column.split(",")))


def infer_text_column(
    kinds: Mapping[str, Kind], label_columns: Sequence[str], has_sure_names: bool, data: str, choices: Choices
) -> str:
    """Infer the column of the text, where no other can be meant.

    Args:
        kinds: kind of each column.
        label_columns: columns that are read as labels.
        has_sure_names: whether names of columns are surely names, and not the first row of a file.
        data: the data set, as errors name it.
        choices: takes the choice.

    Raises:
        InputError: several columns could hold the text.
    """
    free = {
        name: kind for name, kind in kinds.items() if name not in label_columns and not _PANDAS_INDEX.fullmatch(name)
    }
    named = [name for name in TEXT_COLUMNS if name in free and _may_be_content(free[name])]
    if named:
        return _by_name(named, free, choices)
    holding = [name for name, kind in leaves(free) if kind.holds_text and name not in label_columns]
    if len(holding) != 1 or "string" not in free.get(holding[0], Kind()).names or _names_no_text(holding[0]):
        raise _cannot_tell(kinds, data)
    name = holding[0]
    if not (has_sure_names or any(label in kinds for label in label_columns) or _has_header(kinds)):
        raise InputError(
            f"text_column: the first line of {data} names no known text column, and may itself be text "
            f"({name[:80]!r}); name the text column if that line is a header, else put the line 'text' before it"
        )
    unknown = [other for other, kind in free.items() if kind.is_null]
    reason = "the only column that holds text"
    if unknown:
        reason += f" in the first rows, where {', '.join(unknown)} is null; name another with text_column"
    choices.add("text_column", name, reason, certain=not unknown)
    return name


def no_such(argument: str, name: str, available: Iterable[str], data: str) -> InputError:
    """Make an error about a name that the data lacks, with the names it has; the caller raises it."""
    available = list(available)
    close = difflib.get_close_matches(name, available, n=1)
    guess = f" (did you mean {close[0]!r}?)" if close else ""
    return InputError(f"{argument}: {data} has no {name!r}{guess}; it has: {', '.join(available)}")


def names_of(kinds: Mapping[str, Kind]) -> list[str]:
    """List columns, with the dotted names of what structs hold after each."""
    return list(dict.fromkeys([*kinds, *(name for name, _ in leaves(kinds))]))


def _may_be_content(kind: Kind) -> bool:
    """Test for text, a list of messages, or what may be one of them."""
    if "list" in kind.names and kind.item and not kind.item.is_null and not kind.item.names & {"struct", "json"}:
        return "string" in kind.names
    return kind.is_null or bool(kind.names & {"string", "list", "json"})


def _by_name(named: Sequence[str], kinds: Mapping[str, Kind], choices: Choices) -> str:
    """Choose the first column with a usual name; it is certain where no other column has one."""
    filled = [name for name in named if not kinds[name].is_null] or list(named)
    reason = "by its name"
    if others := filled[1:]:
        reason = f"by its name, though {', '.join(others)} could be the text, too; name it with text_column"
    elif kinds[filled[0]].is_null and any(kind.holds_text for kind in kinds.values()):
        reason = "by its name, though it is null in the first rows; name another with text_column"
        others = filled
    choices.add("text_column", filled[0], reason, certain=not others)
    return filled[0]


def _names_no_text(name: str) -> bool:
    return name.lower() in _NO_TEXT or name.lower().endswith(("_id", "_url", "_hash", "_path"))


def _has_header(kinds: Mapping[str, Kind]) -> bool:
    """Test whether the first row differs in kind from those below: names above numbers."""
    return any(kind.names == {"number"} for kind in kinds.values()) and not any(map(is_number, kinds))


def _cannot_tell(kinds: Mapping[str, Kind], data: str) -> InputError:
    found = list(leaves(kinds))
    listed = ", ".join(f"{name} ({kind})" for name, kind in found)
    lists = any(kind.item and kind.item.holds_text for _, kind in found)
    hint = "; of lists, only conversations can be read: write other items as a row each" if lists else ""
    return InputError(f"text_column: cannot tell which column of {data} is the text, name one of: {listed}{hint}")
