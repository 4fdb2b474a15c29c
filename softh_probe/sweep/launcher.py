"""sweep(): start workers, watch them, start others for those that die, until every checkpoint is done or given up."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import submitit
from submitit.helpers import environment_variables
from tqdm import tqdm

from softh_probe.errors import InputError
from softh_probe.sweep.claims import process_identity
from softh_probe.sweep.collection import collect
from softh_probe.sweep.config import SweepConfig
from softh_probe.sweep.downloads import Downloads
from softh_probe.sweep.folder import DONE, FAILED, RUNNING, WAITING, Failure, SweepFolder
from softh_probe.sweep.grid import GridPoint, expand
from softh_probe.sweep.worker import STOP_S, Worker

#: Workers that end without having tried anything, one after the other, before the sweep gives up.
_MOST_FRUITLESS = 3
#: Environment of workers: bars in logs are drawn twice a minute.
_ENVIRONMENT = {"TQDM_MININTERVAL": "30"}


@dataclass(kw_only=True)
class Outcome:
    """How a sweep ended.

    Attributes:
        done: checkpoints with a result.
        failed: those given up, with their last failure.
        waiting: those not tried to the end, because the sweep was stopped by a problem.
        problem: what stopped it, or None.
        warnings: what a reader of the table has to know: equal weights, steps out of order.
    """

    done: list[GridPoint] = field(default_factory=list)
    failed: list[tuple[GridPoint, Failure]] = field(default_factory=list)
    waiting: list[GridPoint] = field(default_factory=list)
    problem: str | None = None
    warnings: list[str] = field(default_factory=list)


def sweep(config: SweepConfig, *, progress: bool = True) -> Outcome:
    """Measure every checkpoint of the grid that has no result yet, then collect them all.

    Args:
        config: what to sweep, and where.
        progress: show a bar, and each failure, on standard error.

    Returns:
        What is done, what failed and why. A failed checkpoint is no exception: all others have been measured.

    Raises:
        InputError: the configuration is not what it has to be, or not that of the results in its folder.
        KeyboardInterrupt: stopped by the user; local workers are stopped too. The same call goes on.
    """
    points = expand(config)
    folder = SweepFolder(config.out)
    pool = new_pool(config, folder, points)
    folder.start(config, points)
    problem = None
    with _Bar(points, folder, enabled=progress) as bar:
        try:
            problem = _watch(pool, bar)
        finally:
            pool.stop()
    outcome = Outcome(problem=problem)
    for point, state in bar.states().items():
        if state.status == DONE:
            outcome.done.append(point)
        elif state.status == FAILED and state.failure:
            outcome.failed.append((point, state.failure))
        else:
            outcome.waiting.append(point)
    Downloads(folder, config).tidy()
    if not outcome.waiting:
        shutil.rmtree(folder.work / "cache", ignore_errors=True)
    outcome.warnings = collect(config.out).warnings
    return outcome


def _watch(pool: Pool, bar: _Bar) -> str | None:
    """Until nothing is left to do; returns what stopped it before that."""
    while True:
        statuses = [state.status for state in bar.update().values()]
        waiting, running = statuses.count(WAITING), statuses.count(RUNNING)
        if not waiting and not running:
            return None
        alive = pool.n_alive()
        if pool.problem:
            return pool.problem
        idle = max(0, alive - running)  # those that start just now
        if wanted := min(pool.n_workers - alive, waiting - idle):
            pool.start(max(0, wanted))
        time.sleep(pool.poll_s)


class Pool(Protocol):
    """Workers, by a launcher of submitit's."""

    n_workers: int
    poll_s: float
    problem: str | None

    def start(self, n: int) -> None:
        """Start n more workers."""

    def n_alive(self) -> int:
        """How many live, or wait for their turn in a queue."""

    def stop(self) -> None:
        """Let all end."""


def new_pool(config: SweepConfig, folder: SweepFolder, points: Sequence[GridPoint]) -> Pool:
    """The workers that a configuration asks for; none is started.

    Raises:
        InputError: there are fewer GPUs than asked for, or no Slurm.
    """
    return (SlurmPool if config.launcher == "slurm" else LocalPool)(config, folder, points)


