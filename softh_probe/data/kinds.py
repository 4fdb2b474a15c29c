"""Kinds of values in the columns of a data set: what a column can hold, and how errors name it."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from pyarrow import types

_PYTHON = ((bool, "bool"), (str, "string"), (int, "int"), (float, "float"), (datetime.date, "date"))
_LEVELS = 16


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Kind of the values of one column, or of one level of it.

    >>> str(kind_of_values([{"en": "Hello"}, None, {"de": "Hallo"}]))
    'struct'
    >>> [name for name, _ in leaves({"translation": kind_of_values([{"en": "Hello"}, {"de": "Hallo"}])})]
    ['translation.en', 'translation.de']
    """

    names: frozenset[str] = frozenset()
    """Names of all kinds of values here, without null: "string", "list", "struct", "json", or another type's name."""
    fields: Mapping[str, Kind] = field(default_factory=dict)
    """Kinds of the keys of a struct."""
    item: Kind | None = None
    """Kind of the items of a list."""

    @property
    def is_null(self) -> bool:
        """Whether there are only nulls."""
        return not self.names

    @property
    def holds_text(self) -> bool:
        """Whether there is text here, or at any depth."""
        inner = [*self.fields.values(), *([self.item] if self.item else [])]
        return bool(self.names & {"string", "json"}) or any(kind.holds_text for kind in inner)

    def __str__(self) -> str:
        of = f" of {self.item}" if self.item and not self.item.is_null else ""
        return " or ".join(name + of * (name == "list") for name in sorted(self.names)) or "null"


def kind_of_values(values: Iterable[Any], levels: int = _LEVELS) -> Kind:
    """Find the kind of values of Python, as JSON gives them, down to a number of levels."""
    names: set[str] = set()
    items: list[Any] = []
    of_key: dict[str, list[Any]] = {}
    for value in values:
        if value is None:
            continue
        if isinstance(value, dict):
            names.add("struct")
            for key, entry in value.items() if levels else ():
                of_key.setdefault(str(key), []).append(entry)
        elif isinstance(value, list):
            names.add("list")
            items += value if levels else ()
        else:
            names.add(next((name for kind, name in _PYTHON if isinstance(value, kind)), type(value).__name__))
    fields = {key: kind_of_values(entries, levels - 1) for key, entries in of_key.items()}
    return Kind(names=frozenset(names), fields=fields, item=kind_of_values(items, levels - 1) if items else None)


def kind_of_arrow(kind: pa.DataType) -> Kind:
    """Find the kind of values that an Arrow type describes."""
    if types.is_dictionary(kind):
        return kind_of_arrow(kind.value_type)
    if types.is_null(kind):
        return Kind()
    if is_json(kind):
        return Kind(names=frozenset(["json"]))
    if types.is_string(kind) or types.is_large_string(kind) or str(kind) == "string_view":
        return Kind(names=frozenset(["string"]))
    if types.is_struct(kind):
        fields = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
        if "bytes" in fields and "path" in fields and types.is_binary(fields["bytes"]):  # as `datasets` keeps them
            return Kind(names=frozenset(["image or audio"]))
        return Kind(names=frozenset(["struct"]), fields={name: kind_of_arrow(inner) for name, inner in fields.items()})
    if is_list(kind):
        return Kind(names=frozenset(["list"]), item=kind_of_arrow(kind.value_type))
    if types.is_map(kind):
        return Kind(names=frozenset(["map"]), item=kind_of_arrow(kind.item_type))
    return Kind(names=frozenset([str(kind)]))


def is_number(text: str) -> bool:
    """Test whether a text is written as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def is_json(kind: pa.DataType) -> bool:
    """Test for Arrow's type of JSON text, in which `datasets` keeps values of mixed types."""
    return str(getattr(kind, "extension_name", "")) == "arrow.json"


def is_list(kind: pa.DataType) -> bool:
    """Test for a list of any layout."""
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def leaves(kinds: Mapping[str, Kind], prefix: str = "") -> Iterator[tuple[str, Kind]]:
    """List columns by name, and for a struct its keys by dotted name instead."""
    for name, kind in kinds.items():
        if kind.fields:
            yield from leaves(kind.fields, f"{prefix}{name}.")
        if not kind.fields or kind.names - {"struct"}:
            yield prefix + name, kind
