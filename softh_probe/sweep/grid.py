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

from softh_probe.errors import InputError, first_sentence
from softh_probe.hashing import text_sha256
from softh_probe.sweep.config import SweepConfig, is_local

_NUMBER = r"(\d+(?:\.\d+)?[kmbt]?)(?![a-z0-9])"
_STEP = re.compile(rf"(?:step|checkpoint|ckpt|iter|iteration)s?[-_ ]?{_NUMBER}", re.IGNORECASE)
_TOKENS = re.compile(rf"tokens?[-_ ]?{_NUMBER}", re.IGNORECASE)
_SUFFIXES = {"k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True, kw_only=True)
class GridPoint:
    """One checkpoint of the grid.

    Attributes:
        checkpoint: its name in tables and figures, unique in the grid.
        model: as the user wrote it, or as a pattern of local folders found it.
        series: name of its training run: the hub id, or the parent folder of local checkpoints.
        revision: of a hub checkpoint, or None.
        step: of training, or None.
        tokens: seen in training, or None.
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
    if pattern is None:
        step, tokens = _STEP.search(name), _TOKENS.search(name)
        if step is None and name.isdecimal():
            return int(name), None
        return (_number(step[1]) if step else None), (_number(tokens[1]) if tokens else None)
    found = re.search(pattern, name)
    if found is None:
        return None, None
    groups = found.groupdict()
    try:
        tokens_text = groups.get("tokens")
        return _number(groups.get("step") or found[1]), _number(tokens_text) if tokens_text else None
    except (ValueError, TypeError) as error:
        raise InputError(f"step_pattern: what it finds in {name!r} is no number: {found[0]!r}") from error


def _number(text: str) -> int:
    scale = _SUFFIXES.get(text[-1].lower(), 1)
    return round(float(text[:-1]) * scale) if scale > 1 else int(float(text))


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
    if not _WILD.search(name) or os.path.exists(path):
        return [name]
    found = [p for p in sorted(glob.glob(path, recursive=True)) if os.path.isdir(p) or p.endswith(".gguf")]
    if not found:
        raise InputError(f"model: {name!r} fits no folder here; check the pattern and the working directory")
    return found


def _points(model: str, config: SweepConfig) -> list[GridPoint]:
    revisions, series = config.revision, model
    if is_local(model):
        if revisions and all(is_local(name) for name in config.model):
            raise InputError(f"revision {', '.join(revisions)}: model {model!r} is local and has none; leave it out")
        path = Path(os.path.abspath(os.path.expanduser(model)))
        step, tokens = parse_step(path.name, config.step_pattern)
        trainer_state = _trainer_state(path)
        recorded = trainer_state.get("global_step")
        step = recorded if step is None else step
        tokens = (trainer_state.get("num_input_tokens_seen") or None) if tokens is None else tokens
        series = str(path.parent) if step is not None else str(path)
        names: list[tuple[str | None, str, str]] = [(None, path.name, str(path))]
    else:
        step = tokens = recorded = None
        listed = [None] if revisions is None else _revisions(model, list(revisions))
        names = [(name, name or model.split("/")[-1], f"{model}@{name}") for name in listed]
    points = []
    for revision, name, full_name in names:
        if revision is not None:
            step, tokens = parse_step(revision, config.step_pattern)
        if tokens is None and step is not None and config.tokens_per_step is not None:
            tokens = round(step * config.tokens_per_step)
        folder = f"{_slug(name)}-{text_sha256(full_name)[:8]}"
        points.append(
            GridPoint(
                checkpoint=full_name,
                model=model,
                series=series,
                revision=revision,
                step=step,
                tokens=tokens,
                recorded_step=recorded,
                folder=folder,
            )
        )
    return points


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


def _trainer_state(folder: Path) -> dict[str, Any]:
    """Read the file in which transformers' Trainer records its state; empty where there is none."""
    try:
        state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


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
