"""Secrets of the user: kept out of everything that is written, and of every line that is shown.

What a configuration holds is written to results, logs and job scripts, so a secret has no place in one. What libraries
raise may repeat the address of a server, with the password that stands in it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "[secret]"

_SHAPES = re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{20,}|(?<=://)(?!git@)[^\s/@'\"]+(?=@)")
_NAMES = re.compile(r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY)S?(?:_|$)", re.IGNORECASE)
_SHORTEST = 8  # of a secret: shorter values are words


def redacted(text: str) -> str:
    """Text without access tokens, passwords in URLs, and values of environment variables whose names say what they are.

    >>> redacted("401 for https://me:sesame@hub.example/api?token=hf_abcdefghijklmnopqrstuvwxyz")
    '401 for https://[secret]@hub.example/api?token=[secret]'
    """
    for value in _of_environment():
        text = text.replace(value, HIDDEN)
    return _SHAPES.sub(HIDDEN, text)


def holds_secret(value: Any) -> bool:
    """Whether any text in a configuration's value is, or holds, a secret."""
    if isinstance(value, str):
        return redacted(value) != value
    if isinstance(value, Mapping):
        return any(holds_secret(part) for item in value.items() for part in item)
    return isinstance(value, list | tuple) and any(map(holds_secret, value))


def _of_environment() -> list[str]:
    """The longest first: one may be part of another. What is a path is no secret, but where one lies."""
    named = {value.strip() for name, value in os.environ.items() if _NAMES.search(name)}
    return sorted((v for v in named if len(v) >= _SHORTEST and not v.startswith(("/", "~"))), key=len, reverse=True)
