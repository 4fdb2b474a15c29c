"""Hub checkpoints on this machine's disk: a few at a time.

A sweep records each download before it starts, so that a later process knows which files it may remove. Checkpoints
that were in the hub's cache before belong to the user and stay. Downloads and removals take turns, as revisions with
equal weights share a file.
"""

from __future__ import annotations

import fnmatch
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from filelock import Timeout
from huggingface_hub import HfApi, scan_cache_dir, try_to_load_from_cache
from huggingface_hub import errors as hub_errors

from softh_probe.errors import InputError
from softh_probe.models.source import fetch_weights, resolve_model, small_files
from softh_probe.sweep.config import SweepConfig
from softh_probe.sweep.folder import DONE, FAILED, SweepFolder
from softh_probe.sweep.grid import GridPoint

GB = 1e9

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Size:
    """A hub checkpoint's commit, and the bytes that a run downloads of it."""

    commit: str
    n_bytes: int


def size_on_hub(model: str, revision: str | None, *, allow_pickle: bool = False) -> Size:
    """Ask the hub for a checkpoint's commit and size."""
    info = HfApi().model_info(model, revision=revision, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or [] if "/" not in file.rfilename}
    weights = _fits(sizes, ["model.safetensors", "model-*.safetensors"])
    if not weights and allow_pickle:
        weights = _fits(sizes, ["pytorch_model.bin", "pytorch_model-*.bin"])
    small = _fits(sizes, small_files(False))
    return Size(commit=str(info.sha), n_bytes=sum(sizes[name] for name in {*weights, *small}))


def _fits(names: Any, patterns: Sequence[str]) -> list[str]:
    return [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]


class Downloads:
    """The hub checkpoints of a sweep."""

    def __init__(self, folder: SweepFolder, config: SweepConfig) -> None:
        self.folder, self.config = folder, config
        self.records = folder.work / "downloads"
        #: Whether anything is ever removed.
        self.managed = not config.keep_checkpoints or config.disk_gb is not None

    def fetch(self, point: GridPoint, *, ahead: bool = False) -> None:
        """Download a checkpoint, if it is not here.

        Args:
            point: the checkpoint.
            ahead: its turn is yet to come: do nothing if there is no room for it now.

        Raises:
            InputError: there is no such checkpoint, no network, or it is larger than disk_gb.
        """
        if point.local:
            return
        if not self.managed:
            self._download(point)
            return
        while not self._fetch_if_room(point, ahead=ahead):
            if ahead:
                return
            time.sleep(2)  # until a checkpoint that is being measured can be removed

    def _fetch_if_room(self, point: GridPoint, *, ahead: bool) -> bool:
        with self.folder.lock("downloads"):
            self._tidy()
            if (self.records / f"{point.folder}.json").exists():
                self._download(point)
                return True
            try:
                size = size_on_hub(point.model, point.revision, allow_pickle=self.config.allow_pickle)
            except Exception:  # the download explains the problem, or finds the files here
                self._download(point)
                return True
            if _has_weights(point.model, size.commit) and not self._recorded(size.commit):
                self._download(point)
                return True
            if not self._make_room(size.n_bytes, point, ahead=ahead):
                return False
            self.records.mkdir(parents=True, exist_ok=True)
            record = {"model": point.model, "commit": size.commit, "bytes": size.n_bytes}
            self.folder.write_json(f"downloads/{point.folder}.json", record)
            self._download(point)
            return True

    def _make_room(self, n_bytes: int, point: GridPoint, *, ahead: bool) -> bool:
        """Remove finished checkpoints (and waiting ones unless `ahead`) until n_bytes fit; False if they do not."""
        if self.config.disk_gb is None:
            return True
        cap = self.config.disk_gb * GB
        if n_bytes > cap:
            raise InputError(
                f"disk_gb: {point.checkpoint} alone takes {n_bytes / GB:.2f} GB, more than the {self.config.disk_gb:g} "
                "allowed; allow more"
            )
        held = self._held()

        def fits() -> bool:
            return sum(int(record["bytes"]) for record in held.values()) + n_bytes <= cap

        for removable in (DONE, FAILED, *(() if ahead else ("waiting",))):
            for name, record in list(held.items()):
                if fits():
                    return True
                if name != point.folder and self._status(name) == removable:
                    self._remove(name, record)
                    del held[name]
        return fits()

    def tidy(self, *, wait: bool = True) -> None:
        """Remove finished checkpoints, unless they are kept; without `wait`, only if no download is under way."""
        if self.config.keep_checkpoints:
            return
        try:
            with self.folder.lock("downloads").acquire(timeout=-1 if wait else 0):
                self._tidy()
        except Timeout:
            return

    def _tidy(self) -> None:
        if self.config.keep_checkpoints:
            return
        for name, record in self._held().items():
            if self._status(name) in (DONE, FAILED):
                self._remove(name, record)

    def _remove(self, name: str, record: dict[str, Any]) -> None:
        shared = [n for n, other in self._held().items() if n != name and other["commit"] == record["commit"]]
        if not any(self._status(other) not in (DONE, FAILED) for other in shared):
            remove_from_cache(record["model"], record["commit"])
        (self.records / f"{name}.json").unlink(missing_ok=True)

    def _held(self) -> dict[str, dict[str, Any]]:
        """Read the records of downloads that are on disk, by the names of their results."""
        found = {}
        for path in sorted(self.records.glob("[!.]*.json")) if self.records.is_dir() else ():
            if record := self.folder.read_json(f"downloads/{path.name}", None):
                found[path.stem] = record
        return found

    def _recorded(self, commit: str) -> bool:
        return any(record["commit"] == commit for record in self._held().values())

    def _status(self, name: str) -> str:
        point = GridPoint(checkpoint=name, model=name, series=name, folder=name)  # its folder decides
        return self.folder.state(point).status

    def _download(self, point: GridPoint) -> None:
        source = resolve_model(point.model, revision=point.revision)
        fetch_weights(
            source,
            trust_remote_code=self.config.trust_remote_code,
            allow_pickle=self.config.allow_pickle,
            variant=(self.config.model_kwargs or {}).get("variant"),
        )


def _has_weights(model: str, commit: str) -> bool:
    """Test whether the hub's cache has the weights of a commit."""
    names = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
    return any(isinstance(try_to_load_from_cache(model, name, revision=commit), str) for name in names)


def remove_from_cache(model: str, commit: str) -> None:
    """Remove a revision's files that no other revision in the hub's cache needs."""
    try:
        cache = scan_cache_dir()
    except hub_errors.CacheNotFound:
        return
    commits = {r.commit_hash for repo in cache.repos if repo.repo_id == model for r in repo.revisions}
    if commit in commits:
        cache.delete_revisions(commit).execute()
        logger.info("removed %s at %s from the hub's cache", model, commit[:12])
