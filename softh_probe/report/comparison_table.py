"""The differences of two results as text, CSV and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from softh_probe.analysis.paired import COMPARED, compare_results, comparison_notes
from softh_probe.anisotropy import anisotropy_lines
from softh_probe.errors import InputError
from softh_probe.files import write_text
from softh_probe.metrics import ENTROPIES
from softh_probe.report.page_data import UNIT_NAMES, check_info, distinct_titles
from softh_probe.result import ProbeResult

#: Kinds of files that a table is written to.
_SUFFIXES = (".csv", ".json")


def compare_folders(
    folders: Sequence[str],
    *,
    unit: str = "efficiency",
    metrics: Sequence[str] = COMPARED,
    out: str | None = None,
    as_json: bool = False,
) -> str:
    """Compare the results in two folders.

    Args:
        folders: of both; differences are the second minus the first.
        unit: as in `ProbeResult.to_pandas`.
        metrics: those of `COMPARED` to show.
        out: file for the table, whose name ends in .csv or .json.
        as_json: return notes and records as JSON, not as text.

    Returns:
        What is to be printed.

    Raises:
        InputError: a folder holds no result, the results are not comparable, or another argument is none of these.
    """
    if unknown := [metric for metric in metrics if metric not in COMPARED]:
        raise InputError(f"metric: expected any of {', '.join(COMPARED)}, got {unknown[0]!r}")
    if out is not None and Path(out).suffix not in _SUFFIXES:
        raise InputError(f"out: expected a name that ends in {' or '.join(_SUFFIXES)}, got {out!r}")
    paths = [Path(folder) for folder in folders]
    results = [ProbeResult.load(path) for path in paths]
    for path, result in zip(paths, results, strict=True):
        check_info(result, str(path))
    titles = distinct_titles(results, paths)
    a, b = results
    table = compare_results(a, b, unit, titles)
    table = table[table.metric.isin(metrics)]
    notes = [*comparison_notes(a, b, titles), *anisotropy_lines([a, b], titles)]
    described = json.dumps(to_json(table, notes, titles, unit), indent=1, ensure_ascii=False)
    if out is not None:
        _write(Path(out), table.to_csv(index=False) if Path(out).suffix == ".csv" else described)
    return described if as_json else "\n".join(_lines(table, notes, titles, unit))


def to_json(table: pd.DataFrame, notes: Sequence[str], titles: Sequence[str], unit: str) -> dict[str, Any]:
    """Convert a table of differences to JSON values: titles, unit, notes, a sentence each, and records."""
    records = [
        {str(k): None if isinstance(v, float) and math.isnan(v) else v for k, v in record.items()}
        for record in table.to_dict("records")
    ]
    said = {"|".join(filter(None, (f"{m}|{s}", site))): sentence(part) for (m, s, site), part in _groups(table)}
    return {"a": titles[0], "b": titles[1], "unit": unit, "notes": [*notes], "sentences": said, "records": records}


def sentence(part: pd.DataFrame) -> str:
    """Say how many layers differ beyond noise, and which most.

    >>> columns = {"name": ["layer.1", "layer.2"], "difference": [0.5, 0.1], "se": [0.1, 0.1], "p_holm": [1e-5, 0.3]}
    >>> sentence(pd.DataFrame({**columns, "significant": [True, False]}))
    '1 of 2 layers differs beyond noise: layer.1 (+0.5000 ± 0.1000)'

    Args:
        part: lines of `compare_results` of one metric and label set.
    """
    known = part[part.p_holm.notna()]
    if known.empty:
        return "noise over documents is not known"
    beyond = known[known.significant]
    of = f"{len(known)} layer{'s' * (len(known) > 1)}"
    if beyond.empty:
        return f"none of {of} differs beyond noise"
    most = beyond.iloc[int(beyond.difference.abs().to_numpy().argmax())]
    which = f"{most['name']} ({_signed(float(most['difference']))} ± {float(most['se']):.4f})"
    verb, largest = ("differs", "") if len(beyond) == 1 else ("differ", "the largest in ")
    return f"{len(beyond)} of {of} {verb} beyond noise: {largest}{which}"


def _groups(table: pd.DataFrame) -> Iterator[tuple[tuple[str, str, str], pd.DataFrame]]:
    """Give the lines of each metric, label set and site; the site is "" where there is one alone."""
    for metric in COMPARED:
        for label_set in table.label_set[table.metric == metric].unique():
            part = table[(table.metric == metric) & (table.label_set == label_set)]
            for site in part.site.unique() if "site" in part else [""]:
                yield (metric, label_set, site), part[part.site == site] if site else part


def _lines(table: pd.DataFrame, notes: Sequence[str], titles: Sequence[str], unit: str) -> Iterator[str]:
    yield f"{titles[1]} minus {titles[0]}; ± is the standard error over documents, p is corrected for the layers (Holm)"
    width = max((len(name) for name in table.name), default=5)
    for (metric, label_set, site), part in _groups(table):
        title = " · ".join(filter(None, (metric.replace("_", " "), label_set, site.replace("_", " "))))
        yield f"\n{title} ({UNIT_NAMES[unit] if metric in ENTROPIES else 'ratio'}): {sentence(part)}"
        yield f"{'layer'.ljust(width)}       A       B         Δ"
        for line in part.itertuples(index=False):
            yield _line(line, width)
    yield from (f"\nnote: {note}" for note in notes)


def _line(line: Any, width: int) -> str:
    said = f"{line.name.ljust(width)}  {line.a:.4f}  {line.b:.4f}  {_signed(line.difference)}"
    if not math.isnan(line.p_holm):
        said += f" ± {line.se:.4f}  p {_p(line.p_holm)}{'  beyond noise' * bool(line.significant)}"
    return said


def _signed(value: float) -> str:
    return f"{'−' if value < 0 else '+'}{abs(value):.4f}"


def _p(value: float) -> str:
    return "<0.0001" if value < 0.0001 else f" {value:.4f}"


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        raise InputError(f"out: cannot write {path}: {error.strerror or error}") from error
