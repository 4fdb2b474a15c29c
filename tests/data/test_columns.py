"""Which column is the text: inferred where it is certain, named at any depth, refused or recorded otherwise."""

import json

import datasets
import numpy as np
import pandas as pd
import pytest

from softh_probe.choices import Choices
from softh_probe.data.columns import TEXT_COLUMNS
from softh_probe.data.documents import read_documents
from softh_probe.errors import InputError

CHAT = [{"role": "user", "content": "Who?"}]
PAIR = {"en": "Hello", "de": "Hallo"}


@pytest.fixture(params=["jsonl", "parquet"])
def write(request, tmp_path):
    def write(*rows: dict):
        path = tmp_path / f"d.{request.param}"
        if request.param == "parquet":
            datasets.Dataset.from_list(list(rows)).to_parquet(path)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def read(path, *labels, text_column=None) -> tuple[list, list[tuple[str, bool]]]:
    choices = Choices()
    found = read_documents(path, text_column=text_column, label_columns=labels, choices=choices)
    texts = [(d.content, *d.columns.values()) if labels else d.content for d in found]
    return texts, [(choice.chosen, choice.certain) for choice in choices if choice.about == "text_column"]


def refused(path, *labels, text_column=None) -> str:
    with pytest.raises(InputError) as caught:
        read(path, *labels, text_column=text_column)
    return str(caught.value)


# -- inferred ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEXT_COLUMNS)
def test_the_only_usual_name_is_certain(write, name):
    content = CHAT if name.startswith(("messages", "conversation")) else "Hello"
    row = {"id": "7", "title": "a title", "meta": {"url": "u"}, name: content, "tags": ["x"]}
    assert read(write(row)) == ([content], [(name, True)])


@pytest.mark.parametrize(
    ("row", "chosen"),
    [
        ({"content": "b", "text": "a"}, "text"),
        ({"text": "a", "messages": CHAT}, "text"),
        ({"article": "a", "sentence": "b", "id": 1}, "sentence"),
    ],
)
def test_of_several_usual_names_the_first_is_taken_and_warned_of(write, row, chosen):
    assert read(write(row)) == ([row[chosen]], [(chosen, False)])
    with pytest.warns(UserWarning, match=f"text_column: {chosen} .*name it with text_column"):
        list(read_documents(write(row)))


def test_the_only_column_that_can_hold_text_is_certain(write):
    row = {"n": 1, "quote": "a", "score": 0.5, "good": True, "numbers": [1, 2]}
    assert read(write(row)) == (["a"], [("quote", True)])
    assert read(write(row | {"language": "en"}), "language") == ([("a", "en")], [("quote", True)])
    assert read(write(row | {"later": None})) == (["a"], [("quote", False)])


@pytest.mark.parametrize(
    ("row", "listed"),
    [
        ({"id": "0", "translation": PAIR}, ["id (string)", "translation.en (string)", "translation.de (string)"]),
        ({"translation": PAIR}, ["translation.en (string)"]),
        ({"n": 1, "doc": {"body": {"text": "a"}}}, ["doc.body.text (string)"]),
        ({"id": "0", "data": ["Hi", "Hello"]}, ["id (string)", "data (list of string)", "a row each"]),
        ({"quote": "a", "tags": ["x"]}, ["quote (string)", "tags (list of string)"]),
        ({"quote": "a", "meta": {"url": "u"}}, ["quote (string)", "meta.url (string)"]),
        ({"quote": "a", "turns": CHAT}, ["quote (string)", "turns (list of struct)"]),
        ({"question": "a", "answer": "b"}, ["question (string)", "answer (string)"]),
        ({"prompt": "a", "chosen": CHAT, "rejected": CHAT}, ["chosen (list of struct)"]),
        ({"id": "a", "n": 1}, ["id (string)", "n (int"]),
        ({"paper_id": "a"}, ["paper_id (string)"]),
        ({"url": "a"}, ["url (string)"]),
        ({"text": ["a", "b"], "n": 1}, ["text (list of string)"]),
        ({"text": {"en": "a"}, "n": 1}, ["text.en (string)"]),
        ({"text": 5, "n": 1}, ["text (int"]),
    ],
)
def test_where_another_column_could_be_meant_all_are_listed(write, row, listed):
    text = refused(write(row))
    assert text.startswith("text_column: cannot tell")
    for words in listed:
        assert words in text


def test_pictures_hold_no_text(tmp_path):
    features = datasets.Features(caption=datasets.Value("string"), image=datasets.Image())
    rows = {"caption": ["a"], "image": [{"bytes": b"x", "path": "p"}]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "d.parquet")
    assert read(str(tmp_path / "d.parquet")) == (["a"], [("caption", True)])
    features = datasets.Features(caption=datasets.Value("string"), map=datasets.Array2D((2, 2), "uint8"))
    rows = {"caption": ["a"], "map": [np.zeros((2, 2), dtype=np.uint8)]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "d.parquet")
    assert read(str(tmp_path / "d.parquet")) == (["a"], [("caption", True)])


def test_names_of_rows_that_pandas_writes_are_no_text(tmp_path):
    pd.DataFrame({"quote": ["a"], "n": [1]}, index=["first"]).to_parquet(tmp_path / "d.parquet")
    assert read(str(tmp_path / "d.parquet")) == (["a"], [("quote", True)])


def test_a_text_that_is_null_at_first(write):
    assert read(write({"text": None, "id": "a"})) == ([""], [("text", False)])
    assert read(write({"text": None, "content": "a"})) == (["a"], [("content", True)])


# -- named ---------------------------------------------------------------------------------------------------


def test_dotted_names(write):
    path = write(
        {"id": "0", "translation": PAIR, "meta": {"lang": "x", "n": {"m": 1}}},
        {"id": "1", "translation": {"en": "Bye", "de": None}, "meta": None},
        {"id": "2", "translation": None, "meta": {"lang": None, "n": None}},
    )
    assert read(path, text_column="translation.en") == (["Hello", "Bye", ""], [])
    assert read(path, "meta.lang", "meta.n.m", text_column="translation.de")[0] == [
        ("Hallo", "x", 1),
        ("", None, None),
        ("", None, None),
    ]
    found, _ = read(path, "text_column", "id", text_column="translation.en, translation.de")
    assert found[:2] == [("Hello", "0", "translation.en"), ("Hallo", "0", "translation.de")]
    text = refused(path, text_column="translation.fr")
    assert "has no 'translation.fr'" in text
    assert "translation.en, translation.de" in text
    assert "labels: " in refused(path, "meta.language", text_column="translation.en")
    text = refused(path, text_column="translation")
    assert "'translation' holds a dict" in text
    assert "name the key that holds it: translation.en, translation.de" in text


def test_a_literal_name_takes_precedence(write):
    path = write({"a.b": "literal", "a": {"b": "nested", "c": {"d": "deep"}}, "a.c": {"d": "half"}})
    assert read(path, text_column="a.b")[0] == ["literal"]
    assert read(path, text_column="a.c.d")[0] == ["half"]
    assert read(path, "a.b", text_column="a.c.d")[0] == [("half", "literal")]


def test_a_conversation_inside_a_struct(write):
    assert read(write({"data": {"chat": CHAT, "n": 1}}), text_column="data.chat")[0] == [CHAT]


def test_a_name_with_a_comma(write):
    assert read(write({"a,b": "whole", "a": "x", "b": "y"}), text_column="a,b")[0] == ["whole"]


def test_a_path_that_ends_early(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"t": {"en": "a"}}\n{"t": "b"}\n')
    assert "'t' holds a str in row 2" in refused(str(tmp_path / "d.jsonl"), text_column="t.en")
