"""Errors for users: one line with the argument, the value, the expected values and the remedy."""

from __future__ import annotations

import errno
import reprlib
import signal
from collections.abc import Sequence
from textwrap import shorten
from typing import Any

_LONGEST = 1200  # characters of a message


class SofthProbeError(Exception):
    r"""Base class of the errors that softh_probe raises; the command line prints one line and exits with code 2.

    >>> str(SofthProbeError("labels: 'a\nb\x1b[31m' is no column"))
    "labels: 'a b\\x1b[31m' is no column"
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class InputError(SofthProbeError, ValueError):
    """An argument, a file or a data set is invalid."""


class ProbeError(SofthProbeError, RuntimeError):
    """A forward pass gave nothing that the probe can measure."""


class LostProcessError(SofthProbeError, ConnectionError):
    """Another process of a distributed run ended too early."""


class Interrupted(KeyboardInterrupt):
    """A signal (SIGTERM, SIGUSR1, Ctrl-C) stopped a run; the same run resumes from its last snapshot.

    Attributes:
        signal: number of the signal.
    """

    def __init__(self, number: int, where: str = "before anything was measured") -> None:
        self.signal = number
        super().__init__(f"stopped by {signal.Signals(number).name} {where}")


def one_line(text: str) -> str:
    """Make one short, printable line of any text.

    Names of files and columns may hold anything: line breaks, megabytes, control sequences of the terminal.
    """
    line = " ".join(text.split())
    if len(line) > _LONGEST:
        line = f"{line[: _LONGEST // 2]} … {line[-_LONGEST // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def require_string(argument: str, value: object) -> None:
    """Refuse anything but a string.

    Raises:
        InputError: the value of the argument is something else.
    """
    if not isinstance(value, str):
        raise InputError(f"{argument}: expected a string, got {short_repr(value)}")


def short_repr(value: Any) -> str:
    """Represent any value shortly, for an error message.

    >>> short_repr([1] * 1000), short_repr(10**9999)
    ('[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, ...]', 'int, with thousands of digits')
    """
    short = reprlib.Repr()
    short.maxstring = short.maxother = 200
    short.maxlist = short.maxdict = short.maxtuple = 20
    try:
        return short.repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return f"{type(value).__name__}, with thousands of digits"


def abbreviated(names: Sequence[str], limit: int = 3) -> str:
    """List the first names, and count the rest.

    >>> abbreviated(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def is_of_tokenizers(error: BaseException) -> bool:
    """Tell whether the tokenizers library (Rust) raised an error: it raises the class Exception itself.

    >>> is_of_tokenizers(Exception("Unk token not found")), is_of_tokenizers(ValueError("no"))
    (True, False)
    """
    return type(error) is Exception


def first_sentence(error: BaseException) -> str:
    """Shorten an error to its first sentence, in one line; the type comes first where it tells more.

    >>> first_sentence(ValueError("no such file. Try again.")), first_sentence(KeyError("a"))
    ('no such file', "KeyError: 'a'")
    """
    sentence = shorten(str(error).split(". ")[0].rstrip("."), 160, placeholder=" …")
    return sentence if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {sentence}"


def reason_of(error: BaseException) -> str:
    """Say why something failed in one line: an error of softh_probe whole, of any other its first sentence.

    >>> reason_of(InputError("tasks: none. Name some.")), reason_of(ValueError("no such file. Try again."))
    ('tasks: none. Name some.', 'no such file')
    """
    return str(error) if isinstance(error, SofthProbeError) else first_sentence(error)


def is_disk_full(error: BaseException) -> bool:
    """Tell whether there was no room for a file.

    >>> is_disk_full(OSError(errno.ENOSPC, "No space left on device")), is_disk_full(OSError("no"))
    (True, False)
    """
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
