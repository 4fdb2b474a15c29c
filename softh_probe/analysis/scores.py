"""Benchmark scores of models: from a table, or from results of lm-evaluation-harness."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from softh_probe.analysis.harness_scores import read_harness
from softh_probe.analysis.score_table import COLUMNS, Scores, reduced
from softh_probe.errors import InputError, abbreviated, first_sentence

#: Columns that name the model, the surest first. The Open LLM leaderboard's `Model` holds a link, `fullname` the id.
MODEL_COLUMNS = ("fullname", "model_name", "model_id", "model", "name")
REVISION_COLUMNS = ("revision", "model_revision", "model sha", "model_sha", "sha", "commit")
#: Numbers that are no scores, by their names' letters: sizes, costs, likes, dates. They may still be controls.
_NO_BENCHMARK = re.compile(
    r"n?_?(params?|parameters?)(_?b)?|params b|co2? ?cost.*|hub|likes|downloads|generation|step|steps|tokens|seed|rank"
    r"|index|unnamed.*|.*\bdate\b.*|date|timestamp|year"
)
#: A model's id as a link, in Markdown or HTML.
_LINK = re.compile(r"\s*(?:\[([^\]]+)\]\([^)]*\)|<a\b[^>]*>\s*([^<]+?)\s*</a>)\s*", re.IGNORECASE | re.DOTALL)
#: A number with a comma before decimals.
_DECIMAL_COMMA = r"^\s*([+-]?\d+),(\d+)\s*(?=%?\s*$)"
#: A number with commas between thousands and a point before decimals.
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+\.\d+")
_MISSING = ("", "na", "n/a", "nan", "none", "null", "-", "–", "?")
_SEPARATORS = {".csv": (",", ";", "\t"), ".tsv": ("\t",)}
_TABLES = (*_SEPARATORS, ".parquet")


def read_scores(path: str | Path) -> Scores:
    r"""Read scores from a .csv, .tsv or .parquet table, or from results_*.json of lm-evaluation-harness.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "scores.csv")
    >>> _ = path.write_text("model,revision,#Params (B),BBH\norg/a,step10,0.1,30.5\norg/b,,0.2,41\n")
    >>> scores = read_scores(path)
    >>> scores.table.values.tolist()
    [['org/a', 'step10', 'BBH', 30.5], ['org/b', None, 'BBH', 41.0]]
    >>> scores.notes
    ['no benchmarks, and left out: #Params (B)']

    Args:
        path: a table with a column of models (`model`, `fullname`, …), perhaps one of revisions, and a column of
            numbers for each benchmark; or a .json file of the harness, or a folder in which any lie at any depth.

    Raises:
        InputError: there is no such file, it is damaged or empty, or it holds no scores.
    """
    path = Path(path).expanduser()
    if path.is_dir() or path.suffix.lower() == ".json":
        return read_harness(path)
    if not path.is_file():
        raise InputError(f"scores: {path} is no file and no folder")
    if path.suffix.lower() not in _TABLES:
        raise InputError(f"scores: expected a name that ends in {', '.join(_TABLES)} or .json, got {path.name!r}")
    try:
        frame = pd.read_parquet(path) if path.suffix.lower() == ".parquet" else _read_text(path)
    except UnicodeDecodeError as error:
        raise InputError(f"scores: {path} is not UTF-8 ({first_sentence(error)}); save it as UTF-8") from error
    except (pd.errors.EmptyDataError, pd.errors.ParserError, pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"scores: {path} cannot be read: {first_sentence(error)}") from error
    return _from_frame(frame, str(path))


def _read_text(path: Path) -> pd.DataFrame:
    """Read all cells as text, with the separator by which the header has a column of models."""
    separators = _SEPARATORS[path.suffix.lower()]
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline()
    names = {s: next(csv.reader([header], delimiter=s), []) for s in separators}
    separator = next((s for s in separators if _column(names[s], MODEL_COLUMNS)), separators[0])
    frame = pd.read_csv(
        path, sep=separator, header=None, dtype=str, keep_default_na=False, encoding="utf-8-sig", skipinitialspace=True
    ).fillna("")
    if separator != ",":  # then a comma stands before decimals
        frame = frame.replace(_DECIMAL_COMMA, r"\1.\2", regex=True)
    return frame.iloc[1:].set_axis([str(name).strip() for name in frame.iloc[0]], axis=1)


def _from_frame(frame: pd.DataFrame, source: str) -> Scores:
    """Tell the columns of a table apart, and make it tidy."""
    names = [str(name) for name in frame.columns]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"scores: {source} has several columns {doubled[0]!r}; rename or delete all but one")
    if {"task", "metric", "value"} <= {*names}:
        raise InputError(
            f"scores: {source} has a line for each task, and a column for each benchmark is expected; of a sweep, give "
            f"its folder evaluations, else reshape it: table.pivot(index='model', columns='task', values='value')"
        )
    if not (model := _column(names, MODEL_COLUMNS)):
        expected = ", ".join(MODEL_COLUMNS)
        raise InputError(f"scores: {source} has no column of models ({expected}); it has {abbreviated(names, 8)}")
    revision = _column([name for name in names if name != model], REVISION_COLUMNS)
    models = [_without_link(_text(value)) for value in frame[model]]
    revisions = [_text(value) or None for value in frame[revision]] if revision else [None] * len(frame)
    keep = np.array([bool(name) for name in models], dtype=bool)
    numbers, notes = _numbers(frame[[name for name in names if name not in (model, revision)]])
    others = [name for name in numbers if _is_no_benchmark(name)]
    raw = [name for name in numbers if name.endswith(" Raw") and name.removesuffix(" Raw") in numbers]
    benchmarks = [name for name in numbers if name not in (*others, *raw)]
    if not keep.any() or not any(np.isfinite(numbers[name][keep]).any() for name in benchmarks):
        raise InputError(f"scores: {source} has no scores: expected lines of models, and columns of numbers")
    notes += [f"no benchmarks, and left out: {abbreviated(others, 8)}"] * bool(others)
    notes += [f"left out, since their normalised scores are there: {abbreviated(raw, 8)}"] * bool(raw)
    if not keep.all():
        notes.append(f"{np.count_nonzero(~keep)} lines name no model")
    tables = [
        pd.DataFrame(
            [
                (models[i], revisions[i], name, float(numbers[name][i]))
                for i in np.flatnonzero(keep)
                for name in chosen
                if np.isfinite(numbers[name][i])
            ],
            columns=[*COLUMNS],
        )
        for chosen in (benchmarks, [*others, *raw])
    ]
    table, said = reduced(tables[0])
    return Scores(table=table, others=reduced(tables[1])[0], notes=[*notes, *said], source=source)


def _numbers(frame: pd.DataFrame) -> tuple[dict[str, np.ndarray], list[str]]:
    """Give the columns of numbers, with NaN for what is missing, and say what is none."""
    numbers: dict[str, np.ndarray] = {}
    texts, flags, wrong = [], [], []
    for name in map(str, frame.columns):
        column = frame[name]
        if pd.api.types.is_bool_dtype(column):
            flags.append(name)
            continue
        if pd.api.types.is_numeric_dtype(column):
            values = column.to_numpy(dtype=float, na_value=np.nan)
            known = ~np.isnan(values)
        else:
            cells = column.map(_text).map(_as_number)
            known = ~cells.str.lower().isin(_MISSING).to_numpy(dtype=bool)
            values = pd.to_numeric(cells.where(known), errors="coerce").to_numpy(dtype=float)
        finite = np.isfinite(values)
        if known.any() and 2 * np.count_nonzero(finite) <= np.count_nonzero(known):
            texts.append(name)
            continue
        numbers[name] = np.where(finite, values, np.nan)
        if (n_wrong := int(np.count_nonzero(known & ~finite))) > 0:
            wrong.append(f"{name} ({n_wrong})")
    notes = [f"no numbers, and left out: {abbreviated([*texts, *flags], 8)}"] * bool(texts or flags)
    notes += [f"cells that are no numbers count as missing: {abbreviated(wrong, 8)}"] * bool(wrong)
    return numbers, notes


def _column(names: Sequence[str], candidates: Sequence[str]) -> str | None:
    """Find the first candidate among the names of columns, whatever their case.

    >>> _column(["Model", "fullname", "BBH"], MODEL_COLUMNS)
    'fullname'
    """
    lower = {name.strip().lower(): name for name in reversed(names)}
    return next((lower[candidate] for candidate in candidates if candidate in lower), None)


def _is_no_benchmark(name: str) -> bool:
    """Tell numbers that describe a model from scores.

    >>> [_is_no_benchmark(name) for name in ("#Params (B)", "CO₂ cost (kg)", "Hub ❤️", "MMLU-PRO", "Average ⬆️")]
    [True, True, True, False, False]
    """
    words = " ".join(re.sub(r"[^a-z0-9_]+", " ", name.replace("₂", "2").lower()).split())
    return _NO_BENCHMARK.fullmatch(words) is not None


def _without_link(name: str) -> str:
    """Take the model's id out of a link, as leaderboards show it.

    >>> _without_link("[org/a](https://huggingface.co/org/a)"), _without_link('<a href="https://x.org/a">org/a</a>')
    ('org/a', 'org/a')
    """
    found = _LINK.fullmatch(name)
    return next(part for part in found.groups() if part) if found else name


def _as_number(cell: str) -> str:
    """Write a number without a sign of percent and without commas between thousands, where these are certain.

    >>> [_as_number(cell) for cell in ("61.5%", "1,234.5", "1,234")]
    ['61.5', '1234.5', '1,234']
    """
    cell = cell.removesuffix("%").strip()
    return cell.replace(",", "") if _THOUSANDS.fullmatch(cell) else cell


def _text(value: object) -> str:
    return "" if value is None or value is pd.NA or value != value else str(value).strip()
