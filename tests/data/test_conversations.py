"""Conversations have the text of the file: keys that a message lacks stay missing, from every format."""

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from softh_probe.choices import Choices
from softh_probe.data.documents import read_documents
from softh_probe.data.token_stream import tokenize

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}:{{ m['content'] if m['content'] is string else m['content'] | tojson }}"
    "{% for key in m if key not in ('role', 'content') %} {{ key }}={{ m[key] | tojson }}{% endfor %};{% endfor %}"
)
ASK = {"role": "user", "content": "weather?"}


def call(arguments, **more) -> dict:
    function = {"name": "f", "arguments": arguments}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function, **more}]}


CONVERSATIONS = {
    "arguments differ": [[ASK, call({"city": "Paris"})], [ASK, call({"zip": 75001, "unit": "C"})]],
    "some without tools": [[ASK, call({"city": "Paris"})], [ASK, {"role": "assistant", "content": "sunny"}]],
    "arguments in text": [[ASK, call('{"city": "Paris", "zip": null}')], [ASK, call("{}", id="1")]],
    "structs in lists in structs": [
        [ASK, call({"where": [{"city": "Paris", "at": {"lat": 1.5}}, {"zip": 1}], "list": ["a"]})],
        [ASK, call({"where": [{"at": {"lon": 2.5}}]})],
    ],
    "no arguments": [[ASK, call({})], [ASK, call({"city": "Paris"})]],
    "parts": [
        [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}],
        [{"role": "user", "content": [{"type": "text", "text": "b", "cache": {"kind": "short"}}]}],
    ],
    "names": [[{**ASK, "name": "Bo"}], [{**ASK, "weight": 0}], [ASK]],
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Tokens are characters."""
    vocabulary = {chr(i): i for i in range(10, 127)}
    fast = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocabulary, [])))
    fast.chat_template = TEMPLATE
    return fast


def write(path, rows: list[dict]) -> str:
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".saved":
        datasets.Dataset.from_list(rows).save_to_disk(path)
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows) if path.suffix == ".jsonl" else json.dumps(rows)
        path.write_text(text)
    return str(path)


def texts(path: str, tokenizer, **options) -> tuple[list[str], Choices]:
    choices = Choices()
    documents = read_documents(path, choices=choices, **options)
    corpus = tokenize(documents, tokenizer, max_length=4000, progress=False, choices=choices)
    tokens = [tokenizer.convert_ids_to_tokens(corpus.document(i).tolist()) for i in range(corpus.n_documents)]
    return ["".join(of_document) for of_document in tokens], choices


@pytest.mark.parametrize("kind", CONVERSATIONS)
@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.parquet", "d.saved"])
@pytest.mark.parametrize("tools", [False, True])
def test_the_text_is_that_of_the_file(tmp_path, tokenizer, name, kind, tools):
    extra = [{"type": "function", "function": {"name": "f", "parameters": {"city": {"type": "string"}}}}]
    other = [{"type": "function", "function": {"name": "g", "parameters": {"zip": {"type": "integer"}}}}]
    rows = [{"messages": messages} for messages in CONVERSATIONS[kind]]
    if tools:
        rows = [{**row, "tools": other if i else extra} for i, row in enumerate(rows)]
    expected = [tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in rows]
    assert texts(write(tmp_path / name, rows), tokenizer)[0] == expected


def test_a_null_in_json_is_kept_and_one_in_arrow_is_recorded(tmp_path, tokenizer):
    rows = [{"messages": [ASK, call({"city": "Paris", "zip": None})]}, {"messages": [ASK, call({"zip": 1})]}]
    found, choices = texts(write(tmp_path / "d.jsonl", rows), tokenizer)
    assert '"zip": null' in found[0]
    assert choices.warnings() == []
    found, choices = texts(write(tmp_path / "d.parquet", rows), tokenizer)
    assert "null" not in "".join(found)
    assert [(c.chosen, c.certain) for c in choices if c.about == "null keys"] == [("left out", False)]
    assert choices.warnings()[0].startswith("null keys: left out (2 keys")


def test_a_null_key_of_a_message_is_a_missing_one(tmp_path, tokenizer):
    """As programs write messages whose class has more fields; templates ask whether a key is there."""
    rows = [{"messages": [{**ASK, "tool_calls": None, "name": None}, {"role": "assistant", "content": None}]}]
    for name in ("d.jsonl", "d.parquet"):
        found, choices = texts(write(tmp_path / name, rows), tokenizer)
        assert found == ["user:weather?;assistant:;"]
        assert choices.warnings() == []


def test_maps_and_values_of_mixed_types(tmp_path, tokenizer):
    kind = pa.list_(
        pa.struct([("role", pa.string()), ("content", pa.string()), ("x", pa.map_(pa.string(), pa.int64()))])
    )
    column = pa.array([[{**ASK, "x": [("a", 1), ("b", 2)]}]], kind)
    pq.write_table(pa.table({"messages": column}), tmp_path / "map.parquet")
    assert texts(str(tmp_path / "map.parquet"), tokenizer)[0] == ['user:weather? x={"a": 1, "b": 2};']
    rows = [{"messages": [{**ASK, "x": {"q": 1}}]}, {"messages": [{**ASK, "x": {"q": "s", "z": None}}]}]
    mixed = datasets.Dataset.from_list(rows, on_mixed_types="use_json")
    mixed.to_parquet(tmp_path / "json.parquet")
    mixed.save_to_disk(tmp_path / "saved")
    for name in ("json.parquet", "saved"):
        found, _ = texts(str(tmp_path / name), tokenizer)
        assert found[0] == 'user:weather? x={"q": 1};'


def test_keys_that_are_null_outside_of_conversations_are_no_matter(tmp_path):
    choices = Choices()
    rows = [{"a": {"b": {"en": "x", "de": None}}}, {"a": {"b": {"en": None, "de": "y"}}}]
    found = read_documents(write(tmp_path / "d.parquet", rows), text_column="a.b.en", choices=choices)
    assert [document.content for document in found] == ["x", ""]
    assert choices.warnings() == []
