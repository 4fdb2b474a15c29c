"""The programs that put load on runs and sweeps, with little of it, and without looking at the clock."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from softh_probe import ProbeResult
from softh_probe.cli import main
from softh_probe.report import sweep_data
from softh_probe.result_files import LAYERS_PARQUET
from softh_probe.sweep import collect
from softh_probe.sweep.folder import SweepFolder
from tests.helpers.report_data import page_data, unpacked


def program(name: str):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[2] / "scripts" / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def load():
    return program("load")


def test_sums_labels_and_informations_are_those_of_another_count(load, tmp_path, capsys):
    found = load.measure(30_000, tmp_path, snapshot_minutes=1e-9)
    assert 30_000 <= found["positions"] < 31_000
    assert found["snapshots"]
    reference, result = load.Reference(30_000, tmp_path), ProbeResult.load(tmp_path)
    of_sums, of_information, wrong = load.deviations(result, reference, found["labels"])
    assert of_sums < 1e-6
    assert of_information < 1e-6
    assert not wrong
    assert capsys.readouterr().out.count(" labels, ") == 8
    # Differences are reported.
    result.tensors["mass"][1, 0, 3] *= 1.001
    result.tensors["conditional_entropy"][result.rows.index("layer.1"), 2] *= 1.001
    result.tensors["covered_positions"][:, 5] += 1
    of_sums, of_information, wrong = load.deviations(result, reference, found["labels"] + 1)
    assert of_sums > 9e-4
    assert of_information > 1e-4
    assert len(wrong) == 2


def test_a_smaller_corpus_is_the_beginning_of_a_larger_one(load):
    small, large = load.made_up_corpus(5_000), load.made_up_corpus(300_000)
    np.testing.assert_array_equal(small.tokens, large.tokens[: small.n_tokens])
    np.testing.assert_array_equal(small.lengths, large.lengths[: small.n_documents])


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """30 checkpoints, of which one failed and one waits, collected."""
    config, done = program("load_sweep").write_sweep(tmp_path_factory.mktemp("swept"), 30, 4)
    assert not collect(config.out).warnings
    return SweepFolder(config.out), config, done


@pytest.fixture
def without_page(monkeypatch):
    monkeypatch.setattr("softh_probe.sweep.collection._write_report", lambda _: None)


def test_a_made_up_sweep_is_listed_and_collected(swept, capsys, monkeypatch, without_page):
    folder, config, done = swept
    assert len(done) == 28
    assert main(["status", config.out]) == 0
    assert capsys.readouterr().out.startswith("28 done, 0 running, 1 failed, 1 waiting\nfailed   step2: out of memory")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["sweep", "--config", str(folder.path / "config.yaml"), "--dry-run"]) == 0
    assert "28 done, 0 running, 1 failed, 1 waiting" in capsys.readouterr().out
    before = pd.read_parquet(folder.path / "sweep.parquet")
    monkeypatch.setattr("softh_probe.sweep.collection._GROUP_SIZE", 5)
    collect(config.out)
    assert program("load_sweep").wrong(config, done) == []
    parquet = pd.read_parquet(folder.path / "sweep.parquet")
    pd.testing.assert_frame_equal(parquet, before)
    csv = pd.read_csv(folder.path / "sweep.csv", keep_default_na=False, na_values={"sd": "", "tokens": "", "value": ""})
    np.testing.assert_array_equal(csv.value, parquet.value)
    assert (csv.label_set == parquet.label_set).all()
    # What the check is there for: a table that is not the checkpoints' own.
    parquet.loc[parquet.index[5], "value"] += 1e-9
    parquet.to_parquet(folder.path / "sweep.parquet")
    assert program("load_sweep").wrong(config, done)
    before.to_parquet(folder.path / "sweep.parquet")


def test_a_result_whose_table_is_damaged_is_left_out_and_named(swept, without_page):
    folder, config, done = swept
    name = [*done][5]
    path = folder.result(done[name]) / LAYERS_PARQUET
    content = path.read_bytes()
    path.write_bytes(content[:4] + bytes(len(content) // 2) + content[4 + len(content) // 2 :])  # its end is whole
    found = collect(config.out)
    assert found.warnings == [f"damaged results are left out: {name}; run the sweep again to measure them anew"]
    assert pd.read_parquet(folder.path / "sweep.parquet").checkpoint.nunique() == len(done) - 1
    path.write_bytes(content)
    assert not collect(config.out).warnings


def test_a_page_of_very_many_checkpoints_draws_some_of_them_and_says_so(swept, monkeypatch, tmp_path):
    folder, config, done = swept
    assert "of those done are drawn" not in (folder.path / "report.html").read_text()
    table = pd.read_parquet(folder.path / "sweep.parquet").dropna(subset="layer")
    on_page = table[~table.metric.isin(sweep_data.NOT_SHOWN)]
    n_series = len(on_page[["metric", "label_set"]].drop_duplicates())
    monkeypatch.setattr(sweep_data, "MOST_VALUES", 4 * n_series * 10)
    monkeypatch.setattr("softh_probe.report.figure_files._draw", lambda *_: None)
    assert main(["report", config.out, "--out", str(tmp_path)]) == 0
    text, data = (tmp_path / "report.html").read_text(), page_data(tmp_path / "report.html")
    assert "28 done, 1 failed, 1 waiting; 10 of those done are drawn, evenly chosen; sweep.parquet holds all" in text
    drawn = [c["checkpoint"] for c in data["checkpoints"]]
    places = [[*done].index(name) for name in drawn]
    assert places == [0, 3, 6, 9, 12, 15, 18, 21, 24, 27]
    for i, name in enumerate(drawn):
        own = pd.read_parquet(folder.result(done[name]) / LAYERS_PARQUET)
        own = own[(own.metric == "mutual_information") & (own.label_set == "output_trigram") & own.layer.notna()]
        shown = unpacked(data["series"]["mutual_information|output_trigram"]["v"])[i]
        np.testing.assert_allclose(shown, own.value, atol=1e-5)


def test_states_of_all_are_those_of_each(swept, tmp_path):
    folder, _, _ = swept
    points = folder.known_points()
    assert folder.claims.take(points[2].folder)
    try:
        assert folder.states(points) == {point: folder.state(point) for point in points}
        assert [s.status for s in folder.states(points).values()].count("running") == 1
    finally:
        folder.claims.release(points[2].folder)
    assert SweepFolder(tmp_path / "none").states(points[:1])[points[0]].status == "waiting"
