"""Stream the documents of a data set: texts and conversations with the labels of their columns."""

from __future__ import annotations

import datetime
import itertools
import math
import re
from collections.abc import Generator, Hashable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple

from softh_probe.choices import Choices
from softh_probe.data.columns import (
    TEXT_COLUMNS,
    Path,
    find_path,
    infer_text_column,
    names_of,
    no_such,
    split_names,
    value_at,
)
from softh_probe.data.file_text import Notes
from softh_probe.data.kinds import Kind
from softh_probe.data.prompts import PROMPT, joined, with_prompt
from softh_probe.data.sampling import permuted, sample
from softh_probe.data.sources import open_splits, reading
from softh_probe.data.tables import Row, Table
from softh_probe.errors import InputError, abbreviated
from softh_probe.labels import PREFERENCE_LABEL

SAMPLE_BY = ("line", "paragraph", "document")

_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}
_ROWS_AT_ONCE = 256
_OfRow = tuple[list[Any], list[dict[str, Any]]]  # contents with prompts, and labels of the documents of a row
_WHOLE = re.compile(r"-?\d+\.0")
_EXACT = 2**53  # floats below it hold whole numbers exactly

__all__ = ["PREFERENCE_LABEL", "SAMPLE_BY", "TEXT_COLUMNS", "Document", "read_documents"]


@dataclass(frozen=True, kw_only=True)
class Document:
    """One text or conversation of a data set, with the values of its label columns.

    >>> Document(content="Ein Haus.", columns={"language": "de"}).columns["language"]
    'de'
    """

    content: str | list[dict[str, Any]]
    """The text, or a conversation as messages `{"role": ..., "content": ...}`; empty where the row had none."""
    columns: Mapping[str, Hashable | None] = field(default_factory=dict)
    """Label of the document in each label column; None for no label."""
    row: int | None = None
    """Number of its row of the data among those that are read; documents of several text columns of a row share it, and
    follow one another. None for a document that is a row of its own."""
    prompt: str | list[dict[str, Any]] | None = None
    """What the content begins with that is no completion, where that is known: a text or messages; for positions
    `completion`."""


class _Wanted(NamedTuple):
    """Paths of the columns to read, by the names that the user gave them."""

    texts: dict[str, Path]
    labels: dict[str, Path]
    prompt: Path | None
    """Path of the prompts with which the texts begin; None where they are whole."""
    within: str | None
    """The column among `labels` that is no label, but a group of documents."""

    def argument(self, label: str) -> str:
        """Name the argument that asked for a label column."""
        return "permute_within" if label == self.within else "labels"

    @property
    def columns(self) -> list[str]:
        """Names of the columns that hold them."""
        paths = filter(None, (self.prompt, *self.texts.values(), *self.labels.values()))
        return list(dict.fromkeys(path[0] for path in paths))


