"""Collect the results of a sweep into one table, and find equal weights and steps out of order."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from pyarrow.csv import CSVWriter
from pyarrow.csv import WriteOptions as CsvOptions

from softh_probe.analysis.comparable import corpus_notes, policy_notes
from softh_probe.errors import InputError, abbreviated, first_sentence, reason_of
from softh_probe.files import replacing, write_text
from softh_probe.hashing import file_sha256
from softh_probe.layer_means import MEAN_OVER, mean_rows, select_mean_rows
from softh_probe.layer_places import parse_layers, place_layers
from softh_probe.report.label_samples import Samples, distinct_samples, sample_notes
from softh_probe.report.sweep_files import SWEEP_JSON, SWEEP_PARQUET, SWEEP_VERSION
from softh_probe.result import ProbeResult
from softh_probe.result_files import LAYERS_PARQUET
from softh_probe.sweep.folder import DONE, FAILED, SweepFolder, read_intact
from softh_probe.sweep.grid import GridPoint, inferred_steps

SWEEP_CSV, SCORES_CSV = "sweep.csv", "scores.csv"
#: Checkpoints whose tables are written as one row group.
_GROUP_SIZE = 64
SCHEMA = pa.schema(
    [
        ("checkpoint", pa.string()),
        ("model", pa.string()),
        ("revision", pa.string()),
        ("step", pa.int64()),
        ("tokens", pa.int64()),
        ("layer", pa.int64()),
        ("name", pa.string()),
        ("label_set", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("sd", pa.float64()),
    ]
)
#: What pandas reads a column as: layers are whole numbers, though the mean over layers has none.
_READ_AS = {
    "pandas": json.dumps(
        {
            "index_columns": [],
            "column_indexes": [],
            "columns": [{"name": "layer", "field_name": "layer", "pandas_type": "int64", "numpy_type": "Int64"}],
        }
    )
}
#: Further columns where some checkpoint has them, missing for others: the standard error over documents (with
#: intervals), that by the sampling of labels (where one was followed), the p-value of labels of whole documents, and
#: the site of a row, where others than the residual stream were measured.
OPTIONAL = (
    *(pa.field(name, pa.float64()) for name in ("se", "sampling_sd", "p_value")),
    pa.field("site", pa.string()),
)


@dataclass(kw_only=True)
class Collection:
    """The collected results of a sweep.

    Attributes:
        folder: of the sweep.
        checkpoints: the entry of each in sweep.json.
        duplicates: names of checkpoints with equal weights, group by group.
        not_monotone: names of checkpoints whose steps, tokens or own records disagree, group by group.
        label_samples: the different samples of labels that were followed; a checkpoint's entry has the number of its.
        correlation: what the correlation of the measured values with scores on tasks says; empty without scores.
        warnings: notes for readers of the table, a line each.
    """

    folder: Path
    checkpoints: list[dict[str, Any]]
    duplicates: list[list[str]] = field(default_factory=list)
    not_monotone: list[list[str]] = field(default_factory=list)
    label_samples: list[Samples] = field(default_factory=list)
    correlation: str = ""
    warnings: list[str] = field(default_factory=list)

    def count(self, status: str) -> int:
        """Count the checkpoints of a status."""
        return sum(checkpoint["status"] == status for checkpoint in self.checkpoints)


def collect(out: str | Path) -> Collection:
    """Collect a sweep's results so far into sweep.parquet, sweep.csv, sweep.json, figures and report.html.

    Where checkpoints have scores on tasks, these are collected into scores.csv, and correlated with what was measured.

    Results are read one by one; the page and the figures need the values of all in memory, some 100 bytes for each
    line of the table.

    Args:
        out: the sweep's folder.

    Raises:
        InputError: it holds no sweep, or cannot be written.
    """
    folder = SweepFolder(out)
    if not folder.is_sweep():
        raise InputError(f"{folder.path}: holds no sweep; expected the output folder of `softh-probe sweep`")
    points = folder.known_points()
    info: dict[str, dict[str, Any]] = {}
    try:
        with folder.lock("collect"):
            config = yaml.safe_load((folder.path / "config.yaml").read_text(encoding="utf-8"))
            _write_tables(folder, points, info, config.get(MEAN_OVER))
            found = _summary(folder, points, info)
            if len(recipes := _recipes(info)) == 1:
                config["anchors"] = recipes[0]  # an earlier version named the draw of its results otherwise
            summary = {
                "version": SWEEP_VERSION,
                "parquet_sha256": file_sha256(folder.path / SWEEP_PARQUET),
                "config": config,
                "checkpoints": found.checkpoints,
                "duplicates": found.duplicates,
                "not_monotone": found.not_monotone,
                **({"label_samples": found.label_samples} if found.label_samples else {}),
            }
            write_text(folder.path / SWEEP_JSON, json.dumps(summary, indent=1, ensure_ascii=False))
            if info and (problem := _write_report(folder)):
                found.warnings.append(problem)
            if _write_scores(folder, points, found) and info:
                _correlate(folder, found)
    except OSError as error:
        raise InputError(f"out: cannot write to {folder.path}: {error.strerror or error}") from error
    return found


def _write_tables(
    folder: SweepFolder,
    points: Sequence[GridPoint],
    info: dict[str, dict[str, Any]],
    mean_over: object,
) -> None:
    """Write the table of all checkpoints; add the information of each result to `info`."""
    as_written = CsvOptions(include_header=False, quoting_style="needed")
    there = {name for point in points for name in _columns(folder.result(point))}
    schema = pa.schema([*SCHEMA, *(column for column in OPTIONAL if column.name in there)], metadata=_READ_AS)
    with replacing(folder.path / SWEEP_PARQUET) as parquet, replacing(folder.path / SWEEP_CSV) as csv:
        with pq.ParquetWriter(parquet, schema) as writer, csv.open("wb") as text:
            text.write((",".join(schema.names) + "\n").encode())
            with CSVWriter(text, schema, write_options=as_written) as lines:
                tables = _results(folder, points, info, schema, mean_over)
                # Each write makes a row group of the file: a few large ones are read faster.
                while group := list(islice(tables, _GROUP_SIZE)):
                    table = pa.concat_tables(group)
                    writer.write_table(table)
                    lines.write_table(table)


def _columns(result: Path) -> list[str]:
    """List the columns of a result's table; none where it cannot be read."""
    with suppress(OSError, pa.ArrowInvalid):
        return list(pq.read_schema(result / LAYERS_PARQUET).names)
    return []


