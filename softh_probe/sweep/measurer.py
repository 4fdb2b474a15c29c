"""A worker's side of the process that measures: it is forked, given one checkpoint after the other, and replaced."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any

from softh_probe.sweep.config import SweepConfig
from softh_probe.sweep.grid import GridPoint

_POLL_S = 0.1
#: Seconds that an idle process has to end.
_END_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a measurement ended.

    Attributes:
        code: exit code of its process; 0 where that waits for the next checkpoint; negative for a signal.
        reason: why it failed, in one line; empty if it did not, or said nothing.
    """

    code: int | None
    reason: str


class Measurer:
    """The process that measures checkpoints for a worker; a new one is forked when the last one has ended.

    Args:
        config: the sweep.
    """

    def __init__(self, config: SweepConfig) -> None:
        # Imported before the fork, so that memory is shared. gc has no need to look at it, in forks above all.
        from softh_probe.sweep import measure

        self._config, self._measure = config, measure
        # A fork starts at once; on other systems it is unsafe, and each process imports everything anew.
        self._context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        self._process: BaseProcess | None = None
        self._jobs: Any = None
        gc.collect()
        gc.freeze()

    def begin(self, point: GridPoint, *, killed: int, following: GridPoint | None) -> int:
        """Let the process measure a checkpoint.

        Args:
            point: the checkpoint.
            killed: number of earlier attempts that the system killed.
            following: a checkpoint on this machine's disk that is likely to be next.

        Returns:
            The id of the process.
        """
        job = (point, killed, following)
        try:
            if self._process is None:
                self._fork()
            self._jobs.send(job)
        except OSError:  # it was killed while it waited
            self._forget()
            self._fork()
            self._jobs.send(job)
        assert self._process is not None
        assert self._process.pid is not None
        return self._process.pid

    def fetch_ahead(self, point: GridPoint) -> BaseProcess:
        """Download a checkpoint that is likely to be next, in a process of its own."""
        process: BaseProcess = self._context.Process(target=self._measure.fetch_ahead, args=(self._config, point))
        process.start()
        return process

    def wait(self, seconds: float = _POLL_S) -> Ended | None:
        """Wait for the end of a measurement; None if it goes on after so many seconds."""
        assert self._process is not None
        if not connection.wait([self._jobs, self._process.sentinel], seconds):
            return None
        reason = ""
        with contextlib.suppress(EOFError, OSError):
            if self._jobs.poll():
                answer = self._jobs.recv()
                if answer is self._measure.DONE:
                    return Ended(code=0, reason="")
                reason = str(answer)
        self._process.join()
        code = self._process.exitcode
        self._forget()
        return Ended(code=code, reason=reason)

    def stop(self, seconds: float, meanwhile: Callable[[], None]) -> None:
        """Ask the process to write its snapshot and to end; kill it if it has not ended after so many seconds.

        A measurement whose last batch is done finishes all the same, and is the process's last one.
        """
        if (process := self._process) is None:
            return
        self._send_end()
        with contextlib.suppress(ProcessLookupError, AttributeError):
            process.terminate()
        end = time.monotonic() + seconds
        while process.exitcode is None and time.monotonic() < end:
            time.sleep(_POLL_S)
            meanwhile()
        self.kill()

    def kill(self) -> None:
        """End the process at once."""
        if (process := self._process) is not None:
            process.kill()
            process.join()
            self._forget()

    def close(self) -> None:
        """End a process that waits for the next checkpoint."""
        if (process := self._process) is not None:
            self._send_end()
            process.join(_END_S)
            self.kill()

    def _send_end(self) -> None:
        """Let the process end when it waits for the next checkpoint."""
        with contextlib.suppress(OSError):  # it has ended already
            self._jobs.send(self._measure.NO_MORE)

    def _fork(self) -> None:
        self._jobs, theirs = self._context.Pipe()
        self._process = self._context.Process(target=_serve, args=(self._config, theirs, self._jobs))
        self._process.start()
        theirs.close()

    def _forget(self) -> None:
        self._jobs.close()
        self._process = None


def _serve(config: SweepConfig, jobs: Any, of_worker: Any) -> None:
    """Serve in the new process, which must not hold the worker's end of the connection, too."""
    of_worker.close()
    from softh_probe.sweep.measure import serve

    serve(config, jobs)
