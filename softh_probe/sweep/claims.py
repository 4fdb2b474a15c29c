"""Who works on which checkpoint: a file each, which outlives no worker.

A claim appears whole or not at all and belongs to one worker. Whoever finds one whose worker is dead may break it: on
the same machine its processes are gone, on another its heartbeat has stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
import time
import uuid
from functools import cache
from pathlib import Path
from typing import Any

import psutil

#: Seconds between heartbeats, and of silence after which a worker elsewhere counts as dead.
BEAT_S, SILENCE_S = 10.0, 120.0


class Claims:
    """The claims in a folder.

    >>> import tempfile
    >>> one, other = (Claims(Path(tempfile.gettempdir()) / f"claims-{uuid.uuid4().hex}") for _ in range(2))
    >>> one.take("step1000"), one.take("step1000")
    (True, False)
    >>> one.release("step1000")
    >>> one.names()
    []
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._token = uuid.uuid4().hex

    def take(self, name: str, **more: Any) -> bool:
        """Claim a checkpoint, unless it is claimed."""
        owner = {"token": self._token, "place": place(), "host": socket.gethostname(), "since": time.time()}
        part = self._write({**owner, "processes": [process_identity(os.getpid())], **more})
        try:
            os.link(part, self._path(name))  # fails where there is one, on every file system
            return True
        except FileExistsError:
            return False
        finally:
            part.unlink()

    def add_process(self, name: str, pid: int) -> None:
        """The claim holds as long as this process lives, too."""
        owner = self.read(name)
        if owner and owner.get("token") == self._token:
            owner["processes"] = [*owner["processes"][:1], process_identity(pid)]
            os.replace(self._write(owner), self._path(name))

    def beat(self, name: str) -> bool:
        """Say that the worker lives; False where the claim is another's by now."""
        owner = self.read(name)
        if owner is None or owner.get("token") != self._token:
            return False
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._path(name))
        return True

    def release(self, name: str) -> None:
        """Give up one's own claim; another's stays."""
        owner = self.read(name)
        if owner and owner.get("token") == self._token:
            self._path(name).unlink(missing_ok=True)

    def break_dead(self, name: str) -> dict[str, Any] | None:
        """Remove the claim of a dead worker and return it; None where there is none. Call it under a lock."""
        owner = self.read(name)
        if owner is None or self.alive(name, owner):
            return None
        self._path(name).unlink(missing_ok=True)
        return owner

    def read(self, name: str) -> dict[str, Any] | None:
        try:
            return json.loads(self._path(name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def owner(self, name: str) -> dict[str, Any] | None:
        """Who works on a checkpoint, if that worker lives."""
        owner = self.read(name)
        return owner if owner is not None and self.alive(name, owner) else None

    def alive(self, name: str, owner: dict[str, Any]) -> bool:
        if owner.get("place") == place():
            return any(is_running(process) for process in owner["processes"])
        try:
            return self._now() - self._path(name).stat().st_mtime < SILENCE_S
        except OSError:
            return False

    def names(self) -> list[str]:
        """Checkpoints with a claim, dead or alive."""
        return sorted(path.stem for path in self.folder.glob("[!.]*.json"))

    def _now(self) -> float:
        """The file server's time: another machine's clock may be wrong."""
        try:
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".now-") as file:
                return os.fstat(file.fileno()).st_mtime
        except OSError:
            return time.time()

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _write(self, owner: dict[str, Any]) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / f".{uuid.uuid4().hex}.part"
        part.write_text(json.dumps(owner), encoding="utf-8")
        return part


@cache
def place() -> str:
    """Where process ids mean what they mean here: this machine since its start, this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} {psutil.boot_time():.0f}"


def process_identity(pid: int) -> list[Any]:
    """A process id and its start, which tell it from every other process of this machine."""
    return [pid, _start(pid)]


def is_running(identity: list[Any]) -> bool:
    """Whether a process lives still."""
    pid, start = identity
    return start is not None and _start(pid) == start


def _start(pid: int) -> str | None:
    """When a process started; None where there is none, or only what is left of it."""
    try:  # in ticks since the machine's start, which no change of the clock touches
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else fields[18]
    except (OSError, IndexError):
        if os.path.exists("/proc/self/stat"):
            return None
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.Error:
        return None
