"""Streamed runs: the numbers of planned ones, in a memory that no corpus makes larger."""

import itertools
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import softh_probe.run.streamed_feed
from softh_probe.analysis.comparable import check_comparable
from softh_probe.config import RunConfig
from softh_probe.data.documents import Document
from softh_probe.errors import InputError
from softh_probe.other_names import our_name
from softh_probe.result import ProbeResult
from softh_probe.run import run
from softh_probe.run.dry_run import dry_run
from tests.helpers.corpora import LANGUAGES, TEXTS

LABELS = ["column:language", "input_unigram", "output_unigram", "input_bigram", "output_trigram", "column:topic"]
SETTINGS = {"labels": LABELS, "anchor_sets": 2, "tokens_per_batch": 60, "label_rows": "all"}
COUNTS = ("documents_read", "documents_empty", "documents_without_tokens", "documents_longer_than_max_length")
COUNTS += ("documents", "documents_too_short", "tokens", "tokens_unknown", "chained_sha256", "texts_sha256")


@pytest.fixture
def rows(tmp_path):
    """Rows with columns, empty texts and texts that are too short, in a file."""
    texts = [*TEXTS, "", "cat", *reversed(TEXTS), TEXTS[3]]
    made = [
        {"text": text, "language": LANGUAGES[i % len(LANGUAGES)], "topic": None if i % 4 == 0 else f"topic {i % 5}"}
        for i, text in enumerate(texts)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, made)))
    return path


@pytest.fixture
def both(config, rows, tmp_path):
    """Runs a configuration planned and streamed."""

    def run_both(**changes) -> tuple[ProbeResult, ProbeResult]:
        settings = {**SETTINGS, "data": str(rows), **changes}
        planned = run(config(**settings, out=str(tmp_path / "planned")), progress=False)
        return planned, run(config(**settings, stream=True, out=str(tmp_path / "streamed")), progress=False)

    return run_both


