"""A sweep's folder, read for its page."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from softh_probe.errors import InputError, shown
from softh_probe.report.data import numbers
from softh_probe.result import RESULT_JSON, ProbeResult

SWEEP_PARQUET, SWEEP_JSON = "sweep.parquet", "sweep.json"
#: Of sweep.json; `softh-probe collect` makes a sweep's files anew from its results.
SWEEP_VERSION = 1
#: Digits of a sweep's values, in units of log m: the page of 200 checkpoints stays small.
_DIGITS, _SD_DIGITS = 5, 4
_NUMBERS = ("layer", "value", "sd")
_COLUMNS = ("checkpoint", "name", "label_set", "metric", *_NUMBERS)
_TEXTS = ("checkpoint", "model", "status")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Many checkpoints.

    Attributes:
        table: a line a checkpoint, layer, label set and metric, as in sweep.parquet, in units of log m.
        checkpoints: what sweep.json says of each: checkpoint, model, revision, step, tokens, status, reason, …
        duplicates: names of checkpoints whose weights are the same.
        not_monotone: names of checkpoints whose order of steps is not that of their names or dates.
        n_anchors: anchors a set.
        settings: (name, value) of the sweep's configuration.
        name: of the folder.
    """

    table: pd.DataFrame
    checkpoints: list[dict[str, Any]]
    duplicates: list[list[str]]
    not_monotone: list[list[str]]
    n_anchors: int
    settings: list[tuple[str, str]]
    name: str

    @property
    def done(self) -> list[dict[str, Any]]:
        """Checkpoints with values, in the order of steps; those without a step as they come."""
        measured = set(self.table.checkpoint.unique())
        found = [c for c in self.checkpoints if c["checkpoint"] in measured]
        return sorted(found, key=lambda c: (str(c["model"]), math.inf if c.get("step") is None else c["step"]))

    @property
    def failed(self) -> list[dict[str, Any]]:
        return [c for c in self.checkpoints if c["status"] == "failed"]

    @property
    def unfinished(self) -> list[dict[str, Any]]:
        """Checkpoints without a result: failed ones first, with the reason."""
        order = {"failed": 0, "running": 1, "waiting": 2}
        found = [c for c in self.checkpoints if c["status"] != "done"]
        return sorted(found, key=lambda c: order.get(c["status"], 3))

    @property
    def title(self) -> str:
        models = list(dict.fromkeys(Path(str(c["model"])).name for c in self.checkpoints))
        return ", ".join(models[:3]) + (f" and {len(models) - 3} more" if len(models) > 3 else "") or self.name

    @property
    def summary(self) -> str:
        counts = Counter(c["status"] for c in self.checkpoints)
        states = ", ".join(f"{counts[s]} {s}" for s in ("done", "failed", "running", "waiting") if counts[s])
        return f"{len(self.checkpoints)} checkpoint{'s' * (len(self.checkpoints) != 1)}: {states}"

    @property
    def warnings(self) -> list[str]:
        found = []
        if self.failed:
            found.append(
                f"{len(self.failed)} of {len(self.checkpoints)} checkpoints failed; see the list of them below."
            )
        for names in self.duplicates:
            found.append(f"These checkpoints have the same weights: {', '.join(names)}.")
        for names in self.not_monotone:
            found.append(f"The order of steps disagrees with the order of these checkpoints: {', '.join(names)}.")
        return found

    def data(self) -> dict[str, Any]:
        """What the page draws: of each "metric|label set", values and sd [checkpoint][layer]."""
        done = self.done
        order = {c["checkpoint"]: i for i, c in enumerate(done)}
        rows = [list(self.table[self.table.checkpoint == c["checkpoint"]].name.unique()) for c in done]
        longest = max(rows, key=len, default=[])
        series: dict[str, dict[str, Any]] = {}
        for (metric, label_set), part in self.table.groupby(["metric", "label_set"], sort=False):
            wide, spread = (
                part.pivot_table(index="checkpoint", columns="layer", values=column, sort=False, dropna=False)
                .reindex(list(order))
                .to_numpy(float)
                for column in ("value", "sd")
            )
            entry: dict[str, Any] = {"v": [numbers(line, _DIGITS) for line in wide]}
            if pd.notna(part.sd).any():
                entry["s"] = [numbers(line, _SD_DIGITS) for line in spread]
            series[f"{metric}|{label_set}"] = entry
        shown = ("checkpoint", "model", "revision", "step", "tokens")
        return {
            "kind": "sweep",
            "log_m": math.log(self.n_anchors),
            "rows": longest,
            "label_sets": [s for s in self.table.label_set[self.table.metric == "mutual_information"].unique()],
            "checkpoints": [{key: c.get(key) for key in shown} for c in done],
            "series": series,
        }


