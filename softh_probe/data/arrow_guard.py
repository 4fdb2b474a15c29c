"""A guard of pyarrow's JSON reader against input that would crash the process instead of raising an error."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json

from softh_probe.patching import replaced

#: Depth of nested lists and objects. The reader recurses, and a much deeper value overflows its stack.
DEEPEST = 500

_FIRST_NULL, _LATER_NULL = re.compile(rb"\s*null\b"), re.compile(rb"\}\s*null\b")  # in a value, "," would come first
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


@contextmanager
def guarded_json() -> Iterator[None]:
    """Make `pyarrow.json.read_json` raise ArrowInvalid for rows of null and for too deep nesting inside the block."""

    def read_json(original: Callable[..., Any], file: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(file, io.BytesIO):
            _check_content(file.getvalue())
        return original(file, *args, **kwargs)

    with replaced(pyarrow.json, "read_json", read_json):
        yield


def _check_content(content: bytes) -> None:
    if _FIRST_NULL.match(content) or _LATER_NULL.search(content):
        raise pa.ArrowInvalid("a row is null; expected an object with a value for each column in every row")
    # Brackets inside strings make the first, cheap estimate too large.
    if _depth(content) > DEEPEST and _depth(_STRING.sub(b"", content)) > DEEPEST:
        raise pa.ArrowInvalid(f"values nest deeper than {DEEPEST} lists and objects")


def _depth(content: bytes) -> int:
    characters = np.frombuffer(content, dtype=np.uint8) | 0x20  # "[" as "{", "]" as "}"
    steps = (characters == ord("{")).astype(np.int8) - (characters == ord("}"))
    return int(np.cumsum(steps, dtype=np.int32).max(initial=0))
