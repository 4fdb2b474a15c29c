"""Encodings, compressions and files that are something else than their name says."""

import bz2
import gzip
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from softh_probe.choices import Choices
from softh_probe.data.documents import read_documents
from softh_probe.errors import InputError

TEXT = "Hello there\nGuten Tag, Häuser\nпривет 世界 👩\n"
LINES = TEXT.splitlines()


def read(path, **options) -> tuple[list, Choices]:
    choices = Choices()
    return [d.content for d in read_documents(str(path), choices=choices, **options)], choices


def refused(path, **options) -> str:
    with pytest.raises(InputError) as caught:
        read(path, **options)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    return str(caught.value)


def chosen(choices: Choices, about: str) -> list[tuple[str, bool]]:
    return [(choice.chosen, choice.certain) for choice in choices if choice.about == about]


# -- encodings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("name", ["d.txt", "d.csv", "d.jsonl", "d.txt.gz"])
def test_wide_encodings_are_read_with_and_without_a_mark(tmp_path, encoding, name):
    path = tmp_path / name
    rows = {
        ".csv": "text,n\n" + "".join(f'"{line}",1\n' for line in LINES),
        ".jsonl": "".join(f'{{"text": "{line}"}}\n' for line in LINES),
    }
    content = rows.get(path.suffixes[0], TEXT).encode(encoding)
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    found, choices = read(path)
    assert found == LINES
    assert chosen(choices, "encoding") == [(encoding, True)]


@pytest.mark.parametrize("text", ["世界 一 你好\n第二行 丁\n", "Привет мир\nещё\n", "ab c\n" * 400_000])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_in_other_alphabets_and_over_many_chunks(tmp_path, text, encoding):
    (tmp_path / "d.txt").write_bytes(text.encode(encoding))
    assert read(tmp_path / "d.txt")[0] == text.splitlines()


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("latin-1", "Häuser am Meer\n"),
        ("cp1252", "“Häuser” am Meer…\n"),
        ("mac-roman", "Häuser\n"),
        ("cp437", "Häuser\n"),
        ("gbk", "世界你好\n"),
        ("big5", "世界你好\n"),
        ("shift-jis", "世界こんにちは\n"),
        ("iso-2022-jp", "世界こんにちは\n"),
        ("euc-jp", "世界こんにちは\n"),
        ("euc-kr", "안녕하세요 세계\n"),
        ("koi8-r", "Привет мир\n"),
        ("cp1251", "Привет мир\n"),
    ],
)
@pytest.mark.parametrize("name", ["d.txt", "d.csv", "d.jsonl"])
def test_other_encodings_are_refused(tmp_path, encoding, text, name):
    rows = {"d.csv": f"text\n{text}", "d.jsonl": f'{{"text": "{text.strip()}"}}\n'}
    (tmp_path / name).write_bytes(rows.get(name, text).encode(encoding))
    assert "iconv" in refused(tmp_path / name)


def test_what_is_refused_is_not_told_as_read(tmp_path):
    (tmp_path / "d.txt").write_bytes("Grüße, Häuser\n".encode("latin-1"))
    choices = Choices()
    with pytest.raises(InputError, match="not UTF-8"):
        list(read_documents(str(tmp_path / "d.txt"), choices=choices))
    assert choices.warnings() == []


def test_another_encoding_is_refused_late_in_a_file_too(tmp_path):
    (tmp_path / "d.txt").write_bytes(b"a house\n" * 300_000 + "Häuser\n".encode("latin-1"))
    assert "not UTF-8 (byte 0xe4" in refused(tmp_path / "d.txt")
    assert len(read(tmp_path / "d.txt", max_documents=9)[0]) == 9