def read_documents(
    data: str,
    *,
    split: str | None = None,
    subset: str | None = None,
    text_column: str | None = None,
    sample_by: str = "line",
    max_documents: int | None = None,
    shuffle_seed: int | None = None,
    label_columns: Sequence[str] = (),
    permute_within: str | None = None,
    with_prompts: bool = False,
    revision: str | None = None,
    choices: Choices | None = None,
) -> Iterator[Document]:
    r"""Stream the documents of a data set, in its order or at random.

    A folder whose files are all named after splits (`train.jsonl`, `data/test-00000.parquet`) has those splits; any
    other file or folder is one split, "train". Columns that are not asked for are not read, and may hold anything.

    Text is UTF-8, or UTF-16 or UTF-32 where a byte order mark or the characters leave no doubt; another encoding is
    refused. In a file that is evidently UTF-8, bytes that are not become U+FFFD, which `choices` counts. Cells of .csv
    are separated by commas and of .tsv by tabs, the first line has the columns' names, and all rows have as many cells.

    >>> import pathlib, tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp(), "tales.csv")
    >>> _ = file.write_text("text,language\nOnce upon a time,en\nEs war einmal,de\n")
    >>> for document in read_documents(str(file), label_columns=["language"]):
    ...     print(document.content, dict(document.columns))
    Once upon a time {'language': 'en'}
    Es war einmal {'language': 'de'}

    Args:
        data: a local file (.txt .jsonl .json .csv .tsv .parquet, also compressed as .gz .zst .xz .bz2), a folder of
            such files of one format (read recursively and sorted, without hidden files), a folder saved with
            `save_to_disk`, a local copy of a hub repository, or a hub id. A local path takes precedence.
        split: name of the split; None is the only split, else "train".
        subset: configuration name on the hub (`en` of C4).
        text_column: column of the text or conversation, or a key of a struct (`translation.en`); a column of that
            literal name takes precedence. None is the first of `TEXT_COLUMNS` that exists, else the only column that
            can hold text. "chosen,rejected" gives a document for each of the two, with the column's name in the label
            column `text_column`.
        sample_by: unit of a .txt file that is a document: "line", "paragraph" or "document" (the whole file).
        max_documents: number of rows to read; None for all.
        shuffle_seed: seed of a random order; None keeps the data's order. With `max_documents`, the rows are a uniform
            sample of the whole split, the first of the random order of all. Either reads the whole split.
        label_columns: names of the columns to read as labels, dotted inside structs. Whole numbers are the same label
            with and without ".0".
        permute_within: a further column, read as labels are: that of the groups within which a null exchanges labels.
        with_prompts: for positions `completion`: join `prompt` and `completion` into one document where both are there
            and `text_column` is None, or `prompt` and each of the others where it names several.
        revision: branch, tag or commit on the hub.
        choices: collects what is chosen here for the user, such as the text column; None warns of what is not certain.

    Raises:
        InputError: on the call where the data cannot be opened or an argument does not fit it; during iteration where a
            row cannot be read.
    """
    if max_documents is not None and max_documents < 1:
        raise InputError(f"max_documents: {max_documents}, but it has to be 1 or more; without it all are read")
    if sample_by not in SAMPLE_BY:
        raise InputError(f"sample_by: {sample_by!r} is not one of {', '.join(SAMPLE_BY)}")
    choices = Choices(warn=True) if choices is None else choices
    splits = open_splits(data, subset, revision, sample_by)
    tables = splits[_pick_split(splits, split, data)]
    wanted = _find_columns(tables, text_column, label_columns, permute_within, data, choices, with_prompts)
    notes = Notes(choices)
    return _documents(_rows(tables, wanted, notes), wanted, notes, max_documents, shuffle_seed)


def _pick_split(splits: Mapping[str, Any], split: str | None, data: str) -> str:
    if split is None:
        split = next(iter(splits)) if len(splits) == 1 else "train"
        if split not in splits:
            raise InputError(f"split: {data} has no 'train', name one of its splits: {', '.join(splits)}")
    if split not in splits:
        raise no_such("split", split, list(splits), data)
    return split


def _find_columns(
    tables: Sequence[Table],
    text_column: str | None,
    label_columns: Sequence[str],
    within: str | None,
    data: str,
    choices: Choices,
    with_prompts: bool,
) -> _Wanted:
    """Find the columns to read by the first rows of the data, and by later rows where they show none of that name."""
    first, kinds = next(((table, kinds) for table in tables if (kinds := _kinds(table))), (None, {}))
    if first is None:
        raise InputError(f"data: {data} has no rows; give a file or data set that holds text")
    labels = list(dict.fromkeys(label_columns))
    asked = _asked(text_column, kinds)
    asked, prompt = with_prompt(asked, kinds, choices) if with_prompts else (asked, None)
    if len(asked) > 1 and PREFERENCE_LABEL in labels:
        labels.remove(PREFERENCE_LABEL)
    within = None if within in labels else within
    if within is not None:
        _check_within(within, labels, asked)
        labels.append(within)
    kinds = _with_later_columns(tables, kinds, [*asked, *labels, *filter(None, [prompt])])
    names = asked or [infer_text_column(kinds, labels, first.has_sure_names, data, choices)]
    wanted = _Wanted(
        texts={name: _path(name, kinds, "text_column", data) for name in names},
        labels={},
        prompt=_path(prompt, kinds, "text_column", data) if prompt else None,
        within=within,
    )
    return wanted._replace(labels={name: _path(name, kinds, wanted.argument(name), data) for name in labels})


