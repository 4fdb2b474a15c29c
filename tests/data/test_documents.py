"""Reading: every format, split, column and label, and every way it can go wrong in one line."""

import bz2
import gzip
import itertools
import json
import lzma
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from softh_probe.data.documents import TEXT_COLUMNS, Document, read_documents
from softh_probe.errors import InputError

ROWS = [
    {"text": "Häuser am Meer", "language": "de", "year": 1999},
    {"text": None, "language": "en", "year": None},
    {"text": "a house, by the sea", "language": None, "year": 2001},
]
CHAT = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]


def write(path: Path, rows: list[dict]) -> Path:
    """Rows in the format that the name says, by pandas and json: not by `datasets`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = path.suffixes[0]
    if kind == ".jsonl":
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    elif kind == ".json":
        content = json.dumps(rows, ensure_ascii=False, indent=1)
    elif kind == ".csv":
        cells = [list(rows[0])] + [["" if v is None else str(v) for v in row.values()] for row in rows]
        content = "".join(",".join(f'"{c}"' if "," in c else c for c in line) + "\n" for line in cells)
    elif kind == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
        return path
    else:
        content = "".join((row["text"] or "") + "\n" for row in rows)
    opener = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}.get(path.suffix, open)
    with opener(path, "wb") as file:
        file.write(content.encode())
    return path


def contents(*args, **kwargs) -> list:
    return [document.content for document in read_documents(*args, **kwargs)]


def message(*args, **kwargs) -> str:
    """The one line of the error that reading gives, on calling or while iterating."""
    with pytest.raises(InputError) as caught:
        list(read_documents(*args, **kwargs))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- formats -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.csv", "d.parquet", "d.jsonl.gz", "d.csv.xz", "D.JSONL"])
def test_same_documents_from_every_format(tmp_path, name):
    if name == "D.JSONL":
        path = write(tmp_path / "d.jsonl", ROWS).rename(tmp_path / name)
    else:
        path = write(tmp_path / name, ROWS)
    found = list(read_documents(str(path), label_columns=["language", "year"]))
    assert [d.content for d in found] == ["Häuser am Meer", "", "a house, by the sea"]
    assert [d.columns["language"] for d in found] == ["de", "en", None]
    assert [str(d.columns["year"]) for d in found] in (
        ["1999", "None", "2001"],
        ["1999.0", "None", "2001.0"],  # what pandas makes of a null among integers in a .json list
    )


@pytest.mark.parametrize("name", ["d.txt", "d.txt.gz", "d.txt.xz", "d.txt.bz2"])
def test_text_by_line(tmp_path, name):
    path = write(tmp_path / name, ROWS)
    assert contents(str(path)) == ["Häuser am Meer", "", "a house, by the sea"]
    assert contents(str(path), sample_by="document") == ["Häuser am Meer\n\na house, by the sea\n"]
    assert contents(str(path), sample_by="paragraph") == ["Häuser am Meer", "a house, by the sea\n"]


def test_zstandard(tmp_path):
    """Joined files are read to the end, and one that is cut short is an error."""
    one, two = (pa.Codec("zstd").compress(text.encode(), asbytes=True) for text in ("one\ntwo\n", "three\n" * 9999))
    path = tmp_path / "d.txt.zst"
    path.write_bytes(one + two)
    assert contents(str(path)) == ["one", "two", *["three"] * 9999]
    path.write_bytes(one + two[:-3])
    assert "d.txt.zst" in message(str(path))


def test_relative_and_home_paths(tmp_path, monkeypatch):
    write(tmp_path / "d.txt", ROWS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert contents("d.txt") == contents("./d.txt") == contents("~/d.txt") == contents(str(tmp_path / "d.txt"))


def test_names_are_not_patterns(tmp_path):
    write(tmp_path / "da.txt", [{"text": "wrong"}])
    write(tmp_path / "d[a] *?.txt", [{"text": "right"}])
    assert contents(str(tmp_path / "d[a] *?.txt")) == ["right"]


def test_local_folder_wins_over_hub_id(tmp_path, monkeypatch):
    write(tmp_path / "user" / "set" / "d.txt", [{"text": "local"}])
    monkeypatch.chdir(tmp_path)
    assert contents("user/set") == ["local"]


def test_invalid_utf8_and_byte_order_marks(tmp_path):
    bom = b"\xef\xbb\xbf"
    (tmp_path / "d.txt").write_bytes(bom + b"one\xff\ntwo\n")
    (tmp_path / "d.jsonl").write_bytes(bom + b'{"text": "one\xff"}\n{"text": "two"}\n')
    (tmp_path / "d.csv").write_bytes(bom + b"text,n\none\xff,1\ntwo,2\n")
    for name in ("d.txt", "d.jsonl", "d.csv"):
        assert contents(str(tmp_path / name)) == ["one\ufffd", "two"], name
    (tmp_path / "d.txt.gz").write_bytes(gzip.compress(b"one\xff\n"))  # datasets passes no options on here
    assert "d.txt.gz" in message(str(tmp_path / "d.txt.gz"))


def test_csv_cells_stay_as_written(tmp_path):
    """pandas would make NA, None and nan missing, 1 to 1.0 beside an empty cell, and 007 to 7."""
    (tmp_path / "d.csv").write_text("text,label\nNone,1\n12,\nnan,007\nNA,NA\n")
    found = list(read_documents(str(tmp_path / "d.csv"), label_columns=["label"]))
    assert [d.content for d in found] == ["None", "12", "nan", "NA"]
    assert [d.columns["label"] for d in found] == ["1", None, "007", "NA"]


TRYING = {
    "control characters": "bell \x07, escape \x1b[31m, null \x00, delete \x7f, unit \x1f",
    "right to left": "שלום \u202eعالم\u202c end",
    "emoji": "👩‍👩‍👧 🏳️‍🌈 é e\u0301 \U0001f98a",
    "separators": "line\u2028paragraph\u2029next\x85 no\u00a0break\u200b",
    "long": "ten megabytes " * 750_000,
    "blank": " \t ",
}


@pytest.mark.parametrize("kind", TRYING)
@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.csv", "d.parquet", "d.txt"])
def test_texts_and_labels_of_any_characters(tmp_path, name, kind):
    text, path = TRYING[kind], tmp_path / name
    if kind == "control characters" and name in ("d.csv", "d.txt"):
        text = text.replace("\x00", "")  # pandas ends a cell there
    write(path, [{"text": text, "language": text[:40]}, {"text": "after", "language": "x"}])
    labels = [] if name == "d.txt" else ["language"]
    found = list(read_documents(str(path), label_columns=labels))
    assert [d.content for d in found] == [text, "after"]
    assert [d.columns for d in found] == [{n: v for n in labels} for v in (text[:40], "x")]


@pytest.mark.parametrize("rows", [["null", "{}"], ["{}", "null"], ["{}", "[1]"], ["{}", "3"], ["null"], ['"text"']])
def test_json_rows_that_are_no_objects(tmp_path, rows):
    """A row of null ends the whole process in pyarrow's reader."""
    content = "\n".join(row.replace("{}", '{"text": "a"}') for row in rows)
    (tmp_path / "d.jsonl").write_text(content)
    assert message(str(tmp_path / "d.jsonl")).startswith("data: ")


