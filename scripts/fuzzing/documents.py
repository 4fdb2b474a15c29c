"""Data sets, and other ways of reading them."""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fault_campaign import write_checkpoint

from fuzzing.damage import changed, damaged, encoded, to_json
from fuzzing.kinds import Kind, WrongError, command_line
from softh_probe.data.documents import read_documents
from softh_probe.result_files import SUMS

TEXTS = [
    "the cat sat",
    "three dogs — again",
    "",
    "سلام, עולם 🦊👩‍👩‍👧",
    "a\ttab \x07 bell",
    'far away, «and» "back"',
    "mat",
]


LANGUAGES = ["en", "en", None, "fa", "de", "de", "en"]


class Documents(Kind):
    """Data sets, compared with another reading of the same file; some go through a whole run."""

    suffix = ".txt"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.model = write_checkpoint(folder / "model")

    def options(self) -> dict[str, Any]:
        return {"text_column": "text", "label_columns": ["language"]}

    def content(self, chance: random.Random) -> bytes:
        raise NotImplementedError

    def expected(self, content: bytes) -> list[tuple[Any, Any]] | None:
        """Text and label of each row, read by other means; None where these cannot."""
        raise NotImplementedError

    def write(self, case: Path, chance: random.Random) -> None:
        content = self.content(chance)
        (case / f"case{self.suffix}").write_bytes(damaged(content, chance) if chance.random() < 0.5 else content)

    def attempt(self, case: Path, chance: random.Random) -> None:
        file = case / f"case{self.suffix}"
        found = [(d.content, d.columns.get("language")) for d in read_documents(str(file), **self.options())]
        expected = self.expected(file.read_bytes())
        if expected is None:
            raise WrongError(f"another reader refuses what was accepted: {found[:3]!r}")
        if len(found) != len(expected):
            raise WrongError(f"{len(found)} documents, another reader finds {len(expected)}")
        for i, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
            if not same(ours, theirs):
                raise WrongError(f"document {i + 1} is {ours!r}, another reader finds {theirs!r}")
        if chance.random() < 0.03:
            self.run(case, file, expected, chance)

    def run(self, case: Path, file: Path, expected: list[tuple[Any, Any]], chance: random.Random) -> None:
        """The whole run of it, and of the same documents written plainly."""
        plain = case / "plain.jsonl"
        rows = [
            {"text": t, "language": None if label in (None, "") or label != label else str(label)}
            for t, label in expected
        ]
        plain.write_text("".join(json.dumps(row) + "\n" for row in rows))
        labels = ["input_unigram", *(f"column:{name}" for name in self.options().get("label_columns", ()))]
        sums = []
        for data in (file, plain):
            options = [
                f"--model={self.model}",
                f"--data={data}",
                f"--out={case / data.stem}",
                f"--labels={','.join(labels)}",
            ]
            text_column = self.options().get("text_column") or "text"
            options += [f"--text-column={text_column}", "--n-anchors=10", "--no-report", "--cache=none"]
            command_line("run", *options)
            sums.append((case / data.stem / SUMS).read_bytes())
        if sums[0] != sums[1]:
            raise WrongError("the run's sums are not those of the same documents written plainly")


class Txt(Documents):
    """Text files, a document a line."""

    def options(self) -> dict[str, Any]:
        return {}

    def content(self, chance: random.Random) -> bytes:
        return encoded("\n".join(chance.choices(TEXTS, k=8)), chance)

    def expected(self, content: bytes) -> list[tuple[Any, Any]]:
        text = decoded(content).replace("\r\n", "\n").replace("\r", "\n")
        return [(line, None) for line in text.removesuffix("\n").split("\n")]


class Jsonl(Documents):
    """JSON lines."""

    suffix = ".jsonl"

    def content(self, chance: random.Random) -> bytes:
        rows: list[Any] = [
            {"text": t, "language": la, "n": i} for i, (t, la) in enumerate(zip(TEXTS, LANGUAGES, strict=True))
        ]
        if chance.random() < 0.2:  # labels of another type
            other = chance.choice(([1, 2], [1.5, 2], [True, False], [2**53 + 1, 2**53 + 2], ["1", "1.0"]))
            rows = [{**row, "language": chance.choice([*other, None])} for row in rows]
        for _ in range(chance.choice((0, 1, 1, 2))):
            i = chance.randrange(len(rows))
            rows[i] = changed(rows[i], chance)
        return encoded("\n".join(to_json(row, chance) for row in rows), chance)

    def expected(self, content: bytes) -> list[tuple[Any, Any]] | None:
        text, decoder, rows, at = decoded(content), json.JSONDecoder(strict=False), [], 0
        while at < len(text):
            if text[at] in " \t\r\n":
                at += 1
                continue
            try:
                row, at = decoder.raw_decode(text, at)
            except (ValueError, RecursionError):
                return None
            if not isinstance(row, dict):
                return None
            row = {_without_halves(key): _without_halves(value) for key, value in row.items()}
            rows.append((row.get("text"), row.get("language")))
        return rows