def test_damaged_bytes_in_evident_utf_8_are_counted_and_warned_of(tmp_path):
    """Characters U+FFFD that the file itself holds are none of them."""
    (tmp_path / "d.txt").write_bytes((TEXT * 9).encode() + b"a \xff b \xc3\n" + "\ufffd\n".encode())
    (tmp_path / "e.txt").write_bytes(b"\xef\xbb\xbfone\xff\n")
    found, choices = read(tmp_path)
    assert found[-3:] == ["a \ufffd b \ufffd", "\ufffd", "one\ufffd"]
    assert chosen(choices, "encoding") == [("utf-8", False)]
    assert "3 byte sequences of" in choices.warnings()[0]
    with pytest.warns(UserWarning, match="3 byte sequences"):
        list(read_documents(str(tmp_path)))


@pytest.mark.parametrize(
    "content", [b"a\0b\nc\n", b"text\n" * 300_000 + b"\0", "Hello".encode("utf-16-le"), b"\0" * 99]
)
def test_nul_characters_are_refused(tmp_path, content):
    (tmp_path / "d.txt").write_bytes(content)
    assert "NUL" in refused(tmp_path / "d.txt")


def test_wide_text_that_is_cut_short(tmp_path):
    (tmp_path / "d.txt").write_bytes("Hello\n".encode("utf-16") + b"x")
    assert refused(tmp_path / "d.txt").startswith("data: cannot read")


# -- compressions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [
        (".gz", gzip.compress),
        (".xz", lzma.compress),
        (".bz2", bz2.compress),
        (".zst", lambda content: pa.Codec("zstd").compress(content, asbytes=True)),
    ],
)
def test_compressed_files_joined_cut_short_and_misnamed(tmp_path, suffix, compress):
    path = tmp_path / f"d.txt{suffix}"
    content = compress(TEXT.encode())
    path.write_bytes(content + content)
    assert read(path)[0] == LINES * 2
    path.write_bytes(content[:-3])
    refused(path)
    path.write_bytes(b"plain text\n")
    refused(path)
    (tmp_path / "plain.txt").write_bytes(content)
    assert f"end in {suffix}" in refused(tmp_path / "plain.txt")


# -- something else ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["d.txt", "d.csv", "d.tsv", "d.json", "d.jsonl", "d.jsonl.gz", "d.parquet"])
def test_pointers_of_git_lfs(tmp_path, name):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (tmp_path / name).write_text(pointer)
    assert "git lfs pull" in refused(tmp_path / name)


@pytest.mark.parametrize("name", ["d.csv", "d.txt", "d.jsonl", "d.json"])
def test_parquet_by_another_name(tmp_path, name):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / name)
    assert "Parquet" in refused(tmp_path / name)


@pytest.mark.parametrize("name", ["d.csv", "d.jsonl", "d.json", "d.tsv"])
@pytest.mark.parametrize(
    "content", ["<!DOCTYPE html>\n<html>\n", "\n <HTML><body>404", '<?xml version="1.0"?>\n<Error/>']
)
def test_pages_of_errors(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert "HTML or XML" in refused(tmp_path / name)


@pytest.mark.parametrize("content", [b"PK\x03\x04\x14\0", b"%PDF-1.7\n%\xe2\xe3", b"SQLite format 3\0"])
def test_binary_formats(tmp_path, content):
    (tmp_path / "d.csv").write_bytes(content)
    assert refused(tmp_path / "d.csv").startswith("data: ")


@pytest.mark.parametrize("content", ["<!DOCTYPE html>\n<p>a\n", '{"text": "a"}\n{"text": "b"}\n{"text": "c"}\n'])
def test_markup_in_a_text_file_is_text_and_warned_of(tmp_path, content):
    (tmp_path / "d.txt").write_text(content)
    found, choices = read(tmp_path / "d.txt")
    assert found == content.splitlines()
    assert chosen(choices, "format") == [("plain text", False)]


def test_line_ends_and_other_separators(tmp_path):
    (tmp_path / "d.txt").write_bytes(b"a\fb\r\nc\x0bd\n\re\x1c\xc2\x85\xe2\x80\xa8f\n")
    assert read(tmp_path / "d.txt")[0] == ["a\fb", "c\x0bd", "", "e\x1c\x85\u2028f"]