def test_json_that_nests_without_end(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"text": "a", "b": ' + "[" * 500_000 + "]" * 500_000 + "}\n")
    assert "nest deeper than 500" in message(str(tmp_path / "d.jsonl"))
    texts = [":[ " * 400, "[[[[" * 400]  # brackets in texts are none
    write(tmp_path / "e.jsonl", [{"text": text} for text in texts])
    assert contents(str(tmp_path / "e.jsonl")) == texts


def test_columns_that_stand_twice(tmp_path):
    """pandas would call the second one `text.1`, and the label of it would be lost in silence."""
    (tmp_path / "d.csv").write_text("text,language,text\na,en,b\n")
    assert "has 2 columns 'text'; rename all but one" in message(str(tmp_path / "d.csv"))
    (tmp_path / "d.csv").write_text("text,language,language\na,en,b\n")
    assert contents(str(tmp_path / "d.csv")) == ["a"]  # which nobody asked for
    assert "has 2 columns 'language'" in message(str(tmp_path / "d.csv"), label_columns=["language"])
    (tmp_path / "d.jsonl").write_text('{"text": "a", "text": "b"}\n')
    assert "twice" in message(str(tmp_path / "d.jsonl"))
    pq.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), tmp_path / "d.parquet")
    assert "text" in message(str(tmp_path / "d.parquet"))


# -- folders, splits, subsets --------------------------------------------------------------------------------


def test_folder_is_recursive_sorted_and_skips_hidden(tmp_path):
    for name in ("b.txt", "a/z.txt", "a/c/x.txt.gz", ".hidden.txt", ".git/x.txt", "empty.txt"):
        write(tmp_path / name, [{"text": name}] if name != "empty.txt" else [])
    (tmp_path / "README.md").write_text("# not data")
    assert contents(str(tmp_path)) == ["a/c/x.txt.gz", "a/z.txt", "b.txt"]


