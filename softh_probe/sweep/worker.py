"""A worker: measures one checkpoint after the other, in a process that may crash, until none waits."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
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
from softh_probe.sweep.measurer import Ended, Measurer
from softh_probe.sweep.tasks import know_tasks

#: Seconds that a measurement has to write its snapshot when it is stopped. Slurm warns 90 s before the end of a job.
STOP_S = 75.0
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
    _measurer: Measurer | None = field(default=None, init=False)
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
        know_tasks(self.folder)
        measurer = self._measurer = Measurer(self.config)
        tried = 0
        following: GridPoint | None = None
        ahead: BaseProcess | None = None
        try:
            while point := self._claim(prefer=following or self.first):
                tried += 1
                logger.info("%s: started", point.checkpoint)
                failure = self.folder.failure(point)
                if ahead is None or not ahead.is_alive():
                    following, ahead = self._following(point), None
                local = following if following and following.local else None
                pid = measurer.begin(point, killed=failure.killed if failure else 0, following=local)
                self.folder.claims.add_process(point.folder, pid)
                if following and not local and ahead is None:
                    ahead = measurer.fetch_ahead(following)
                if ended := self._wait(measurer, point):
                    self._record_end(point, ended)
                    self.folder.claims.release(point.folder)
                self._claimed = None
                self.downloads.tidy(wait=False)
            measurer.close()
        except Stopped:
            self.checkpoint()
            logger.info("stopped")
        finally:
            measurer.kill()
            if ahead and ahead.is_alive():
                ahead.kill()
            if self._claimed:
                self.folder.claims.release(self._claimed.folder)
        return tried

    def checkpoint(self, *_: Any) -> Any:
        """Stop, and return the job with which submitit requeues this one. Called from a signal handler."""
        from submitit.helpers import DelayedSubmission

        if self._measurer:
            self._measurer.stop(STOP_S, self._beat)
        if self._claimed:
            self.folder.claims.release(self._claimed.folder)
        return DelayedSubmission(dataclasses.replace(self, first=self._claimed))

    def _beat(self) -> None:
        if self._claimed:
            self.folder.claims.beat(self._claimed.folder)

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
        """Guess the next checkpoint, whose weights are downloaded or read ahead."""
        free = [p for p in self.points if p.folder not in self._finished and p != current]
        claimed = set(self.folder.claims.names())
        # Other workers look ahead too: each takes another checkpoint.
        states = self.folder.states(p for p in free if p.folder not in claimed)
        behind = [p for p, state in states.items() if state.status == WAITING]
        rank = sorted(claimed).index(current.folder) if current.folder in claimed else 0
        return behind[min(rank, len(behind) - 1)] if behind else None

    def _wait(self, measurer: Measurer, point: GridPoint) -> Ended | None:
        """Wait until the measurement ends; None if its claim belongs to another worker by then."""
        beaten = time.monotonic()
        while (ended := measurer.wait()) is None:
            orphaned = os.getppid() != self._parent
            if orphaned or (self.launcher is not None and not is_running(self.launcher)):
                raise Stopped
            if time.monotonic() - beaten >= BEAT_S:
                beaten = time.monotonic()
                if not self.folder.claims.beat(point.folder):
                    measurer.kill()
                    return None
        return ended

    def _record_end(self, point: GridPoint, ended: Ended) -> None:
        """Record how a measurement ended."""
        from softh_probe.sweep.measure import EXIT_DISK_FULL, EXIT_STOPPED

        code = ended.code
        reason = ended.reason or f"its process ended with exit code {code} and gave no reason"
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