def _check_within(within: str, labels: Sequence[str], texts: Sequence[str]) -> None:
    """Refuse a column of groups where documents of several text columns are labelled by that column alone."""
    if len(texts) > 1 and within == PREFERENCE_LABEL:
        raise InputError(
            f"permute_within: {within!r} differs within a row, whose labels are exchanged together; name a column of "
            "the data"
        )
    if len(texts) > 1 and not labels:
        raise InputError(
            f"permute_within: labels of column:{PREFERENCE_LABEL} are exchanged within their row anyway; leave it out"
        )


def _asked(text_column: str | None, kinds: Mapping[str, Kind]) -> list[str]:
    return [] if text_column is None else split_names(text_column, kinds)


def _with_later_columns(tables: Sequence[Table], kinds: dict[str, Kind], names: Sequence[str]) -> dict[str, Kind]:
    """Add the columns that the first rows of the first file lack, and that others have."""
    for table in tables if any(find_path(name, kinds) is None for name in names) else ():
        kinds = _kinds(table) | kinds
        for name in names:
            if find_path(name, kinds) is None:
                kinds |= _late_column(table, name, kinds)
    return kinds


def _late_column(table: Table, name: str, kinds: Mapping[str, Kind]) -> dict[str, Kind]:
    with reading(table.name):
        return {name: Kind()} if table.has_column(name, kinds) else {}


def _kinds(table: Table) -> dict[str, Kind]:
    with reading(table.name):
        return table.kinds()


def _path(name: str, kinds: Mapping[str, Kind], argument: str, data: str) -> Path:
    path = find_path(name, kinds)
    if path is None and argument != "text_column" and name == PREFERENCE_LABEL:
        raise InputError(
            f"{argument}: {name!r} is the name of each document's text column, and {data} is read by one "
            "only; give several, as in text_column 'chosen,rejected'"
        )
    if path is None:
        raise no_such(argument, name, names_of(kinds), data)
    return path


def _documents(
    rows: Iterator[tuple[str, Row]], wanted: _Wanted, notes: Notes, max_documents: int | None, shuffle_seed: int | None
) -> Iterator[Document]:
    """Make the documents of the rows that are asked for, and record at the end what was found while reading."""
    try:
        if shuffle_seed is not None and max_documents is not None:
            rows = iter(sample(rows, shuffle_seed, max_documents))
        of_rows: Iterator[_OfRow] = (
            _of_row(where, row, wanted) for where, row in itertools.islice(rows, max_documents)
        )
        if shuffle_seed is not None and max_documents is None:
            of_rows = permuted(of_rows, shuffle_seed)
        for number, (contents, labels) in enumerate(of_rows):
            for (content, prompt), columns in zip(contents, labels, strict=True):
                yield Document(content=content, columns=columns, row=number, prompt=prompt)
    finally:
        notes.finish()


def _of_row(where: str, row: Row, wanted: _Wanted) -> _OfRow:
    """Make contents and labels of the documents of a row."""
    labels = {
        name: label_value(value_at(row, path, where), wanted.argument(name), name, where)
        for name, path in wanted.labels.items()
    }
    contents = [_content(value_at(row, path, where), name, where) for name, path in wanted.texts.items()]
    prompt = None
    if wanted.prompt is not None:
        prompt = _content(value_at(row, wanted.prompt, where), PROMPT, where)
        contents = [joined(prompt, content, where) for content in contents]
    several = len(contents) > 1
    return [(content, prompt) for content in contents], [
        {**labels, PREFERENCE_LABEL: name} if several else labels for name in wanted.texts
    ]