def test_folder_below_a_hidden_one(tmp_path):
    write(tmp_path / ".cache" / "set" / "d.txt", [{"text": "found"}])
    assert contents(str(tmp_path / ".cache" / "set")) == ["found"]


def test_folder_of_mixed_formats_or_none(tmp_path):
    write(tmp_path / "a.txt", ROWS)
    write(tmp_path / "b.txt", ROWS)
    write(tmp_path / "c.csv", ROWS)
    text = message(str(tmp_path))
    assert "2 .txt" in text
    assert "1 .csv" in text
    assert "one format" in text
    (tmp_path / "notes").mkdir()
    assert "nothing" in message(str(tmp_path / "notes"))
    (tmp_path / "notes" / "x.docx").write_text("x")
    assert "1 .docx" in message(str(tmp_path / "notes"))
    assert ".jsonl" in message(str(tmp_path / "notes"))
    assert "x.docx" in message(str(tmp_path / "notes" / "x.docx"))


@pytest.mark.parametrize("names", [("train.txt", "dev.txt"), ("train/0.txt", "validation/0.txt")])
def test_folder_of_splits(tmp_path, names):
    for name in names:
        write(tmp_path / name, [{"text": name}])
    assert contents(str(tmp_path)) == [names[0]]
    assert contents(str(tmp_path), split="validation") == [names[1]]
    text = message(str(tmp_path), split="validaton")
    assert text.startswith("split:")
    assert "'validation'" in text
    assert "train" in text
    write(tmp_path / "other.txt", [{"text": "other"}])  # no longer all files are splits
    assert sorted(contents(str(tmp_path))) == sorted([*names, "other"])


def test_saved_to_disk(tmp_path):
    rows = datasets.Dataset.from_list(ROWS)
    datasets.Dataset.from_list([{"text": "a", "n": 7}]).with_format("numpy").save_to_disk(tmp_path / "one")
    datasets.DatasetDict(test=rows, dev=rows.select([2])).save_to_disk(tmp_path / "two")
    found = list(read_documents(str(tmp_path / "one"), label_columns=["n"]))
    assert found == [Document(content="a", columns={"n": 7}, row=0)]
    found = list(read_documents(str(tmp_path / "two"), split="dev", label_columns=["year"]))
    assert found == [Document(content="a house, by the sea", columns={"year": 2001}, row=0)]
    assert "test, dev" in message(str(tmp_path / "two"))
    assert message(str(tmp_path / "two")).startswith("split:")
    assert "did you mean 'dev'" in message(str(tmp_path / "two"), split="deV")


def test_copy_of_a_hub_repository(tmp_path):
    """Subsets and splits as its README declares them, here and on the hub."""
    for name in ("en/a.jsonl", "en/b.jsonl", "de/a.jsonl"):
        write(tmp_path / name, [{"text": name}])
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: en\n  data_files:\n  - split: train\n    path: en/a.jsonl\n"
        "  - split: test\n    path: en/b.jsonl\n- config_name: de\n  data_files: de/*.jsonl\n---\n# A set\n"
    )
    assert contents(str(tmp_path), subset="en", split="test") == ["en/b.jsonl"]
    assert contents(str(tmp_path), subset="de") == ["de/a.jsonl"]
    assert message(str(tmp_path)) == f"subset: {tmp_path} has several, name one: en, de"
    assert "it has: en, de" in message(str(tmp_path), subset="fr")
    assert message(str(tmp_path / "en" / "a.jsonl"), subset="en").startswith("subset:")


def test_unknown_split_of_a_file(tmp_path):
    text = message(str(write(tmp_path / "d.txt", ROWS)), split="test")
    assert text.startswith("split:")
    assert "'test'" in text
    assert "it has: train" in text


# -- columns -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.csv", "d.parquet"])
def test_text_column_is_inferred(tmp_path, name):
    def read(row: dict) -> list:
        return contents(str(write(tmp_path / name, [row, row])), max_documents=1)

    for better, worse in itertools.pairwise(TEXT_COLUMNS):
        assert read({"z": "z", worse: "worse", better: "better"}) == ["better"]
    assert read({"id": 7, "quote": "only strings", "score": 0.5}) == ["only strings"]


