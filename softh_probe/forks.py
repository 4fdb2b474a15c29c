"""Share independent tasks among forks of this process, one for each core."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

#: Of a task's index in the queue; a pipe holds 64 KB.
_INDEX_BYTES = 4


def n_cores() -> int:
    """Count the CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_in_forks(tasks: Sequence[Callable[[], None]], *, most: int | None = None) -> None:
    """Run tasks that only write files: some here, the others in forks, which share this process's memory.

    >>> import tempfile
    >>> from pathlib import Path
    >>> folder = Path(tempfile.mkdtemp())
    >>> run_in_forks([(folder / name).touch for name in "abc"], most=2)
    >>> sorted(path.name for path in folder.iterdir())
    ['a', 'b', 'c']

    Args:
        tasks: at most 16,384. Each process takes the next one when it has done one, so those that take longest should
            stand first.
        most: processes, this one included; None takes one for each core. On systems other than Linux, where a fork is
            unsafe, there is only this one.

    Raises:
        RuntimeError: a task in a fork failed, or its process was killed. What a task here raises is raised as it is.
    """
    n = max(1, min(len(tasks), n_cores() if most is None else most)) if sys.platform == "linux" else 1
    if n == 1:
        for task in tasks:
            task()
        return
    context: Any = multiprocessing.get_context("fork")
    queue, filling = os.pipe()
    with os.fdopen(filling, "wb") as end:
        end.write(b"".join(i.to_bytes(_INDEX_BYTES, "big") for i in range(len(tasks))))
    forks = []
    for _ in range(1, n):
        reading, writing = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(tasks, queue, writing), daemon=True)
        process.start()
        writing.close()
        forks.append((process, reading))
    try:
        for task in _left(tasks, queue):
            task()
    finally:
        os.close(queue)
        problems = [_problem(*fork) for fork in forks]
    if any(problems):
        raise RuntimeError(next(filter(None, problems)))


def _left(tasks: Sequence[Callable[[], None]], queue: int) -> Iterator[Callable[[], None]]:
    """Take one task after the other from the queue, a pipe with the index of each, which all processes read."""
    while index := os.read(queue, _INDEX_BYTES):
        yield tasks[int.from_bytes(index, "big")]


def _run(tasks: Sequence[Callable[[], None]], queue: int, writing: Connection) -> None:
    """Run tasks in a fork, and end it without the clean-up of the process that it was forked from."""
    code = 1
    try:
        for task in _left(tasks, queue):
            task()
        code = 0
    except Exception as error:
        writing.send(f"{type(error).__name__}: {error}")
    finally:
        os._exit(code)


def _problem(process: Any, reading: Connection) -> str | None:
    """Wait for a fork; return its problem, or None."""
    try:
        text = str(reading.recv())
    except EOFError:
        text = ""
    process.join()
    return None if process.exitcode == 0 else text or f"a process ended with exit code {process.exitcode}"
