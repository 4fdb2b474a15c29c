"""Reading the files of a sweep: its table, and what is known of its checkpoints."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from softh_probe.analysis.sites import ordered_sites
from softh_probe.errors import InputError, abbreviated, short_repr
from softh_probe.hashing import bytes_sha256
from softh_probe.layer_places import RESIDUAL, LayerPlaces, place_layers
from softh_probe.report.label_samples import wrong_entries
from softh_probe.report.sweep_course import courses
from softh_probe.report.sweep_data import SAMPLING_SD, SE, Sweep
from softh_probe.result import ProbeResult
from softh_probe.result_files import RESULT_JSON

SWEEP_PARQUET, SWEEP_JSON = "sweep.parquet", "sweep.json"
#: Version of sweep.json. `softh-probe collect` writes a sweep's files anew from its results.
SWEEP_VERSION = 1
#: Columns of the table that are read; those of errors are there where they were measured.
_TEXT, _VALUES, _ERRORS = ["checkpoint", "name", "label_set", "metric"], ["layer", "value", "sd"], (SAMPLING_SD, SE)
#: Most names that a list shows.
_MAX_NAMES = 20
#: Entries of a checkpoint that have to be text.
_TEXTS = ("checkpoint", "model", "status")


def read_sweep(folder: Path, site: str | None = None) -> Sweep:
    """Read the results of a sweep from its folder.

    Args:
        folder: of the sweep.
        site: whose rows; None is the one that stands for the sweep.

    Raises:
        InputError: its files are missing or damaged, or no checkpoint is done yet.
    """
    info, table, means = read_tables(folder)
    checkpoints = info["checkpoints"]
    places = _place(table, checkpoints, info.get("config") or {})
    result = _first_result(folder, checkpoints)
    sweep = Sweep(
        table=table,
        means=means,
        places=places,
        checkpoints=checkpoints,
        duplicates=info.get("duplicates") or [],
        not_monotone=info.get("not_monotone") or [],
        label_samples=info.get("label_samples") or [],
        n_anchors=result.n_anchors,
        settings=_flattened({**(info.get("config") or {}), **_anchors(result)}),
        name=folder.resolve().name,
    )
    sites = tuple(ordered_sites({one for of in places.values() for one in of.sites}))
    if len(sites) > 1:
        sweep = replace(sweep, sites=sites).of_site(site or sites[0])
    elif sites != (RESIDUAL,):
        sweep = replace(sweep, sites=sites).of_site(sites[0])
    return replace(sweep, courses=courses(sweep, folder))


def read_tables(folder: Path) -> tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]:
    """Read sweep.json, and of sweep.parquet the lines of layers and those of means over layers, in order.

    Raises:
        InputError: the files are missing or damaged, or no checkpoint is done yet.
    """
    anew = f"`softh-probe collect {folder}` makes them anew"
    try:
        info = json.loads((folder / SWEEP_JSON).read_text(encoding="utf-8"))
        if (version := info["version"]) != SWEEP_VERSION:
            raise InputError(
                f"{folder}: expected a {SWEEP_JSON} of version {SWEEP_VERSION}, got {short_repr(version)}; {anew}"
            )
        content = (folder / SWEEP_PARQUET).read_bytes()
        digest = bytes_sha256(content)
        if digest != info.get("parquet_sha256", digest):
            raise InputError(f"{folder}: {SWEEP_PARQUET} is not the one that {SWEEP_JSON} tells of; {anew}")
        # As plain text, the names in millions of lines would take gigabytes.
        file = pq.ParquetFile(io.BytesIO(content), read_dictionary=_TEXT)
        columns = (*_TEXT, *_VALUES, *_ERRORS)
        table = file.read([n for n in columns if n in file.schema_arrow.names]).to_pandas()
        checkpoints = info["checkpoints"]
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{folder}: the sweep's files cannot be read: {error}; {anew}") from error
    _check(info, table, f"{folder}: the sweep's files", anew)
    table = table.drop(columns=[name for name in _ERRORS if name in table and not table[name].notna().any()])
    if table.empty:
        raise InputError(f"{folder}: no checkpoint of this sweep is done yet; there is nothing to show")
    measured = set(table.checkpoint.unique())
    in_order = [
        c["checkpoint"]
        for c in sorted(checkpoints, key=lambda c: (str(c["model"]), math.inf if c.get("step") is None else c["step"]))
        if c["checkpoint"] in measured
    ]
    table["checkpoint"] = table.checkpoint.cat.set_categories(in_order)
    table = table.dropna(subset="checkpoint").sort_values("checkpoint", kind="stable", ignore_index=True)
    is_mean = table.layer.isna()
    return info, _part(table, ~is_mean), _part(table, is_mean)


def _part(table: pd.DataFrame, is_in: pd.Series) -> pd.DataFrame:
    """Select lines of the table, without the names of others."""
    found = table[is_in].reset_index(drop=True)
    return found.assign(**{name: found[name].cat.remove_unused_categories() for name in _TEXT[1:]})


def _check(info: dict[str, Any], table: pd.DataFrame, what: str, remedy: str) -> None:
    """Check the contents of a sweep's files.

    Raises:
        InputError: they are not those of a sweep.
    """
    if absent := [name for name in (*_TEXT, *_VALUES) if name not in table]:
        raise InputError(f"{what} lack columns of {SWEEP_PARQUET}: {', '.join(absent)}; {remedy}")
    values = [*_VALUES, *(name for name in _ERRORS if name in table)]
    if wrong := [name for name in values if not pd.api.types.is_numeric_dtype(table[name])]:
        raise InputError(f"{what}: expected numbers in {', '.join(wrong)} of {SWEEP_PARQUET}; {remedy}")
    if not isinstance(info["checkpoints"], list):
        raise InputError(f"{what}: checkpoints: expected a list, got {short_repr(info['checkpoints'])}; {remedy}")
    for checkpoint in info["checkpoints"]:
        whole = isinstance(checkpoint, dict) and all(isinstance(checkpoint.get(n), str) for n in _TEXTS)
        if not whole or not isinstance(checkpoint.get("step"), int | None):
            raise InputError(
                f"{what}: expected checkpoints with {', '.join(_TEXTS)}, got {short_repr(checkpoint)}; {remedy}"
            )
    for name in ("duplicates", "not_monotone"):
        groups = info.get(name) or []
        if not isinstance(groups, list) or not all(isinstance(g, list) and {*map(type, g)} <= {str} for g in groups):
            raise InputError(f"{what}: {name}: expected lists of names, got {short_repr(groups)}; {remedy}")
    samples = info.get("label_samples") or []
    if not isinstance(samples, list) or any(wrong for one in samples for wrong in wrong_entries(one)):
        raise InputError(f"{what}: label_samples: expected samples by label set, got {short_repr(samples)}; {remedy}")
    if not isinstance(info.get("config") or {}, dict):
        raise InputError(f"{what}: config: expected a mapping, got {short_repr(info['config'])}; {remedy}")


def _place(table: pd.DataFrame, checkpoints: list[dict[str, Any]], config: dict[str, Any]) -> dict[str, LayerPlaces]:
    """Place the layers of each checkpoint, and set the table's column `layer` to their indices in the model.

    Tables of earlier versions have the number of the row there.
    """
    n_blocks = {c["checkpoint"]: c["n_blocks"] for c in checkpoints if "n_blocks" in c}
    settings = {"settings": {"layers": config["layers"]}} if config.get("layers") else {}
    pairs = table[["checkpoint", "name"]].drop_duplicates()
    found, indices = (
        {},
        np.zeros((len(table.checkpoint.cat.categories), len(table.name.cat.categories)), dtype=np.int64),
    )
    for checkpoint, names in pairs.groupby("checkpoint", observed=True, sort=False).name:
        info = {"n_blocks": n_blocks[checkpoint]} if checkpoint in n_blocks else {}
        places = found[str(checkpoint)] = place_layers([*map(str, names)], {**settings, **info})
        row = table.checkpoint.cat.categories.get_loc(checkpoint)
        indices[row, table.name.cat.categories.get_indexer(pd.Index(names))] = places.indices
    table["layer"] = indices[table.checkpoint.cat.codes, table.name.cat.codes]
    return found


def _first_result(folder: Path, checkpoints: list[dict[str, Any]]) -> ProbeResult:
    """Read the result of a checkpoint, for the number of anchors in a set and their recipe."""
    for checkpoint in checkpoints:
        path = folder / str(checkpoint.get("folder")) / RESULT_JSON
        if path.is_file():  # one that failed on a task was measured all the same
            return ProbeResult.load(path.parent)
    raise InputError(f"{folder}: no result of a checkpoint lies in this sweep; its units are unknown")


def _anchors(result: ProbeResult) -> dict[str, Any]:
    """Name the anchors' recipe as settings do; an earlier version's configuration has another name for it."""
    recipes = [a["recipe"] for a in result.info.get("anchors") or [] if isinstance(a, dict) and "recipe" in a]
    return {"anchors": recipes[0]} if recipes else {}


def _flattened(config: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """List a nested configuration as (dotted name, value), without None."""
    found: list[tuple[str, str]] = []
    for name, value in config.items():
        if isinstance(value, dict):
            found += _flattened(value, f"{prefix}{name}.")
        elif value is not None:
            text = abbreviated([*map(str, value)], _MAX_NAMES) if isinstance(value, list) else str(value)
            found.append((f"{prefix}{name}", text))
    return found
