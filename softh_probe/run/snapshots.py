"""Snapshots of an unfinished run, from which it can be resumed.

    snapshots/00000012/             after 12 batches; the newest two are kept
        000.safetensors …           the sums of one layer each
        labels.safetensors          the keys and rows of labels, where no plan determines them
        snapshot.json               fingerprint and progress of the run, the SHA-256 of each file, and its own checksum

A snapshot appears whole, under its name, or not at all; a damaged one is ignored. Where several processes measure a
run, each has a folder of its own: snapshots-0-of-8 and so on. Of those that hold one model, the first one writes.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from softh_probe.accumulators.states import STATE_VERSION, VERSION_WITHOUT_RECIPE, VERSIONS
from softh_probe.errors import InputError, Interrupted, LostProcessError, ProbeError
from softh_probe.estimators.recipes import with_kind_of_today
from softh_probe.hashing import bytes_sha256, file_sha256, text_sha256
from softh_probe.measurement import Measurement
from softh_probe.run.processes import ALONE, Processes
from softh_probe.run.signals import StopRequests

SNAPSHOT_JSON, LABELS = "snapshot.json", "labels.safetensors"
FORMAT = 1
_FOLDER = "snapshots"
_VERSIONS = (FORMAT, STATE_VERSION)
_TENSOR = "tensor"
_KEPT = 2  # the newest, and its predecessor in case the newest is damaged
#: Largest share of the run's time that writing snapshots may take.
MAX_TIME_SHARE = 0.01

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Progress of a run.

    Attributes:
        run: fingerprint of the run: everything that determines its numbers (JSON values).
        batches: done so far.
        seconds: wall time of the forward pass so far.
        interruptions: times that the run was resumed.
        feed: where the reading of documents goes on, where these are read as they come (JSON values).
    """

    run: dict[str, Any]
    batches: int
    seconds: float
    interruptions: int
    feed: dict[str, Any] = field(default_factory=dict)


