"""The output folder of a sweep: its files, and the status of its checkpoints.

config.yaml             the sweep, as `softh-probe sweep --config` takes it
checkpoints/NAME/       complete results
evaluations/NAME/       their scores on tasks, with work/tasks.json and work/scores (scores.py)
sweep.parquet …         the table of all checkpoints, figures (collection.py)
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
from softh_probe.estimators.recipes import how_to_continue, how_to_continue_one_set, with_recipe
from softh_probe.files import write_text
from softh_probe.hashing import file_sha256
from softh_probe.result_files import LAYERS_PARQUET, RESULT_JSON, SUMS, is_result, read_info
from softh_probe.sweep.claims import Claims
from softh_probe.sweep.config import SWEEP_CONTROLLED_FIELDS, SweepConfig, is_local, measured_fields
from softh_probe.sweep.grid import GridPoint
from softh_probe.sweep.scores import Scores, Tasks

if TYPE_CHECKING:
    import pyarrow as pa

DONE, RUNNING, FAILED, WAITING = "done", "running", "failed", "waiting"
#: Times that a checkpoint may lose its worker (killed, preempted without warning) before it counts as failed.
MAX_LOST = 5


@dataclass(kw_only=True)
class Failure:
    """Failed attempts at a checkpoint since the sweep was last started.

    Attributes:
        failed: attempts that ended with an error or a crash.
        lost: attempts whose worker was killed.
        killed: attempts that the system killed, mostly for memory: the next one takes smaller batches.
        final: it is not tried again.
        reason: why the last attempt failed, in one line.
        log: path of the checkpoint's log in the sweep's folder.
        time: of the last attempt, in ISO format.
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
    """A checkpoint's status, with its last failure or the claim of its worker."""

    status: str
    failure: Failure | None = None
    owner: Mapping[str, Any] | None = None


