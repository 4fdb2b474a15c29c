"""Output folders, in which the results of a run appear complete or not at all.

OUT/unfinished/             files and snapshots of a run that is not finished
OUT/result.json …           the complete results
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from softh_probe.by_anchors import ANCHOR_FILES
from softh_probe.by_position_files import BIN_FILES
from softh_probe.errors import InputError
from softh_probe.result_files import DOCUMENTS_PARQUET, RESULT_JSON, is_result

UNFINISHED = "unfinished"
_LOCK = ".lock"


@contextmanager
def output_folder(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a folder to write results into; its files move to `path` when the block ends without an error.

    The folder is `path`/unfinished; after an error only the folders of snapshots are left in it. Files of other names
    in `path` stay as they are.

    Raises:
        InputError: path holds results already (and overwrite is off), is a file, cannot be written, or another
            process is writing to it.
    """
    target = Path(path).expanduser().resolve()
    _refuse_taken(target, overwrite)
    existing = next(folder for folder in (target, *target.parents) if folder.exists())
    work = target / UNFINISHED
    try:
        held = _made(work)
    except OSError as error:
        raise InputError(f"out: cannot write to {existing}: {error.strerror}; choose another folder") from error
    with held:
        _refuse_taken(target, overwrite)  # again, under the lock: a run may have ended since
        try:
            _clear(work)  # files of a killed run
            yield work
            for name in (RESULT_JSON, DOCUMENTS_PARQUET, *BIN_FILES.files, *ANCHOR_FILES.files):  # it may lack some
                (target / name).unlink(missing_ok=True)
            # result.json marks results as complete: it moves last.
            for file in sorted(_files(work), key=lambda file: file.name == RESULT_JSON):
                os.replace(file, target / file.name)
            shutil.rmtree(work, ignore_errors=True)
        finally:
            _clear(work)
            _remove_empty(work, existing)


@contextmanager
def shared_folder(path: str | Path) -> Iterator[Path]:
    """Give the folder in which a process that is not the first of a run writes its snapshots.

    It is that of the first process's `output_folder` or, on another machine, one of the same name. Empty folders are
    removed at the end.
    """
    work = Path(path).expanduser().resolve() / UNFINISHED
    try:
        yield work
    finally:
        with contextlib.suppress(OSError):
            work.rmdir()
            work.parent.rmdir()


def check_folder(path: str | Path, *, overwrite: bool = False) -> None:
    """Check that `output_folder` would give a folder to write into, without making one.

    Raises:
        InputError: path holds results already (and overwrite is off), is a file, or cannot be written.
    """
    target = Path(path).expanduser().resolve()
    _refuse_taken(target, overwrite)
    existing = next(folder for folder in (target, *target.parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"out: cannot write to {existing}; choose another folder")


def _made(work: Path, *, again: bool = True) -> ExitStack:
    """Make a folder and lock it; another process of the run, which fails, may remove it at this moment."""
    held = ExitStack()
    try:
        work.mkdir(parents=True, exist_ok=True)
        _hold(held, work)
    except (FileExistsError, FileNotFoundError):
        if work.exists() or not again:
            raise
        return _made(work, again=False)
    return held


def _hold(held: ExitStack, work: Path) -> None:
    """Lock the folder against other processes, until this one is done or dead."""
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
    """Remove all files; snapshots, which are folders, stay."""
    if work.is_dir():
        for file in _files(work):
            file.unlink(missing_ok=True)


def _remove_empty(work: Path, existing: Path) -> None:
    """Remove the folders that this run made, if they are empty."""
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