def assert_equal_results(planned: ProbeResult, streamed: ProbeResult) -> None:
    one, other = (
        result.to_pandas("nats").set_index(["layer", "name", "label_set", "metric"]) for result in (planned, streamed)
    )
    assert one.index.equals(other.index)
    np.testing.assert_allclose(other.value, one.value, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(other.sd, one.sd, rtol=1e-6, atol=1e-6)
    assert planned.label_sets == streamed.label_sets
    order = [streamed.labels.index(label) for label in planned.labels]
    assert sorted(order) == list(range(len(streamed.labels)))
    for name, tensor in planned.tensors.items():
        found = streamed.tensors[name]
        found = found[:, order] if name.startswith("label_") else found
        np.testing.assert_allclose(found, tensor, rtol=1e-6, atol=1e-6, err_msg=name)
    for name in ("positions", "tokens", "labelled_positions"):
        assert planned.info[name] == streamed.info[name]
    for name in COUNTS:
        assert planned.info["corpus"][name] == streamed.info["corpus"][name], name
    assert planned.info["choices"] == streamed.info["choices"]
    assert planned.info["warnings"] == streamed.info["warnings"]


@pytest.mark.parametrize("overflow", ["truncate", "split"])
@pytest.mark.parametrize("window", [8192, 5])
def test_a_streamed_run_gives_the_numbers_of_a_planned_one(both, monkeypatch, overflow, window):
    monkeypatch.setattr(softh_probe.run.streamed_feed, "WINDOW_DOCUMENTS", window)
    monkeypatch.setattr("softh_probe.data.token_stream._CHUNK_DOCUMENTS", min(window, 256))
    planned, streamed = both(overflow=overflow, max_length=9)
    assert planned.info["corpus"]["documents_longer_than_max_length"] > 5
    assert planned.info["corpus"]["documents_too_short"] >= 1
    assert_equal_results(planned, streamed)


def test_positions_alone_and_columns_alone_are_streamed_too(both):
    for labels in ([], ["column:language"]):
        assert_equal_results(*both(labels=labels, overwrite=True))


@pytest.mark.parametrize("stream", [False, True])
def test_a_corpus_ends_with_the_document_that_reaches_max_tokens(config, stream):
    whole = run(config(stream=stream, out=config().out + "-whole"), progress=False)
    cut = run(config(stream=stream, max_tokens=100), progress=False)
    few = run(
        config(stream=stream, max_documents=cut.info["corpus"]["documents"], out=config().out + "-few"), progress=False
    )
    assert whole.info["corpus"]["tokens"] > 150 > cut.info["corpus"]["tokens"] >= 100
    assert cut.info["corpus"]["documents_read"] == few.info["corpus"]["documents_read"]
    assert cut.info["corpus"]["chained_sha256"] == few.info["corpus"]["chained_sha256"]
    assert cut.info["corpus"]["texts_sha256"] == few.info["corpus"]["texts_sha256"]
    for name, tensor in few.tensors.items():
        np.testing.assert_array_equal(cut.tensors[name], tensor, err_msg=name)


def test_max_tokens_is_no_other_name_of_a_length(config):
    assert our_name("max_tokens") is None
    assert our_name("max_seq_len")[0] == "max_length"
    with pytest.raises(InputError, match="max_tokens: expected at least 1, got 0"):
        config(max_tokens=0)


def endless(n_read: list[int]):
    """Documents of random words, for ever."""
    words = sorted({word for text in TEXTS for word in text.split()})
    generator = np.random.default_rng(0)
    for number in itertools.count():
        n_read[0] = number + 1
        yield Document(content=" ".join(generator.choice(words, size=40)), columns={"half": number % 2, "other": "x"})


def test_an_endless_generator_ends_by_max_tokens_in_a_flat_memory(config, monkeypatch):
    monkeypatch.setattr(softh_probe.run.streamed_feed, "WINDOW_DOCUMENTS", 256)
    windows = []
    original = softh_probe.run.streamed_feed.StreamedFeed._read_window

    def read_window(self):
        found = original(self)
        windows.append(tracemalloc.get_traced_memory()[0])
        return found

    monkeypatch.setattr(softh_probe.run.streamed_feed.StreamedFeed, "_read_window", read_window)
    wanted = config(
        data="words, for ever",
        labels=["input_unigram", "column:half"],
        stream=True,
        max_tokens=80_000,
        tokens_per_batch=4096,
        layers=["layer.1"],
        n_anchors=4,
    )
    n_read = [0]
    tracemalloc.start()
    try:
        result = run(wanted, documents=endless(n_read), progress=False)
    finally:
        tracemalloc.stop()
    assert 80_000 <= result.info["corpus"]["tokens"] < 80_100
    assert result.info["corpus"]["documents"] <= n_read[0] <= result.info["corpus"]["documents"] + 256
    assert result.info["corpus"]["data"] == "words, for ever"
    assert [label for name, label in result.labels if name == "column:half"] == ["0", "1"]
    assert len(windows) >= 7
    assert windows[-2] < 1.1 * windows[2]


def test_documents_of_ones_own_need_a_stream_and_the_columns_of_labels(config):
    with pytest.raises(InputError, match=r"documents: .* set stream=True"):
        run(config(), documents=[Document(content="a cat")], progress=False)
    with pytest.raises(InputError, match="documents: number 1 has no label column 'language'"):
        run(config(stream=True, labels=["column:language"]), documents=[Document(content="the cat")], progress=False)


def test_what_a_stream_cannot_do_is_refused_with_the_remedy(config):
    with pytest.raises(InputError, match=r"shuffle_seed: .*--max-documents"):
        config(stream=True, shuffle_seed=1)
    config(stream=True, shuffle_seed=1, max_documents=10)
    with pytest.raises(InputError, match=r"per_label: .*input_unigram.*leave out --stream"):
        config(stream=True, per_label=["input_unigram"])
    config(stream=True, labels=["column:language"], per_label=["column:language"])


def test_a_column_without_values_and_documents_that_are_too_short_are_refused(config, tmp_path):
    data = tmp_path / "some.jsonl"
    data.write_text("\n".join(json.dumps({"text": text, "language": None}) for text in TEXTS))
    with pytest.raises(InputError, match="column:language is null in every document"):
        run(config(data=str(data), stream=True, labels=["input_unigram", "column:language"]), progress=False)
    data.write_text("\n".join(json.dumps({"text": "cat"}) for _ in range(3)))
    with pytest.raises(InputError, match="labels: every document is too short"):
        run(config(data=str(data), stream=True, labels=["input_quadgram", "output_quadgram"]), progress=False)
    data.write_text("\n".join(json.dumps({"text": ""}) for _ in range(3)))
    with pytest.raises(InputError, match="none of 3 documents has any text"):
        run(config(data=str(data), stream=True), progress=False)


def test_a_shuffled_sample_is_that_of_a_planned_run(both):
    assert_equal_results(*both(shuffle_seed=3, max_documents=20))


def test_rows_that_are_bounded_hold_the_memory_that_was_said(config, capsys):
    run(config(stream=True, label_rows=50))
    told = capsys.readouterr().err
    assert "corpus: read as it comes; 30 documents with" in told
    line = next(line for line in told.splitlines() if "n-grams, at most" in line)
    assert line.split()[3:7] == ["?", "?", "50", "?"]


def test_a_dry_run_says_what_is_known_of_a_stream(config, rows):
    found = dry_run(config(**{**SETTINGS, "label_rows": 500}, data=str(rows), stream=True), progress=False)
    text, values = found.describe(), found.to_json()
    assert "corpus: read as it comes" in text
    assert "stream: batches of up to 60 tokens" in text
    assert "n-grams, at most" in text
    assert [values[name] for name in ("documents", "tokens", "positions", "batches")] == [None] * 4
    assert values["label_sets"]["n-grams, at most"]["rows"] == 500
    assert values["label_sets"]["column:language"] == {
        "labels": None,
        "rows": 1000,
        "memory_gib": pytest.approx(5 * 8 * 1000 * 43 / 2**30),
        "followed": None,
        "threshold": 1.0,
        "expected_se": 0.0,
    }
    assert values["corpus"]["documents_read"] is None
    json.dumps(values)


def test_too_little_memory_names_label_rows(config):
    with pytest.raises(
        InputError, match=r"on cpu\); set --label-rows 240000, for a sample of labels; or use fewer anchor sets"
    ):
        run(config(stream=True, label_rows=1_000_000, sums_memory_gb=0.1), progress=False)


def test_padding_that_reaches_real_tokens_is_found_on_the_first_window(config, monkeypatch):
    seen = []

    def choose(model, config, corpus, agree):
        seen.append(corpus.n_documents)
        return "equal lengths"

    monkeypatch.setattr("softh_probe.run.pipeline.choose_batching", choose)
    planned = run(config(label_rows="all"), progress=False)
    streamed = run(config(label_rows="all", stream=True, out=config().out + "-streamed"), progress=False)
    assert seen == [30, 30]
    assert_equal_results(planned, streamed)


def test_configurations_keep_whether_they_are_streamed(config):
    assert RunConfig(model="m", data="d", out="o").stream is False
    result = run(config(stream=True), progress=False)
    assert result.info["config"]["stream"] is True


def test_streamed_and_planned_results_of_the_same_tokens_are_comparable(both):
    planned, streamed = both()
    assert check_comparable([planned, streamed], ["planned", "streamed"]) == []
    other = ProbeResult.load(planned.info["config"]["out"])
    other.info["corpus"]["chained_sha256"] = "0" * 64
    (note,) = check_comparable([streamed, other], ["streamed", "other"])
    assert "tokens" in note
    other.info["corpus"]["texts_sha256"] = "0" * 64
    with pytest.raises(InputError, match="differ in their corpus"):
        check_comparable([streamed, other], ["streamed", "other"])


def test_a_page_is_written_of_a_streamed_run(config):
    result = run(config(stream=True, report=True), progress=False)
    page = (Path(result.info["config"]["out"]) / "report.html").read_text()
    assert result.info["corpus"]["chained_sha256"] in page