def _results(
    folder: SweepFolder,
    points: Sequence[GridPoint],
    info: dict[str, dict[str, Any]],
    schema: pa.Schema,
    mean_over: object,
) -> Iterator[pa.Table]:
    """Read the table of each intact result, with columns that name its checkpoint."""
    for point in points:
        if (result := read_intact(folder.result(point))) is None:
            continue
        of_result, own = result
        own = _with_means(folder.result(point), of_result, own, mean_over)
        kept = ("model", "anchors", "corpus", "n_blocks", "label_sampling", "positions_policy")
        info[point.folder] = {name: of_result[name] for name in kept if name in of_result}
        head = {name: getattr(point, name) for name in ("checkpoint", "revision", "step", "tokens")}
        columns = {
            name: pa.repeat(pa.scalar(value, schema.field(name).type), len(own))
            for name, value in {**head, "model": point.series}.items()
        }
        columns |= {name: own[name] for name in schema.names if name in own.schema.names}
        columns["layer"] = pc.if_else(own["layer"].is_null(), None, _layers(own["name"], of_result))
        for column in OPTIONAL:
            columns.setdefault(column.name, pa.nulls(len(own), column.type))
        yield pa.table([columns[name] for name in schema.names], names=schema.names).cast(schema)


def _with_means(folder: Path, info: dict[str, Any], own: pa.Table, mean_over: object) -> pa.Table:
    """Give a result's table with the means over the layers that the sweep asks for.

    Results of earlier versions have no lines of them, and others may be of other layers: theirs are computed anew.
    """
    names, before = info["rows"], info.get(MEAN_OVER)
    chosen = None if mean_over is None else select_mean_rows(parse_layers(MEAN_OVER, mean_over), names, info)
    asked = {**info, MEAN_OVER: chosen}
    if chosen == before and bool(own["layer"].null_count) == bool(mean_rows(names, asked)):
        return own
    result = ProbeResult.load(folder)
    return pa.Table.from_pandas(replace(result, info={**result.info, MEAN_OVER: chosen}).to_pandas())


