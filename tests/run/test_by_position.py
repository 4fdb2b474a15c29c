"""Runs with --by-position: files, what stops and shares them, what is refused, and what is told before."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from torch import distributed as dist

import softh_probe.run.forward
from softh_probe import ProbeResult
from softh_probe.cli import main
from softh_probe.errors import InputError, Interrupted
from softh_probe.run import run
from tests.run.test_processes import SETTINGS, options_of, together

FILES = {"by_position.csv", "by_position.parquet", "by_position.safetensors"}


def in_bins(config, **changes):
    return config(**{**SETTINGS, "by_position": True, **changes})


def sums_of(folder) -> dict[str, bytes]:
    names = ("sums.safetensors", "layers.csv", *FILES)
    return {name: (Path(folder) / name).read_bytes() for name in names}


def test_the_folder_has_a_table_and_the_rest_is_as_without(config, tmp_path):
    plain = run(config(**SETTINGS, out=str(tmp_path / "plain")), progress=False)
    result = run(in_bins(config, out=str(tmp_path / "bins")), progress=False)
    assert {path.name for path in (tmp_path / "bins").iterdir()} == {
        path.name for path in (tmp_path / "plain").iterdir()
    } | FILES
    for name in ("sums.safetensors", "layers.csv"):
        assert (tmp_path / "bins" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    assert plain.bins == {}
    loaded = ProbeResult.load(tmp_path / "bins")
    pd.testing.assert_frame_equal(loaded.by_position(), result.by_position())
    assert [*loaded.bins] == ["1", "2-3", "4-7", "8-15", "16-31", "all"]  # no bigram ends at 0
    assert sum(b.info["positions"] for name, b in loaded.bins.items() if name != "all") == result.info["positions"]
    shown = loaded.bins["2-3"].conditional_entropy("input_unigram")
    assert len(shown)


def test_windows_are_documents_of_their_own(config):
    whole = run(in_bins(config, labels=["input_unigram"], per_label=[]), progress=False)
    assert [*whole.bins][-2] == "16-31"
    split = run(
        in_bins(config, labels=["input_unigram"], per_label=[], max_length=4, overflow="split", overwrite=True),
        progress=False,
    )
    assert [*split.bins] == ["0", "1", "2-3", "all"]
    assert split.bins["0"].info["positions"] == split.info["corpus"]["documents"]


def test_a_run_without_bins_leaves_no_files_of_them(config):
    run(in_bins(config), progress=False)
    run(config(**SETTINGS, overwrite=True), progress=False)
    out = Path(config().out)
    assert not FILES & {path.name for path in out.iterdir()}
    assert ProbeResult.load(out).bins == {}
    result = run(in_bins(config, overwrite=True), progress=False)
    result.save(out)
    plain = run(config(**SETTINGS, out=str(out.parent / "plain")), progress=False)
    plain.save(out)
    assert not FILES & {path.name for path in out.iterdir()}


@pytest.mark.parametrize("seed", range(3))
def test_stopped_at_random_places_the_sums_are_the_same_bit_for_bit(config, monkeypatch, tmp_path, seed):
    run(in_bins(config, out=str(tmp_path / "whole")), progress=False)
    stopped = in_bins(config, out=str(tmp_path / "stopped"))
    original, random = softh_probe.run.forward.pad_batch, np.random.default_rng(seed)
    stops = 0

    def pad_batch(corpus, documents):
        if random.random() < 0.3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(corpus, documents)

    monkeypatch.setattr(softh_probe.run.forward, "pad_batch", pad_batch)
    while True:
        try:
            run(stopped, progress=False)
            break
        except Interrupted:
            stops += 1
    assert stops
    assert sums_of(tmp_path / "stopped") == sums_of(tmp_path / "whole")


def test_a_run_with_a_sample_of_labels_resumes_to_the_same_bits(config, monkeypatch, tmp_path):
    run(in_bins(config, label_rows=24, out=str(tmp_path / "whole")), progress=False)
    original, calls = softh_probe.run.forward.pad_batch, iter(range(1000))

    def pad_batch(corpus, documents):
        if next(calls) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(corpus, documents)

    stopped = in_bins(config, label_rows=24, out=str(tmp_path / "stopped"))
    monkeypatch.setattr(softh_probe.run.forward, "pad_batch", pad_batch)
    with pytest.raises(Interrupted):
        run(stopped, progress=False)
    with pytest.raises(InputError, match=r"another configuration \(by_position: expected True, got False\)"):
        run(config(**SETTINGS, label_rows=24, out=stopped.out), progress=False)
    run(stopped, progress=False)
    assert sums_of(tmp_path / "stopped") == sums_of(tmp_path / "whole")
    table = ProbeResult.load(tmp_path / "stopped").by_position()
    assert (table.sampling_sd > 0).any()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
@pytest.mark.parametrize("label_rows", ["all", 24])
def test_two_processes_give_the_numbers_of_one(config, tmp_path, label_rows):
    shared = in_bins(config, label_rows=label_rows, out=str(tmp_path / "shared"), cache="none")
    assert [code for code, _ in together(shared, tmp_path)] == [0, 0]
    one = run(in_bins(config, label_rows=label_rows, out=str(tmp_path / "one")), progress=False)
    found, expected = ProbeResult.load(shared.out).by_position("nats"), one.by_position("nats")
    keys = ["name", "position", "label_set", "metric"]
    assert found[keys].equals(expected[keys])
    corrected = found.metric.str.contains("corrected")
    np.testing.assert_allclose(found.value[~corrected], expected.value[~corrected], rtol=1e-5, atol=1e-6)
    known = found.value.abs() < 10  # ratios of informations near 0 have no digits in common
    np.testing.assert_allclose(found.value[corrected & known], expected.value[corrected & known], atol=1e-2)


def test_intervals_are_of_all_positions_together(config):
    result = run(in_bins(config, intervals=True, per_label=[]), progress=False)
    assert result.to_pandas().se.notna().any()
    assert "se" not in result.by_position()


def test_a_stream_is_refused_in_one_line(config, capsys):
    with pytest.raises(InputError, match=r"^by_position: a stream .*; leave out --by-position, or leave out --stream$"):
        in_bins(config, stream=True, per_label=[])
    words = [word for word in options_of(config(labels=["input_unigram"])) if "stream" not in word]
    assert main(["run", *words, "--stream", "--by-position"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_the_memory_of_bins_is_told_and_counted_before_the_run(config, capsys, tmp_path):
    words = options_of(in_bins(config, label_rows="all"))
    assert main(["run", *words, "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    memory = planned["sums_memory"]["by_label_set_gib"]
    assert memory["by position"] > memory["all positions"]
    assert "by position" not in planned["label_sets"]
    result = run(in_bins(config), progress=False)
    anchors = sum(4 * of["sets"] * of["n_anchors"] * of["dim"] for of in result.info["anchors"]) / 2**30
    directions = 8 * len(result.rows) * result.info["anchors"][0]["dim"] / 2**30
    assert planned["sums_memory"]["total_gib"] == pytest.approx(sum(memory.values()) + anchors + directions)
    assert result.info["sums_memory"]["by_label_set_gib"]["by position"] == pytest.approx(memory["by position"])
    with pytest.raises(InputError, match=r"^sums_memory_gb: .*; leave out --by-position \(0\.\d\d GiB\); or "):
        run(in_bins(config, sums_memory_gb=memory["by position"] / 2, out=str(tmp_path / "no")), progress=False)


@pytest.mark.parametrize("damage", ["change", "cut", "remove", "entry", "names", "no bins"])
def test_damaged_files_are_refused(config, damage):
    run(in_bins(config), progress=False)
    out = Path(config().out)
    path = out / "by_position.safetensors"
    content = path.read_bytes()
    if damage in ("entry", "names", "no bins"):
        from softh_probe.result_files import sealed, unsealed

        head = unsealed((out / "result.json").read_text(), "x")
        bins = head["by_position"]["bins"]
        if damage == "entry":
            head["by_position"] = [1]
        elif damage == "names":
            bins["3-5"] = bins.pop("2-3")
        else:
            bins["2-3"]["label_sets"] = ["input_unigram", "x"]
        (out / "result.json").write_text(json.dumps(sealed(head)))
    elif damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content[:-9] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match=r"the result is damaged: .*(by_position|labels).*; copy it again"):
        ProbeResult.load(out)
