"""Streamed runs that are stopped anywhere, or measured by several processes, give the same sums."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from torch import distributed as dist

import softh_probe.run.forward
import softh_probe.run.streamed_feed
from softh_probe.data.documents import Document
from softh_probe.errors import InputError, Interrupted
from softh_probe.result import ProbeResult
from softh_probe.run import run
from tests.helpers.corpora import LANGUAGES, TEXTS
from tests.run.test_processes import together

SETTINGS = {
    "labels": ["input_unigram", "output_unigram", "input_bigram", "column:language", "output_trigram"],
    "anchor_sets": 2,
    "tokens_per_batch": 60,
    "stream": True,
    "label_rows": 60,
}


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    """Windows of 16 documents."""
    monkeypatch.setattr(softh_probe.run.streamed_feed, "WINDOW_DOCUMENTS", 16)
    monkeypatch.setattr("softh_probe.data.token_stream._CHUNK_DOCUMENTS", 8)


def write_rows(path: Path, n: int = 60) -> str:
    """Write n rows with texts that differ."""
    rows = [
        json.dumps({"text": f"{TEXTS[i % 30]} {TEXTS[i * 7 % 30]} {TEXTS[i * 11 % 29]}", "language": LANGUAGES[i % 30]})
        for i in range(n)
    ]
    path.write_text("\n".join(rows))
    os.utime(path, (1, 1))  # the data is identified by its time and size
    return str(path)


@pytest.fixture
def data(tmp_path) -> str:
    return write_rows(tmp_path / "texts.jsonl")


def files_of(folder: str) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in Path(folder).iterdir() if p.suffix in (".safetensors", ".csv", ".parquet")}


def signals(monkeypatch, at: dict[int, int]) -> None:
    """Send signals to this process as batches are prepared, counted in each run."""
    original, calls = softh_probe.run.forward.pad_batch, iter(range(1000))

    def pad_batch(corpus, documents):
        if number := at.get(next(calls)):
            os.kill(os.getpid(), number)
        return original(corpus, documents)

    monkeypatch.setattr(softh_probe.run.forward, "pad_batch", pad_batch)


@pytest.mark.parametrize("stops", [[0], [3, 0, 5], [11, 11], [2] * 12])
def test_stopped_anywhere_the_sums_are_the_same_bit_for_bit(config, monkeypatch, tmp_path, stops, capsys):
    whole = run(config(**SETTINGS, out=str(tmp_path / "whole")), progress=False)
    wanted = config(**SETTINGS)
    for batch in stops:
        with monkeypatch.context() as patched:
            signals(patched, {batch: signal.SIGTERM})
            with pytest.raises(Interrupted, match=r"after \d+ batches; the same command resumes from there"):
                run(wanted, progress=False)
    resumed = run(wanted)
    assert f"resuming after {sum(stops) + len(stops)} batches" in capsys.readouterr().err
    assert files_of(wanted.out) == files_of(str(tmp_path / "whole"))
    assert resumed.info["interruptions"] == len(stops)
    assert all(label_set["followed"] < 60 for label_set in resumed.info["label_sampling"].values())
    for name in ("corpus", "choices", "warnings", "positions", "tokens", "labelled_positions"):
        assert resumed.info[name] == whole.info[name], name
    assert not (Path(wanted.out) / "unfinished").exists()


def test_documents_that_are_done_are_not_tokenised_again(config, monkeypatch):
    wanted = config(**SETTINGS)
    with monkeypatch.context() as patched:
        signals(patched, {45: signal.SIGTERM})
        with pytest.raises(Interrupted):
            run(wanted, progress=False)
    encoded = []
    original = softh_probe.data.token_stream.encode

    def encode(tokenizer, contents, **settings):
        encoded.extend(contents)
        return original(tokenizer, contents, **settings)

    monkeypatch.setattr("softh_probe.data.token_stream.encode", encode)
    run(wanted, progress=False)
    assert 0 < len(encoded) <= 28


def test_documents_that_cannot_be_read_keep_the_work_before_them(config, tmp_path, data, capsys):
    rows = [json.loads(line) for line in Path(data).read_text().splitlines()]
    documents = [Document(content=row["text"], columns={"language": row["language"]}) for row in rows]

    def until_the_connection_is_lost():
        yield from documents[:45]
        raise InputError("data: the connection is lost")

    whole = run(config(**SETTINGS, out=str(tmp_path / "whole")), documents=documents, progress=False)
    wanted = config(**SETTINGS)
    with pytest.raises(InputError, match="the connection is lost"):
        run(wanted, documents=until_the_connection_is_lost(), progress=False)
    resumed = run(wanted, documents=iter(documents))
    assert "resuming after" in capsys.readouterr().err
    assert files_of(wanted.out) == files_of(str(tmp_path / "whole"))
    assert resumed.info["corpus"] == whole.info["corpus"]


def test_too_many_values_of_a_column_are_refused_and_the_work_kept(config, tmp_path, monkeypatch):
    monkeypatch.setattr("softh_probe.planned.streamed.KEPT_LABELS", 20)
    data = tmp_path / "ids.jsonl"
    data.write_text("\n".join(json.dumps({"text": text, "id": i}) for i, text in enumerate(TEXTS)))
    wanted = config(stream=True, labels=["input_unigram", "column:id"], data=str(data), tokens_per_batch=60)
    with pytest.raises(InputError, match=r"column:id has more than 20 values.*leave out --stream"):
        run(wanted, progress=False)
    (snapshot,) = (Path(wanted.out) / "unfinished" / "snapshots").iterdir()
    assert int(snapshot.name) >= 3


def test_other_data_and_other_documents_are_no_continuation(config, monkeypatch, data):
    wanted = config(**SETTINGS)
    with monkeypatch.context() as patched:
        signals(patched, {40: signal.SIGTERM})
        with pytest.raises(Interrupted):
            run(wanted, progress=False)
    text = Path(data).read_text()
    Path(data).write_text(text.replace("cat", "dog"))
    os.utime(data, (1, 1))
    with pytest.raises(InputError, match=r"data: the first \d+ documents are others than .* --no-resume"):
        run(wanted, progress=False)
    Path(data).write_text(text)
    with pytest.raises(InputError, match="since the unfinished run in this folder began, data changed"):
        run(wanted, progress=False)


def test_a_damaged_file_of_labels_is_recognised(config, monkeypatch, tmp_path):
    run(config(**SETTINGS, out=str(tmp_path / "whole")), progress=False)
    wanted = config(**SETTINGS)
    for batch in (5, 3):
        with monkeypatch.context() as patched:
            signals(patched, {batch: signal.SIGTERM})
            with pytest.raises(Interrupted):
                run(wanted, progress=False)
    newest = max((Path(wanted.out) / "unfinished" / "snapshots").iterdir()) / "labels.safetensors"
    newest.write_bytes(newest.read_bytes()[:-4] + b"\1\2\3\4")
    run(wanted, progress=False)
    assert files_of(wanted.out) == files_of(str(tmp_path / "whole"))


@pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
def test_several_processes_give_the_numbers_of_one(config, tmp_path):
    settings = {**SETTINGS, "label_rows": 5000, "snapshot_minutes": 0}
    one = run(config(**settings, out=str(tmp_path / "one")), progress=False)
    wanted = config(**settings)
    assert [code for code, _ in together(wanted, tmp_path, count=3)] == [0, 0, 0]
    found = ProbeResult.load(wanted.out)
    assert found.info["processes"] == 3
    for name in ("corpus", "positions", "tokens", "labelled_positions"):
        assert found.info[name] == one.info[name], name
    a, b = (r.to_pandas("nats").set_index(["name", "label_set", "metric"]) for r in (one, found))
    assert a.index.equals(b.index)
    np.testing.assert_allclose(b.value, a.value, rtol=1e-6, atol=1e-6)
    assert sorted(found.labels) == sorted(one.labels)


@pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
def test_several_processes_that_are_stopped_go_on_to_the_same_sums_bit_for_bit(config, tmp_path):
    whole, stopped = (config(**SETTINGS, snapshot_minutes=0, out=str(tmp_path / name)) for name in ("whole", "stopped"))
    assert [code for code, _ in together(whole, tmp_path)] == [0, 0]

    def before(rank: int) -> None:
        with pytest.MonkeyPatch.context() as patched:
            signals(patched, {[3, 7][rank]: signal.SIGTERM})
            changed = softh_probe.run.forward.pad_batch
        softh_probe.run.forward.pad_batch = changed

    assert [code for code, _ in together(stopped, tmp_path, before)] == [143, 143]
    assert [code for code, _ in together(stopped, tmp_path)] == [0, 0]
    assert files_of(stopped.out) == files_of(whole.out)


@pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
def test_more_processes_than_batches_are_no_error(config, tmp_path):
    few = {**SETTINGS, "tokens_per_batch": 4096, "max_documents": 5}
    one = run(config(**few, out=str(tmp_path / "one")), progress=False)
    assert [code for code, _ in together(config(**few), tmp_path, count=3)] == [0, 0, 0]
    found = ProbeResult.load(config().out)
    for name, tensor in one.tensors.items():  # a process has one thread: sums are added in another order
        np.testing.assert_allclose(found.tensors[name], tensor, rtol=1e-6, atol=1e-9, err_msg=name)