def _layers(names: pa.ChunkedArray, info: dict[str, Any]) -> pa.Array:
    """Compute the index in the model of each line of a result's table: earlier versions wrote the number of the row."""
    coded = names.combine_chunks().dictionary_encode()
    found = coded.dictionary.to_pylist()
    places = place_layers(info.get("rows", found), info)
    index_of = dict(zip(places.names, places.indices, strict=True))
    return pa.array([index_of.get(name) for name in found], pa.int64()).take(coded.indices)


def _summary(folder: SweepFolder, points: Sequence[GridPoint], info: dict[str, dict[str, Any]]) -> Collection:
    """Describe every checkpoint, and gather the warnings."""
    checkpoints = []
    samples, numbers = distinct_samples(info.values())
    number_of = dict(zip(info, numbers, strict=True))
    for point, state in folder.states(points).items():
        own = info.get(point.folder, {})
        model = own.get("model", {})
        failed = state.status == FAILED and state.failure
        checkpoints.append(
            {
                "checkpoint": point.checkpoint,
                "model": point.series,
                "revision": point.revision,
                "step": point.step,
                "tokens": point.tokens,
                "status": state.status,
                "reason": state.failure.reason if failed and state.failure else None,
                "weights_sha256": model.get("weights_sha256"),
                "commit": model.get("commit"),
                "source": point.source,
                "folder": f"checkpoints/{point.folder}" if state.status == DONE or own else None,
                "log": str(folder.log(point).relative_to(folder.path)) if folder.log(point).is_file() else None,
                **({"scores": f"evaluations/{point.folder}"} if folder.scores.files(point.folder) else {}),
                **_known_since(own),
                **({"label_sample": number} if (number := number_of.get(point.folder)) is not None else {}),
                **({"step_note": point.step_note} if point.step_note else {}),
            }
        )
    found = Collection(folder=folder.path, checkpoints=checkpoints, label_samples=samples)
    damaged = [
        c["checkpoint"] for c, p in zip(checkpoints, points, strict=True) if c["folder"] and p.folder not in info
    ]
    found.duplicates = equal_weights(checkpoints)
    found.not_monotone = out_of_order(points)
    found.warnings = [f"equal weights: {abbreviated(names, 8)}" for names in found.duplicates]
    found.warnings += [
        f"steps, tokens or training records disagree: {abbreviated(names, 8)}" for names in found.not_monotone
    ]
    found.warnings += [*filter(None, [inferred_steps(points)]), *_unlike(info)]
    if damaged:
        found.warnings.append(
            f"damaged results are left out: {abbreviated(damaged, 8)}; run the sweep again to measure them anew"
        )
    return found


def _known_since(info: dict[str, Any]) -> dict[str, Any]:
    """List what results of earlier versions do not record: number of blocks, model, digests of texts and tokens."""
    found = {"n_blocks": info["n_blocks"]} if "n_blocks" in info else {}
    found |= {name: info["model"][name] for name in ("model_type", "n_parameters") if info.get("model", {}).get(name)}
    corpus = info.get("corpus", {})
    if corpus.get("texts_sha256"):
        tokens = corpus.get("sha256") or corpus.get("chained_sha256")  # a stream has the latter alone
        found |= {"corpus_sha256": tokens, "texts_sha256": corpus["texts_sha256"]}
    return found


