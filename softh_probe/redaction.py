"""Redaction of secrets in errors, configurations and log lines.

Configurations are written to results, logs and job scripts, so they must hold no secret. Errors of libraries may repeat
the URL of a server and the password in it.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

HIDDEN = "[secret]"

_SHAPES = re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{20,}|(?<=://)(?!git@)[^\s/@'\"]+(?=@)")
_NAMES = re.compile(r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY)S?(?:_|$)", re.IGNORECASE)
_SHORTEST = 8  # characters of a secret; shorter values are words

#: The parent of every module's logger. Without a handler of the application or of `log_to_stderr` it is silent.
LOGGER = logging.getLogger("softh_probe")
LOGGER.addHandler(logging.NullHandler())


def redacted(text: str) -> str:
    """Replace access tokens, passwords in URLs, and values of environment variables that are named as secrets.

    >>> redacted("401 for https://me:sesame@hub.example/api?token=hf_abcdefghijklmnopqrstuvwxyz")
    '401 for https://[secret]@hub.example/api?token=[secret]'
    """
    for value in _of_environment():
        text = text.replace(value, HIDDEN)
    return _SHAPES.sub(HIDDEN, text)


def holds_secret(value: Any) -> bool:
    """Test whether a configuration's value contains a secret in any of its texts."""
    if isinstance(value, str):
        return redacted(value) != value
    if isinstance(value, Mapping):
        return any(holds_secret(part) for item in value.items() for part in item)
    return isinstance(value, list | tuple) and any(map(holds_secret, value))


def _of_environment() -> list[str]:
    """List the secrets of the environment, the longest first, as one may be part of another.

    Paths are left out: they say where a secret lies.
    """
    named = {value.strip() for name, value in os.environ.items() if _NAMES.search(name)}
    return sorted((v for v in named if len(v) >= _SHORTEST and not v.startswith(("/", "~"))), key=len, reverse=True)


@contextmanager
def log_to_stderr() -> Iterator[None]:
    """Show the package's log lines on standard error inside the block, unless its logger has a handler already.

    Lines of level INFO are shown as they are, others after their level ("warning: ..."). Secrets are redacted. Also
    usable as a decorator.

    >>> from contextlib import redirect_stderr
    >>> with redirect_stderr(sys.stdout), log_to_stderr():
    ...     logging.getLogger("softh_probe.run").info("plan: 8 batches")
    ...     logging.getLogger("softh_probe.run").warning("https://me:sesame@hub.example is slow")
    plan: 8 batches
    warning: https://[secret]@hub.example is slow
    """
    if any(not isinstance(handler, logging.NullHandler) for handler in LOGGER.handlers):
        yield
        return
    handler, level, propagates = _StderrHandler(), LOGGER.level, LOGGER.propagate
    handler.setFormatter(_LineFormatter())
    LOGGER.addHandler(handler)
    LOGGER.propagate = False  # handlers of the root logger would show each line again, unredacted
    if level == logging.NOTSET:
        LOGGER.setLevel(logging.INFO)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)
        LOGGER.propagate = propagates


class _LineFormatter(logging.Formatter):
    """Formats a record as one redacted text, with the level in front where it is not INFO."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return redacted(text if record.levelno == logging.INFO else f"{record.levelname.lower()}: {text}")


class _StderrHandler(logging.Handler):
    """Writes records to `sys.stderr` as it is at that time: workers and tests redirect it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)