def test_text_column_that_holds_numbers_is_not_the_text(tmp_path):
    path = write(tmp_path / "d.jsonl", [{"document": 12, "article": "yes"}])
    assert contents(str(path)) == ["yes"]
    path = write(tmp_path / "e.jsonl", [{"quote": "yes", "language": "en"}])
    assert contents(str(path), label_columns=["language"]) == ["yes"]


@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.parquet"])
def test_text_column_that_cannot_be_inferred(tmp_path, name):
    text = message(str(write(tmp_path / name, [{"id": 1, "question": "a", "answer": "b"}])))
    assert text.startswith("text_column:")
    assert "id (int" in text
    assert "question (str" in text
    assert "answer (str" in text


def test_missing_columns(tmp_path):
    path = str(write(tmp_path / "d.csv", ROWS))
    text = message(path, text_column="txt")
    assert text.startswith("text_column:")
    assert "did you mean 'text'" in text
    assert "text, language, year" in text
    text = message(path, label_columns=["lang"])
    assert text.startswith("labels:")
    assert "did you mean 'language'" in text
    assert "text_column:" in message(path, text_column="text,missing")


def test_preference_pairs(tmp_path):
    rows = [
        {"prompt": "p", "chosen": "good", "rejected": CHAT, "source": "a"},
        {"prompt": "p", "chosen": CHAT, "rejected": "bad", "source": None},
    ]
    path = str(write(tmp_path / "d.jsonl", rows))
    asked = ["text_column", "source"]
    found = list(read_documents(path, text_column="chosen, rejected", label_columns=asked))
    assert [(d.content, d.columns["text_column"], d.columns["source"]) for d in found] == [
        ("good", "chosen", "a"),
        (CHAT, "rejected", "a"),
        (CHAT, "chosen", None),
        ("bad", "rejected", None),
    ]
    found = list(read_documents(path, text_column="chosen,rejected", max_documents=1))
    assert [d.columns for d in found] == [{"text_column": "chosen"}, {"text_column": "rejected"}]
    text = message(path, text_column="chosen", label_columns=["text_column"])
    assert text.startswith("labels:")
    assert "chosen,rejected" in text
    own = str(write(tmp_path / "e.jsonl", [{"text": "a", "text_column": "own"}]))
    assert [d.columns for d in read_documents(own, label_columns=["text_column"])] == [{"text_column": "own"}]


def test_conversations(tmp_path):
    """Keys that only some messages have are not handed on as None; ShareGPT's are translated."""
    rows = [
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]},
        {"conversations": [{"from": "system", "value": "be kind"}]},
        {"conversations": None},
    ]
    assert contents(str(write(tmp_path / "s.jsonl", rows))) == [
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}],
        [{"role": "system", "content": "be kind"}],
        "",
    ]
    named = [{"messages": CHAT}, {"messages": [{"role": "user", "content": None, "name": "Bo"}]}]
    for name in ("m.jsonl", "m.json", "m.parquet"):
        found = contents(str(write(tmp_path / name, named)))
        assert found == [CHAT, [{"role": "user", "content": "", "name": "Bo"}]], name


def test_conversations_that_datasets_takes_for_agent_traces(tmp_path):
    """These columns together make it look for another format of file, and for another package."""
    row = {"id": "1", "source": "s", "model": "m", "system_prompt": "p", "messages": CHAT}
    assert contents(str(write(tmp_path / "d.jsonl", [row]))) == [CHAT]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (3, "int"),
        (["a", "b"], "list of str"),
        ([{"x": "y"}], "list of dict"),
        ({"a": "b"}, "dict"),
        (True, "bool"),
    ],
)
def test_value_that_is_no_text(tmp_path, value, kind):
    text = message(str(write(tmp_path / "d.jsonl", [{"c": None}, {"c": value}])), text_column="c")
    assert text.startswith("text_column: 'c' holds a")
    assert kind in text
    assert "row 2" in text
    assert "d.jsonl" in text
    assert "expected text" in text


def test_labels_of_every_type(tmp_path):
    rows = [
        {"text": "a", "s": "x", "i": 1, "f": 0.5, "b": True, "n": float("nan")},
        {"text": "b", "s": None, "i": None, "f": None, "b": None, "n": 2.0},
    ]
    for name in ("d.jsonl", "d.parquet"):
        found = list(read_documents(str(write(tmp_path / name, rows)), label_columns=["s", "i", "f", "b", "n"]))
        assert found[0].columns == {"s": "x", "i": 1, "f": 0.5, "b": True, "n": None}, name
        assert found[1].columns == {"s": None, "i": None, "f": None, "b": None, "n": 2.0}, name


