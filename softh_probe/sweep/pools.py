"""Pools of workers: processes on this machine, or jobs of a Slurm array."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import psutil
import submitit
from submitit.helpers import environment_variables

from softh_probe.errors import InputError
from softh_probe.forks import n_cores
from softh_probe.sweep.claims import process_key
from softh_probe.sweep.config import SweepConfig
from softh_probe.sweep.folder import SweepFolder
from softh_probe.sweep.grid import GridPoint
from softh_probe.sweep.worker import STOP_S, Worker

#: Consecutive workers that end without having tried anything, after which the sweep gives up.
_MAX_FRUITLESS = 3
#: Environment of workers: bars in logs are drawn twice a minute.
_ENVIRONMENT = {"TQDM_MININTERVAL": "30"}

logger = logging.getLogger(__name__)


class Pool(Protocol):
    """Workers of a sweep, started through submitit.

    Attributes:
        n_workers: workers that are wanted at a time.
        poll_s: seconds between looks at them.
        problem: a problem because of which the sweep has to stop, or None.
    """

    n_workers: int
    poll_s: float
    problem: str | None

    def start(self, n: int) -> None:
        """Start n more workers."""

    def n_alive(self) -> int:
        """Count the workers that run or wait in a queue."""

    def stop(self) -> None:
        """Stop all workers."""


def new_pool(config: SweepConfig, folder: SweepFolder, points: Sequence[GridPoint]) -> Pool:
    """Make the pool that a configuration describes, without starting a worker.

    Raises:
        InputError: there are fewer GPUs than the workers need, or no Slurm.
    """
    return (SlurmPool if config.launcher == "slurm" else LocalPool)(config, folder, points)


class LocalPool:
    """Workers as processes on this machine: each has a slot, and the slot's GPUs."""

    poll_s = 0.25

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
        """Start n more workers, in free slots."""
        executor = submitit.AutoExecutor(folder=self.folder.work / "jobs", cluster="local")
        executor.update_parameters(timeout_min=60 * 24 * 3650, name="softh-probe")
        for slot in [i for i, job in enumerate(self.jobs) if job is None][:n]:
            worker = Worker(self.config, self.points, self.devices[slot], process_key(os.getpid()))
            threads = os.environ.get("OMP_NUM_THREADS", str(self.n_threads))
            with environment_variables(OMP_NUM_THREADS=threads, **_ENVIRONMENT), _ignoring_interrupts():
                self.jobs[slot] = executor.submit(worker), self._progress()

    def n_alive(self) -> int:
        """Count the workers that run; free the slots of the others."""
        for slot, entry in enumerate(self.jobs):
            if entry is not None and entry[0].done():
                self.jobs[slot] = None
                self._ended(*entry)
        return sum(entry is not None for entry in self.jobs)

    def _ended(self, job: submitit.Job[int], progress: tuple[Any, ...]) -> None:
        """Note the end of a worker, and the problem if it is not that of a checkpoint."""
        tail = ""
        with contextlib.suppress(OSError):
            tail = (job.paths.stderr.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""])[-1]
        if "DiskFullError" in tail:
            self.problem = (
                f"the disk is full ({tail.split('DiskFullError: ')[-1]}); make room and run the same command again"
            )
        self._fruitless = self._fruitless + 1 if progress == self._progress() else 0
        if self._fruitless >= _MAX_FRUITLESS and self.problem is None:
            self.problem = (
                f"workers end before they measure anything ({tail or 'they say nothing'}); see {job.paths.stderr}"
            )

    def _progress(self) -> tuple[Any, ...]:
        """Read the state that changes whenever a worker does anything: results, attempts and claims."""
        failures = [f for p in self.points if (f := self.folder.failure(p))]
        attempts = sum(f.failed + f.lost for f in failures)
        return len(self.folder.finished_folders()), attempts, tuple(self.folder.claims.names())

    def stop(self) -> None:
        """Ask all workers to stop, wait for their snapshots, and kill those that remain."""
        processes = []
        for job, _ in filter(None, self.jobs):
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(int(job.job_id))  # the id of a local job is that of its process
                process.send_signal(signal.SIGTERM)  # submitit's controller passes it to the worker
                processes.append(process)
        _, remaining = psutil.wait_procs(processes, timeout=STOP_S + 15)
        for process in remaining:
            process.kill()
        self.jobs = [None] * self.n_workers


class SlurmPool:
    """Workers as jobs of a Slurm array. They outlive this process; the next sweep in the same folder finds them."""

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
        """Submit an array of n more jobs.

        Raises:
            InputError: sbatch refuses the job.
        """
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
        """Count the jobs that run or wait; a cancelled one is not replaced."""
        states = slurm_states(self._ids)
        if states is None:  # Slurm does not answer: assume no change
            return max(len(self._alive), self.n_workers if self._ids else 0)
        alive = {job for job, state in states.items() if state not in _ENDED}
        cancelled = [job for job in self._alive - alive if states.get(job) == "CANCELLED"]
        self.n_workers -= len(cancelled)  # the user wants fewer
        if self.n_workers < 1:
            self.problem = f"jobs were cancelled ({', '.join(cancelled)}); run the same command again to continue"
        self._alive = alive
        self._ids = [job for job in self._ids if job in alive]
        return len(alive)

    def stop(self) -> None:
        """Cancel queued jobs of a sweep that is done; after an error or Ctrl-C, leave the jobs running."""
        if sys.exc_info()[0] is None and self._ids:
            subprocess.run(["scancel", *self._ids], check=False, capture_output=True, timeout=60)
        elif self._alive:
            ids = " ".join(sorted(self._alive))
            logger.info("jobs continue in Slurm: %s; scancel stops them, the same command watches them", ids)


#: States of Slurm jobs that will never run again.
_ENDED = frozenset(
    ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "REVOKED", "TIMEOUT")
)


def slurm_states(ids: Sequence[str]) -> dict[str, str] | None:
    """Ask squeue for the states of jobs; those it no longer lists are left out. None where Slurm does not answer."""
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
    """List the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    n = torch.cuda.device_count()
    return [name.strip() for name in named.split(",")][:n] if named else [str(i) for i in range(n)]


@contextlib.contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """Start processes that ignore Ctrl-C: the launcher handles it, and asks them to stop in good order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
