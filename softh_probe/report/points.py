"""Points of models, read from the folders of results and of sweeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from softh_probe.analysis.model_points import ModelPoint, conditions_of, lead_mean, point_of, point_values
from softh_probe.errors import InputError
from softh_probe.report.page_data import distinct_titles
from softh_probe.report.side_by_side import load
from softh_probe.report.sweep_data import Sweep
from softh_probe.report.sweep_files import SWEEP_PARQUET, read_tables
from softh_probe.result import ProbeResult


def read_points(
    folders: Sequence[str | Path], *, mean_over: str | Sequence[str | int] | None = None
) -> list[ModelPoint]:
    """Read one point for each result, and for each finished checkpoint of a sweep, in the order of the folders.

        read_points(["results/gpt2", "results/pythia-sweep"])

    Args:
        folders: of results, or of sweeps that are collected.
        mean_over: layers that are averaged, as `ProbeResult.averaged_over` takes them; None takes the row `mean` as it
            is. Otherwise the result of each checkpoint is read.

    Raises:
        InputError: no folder, one without results, or results without blocks where no layers are named.
    """
    paths = [Path(folder).expanduser() for folder in folders]
    if not paths:
        raise InputError("folders: expected at least one folder of results, got none")
    alone = [path for path in paths if not _is_sweep(path)]
    results = {path: _load(path, mean_over) for path in alone}
    titles = dict(zip(alone, distinct_titles([results[path] for path in alone], alone), strict=True))
    points: list[tuple[ModelPoint, Path]] = []
    for path in paths:
        if path in results:
            points.append((point_of(results[path], name=titles[path], folder=str(path)), path))
        else:
            points += [(point, path) for point in _of_sweep(path, mean_over)]
    return _with_unique_names(points)


def sweep_points(sweep: Sweep) -> list[ModelPoint]:
    """Make a point of each checkpoint of a sweep, in its order, from the lines of means in its table.

    There are none where an earlier version collected the sweep, or where it measured modules.
    """
    return _points(sweep.checkpoints, sweep.means, {})


def _is_sweep(folder: Path) -> bool:
    return (folder / SWEEP_PARQUET).is_file()


def _load(folder: Path, mean_over: str | Sequence[str | int] | None) -> ProbeResult:
    result = load(folder)
    try:
        return result if mean_over is None else result.averaged_over(mean_over)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error


def _of_sweep(folder: Path, mean_over: str | Sequence[str | int] | None) -> list[ModelPoint]:
    info, _, means = read_tables(folder)
    checkpoints = info["checkpoints"]
    if mean_over is None and len(means):
        found = _points(checkpoints, means, info.get("config") or {})
        return [replace(point, folder=str(folder / point.folder)) for point in found]
    series = Counter(str(c["model"]) for c in checkpoints)
    done = [c for c in checkpoints if c["status"] == "done" and c.get("folder")]
    return [
        point_of(
            _load(folder / c["folder"], mean_over),
            name=str(c["checkpoint"]),
            **_known({**_identity(c, series), "folder": str(folder / c["folder"])}),
        )
        for c in done
    ]


def _points(
    checkpoints: Sequence[Mapping[str, Any]], means: pd.DataFrame, config: Mapping[str, Any]
) -> list[ModelPoint]:
    if means.empty:
        return []
    of_name = {str(c["checkpoint"]): c for c in checkpoints}
    series = Counter(str(c["model"]) for c in checkpoints)
    found = []
    for checkpoint, lines in means.groupby("checkpoint", observed=True, sort=True):
        own = lines[lines.name == lead_mean({*lines.name})]
        of_it = of_name[str(checkpoint)]
        conditions = conditions_of(config, of_it)
        values = point_values(own)
        found.append(ModelPoint(name=str(checkpoint), values=values, conditions=conditions, **_identity(of_it, series)))
    return found


def _identity(checkpoint: Mapping[str, Any], series: Mapping[str, int]) -> dict[str, Any]:
    """Say what a checkpoint of a sweep is; one that has no step and no others of its run stands alone."""
    run = str(checkpoint["model"])
    is_of_run = checkpoint.get("step") is not None or series[run] > 1
    return {
        "model": str(checkpoint.get("source") or run),
        "revision": checkpoint.get("revision"),
        "series": run if is_of_run else "",
        "step": checkpoint.get("step"),
        "tokens": checkpoint.get("tokens"),
        "family": checkpoint.get("model_type"),
        "n_parameters": checkpoint.get("n_parameters"),
        "folder": str(checkpoint.get("folder") or ""),
    }


def _known(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what a sweep of an earlier version does not know and a result may."""
    return {name: value for name, value in identity.items() if value is not None}


def _with_unique_names(points: Sequence[tuple[ModelPoint, Path]]) -> list[ModelPoint]:
    """Name points of equal names by their folders too."""
    counts = Counter(point.name for point, _ in points)
    found: list[ModelPoint] = []
    taken: set[str] = set()
    for point, path in points:
        name = point.name if counts[point.name] == 1 else f"{point.name} ({path.resolve().name})"
        if name in taken:
            name = f"{point.name} ({path})"
        number = 2
        while name in taken:
            name, number = f"{point.name} ({path}, {number})", number + 1
        taken.add(name)
        found.append(replace(point, name=name))
    return found
