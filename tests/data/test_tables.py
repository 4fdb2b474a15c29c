"""Rows and columns of .csv, .tsv, .json, .jsonl, .parquet and `datasets`: none is dropped, none in the way."""

import csv
import json
import os
from decimal import Decimal

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from softh_probe.choices import Choices
from softh_probe.data.documents import read_documents
from softh_probe.errors import InputError


def read(path, *labels, **options) -> list:
    """Texts, with the labels if any are asked for."""
    found = read_documents(str(path), label_columns=labels, choices=Choices(), **options)
    return [(d.content, *d.columns.values()) if labels else d.content for d in found]


def refused(path, *labels, **options) -> str:
    with pytest.raises(InputError) as caught:
        read(path, *labels, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- .csv and .tsv -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "remedy"),
    [
        ("text;language\nHello there;en\n", "';'"),
        ("text;language\nHello, there;en\n", "';'"),
        ('"text";"language"\n"Hello";"en"\n', "';'"),
        ("text;score\nHello;0,5\nBye;0,7\n", "';'"),
        ("text|language\nHello|en\n", "'|'"),
        ("text\tlanguage\nHello\ten\n", ".tsv"),
        ("sep=;\ntext;language\nHello;en\n", "remove it"),
        ("text,n\na,1,x\nb,2\n", "row 1 has 3 of the header's 2 cells"),
        ("text,n\na,1\nb,2,\n", "row 2 has 3 of the header's 2 cells"),
        ("text,n\na\nb,2\n", "row 1 has 1 of the header's 2 cells"),
        ("text\nHello, there\n", "row 1 has 2 of the header's 1 cells"),
        ('text,n\n"a,1\nb,2\n', "row 1"),
        ('text,n\n"To be" or not,1\n', "row 1"),
        ('{"text": "Hello"}\n{"text": "b"}\n', "may itself be text"),
        ("Hello there\nGuten Tag\n", "may itself be text"),
        ("7,only strings,0.5\n8,more,0.6\n", "may itself be text"),
        ("Hello there,en\nGuten Tag,de\n", "cannot tell"),
        ("text,n,text\na,1,b\n", "2 columns 'text'"),
    ],
)
def test_csv_of_another_form_is_refused(tmp_path, content, remedy):
    (tmp_path / "d.csv").write_text(content)
    assert remedy in refused(tmp_path / "d.csv")


def test_tsv(tmp_path):
    (tmp_path / "d.tsv").write_text('text\tlanguage\nHello, "you"; there\ten\n"a\tb"\tde\n')
    assert read(tmp_path / "d.tsv", "language") == [('Hello, "you"; there', "en"), ("a\tb", "de")]
    (tmp_path / "d.tsv").write_text("text;language\nHello;en\n")
    assert "expected a tab" in refused(tmp_path / "d.tsv")


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (
            'n\ttext\n1\t"It was late, he said.\n2\tAnd I was tired."\n3\tfine\n',
            ["It was late, he said.\n2\tAnd I was tired.", "fine"],
        ),
        ('text\tn\n"It was late.\t1\nfine\t2\nI was tired."\t3\n', ["It was late.\t1\nfine\t2\nI was tired."]),
    ],
)
def test_quotes_that_may_belong_to_the_text_are_warned_of(tmp_path, content, texts):
    (tmp_path / "d.tsv").write_text(content)
    choices = Choices()
    assert [d.content for d in read_documents(str(tmp_path / "d.tsv"), choices=choices)] == texts
    (warning,) = choices.warnings()
    assert warning.startswith("quotes: around cells (1 rows of")


def test_quotes_around_lines_of_a_cell_are_certain(tmp_path):
    (tmp_path / "d.tsv").write_text('text\tn\n"one\ntwo\nthree"\t1\n"a ""b"", \tc"\t2\n')
    (tmp_path / "d.csv").write_text('text,n\n"one, a\ntwo, b",1\n')
    (tmp_path / "one.tsv").write_text('text\n"one\ntwo"\n')
    for name in ("d.tsv", "d.csv", "one.tsv"):
        choices = Choices()
        list(read_documents(str(tmp_path / name), choices=choices))
        assert choices.warnings() == []


