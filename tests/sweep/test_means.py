"""The lines of means in the tables of a sweep."""

import json
from unittest import mock

import pandas as pd
import pytest

from softh_probe.report.points import read_points
from softh_probe.result_files import sealed
from softh_probe.sweep import SweepConfig, collect
from tests.helpers.models import tiny_llama
from tests.helpers.probes import NAMES
from tests.helpers.report_data import result_of
from tests.helpers.sweeps import collected_folder, info_of


@pytest.fixture(scope="module")
def results():
    found = {
        ("m", 1): result_of(tiny_llama(), labels=NAMES[:2]),
        ("n", 2): result_of(tiny_llama(num_hidden_layers=4), labels=NAMES[:2]),
    }
    found["m", 1].info["model"] |= {"model_type": "llama", "n_parameters": 77}
    return found


def again(folder, config="model: [run]") -> pd.DataFrame:
    (folder / "config.yaml").write_text(config)
    with mock.patch("softh_probe.sweep.collection._write_report", return_value=None):
        collect(folder)
    return pd.read_parquet(folder / "sweep.parquet")


def of_checkpoint(table: pd.DataFrame, step: int, columns) -> pd.DataFrame:
    return table[table.step == step].reset_index(drop=True)[list(columns)]


def test_the_table_has_the_lines_of_each_result(results, tmp_path):
    folder = collected_folder(tmp_path / "sweep", results)
    table = pd.read_parquet(folder / "sweep.parquet")
    assert str(table.layer.dtype) == "Int64"
    for (_, step), result in results.items():
        own = result.to_pandas()
        pd.testing.assert_frame_equal(of_checkpoint(table, step, own.columns), own)
    csv = pd.read_csv(folder / "sweep.csv", dtype={"layer": "Int64"})
    assert csv.layer.equals(table.layer)
    assert [(c.get("model_type"), c.get("n_parameters")) for c in info_of(folder)["checkpoints"]] == [
        ("llama", 77),
        (None, None),
    ]
    assert [(p.family, p.n_parameters) for p in read_points([folder])] == [("llama", 77), (None, None)]


def test_results_of_an_earlier_version_get_them_when_they_are_collected(results, tmp_path):
    folder = collected_folder(tmp_path / "sweep", results)
    whole = pd.read_parquet(folder / "sweep.parquet")
    for path in (folder / "checkpoints").glob("*/layers.parquet"):
        table = pd.read_parquet(path)
        table[table.layer.notna()].astype({"layer": "int64"}).to_parquet(path, index=False)
        head = json.loads((path.parent / "result.json").read_text())
        head = {name: value for name, value in head.items() if name not in ("files", "format", "sha256")}
        (path.parent / "result.json").write_text(json.dumps(sealed(head)))
    pd.testing.assert_frame_equal(again(folder), whole)


def test_the_sweep_says_over_which_layers(results, tmp_path):
    folder = collected_folder(tmp_path / "sweep", results)
    before = pd.read_parquet(folder / "sweep.parquet")
    chosen = again(folder, "model: [run]\nmean_over: [layer.1, -1]")
    for (_, step), result in results.items():
        own = result.averaged_over("layer.1,-1").to_pandas()
        pd.testing.assert_frame_equal(of_checkpoint(chosen, step, own.columns), own)
    pd.testing.assert_frame_equal(again(folder), before)


def test_another_choice_goes_on_with_the_same_sweep():
    config = {"model": "org/m", "data": "org/d", "out": "out"}
    one, other = (SweepConfig(**config, mean_over=layers) for layers in (None, "layer.1"))
    assert other.run_config(model="org/m", revision=None, out="out").mean_over == ("layer.1",)
    assert one.measured() == other.measured()