class Snapshots:
    """The snapshots of one run, or of one of the processes that measure it.

    Args:
        work: folder of the unfinished run; the snapshots' own folder in it is made by the first write.
        processes: the processes of the run, seen from the one that writes these snapshots.
    """

    def __init__(self, work: Path, processes: Processes = ALONE) -> None:
        self._work, self._count = work, processes.n_shares
        of_process = f"-{processes.share}-of-{processes.n_shares}" if processes.n_shares > 1 else ""
        self.folder = work / (_FOLDER + of_process)

    def of_another_count(self) -> int | None:
        """Number of processes of the unfinished run that lies here, if it differs from this run's."""
        counts = {_count_of(path) for path in self._work.glob(f"{_FOLDER}*")}
        return next(iter(counts - {self._count}), None)

    def write(self, probe: Measurement, progress: Progress) -> None:
        """Add a snapshot and remove all but the newest two. Takes the memory of one layer's sums.

        Raises:
            OSError: it could not be written; earlier snapshots are kept.
        """
        self._remove_parts()
        part = self.folder / f".{progress.batches:08d}.part"
        part.mkdir(parents=True)
        try:
            head, layers = probe.state_parts()
            files: dict[str, Any] = {}
            tensors: dict[str, Tensor] = {}
            head = {**head, "rows": _without_tensors(head["rows"], tensors)}
            for i, (layer, state) in enumerate(layers):
                dim = state.pop("dim")
                content = save({name: tensor.cpu().contiguous() for name, tensor in state.items()})
                name = f"{i:03d}.safetensors"
                _write_durably(part / name, content)
                files[layer] = {"file": name, "sha256": bytes_sha256(content), "dim": dim}
            described = {"format": FORMAT, **asdict(progress), "probe": head, "layers": files}
            if tensors:
                content = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
                _write_durably(part / LABELS, content)
                described["labels"] = bytes_sha256(content)
            text = json.dumps(described)
            _write_durably(part / SNAPSHOT_JSON, f"{text_sha256(text)}\n{text}\n".encode())
            target = self.folder / f"{progress.batches:08d}"
            shutil.rmtree(target, ignore_errors=True)  # a damaged snapshot of the same progress
            os.replace(part, target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        for old in self._newest_first()[_KEPT:]:
            shutil.rmtree(old, ignore_errors=True)

    def newest(self) -> tuple[Progress, dict[str, Any]] | None:
        """Load the newest intact snapshot: its progress, and a state for `load_state_dict`.

        The state reads its layers one by one, when they are asked for.

        Raises:
            InputError: it was written by another version of softh_probe, in a format that this one does not read.
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
        """Remove all snapshots."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def clear_others(self) -> None:
        """Remove snapshots of runs with another number of processes."""
        for path in self._work.glob(f"{_FOLDER}*"):
            if _count_of(path) != self._count:
                shutil.rmtree(path, ignore_errors=True)

    def _newest_first(self) -> list[Path]:
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted((path for path in found if path.name.isdecimal()), reverse=True)

    def _remove_parts(self) -> None:
        for part in self.folder.glob(".*.part"):
            shutil.rmtree(part, ignore_errors=True)


class SnapshotTimer:
    """Writes a snapshot when one is due or the run is asked to stop; to be called after each batch.

    Args:
        snapshots: where to write them.
        probe: whose state is written.
        start: progress of the run when this process started.
        stop: requests to stop.
        n_batches: batches of this process; None where nobody knows.
        minutes: between snapshots; 0 writes one only when asked to stop.
        feed_state: gives `Progress.feed`.
        unit: what batches are called.
        processes: those of the run; those of one model stop after the same batch, and the first of them writes.

    Raises:
        Interrupted: when called after a request to stop.
    """

    def __init__(
        self,
        snapshots: Snapshots,
        probe: Measurement,
        start: Progress,
        stop: StopRequests,
        *,
        n_batches: int | None,
        minutes: float,
        feed_state: Callable[[], dict[str, Any]] = dict,
        unit: str = "batches",
        processes: Processes = ALONE,
    ) -> None:
        self._snapshots, self._probe, self._stop = snapshots, probe, stop
        self._start, self._n_batches, self._feed_state = start, n_batches, feed_state
        self._unit, self._processes = unit, processes
        self._interval = 60 * minutes if minutes else np.inf
        self._began = time.monotonic()
        self._due = self._began + self._interval
        self._done = self._written = start.batches

    @property
    def seconds(self) -> float:
        """Wall time of the forward pass so far, that of earlier processes of this run included."""
        return self._start.seconds + time.monotonic() - self._began

    def __call__(self, batches: int) -> None:
        """Write a snapshot if it is time, after so many batches."""
        self._done = batches
        if batches == self._n_batches:
            return
        asked = self._processes.stop_together(self._stop.requested)
        if asked or time.monotonic() >= self._due:
            self._write()
        self._end_if(asked)

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Write a snapshot of what is done if data cannot be read in the block."""
        try:
            yield
        except InputError:
            if self._done > self._written:
                self._write()
            raise

    def wait(self, processes: Processes, *, keep: bool = False) -> None:
        """Wait for the other processes after the last batch; write a snapshot if one of them is lost.

        Args:
            processes: those of this run.
            keep: write a snapshot in any case, so that an interruption of what follows does not lose the batches.

        Raises:
            LostProcessError: another process has ended.
            Interrupted: the same, after a request to stop.
        """
        try:
            processes.wait()
        except LostProcessError:
            self._write()
            self._end_if(self._stop.requested)
            raise
        if keep:
            if self._done > self._written:
                self._write()
            self._end_if(self._processes.stop_together(self._stop.requested))

    def _end_if(self, signal: int | None) -> None:
        if signal:
            of_all = "" if self._n_batches is None else f" of {self._n_batches:,}"
            where = f"after {self._written:,}{of_all} {self._unit}; the same command resumes from there"
            raise Interrupted(signal, where if self._written else "and could not write a snapshot")

    def _write(self) -> None:
        if not self._processes.measures:
            self._written = self._done
            return
        started = time.monotonic()
        progress = Progress(
            run=self._start.run,
            batches=self._done,
            seconds=self.seconds,
            interruptions=self._start.interruptions,
            feed=self._feed_state(),
        )
        try:
            self._snapshots.write(self._probe, progress)
            self._written = self._done
        except OSError as error:
            logger.warning("no snapshot could be written (%s); continuing", error)
        took = time.monotonic() - started
        self._due = time.monotonic() + max(self._interval, took / MAX_TIME_SHARE)


def _count_of(folder: Path) -> int:
    """Parse a run's number of processes from the name of a snapshot folder."""
    return int(folder.name.rpartition("-of-")[2]) if "-of-" in folder.name else 1


class _LayersOnDisk(Mapping[str, dict[str, Any]]):
    """The states of layers by name, each read when it is asked for."""

    def __init__(self, folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
        self._folder, self._files = folder, files

    def __getitem__(self, layer: str) -> dict[str, Any]:
        file = self._files[layer]
        path = self._folder / file["file"]
        try:
            # Copied: loaded tensors may be views of the file.
            tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
        except (OSError, SafetensorError) as error:
            raise ProbeError(f"{path}: the snapshot cannot be read: {error}") from error
        return {"dim": file["dim"], **tensors}

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _read(folder: Path) -> tuple[Progress, dict[str, Any]]:
    """Read a snapshot's progress and state.

    Raises:
        ValueError: it was altered since it was written.
        InputError: another version of softh_probe wrote it.
    """
    checksum, text = (folder / SNAPSHOT_JSON).read_text(encoding="utf-8").rstrip("\n").split("\n")
    if text_sha256(text) != checksum:
        raise ValueError("altered")
    head = json.loads(text)
    versions = (head["format"], head["probe"]["version"])
    if versions not in [(FORMAT, version) for version in VERSIONS]:
        raise InputError(
            f"out: {folder} is a snapshot of another version of softh_probe (expected format and version {_VERSIONS}, "
            f"got {versions}) and is not converted: continue with the softh_probe that wrote it, name another "
            "folder, or add --no-resume to start anew"
        )
    if versions == (FORMAT, VERSION_WITHOUT_RECIPE):
        head["run"]["config"] = with_kind_of_today(head["run"]["config"])
    for file in head["layers"].values():
        if file_sha256(folder / file["file"]) != file["sha256"]:
            raise ValueError("altered")
    state = {**head["probe"], "layers": _LayersOnDisk(folder, head["layers"])}
    if "labels" in head:
        if file_sha256(folder / LABELS) != head["labels"]:
            raise ValueError("altered")
        state["rows"] = _with_tensors(state["rows"], load_file(folder / LABELS))
    head.setdefault("feed", {})  # snapshots of before have none
    return Progress(**{name: head[name] for name in Progress.__dataclass_fields__}), state


def _without_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Replace the tensors in nested values by their names, and collect them by these."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value
        return {_TENSOR: name}
    if isinstance(value, Mapping):
        return {key: _without_tensors(item, tensors) for key, item in value.items()}
    return [_without_tensors(item, tensors) for item in value] if isinstance(value, list | tuple) else value


def _with_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Undo `_without_tensors`; tuples have become lists."""
    if isinstance(value, dict):
        if value.keys() == {_TENSOR}:
            return tensors[value[_TENSOR]].clone()  # loaded tensors may be views of the file
        return {key: _with_tensors(item, tensors) for key, item in value.items()}
    return [_with_tensors(item, tensors) for item in value] if isinstance(value, list) else value


def _write_durably(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
