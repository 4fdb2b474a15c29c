"""A kind of input, and the command line as its cases meet it."""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from softh_probe import cli
from softh_probe.errors import SofthProbeError


class WrongError(Exception):
    """An input was accepted and gave something else than is in it."""


class Kind:
    """A kind of input: made whole once, then damaged and tried again and again.

    Args:
        folder: for the whole inputs; cases are written to a folder of their own.
    """

    share = 1.0

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, case: Path, chance: random.Random) -> None:
        """Write a damaged input into the empty folder `case`."""
        raise NotImplementedError

    def attempt(self, case: Path, chance: random.Random) -> None:
        """Take the input; raises SofthProbeError where it is refused, WrongError where a number is."""
        raise NotImplementedError


@contextlib.contextmanager
def replaced_command(name: str, command: Any) -> Iterator[None]:
    before = cli.COMMANDS[name]
    cli.COMMANDS[name] = command
    try:
        yield
    finally:
        cli.COMMANDS[name] = before


def command_line(*words: str) -> None:
    """Run a command; its one line of refusal becomes a SofthProbeError again."""
    said, shown = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(shown):
            code = cli.main(words)
    except SystemExit as stop:  # --help
        code = int(stop.code or 0)
    lines = [line for line in said.getvalue().splitlines() if line.startswith("softh-probe: ")]
    if "Traceback" in said.getvalue() or (code == 2 and len(lines) != 1) or code not in (0, 2):
        raise WrongError(f"exit code {code}, and: {said.getvalue()[-500:]!r}")
    if code == 2:
        raise SofthProbeError(lines[0].removeprefix("softh-probe: "))
