"""One table of all checkpoints, and what only the whole sweep shows: equal weights, steps out of order."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pyarrow.csv import CSVWriter
from pyarrow.csv import WriteOptions as CsvOptions

from softh_probe.errors import InputError, abbreviated, first_sentence
from softh_probe.files import replacing, write_text
from softh_probe.report.sweep_data import SWEEP_JSON, SWEEP_PARQUET, SWEEP_VERSION
from softh_probe.sweep.folder import DONE, FAILED, SweepFolder, read_intact
from softh_probe.sweep.grid import GridPoint

SWEEP_CSV = "sweep.csv"
#: Checkpoints whose tables are in memory together.
_AT_ONCE = 64
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


@dataclass(kw_only=True)
class Collection:
    """What was collected.

    Attributes:
        folder: of the sweep.
        checkpoints: of each, what sweep.json says.
        duplicates: checkpoints with equal weights, by name.
        not_monotone: checkpoints whose steps, tokens and own records disagree, by name.
        warnings: what a reader of the table has to know, in lines.
    """

    folder: Path
    checkpoints: list[dict[str, Any]]
    duplicates: list[list[str]] = field(default_factory=list)
    not_monotone: list[list[str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def count(self, status: str) -> int:
        return sum(checkpoint["status"] == status for checkpoint in self.checkpoints)


def collect(out: str | Path) -> Collection:
    """Gather what a sweep has found so far: sweep.parquet, sweep.csv, sweep.json, figures and report.html.

    Results are read one by one; for the page and the figures the values of all are in memory together, some 100 bytes
    a line of the table.

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
            _write_tables(folder, points, info)
            found = _summary(folder, points, info)
            config = yaml.safe_load((folder.path / "config.yaml").read_text(encoding="utf-8"))
            summary = {
                "version": SWEEP_VERSION,
                "parquet_sha256": hashlib.sha256((folder.path / SWEEP_PARQUET).read_bytes()).hexdigest(),
                "config": config,
                "checkpoints": found.checkpoints,
                "duplicates": found.duplicates,
                "not_monotone": found.not_monotone,
            }
            write_text(folder.path / SWEEP_JSON, json.dumps(summary, indent=1, ensure_ascii=False))
            if info and (problem := _write_report(folder)):
                found.warnings.append(problem)
    except OSError as error:
        raise InputError(f"out: cannot write to {folder.path}: {error.strerror or error}") from error
    return found


def _write_tables(folder: SweepFolder, points: Sequence[GridPoint], info: dict[str, dict[str, Any]]) -> None:
    """The table of all checkpoints; fills `info` with what each result says of itself."""
    as_written = CsvOptions(include_header=False, quoting_style="needed")
    with replacing(folder.path / SWEEP_PARQUET) as parquet, replacing(folder.path / SWEEP_CSV) as csv:
        with pq.ParquetWriter(parquet, SCHEMA) as writer, csv.open("wb") as text:
            text.write((",".join(SCHEMA.names) + "\n").encode())
            with CSVWriter(text, SCHEMA, write_options=as_written) as lines:
                tables = _results(folder, points, info)
                # Each write makes a part of the file that readers take by itself: few large ones are read faster.
                while group := list(islice(tables, _AT_ONCE)):
                    table = pa.concat_tables(group)
                    writer.write_table(table)
                    lines.write_table(table)


def _results(folder: SweepFolder, points: Sequence[GridPoint], info: dict[str, dict[str, Any]]) -> Iterator[pa.Table]:
    """The table of each whole result, with the columns that tell its checkpoint."""
    for point in points:
        if (whole := read_intact(folder.result(point))) is None:
            continue
        said, own = whole
        info[point.folder] = {name: said[name] for name in ("model", "anchors", "corpus") if name in said}
        head = {name: getattr(point, name) for name in ("checkpoint", "revision", "step", "tokens")}
        columns = {
            name: pa.repeat(pa.scalar(value, SCHEMA.field(name).type), len(own))
            for name, value in {**head, "model": point.series}.items()
        }
        columns |= {name: own[name] for name in SCHEMA.names if name in own.schema.names}
        yield pa.table([columns[name] for name in SCHEMA.names], names=SCHEMA.names).cast(SCHEMA)


def _summary(folder: SweepFolder, points: Sequence[GridPoint], info: dict[str, dict[str, Any]]) -> Collection:
    checkpoints = []
    for point, state in folder.states(points).items():
        said = info.get(point.folder, {}).get("model", {})
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
                "weights_sha256": said.get("weights_sha256"),
                "commit": said.get("commit"),
                "source": point.source,
                "folder": f"checkpoints/{point.folder}" if state.status == DONE else None,
                "log": str(folder.log(point).relative_to(folder.path)) if folder.log(point).is_file() else None,
            }
        )
    found = Collection(folder=folder.path, checkpoints=checkpoints)
    damaged = [
        c["checkpoint"] for c, p in zip(checkpoints, points, strict=True) if c["folder"] and p.folder not in info
    ]
    found.duplicates = equal_weights(checkpoints)
    found.not_monotone = out_of_order(points)
    found.warnings = [f"equal weights: {abbreviated(names, 8)}" for names in found.duplicates]
    found.warnings += [
        f"steps, tokens or training records disagree: {abbreviated(names, 8)}" for names in found.not_monotone
    ]
    found.warnings += _unlike(info)
    if damaged:
        found.warnings.append(
            f"damaged results are left out: {abbreviated(damaged, 8)}; run the sweep again to measure them anew"
        )
    return found


def equal_weights(checkpoints: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Names of checkpoints that share a fingerprint of the weights, group by group."""
    groups: dict[str, list[str]] = defaultdict(list)
    for checkpoint in checkpoints:
        if checkpoint["weights_sha256"]:
            groups[checkpoint["weights_sha256"]].append(checkpoint["checkpoint"])
    return [names for names in groups.values() if len(names) > 1]


def out_of_order(points: Sequence[GridPoint]) -> list[list[str]]:
    """Names of checkpoints whose order in training is not what their names say, group by group.

    That is so of checkpoints of one training run with the same step; of neighbours of which the later one has seen
    fewer tokens; and of one whose own record of training (trainer_state.json) has another step than its name.
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
    """What makes results of one sweep hard to compare: they come from several sets of anchors or corpora."""
    anchors = {a["sha256"] for said in info.values() for a in said.get("anchors", []) if "sha256" in a}
    corpora = {said["corpus"]["sha256"] for said in info.values() if "corpus" in said}
    found = []
    if len(anchors) > 1:
        found.append(f"hidden states have several widths, so there are {len(anchors)} sets of anchors")
    if len(corpora) > 1:
        found.append(f"tokenizers differ: the same texts are {len(corpora)} different corpora")
    return found


def _write_report(folder: SweepFolder) -> str | None:
    """The sweep's page and figures; returns what went wrong. The table is there, whatever becomes of them."""
    from softh_probe.report.page import write_report

    try:
        write_report([folder.path], folder.path)
    except Exception as error:
        return f"the report could not be written ({first_sentence(error)}); `softh-probe report` tries again"
    return None
