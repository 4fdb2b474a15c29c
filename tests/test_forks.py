"""Tasks that forks share."""

import multiprocessing
import os
import signal
import sys
from functools import partial

import pytest

from softh_probe.forks import run_in_forks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is forked")


def write_pid(path):
    path.write_text(str(os.getpid()))


def fail():
    raise ValueError("no ink")


def one_each(barrier, here, in_fork):
    """Wait until both processes have a task; then do what this one has to."""
    barrier.wait(timeout=60)
    in_fork() if multiprocessing.parent_process() else here()


def two_tasks(here, in_fork):
    barrier = multiprocessing.get_context("fork").Barrier(2)
    return [partial(one_each, barrier, here, in_fork)] * 2


def test_every_task_runs_once_and_in_as_many_processes_as_asked_for(tmp_path):
    barrier = multiprocessing.get_context("fork").Barrier(3)
    together = [lambda i=i: (write_pid(tmp_path / str(i)), barrier.wait(timeout=60)) for i in range(6)]
    run_in_forks([*together, partial(write_pid, tmp_path / "6")], most=3)
    pids = [int((tmp_path / str(i)).read_text()) for i in range(7)]
    assert len(set(pids)) == 3
    assert os.getpid() in pids


def test_a_failure_in_a_fork_is_told_and_the_other_tasks_are_done(tmp_path):
    here = partial(write_pid, tmp_path / "a")
    with pytest.raises(RuntimeError, match=r"^ValueError: no ink$"):
        run_in_forks([*two_tasks(here, fail), *[partial(write_pid, tmp_path / name) for name in "bc"]], most=2)
    assert {path.name for path in tmp_path.iterdir()} == {*"abc"}
    with pytest.raises(RuntimeError, match="ended with exit code -9"):
        run_in_forks(
            two_tasks(partial(write_pid, tmp_path / "d"), lambda: os.kill(os.getpid(), signal.SIGKILL)), most=2
        )
    assert (tmp_path / "d").exists()


def test_a_failure_here_is_raised_as_it_is_once_the_forks_have_ended(tmp_path):
    with pytest.raises(ValueError, match="no ink"):
        run_in_forks([*two_tasks(fail, partial(write_pid, tmp_path / "b")), partial(write_pid, tmp_path / "c")], most=2)
    assert {path.name for path in tmp_path.iterdir()} == {*"bc"}


def test_nothing_to_do_is_no_error():
    run_in_forks([])