def test_a_header_is_certain_above_numbers_or_where_it_is_asked_for(tmp_path):
    (tmp_path / "d.csv").write_text("id,quote\n7,To be\n8,or not\n")
    assert read(tmp_path / "d.csv") == ["To be", "or not"]
    (tmp_path / "d.csv").write_text("quote\nTo be\n")
    assert read(tmp_path / "d.csv", text_column="quote") == ["To be"]
    (tmp_path / "d.csv").write_text("quote,language\nTo be,en\n")
    assert read(tmp_path / "d.csv", "language") == [("To be", "en")]


def test_csv_cells_of_any_text(tmp_path):
    texts = ["a\r\nb", "c\nd\re", 'say "so"', "x;y|z\t", "\u2028\x0c\x85", "long " * 100_000, ", ", "NA"]
    with open(tmp_path / "d.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["text", "n"], *([text, i] for i, text in enumerate(texts))])
    limit = csv.field_size_limit()
    assert read(tmp_path / "d.csv") == texts
    assert csv.field_size_limit() == limit
    (tmp_path / "d.csv").write_bytes(b"text,n\ra,1\r\rb,2\r")
    assert read(tmp_path / "d.csv", "n") == [("a", "1"), ("b", "2")]


# -- .json and .jsonl ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["d.json", "d.jsonl"])
@pytest.mark.parametrize(
    "content",
    [
        '[{"text": "a"},\n {"text": "b"}]\n',
        '{"text": "a"}\n{"text": "b"}',
        '\ufeff{"text": "a"}\r\n\r\n{"text": "b"}\r\n',
        '{\n  "text": "a"\n}\n{\n  "text": "b"\n}\n',
        '{"text": "a"} {"text": "b"}',
    ],
)
def test_objects_in_a_list_in_lines_or_one_after_the_other(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert read(tmp_path / name) == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"text":"a"}\n{"text":"b', "row 2"),
        ('{"text":"a"}\n{"text":"b"', "row 2"),
        ('{"text":"a"}\n{"text":"b"},\n{"text":"c"}\n', "row 3"),
        ('[{"text":"a"}, {"text":"b"}', "row 2"),
        ('[{"text":"a"},]', "row 2"),
        ('[{"text":"a"}] {"text":"b"}', "after the end of the list"),
        ("{'text': 'a'}\n", "row 1"),
        ("text,language\na,en\n", "row 1"),
        ('{"text":"a"}\n["b"]\n', "row 2"),
        ('{"data": [{"text": "a"}, {"text": "b"}]}', "data (list of struct)"),
        ('{"text": {"0": "a", "1": "b"}}', "text.0 (string)"),
        ('{"text": ["a", "b"]}', "text (list of string)"),
        ('{"text": "a", "text": "b"}', "twice"),
        ('{"messages": [{"role": "user", "content": "a", "content": "b"}]}', "twice"),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "surrogate"),
    ],
)
def test_json_of_another_form_is_refused(tmp_path, content, words):
    (tmp_path / "d.json").write_text(content)
    assert words in refused(tmp_path / "d.json")


def test_values_over_many_chunks(tmp_path):
    rows = [{"text": f"{i} " + 'é\\"' * (i % 7) * 9_000, "n": {"m": [i]}} for i in range(300)]
    for indent in (None, 1):
        (tmp_path / "d.json").write_text(json.dumps(rows, indent=indent, ensure_ascii=bool(indent)))
        assert read(tmp_path / "d.json") == [row["text"] for row in rows]


