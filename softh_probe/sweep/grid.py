"""The grid of a sweep: its checkpoints (models x revisions), in the order of the training steps in their names."""

from __future__ import annotations

import fnmatch
import glob
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from softh_probe.errors import InputError, abbreviated, first_sentence
from softh_probe.hashing import text_sha256
from softh_probe.sweep.config import SweepConfig, is_local
from softh_probe.sweep.steps import NameReading, read_name

_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True, kw_only=True)
class GridPoint:
    """One checkpoint of the grid.

    Attributes:
        checkpoint: its name in tables and figures, unique in the grid.
        model: as the user wrote it, or as a pattern of local folders found it.
        series: name of its training run: the hub id (with * in place of a step), or the parent folder of local
            checkpoints.
        revision: of a hub checkpoint, or None.
        step: of training, or None.
        tokens: seen in training, or None.
        step_note: what of step and tokens the name may mean otherwise, or None.
        recorded_step: step in the checkpoint's own record of training (trainer_state.json), or None.
        folder: name of its folder of results: safe on every file system, unique, and always the same.
    """

    checkpoint: str
    model: str
    series: str
    revision: str | None = None
    step: int | None = None
    tokens: int | None = None
    recorded_step: int | None = None
    step_note: str | None = None
    folder: str

    @property
    def local(self) -> bool:
        """Whether the checkpoint is a local folder or file."""
        return is_local(self.model)

    @property
    def source(self) -> str:
        """The `model` of its run: a hub id, or an absolute path."""
        return os.path.abspath(os.path.expanduser(self.model)) if self.local else self.model


def parse_step(name: str, pattern: str | None = None) -> tuple[int | None, int | None]:
    r"""Parse training step and tokens from a name; None for what it does not contain.

    >>> parse_step("stage1-step1000-tokens5B")
    (1000, 5000000000)
    >>> parse_step("checkpoint-500"), parse_step("main")
    ((500, None), (None, None))
    >>> parse_step("it00020_seen3M", r"it(?P<step>\d+)_seen(?P<tokens>\w+)")
    (20, 3000000)
    """
    reading = read_name(name, pattern)
    return reading.step, reading.tokens


def expand(config: SweepConfig) -> list[GridPoint]:
    """List the checkpoints of a configuration, by model and step.

    Raises:
        InputError: a pattern matches nothing, local folders are given revisions, or the hub cannot be reached.
    """
    series: dict[str, dict[str, GridPoint]] = {}
    for model in (found for name in config.model for found in _models(name)):
        for point in _points(model, config):
            series.setdefault(point.series, {})[point.folder] = point
    points: list[GridPoint] = []
    for found in series.values():
        in_order = sorted(found.values(), key=_order)
        points += select(in_order, every=config.every, first=config.first, last=config.last)
    return _labelled(points)


def inferred_steps(points: Sequence[GridPoint]) -> str | None:
    """Say which steps and tokens were read from names that may mean otherwise; None where all are certain."""
    notes = [f"{point.checkpoint}: {point.step_note}" for point in points if point.step_note]
    if not notes:
        return None
    return f"steps inferred from names ({abbreviated(notes, 8)}); where one is wrong, give step_pattern"


def select(points: Sequence[Any], *, every: int | None, first: int | None, last: int | None) -> list[Any]:
    """Select the points that every, first or last picks, in order.

    >>> select(range(10), every=4, first=2, last=1)
    [0, 1, 4, 8, 9]
    """
    if every is first is last is None:
        return list(points)
    n = len(points)
    taken = {*range(0, n, every or n + 1)} if every else set()
    taken |= {*range(min(first or 0, n))} | {*range(max(0, n - (last or 0)), n)}
    return [point for index, point in enumerate(points) if index in taken]


def _models(name: str) -> list[str]:
    """Expand a pattern of local folders; any other name stands for itself."""
    path = os.path.expanduser(name)
    if not _WILD.search(name):
        return [name]
    if os.path.exists(path):
        if others := [other for other in glob.glob(path, recursive=True) if other != path]:
            raise _two_readings(name, name, others[0], glob.escape(path))
        return [name]
    pattern = _with_literal_parents(name, path)
    found = _checkpoints(pattern) or _checkpoints(pattern.replace("[[]", "[").replace("[", "[[]"))
    if not found:
        raise InputError(f"model: {name!r} fits no folder here; check the pattern and the working directory")
    return found


def _checkpoints(pattern: str) -> list[str]:
    found = sorted(glob.glob(pattern, recursive=True))
    return [path for path in found if os.path.isdir(path) or path.endswith(".gguf")]


def _two_readings(name: str, folder: str, other: str, escaped: str) -> InputError:
    return InputError(
        f"model: {name!r}: there is a folder of the name {folder!r}, and as a pattern it fits {other!r}; write "
        f"{escaped!r} for the folder, or name the others"
    )


def _with_literal_parents(name: str, path: str) -> str:
    """Escape the folders of a pattern that exist under that very name: `[` is a letter there.

    Raises:
        InputError: a folder has that name, and others fit it as a pattern.
    """
    parts = path.split("/")
    for n, part in enumerate(parts[:-1]):
        literal, as_pattern = ("/".join([*parts[:n], end]) for end in (glob.escape(part), part))
        if literal == as_pattern or fnmatch.fnmatchcase(part, part) or not glob.glob(literal):
            continue
        if others := glob.glob(as_pattern):
            raise _two_readings(name, part, others[0], glob.escape(part))
        parts[n] = glob.escape(part)
    return "/".join(parts)


