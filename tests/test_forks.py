"""Tasks that forks share."""

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


def test_every_task_runs_once_and_in_as_many_processes_as_asked_for(tmp_path):
    run_in_forks([partial(write_pid, tmp_path / str(i)) for i in range(7)], most=3)
    pids = [int((tmp_path / str(i)).read_text()) for i in range(7)]
    assert len(set(pids)) == 3
    assert pids[0] == pids[3] == pids[6] == os.getpid()


def test_a_failure_in_a_fork_is_told_and_the_other_tasks_are_done(tmp_path):
    with pytest.raises(RuntimeError, match=r"^ValueError: no ink$"):
        run_in_forks([partial(write_pid, tmp_path / "a"), fail, partial(write_pid, tmp_path / "c")], most=2)
    assert (tmp_path / "c").exists()
    with pytest.raises(RuntimeError, match="ended with exit code -9"):
        run_in_forks([partial(write_pid, tmp_path / "d"), lambda: os.kill(os.getpid(), signal.SIGKILL)], most=2)
    assert (tmp_path / "d").exists()


def test_a_failure_here_is_raised_as_it_is_once_the_forks_have_ended(tmp_path):
    with pytest.raises(ValueError, match="no ink"):
        run_in_forks([fail, partial(write_pid, tmp_path / "b")], most=2)
    assert (tmp_path / "b").exists()


def test_nothing_to_do_is_no_error():
    run_in_forks([])
