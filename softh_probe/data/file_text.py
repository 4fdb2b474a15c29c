"""Text of files, as it stands in them: decompressed, decoded strictly, in chunks that end where lines end."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import re
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any, BinaryIO

import pyarrow as pa

from softh_probe.choices import Choices
from softh_probe.errors import InputError, abbreviated

#: Decompressors by suffix. Each raises an error for a truncated file, and reads on where files were joined.
COMPRESSIONS: dict[str, Callable[[Any], Any]] = {
    ".gz": gzip.open,
    ".zst": lambda file: io.BufferedReader(pa.CompressedInputStream(file, "zstd")),
    ".xz": lzma.open,
    ".bz2": bz2.open,
}

_CHUNK_BYTES = 1 << 20
_EVIDENT = 10  # bytes of UTF-8's longer characters for each byte that is none, in text that is evidently UTF-8

_MARKS = (  # byte order marks; that of UTF-16 begins that of UTF-32
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_WIDE = ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
_ISO_2022 = (b"\x1b$B", b"\x1b$@", b"\x1b$)", b"\x1b(J")  # switches of alphabets in the bytes of ASCII

_POINTER = b"version https://git-lfs"
_SIGNATURES = (
    (rb"\x1f\x8b", "compressed by gzip; decompress it, or let its name end in .gz"),
    (rb"BZh\d1AY&SY", "compressed by bzip2; decompress it, or let its name end in .bz2"),
    (rb"\xfd7zXZ\x00", "compressed by xz; decompress it, or let its name end in .xz"),
    (rb"\x28\xb5\x2f\xfd", "compressed by zstd; decompress it, or let its name end in .zst"),
    (rb"PK\x03\x04", "a ZIP archive or an office document; unpack it, or export it as text"),
    (rb"PAR1\x15", "a Parquet file; let its name end in .parquet"),
    (rb"ARROW1\x00", "an Arrow file; load it with `datasets` and write it with to_parquet"),
    (rb"%PDF-", "a PDF document; extract its text first"),
    (rb"SQLite format 3\x00", "an SQLite database; export a table"),
)
_PAGES = (b"<!doctype html", b"<html", b"<?xml")


class Notes:
    """What was found while files were read, recorded when reading ends.

    Args:
        choices: takes the records.
    """

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.replaced: dict[str, int] = {}
        self.nulls_left_out = 0
        self.joined_lines: dict[str, int] = {}

    def finish(self) -> None:
        """Record what was counted."""
        if self.replaced:
            self.choices.add(
                "encoding",
                "utf-8",
                f"{sum(self.replaced.values()):,} byte sequences of {abbreviated(list(self.replaced))} are not UTF-8 "
                "and were read as U+FFFD; repair the data to avoid them",
            )
        if self.joined_lines:
            self.choices.add(
                "quotes",
                "around cells",
                f"{sum(self.joined_lines.values()):,} rows of {abbreviated(list(self.joined_lines))} run over lines "
                "that would be rows by themselves, as a quote begins a cell; if quotes belong to the text, double them "
                "and put quotes around the cell",
            )
        if self.nulls_left_out:
            self.choices.add(
                "null keys",
                "left out",
                f"{self.nulls_left_out:,} keys inside conversations are null, and this format does not tell null from "
                "a missing key; .jsonl does",
            )


@contextmanager
def open_bytes(path: str, name: str) -> Iterator[BinaryIO]:
    """Open a local file, or one of the hub by its URL, and decompress it as its name says.

    Raises:
        InputError: the file is a pointer of Git LFS.
    """
    with _open(path) as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise InputError(
                f"data: {name} is a pointer of Git LFS, not the file itself; run `git lfs pull` in its repository"
            )
        file.seek(0)
        decompress = COMPRESSIONS.get(PurePath(path).suffix.lower())
        if decompress is None:
            yield file
            return
        with decompress(file) as content:
            yield content


def read_text(path: str, name: str, notes: Notes, *, plain: bool = False) -> Iterator[str]:
    """Read the text of a file, without its byte order mark.

    UTF-8 is read, and UTF-16 and UTF-32 where a byte order mark or the characters themselves leave no doubt. In text
    that is evidently UTF-8, single bytes that are not become U+FFFD and are counted in `notes`.

    Args:
        path: path, or URL on the hub.
        name: the file, as errors name it.
        notes: takes what was found.
        plain: any text is content; otherwise it has a format that no page of HTML has.

    Yields:
        Chunks of text that end where lines end.

    Raises:
        InputError: the file holds no text, or text in an unknown encoding.
    """
    with open_bytes(path, name) as file:
        chunk = _lines(file)
        _check_signature(chunk, name, notes, plain)
        encoding, reason = _encoding(chunk, name)
        if reason:
            notes.choices.add("encoding", encoding, reason, certain=True)
        decode = _utf_8 if encoding == "utf-8" else _wide
        for text in decode(file, chunk, encoding, name, notes):
            if "\0" in text:
                raise InputError(
                    f"data: {name} holds a NUL character; it is damaged, or no text; if it is text, remove them: "
                    "tr -d '\\000'"
                )
            yield text


def _open(path: str) -> Any:
    if "://" in path:
        from datasets.utils.file_utils import xopen  # retries where the connection fails

        return xopen(path, "rb")
    return open(path, "rb")


def _lines(file: BinaryIO) -> bytes:
    """Read a chunk of whole lines; empty at the end."""
    return file.read(_CHUNK_BYTES) + file.readline()


def _check_signature(head: bytes, name: str, notes: Notes, plain: bool) -> None:
    for signature, what in _SIGNATURES:
        if re.match(signature, head):
            raise InputError(f"data: {name} is {what}")
    if head.removeprefix(codecs.BOM_UTF8).lstrip()[:16].lower().startswith(_PAGES):
        if not plain:
            raise InputError(
                f"data: {name} is a page of HTML or XML, as servers send it for an error; download the file again"
            )
        notes.choices.add("format", "plain text", f"{name} is a page of HTML or XML, and its tags were read as text")


def _encoding(head: bytes, name: str) -> tuple[str, str]:
    """Find the encoding of a file by its first lines, and the reason where it is not the usual one."""
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding, "" if encoding == "utf-8" else "by its byte order mark"
    if b"\0" in head:
        fitting = [encoding for encoding in _WIDE if _is_text(head, encoding)]
        if len(fitting) != 1:
            raise InputError(
                f"data: {name} holds NUL bytes; it is damaged, or no text; if it is text in another encoding, convert "
                f"it to UTF-8: iconv -f UTF-16 -t UTF-8; if it is UTF-8, remove them: tr -d '\\000'"
            )
        return fitting[0], "its bytes are text in this encoding alone"
    if any(switch in head for switch in _ISO_2022):
        raise InputError(
            f"data: {name} is in an encoding of the kind ISO-2022; convert it to UTF-8: iconv -f … -t UTF-8"
        )
    return "utf-8", ""


def _is_text(head: bytes, encoding: str) -> bool:
    """Test whether bytes are text in an encoding of 2 or 4 bytes a character, with spaces or lines in it."""
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeDecodeError:
        return False
    kinds = {unicodedata.category(character) for character in set(text) - set("\t\n\r\f")}
    return not kinds & {"Cc", "Cn", "Co", "Cs"} and bool({" ", "\n"} & set(text))


def _utf_8(file: BinaryIO, chunk: bytes, encoding: str, name: str, notes: Notes) -> Iterator[str]:
    marked = chunk.startswith(codecs.BOM_UTF8)
    chunk = chunk.removeprefix(codecs.BOM_UTF8)
    longer = bad = 0
    while chunk:
        try:
            text = chunk.decode(encoding)
        except UnicodeDecodeError as error:
            text = chunk.decode(encoding, "replace")
            bad += text.count("\ufffd") - chunk.count("\ufffd".encode())
            if not marked and longer + len(chunk) - len(text) < _EVIDENT * bad:
                raise InputError(
                    f"data: {name} is not UTF-8 (byte 0x{chunk[error.start]:02x} in {_excerpt(chunk, error.start)}); "
                    "convert it from the encoding that it has: iconv -f WINDOWS-1252 -t UTF-8"
                ) from error
            notes.replaced[name] = bad
        longer += len(chunk) - len(text)
        yield text
        chunk = _lines(file)


def _excerpt(chunk: bytes, at: int) -> str:
    return repr(chunk[max(0, at - 20) : at + 20])


def _wide(file: BinaryIO, chunk: bytes, encoding: str, name: str, notes: Notes) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder(encoding)()
    rest = ""
    while chunk:
        text = rest + decoder.decode(chunk)
        end = text.rfind("\n") + 1
        if end:
            yield text[:end]
        rest = text[end:]
        chunk = file.read(_CHUNK_BYTES)
    if rest := rest + decoder.decode(b"", final=True):
        yield rest
