"""The tasks of a sweep: checked before it starts, and described by lm-evaluation-harness."""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from softh_probe.errors import InputError, first_sentence, short_repr
from softh_probe.hashing import file_sha256
from softh_probe.sweep.config import SweepConfig
from softh_probe.sweep.folder import SweepFolder
from softh_probe.sweep.scores import Tasks


def check_tasks(config: SweepConfig) -> Tasks:
    """Check the tasks of a sweep before anything starts; nothing is downloaded for that.

    Raises:
        InputError: lm-evaluation-harness is not installed, it knows no such task, or `task_path` is no folder.
    """
    if not config.tasks:
        return Tasks()
    path = None
    if config.task_path is not None:
        path = os.path.abspath(os.path.expanduser(config.task_path))
        if not os.path.isdir(path):
            raise InputError(f"task_path: expected a folder of YAML files, got {short_repr(config.task_path)}")
    names = tuple(config.tasks)
    known = task_manager(path, names)
    for name in names:
        if name not in known.task_index:
            close = difflib.get_close_matches(name, known.all_tasks, n=3)
            meant = f"did you mean {' or '.join(close)}? " if close else ""
            raise InputError(
                f"tasks: lm-evaluation-harness knows no {name!r}; {meant}`lm-eval ls tasks` lists its tasks; those of "
                "your own are found by --task-path"
            )
    return Tasks(
        names=names,
        limit=config.task_limit,
        num_fewshot=config.task_num_fewshot,
        path=path,
        definitions=_definitions(known, path, names),
    )


def task_manager(path: str | None, names: Sequence[str]) -> Any:
    """Make the harness's `TaskManager` that knows the tasks: that of the folder alone if all are of it.

    The harness reads some 14,000 files of its own otherwise, once in a process.

    Raises:
        InputError: lm-evaluation-harness is not installed.
    """
    if path is not None and {*names} <= {*(own := _manager(path, False)).all_subtasks}:
        return own
    return _manager(path, True)


@cache
def _manager(path: str | None, with_defaults: bool) -> Any:
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise InputError(
            f"tasks: lm-evaluation-harness is not installed ({first_sentence(error)}): pip install '.[lm-eval]'"
        ) from error
    return TaskManager(include_path=path, include_defaults=with_defaults)


def _definitions(known: Any, path: str | None, names: Sequence[str]) -> dict[str, str]:
    """Digest the YAML files of the tasks that are from the user's folder."""
    found = {}
    for name in names:
        entry = known.task_index[name]
        file = entry["yaml_path"] if isinstance(entry, dict) else entry.yaml_path
        if path is not None and Path(str(file)).is_relative_to(path):
            found[name] = file_sha256(Path(file))
    return found


def know_tasks(folder: SweepFolder) -> None:
    """Read the tasks' descriptions, so that processes which are forked from this one have them."""
    tasks = folder.scores.asked()
    if tasks.names:
        with contextlib.suppress(InputError):  # raised again where a checkpoint is evaluated
            task_manager(tasks.path, tasks.names)
