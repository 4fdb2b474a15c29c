"""What an unfinished run has measured so far, on disk, so that it can go on from there.

    snapshots/00000012/             after 12 batches; the newest two are kept
        000.safetensors …           the sums of one row of layers each
        snapshot.json               which run, how far, and the SHA-256 of each file; its own checksum tells it whole

A snapshot appears whole, under its name, or not at all; one that was damaged later counts as none. Where several
processes measure a run, each has a folder of its own: snapshots-0-of-8 and so on.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from softh_probe.errors import InputError, ProbeError
from softh_probe.probe import STATE_VERSION, SoftEntropyProbe
from softh_probe.run.processes import ALONE, Processes

SNAPSHOT_JSON = "snapshot.json"
FORMAT = 1
_FOLDER = "snapshots"
_VERSIONS = (FORMAT, STATE_VERSION)
_KEPT = 2  # the newest, and the one before in case that is damaged


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is.

    Attributes:
        run: which run: what determines its numbers (JSON values).
        batches: done so far.
        seconds: that the forward pass took so far.
        interruptions: how often the run was stopped and went on.
    """

    run: dict[str, Any]
    batches: int
    seconds: float
    interruptions: int


class Snapshots:
    """The snapshots of one run, or of one of the processes that measure it.

    Args:
        work: folder of the unfinished run; one of its own in it is made when there is something to write.
        processes: those that measure the run, seen from the one whose snapshots these are.
    """

    def __init__(self, work: Path, processes: Processes = ALONE) -> None:
        self._work, self._count = work, processes.count
        of_process = f"-{processes.rank}-of-{processes.count}" if processes.count > 1 else ""
        self.folder = work / (_FOLDER + of_process)

    def of_another_count(self) -> int | None:
        """How many processes measured what lies here, where that is another number."""
        counts = {_count_of(path) for path in self._work.glob(f"{_FOLDER}*")}
        return next(iter(counts - {self._count}), None)

    def write(self, probe: SoftEntropyProbe, progress: Progress) -> None:
        """Add a snapshot, and drop all but the newest two. Takes the memory of one layer's sums.

        Raises:
            OSError: it could not be written; those that were there still are.
        """
        self._remove_parts()
        part = self.folder / f".{progress.batches:08d}.part"
        part.mkdir(parents=True)
        try:
            head, layers = probe.state_parts()
            files = {}
            for i, (row, state) in enumerate(layers):
                dim = state.pop("dim")
                content = save({name: tensor.cpu().contiguous() for name, tensor in state.items()})
                name = f"{i:03d}.safetensors"
                _write(part / name, content)
                files[row] = {"file": name, "sha256": hashlib.sha256(content).hexdigest(), "dim": dim}
            text = json.dumps({"format": FORMAT, **asdict(progress), "probe": head, "layers": files})
            _write(part / SNAPSHOT_JSON, f"{_checksum(text)}\n{text}\n".encode())
            target = self.folder / f"{progress.batches:08d}"
            shutil.rmtree(target, ignore_errors=True)  # a damaged one of the same place
            os.replace(part, target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        for old in self._newest_first()[_KEPT:]:
            shutil.rmtree(old, ignore_errors=True)

    def newest(self) -> tuple[Progress, dict[str, Any]] | None:
        """The newest whole snapshot: how far it is, and a state for `SoftEntropyProbe.load_state_dict`, whose layers
        are read one by one.

        Raises:
            InputError: it was written by another version of softh_probe, in a form that this one does not read.
        """
        for folder in self._newest_first():
            try:
                return _read(folder)
            except InputError:
                raise
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return None

    def clear(self) -> None:
        """Remove all."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def clear_others(self) -> None:
        """Remove those of another number of processes."""
        for path in self._work.glob(f"{_FOLDER}*"):
            if _count_of(path) != self._count:
                shutil.rmtree(path, ignore_errors=True)

    def _newest_first(self) -> list[Path]:
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted((path for path in found if path.name.isdecimal()), reverse=True)

    def _remove_parts(self) -> None:
        for part in self.folder.glob(".*.part"):
            shutil.rmtree(part, ignore_errors=True)


def _count_of(folder: Path) -> int:
    """How many processes a run had, from the name of a folder of its snapshots."""
    return int(folder.name.rpartition("-of-")[2]) if "-of-" in folder.name else 1


class _LayersOnDisk(Mapping[str, dict[str, Any]]):
    """The states of layers, each read when it is asked for."""

    def __init__(self, folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
        self._folder, self._files = folder, files

    def __getitem__(self, row: str) -> dict[str, Any]:
        file = self._files[row]
        path = self._folder / file["file"]
        try:
            # Copied, for loaded tensors may be views of the file.
            tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
        except (OSError, SafetensorError) as error:
            raise ProbeError(f"{path}: the snapshot cannot be read: {error}") from error
        return {"dim": file["dim"], **tensors}

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _read(folder: Path) -> tuple[Progress, dict[str, Any]]:
    """A snapshot; ValueError where it is not what was written, InputError where another version wrote it."""
    checksum, text = (folder / SNAPSHOT_JSON).read_text(encoding="utf-8").rstrip("\n").split("\n")
    if _checksum(text) != checksum:
        raise ValueError("altered")
    head = json.loads(text)
    if (versions := (head["format"], head["probe"]["version"])) != _VERSIONS:
        raise InputError(
            f"out: {folder} is a snapshot of another version of softh_probe (expected format and version {_VERSIONS}, "
            f"got {versions}) and is not converted: go on with the softh_probe that wrote it, name another folder, or "
            "add --no-resume to start anew"
        )
    for file in head["layers"].values():
        with (folder / file["file"]).open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != file["sha256"]:
                raise ValueError("altered")
    progress = Progress(**{name: head[name] for name in Progress.__dataclass_fields__})
    return progress, {**head["probe"], "layers": _LayersOnDisk(folder, head["layers"])}


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _write(path: Path, content: bytes) -> None:
    """Write, and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
