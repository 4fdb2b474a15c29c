"""One estimate in a process of its own: its value, time and memory, or the reason why there is none.

The process computes with one thread, so that two runs agree to the last digit and the times of methods compare. Time
and memory are those of the estimate alone: the states are loaded before, and libraries have been used once.
"""

from __future__ import annotations

import multiprocessing
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from rivals.estimator import Estimator
from softh_probe.errors import InputError
from softh_probe.run.peak_memory import peak_memory_gib, reset_peak_memory

#: Imported once, by the server that all processes are forked from.
_PRELOADED = [
    *("torch", "torch._dynamo", "sklearn.cluster", "sklearn.neighbors", "sklearn.metrics", "scipy.spatial"),
    *("softh_probe", "softh_probe.estimators.bias_correction", "softh_probe.run.peak_memory"),
]
#: Positions and dimensions of the first, unmeasured use.
_WARM = 1100, 16


@dataclass(frozen=True)
class Measured:
    """An estimate and its cost.

    Attributes:
        value: nats; NaN where there is a problem.
        seconds: of one core's work, whatever else the machine does.
        memory_mib: by how much the process grew at most, beside the states; to about 10 MiB.
        problem: why there is no value, or nothing.
    """

    value: float = float("nan")
    seconds: float = float("nan")
    memory_mib: float = float("nan")
    problem: str = ""


def save(states_ND: np.ndarray, labels_N: np.ndarray, folder: Path) -> None:
    """Save states and labels for `measure`."""
    np.save(folder / "states.npy", states_ND)
    np.save(folder / "labels.npy", labels_N)


def measure(estimator: Estimator, folder: Path, timeout_s: float = 300.0) -> Measured:
    """Estimate I(X;Z) of saved states and labels in a process of its own; what fails there is told, not raised."""
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    reading, writing = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(writing, estimator, folder), daemon=True)
    process.start()
    writing.close()
    try:
        if not reading.poll(timeout_s):
            process.kill()
            return Measured(problem=f"took more than {timeout_s:g} s")
        found = reading.recv()
        assert isinstance(found, Measured)
        return found
    except EOFError:
        process.join()
        return Measured(problem=f"its process ended with exit code {process.exitcode}")
    finally:
        process.join()
        reading.close()


def _work(writing: Connection, estimator: Estimator, folder: Path) -> None:
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            writing.send(_measured(estimator, np.load(folder / "states.npy"), np.load(folder / "labels.npy")))
    except InputError as error:
        writing.send(Measured(problem=str(error)))
    except Exception as error:
        writing.send(Measured(problem=f"{type(error).__name__}: {error}"))


def _measured(estimator: Estimator, states_ND: np.ndarray, labels_N: np.ndarray) -> Measured:
    n, width = _WARM
    with suppress(InputError):  # too little for it: then the first use is the measured one
        estimator.estimate(np.ascontiguousarray(states_ND[:n, :width]), labels_N[:n])
    reset_peak_memory()
    before = peak_memory_gib()["host"]
    start = time.process_time()
    value = estimator.estimate(states_ND, labels_N)
    seconds = time.process_time() - start
    return Measured(value, seconds, (peak_memory_gib()["host"] - before) * 1024)
