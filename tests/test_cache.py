"""The cache between runs: found again, never wrong, never in the way."""

import json
import os

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from softh_probe.cache import Cache, cache_folder, key_of
from softh_probe.data.prepared import read_corpus
from softh_probe.data.tokenizing import tokenizer_fingerprint
from softh_probe.errors import InputError
from softh_probe.run import run

LABELS = ["input_bigram", "output_unigram", "column:language"]


def test_the_second_run_neither_tokenises_nor_plans(config, tmp_path, monkeypatch):
    first = run(config(labels=LABELS, per_label=["output_unigram"]), progress=False)

    def never(*_, **__):
        raise AssertionError("done before")

    monkeypatch.setattr("softh_probe.data.prepared.tokenize", never)
    monkeypatch.setattr("softh_probe.planned.plan.allocate_rows", never)
    again = config(labels=LABELS, per_label=["output_unigram"], out=str(tmp_path / "again"))
    second = run(again, progress=False)
    assert first.to_pandas().equals(second.to_pandas())
    assert first.labels == second.labels
    assert first.info["corpus"] == second.info["corpus"]
    with pytest.raises(AssertionError, match="done before"):
        run(config(labels=LABELS, out=str(tmp_path / "other")), progress=False)


def test_a_plan_with_another_sample_of_labels_is_another_plan(config, tmp_path, monkeypatch):
    results = []
    for label_rows, seed in ((3, 0), (4, 0), (3, 1), (3, 0)):
        if len(results) == 3:
            monkeypatch.setattr("softh_probe.planned.plan.allocate_rows", lambda *_, **__: pytest.fail("done before"))
        settings = config(
            labels=LABELS, label_rows=label_rows, tokens_per_batch=60, seed=seed, out=str(tmp_path / str(len(results)))
        )
        results.append(run(settings, progress=False))
    assert results[3].to_pandas().equals(results[0].to_pandas())
    samples = [result.info["sums_memory"]["label_sets"] for result in results]
    assert samples[3] == samples[0] != samples[1]
    assert samples[2] != samples[0]


@pytest.mark.parametrize(
    "change", ["max_length", "max_documents", "shuffle_seed", "data", "tokenizer", "label_columns", "permute_within"]
)
def test_what_changes_the_tokens_changes_the_key(config, data, checkpoint, change):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint)
    before = read_corpus(config(), tokenizer, progress=False)
    changes = {}
    if change == "max_length":
        changes = {"max_length": 5}
    elif change == "max_documents":
        changes = {"max_documents": 3}
    elif change == "shuffle_seed":
        changes = {"shuffle_seed": 0}
    elif change == "label_columns":
        changes = {"labels": ["column:language"]}
    elif change == "permute_within":
        lines = [{**json.loads(line), "topic": i % 2} for i, line in enumerate(data.read_text().splitlines())]
        data.write_text("\n".join(map(json.dumps, lines)))
        os.utime(data, ns=(1, 1))
        before = read_corpus(config(labels=["column:language"]), tokenizer, progress=False)
        changes = {"labels": ["column:language"], "permute_within": "topic"}
    elif change == "tokenizer":
        tokenizer.add_tokens(["mat"])
    else:
        lines = data.read_text().splitlines()
        data.write_text("\n".join([json.dumps({"text": "a dog", "language": "en"}), *lines[1:]]))
        os.utime(data, ns=(1, 1))
    after = read_corpus(config(**changes), tokenizer, progress=False)
    assert (after.sha256, list(after.columns)) != (before.sha256, list(before.columns))


def test_a_revision_of_local_data_is_refused_though_the_corpus_is_kept(config, checkpoint):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint)
    read_corpus(config(), tokenizer, progress=False)
    with pytest.raises(InputError, match=r"data_revision: 'main', but .* is local"):
        read_corpus(config(data_revision="main"), tokenizer, progress=False)


def test_a_tokenizers_fingerprint_is_of_what_it_does(checkpoint):
    one, other = (PreTrainedTokenizerFast.from_pretrained(checkpoint) for _ in range(2))
    assert tokenizer_fingerprint(one) == tokenizer_fingerprint(other)
    one(["the cat"], truncation=True, max_length=1)
    assert tokenizer_fingerprint(one) == tokenizer_fingerprint(other)
    other.add_tokens(["mat"])
    assert tokenizer_fingerprint(one) != tokenizer_fingerprint(other)
    other.__class__.__module__ = "somewhere.else"
    try:
        assert tokenizer_fingerprint(other) is None
    finally:
        other.__class__.__module__ = "transformers.tokenization_utils_fast"


@pytest.mark.parametrize("damage", ["truncated", "altered", "head", "garbage", "empty"])
def test_a_damaged_entry_counts_as_none(tmp_path, damage):
    cache = Cache(tmp_path)
    cache.store("plan", "1f", {"rows": np.arange(100)}, {"a": 1})
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "altered":
        content[-50] ^= 1
    elif damage == "head":
        at = content.index(b'\\"a\\": 1')
        content[at + 7 : at + 8] = b"2"
    path.write_bytes(
        {"truncated": bytes(content[:-9]), "garbage": b"x" * 999, "empty": b""}.get(damage, bytes(content))
    )
    assert cache.load("plan", "1f") is None
    cache.store("plan", "1f", {"rows": np.arange(100)}, {"a": 1})
    loaded = cache.load("plan", "1f")
    assert loaded is not None
    assert loaded[0]["rows"].tolist() == list(range(100))


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file" / "below")
    cache.store("plan", "1f", {"rows": np.arange(3)}, {})
    assert "could not be written and is not kept" in caplog.text
    assert cache.load("plan", "1f") is None


def test_none_keeps_nothing(config, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    run(config(cache="none"), progress=False)
    assert not (tmp_path / "xdg").exists()
    assert cache_folder("none") is None
    assert cache_folder("auto") == tmp_path / "xdg" / "softh_probe"
    run(config(cache=str(tmp_path / "mine"), out=str(tmp_path / "other")), progress=False)
    kept = sorted(path.name.split("-")[0] for path in (tmp_path / "mine").iterdir())
    assert kept == ["corpus", "plan"]
    assert not any(path.stat().st_mode & 0o044 == 0 for path in (tmp_path / "mine").iterdir())


def test_keys_differ_where_anything_does():
    assert key_of(a=1, b=[2, "x"]) == key_of(b=[2, "x"], a=1)
    assert len({key_of(a=1), key_of(a=2), key_of(b=1), key_of(a="1"), key_of(a=None)}) == 5