def equal_weights(checkpoints: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Find checkpoints with the same fingerprint of weights; their names, group by group."""
    groups: dict[str, list[str]] = defaultdict(list)
    for checkpoint in checkpoints:
        if checkpoint["weights_sha256"]:
            groups[checkpoint["weights_sha256"]].append(checkpoint["checkpoint"])
    return [names for names in groups.values() if len(names) > 1]


def out_of_order(points: Sequence[GridPoint]) -> list[list[str]]:
    """Find checkpoints whose order in training contradicts their names; their names, group by group.

    These are checkpoints of one training run with the same step, neighbours of which the later has seen fewer tokens,
    and checkpoints whose own record of training (trainer_state.json) has another step than their name.
    """
    found = []
    series: dict[str, list[GridPoint]] = defaultdict(list)
    for point in points:
        if point.step is not None:
            series[point.series].append(point)
        if point.recorded_step not in (None, point.step):
            found.append([point.checkpoint])
    for run in series.values():
        run.sort(key=lambda point: (point.step, point.tokens or 0))
        same: dict[Any, list[str]] = defaultdict(list)
        for point in run:
            same[point.step].append(point.checkpoint)
        found += [names for names in same.values() if len(names) > 1]
        for one, next_one in pairwise(run):
            both = one.tokens is not None and next_one.tokens is not None and one.step != next_one.step
            if both and next_one.tokens < one.tokens:  # type: ignore[operator]
                found.append([one.checkpoint, next_one.checkpoint])
    return found


def _unlike(info: dict[str, dict[str, Any]]) -> list[str]:
    """Warn of what makes a sweep's results hard to compare: several sets of anchors, or several corpora."""
    # A checkpoint whose sites are of several widths has anchors of each.
    anchors = {frozenset(a["sha256"] for a in one.get("anchors", []) if "sha256" in a) for one in info.values()}
    anchors.discard(frozenset())
    recipes = _recipes(info)
    found = []
    if len(recipes) > 1:
        found.append(f"anchors are of several draws ({', '.join(recipes)}): values are not comparable between them")
    elif len(anchors) > 1:
        found.append(f"hidden states have several widths, so there are {len(anchors)} sets of anchors")
    found += policy_notes(one.get("positions_policy") or {} for one in info.values())
    notes = corpus_notes(one.get("corpus", {}) for one in info.values())
    return found + (notes or sample_notes(distinct_samples(info.values())[1]))


def _recipes(info: dict[str, dict[str, Any]]) -> list[str]:
    """List the recipes of all results' anchors, each once."""
    return sorted({str(a["recipe"]) for one in info.values() for a in one.get("anchors", []) if "recipe" in a})


def _write_report(folder: SweepFolder) -> str | None:
    """Write the sweep's page and figures; a failure is returned as text, so that the table is kept."""
    from softh_probe.report.page import write_report

    try:
        write_report([folder.path], folder.path)
    except Exception as error:
        return f"the report could not be written ({first_sentence(error)}); `softh-probe report` tries again"
    return None


def _write_scores(folder: SweepFolder, points: Sequence[GridPoint], found: Collection) -> bool:
    """Write the table of all scores, and warn of those that cannot be read; False where there are none."""
    rows, damaged = [], []
    for point in points:
        head = {"checkpoint": point.checkpoint, "model": point.series, "revision": point.revision, "step": point.step}
        try:
            rows += [head | row for row in folder.scores.rows(point.folder)]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            damaged.append(point.checkpoint)
    if damaged:
        found.warnings.append(
            f"damaged scores are left out: {abbreviated(damaged, 8)}; run the sweep again to evaluate them anew"
        )
    if not rows:
        (folder.path / SCORES_CSV).unlink(missing_ok=True)
        return False
    table = pd.DataFrame(rows).astype({"step": "Int64"})
    write_text(folder.path / SCORES_CSV, table.to_csv(index=False, lineterminator="\n"))
    return True


def _correlate(folder: SweepFolder, found: Collection) -> None:
    """Correlate what was measured with the scores; a failure is a warning, so that tables and page are kept."""
    from softh_probe.report.correlate import correlate_folders

    try:
        found.correlation = correlate_folders(
            [folder.path], folder.scores.folder, out=folder.path, allow_different=True
        )
    except Exception as error:
        found.warnings.append(f"scores were not correlated with what was measured: {reason_of(error)}")
