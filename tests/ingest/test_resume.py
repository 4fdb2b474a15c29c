"""Measurements of folders that are stopped or killed go on from their last snapshot, and end in the same result."""

import os
import signal
import subprocess
import sys
import time

import pytest

from softh_probe import ProbeResult
from softh_probe.cli import main
from softh_probe.errors import InputError, Interrupted
from softh_probe.ingest import feeding, ingest, reading
from tests.helpers.fed_states import documents, random_states
from tests.helpers.stored_states import ROWS, assert_same, metered, store_all

LENGTHS = (23, 7, 41, 5, 18, 30, 9, 12)


@pytest.fixture
def stored(tmp_path):
    docs = documents(*LENGTHS)
    states = random_states(docs, ROWS)
    files = store_all(tmp_path / "states", docs, states)
    files[1].write_bytes(b"damaged")
    return [docs[i] for i in range(8) if i != 1], [states[i] for i in range(8) if i != 1]


def stop_at(monkeypatch, name, number=signal.SIGTERM):
    """Send a signal to this process as it reads the file of that name."""
    original = reading.feed_file

    def feed_file(meter, states, **options):
        original(meter, states, **options)
        if options["name"] == name:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(reading, "feed_file", feed_file)


@pytest.mark.parametrize("piece", [None, 8])
def test_a_stopped_measurement_goes_on_and_gives_the_same_sums(configured, tmp_path, stored, monkeypatch, piece):
    with monkeypatch.context() as patched:
        stop_at(patched, "req-04.safetensors")
        with pytest.raises(Interrupted, match="SIGTERM after 5 of 8 files; the same command resumes from there"):
            ingest(configured(tokens_per_batch=piece), progress=False)
    assert not (tmp_path / "out" / "result.json").exists()
    read = []
    original = reading.feed_file
    monkeypatch.setattr(reading, "feed_file", lambda m, s, **o: (read.append(o["name"]), original(m, s, **o)))
    result = ingest(configured(tokens_per_batch=piece), progress=False)
    assert read == [f"req-{i:02d}.safetensors" for i in (5, 6, 7)]
    assert_same(result, metered(*stored, piece=piece))
    assert result.info["interruptions"] == 1
    assert result.info["ingest"]["skipped"] == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == []


@pytest.mark.parametrize(
    ("change", "error"),
    [({"seed": 1}, r"another configuration \(seed: expected 0, got 1\)"), ({"layers": "1,3"}, "another configuration")],
)
def test_other_settings_do_not_go_on(configured, stored, monkeypatch, change, error):
    with monkeypatch.context() as patched:
        stop_at(patched, "req-04.safetensors")
        with pytest.raises(Interrupted):
            ingest(configured(layout="vllm", layers="1,2"), progress=False)
    with pytest.raises(InputError, match=error):
        ingest(configured(layout="vllm", **{"layers": "1,2", **change}), progress=False)
    assert_same(ingest(configured(layout="vllm", layers="1,2"), progress=False), metered(*stored))


def test_other_files_do_not_go_on_and_may_start_anew(configured, tmp_path, stored, monkeypatch):
    with monkeypatch.context() as patched:
        stop_at(patched, "req-04.safetensors")
        with pytest.raises(Interrupted):
            ingest(configured(), progress=False)
    (tmp_path / "states" / "req-06.safetensors").touch()
    with pytest.raises(InputError, match="since the unfinished measurement in this folder began, files changed"):
        ingest(configured(), progress=False)
    result = ingest(configured(resume=False), progress=False)
    assert_same(result, metered(*stored))
    assert result.info["interruptions"] == 0


def test_finished_results_are_not_overwritten_unasked(configured, stored):
    ingest(configured(), progress=False)
    with pytest.raises(InputError, match="already holds the results of a run"):
        ingest(configured(), progress=False)
    ingest(configured(overwrite=True), progress=False)


def test_a_file_that_becomes_damaged_while_it_is_added_ends_the_run(configured, stored, tmp_path, monkeypatch):
    """Its first pieces are in the sums: they are given up, and the run goes on from the snapshot before."""
    calls = iter(range(1000))
    original = feeding._piece

    def piece(states, begin, end, device):
        part = original(states, begin, end, device)
        if next(calls) == 4 * 3:  # of the last piece of the second pass over a file of three pieces
            part["layer.1"][0] = 0
        return part

    with monkeypatch.context() as patched:
        patched.setattr(feeding, "_piece", piece)
        with pytest.raises(InputError, match=r"it changed while it was read: .* goes on from the last snapshot"):
            ingest(configured(tokens_per_batch=8, snapshot_minutes=1e-9), progress=False)
    assert_same(ingest(configured(tokens_per_batch=8), progress=False), metered(*stored, piece=8))


WORKER = """
import time
from softh_probe.ingest import reading
original = reading.feed_file
def slow(*arguments, **options):
    original(*arguments, **options)
    print(options["name"], flush=True)
    time.sleep(0.3)
reading.feed_file = slow
from softh_probe.cli import main
main()
"""


def words(tmp_path, checkpoint, out):
    return [
        *("ingest", str(tmp_path / "states"), "--tokenizer", str(checkpoint), "--out", str(out)),
        *("--layout", "vllm", "--layers", "1,2", "--n-anchors", "12", "--anchor-sets", "2", "--no-report"),
        *("--labels", "input_unigram,output_bigram", "--snapshot-minutes", "1e-9"),
    ]


@pytest.mark.slow
def test_a_killed_command_goes_on_with_the_same_command(tmp_path, checkpoint, stored):
    command = words(tmp_path, checkpoint, tmp_path / "out")
    with subprocess.Popen([sys.executable, "-c", WORKER, *command], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("req-04"):
                time.sleep(0.1)
                process.kill()
    assert process.returncode == -signal.SIGKILL
    assert main(command) == 0
    result = ProbeResult.load(tmp_path / "out")
    assert result.info["interruptions"] == 1
    assert_same(result, metered(*stored))
