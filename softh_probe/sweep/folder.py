"""What a sweep keeps on disk, from which any later command goes on.

In the folder that is the sweep's `out`:

config.yaml             the sweep, as `softh-probe sweep --config` takes it
checkpoints/NAME/       complete results
sweep.parquet …         the table of all, figures (collection.py)
work/grid.json          the checkpoints
work/claims, failures, logs, jobs, downloads
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from filelock import FileLock

from softh_probe.config import plain_config
from softh_probe.errors import InputError
from softh_probe.files import write_text
from softh_probe.result_files import LAYERS_PARQUET, RESULT_JSON, SUMS, is_result, read_info
from softh_probe.sweep.claims import Claims
from softh_probe.sweep.config import SWEEP_CONTROLLED_FIELDS, SweepConfig, is_local, measured_fields
from softh_probe.sweep.grid import GridPoint

if TYPE_CHECKING:
    import pyarrow as pa

DONE, RUNNING, FAILED, WAITING = "done", "running", "failed", "waiting"
#: Times that a checkpoint may lose its worker (killed, preempted without warning) before it counts as failed.
MOST_LOST = 5


@dataclass(kw_only=True)
class Failure:
    """What went wrong with a checkpoint since the sweep was last started.

    Attributes:
        failed: attempts that ended with an error or a crash.
        lost: attempts whose worker was killed.
        killed: attempts that the system killed, mostly for memory: the next one takes fewer tokens at once.
        final: it is not tried again.
        reason: of the last one, in a line.
        log: where more is said, in the sweep's folder.
        time: of the last one, in ISO format.
    """

    failed: int = 0
    lost: int = 0
    killed: int = 0
    final: bool = False
    reason: str = ""
    log: str = ""
    time: str = ""


@dataclass(frozen=True, kw_only=True)
class CheckpointStatus:
    """How a checkpoint stands: its status, and why or where."""

    status: str
    failure: Failure | None = None
    owner: Mapping[str, Any] | None = None


class SweepFolder:
    """A sweep's output folder."""

    def __init__(self, out: str | Path) -> None:
        self.path = Path(out).expanduser().absolute()
        self.work = self.path / "work"
        self.checkpoints = self.path / "checkpoints"
        self.claims = Claims(self.work / "claims")

    def lock(self, name: str = "sweep") -> FileLock:
        """A lock among all processes of the sweep."""
        self.work.mkdir(parents=True, exist_ok=True)
        return FileLock(self.work / f".{name}.lock")

    # --- what the sweep is --------------------------------------------------------------------------------

    def start(self, config: SweepConfig, points: Sequence[GridPoint]) -> None:
        """Make the folder the sweep's, or go on in it: what failed may be tried again.

        Raises:
            InputError: it holds results of another configuration or data, or something else; or cannot be written.
        """
        try:
            for folder in (self.checkpoints, self.logs, self.work / "failures"):
                folder.mkdir(parents=True, exist_ok=True)
            with self.lock():
                self.check(config)
                keep = {p.folder: p for p in self.known_points() if is_result(self.result(p))}
                asked = {p.folder: p for p in points}
                union = asked | {name: p for name, p in keep.items() if name not in asked}
                self.write_json("grid.json", [dataclasses.asdict(p) for p in union.values()])
                self.write_json("data.json", {"sha256": data_digest(config.data)})
                write_text(self.path / "config.yaml", config_yaml(config))
                for point in points:
                    failure = self.failure(point)
                    if failure and not self.claims.owner(point.folder):
                        self.failure_path(point).unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"out: cannot write to {self.path}: {error.strerror or error}") from error

    def check(self, config: SweepConfig) -> None:
        """Refuse a configuration that is not that of the results that are there; costs a look at each.

        Raises:
            InputError: what differs.
        """
        if is_result(self.path):
            raise InputError(f"out: {self.path} holds the results of a run; name another folder")
        wanted, found = config.measured(), None
        for folder in self.finished_folders():
            try:
                there = json.loads((folder / RESULT_JSON).read_text(encoding="utf-8"))["config"]
                found = measured_fields(there)
            except (OSError, ValueError, KeyError, TypeError):
                continue  # a damaged one is measured again
            self._refuse_other(wanted, found, folder.name)
        busy = any(self.claims.owner(name) for name in self.claims.names())
        if found is None and busy:
            there = yaml.safe_load((self.path / "config.yaml").read_text(encoding="utf-8"))
            self._refuse_other(wanted, measured_fields(there), "which is being measured")
        before = self.read_json("data.json", {}).get("sha256")
        if (found is not None or busy) and before != (now := data_digest(config.data)):
            raise InputError(
                f"data: the contents of {config.data} are not those that {self.path} was made from "
                f"(SHA-256 {str(before)[:12]}…, now {str(now)[:12]}…); name a new output folder"
            )

    def _refuse_other(self, wanted: Mapping[str, Any], there: Mapping[str, Any], where: str) -> None:
        changed = [f"{k} was {there.get(k)!r}, is {wanted.get(k)!r}" for k in wanted if wanted[k] != there.get(k)]
        if "data" in there.keys() ^ wanted.keys():
            changed.append("data was local, is on the hub" if "data" in wanted else "data was on the hub, is local")
        if changed:
            text = "; ".join(changed)
            raise InputError(
                f"out: {self.path} holds results of another configuration ({where}): {text}; name a new output folder, "
                "or go back to what it was"
            )

    def known_points(self) -> list[GridPoint]:
        """The grid as last started."""
        return [GridPoint(**values) for values in self.read_json("grid.json", [])]

    def is_sweep(self) -> bool:
        return (self.work / "grid.json").is_file()

    def finished_folders(self) -> list[Path]:
        if not self.checkpoints.is_dir():
            return []
        return sorted(path for path in self.checkpoints.iterdir() if path.name[0] != "." and is_result(path))

    # --- how its checkpoints stand ------------------------------------------------------------------------

    def result(self, point: GridPoint) -> Path:
        return self.checkpoints / point.folder

    def state(self, point: GridPoint) -> CheckpointStatus:
        """A checkpoint's status. It costs a few looks at the disk."""
        if is_result(self.result(point)):
            return CheckpointStatus(status=DONE)
        if owner := self.claims.owner(point.folder):
            return CheckpointStatus(status=RUNNING, owner=owner)
        failure = self.failure(point)
        return CheckpointStatus(status=FAILED if failure and failure.final else WAITING, failure=failure)

    def states(self, points: Iterable[GridPoint]) -> dict[GridPoint, CheckpointStatus]:
        """The status of each. Of checkpoints that nobody began, it costs no look at the disk."""
        # A worker lets go of a claim after it has written a result or a failure: in this order none is missed.
        folders = (self.claims.folder, self.work / "failures", self.checkpoints)
        begun = {name.removesuffix(".json") for folder in folders for name in _names_in(folder)}
        return {p: self.state(p) if p.folder in begun else CheckpointStatus(status=WAITING) for p in points}

    def failure(self, point: GridPoint) -> Failure | None:
        with contextlib.suppress(OSError, ValueError, TypeError):
            return Failure(**json.loads(self.failure_path(point).read_text(encoding="utf-8")))
        return None

    def record(
        self, point: GridPoint, reason: str, *, retries: int, lost: bool = False, killed: bool = False
    ) -> Failure:
        """Note a failed attempt."""
        failure = self.failure(point) or Failure()
        failure.failed += not lost
        failure.lost += lost
        failure.killed += killed
        failure.final = failure.failed > retries or failure.lost > MOST_LOST
        failure.reason = " ".join(reason.split())
        failure.log = str(self.log(point).relative_to(self.path))
        failure.time = datetime.now(UTC).isoformat(timespec="seconds")
        with self.log(point).open("a", encoding="utf-8") as log:
            log.write(f"--- {failure.time} {failure.reason}\n")
        write_text(self.failure_path(point), json.dumps(dataclasses.asdict(failure), indent=2))
        return failure

    def failure_path(self, point: GridPoint) -> Path:
        return self.work / "failures" / f"{point.folder}.json"

    @property
    def logs(self) -> Path:
        return self.work / "logs"

    def log(self, point: GridPoint) -> Path:
        return self.logs / f"{point.folder}.log"

    # --- files --------------------------------------------------------------------------------------------

    def read_json(self, name: str, default: Any) -> Any:
        try:
            return json.loads((self.work / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return default

    def write_json(self, name: str, value: Any) -> None:
        write_text(self.work / name, json.dumps(value, indent=1, ensure_ascii=False))


def _names_in(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def read_intact(folder: Path, *, whole: Sequence[str] = (LAYERS_PARQUET,)) -> tuple[dict[str, Any], pa.Table] | None:
    """What a result says of itself, and its table; None where one of its files cannot be read, or there is none.

    A power cut can leave files that are named but not filled.

    Args:
        whole: files that have to be as they were written, by their checksums.
    """
    import pyarrow as pa  # not for `softh-probe status`
    import pyarrow.parquet as pq
    from safetensors import SafetensorError, safe_open

    try:
        said = read_info(folder, whole=whole)
        table = pq.read_table(folder / LAYERS_PARQUET, use_threads=False)
        safe_open(folder / SUMS, framework="np").__exit__(None, None, None)
    except (OSError, ValueError, SafetensorError, pa.ArrowInvalid):
        return None
    return said, table


def is_intact(folder: Path) -> bool:
    """Whether a folder holds a result whose files are as they were written."""
    return read_intact(folder, whole=(LAYERS_PARQUET, SUMS)) is not None


def make_durable(folder: Path) -> None:
    """Let a folder's files reach the disk, so that no power cut can take them back."""
    for path in [*folder.iterdir(), folder, folder.parent]:
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def data_digest(data: str) -> str | None:
    """SHA-256 of local files' names and contents; None for data of the hub, whose version results carry."""
    path = Path(data).expanduser()
    if not is_local(data) or not path.exists():
        return None
    found = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        found.update(f"{file.relative_to(path)}\n".encode())
        with file.open("rb") as opened:
            found.update(hashlib.file_digest(opened, "sha256").digest())
    return found.hexdigest()


def config_yaml(config: SweepConfig) -> str:
    """The configuration as a file that `softh-probe sweep --config` takes."""
    plain = {name: value for name, value in plain_config(config).items() if name not in SWEEP_CONTROLLED_FIELDS}
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def duration(seconds: float) -> str:
    """A length of time in words.

    >>> duration(42), duration(200), duration(90_000), duration(400_000)
    ('42 s', '3 min', '25 h 00 min', '4.6 days')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
    return f"{seconds / 86400:.1f} days"
