"""pyarrow's reader of JSON, kept from input on which it ends the whole process instead of raising an error."""

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

#: Lists and objects inside each other. The reader calls itself for each, until its stack is full.
DEEPEST = 500

_FIRST_NULL, _LATER_NULL = re.compile(rb"\s*null\b"), re.compile(rb"\}\s*null\b")  # in a value, "," would come first
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


@contextmanager
def guarded_json() -> Iterator[None]:
    """Inside the block, `pyarrow.json.read_json` raises ArrowInvalid for rows of null and for endless nesting."""

    def read_json(original: Callable[..., Any], file: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(file, io.BytesIO):
            _refuse_crashes(file.getvalue())
        return original(file, *args, **kwargs)

    with replaced(pyarrow.json, "read_json", read_json):
        yield


def _refuse_crashes(content: bytes) -> None:
    if _FIRST_NULL.match(content) or _LATER_NULL.search(content):
        raise pa.ArrowInvalid("a row is null; expected an object with a value for each column in every row")
    # Brackets in texts make the first estimate too large, mostly.
    if _depth(content) > DEEPEST and _depth(_STRING.sub(b"", content)) > DEEPEST:
        raise pa.ArrowInvalid(f"values nest deeper than {DEEPEST} lists and objects")


def _depth(content: bytes) -> int:
    characters = np.frombuffer(content, dtype=np.uint8) | 0x20  # "[" as "{", "]" as "}"
    steps = (characters == ord("{")).astype(np.int8) - (characters == ord("}"))
    return int(np.cumsum(steps, dtype=np.int32).max(initial=0))
