"""A worker: measures one checkpoint after the other, each in a process of its own, until none waits."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from typing import Any

from softh_probe.errors import SofthProbeError
from softh_probe.redaction import log_to_stderr
from softh_probe.result_files import RESULT_JSON
from softh_probe.sweep.claims import BEAT_S, is_running
from softh_probe.sweep.config import SweepConfig
from softh_probe.sweep.downloads import Downloads
from softh_probe.sweep.folder import DONE, WAITING, SweepFolder, is_intact
from softh_probe.sweep.grid import GridPoint

#: Seconds that a measurement has to write its snapshot when it is stopped. Slurm warns 90 s before the end of a job.
STOP_S = 75.0
_POLL_S = 0.1
#: Signals that ask a measurement to stop: they do not count as a failure of the checkpoint.
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)

logger = logging.getLogger(__name__)


class Stopped(BaseException):
    """The worker was asked to stop."""


class DiskFullError(SofthProbeError):
    """The disk is full, so that no checkpoint can be measured."""


@dataclass
class Worker:
    """The callable that a job of the launcher runs; it returns the number of checkpoints that it tried.

    Attributes:
        config: the sweep.
        points: the checkpoints to choose from.
        devices: numbers of the GPUs that it may use; None leaves that to Slurm.
        launcher: `process_key` of the process with which it ends; None where jobs outlive the launcher.
        first: checkpoint to begin with, if it waits: the one that a requeued job was measuring.
    """

    config: SweepConfig
    points: Sequence[GridPoint]
    devices: str | None = None
    launcher: list[Any] | None = None
    first: GridPoint | None = None
    _child: BaseProcess | None = field(default=None, init=False)
    _claimed: GridPoint | None = field(default=None, init=False)

    @log_to_stderr()
    def __call__(self) -> int:
        """Measure checkpoints until none waits; return how many were tried."""
        if self.devices is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.devices  # before CUDA is initialised
        self._pid, self._parent = os.getpid(), os.getppid()
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._stop)
        preempted = signal.getsignal(signal.SIGUSR2)  # submitit's handler: it calls checkpoint() and requeues the job
        signal.signal(signal.SIGUSR1, preempted)
        self.folder = SweepFolder(self.config.out)
        self.downloads = Downloads(self.folder, self.config)
        # Intact results stay intact: thousands of them are checked without the lock, for which others wait.
        there = [f for f in self.folder.finished_folders() if is_intact(f)]
        scores = self.folder.scores
        self._finished = {f.name for f in there if not scores.drop_damaged(f.name) and not scores.missing(f.name)}
        from softh_probe.sweep.evaluation import know_tasks
        from softh_probe.sweep.measure import fetch_ahead, measure  # imported before the fork, so that memory is shared

        know_tasks(self.folder)
        # A fork starts at once; on other systems it is unsafe, and each process imports everything anew.
        context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        tried = 0
        ahead: tuple[GridPoint, BaseProcess] | None = None
        try:
            while point := self._claim(prefer=ahead[0] if ahead else self.first):
                tried += 1
                logger.info("%s: started", point.checkpoint)
                failure = self.folder.failure(point)
                reading, writing = context.Pipe(duplex=False)
                options = {"killed": failure.killed if failure else 0, "reason": writing}
                child = context.Process(target=measure, args=(self.config, point), kwargs=options)
                self._child = child
                child.start()
                writing.close()
                self.folder.claims.add_process(point.folder, child.pid or 0)
                ahead = None if ahead and not ahead[1].is_alive() else ahead
                if ahead is None and (following := self._following(point)):
                    ahead = (following, context.Process(target=fetch_ahead, args=(self.config, following)))
                    ahead[1].start()
                mine = self._wait(child, point)
                self._child = None
                if mine:
                    self._record_end(point, child.exitcode, reading)
                    self.folder.claims.release(point.folder)
                self._claimed = None
                self.downloads.tidy(wait=False)
        except Stopped:
            self.checkpoint()
            logger.info("stopped")
        finally:
            if ahead and ahead[1].is_alive():
                ahead[1].kill()
            if self._claimed:
                self.folder.claims.release(self._claimed.folder)
        return tried

    def checkpoint(self, *_: Any) -> Any:
        """Stop, and return the job with which submitit requeues this one. Called from a signal handler."""
        from submitit.helpers import DelayedSubmission

        if child := self._child:
            with contextlib.suppress(ProcessLookupError, AttributeError):
                child.terminate()
            end = time.monotonic() + STOP_S
            while child.exitcode is None and time.monotonic() < end:
                time.sleep(_POLL_S)
                if self._claimed:
                    self.folder.claims.beat(self._claimed.folder)
            if child.exitcode is None:
                child.kill()
                child.join()
        if self._claimed:
            self.folder.claims.release(self._claimed.folder)
        return DelayedSubmission(dataclasses.replace(self, first=self._claimed))

    def _stop(self, *_: Any) -> None:
        if os.getpid() != self._pid:  # a new fork, which has not set its own handlers yet
            os._exit(1)
        raise Stopped

    def _claim(self, prefer: GridPoint | None) -> GridPoint | None:
        """Claim a waiting checkpoint, by preference one that is downloaded already."""
        first = [prefer] if prefer else []
        with self.folder.lock():
            for point in [*first, *self.points]:
                if point.folder in self._finished:
                    continue
                owner = self.folder.claims.break_dead(point.folder)
                if owner and not self.folder.is_done(point):
                    self._record_lost(point, owner)
                state = self.folder.state(point)
                if state.status == DONE and not is_intact(self.folder.result(point)):
                    logger.info("%s: its result is damaged and is measured again", point.checkpoint)
                    (self.folder.result(point) / RESULT_JSON).unlink()
                elif state.status == DONE:
                    self._finished.add(point.folder)
                    continue
                elif state.status != WAITING:
                    continue
                if self.folder.claims.take(point.folder, task=slurm_task()):
                    self._claimed = point
                    return point
        return None

    def _following(self, current: GridPoint) -> GridPoint | None:
        """Guess the next checkpoint that has to be downloaded."""
        free = [p for p in self.points if p.folder not in self._finished and not p.local and p != current]
        claimed = set(self.folder.claims.names())
        # Other workers download ahead too: each takes another checkpoint.
        states = self.folder.states(p for p in free if p.folder not in claimed)
        behind = [p for p, state in states.items() if state.status == WAITING]
        rank = sorted(claimed).index(current.folder) if current.folder in claimed else 0
        return behind[min(rank, len(behind) - 1)] if behind else None

    def _wait(self, child: BaseProcess, point: GridPoint) -> bool:
        """Wait until the measurement ends; False if its claim belongs to another worker by then."""
        beaten = time.monotonic()
        while child.exitcode is None:
            child.join(_POLL_S)
            orphaned = os.getppid() != self._parent
            if orphaned or (self.launcher is not None and not is_running(self.launcher)):
                raise Stopped
            if time.monotonic() - beaten >= BEAT_S:
                beaten = time.monotonic()
                if not self.folder.claims.beat(point.folder):
                    child.kill()
                    child.join()
                    return False
        return True

    def _record_end(self, point: GridPoint, code: int | None, reading: Any) -> None:
        """Record how a measurement ended."""
        from softh_probe.sweep.measure import EXIT_DISK_FULL, EXIT_STOPPED

        try:
            reason = reading.recv()
        except EOFError:
            reason = f"its process ended with exit code {code} and gave no reason"
        retries = self.config.retries
        if is_intact(self.folder.result(point)) and self.folder.is_done(point):
            self.folder.failure_path(point).unlink(missing_ok=True)
            logger.info("%s: done", point.checkpoint)
            return
        if code == EXIT_DISK_FULL:  # the same would happen to all others
            raise DiskFullError(f"{point.checkpoint}: {reason}")
        if code == EXIT_STOPPED or (code is not None and -code in _STOP_SIGNALS):
            failure = self.folder.record(point, "its process was asked to stop", retries=retries, lost=True)
        elif code is not None and code < 0:
            name = signal.Signals(-code).name
            hint = "; mostly that is for want of memory" if name == "SIGKILL" else ""
            reason = f"its process crashed or was killed ({name}{hint})"
            failure = self.folder.record(point, reason, retries=retries, killed=name == "SIGKILL")
        else:
            failure = self.folder.record(point, reason, retries=retries)
        verdict = "failed" if failure.final else "failed, will be tried again"
        logger.info("%s: %s: %s", point.checkpoint, verdict, reason)

    def _record_lost(self, point: GridPoint, owner: dict[str, Any]) -> None:
        """Record that the worker of a checkpoint is dead."""
        reason = f"its worker was killed or lost (process {owner['processes'][0][0]} on {owner['host']})"
        self.folder.record(point, reason, retries=self.config.retries, lost=True)


def slurm_task() -> str | None:
    """Read the id of this process's Slurm job, as scancel takes it."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID")