class Csv(Documents):
    """Tables of comma-separated values."""

    suffix = ".csv"

    def content(self, chance: random.Random) -> bytes:
        made = io.StringIO()
        writer = csv.writer(made, lineterminator="\n", quoting=chance.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)))
        heads = [["text", "language", "n"]] * 9 + [
            ["text", "text", "language"],
            ["language", "text", "language"],
            ["text", "", "language"],
        ]
        head = chance.choice(heads)
        writer.writerow(head)
        for i, (text, language) in enumerate(zip(TEXTS, LANGUAGES, strict=True)):
            values = {"text": text, "language": language, "n": i, "": ""}
            row = [values[name] for name in head]
            if chance.random() < 0.03:
                row = row[:-1] if chance.random() < 0.5 else [*row, "more"]
            if chance.random() < 0.05:
                row[chance.randrange(len(row))] = chance.choice(
                    ("NA", "1.0", "1", "", " x ", 'a"b', "a\nb", "\0", "null")
                )
            writer.writerow(row)
        return encoded(made.getvalue(), chance)

    def expected(self, content: bytes) -> list[tuple[Any, Any]] | None:
        try:
            text = decoded(content)
            rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
        except csv.Error:
            return None
        head, *rows = rows
        if head.count("text") != 1 or head.count("language") != 1:
            return None
        cells = [
            [row[head.index(name)] if head.index(name) < len(row) else None for name in ("text", "language")]
            for row in rows
        ]
        return [(text, language or None) for text, language in cells]


class Parquet(Documents):
    """Parquet files, with columns of all types."""

    suffix = ".parquet"

    def content(self, chance: random.Random) -> bytes:
        n = len(TEXTS)
        columns: dict[str, pa.Array] = {
            "text": pa.array(TEXTS),
            "language": pa.array(LANGUAGES),
            "n": pa.array(range(n)),
        }
        odd = [
            *(
                pa.array([1.5, None, float("nan")] * 3)[:n],
                pa.array([True, False, None] * 3)[:n],
                pa.array([2**53 + i for i in range(n)]),
            ),
            *(
                pa.array(LANGUAGES).dictionary_encode(),
                pa.array([b"\xff\x00"] * n),
                pa.array([["a"]] * n),
                pa.array([{"a": 1}] * n),
            ),
            *(
                pa.array([None] * n),
                pa.array(TEXTS, pa.large_string()),
                pa.array([0] * n, pa.date32()),
                pa.array([0] * n, pa.timestamp("ns")),
            ),
            *(
                pa.array([1] * n, pa.decimal128(5, 2)),
                pa.array([0] * n, pa.time32("s")),
                pa.array(np.zeros(n, np.float16)),
            ),
            *(
                pa.array([10**9] * n, pa.duration("s")),
                pa.array([[{"role": "user", "content": "hi"}]] * n),
                pa.array([2**64 - 1] * n, pa.uint64()),
            ),
        ]
        for _ in range(chance.choice((0, 1, 1, 2))):
            columns[chance.choice(("text", "language", "n"))] = chance.choice(odd)
        names = list(columns)
        if chance.random() < 0.1:
            names[chance.randrange(3)] = chance.choice(("text", "language", "", "a.b", "\x1b[31m", "x\ny"))
        made = io.BytesIO()
        pq.write_table(
            pa.table(list(columns.values()), names=names), made, compression=chance.choice(("snappy", "none", "zstd"))
        )
        return made.getvalue()

    def expected(self, content: bytes) -> list[tuple[Any, Any]] | None:
        try:
            file = pq.ParquetFile(io.BytesIO(content))
            names = file.schema_arrow.names
            if names.count("text") != 1 or names.count("language") != 1:
                return None
            table = file.read(["text", "language"])  # damage of other columns is no matter
            return list(zip(table["text"].to_pylist(), table["language"].to_pylist(), strict=True))
        except (pa.ArrowException, OSError, ValueError):
            return None


def decoded(content: bytes) -> str:
    """Text of a file: UTF-16 by its mark, else UTF-8 with U+FFFD for what is not."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", "replace")
    return content.decode("utf-8-sig", "replace")


def same(ours: tuple[Any, Any], theirs: tuple[Any, Any]) -> bool:
    """Equal texts and labels, of which NaN and what JSON has no number for are none, and 1 is 1.0."""
    (text, label), (their_text, their_label) = ours, theirs
    none = isinstance(their_label, float) and not math.isfinite(their_label) and label is None
    return (text == their_text or not (text or their_text)) and (
        none or label == their_label or str(label) == str(their_label)
    )


def _without_halves(value: Any) -> Any:
    """Text without lone surrogates: half a character is none, where it is not refused."""
    return value.encode("utf-8", "ignore").decode() if isinstance(value, str) else value
