"""Requests to stop: SIGTERM, SIGUSR1 and Ctrl-C end a run where it can be resumed."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from softh_probe.errors import Interrupted

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)  # Windows has no SIGUSR1


class StopRequests:
    """Turns signals into `Interrupted`, at once or, after `defer()`, where the code in the block checks `requested`.

    >>> import os
    >>> with StopRequests() as stop:
    ...     stop.defer()
    ...     os.kill(os.getpid(), signal.SIGTERM)
    ...     print("the batch is finished first;", stop.requested)
    the batch is finished first; 15

    Signals are handled only in the main thread, to which alone Python delivers them, and only where they were not
    ignored. The earlier handlers are restored after the block. A second Ctrl-C always ends the run at once.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self._deferred = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():
            heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._handle) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def defer(self) -> None:
        """Only record later requests, in `requested`."""
        self._deferred = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again, self.requested = self.requested is not None, number
        if not self._deferred or (again and number == signal.SIGINT):
            raise Interrupted(number)
