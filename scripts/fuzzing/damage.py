"""Bytes and values, damaged in the ways that files are: by accident, by other programs, on purpose."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 3, 2**31, 2**53 + 1, 2**63, 10**400, -(10**400), 0.5, 1e308, -0.0),
    *(
        float("nan"),
        float("inf"),
        "",
        " ",
        "x",
        "1",
        "1.0",
        "null",
        "NaN",
        "\0",
        "\ud800",
        "🦊",
        "\u202ertl",
        "a" * 5000,
    ),
    *(
        [],
        {},
        [[]],
        {"a": {}},
        [None],
        ["x", 1],
        {"role": "user", "content": "hi"},
        "2020-01-01",
        "2020-01-01T00:00:00Z",
    ),
    [{"role": "user", "content": "hi"}],
]


def damaged(content: bytes, chance: random.Random) -> bytes:
    """A few bytes flipped, cut, put in, repeated or left out."""
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        at = chance.randrange(len(content) + 1)
        end = min(len(content), at + chance.choice((1, 1, 2, 8, 100)))
        how = chance.choice(("flip", "flip", "cut", "put", "repeat", "leave out", "fill", "byte"))
        if how == "flip" and at < len(content):
            content = content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :]
        elif how == "cut":
            content = content[:at]
        elif how == "put":
            odd = (
                b"\0",
                b"\xff",
                b"\xef\xbb\xbf",
                b"\r",
                b"\n",
                b'"',
                b",",
                b"\xed\xa0\x80",
                b"[" * 3000,
                b"\\ud800",
                b"\x1b[31m",
            )
            content = content[:at] + chance.choice(odd) + content[at:]
        elif how == "repeat":
            content = content[:end] + content[at:]
        elif how == "leave out":
            content = content[:at] + content[end:]
        elif how == "fill":
            content = content[:at] + bytes([chance.choice((0, 255))]) * (end - at) + content[end:]
        elif at < len(content):
            content = content[:at] + bytes([chance.randrange(256)]) + content[at + 1 :]
    return content


def encoded(text: str, chance: random.Random) -> bytes:
    """Mostly UTF-8; sometimes another encoding, a byte order mark, other ends of lines."""
    if chance.random() < 0.05:
        text = text.replace("\n", chance.choice(("\r\n", "\r", "\n\n")))
    encoding = chance.choice(("utf-16", "latin-1", "utf-8-sig")) if chance.random() < 0.08 else "utf-8"
    return text.encode(encoding, "surrogatepass" if encoding.startswith("utf-8") else "replace")


def changed(value: Any, chance: random.Random, odd: list[Any] = ODD) -> Any:
    """JSON values with one of them, anywhere, replaced, left out, renamed, doubled or moved."""
    inner = [key for key, item in _items(value) if isinstance(item, dict | list)]
    if inner and chance.random() < 0.6:
        key = chance.choice(inner)
        copy = value.copy()
        copy[key] = changed(value[key], chance, odd)
        return copy
    keys = [key for key, _ in _items(value)]
    how = chance.choice(("replace", "replace", "replace", "remove", "rename", "add", "whole"))
    if not keys or how == "whole":
        return chance.choice(odd)
    key, copy = chance.choice(keys), value.copy()
    if how == "remove":
        del copy[key]
    elif how == "rename" and isinstance(copy, dict):
        copy[chance.choice(("", "x", str(key).upper(), f"{key} ", chance.choice(keys)))] = copy.pop(key)
    elif how == "add":
        if isinstance(copy, dict):
            copy[chance.choice(("", "x", "\ud800", "__class__"))] = chance.choice(odd)
        else:
            copy.insert(key, chance.choice([*odd, copy[key]]))
    else:
        item = copy[key]
        near = (
            [item + 1, -item, item * 2, str(item)]
            if isinstance(item, int | float)
            else [[item], {"x": item}, str(item)]
        )
        copy[key] = chance.choice(odd if chance.random() < 0.7 else near)
    return copy


def _items(value: Any) -> list[tuple[Any, Any]]:
    return list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []


def to_json(value: Any, chance: random.Random, **options: Any) -> str:
    """JSON, sometimes with a key that stands twice, or nested deeper than any reader goes."""
    text = json.dumps(value, ensure_ascii=chance.random() < 0.3, **options)
    if chance.random() < 0.04 and text.startswith("{"):
        text = '{"text": 5, ' + text[1:]
    if chance.random() < 0.02:
        text = text[:-1] + ', "deep": ' + "[" * 5000 + "]" * 5000 + "}"
    return text


def damage_safetensors(file: Path, chance: random.Random) -> None:
    """Bytes anywhere, the header's length, or what the header says of tensors."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    how = chance.random()
    if how < 0.3:
        content = damaged(content, chance)
    elif how < 0.45:
        lie = chance.choice((0, 1, length - 1, length + 1, len(content), 2**31, 2**63, 2**64 - 1))
        content = struct.pack("<Q", lie) + content[8:]
    else:
        odd = [*ODD, "F16", "F32", "F64", "BF16", "I64", "F8_E4M3", "U8", [0, 8], [8, 0], [2**62, 4], [-1, 1], [0, 0]]
        header = json.loads(content[8 : 8 + length])
        for _ in range(chance.choice((1, 1, 2))):
            header = changed(header, chance, odd)
        text = to_json(header, chance).encode("utf-8", "surrogatepass")
        content = struct.pack("<Q", len(text)) + text + content[8 + length :]
    file.write_bytes(content)