class LocalPool:
    """Processes on this machine: each has a slot, and the slot's GPUs."""

    poll_s = 0.5

    def __init__(self, config: SweepConfig, folder: SweepFolder, points: Sequence[GridPoint]) -> None:
        self.config, self.folder, self.points = config, folder, points
        gpus = visible_gpus()
        each = config.gpus_per_worker if config.gpus_per_worker is not None else min(1, len(gpus))
        cores = n_cores()
        if each:
            room = len(gpus) // each
            if (config.workers or 1) > room:
                raise InputError(
                    f"workers: {config.workers or 1} with {each} GPU{'s' * (each > 1)} each, but {len(gpus)} "
                    "are visible here; take fewer, or gpus_per_worker 0 for the CPU"
                )
        else:
            room = max(1, cores // config.cpus_per_worker) if config.cpus_per_worker else 1
        self.n_workers = config.workers or room
        self.n_threads = config.cpus_per_worker or max(1, cores // self.n_workers)
        self.devices = [",".join(gpus[i * each : (i + 1) * each]) for i in range(self.n_workers)]
        self.jobs: list[tuple[submitit.Job[int], tuple[Any, ...]] | None] = [None] * self.n_workers
        self.problem: str | None = None
        self._fruitless = 0

    def start(self, n: int) -> None:
        executor = submitit.AutoExecutor(folder=self.folder.work / "jobs", cluster="local")
        executor.update_parameters(timeout_min=60 * 24 * 3650, name="softh-probe")
        for slot in [i for i, job in enumerate(self.jobs) if job is None][:n]:
            worker = Worker(self.config, self.points, self.devices[slot], process_identity(os.getpid()))
            threads = os.environ.get("OMP_NUM_THREADS", str(self.n_threads))
            with environment_variables(OMP_NUM_THREADS=threads, **_ENVIRONMENT), _deaf_to_interrupts():
                self.jobs[slot] = executor.submit(worker), self._progress()

    def n_alive(self) -> int:
        for slot, entry in enumerate(self.jobs):
            if entry is not None and entry[0].done():
                self.jobs[slot] = None
                self._ended(*entry)
        return sum(entry is not None for entry in self.jobs)

    def _ended(self, job: submitit.Job[int], progress: tuple[Any, ...]) -> None:
        """A worker ended: nothing to do, or something is wrong with it that is no checkpoint's fault."""
        tail = ""
        with contextlib.suppress(OSError):
            tail = (job.paths.stderr.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""])[-1]
        if "DiskFullError" in tail:
            self.problem = (
                f"the disk is full ({tail.split('DiskFullError: ')[-1]}); make room and run the same command again"
            )
        self._fruitless = self._fruitless + 1 if progress == self._progress() else 0
        if self._fruitless >= _MOST_FRUITLESS and self.problem is None:
            self.problem = f"workers end before they measure anything ({tail}); see {job.paths.stderr}"

    def _progress(self) -> tuple[Any, ...]:
        """What any worker that does something changes."""
        failures = [f for p in self.points if (f := self.folder.failure(p))]
        attempts = sum(f.failed + f.lost for f in failures)
        return len(self.folder.finished_folders()), attempts, tuple(self.folder.claims.names())

    def stop(self) -> None:
        """Ask all to stop, wait for their snapshots, end what is left."""
        processes = [entry[0]._process for entry in self.jobs if entry is not None]  # type: ignore[attr-defined]
        for process in processes:
            process.send_signal(signal.SIGTERM)  # submitit's controller hands it on
        end = time.monotonic() + STOP_S + 15
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, end - time.monotonic()))
            process.kill()
        self.jobs = [None] * self.n_workers