def test_labels_of_a_class_column_are_its_names(tmp_path):
    features = datasets.Features(text=datasets.Value("string"), y=datasets.ClassLabel(names=["neg", "pos"]))
    rows = {"text": ["a", "b", "c", "d"], "y": [1, 0, -1, None]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "d.parquet")
    found = read_documents(str(tmp_path / "d.parquet"), label_columns=["y"])
    assert [d.columns["y"] for d in found] == ["pos", "neg", None, None]


@pytest.mark.parametrize(("value", "kind"), [(["a"], "list of str"), ({"a": 1}, "dict")])
def test_label_that_is_none(tmp_path, value, kind):
    text = message(str(write(tmp_path / "d.jsonl", [{"text": "t", "tags": value}])), label_columns=["tags"])
    assert text.startswith("labels: 'tags' holds a")
    assert kind in text


def test_columns_nobody_asked_for_are_not_decoded(tmp_path):
    """An image needs Pillow and time; this one cannot be decoded at all."""
    features = datasets.Features(text=datasets.Value("string"), image=datasets.Image())
    rows = {"text": ["seen"], "image": [{"bytes": b"not an image", "path": None}]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "d.parquet")
    assert contents(str(tmp_path / "d.parquet")) == ["seen"]


def test_max_documents_counts_rows_and_reads_no_further(tmp_path):
    path = write(tmp_path / "d.txt", [{"text": "a"}, {"text": None}, {"text": "b"}])
    assert contents(str(path), max_documents=2) == ["a", ""]
    assert contents(str(path), max_documents=9) == ["a", "", "b"]
    assert message(str(path), max_documents=0).startswith("max_documents:")
    write(tmp_path / "two" / "0.csv", [{"text": "good"}])
    write(tmp_path / "two" / "1.csv", [{"text": "bad"}]).write_bytes(b'text\n"unclosed')
    assert contents(str(tmp_path / "two"), max_documents=1) == ["good"]
    assert "1.csv" in message(str(tmp_path / "two"))


def test_more_rows_than_one_read(tmp_path):
    rows = [{"text": f"document {i}", "n": i} for i in range(1000)]
    found = list(read_documents(str(write(tmp_path / "d.parquet", rows)), label_columns=["n"]))
    assert [d.content for d in found] == [row["text"] for row in rows]
    assert [d.columns["n"] for d in found] == list(range(1000))
    rows[700]["text"] = 5
    text = message(str(write(tmp_path / "d.jsonl", rows)))
    assert "row 701 of" in text
    assert "'text' holds a int" in text


@pytest.mark.parametrize("name", ["d.jsonl", "d.json"])
@pytest.mark.parametrize("late", [5, ["a"]])
def test_text_column_with_one_value_of_another_type_late(tmp_path, name, late):
    """Left alone, `datasets` gives the texts around it as quoted JSON, without a word."""
    rows = [{"text": f"word {i} " + "word " * 400} for i in range(6_000)]
    path = str(write(tmp_path / name, rows))
    assert contents(path)[-1] == rows[-1]["text"]
    rows[5_900]["text"] = late
    assert "d.json" in message(str(write(tmp_path / name, rows)))


# -- what goes wrong -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.jsonl", b'{"text": "a"}\n{"text": \n'),
        ("d.jsonl", b'{"text": "\\ud800"}\n'),
        ("d.json", b'[{"text": "a"}'),
        ("d.csv", b"text,n\na,1\nb,2,3\n"),
        ("d.parquet", b"PAR1 broken PAR1"),
        ("d.txt.gz", b"not gzip"),
        ("d.txt.gz", gzip.compress(os.urandom(999))[:500]),
        ("d.jsonl.xz", b"not xz"),
    ],
)
def test_damaged_files(tmp_path, caplog, name, content):
    (tmp_path / name).write_bytes(content)
    text = message(str(tmp_path / name))
    assert text.startswith("data: cannot read")
    assert name in text
    assert len(text.split(": ")) > 2
    assert not caplog.records  # the readers of `datasets` log the same again


def test_files_with_other_columns(tmp_path):
    write(tmp_path / "c" / "0.csv", [{"text": "a", "x": 1}])
    write(tmp_path / "c" / "1.csv", [{"text": "b", "y": 1}])
    assert contents(str(tmp_path / "c")) == ["a", "b"]
    text = message(str(tmp_path / "c"), label_columns=["x"])
    assert "row 1" in text
    assert "1.csv" in text
    assert "'x'" in text