def read_sweep(folder: Path) -> Sweep:
    """What a sweep's folder holds.

    Raises:
        InputError: its files are missing or damaged, or no checkpoint is done yet.
    """
    anew = f"`softh-probe collect {folder}` makes them anew"
    try:
        info = json.loads((folder / SWEEP_JSON).read_text(encoding="utf-8"))
        if (version := info["version"]) != SWEEP_VERSION:
            raise InputError(
                f"{folder}: expected a {SWEEP_JSON} of version {SWEEP_VERSION}, got {shown(version)}; {anew}"
            )
        content = (folder / SWEEP_PARQUET).read_bytes()
        if hashlib.sha256(content).hexdigest() != info.get("parquet_sha256", hashlib.sha256(content).hexdigest()):
            raise InputError(f"{folder}: {SWEEP_PARQUET} is not the one that {SWEEP_JSON} tells of; {anew}")
        table = pd.read_parquet(io.BytesIO(content))
        checkpoints = info["checkpoints"]
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{folder}: the sweep's files cannot be read: {error}; {anew}") from error
    _check(info, table, f"{folder}: the sweep's files", anew)
    if table.empty:
        raise InputError(f"{folder}: no checkpoint of this sweep is done yet; there is nothing to show")
    return Sweep(
        table=table,
        checkpoints=checkpoints,
        duplicates=info.get("duplicates") or [],
        not_monotone=info.get("not_monotone") or [],
        n_anchors=_n_anchors(folder, checkpoints),
        settings=_flat(info.get("config") or {}),
        name=folder.resolve().name,
    )


def _check(info: dict[str, Any], table: pd.DataFrame, what: str, remedy: str) -> None:
    """Refuse files that are not those of a sweep."""
    if absent := [name for name in _COLUMNS if name not in table]:
        raise InputError(f"{what} lack columns of {SWEEP_PARQUET}: {', '.join(absent)}; {remedy}")
    if wrong := [name for name in _NUMBERS if not pd.api.types.is_numeric_dtype(table[name])]:
        raise InputError(f"{what}: expected numbers in {', '.join(wrong)} of {SWEEP_PARQUET}; {remedy}")
    if not isinstance(info["checkpoints"], list):
        raise InputError(f"{what}: checkpoints: expected a list, got {shown(info['checkpoints'])}; {remedy}")
    for checkpoint in info["checkpoints"]:
        whole = isinstance(checkpoint, dict) and all(isinstance(checkpoint.get(n), str) for n in _TEXTS)
        if not whole or not isinstance(checkpoint.get("step"), int | None):
            raise InputError(
                f"{what}: expected checkpoints with {', '.join(_TEXTS)}, got {shown(checkpoint)}; {remedy}"
            )
    for name in ("duplicates", "not_monotone"):
        groups = info.get(name) or []
        if not isinstance(groups, list) or not all(isinstance(g, list) and {*map(type, g)} <= {str} for g in groups):
            raise InputError(f"{what}: {name}: expected lists of names, got {shown(groups)}; {remedy}")
    if not isinstance(info.get("config") or {}, dict):
        raise InputError(f"{what}: config: expected a mapping, got {shown(info['config'])}; {remedy}")


def _n_anchors(folder: Path, checkpoints: list[dict[str, Any]]) -> int:
    """Anchors a set, as the checkpoints' results have it."""
    for checkpoint in checkpoints:
        path = folder / str(checkpoint.get("folder")) / RESULT_JSON
        if checkpoint["status"] == "done" and path.is_file():
            return ProbeResult.load(path.parent).n_anchors
    raise InputError(f"{folder}: no result of a checkpoint lies in this sweep; its units are unknown")


def _flat(config: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name, value in config.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{name}.")
        elif value is not None:
            found.append((f"{prefix}{name}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return found