class SlurmPool:
    """Array jobs. They live on when this process ends, and are found again by the next."""

    poll_s = 5.0

    def __init__(self, config: SweepConfig, folder: SweepFolder, points: Sequence[GridPoint]) -> None:
        if shutil.which("sbatch") is None or shutil.which("squeue") is None:
            raise InputError("launcher: slurm needs sbatch and squeue, which are not here; run it on a login node")
        self.config, self.folder, self.points = config, folder, points
        self.n_workers = config.workers or 8
        self.problem: str | None = None
        self._ids: list[str] = folder.read_json("jobs.json", [])
        self._alive: set[str] = set()
        self._fruitless = 0

    def start(self, n: int) -> None:
        config = self.config
        executor = submitit.AutoExecutor(
            folder=self.folder.work / "jobs", cluster="slurm", slurm_max_num_timeout=1_000_000
        )
        options = {**(config.slurm_options or {}), "requeue": True}
        executor.update_parameters(
            name="softh-probe",
            timeout_min=config.timeout_min,
            mem_gb=config.mem_gb,
            cpus_per_task=config.cpus_per_worker,
            gpus_per_node=config.gpus_per_worker or None,
            slurm_array_parallelism=n,
            slurm_partition=config.slurm_partition,
            slurm_account=config.slurm_account,
            slurm_qos=config.slurm_qos,
            slurm_constraint=config.slurm_constraint,
            slurm_setup=list(config.slurm_setup) or None,
            slurm_additional_parameters=options,
        )
        threads = {"OMP_NUM_THREADS": str(config.cpus_per_worker)} if config.cpus_per_worker else {}
        worker = Worker(config, self.points)
        try:
            with environment_variables(**threads, **_ENVIRONMENT):
                jobs = executor.submit_array([worker] * n)
        except (submitit.core.utils.FailedJobError, subprocess.CalledProcessError) as error:
            text = " ".join(str(error).split())
            raise InputError(f"launcher: sbatch refuses the job: {text}; see the slurm_ fields") from error
        self._ids += [job.job_id for job in jobs]
        self._alive |= {job.job_id for job in jobs}
        self.folder.write_json("jobs.json", self._ids)

    def n_alive(self) -> int:
        states = slurm_states(self._ids)
        if states is None:  # Slurm does not answer: what was, is
            return max(len(self._alive), self.n_workers if self._ids else 0)
        alive = {job for job, state in states.items() if state not in _ENDED}
        cancelled = [job for job in self._alive - alive if states.get(job) == "CANCELLED"]
        self.n_workers -= len(cancelled)  # somebody wants fewer
        if self.n_workers < 1:
            self.problem = f"jobs were cancelled ({', '.join(cancelled)}); run the same command again to go on"
        self._alive = alive
        self._ids = [job for job in self._ids if job in alive]
        return len(alive)

    def stop(self) -> None:
        """Cancel what waits in the queue, when there is nothing left; a stopped launcher leaves its jobs alone."""
        if sys.exc_info()[0] is None and self._ids:
            subprocess.run(["scancel", *self._ids], check=False, capture_output=True, timeout=60)
        elif self._alive:
            ids = " ".join(sorted(self._alive))
            print(f"jobs go on in Slurm: {ids}; scancel stops them, the same command watches them", file=sys.stderr)


#: States of Slurm jobs that will never run again.
_ENDED = frozenset(
    ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "REVOKED", "TIMEOUT")
)


def slurm_states(ids: Sequence[str]) -> dict[str, str] | None:
    """States of jobs as squeue has it, those it has forgotten left out; None where Slurm does not answer."""
    if not ids:
        return {}
    arrays = sorted({job.split("_")[0] for job in ids})
    command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T", f"--jobs={','.join(arrays)}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode and "Invalid job id" not in done.stderr:
        return None
    pairs = (line.strip().partition("|") for line in done.stdout.splitlines())
    return {job: state for job, _, state in pairs if job in ids}


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    n = torch.cuda.device_count()
    return [name.strip() for name in named.split(",")][:n] if named else [str(i) for i in range(n)]


def n_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """What is started here does not hear Ctrl-C: the launcher does, and tells it to stop in good order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _Bar:
    """A sweep's progress: a bar, and a line for each failure."""

    def __init__(self, points: Sequence[GridPoint], folder: SweepFolder, *, enabled: bool) -> None:
        self._points, self._folder, self._enabled = points, folder, enabled
        self._done: dict[str, Any] = {}
        self._told: dict[str, str] = {}

    def __enter__(self) -> _Bar:
        done = sum(state.status == DONE for state in self.states().values())
        self._bar = tqdm(
            total=len(self._points),
            initial=done,
            desc="sweep",
            unit="checkpoint",
            disable=not self._enabled,
            file=sys.stderr,
            smoothing=0.1,
            mininterval=0.1 if sys.stderr.isatty() else 30,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def states(self) -> dict[GridPoint, Any]:
        """The state of every checkpoint; results are looked at once."""
        now = self._folder.states(p for p in self._points if p.folder not in self._done)
        self._done |= {point.folder: state for point, state in now.items() if state.status == DONE}
        return {point: self._done.get(point.folder) or now[point] for point in self._points}

    def update(self) -> dict[GridPoint, Any]:
        states = self.states()
        counts = {s: sum(state.status == s for state in states.values()) for s in (RUNNING, FAILED, WAITING)}
        self._bar.set_postfix(counts, refresh=False)
        self._bar.update(len(self._done) - self._bar.n)
        for point, state in states.items():
            if state.failure and self._told.get(point.folder) != (stamp := f"{state.failure}"):
                self._told[point.folder] = stamp
                verdict = "failed" if state.status == FAILED else "failed, to be tried again"
                if self._enabled:
                    tqdm.write(f"{point.checkpoint}: {verdict}: {state.failure.reason}", file=sys.stderr)
        return states
