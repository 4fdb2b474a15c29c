"""Claims of workers on checkpoints: a file each, valid as long as its worker lives.

A claim appears whole or not at all and belongs to one worker. A claim of a dead worker may be removed by any other: on
the same machine its processes have ended, on another its heartbeat has stopped.
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

from softh_probe.files import write_text

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
        """Claim a checkpoint and return True, unless it is claimed already."""
        owner = {"token": self._token, "place": place(), "host": socket.gethostname(), "since": time.time()}
        owner |= {"processes": [process_key(os.getpid())], **more}
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / f".{uuid.uuid4().hex}.part"
        try:
            part.write_text(json.dumps(owner), encoding="utf-8")
            os.link(part, self._path(name))  # fails where the name exists, on every file system
            return True
        except FileExistsError:
            return False
        finally:
            part.unlink(missing_ok=True)

    def add_process(self, name: str, pid: int) -> None:
        """Keep one's own claim valid as long as this process lives, too."""
        owner = self.read(name)
        if owner and owner.get("token") == self._token:
            owner["processes"] = [*owner["processes"][:1], process_key(pid)]
            write_text(self._path(name), json.dumps(owner))

    def beat(self, name: str) -> bool:
        """Renew the heartbeat; False where the claim belongs to another worker by now."""
        owner = self.read(name)
        if owner is None or owner.get("token") != self._token:
            return False
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._path(name))
        return True

    def release(self, name: str) -> None:
        """Remove one's own claim; another's stays."""
        owner = self.read(name)
        if owner and owner.get("token") == self._token:
            self._path(name).unlink(missing_ok=True)

    def break_dead(self, name: str) -> dict[str, Any] | None:
        """Remove the claim of a dead worker and return it, or None. To be called under a lock."""
        owner = self.read(name)
        if owner is None or self.alive(name, owner):
            return None
        self._path(name).unlink(missing_ok=True)
        return owner

    def read(self, name: str) -> dict[str, Any] | None:
        """Read a claim, of a live or a dead worker; None where there is none."""
        try:
            owner: dict[str, Any] = json.loads(self._path(name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return owner

    def owner(self, name: str) -> dict[str, Any] | None:
        """Read the claim of a live worker; None where there is none."""
        owner = self.read(name)
        return owner if owner is not None and self.alive(name, owner) else None

    def alive(self, name: str, owner: dict[str, Any]) -> bool:
        """Test whether the worker of a claim lives."""
        if owner.get("place") == place():
            return any(is_running(process) for process in owner["processes"])
        try:
            return self._now() - self._path(name).stat().st_mtime < SILENCE_S
        except OSError:
            return False

    def names(self) -> list[str]:
        """List the checkpoints with a claim, of live and dead workers."""
        return sorted(path.stem for path in self.folder.glob("[!.]*.json"))

    def _now(self) -> float:
        """Read the file server's clock, by which heartbeats are dated: clocks of machines differ."""
        try:
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".now-") as file:
                return os.fstat(file.fileno()).st_mtime
        except OSError:
            return time.time()

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"


@cache
def place() -> str:
    """Name the scope in which process ids are unique: this machine since its start, and this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} {psutil.boot_time():.0f}"


def process_key(pid: int) -> list[Any]:
    """Pair a process id with the process's start time, as ids are used again."""
    return [pid, _start(pid)]


def is_running(key: list[Any]) -> bool:
    """Test whether the process of a `process_key` still runs."""
    pid, start = key
    return start is not None and _start(pid) == start


def _start(pid: int) -> str | None:
    """Read when a process started; None where there is none, or only a zombie."""
    try:  # in ticks since the machine's start: independent of the clock
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
