"""Stream the documents of a data set: texts and conversations with the labels of their columns."""

from __future__ import annotations

import datetime
import itertools
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets

from softh_probe.choices import Choices
from softh_probe.data.sources import Part, no_such, open_splits, reading
from softh_probe.errors import InputError

SAMPLE_BY = ("line", "paragraph", "document")
TEXT_COLUMNS = (
    *("text", "content", "body", "document", "sentence", "passage", "article"),
    *("messages", "conversations", "conversation"),
)
PREFERENCE_LABEL = "text_column"  # label column made from the name of the text column, where there are several

_STRING_TYPES = {"string", "large_string", "str"}
_CONTENT_TYPES = _STRING_TYPES | {"List", "LargeList", "Sequence", "list", "Json", "null"}
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}
_ROWS_AT_ONCE = 256
_ROWS_TO_GUESS_FROM = 100


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


def read_documents(
    data: str,
    *,
    split: str | None = None,
    subset: str | None = None,
    text_column: str | None = None,
    sample_by: str = "line",
    max_documents: int | None = None,
    label_columns: Sequence[str] = (),
    revision: str | None = None,
    choices: Choices | None = None,
) -> Iterator[Document]:
    r"""Stream the documents of a data set, in its order.

    A folder whose files are all named after splits (`train.jsonl`, `data/test-00000.parquet`) has those splits; any
    other file or folder is one split, "train". Bytes of local files that are not UTF-8 become U+FFFD.

    >>> import pathlib, tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp(), "tales.csv")
    >>> _ = file.write_text("text,language\nOnce upon a time,en\nEs war einmal,de\n")
    >>> for document in read_documents(str(file), label_columns=["language"]):
    ...     print(document.content, dict(document.columns))
    Once upon a time {'language': 'en'}
    Es war einmal {'language': 'de'}

    Args:
        data: a local file (.txt .jsonl .json .csv .parquet, also compressed as .gz .zst .xz .bz2), a folder of such
            files of one format (read recursively and sorted, without hidden files), a folder saved with
            `save_to_disk`, a local copy of a hub repository, or a hub id. A local path takes precedence.
        split: name of the split; None is the only split, else "train".
        subset: configuration name on the hub (`en` of C4).
        text_column: column of the text or conversation; None is the first of `TEXT_COLUMNS` that exists, else the
            only column of strings. "chosen,rejected" gives a document for each of the two, with the column's name in
            the label column `text_column`.
        sample_by: unit of a .txt file that is a document: "line", "paragraph" or "document" (the whole file).
        max_documents: number of rows to read; None for all.
        label_columns: names of the columns to read as labels.
        revision: branch, tag or commit on the hub.
        choices: collects what is chosen here for the user, such as the text column.

    Raises:
        InputError: on the call where the data cannot be opened or an argument does not fit it; during iteration where a
            row cannot be read.
    """
    if max_documents is not None and max_documents < 1:
        raise InputError(f"max_documents: {max_documents}, but it has to be 1 or more; without it all are read")
    if sample_by not in SAMPLE_BY:
        raise InputError(f"sample_by: {sample_by!r} is not one of {', '.join(SAMPLE_BY)}")
    names = (text_column.split(",") if text_column else list(TEXT_COLUMNS)) + list(label_columns)
    splits = open_splits(data, subset, revision, sample_by, [name.strip() for name in names])
    parts = splits[_pick_split(splits, split, data)]
    types = _column_types(parts)
    if not types:
        raise InputError(f"data: {data} has no rows; give a file or data set that holds text")
    texts = _text_columns(types, text_column, label_columns, data)
    if choices is not None and text_column is None:
        choices.add("text_column", texts[0], "inferred from the names and types of the columns", certain=True)
    labels = _label_columns(types, label_columns, len(texts) > 1, data)
    return _documents(parts, texts, labels, max_documents)


def _pick_split(splits: Mapping[str, Any], split: str | None, data: str) -> str:
    if split is None:
        split = next(iter(splits)) if len(splits) == 1 else "train"
        if split not in splits:
            raise InputError(f"split: {data} has no 'train', name one of its splits: {', '.join(splits)}")
    if split not in splits:
        raise no_such("split", split, list(splits), data)
    return split


