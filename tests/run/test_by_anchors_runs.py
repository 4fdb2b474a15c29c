"""Runs with several numbers of anchors: files, snapshots, processes, memory and pages."""

import json
import signal
from pathlib import Path

import pandas as pd
import pytest
import yaml

from softh_probe import ProbeResult
from softh_probe.cli import main
from softh_probe.config import RunConfig
from softh_probe.errors import InputError
from softh_probe.report.figures import figures_of
from softh_probe.report.page import run_page
from softh_probe.run import run
from tests.helpers.comparisons import assert_same_but_corrections
from tests.run.test_processes import SETTINGS, together
from tests.run.test_snapshots import files_of, interrupt, stop_after  # noqa: F401 - a fixture

SEVERAL = {**SETTINGS, "n_anchors": "20, 12"}


@pytest.fixture
def whole(config, tmp_path) -> ProbeResult:
    return run(config(**SEVERAL, out=str(tmp_path / "whole")), progress=False)


def test_a_run_has_the_files_of_a_single_one_and_a_table_of_all(config, whole, tmp_path):
    single = {n: config(**{**SETTINGS, "n_anchors": n}, out=str(tmp_path / f"single-{n}")) for n in (20, 12)}
    for one in single.values():
        run(one, progress=False)
    files = files_of(tmp_path / "whole")
    for name, content in files_of(tmp_path / "single-20").items():
        assert files[name] == content, name
    table = pd.read_csv(tmp_path / "whole" / "by_anchors.csv", keep_default_na=False, na_values={"value": "", "sd": ""})
    of_other = table[table.n_anchors == 12]
    alone = pd.read_csv(tmp_path / "single-12" / "layers.csv")
    assert of_other.value.tolist() == pytest.approx(alone.value.tolist(), abs=0, nan_ok=True)
    written = yaml.safe_load((tmp_path / "whole" / "config.yaml").read_text())
    assert written["n_anchors"] == [20, 12]
    assert RunConfig(**written).n_anchors == (20, 12)
    assert whole.variants["n_anchors=12"].info["config"]["n_anchors"] == 12


def test_pages_and_figures_compare_them(whole):
    page = run_page(whole)
    assert 'id="by-anchors"' in page
    mean = whole.by_anchors().query("name == 'mean' and metric == 'entropy'").value
    assert all(f"<td>{value:.3f} ±" in page for value in mean)
    assert {"by_anchors", "by_anchors_entropy"} <= {*figures_of(whole)}
    lines = whole.plot("by_anchors_entropy").axes[0].get_lines()
    entropies = whole.by_anchors().query("metric == 'entropy' and name != 'mean'")
    for line, (_, of_one) in zip(lines, entropies.groupby("n_anchors", sort=False), strict=True):
        assert line.get_ydata().tolist() == of_one.value.tolist()


def test_an_interrupted_run_goes_on_with_all(config, whole, tmp_path, stop_after):  # noqa: F811
    stopped = config(**SEVERAL, out=str(tmp_path / "stopped"))
    interrupt(stopped, stop_after, 3, signal.SIGTERM)
    run(stopped, progress=False)
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "whole")


def test_two_processes_give_the_numbers_of_one(config, whole, tmp_path):
    shared = config(**SEVERAL, out=str(tmp_path / "shared"))
    assert [code for code, _ in together(shared, tmp_path)] == [0, 0]
    assert_same_but_corrections(ProbeResult.load(shared.out).by_anchors("nats"), whole.by_anchors("nats"))


def test_intervals_and_bins_are_those_of_the_first(config, tmp_path):
    settings = {**SETTINGS, "labels": ["input_unigram"], "intervals": True, "by_position": True, "report": False}
    single = run(config(**settings, n_anchors=20, out=str(tmp_path / "single")), progress=False)
    several = run(config(**settings, n_anchors="20,12", out=str(tmp_path / "several")), progress=False)
    pd.testing.assert_frame_equal(several.to_pandas(), single.to_pandas())
    pd.testing.assert_frame_equal(several.by_position(), single.by_position())
    table = several.by_anchors()
    assert table[(table.n_anchors == 20) & (table.metric == "entropy") & (table.name == "layer.1")].se.notna().all()
    assert table[table.n_anchors == 12].se.isna().all()


def test_the_memory_of_all_is_told_before(config, capsys):
    def bytes_of(n_anchors: str) -> float:
        words = ["run", "--dry-run", "--json", "--n-anchors", n_anchors, "--anchor-sets", "2"]
        given = config()
        assert main([*words, "--model", given.model, "--data", given.data, "--out", given.out]) == 0
        told = json.loads(capsys.readouterr().out)
        return told["sums_memory"]["total_gib"]

    directions = 5 * 24 * 8 / 2**30  # of five layers; no anchor decides them, so there is one sum
    assert bytes_of("20,12") == pytest.approx(bytes_of("20") + bytes_of("12") - directions, rel=1e-9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_anchors": "20,1"}, "n_anchors: expected at least 2, got 1"),
        ({"n_anchors": "20,many"}, "n_anchors: expected a whole number, or several with commas, got '20,many'"),
        ({"calibration": "exact,fast"}, "calibration: expected exact, leading_order, amos"),
        ({"calibration": [0.1, -1.0]}, "calibration: a temperature must be a positive finite number"),
    ],
)
def test_wrong_values_end_in_one_line(config, changes, message):
    with pytest.raises(InputError, match=message):
        config(**changes)


def test_the_command_line_takes_lists(config, tmp_path):
    given = config()
    words = ["--model", given.model, "--data", given.data, "--max-documents", "4", "--no-report", "--cache", "none"]
    words += ["--n-anchors", "20,12", "--calibration", "exact,amos,0.1", "--anchor-sets", "1"]
    assert main(["run", *words, "--out", str(tmp_path / "out")]) == 0
    assert len(ProbeResult.load(tmp_path / "out").variants) == 6
    assert main(["run", "--config", str(Path(tmp_path / "out" / "config.yaml")), "--overwrite"]) == 0
