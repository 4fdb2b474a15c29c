"""Output folders: results appear in them whole, or not at all; what an unfinished run leaves lies apart.

OUT/unfinished/             while a run is not done: what it writes, and its snapshots
OUT/result.json …           the results, when they are whole
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from softh_probe.errors import InputError
from softh_probe.result_files import RESULT_JSON, is_result

UNFINISHED = "unfinished"
_LOCK = ".lock"


@contextmanager
def output_folder(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder to write results into, whose files move to `path` when the block ends well.

    It is `path`/unfinished; when the block does not end well, folders of snapshots in it are all that stays. Files of
    other names that `path` may hold stay as they are.

    Raises:
        InputError: path holds results already (and overwrite is off), is a file, cannot be written, or another
            process is at work in it.
    """
    target = Path(path).expanduser().resolve()
    _refuse_taken(target, overwrite)
    existing = next(folder for folder in (target, *target.parents) if folder.exists())
    work = target / UNFINISHED
    try:
        work.mkdir(parents=True, exist_ok=True)
        held = ExitStack()
        _hold(held, work)
    except OSError as error:
        raise InputError(f"out: cannot write to {existing}: {error.strerror}; choose another folder") from error
    with held:
        _refuse_taken(target, overwrite)  # by a run that ended just now
        try:
            _clear(work)  # what a killed run left
            yield work
            (target / RESULT_JSON).unlink(missing_ok=True)
            # What marks results as whole comes last.
            for file in sorted(_files(work), key=lambda file: file.name == RESULT_JSON):
                os.replace(file, target / file.name)
            shutil.rmtree(work, ignore_errors=True)
        finally:
            _clear(work)
            _remove_empty(work, existing)


@contextmanager
def shared_folder(path: str | Path) -> Iterator[Path]:
    """Where a process that is not the first of a run may write snapshots: the folder of the first one's
    `output_folder`, or, on another machine, one of that name; what was made is removed if it is left empty.
    """
    work = Path(path).expanduser().resolve() / UNFINISHED
    try:
        yield work
    finally:
        with contextlib.suppress(OSError):
            work.rmdir()
            work.parent.rmdir()


def _hold(held: ExitStack, work: Path) -> None:
    """Keep other processes out of the folder, until this one is done or dead."""
    try:
        held.enter_context(FileLock(work / _LOCK, timeout=0))
    except Timeout as error:
        raise InputError(
            f"out: another process is writing to {work.parent}; wait for it, or choose another folder"
        ) from error
    except NotImplementedError:
        pass  # a file system without locks


def _files(work: Path) -> list[Path]:
    return [path for path in work.iterdir() if path.is_file() and path.name != _LOCK]


def _clear(work: Path) -> None:
    """Remove all but the snapshots."""
    if work.is_dir():
        for file in _files(work):
            file.unlink(missing_ok=True)


def _remove_empty(work: Path, existing: Path) -> None:
    """Remove the folders that were made, where there is nothing in them."""
    if work.is_dir() and not any(path.name != _LOCK for path in work.iterdir()):
        shutil.rmtree(work, ignore_errors=True)
    with contextlib.suppress(OSError):
        for folder in (work, *work.parents):
            if folder == existing:
                break
            if folder.exists():
                folder.rmdir()


def _refuse_taken(target: Path, overwrite: bool) -> None:
    if target.exists() and not target.is_dir():
        raise InputError(f"out: {target} is a file; name a folder")
    if is_result(target) and not overwrite:
        raise InputError(f"out: {target} already holds the results of a run; name another folder, or add --overwrite")