@pytest.mark.parametrize("name", ["d.txt", "d.jsonl", "d.json", "d.csv"])
def test_empty_files(tmp_path, name):
    (tmp_path / name).write_text("")
    assert message(str(tmp_path / name)).startswith("data:")
    assert "empty" in message(str(tmp_path / name))


def test_no_rows(tmp_path):
    (tmp_path / "d.csv").write_text("text,n\n")
    (tmp_path / "d.json").write_text("[]")
    (tmp_path / "d.jsonl").write_text("\n")
    for name in ("d.csv", "d.json", "d.jsonl"):
        assert message(str(tmp_path / name)).startswith("data:"), name


@pytest.mark.parametrize("data", ["./x", "../x/y", "~/none", "/none/at/all", "a/b/c", "x.jsonl", "u/x.csv.gz", ""])
def test_no_such_path(data):
    assert message(data).startswith("data: no such file or folder")


def test_arguments_that_do_not_fit(tmp_path):
    path = str(write(tmp_path / "d.jsonl", ROWS))
    assert "line, paragraph, document" in message(path, sample_by="page")
    assert message(path, sample_by="paragraph").startswith("sample_by:")
    assert message("user/set", sample_by="paragraph").startswith("sample_by:")
    assert message(path, revision="main").startswith("revision:")


def test_local_data_is_nobody_elses_business(tmp_path, monkeypatch):
    """`load_dataset` asks a server to count each use of a local file; without a network that can take seconds."""

    def refuse(*_, **__):
        raise AssertionError("network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    asked = []
    monkeypatch.setattr("datasets.load.get_session", lambda: asked.append(1))
    for name in ("d.txt", "d.jsonl", "d.csv", "d.parquet"):
        assert len(contents(str(write(tmp_path / name, ROWS)))) == 3
    assert not asked


def test_errors_come_on_calling(tmp_path):
    """Before a model is loaded, not when the first document is asked for."""
    path = str(write(tmp_path / "d.jsonl", ROWS))
    for wrong in ({"split": "test"}, {"text_column": "x"}, {"label_columns": ["x"]}):
        with pytest.raises(InputError):
            read_documents(path, **wrong)


@pytest.mark.slow
@pytest.mark.parametrize("setting", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_hub_that_cannot_be_reached(setting, tmp_path):
    """In a process of its own, as both are read on import; and at once, not after many retries."""
    program = (
        "import time; from softh_probe.data.documents import read_documents; start = time.monotonic()\n"
        "try: read_documents('allenai/c4', subset='en', split='validation')\n"
        "except ValueError as error: print(type(error).__name__, round(time.monotonic() - start), error)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HF_ENDPOINT")}
    environment |= {"HF_HOME": str(tmp_path), **setting}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    name, seconds, text = done.stdout.split(" ", 2)
    assert name == "InputError"
    assert int(seconds) < 10
    assert text.startswith("data: 'allenai/c4'")
    assert text.count("\n") == 1
    assert "HF_HUB_OFFLINE" in text
    assert "HF_TOKEN" in text
    assert "spelling" in text
    assert "Retrying" not in done.stderr


def test_hub_answers_are_passed_on(monkeypatch):
    """Answers of the hub, as `datasets` words them: asked through a stand-in, as there is no hub here."""
    asked = {}

    def load(path, **kwargs):
        asked.update(kwargs, path=path)
        raise answer

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets, "load_dataset", load)
    answer: Exception = ValueError(
        "Config name is missing.\nPlease pick one among the available configs: ['en', 'de']\nExample of usage: …"
    )
    assert message("allenai/c4") == "subset: allenai/c4 has several, name one: en, de"
    answer = ValueError("BuilderConfig 'eng' not found. Available: ['en', 'de']")
    assert "did you mean 'en'" in message("allenai/c4", subset="eng", revision="abc")
    assert asked == {"path": "allenai/c4", "name": "eng", "revision": "abc", "streaming": True}
    answer = datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' doesn't exist on the Hub")
    assert "doesn't exist on the Hub" in message("a/b")
    assert "hf auth login" in message("a/b")


def test_reading_is_lazy(tmp_path):
    """The first documents of a long file come without the rest, whose last line is damaged."""
    line = json.dumps({"text": "word " * 200}) + "\n"
    path = tmp_path / "d.jsonl"
    path.write_text(line * 30_000 + '{"text": ')
    assert len(contents(str(path), max_documents=3)) == 3
    with pytest.raises(InputError):
        sum(1 for _ in read_documents(str(path)))