def test_rows_before_a_damaged_one_are_read(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"text": "a"}\n' * 150 + '{"text": ')
    assert read(tmp_path / "d.jsonl", max_documents=150) == ["a"] * 150
    assert "row 151" in refused(tmp_path / "d.jsonl")


# -- columns that nobody asked for ---------------------------------------------------------------------------

OTHERS = {
    "null, string": (None, "x"),
    "null, struct": (None, {"url": "x"}),
    "no items, items": ([], ["x"]),
    "int, string": (1, "a1"),
    "int, float": (1, 0.5),
    "other keys": ({"a": 1}, {"b": "x"}),
    "other depth": ({"a": {"b": 1}}, {"a": [1]}),
    "list, struct": ([1], {"a": 1}),
    "bool, list": (True, ["x"]),
    "beyond 64 bits": (1, 2**70),
    "deep": (1, json.loads("[" * 300 + "]" * 300)),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("name", ["jsonl", "json"])
def test_columns_nobody_asked_for_may_hold_anything(tmp_path, name, kind):
    one, two = ([{"text": f"the cat {i}", "meta": value} for i in range(3)] for value in OTHERS[kind])
    texts = [f"the cat {i}" for i in range(3)]

    def write(file, rows) -> None:
        file.parent.mkdir(exist_ok=True)
        lines = name == "jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows) if lines else json.dumps(rows))

    write(tmp_path / "two" / f"a.{name}", one)
    write(tmp_path / "two" / f"b.{name}", two)
    assert read(tmp_path / "two") == texts * 2
    write(tmp_path / "one" / f"a.{name}", one + two)
    assert read(tmp_path / "one") == texts * 2
    write(tmp_path / "less" / f"a.{name}", [{"text": "a"}])
    write(tmp_path / "less" / f"b.{name}", two)
    assert read(tmp_path / "less") == ["a", *texts]


def test_a_large_file_that_is_null_first(tmp_path):
    rows = [{"text": "the cat sat " * 400, "meta": None} for _ in range(2600)] + [{"text": "last", "meta": {"a": "b"}}]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read(tmp_path / "d.jsonl") == [row["text"] for row in rows]


def test_parquet_files_of_other_schemas(tmp_path):
    map_ = pa.array([[("k", "v")]], pa.map_(pa.string(), pa.string()))
    tables = [
        {"text": ["a"], "meta": pa.nulls(1), "label": [1]},
        {"text": ["b"], "meta": ["x"], "label": ["1"], "more": [{"k": 1}]},
        {"label": [1.0], "text": pa.array(["c"]).dictionary_encode(), "meta": map_},
        {"label": [None], "text": pa.array(["d"], pa.large_string())},
        {"label": [True], "text": [None]},
    ]
    for i, columns in enumerate(tables):
        pq.write_table(pa.table(columns), tmp_path / f"{i}.parquet")
    assert read(tmp_path) == ["a", "b", "c", "d", ""]
    assert [str(label) for _, label in read(tmp_path, "label")] == ["1", "1", "1", "None", "True"]
    assert "labels: 'meta' holds a dict in row 1 of" in refused(tmp_path / "2.parquet", "meta")
    text = refused(tmp_path, "more")
    assert "0.parquet has no column 'more'" in text


def test_parquet_with_types_that_nobody_knows(tmp_path):
    features = {"text": {"_type": "Value", "dtype": "string"}, "x": {"_type": "Of Tomorrow"}}
    table = pa.table({"text": ["a"], "x": pa.array([1], pa.decimal128(5, 2)), "y": pa.array([0], pa.duration("s"))})
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "d.parquet")
    assert read(tmp_path / "d.parquet") == ["a"]


def test_csv_files_of_other_columns(tmp_path):
    (tmp_path / "a.csv").write_text("text,id,meta\na,1,\n")
    (tmp_path / "b.csv").write_text("meta,text,id,more\nx,b,a1,y\n")
    assert read(tmp_path, "id") == [("a", "1"), ("b", "a1")]


def test_labels_that_files_lack_are_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "x": 1}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "b"}\n')
    assert read(tmp_path) == ["a", "b"]
    assert "b.jsonl has a column 'x'" in refused(tmp_path, "x")
    (tmp_path / "b.jsonl").write_text('{"text": "b"}\n{"text": "c", "x": "y"}\n')
    assert read(tmp_path, "x") == [("a", 1), ("b", None), ("c", "y")]
    (tmp_path / "b.jsonl").write_text('{"other": "b"}\n')
    assert "none of the 1 rows of" in refused(tmp_path)


def test_a_column_that_comes_late_is_found(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' * 5_000 + '{"text": "b", "x": {"y": 1}}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "a", "x": {"y": 2}}\n')
    assert [label for _, label in read(tmp_path, "x.y")][-2:] == [1, 2]
    assert "has no 'z'" in refused(tmp_path, "z")


def test_whole_numbers_are_one_label_with_and_without_decimals(tmp_path):
    values = [1, 1.0, 2.5, -0.0, 0, 1e300, 2**53 + 1, "1"]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps({"text": "a", "n": value}) + "\n" for value in values))
    names = [str(label) for _, label in read(tmp_path / "d.jsonl", "n")]
    assert names == ["1", "1", "2.5", "0", "0", "1e+300", "9007199254740993", "1"]


