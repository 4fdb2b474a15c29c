"""A worker: takes one checkpoint after the other, each in a process of its own, until none waits."""

from __future__ import annotations

import contextlib
import dataclasses
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
from softh_probe.result_files import RESULT_JSON, is_result
from softh_probe.sweep.claims import BEAT_S, is_running
from softh_probe.sweep.config import SweepConfig
from softh_probe.sweep.downloads import Downloads
from softh_probe.sweep.folder import DONE, WAITING, SweepFolder, is_intact
from softh_probe.sweep.grid import GridPoint

#: Seconds that a stopped measurement has to write its snapshot. Slurm's warning comes 90 s before the end.
STOP_S = 75.0
_POLL_S = 0.1
#: Signals by which somebody asks a measurement to stop; no fault of the checkpoint.
_ASKED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)


class Stopped(BaseException):
    """The worker was asked to stop."""


class DiskFullError(SofthProbeError):
    """No checkpoint can go on."""


@dataclass
class Worker:
    """What a job of the launcher runs. Calling it gives the number of checkpoints that it tried.

    Attributes:
        config: the sweep.
        points: the checkpoints to take from.
        devices: GPUs that it may see, by number; None leaves that to Slurm.
        launcher: id and start of the process that it shall not outlive; None where jobs live on their own.
        first: a checkpoint to begin with, if it waits: the one that a requeued job was on.
    """

    config: SweepConfig
    points: Sequence[GridPoint]
    devices: str | None = None
    launcher: list[Any] | None = None
    first: GridPoint | None = None
    _child: BaseProcess | None = field(default=None, init=False)
    _claimed: GridPoint | None = field(default=None, init=False)

    def __call__(self) -> int:
        if self.devices is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.devices  # before anything looks for a GPU
        self._pid, self._parent = os.getpid(), os.getppid()
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._stop)
        preempted = signal.getsignal(signal.SIGUSR2)  # submitit's, which requeues; it calls checkpoint()
        signal.signal(signal.SIGUSR1, preempted)
        self.folder = SweepFolder(self.config.out)
        self.downloads = Downloads(self.folder, self.config)
        # Whole results stay so: looking at thousands of them needs no lock, for which others wait.
        self._finished = {f.name for f in self.folder.finished_folders() if is_intact(f)}
        from softh_probe.sweep.measure import fetch_ahead, measure  # what is imported before a fork is shared

        # A fork starts at once; where that is unsafe, each process imports everything anew.
        context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        tried = 0
        ahead: tuple[GridPoint, BaseProcess] | None = None
        try:
            while point := self._claim(prefer=ahead[0] if ahead else self.first):
                tried += 1
                print(f"{point.checkpoint}: started", flush=True)
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
                    self._settle(point, child.exitcode, reading)
                    self.folder.claims.release(point.folder)
                self._claimed = None
                self.downloads.tidy(wait=False)
        except Stopped:
            self.checkpoint()
            print("stopped", flush=True)
        finally:
            if ahead and ahead[1].is_alive():
                ahead[1].kill()
            if self._claimed:
                self.folder.claims.release(self._claimed.folder)
        return tried

    def checkpoint(self, *_: Any) -> Any:
        """Stop, and say how to go on: submitit requeues the job with that (called from a signal's handler)."""
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
        if os.getpid() != self._pid:  # a process that was forked a moment ago, and has no handler of its own yet
            os._exit(1)
        raise Stopped

    def _claim(self, prefer: GridPoint | None) -> GridPoint | None:
        """Take a checkpoint that waits, by preference one that is here already."""
        first = [prefer] if prefer else []
        with self.folder.lock():
            for point in [*first, *self.points]:
                if point.folder in self._finished:
                    continue
                owner = self.folder.claims.break_dead(point.folder)
                if owner and not is_result(self.folder.result(point)):
                    self._lost(point, owner)
                state = self.folder.state(point)
                if state.status == DONE and not is_intact(self.folder.result(point)):
                    print(f"{point.checkpoint}: its result is damaged and is measured again", flush=True)
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
        """What is likely to be next, if it has to be downloaded."""
        free = [p for p in self.points if p.folder not in self._finished and not p.local and p != current]
        claimed = set(self.folder.claims.names())
        # Others look ahead too: each at another one.
        states = self.folder.states(p for p in free if p.folder not in claimed)
        behind = [p for p, state in states.items() if state.status == WAITING]
        rank = sorted(claimed).index(current.folder) if current.folder in claimed else 0
        return behind[min(rank, len(behind) - 1)] if behind else None

    def _wait(self, child: BaseProcess, point: GridPoint) -> bool:
        """Until the measurement ends; False where its claim is another's by now."""
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

    def _settle(self, point: GridPoint, code: int | None, reading: Any) -> None:
        """Note how a measurement ended."""
        from softh_probe.sweep.measure import EXIT_DISK_FULL, EXIT_STOPPED

        try:
            reason = reading.recv()
        except EOFError:
            reason = f"its process ended with exit code {code} and said nothing"
        retries = self.config.retries
        if is_intact(self.folder.result(point)):
            self.folder.failure_path(point).unlink(missing_ok=True)
            print(f"{point.checkpoint}: done", flush=True)
            return
        if code == EXIT_DISK_FULL:  # it would be the same for all others
            raise DiskFullError(f"{point.checkpoint}: {reason}")
        if code == EXIT_STOPPED or (code is not None and -code in _ASKED):
            failure = self.folder.record(point, "its process was told to stop", retries=retries, lost=True)
        elif code is not None and code < 0:
            name = signal.Signals(-code).name
            hint = "; mostly that is for want of memory" if name == "SIGKILL" else ""
            reason = f"its process crashed or was killed ({name}{hint})"
            failure = self.folder.record(point, reason, retries=retries, killed=name == "SIGKILL")
        else:
            failure = self.folder.record(point, reason, retries=retries)
        print(
            f"{point.checkpoint}: {'failed' if failure.final else 'failed, will be tried again'}: {reason}", flush=True
        )

    def _lost(self, point: GridPoint, owner: dict[str, Any]) -> None:
        reason = f"its worker was killed or lost (process {owner['processes'][0][0]} on {owner['host']})"
        self.folder.record(point, reason, retries=self.config.retries, lost=True)


def slurm_task() -> str | None:
    """The Slurm job that this process is part of, as scancel takes it."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID")
