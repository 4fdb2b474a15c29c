"""Tables: rows of one file or data set, of which only the columns that are asked for are read."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from softh_probe.choices import Choices
from softh_probe.data.arrow_values import to_python
from softh_probe.data.file_text import COMPRESSIONS, Notes, open_bytes, read_text
from softh_probe.data.json_values import RepeatedKeys, json_values
from softh_probe.data.kinds import Kind, is_number, kind_of_arrow, kind_of_values
from softh_probe.errors import InputError

Row = Mapping[str, Any]

_ROWS_TO_GUESS_FROM = 100
_ROWS_TO_SEARCH_ON_HUB = 10_000
_ROWS_AT_ONCE = 256
_HALF = re.compile("[\ud800-\udfff]")
_SEPARATORS = {",": "','", ";": "';'", "\t": "a tab", "|": "'|'"}


class Table(ABC):
    """Rows of one file or data set.

    Args:
        name: the file or data set, as errors name it.
        features: types that the data set's authors declared, where known.
    """

    has_fixed_columns = True
    """Whether every row has the same columns."""
    has_sure_names = True
    """Whether names of columns are surely names, and not the first row."""
    has_types = True
    """Whether numbers are told from text."""

    def __init__(self, name: str, features: Mapping[str, Any] | None = None) -> None:
        self.name = name
        features = features or {}
        self.class_names = {n: f.names for n, f in features.items() if isinstance(f, datasets.ClassLabel)}

    @abstractmethod
    def kinds(self) -> dict[str, Kind]:
        """Find the kind of each column, by declared types or the first rows; empty where there are no rows."""

    @abstractmethod
    def rows(self, names: Sequence[str], notes: Notes) -> Iterator[Row]:
        """Read all rows.

        Args:
            names: columns that are asked for; others cause no error. A row may lack some.
            notes: takes what was found in the file.
        """

    def has_column(self, name: str, kinds: Mapping[str, Kind]) -> bool:
        """Test whether a column exists, of which `kinds` may show the first rows only."""
        return name in kinds


class TextTable(Table):
    """A .txt file, of which each line, paragraph or the whole is a row.

    Args:
        path, name: as in `read_text`.
        sample_by: "line", "paragraph" or "document".
    """

    def __init__(self, path: str, name: str, sample_by: str) -> None:
        super().__init__(name)
        self.path, self.sample_by = path, sample_by

    def kinds(self) -> dict[str, Kind]:
        """See `Table`."""
        return {"text": kind_of_values([""])}

    def rows(self, names: Sequence[str], notes: Notes) -> Iterator[Row]:
        """See `Table`."""
        chunks = read_text(self.path, self.name, notes, plain=True)
        ended = (chunk.replace("\r\n", "\n").replace("\r", "\n") for chunk in chunks)
        first = next(ended, "")
        self._check_lines(first, notes)
        pieces = {"line": _split_lines, "paragraph": _split_paragraphs, "document": _joined}[self.sample_by]
        return ({"text": text} for text in pieces(itertools.chain([first] if first else (), ended)))

    def _check_lines(self, head: str, notes: Notes) -> None:
        """Record lines of JSON in a .txt file: most likely they are the rows of a table."""
        lines = [line for line in head[:10_000].split("\n") if line.strip()][:-1]
        if len(lines) > 1 and all(map(_is_object, lines)):
            notes.choices.add(
                "format",
                "plain text",
                f"lines of {self.name} are JSON objects, and were read as text, brackets and all; to read a column, "
                "let its name end in .jsonl",
            )


class JsonTable(Table):
    """A .json or .jsonl file."""

    has_fixed_columns = False

    def __init__(self, path: str, name: str, features: Mapping[str, Any] | None = None) -> None:
        super().__init__(name, features)
        self.path = path

    def kinds(self) -> dict[str, Kind]:
        """See `Table`."""
        rows = list(itertools.islice(self._objects(_unrecorded()), _ROWS_TO_GUESS_FROM))
        return dict(kind_of_values(rows).fields)

    def has_column(self, name: str, kinds: Mapping[str, Kind]) -> bool:
        """See `Table`."""
        most = _ROWS_TO_SEARCH_ON_HUB if "://" in self.path else None
        return name in kinds or any(name in row for row in itertools.islice(self._objects(_unrecorded()), most))

    def rows(self, names: Sequence[str], notes: Notes) -> Iterator[Row]:
        """See `Table`."""
        for number, row in enumerate(self._objects(notes), start=1):
            found = {name: row[name] for name in names if name in row}
            if problem := _problem(row, found):
                raise ValueError(f"row {number}: {problem}")
            yield found

    def _objects(self, notes: Notes) -> Iterator[dict[str, Any]]:
        for number, row in enumerate(json_values(read_text(self.path, self.name, notes)), start=1):
            if not isinstance(row, dict):
                what = "null" if row is None else type(row).__name__
                raise ValueError(f"row {number}: a row is {what}; expected an object with a value for each column")
            yield row


class CsvTable(Table):
    """A .csv or .tsv file: cells as they are written, none of which is left out.

    Args:
        path, name: as in `read_text`.
        separator: what stands between cells.
        features: as in `Table`.
    """

    has_sure_names = False
    has_types = False

    def __init__(self, path: str, name: str, separator: str, features: Mapping[str, Any] | None = None) -> None:
        super().__init__(name, features)
        self.path, self.separator = path, separator
        self.header: list[str] = []
        self._shown = _SEPARATORS.get(separator, repr(separator))

    def kinds(self) -> dict[str, Kind]:
        """See `Table`."""
        cells = list(itertools.islice(self._cells(_unrecorded()), _ROWS_TO_GUESS_FROM))
        columns = zip(self.header, zip(*cells, strict=True), strict=True) if cells else ()
        return {name: Kind(names=frozenset([_cell_kind(column)])) for name, column in columns}

    def rows(self, names: Sequence[str], notes: Notes) -> Iterator[Row]:
        """See `Table`."""
        cells = self._cells(notes)
        first = next(cells, None)
        places = [(name, self.header.index(name)) for name in names if name in self.header]
        for name in names:
            _check_once(name, self.header.count(name), self.name)
        for row in itertools.chain([] if first is None else [first], cells):
            yield {name: row[place] or None for name, place in places}

    def _cells(self, notes: Notes) -> Iterator[list[str]]:
        chunks = read_text(self.path, self.name, notes)
        # Line ends inside quotes belong to the text: none are translated.
        lines = (line for chunk in chunks for line in _lines_with_ends(chunk))
        first = next(lines, "")
        self._check_separator(first)
        seen: list[str] = []  # lines of a row: the reader takes no more
        read = _noted(itertools.chain([first], lines), seen)
        reader = csv.reader(read, delimiter=self.separator, strict=True)
        rows = (row for row in _long_cells(reader) if row)
        remedy = f"put quotes around cells that hold {self._shown}, line breaks or quotes, and double these"
        number = 0
        try:
            self.header = next(rows, [])
            seen.clear()
            for number, row in enumerate(rows, start=1):
                if len(row) != len(self.header):
                    n = len(row)
                    raise ValueError(f"row {number} has {n} of the header's {len(self.header)} cells; {remedy}")
                if len(seen) > 1 and self._are_rows(seen):
                    notes.joined_lines[self.name] = notes.joined_lines.get(self.name, 0) + 1
                seen.clear()
                yield row
        except csv.Error as error:
            raise ValueError(f"row {number + 1}: {error}; {remedy}") from error

    def _are_rows(self, lines: Sequence[str]) -> bool:
        """Test whether each line of a quoted cell is a row by itself. Texts have commas, so only tabs show it."""
        n = len(self.header) - 1
        return self.separator == "\t" and n > 0 and all(line.count("\t") == n for line in lines)

    def _check_separator(self, line: str) -> None:
        """Refuse a header that shows another separator, and none of ours."""
        line = line.strip("\r\n")
        others = [other for other in _SEPARATORS if other != self.separator and other in line]
        if line.lower().startswith("sep=") and len(line) <= 5:
            raise InputError(f"data: {self.name} begins with the line {line!r}; remove it and separate cells by ','")
        if self.separator not in line and others:
            remedy = "let its name end in .tsv" if others[0] == "\t" else f"write it with {self._shown}, or as .jsonl"
            raise InputError(
                f"data: the header of {self.name} separates cells by {_SEPARATORS[others[0]]}, expected {self._shown}: "
                f"{line[:80]!r}; {remedy}"
            )


class ArrowTable(Table):
    """Rows that Arrow holds: a data set of `datasets`."""

    def __init__(self, name: str, rows: datasets.Dataset | datasets.IterableDataset) -> None:
        super().__init__(name, rows.features)
        # Another format would give tensors instead of text. Arrow's leaves images and audio as they are.
        self._data = rows.with_format("arrow")

    def kinds(self) -> dict[str, Kind]:
        """See `Table`."""
        return {field.name: kind_of_arrow(field.type) for field in self._schema()}

    def rows(self, names: Sequence[str], notes: Notes) -> Iterator[Row]:
        """See `Table`."""
        data = self._data
        if data.column_names is not None:
            data = data.select_columns([name for name in names if name in data.column_names])
        for batch in data.iter(batch_size=_ROWS_AT_ONCE):
            yield from to_python(batch, names, notes)

    def _schema(self) -> list[pa.Field]:
        if self._data.features is not None:
            return list(self._data.features.arrow_schema)
        first = next(iter(self._data.iter(batch_size=_ROWS_AT_ONCE)), None)
        return [] if first is None else list(first.schema)


class ParquetTable(Table):
    """A .parquet file, of which columns that are not asked for are not read."""

    def __init__(self, path: str, name: str, features: Mapping[str, Any] | None = None) -> None:
        super().__init__(name, features)
        self.path = path

    def kinds(self) -> dict[str, Kind]:
        """See `Table`."""
        with self._open() as file:
            return {field.name: kind_of_arrow(field.type) for field in file.schema_arrow}

    def rows(self, names: Sequence[str], notes: Notes) -> Iterator[Row]:
        """See `Table`."""
        with self._open() as file:
            self.class_names = {**_declared_classes(file.schema_arrow.metadata), **self.class_names}
            there = file.schema_arrow.names
            for name in names:
                _check_once(name, there.count(name), self.name)
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[name for name in names if name in there]):
                yield from to_python(batch, names, notes)

    @contextmanager
    def _open(self) -> Iterator[pq.ParquetFile]:
        with open_bytes(self.path, self.name) as file:
            as_it_is = Path(self.path).suffix.lower() not in COMPRESSIONS and "://" not in self.path
            yield pq.ParquetFile(self.path if as_it_is else file)


def _check_once(name: str, count: int, file: str) -> None:
    if count > 1:
        raise InputError(f"data: {file} has {count} columns {name!r}; rename all but one")


def _unrecorded() -> Notes:
    """Make notes for a look at the first rows, which are read again."""
    return Notes(Choices())


def _split_lines(chunks: Iterator[str]) -> Iterator[str]:
    for chunk in chunks:
        yield from chunk.removesuffix("\n").split("\n")


def _split_paragraphs(chunks: Iterator[str]) -> Iterator[str]:
    rest = ""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split("\n\n")
        yield from filter(None, whole)
    if rest:
        yield rest


def _joined(chunks: Iterator[str]) -> Iterator[str]:
    yield "".join(chunks)


def _lines_with_ends(text: str) -> Iterator[str]:
    """Split text after each line end, each of which stays as it is written; csv expects that."""
    return iter(io.StringIO(text, newline=""))


def _noted(lines: Iterable[str], into: list[str]) -> Iterator[str]:
    for line in lines:
        into.append(line)
        yield line


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _problem(row: Row, found: Row) -> str | None:
    """Find what makes the values that are asked for ambiguous: a key that stands twice, or half a character."""
    if isinstance(row, RepeatedKeys) and (twice := row.repeated & found.keys()):
        return f"key {min(twice)!r} stands twice; give each key once"
    waiting: list[Any] = list(found.values())
    while waiting:
        value = waiting.pop()
        if isinstance(value, RepeatedKeys):
            return f"key {min(value.repeated)!r} stands twice; give each key once"
        if isinstance(value, dict | list):
            waiting += value.values() if isinstance(value, dict) else value
        if isinstance(value, str) and not value.isascii() and _HALF.search(value):
            return "a text holds half of a surrogate pair, which is no character; repair or remove it"
    return None


def _cell_kind(cells: Iterable[str]) -> str:
    filled = [cell for cell in cells if cell]
    return "number" if filled and all(map(is_number, filled)) else "string"


def _long_cells(reader: Iterator[list[str]]) -> Iterator[list[str]]:
    """Read rows with cells of any length; csv's limit of 131,072 characters is one of the whole process."""
    while True:
        with _cell_limit(sys.maxsize):
            row = next(reader, None)
        if row is None:
            return
        yield row


@contextmanager
def _cell_limit(characters: int) -> Iterator[None]:
    before = csv.field_size_limit(characters)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _declared_classes(metadata: Mapping[bytes, bytes] | None) -> dict[str, list[str]]:
    """Read the names of classes that `datasets` stores in the metadata of a Parquet file."""
    stored = json.loads((metadata or {}).get(b"huggingface", b"{}"))
    features = (stored.get("info") or {}).get("features") or {}
    return {
        name: feature["names"]
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
    }
