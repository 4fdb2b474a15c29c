"""Output folders: results appear in them whole, or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from softh_probe.errors import InputError
from softh_probe.result import RESULT_JSON, is_result


@contextmanager
def output_folder(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder to write results into, whose files move to `path` when the block ends well.

    Files of other names that `path` may hold stay as they are.

    Raises:
        InputError: path holds results already (and overwrite is off), is a file, or cannot be written.
    """
    target = Path(path).expanduser().resolve()
    _refuse_taken(target, overwrite)
    # Beside where the files go, so that moving them is renaming them: a target may be another file system's.
    existing = next(folder for folder in (target, *target.parents) if folder.exists())
    try:
        part = Path(tempfile.mkdtemp(prefix=f".{target.name}.part-", dir=existing))
    except OSError as error:
        raise InputError(f"out: cannot write to {existing}: {error.strerror}; choose another folder") from error
    try:
        yield part
        _refuse_taken(target, overwrite)
        target.mkdir(parents=True, exist_ok=True)
        (target / RESULT_JSON).unlink(missing_ok=True)
        # What marks results as whole comes last.
        for file in sorted(part.iterdir(), key=lambda file: file.name == RESULT_JSON):
            os.replace(file, target / file.name)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _refuse_taken(target: Path, overwrite: bool) -> None:
    if target.exists() and not target.is_dir():
        raise InputError(f"out: {target} is a file; name a folder")
    if is_result(target) and not overwrite:
        raise InputError(f"out: {target} already holds the results of a run; name another folder, or add --overwrite")