def _column_types(parts: Sequence[Part]) -> dict[str, str]:
    """Find the type of each column: from the data set's features, else from the first rows."""
    types: dict[str, str] = {}
    for part in parts:
        for name, feature in (part.rows.features or {}).items():
            types[name] = feature.dtype if isinstance(feature, datasets.Value) else type(feature).__name__
        for _, row in itertools.islice(() if types else _rows([part]), _ROWS_TO_GUESS_FROM):
            for name, value in row.items():
                if types.get(name, "null") == "null":
                    types[name] = "null" if value is None else type(value).__name__
        if types:
            break
    return types


def _text_columns(
    types: Mapping[str, str], text_column: str | None, label_columns: Sequence[str], data: str
) -> list[str]:
    if text_column is not None:
        names = [text_column] if text_column in types else [name.strip() for name in text_column.split(",")]
        for name in names:
            if name not in types:
                raise no_such("text_column", name, list(types), data)
        return list(dict.fromkeys(names))
    for name in TEXT_COLUMNS:
        if types.get(name) in _CONTENT_TYPES and name not in label_columns:
            return [name]
    strings = [name for name, kind in types.items() if kind in _STRING_TYPES and name not in label_columns]
    if len(strings) == 1:
        return strings
    listed = ", ".join(f"{name} ({kind})" for name, kind in types.items())
    raise InputError(f"text_column: cannot tell which column of {data} is the text, name one of: {listed}")


def _label_columns(types: Mapping[str, str], label_columns: Sequence[str], several_texts: bool, data: str) -> list[str]:
    """List the label columns to read from the rows, without `text_column` where it is made here."""
    names = list(dict.fromkeys(label_columns))
    if several_texts and PREFERENCE_LABEL in names:
        names.remove(PREFERENCE_LABEL)
    for name in names:
        if name not in types and name == PREFERENCE_LABEL:
            raise InputError(
                f"labels: {name!r} is the name of each document's text column, and {data} is read by one "
                "only; give several, as in text_column 'chosen,rejected'"
            )
        if name not in types:
            raise no_such("labels", name, list(types), data)
    return names


def _documents(
    parts: Sequence[Part], texts: Sequence[str], labels: Sequence[str], max_documents: int | None
) -> Iterator[Document]:
    for where, row in itertools.islice(_rows(parts, [*texts, *labels]), max_documents):
        for name in (*texts, *labels):
            if name not in row:
                raise InputError(f"data: {where} has no column {name!r}; all files have to have the same")
        columns = {name: _label(row[name], name, where) for name in labels}
        for name in texts:
            made = {PREFERENCE_LABEL: name} if len(texts) > 1 else {}
            yield Document(content=_content(row[name], name, where), columns={**columns, **made})


def _rows(parts: Sequence[Part], columns: Sequence[str] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read the rows of all parts, each with its name for errors ("row 1 of x.csv" is the first of a part)."""
    for part in parts:
        features = part.rows.features or {}
        names = [name for name in dict.fromkeys(columns) if name in features]
        # Other columns are not read: decoding images or audio is slow and needs further packages.
        iterator = iter(part.rows.select_columns(names) if names else part.rows)
        classes = {name: features[name] for name in names if isinstance(features[name], datasets.ClassLabel)}
        number = 0
        while chunk := _next_rows(iterator, part.name):
            for row in chunk:
                number += 1
                for name, classlabel in classes.items():
                    row[name] = None if row[name] in (None, -1) else classlabel.int2str(row[name])
                yield f"row {number} of {part.name}", row


def _next_rows(iterator: Iterator[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    with reading(name):
        return list(itertools.islice(iterator, _ROWS_AT_ONCE))


def _label(value: Any, column: str, where: str) -> Hashable | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, (str, int, float, datetime.date)):
        return value
    raise InputError(f"labels: {column!r} holds a {_type_name(value)} in {where}; labels are text, numbers or booleans")


def _content(value: Any, column: str, where: str) -> str | list[dict[str, Any]]:
    if value is None or isinstance(value, str):
        return value or ""
    messages = _messages(value) if isinstance(value, list) else None
    if messages is None:
        raise InputError(
            f"text_column: {column!r} holds a {_type_name(value)} in {where}; expected text, or a conversation: "
            "a list of messages with role and content"
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
