"""Runs with --center: the mean of a sample beforehand, the same after an interruption and in all processes."""

import json
import signal

import pytest
import torch

from softh_probe import ProbeResult
from softh_probe.cli import main
from softh_probe.errors import InputError
from softh_probe.report.page import run_page
from softh_probe.run import run
from tests.helpers.comparisons import assert_same_but_corrections
from tests.run.test_processes import SETTINGS, together
from tests.run.test_snapshots import files_of, interrupt, stop_after  # noqa: F401 - a fixture

CENTERED = {**SETTINGS, "n_anchors": 20, "center": True}


@pytest.fixture
def whole(config, tmp_path) -> ProbeResult:
    return run(config(**CENTERED, out=str(tmp_path / "whole")), progress=False)


def test_published_rows_are_those_of_a_run_without(config, whole, tmp_path):
    without = run(config(**{**CENTERED, "center": False}, out=str(tmp_path / "without")), progress=False)
    rows = [whole.rows.index(row) for row in without.rows]
    for name, tensor in without.tensors.items():
        assert torch.equal(whole.tensors[name][rows].nan_to_num(), tensor.nan_to_num()), name
    assert whole.rows == [name for row in without.rows for name in (f"{row}.centered", row)]
    assert 20 < whole.info["center"]["positions"] <= 60
    assert "layer.1.centered" in (tmp_path / "whole" / "layers.csv").read_text()
    assert "centered" in run_page(whole)
    assert ProbeResult.load(tmp_path / "whole").sites == ["centered", "residual"]


def test_an_interrupted_run_goes_on_with_the_same_mean(config, whole, tmp_path, stop_after):  # noqa: F811
    stopped = config(**CENTERED, out=str(tmp_path / "stopped"))
    interrupt(stopped, stop_after, 3, signal.SIGTERM)
    assert run(stopped, progress=False).info["center"] == whole.info["center"]
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "whole")


def test_two_processes_subtract_the_same_mean(config, whole, tmp_path):
    shared = config(**CENTERED, out=str(tmp_path / "shared"))
    assert [code for code, _ in together(shared, tmp_path)] == [0, 0]
    assert_same_but_corrections(ProbeResult.load(shared.out).to_pandas("nats"), whole.to_pandas("nats"))
    assert ProbeResult.load(shared.out).info["center"] == whole.info["center"]


def test_streams_intervals_and_bins_take_it(config, tmp_path):
    stream = run(config(**{**CENTERED, "labels": ["input_unigram"], "per_label": []}, stream=True), progress=False)
    assert stream.sites == ["centered", "residual"]
    more = {**CENTERED, "intervals": True, "by_position": True, "out": str(tmp_path / "more")}
    table = run(config(**more), progress=False).to_pandas()
    assert table[(table.metric == "entropy") & (table.site == "centered")].se.notna().any()


def test_a_dry_run_lists_the_memory_of_all_rows(config, capsys):
    given = config()
    words = [
        "--model",
        given.model,
        "--data",
        given.data,
        "--out",
        given.out,
        "--n-anchors",
        "20",
        "--dry-run",
        "--json",
    ]
    sizes = []
    for more in ([], ["--center"]):
        assert main(["run", "--dry-run", "--json", *words, *more]) == 0
        sizes.append(json.loads(capsys.readouterr().out)["sums_memory"]["total_gib"])
    assert 1.5 < sizes[1] / sizes[0] < 2.1


def test_sites_without_the_residual_stream_cannot_be_centred(config):
    with pytest.raises(InputError, match="center: it is of the residual stream, and sites are mlp; add residual"):
        config(center=True, sites="mlp")