class SweepFolder:
    """Reads and writes a sweep's output folder."""

    def __init__(self, out: str | Path) -> None:
        self.path = Path(out).expanduser().absolute()
        self.work = self.path / "work"
        self.checkpoints = self.path / "checkpoints"
        self.claims = Claims(self.work / "claims")
        self.scores = Scores(self.path)

    def lock(self, name: str = "sweep") -> FileLock:
        """Make a lock among all processes of the sweep."""
        self.work.mkdir(parents=True, exist_ok=True)
        return FileLock(self.work / f".{name}.lock")

    # --- configuration and grid ---------------------------------------------------------------------------

    def start(self, config: SweepConfig, points: Sequence[GridPoint], tasks: Tasks | None = None) -> None:
        """Set up the folder for a sweep, or resume the sweep in it; failed checkpoints are tried again.

        Args:
            config: the sweep.
            points: its checkpoints.
            tasks: on which they are evaluated, too.

        Raises:
            InputError: it holds results of another configuration or of other data, or scores on one of the tasks of
                other settings; or cannot be written.
        """
        tasks = tasks or Tasks()
        try:
            for folder in (self.checkpoints, self.logs, self.work / "failures"):
                folder.mkdir(parents=True, exist_ok=True)
            with self.lock():
                self.check(config)
                self.scores.check(tasks)
                keep = {p.folder: p for p in self.known_points() if is_result(self.result(p))}
                asked = {p.folder: p for p in points}
                union = asked | {name: p for name, p in keep.items() if name not in asked}
                self.write_json("grid.json", [dataclasses.asdict(p) for p in union.values()])
                self.write_json("data.json", {"sha256": data_digest(config.data)})
                self.scores.ask(tasks)
                write_text(self.path / "config.yaml", config_yaml(config))
                for point in points:
                    failure = self.failure(point)
                    if failure and not self.claims.owner(point.folder):
                        self.failure_path(point).unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"out: cannot write to {self.path}: {error.strerror or error}") from error

    def check(self, config: SweepConfig) -> None:
        """Check that a configuration is that of the results in the folder; reads result.json of each.

        Raises:
            InputError: configuration or data differ.
        """
        if is_result(self.path):
            raise InputError(f"out: {self.path} holds the results of a run; name another folder")
        wanted, found = config.measured(), None
        for folder in self.finished_folders():
            try:
                there = with_recipe(json.loads((folder / RESULT_JSON).read_text(encoding="utf-8")))["config"]
                found = measured_fields(there)
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
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
            other_anchors = wanted.get("anchors") != there.get("anchors")
            remedy = how_to_continue(there.get("anchors"), "--anchors ") if other_anchors else ""
            sets = (there.get("anchor_sets"), wanted.get("anchor_sets"))
            remedy += how_to_continue_one_set(*sets, "--anchor-sets ")
            raise InputError(
                f"out: {self.path} holds results of another configuration ({where}): {text}; name a new output folder, "
                f"or go back to what it was{remedy}"
            )

    def known_points(self) -> list[GridPoint]:
        """Read the checkpoints of the sweep, as it was last started."""
        return [GridPoint(**values) for values in self.read_json("grid.json", [])]

    def is_sweep(self) -> bool:
        """Test whether the folder holds a sweep."""
        return (self.work / "grid.json").is_file()

    def finished_folders(self) -> list[Path]:
        """List the folders of checkpoints that have a result."""
        if not self.checkpoints.is_dir():
            return []
        return sorted(path for path in self.checkpoints.iterdir() if path.name[0] != "." and is_result(path))

    # --- status of checkpoints ----------------------------------------------------------------------------

    def result(self, point: GridPoint) -> Path:
        """Give the folder of a checkpoint's result."""
        return self.checkpoints / point.folder

    def is_done(self, point: GridPoint) -> bool:
        """Test whether a checkpoint has its result, and its scores on all tasks that are asked for."""
        return is_result(self.result(point)) and not self.scores.missing(point.folder)

    def state(self, point: GridPoint) -> CheckpointStatus:
        """Read a checkpoint's status from a few files."""
        if self.is_done(point):
            return CheckpointStatus(status=DONE)
        if owner := self.claims.owner(point.folder):
            return CheckpointStatus(status=RUNNING, owner=owner)
        failure = self.failure(point)
        return CheckpointStatus(status=FAILED if failure and failure.final else WAITING, failure=failure)

    def states(self, points: Iterable[GridPoint]) -> dict[GridPoint, CheckpointStatus]:
        """Read the status of checkpoints. No files are read for those that no worker has begun."""
        # A worker writes a result or a failure before it releases its claim: in this order none is missed.
        folders = (self.claims.folder, self.work / "failures", self.checkpoints)
        begun = {name.removesuffix(".json") for folder in folders for name in _names_in(folder)}
        return {p: self.state(p) if p.folder in begun else CheckpointStatus(status=WAITING) for p in points}

    def failure(self, point: GridPoint) -> Failure | None:
        """Read the failed attempts at a checkpoint; None where there are none."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            return Failure(**json.loads(self.failure_path(point).read_text(encoding="utf-8")))
        return None

    def record(
        self, point: GridPoint, reason: str, *, retries: int, lost: bool = False, killed: bool = False
    ) -> Failure:
        """Record a failed attempt, in the checkpoint's log too."""
        failure = self.failure(point) or Failure()
        failure.failed += not lost
        failure.lost += lost
        failure.killed += killed
        failure.final = failure.failed > retries or failure.lost > MAX_LOST
        failure.reason = " ".join(reason.split())
        failure.log = str(self.log(point).relative_to(self.path))
        failure.time = datetime.now(UTC).isoformat(timespec="seconds")
        with self.log(point).open("a", encoding="utf-8") as log:
            log.write(f"--- {failure.time} {failure.reason}\n")
        write_text(self.failure_path(point), json.dumps(dataclasses.asdict(failure), indent=2))
        return failure

    def failure_path(self, point: GridPoint) -> Path:
        """Give the file of a checkpoint's failed attempts."""
        return self.work / "failures" / f"{point.folder}.json"

    @property
    def logs(self) -> Path:
        """Folder of the checkpoints' logs."""
        return self.work / "logs"

    def log(self, point: GridPoint) -> Path:
        """Give the log file of a checkpoint."""
        return self.logs / f"{point.folder}.log"

    # --- files --------------------------------------------------------------------------------------------

    def read_json(self, name: str, default: Any) -> Any:
        """Read a JSON file in `work`; the default where there is none, or a damaged one."""
        try:
            return json.loads((self.work / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return default

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file in `work`, at once or not at all."""
        write_text(self.work / name, json.dumps(value, indent=1, ensure_ascii=False))


def _names_in(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def read_intact(folder: Path, *, whole: Sequence[str] = (LAYERS_PARQUET,)) -> tuple[dict[str, Any], pa.Table] | None:
    """Read a result's information and its table; None if a file is missing or damaged.

    After a power cut, files may have their names but not their contents.

    Args:
        folder: of the result.
        whole: files whose checksums are verified.
    """
    import pyarrow as pa  # not for `softh-probe status`
    import pyarrow.parquet as pq
    from safetensors import SafetensorError, safe_open

    try:
        info = read_info(folder, whole=whole)
        table = pq.read_table(folder / LAYERS_PARQUET, use_threads=False)
        safe_open(folder / SUMS, framework="np").__exit__(None, None, None)
    except (OSError, ValueError, SafetensorError, pa.ArrowInvalid):
        return None
    return info, table


def is_intact(folder: Path) -> bool:
    """Test whether a folder holds a result with intact files, by their checksums."""
    return read_intact(folder, whole=(LAYERS_PARQUET, SUMS)) is not None


def make_durable(folder: Path) -> None:
    """Wait until a folder's files are on the disk, so that they survive a power cut."""
    for path in [*folder.iterdir(), folder, folder.parent]:
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def data_digest(data: str) -> str | None:
    """Compute the SHA-256 of local files' names and contents; None for hub data, whose version results record."""
    path = Path(data).expanduser()
    if not is_local(data) or not path.exists():
        return None
    found = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        found.update(f"{file.relative_to(path)}\n".encode())
        found.update(bytes.fromhex(file_sha256(file)))
    return found.hexdigest()


def config_yaml(config: SweepConfig) -> str:
    """Format the configuration as a file for `softh-probe sweep --config`."""
    plain = {name: value for name, value in plain_config(config).items() if name not in SWEEP_CONTROLLED_FIELDS}
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