def test_whole_numbers_are_one_label_in_csv_too(tmp_path):
    """Pandas writes 1.0 where the column of a file has nulls."""
    (tmp_path / "a.csv").write_text("text,n\na,1.0\nb,\nc,2.5\n1.0,x1.0\n")
    (tmp_path / "b.csv").write_text("text,n\na,1\n3.0,3.0\n")
    assert read(tmp_path, "n") == [("a", "1"), ("b", None), ("c", "2.5"), ("1.0", "x1.0"), ("a", "1"), ("3.0", "3")]
    assert read(tmp_path / "b.csv", "text", text_column="text") == [("a", "a"), ("3.0", "3.0")]


def test_decimals_are_labels(tmp_path):
    values = [Decimal("1.50"), Decimal("2.00"), Decimal(2**53 + 1), None]
    pq.write_table(pa.table({"text": ["a"] * 4, "n": values}), tmp_path / "d.parquet")
    assert [label for _, label in read(tmp_path / "d.parquet", "n")] == [1.5, 2, 2**53 + 1, None]


# -- copies of hub repositories ------------------------------------------------------------------------------


def repository(folder, readme: str, **files: str):
    folder.mkdir()
    (folder / "README.md").write_text(f"---\n{readme}\n---\n")
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_text(content)
    return folder


def test_repositories_are_read_as_files_are(tmp_path):
    configs = "configs:\n- config_name: default\n  data_files: '*.{}'"
    rows = {"a_jsonl": '{"text": "a", "m": null, "t": 1}\n', "b_jsonl": '{"text": "b", "m": {"x": 1}, "t": "s"}\n'}
    folder = repository(tmp_path / "json", configs.format("jsonl"), **rows)
    assert read(folder, "t") == [("a", 1), ("b", "s")]
    folder = repository(tmp_path / "csv", configs.format("csv"), a_csv="text;n\na;1\n")
    assert "separates cells by ';'" in refused(folder)


@pytest.mark.parametrize("name", ["dataset_infos.json", "dataset_info.json"])
def test_descriptions_in_a_repository_are_no_rows(tmp_path, name):
    (tmp_path / name).write_text('{"default": {"features": {}}}')
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n')
    assert read(tmp_path) == ["a"]
    (tmp_path / "train.jsonl").rename(tmp_path / "train.txt")
    assert read(tmp_path) == ['{"text": "a"}']


def test_repositories_declare_separators_classes_and_other_readings(tmp_path):
    configs = "configs:\n- config_name: default\n  data_files: '*.csv'"
    folder = repository(tmp_path / "separator", f"{configs}\n  sep: ';'", a_csv="text;n\na, b;1\n")
    assert read(folder, "n") == [("a, b", "1")]
    folder = repository(tmp_path / "skip", f"{configs}\n  skiprows: 1", a_csv="# ours\ntext,n\na,1\n")
    assert read(folder, "n") == [("a", 1)]
    names = "{'class_label': {'names': {'0': neg, '1': pos}}}"
    features = f"dataset_info:\n  features:\n  - {{name: text, dtype: string}}\n  - {{name: y, dtype: {names}}}"
    folder = repository(tmp_path / "classes", f"{configs}\n{features}", a_csv="text,y\na,1\nb,0\nc,\n")
    assert read(folder, "y") == [("a", "pos"), ("b", "neg"), ("c", None)]


def test_saved_data_sets_of_mixed_types(tmp_path):
    rows = [{"text": "a", "m": 1, "y": {"z": "s"}}, {"text": "b", "m": [1], "y": None}]
    datasets.Dataset.from_list(rows, on_mixed_types="use_json").save_to_disk(tmp_path / "saved")
    assert read(tmp_path / "saved") == ["a", "b"]
    assert read(tmp_path / "saved", "y.z") == [("a", "s"), ("b", None)]


def test_a_pipe_is_refused_as_such(tmp_path):
    os.mkfifo(tmp_path / "texts.jsonl")
    assert "is a pipe or a device, expected a file or a folder" in refused(tmp_path / "texts.jsonl")
