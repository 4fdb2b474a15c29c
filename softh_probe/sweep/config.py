"""The configuration of a sweep: many checkpoints, one corpus, the settings of the measurement, the workers."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from softh_probe.config import EXECUTION_FIELDS, RunConfig, split_names
from softh_probe.config_checks import check_positive, check_range
from softh_probe.errors import InputError

#: Fields of a run that may change during a sweep, or differ among its checkpoints.
PER_CHECKPOINT_FIELDS = EXECUTION_FIELDS | {"model", "revision", "tokens_per_batch"}
#: Fields of a run that the sweep sets itself.
SWEEP_CONTROLLED_FIELDS = ("overwrite", "resume", "tensor_parallel")
#: Least values of whole numbers.
_LEAST = {
    "every": 1,
    "first": 1,
    "last": 1,
    "workers": 1,
    "cpus_per_worker": 1,
    "timeout_min": 1,
    "gpus_per_worker": 0,
    "retries": 0,
    "task_limit": 1,
    "task_num_fewshot": 0,
    "task_batch_size": 1,
}


@dataclass(frozen=True, kw_only=True)
class SweepConfig(RunConfig):
    """Many checkpoints, one corpus, and the settings of the measurement. Lists may be written with commas: `a,b`."""

    model: str | Sequence[str]  # type: ignore[assignment]
    """Checkpoints: hub ids (owner/name), local folders, .gguf files, or patterns of local folders (out/checkpoint-*).
    Hub ids that differ in the step alone are one training run."""
    revision: str | Sequence[str] | None = None  # type: ignore[assignment]
    """Revisions of each hub checkpoint: branches, tags or commits, or patterns of branches and tags (step*); null is
    the default branch alone."""
    report: bool = False
    """Write report.html and figures of each checkpoint too; the sweep's own are always written."""
    step_pattern: str | None = None
    """Regular expression that finds the training step, and tokens seen, in the name of a revision, folder or hub
    model, as groups (?P<step>…) and (?P<tokens>…); null knows step1000, step_20k, checkpoint-500,
    stage1-step1000-tokens5B and the like."""
    tokens_per_step: float | None = None
    """Tokens of one training step, for names that give the step alone."""
    every: int | None = None
    """Take each n-th checkpoint of a model in the order of steps, from the first on. The picks of every, first and
    last are united; with none of the three, all checkpoints are taken."""
    first: int | None = None
    """Take the first n checkpoints of each model."""
    last: int | None = None
    """Take the last n checkpoints of each model."""
    tasks: str | Sequence[str] | None = None
    """Tasks of lm-evaluation-harness on which each checkpoint is evaluated too, with its head, after it was measured;
    groups and tags are taken, too. A sweep that is resumed with other tasks evaluates only what is new; null evaluates
    nothing."""
    task_limit: int | None = None
    """Questions of each task, the first ones; null takes all. It cannot change where scores are there already."""
    task_num_fewshot: int | None = None
    """Examples before each question; null is what the task says. It cannot change where scores are there already."""
    task_path: str | None = None
    """Folder of further tasks as YAML files, which take precedence over those of the harness with equal names."""
    task_batch_size: int | None = None
    """Requests that a forward pass of an evaluation takes at once; null is 8 on a CPU and 16 elsewhere. It is halved
    where memory does not suffice."""
    launcher: Literal["local", "slurm"] = "local"
    """Place of the workers: local (processes on this machine) or slurm (an array job)."""
    workers: int | None = None
    """Greatest number of checkpoints measured at once; null is, locally, one for each GPU (or for each cpus_per_worker
    cores), and with slurm 8."""
    gpus_per_worker: int | None = None
    """GPUs that a worker sees; null is, locally, 1 where there are any, and with slurm none."""
    cpus_per_worker: int | None = None
    """CPU cores a worker uses; null is, locally, an equal share, and with slurm the cluster's default."""
    retries: int = 1
    """Times that a failed checkpoint is tried again before the sweep gives it up."""
    keep_checkpoints: bool = True
    """Keep hub checkpoints that the sweep downloads; off, each is removed once its result is safe."""
    disk_gb: float | None = None
    """Disk for the hub checkpoints that the sweep downloads, at any one time, in GB; null sets no limit."""
    timeout_min: int = 240
    """Slurm: time limit of a job, in minutes. A job that runs out of time requeues itself and resumes."""
    mem_gb: float | None = None
    """Slurm: memory of a job, in GB; null is the cluster's default."""
    slurm_partition: str | None = None
    """Slurm: partition, as sbatch takes it."""
    slurm_account: str | None = None
    """Slurm: account that is charged."""
    slurm_qos: str | None = None
    """Slurm: quality of service."""
    slurm_constraint: str | None = None
    """Slurm: features that nodes must have."""
    slurm_setup: Sequence[str] = ()
    """Slurm: shell commands that a job runs first (module load …)."""
    slurm_options: Mapping[str, str] | None = None
    """Slurm: further options of sbatch, by name ({exclude: node7})."""

    def _split_lists(self) -> None:
        super()._split_lists()
        object.__setattr__(self, "model", _split_names("model", self.model))
        if self.revision is not None:
            object.__setattr__(self, "revision", _split_names("revision", self.revision))
        if self.tasks is not None:
            object.__setattr__(self, "tasks", tuple(dict.fromkeys(_split_names("tasks", self.tasks))))
        object.__setattr__(self, "slurm_setup", tuple(self.slurm_setup))

    def _check_names(self) -> None:
        super()._check_names()
        if self.overwrite:
            raise InputError("overwrite: a sweep keeps what is finished; name a new output folder, or delete this one")
        if self.tensor_parallel != 1:
            raise InputError(
                "tensor_parallel: each worker of a sweep holds a whole model; leave it out, or measure the checkpoints "
                "one by one (torchrun … softh-probe run --tensor-parallel)"
            )
        if self.step_pattern is not None:
            _check_pattern(self.step_pattern)
        for name in ("task_limit", "task_num_fewshot", "task_path", "task_batch_size"):
            if getattr(self, name) is not None and not self.tasks:
                raise InputError(f"{name}: there are no tasks; name some (--tasks arc_easy), or leave it out")

    def _check_numbers(self) -> None:
        super()._check_numbers()
        for name, least in _LEAST.items():
            check_range(name, getattr(self, name), least, 2**31 - 1)
        for name in ("disk_gb", "mem_gb", "tokens_per_step"):
            check_positive(name, getattr(self, name))

    def run_config(self, *, model: str, revision: str | None, out: str | Path) -> RunConfig:
        """Make the configuration of one checkpoint's run, with absolute local paths."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(RunConfig)}
        data = os.path.abspath(os.path.expanduser(self.data)) if is_local(self.data) else self.data
        if self.tokenizer and is_local(self.tokenizer):
            values["tokenizer"] = os.path.abspath(os.path.expanduser(self.tokenizer))
        if values["anchors_sha256"]:
            values["anchors"] = os.path.abspath(os.path.expanduser(self.anchors))
        values |= {"model": model, "revision": revision, "out": str(out), "data": data, "resume": True}
        return RunConfig(**values)

    def measured(self) -> dict[str, Any]:
        """List the settings that decide a result's values, the checkpoint aside (JSON values).

        Local data is left out: its contents count, not its path.
        """
        return measured_fields(dataclasses.asdict(self.run_config(model="-", revision=None, out="-")))


def measured_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Select the fields that decide a run's values; fields that an older result lacks get their defaults."""
    found = {}
    for field in dataclasses.fields(RunConfig):
        if field.name in PER_CHECKPOINT_FIELDS or (field.name == "data" and is_local(str(values.get("data")))):
            continue
        value = values.get(field.name, field.default)
        found[field.name] = list(value) if isinstance(value, tuple) else value
    return found


def is_local(path: str) -> bool:
    """Tell whether a model or data set is a path here, or written as one."""
    return path.startswith((".", "/", "~")) or os.path.exists(os.path.expanduser(path))


def _split_names(field: str, value: str | Sequence[str]) -> tuple[str, ...]:
    is_one = field == "model" and isinstance(value, str) and os.path.exists(os.path.expanduser(value))
    names = (str(value),) if is_one else split_names(value)  # a folder's name may have a comma (Step 2,000)
    if not all(names) or not names:
        raise InputError(f"{field}: expected one name or more, got {list(names)!r}")
    return names


def _check_pattern(pattern: str) -> None:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"step_pattern: {pattern!r} is no regular expression: {error}") from error
    if "step" not in compiled.groupindex and compiled.groups != 1:
        raise InputError(f"step_pattern: {pattern!r} has no group (?P<step>…)")
