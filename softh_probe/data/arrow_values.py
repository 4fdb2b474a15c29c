"""Python values of Arrow's tables: maps as dictionaries, JSON decoded, keys without nulls."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
from pyarrow import types

from softh_probe.data.file_text import Notes
from softh_probe.data.kinds import is_json, is_list


def to_python(batch: pa.Table | pa.RecordBatch, names: Sequence[str], notes: Notes) -> Iterator[dict[str, Any]]:
    """Convert rows of Arrow to Python.

    Structs of one column all have the same keys in Arrow: a row that lacked one has null there. Such keys are left out,
    as they were in the rows that the column was made of; so is a key whose value was null from the start.

    Args:
        batch: the rows.
        names: columns to convert; those that the batch lacks are left out.
        notes: counts the keys that were null below the level of a message.
    """
    found = [name for name in names if name in batch.schema.names]
    columns = [_column(batch, name, notes) for name in found]
    for values in zip(*columns, strict=True):
        yield dict(zip(found, values, strict=True))


def _column(batch: pa.Table | pa.RecordBatch, name: str, notes: Notes) -> list[Any]:
    kind = batch.schema.field(name).type
    values = batch.column(name).to_pylist()
    return [_value(value, kind, 0, notes) for value in values] if _is_nested(kind) else values


def _is_nested(kind: pa.DataType) -> bool:
    return bool(is_list(kind) or types.is_struct(kind) or types.is_map(kind) or is_json(kind))


def _value(value: Any, kind: pa.DataType, level: int, notes: Notes) -> Any:
    """Convert one value; `level` is 0 outside of lists, 1 for items of a list, such as messages, and more inside."""
    if value is None:
        return None
    if is_json(kind):
        return json.loads(value)
    if is_list(kind):
        return [_value(item, kind.value_type, max(1, level), notes) for item in value]
    if types.is_map(kind):
        return {key: _value(item, kind.item_type, level + bool(level), notes) for key, item in value}
    if types.is_struct(kind):
        return _struct(value, kind, level, notes)
    return value


def _struct(value: dict[str, Any], kind: pa.DataType, level: int, notes: Notes) -> dict[str, Any]:
    found = {}
    for i in range(kind.num_fields):
        name = kind.field(i).name
        if value[name] is not None:
            found[name] = _value(value[name], kind.field(i).type, level + bool(level), notes)
        elif level > 1:  # a message's own keys mean the same when they are null and when they are missing
            notes.nulls_left_out += 1
    return found