def _rows(tables: Sequence[Table], wanted: _Wanted, notes: Notes) -> Iterator[tuple[str, Row]]:
    """Read the rows of all tables, each with its name for errors ("row 1 of x.csv" is the first of a table)."""
    names = wanted.columns
    for table in tables:
        missing = set(names)
        number = 0
        with closing(_read(table, names, notes)) as rows:
            for row in rows:
                number += 1
                where = f"row {number} of {table.name}"
                missing -= row.keys()
                if missing and table.has_fixed_columns:
                    raise InputError(f"data: {where} has no column {min(missing)!r}; all files have to have the same")
                row = _complete(row, names, table)
                yield where, row if table.has_types else _with_whole_labels(row, wanted)
        if missing and number:
            raise InputError(
                f"data: none of the {number:,} rows of {table.name} has a column {min(missing)!r}; all files have to "
                "have the same"
            )


def _read(table: Table, names: Sequence[str], notes: Notes) -> Generator[Row, None, None]:
    """Read the rows of a table; those before a row that cannot be read come first."""
    with reading(table.name):
        rows = iter(table.rows(names, notes))
    problem = None
    while problem is None:
        chunk: list[Row] = []
        try:
            with reading(table.name):
                for row in itertools.islice(rows, _ROWS_AT_ONCE):
                    chunk.append(row)
        except InputError as error:
            problem = error
        if not chunk and problem is None:
            return
        yield from chunk
    raise problem


def _with_whole_labels(row: Row, wanted: _Wanted) -> Row:
    """Write labels that are whole numbers without ".0", where a file does not tell numbers from text."""
    texts = {path[0] for path in wanted.texts.values()}
    labels = {path[0] for path in wanted.labels.values()} - texts
    return {n: v[:-2] if n in labels and isinstance(v, str) and _WHOLE.fullmatch(v) else v for n, v in row.items()}


def _complete(row: Row, names: Sequence[str], table: Table) -> Row:
    """Give a row with all columns, null where it lacks them, and with the names of classes in place of numbers."""
    classes = table.class_names
    return {name: _class_name(row.get(name), classes[name]) if name in classes else row.get(name) for name in names}


def _class_name(value: Any, names: Sequence[str]) -> Any:
    """Name a class by its number, which is text in .csv; -1 is none."""
    try:
        number = int(value)
    except (TypeError, ValueError):
        return value
    return names[number] if 0 <= number < len(names) else None


def label_value(value: Any, argument: str, column: str, where: str) -> Hashable | None:
    """Make a label of a value of a column; None for no label.

    Raises:
        InputError: it is neither text nor a number, a boolean or a date.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, Decimal):
        value = int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return int(value)  # pandas writes 1 as 1.0 where a column has nulls
    if isinstance(value, (str, int, float, datetime.date)):
        return value
    raise InputError(
        f"{argument}: {column!r} holds a {_type_name(value)} in {where}; labels are text, numbers or booleans"
    )


def _content(value: Any, column: str, where: str) -> str | list[dict[str, Any]]:
    if value is None or isinstance(value, str):
        return value or ""
    messages = _messages(value) if isinstance(value, list) else None
    if messages is None:
        keys = [f"{column}.{key}" for key in value] if isinstance(value, dict) else []
        name_key = f"; name the key that holds it: {abbreviated(keys)}" if keys else ""
        raise InputError(
            f"text_column: {column!r} holds a {_type_name(value)} in {where}; expected text, or a conversation: "
            f"a list of messages with role and content{name_key}"
        )
    return messages


def _messages(value: list[Any]) -> list[dict[str, Any]] | None:
    """Normalise the messages of a conversation to role and content, also from ShareGPT's from and value.

    Returns:
        The messages; None if the value is no conversation.
    """
    messages = []
    for item in value:
        if not isinstance(item, dict):
            return None
        # `datasets` adds keys of other messages with the value None, which chat templates would count as present.
        message = {key: entry for key, entry in item.items() if entry is not None}
        if "role" not in message and "from" in message:
            sender = message["from"]
            message = {"role": _SHAREGPT_ROLES.get(str(sender), sender), "content": message.get("value", "")}
        message.setdefault("content", "")
        if not isinstance(message.get("role"), str) or not isinstance(message["content"], (str, list)):
            return None
        messages.append(message)
    return messages


def _type_name(value: Any) -> str:
    inner = f" of {type(value[0]).__name__}" if isinstance(value, list) and value else ""
    return type(value).__name__ + inner