def _points(model: str, config: SweepConfig) -> list[GridPoint]:
    if is_local(model):
        return [_local_point(model, config)]
    of_model = _read_id(model, config.step_pattern)
    listed = [None] if config.revision is None else _revisions(model, list(config.revision))
    return [_hub_point(model, revision, of_model, config) for revision in listed]


def _local_point(model: str, config: SweepConfig) -> GridPoint:
    """Describe a local checkpoint by its name, and by its own record of training."""
    if config.revision and all(is_local(name) for name in config.model):
        revisions = ", ".join(config.revision)
        raise InputError(f"revision {revisions}: model {model!r} is local and has none; leave it out")
    path = Path(os.path.abspath(os.path.expanduser(model)))
    reading = read_name(path.name, config.step_pattern)
    trainer_state = _trainer_state(path)
    recorded = trainer_state.get("global_step")
    if recorded is not None and (reading.step is None or reading.note):
        note = reading.note if reading.tokens is not None else None
        reading = replace(reading, step=recorded, note=note)  # a record is surer than a guess
    if reading.tokens is None:
        reading = replace(reading, tokens=trainer_state.get("num_input_tokens_seen") or None)
    series = str(path.parent if reading.step is not None else path)
    return _point(config, reading, model=model, series=series, name=path.name, full=str(path), recorded=recorded)


def _hub_point(model: str, revision: str | None, of_model: NameReading, config: SweepConfig) -> GridPoint:
    """Describe a checkpoint on the hub by the name of its revision, or else of its model."""
    own = NameReading(series=model) if revision is None else read_name(revision, config.step_pattern)
    if own.step is not None or revision not in (None, "main"):
        name, full = str(revision), f"{model}@{revision}"
        return _point(config, own, model=model, series=model, revision=revision, name=name, full=full)
    return _point(
        config,
        of_model,
        model=model,
        series=model if of_model.step is None else of_model.series,
        revision=revision,
        name=revision or model.split("/")[-1],
        full=f"{model}@{revision}",
    )


def _point(
    config: SweepConfig,
    reading: NameReading,
    *,
    model: str,
    series: str,
    name: str,
    full: str,
    revision: str | None = None,
    recorded: int | None = None,
) -> GridPoint:
    tokens = reading.tokens
    if tokens is None and reading.step is not None and config.tokens_per_step is not None:
        tokens = round(reading.step * config.tokens_per_step)
    return GridPoint(
        checkpoint=full,
        model=model,
        series=series,
        revision=revision,
        step=reading.step,
        tokens=tokens,
        recorded_step=recorded,
        step_note=reading.note,
        folder=f"{_slug(name)}-{text_sha256(full)[:8]}",
    )


def _read_id(model: str, pattern: str | None) -> NameReading:
    """Read the name of a model on the hub, and with a pattern the whole id where the name alone does not fit it."""
    owner, _, name = model.rpartition("/")
    reading = read_name(name, pattern)
    if reading.step is None and pattern is not None:
        return read_name(model, pattern)
    return replace(reading, series=f"{owner}/{reading.series}" if owner else reading.series)


def _revisions(model: str, wanted: Sequence[str]) -> list[str | None]:
    """Expand patterns of a hub model's branches and tags; other names stand for themselves."""
    if not any(_WILD.search(name) for name in wanted):
        return list(wanted)
    from huggingface_hub import HfApi  # not for `softh-probe status`
    from huggingface_hub import errors as hub_errors

    from softh_probe.models.loading_errors import model_error

    try:
        refs = HfApi().list_repo_refs(model)
    except hub_errors.RepositoryNotFoundError as error:
        remedy = "check the name, or log in with 'hf auth login' if it is private"
        raise model_error(model, f"no such path here and no such model on the hub; {remedy}") from error
    except Exception as error:  # the client reports a missing connection in several ways
        problem = f"its branches and tags cannot be listed ({first_sentence(error)})"
        raise model_error(model, f"{problem}; check the network, or give revisions by name") from error
    known = list(dict.fromkeys(ref.name for ref in [*refs.branches, *refs.tags]))
    found: list[str | None] = []
    for name in wanted:
        fits = [ref for ref in known if fnmatch.fnmatchcase(ref, name)] if _WILD.search(name) else [name]
        if not fits:
            some = ", ".join(known[:5]) + (f" and {len(known) - 5} more" if len(known) > 5 else "")
            raise InputError(f"revision: {name!r} fits no branch or tag of {model}, which has {some or 'none'}")
        found += fits
    return list(dict.fromkeys(found))


def _trainer_state(folder: Path) -> dict[str, int]:
    """Read step and tokens from the file in which transformers' Trainer records its state, where there is one."""
    try:
        state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    values = state.items() if isinstance(state, dict) else ()
    return {name: value for name, value in values if isinstance(value, int) and not isinstance(value, bool)}


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:80] or "checkpoint"


def _order(point: GridPoint) -> tuple[bool, int, int]:
    return point.step is None, point.step or 0, point.tokens or 0  # without a step: as the user wrote them


def _labelled(points: list[GridPoint]) -> list[GridPoint]:
    """Name points by the shortest of three forms that is unique."""

    def path(depth: int) -> Callable[[GridPoint], str]:
        return lambda p: "/".join(Path(p.source).parts[-depth:]) if p.local else p.revision or p.model

    def full(p: GridPoint) -> str:
        return p.source if p.local or p.revision is None else f"{p.model}@{p.revision}"

    for name in (path(1), path(2), full):
        labels = [name(point) for point in points]
        if len(set(labels)) == len(labels):
            break
    return [replace(point, checkpoint=label) for point, label in zip(points, labels, strict=True)]
