"""The errors a user can meet: one line that names the argument, what came, what was expected, the remedy."""

from __future__ import annotations

import signal


class SofthProbeError(Exception):
    """Base of every error that softh_probe raises on purpose; the command line shows it as one line, exit code 2."""


class InputError(SofthProbeError, ValueError):
    """An argument, a file or a data set is not what it has to be."""


class ProbeError(SofthProbeError, RuntimeError):
    """The forward pass did not give what the probe has to measure."""


class LostProcessError(SofthProbeError, ConnectionError):
    """Another process of a run that several measure has ended before its time."""


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop, by SIGTERM, SIGUSR1 or Ctrl-C; running it again goes on from its last snapshot.

    Attributes:
        signal: the signal's number.
    """

    def __init__(self, number: int, where: str = "before anything was measured") -> None:
        self.signal = number
        super().__init__(f"stopped by {signal.Signals(number).name} {where}")
