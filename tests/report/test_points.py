"""Points of models: of results, of sweeps, and of several of them."""

import json
import math

import pandas as pd
import pytest

from softh_probe import ProbeResult
from softh_probe.analysis.model_points import point_of
from softh_probe.errors import InputError
from softh_probe.report.points import read_points, sweep_points
from softh_probe.report.sweep_files import read_sweep
from tests.helpers.models import tiny_llama
from tests.helpers.probes import NAMES
from tests.helpers.report_data import result_of, save, sweep_folder


@pytest.fixture(scope="module")
def result():
    found = result_of(tiny_llama(), labels=NAMES[:2])
    found.info["model"] |= {"model": "org/tiny", "model_type": "llama", "n_parameters": 1234, "revision": "main"}
    return found


def row_of(table: pd.DataFrame) -> dict:
    own = table[table.name == "mean"]
    return dict(zip(zip(own.label_set, own.metric, strict=True), own.value, strict=True))


def test_a_result_is_a_point_with_the_values_of_its_mean(result):
    point = point_of(result, name="tiny", step=7)
    expected = row_of(result.to_pandas())
    assert point.values.keys() == expected.keys() >= {("", "entropy"), ("unigram", "optimality_mean_of_layers")}
    for key, value in expected.items():
        assert point.values[key].value == pytest.approx(value, nan_ok=True)
    assert point.values["", "entropy"].sd > 0
    assert math.isnan(point.values["", "entropy"].se)
    assert (point.model, point.revision, point.family, point.n_parameters) == ("org/tiny", "main", "llama", 1234)
    assert (point.name, point.step, point.series) == ("tiny", 7, "")


def test_the_point_of_a_trainers_evaluation_is_of_its_run(result):
    result = ProbeResult(**{**vars(result), "info": {**result.info, "evaluation": {"run": "pretraining", "step": 200}}})
    point = point_of(result, name="tiny")
    assert (point.series, point.step) == ("pretraining", 200)


def test_a_result_without_blocks_has_no_point():
    none = result_of(tiny_llama(), labels=(), layers=["embeddings", "final_norm"])
    with pytest.raises(InputError, match=r"tiny: the result has no row 'mean', .* by mean_over"):
        point_of(none, name="tiny")
    assert point_of(none.averaged_over("embeddings"), name="tiny").values


def test_a_sweep_has_a_point_for_each_checkpoint_that_its_layers_do_not_see(tmp_path):
    folder = sweep_folder(tmp_path / "sweep", n_checkpoints=3)
    written = pd.read_parquet(folder / "sweep.parquet")
    sweep = read_sweep(folder)
    assert "mean" not in {*sweep.table.name, *sweep.table.name.cat.categories}
    assert not sweep.table.metric.str.endswith("_mean_of_layers").any()
    assert str(sweep.table.layer.dtype) == "int64"
    assert {*sweep.means.name} == {"mean"}
    assert len(sweep.means) + len(sweep.table) == len(written)
    points = sweep_points(sweep)
    assert [(p.name, p.step, p.tokens, p.series) for p in points] == [
        (f"step{step}", step, 1000 * step, "org/tiny") for step in (0, 1, 3)
    ]
    for point in points:
        expected = row_of(written[written.checkpoint == point.name])
        for key, value in expected.items():
            assert point.values[key].value == pytest.approx(value, nan_ok=True)
    read = read_points([folder])
    assert [(p.name, p.folder) for p in read] == [(p.name, str(folder / p.folder)) for p in points]
    assert all(repr(a.values) == repr(b.values) for a, b in zip(read, points, strict=True))


def test_checkpoints_without_a_step_stand_alone(tmp_path):
    folder = sweep_folder(tmp_path / "sweep", n_checkpoints=2)
    info = json.loads((folder / "sweep.json").read_text())
    for i, checkpoint in enumerate(info["checkpoints"]):
        checkpoint |= {
            "step": None,
            "model": f"org/{i}",
            "source": f"org/{i}",
            "model_type": "llama",
            "n_parameters": i + 1,
        }
    (folder / "sweep.json").write_text(json.dumps(info))
    points = read_points([folder])
    assert [(p.model, p.series, p.step, p.family, p.n_parameters) for p in points] == [
        (f"org/{i}", "", None, "llama", i + 1) for i in range(2)
    ]


def test_results_and_sweeps_are_read_together_under_names_of_their_own(result, tmp_path):
    alike = [save(result, tmp_path / name) for name in ("a", "b")]
    sweeps = [sweep_folder(tmp_path / name, n_checkpoints=1) for name in ("one", "two")]
    points = read_points([*alike, *sweeps, sweeps[0]])
    assert len(points) == len({point.name for point in points}) == 5
    assert [point.name for point in points[2:4]] == ["step0 (one)", "step0 (two)"]
    assert [point.folder for point in points[:2]] == [str(folder) for folder in alike]


def test_other_layers_are_read_of_the_results(result, tmp_path):
    sweep = sweep_folder(tmp_path / "sweep", n_checkpoints=1)
    whole, one = (read_points([save(result, tmp_path / "a"), sweep], mean_over=m) for m in (None, "layer.2"))
    expected = result.to_pandas().query("name == 'layer.2' and metric == 'entropy'").value.item()
    assert one[0].values["", "entropy"].value == pytest.approx(expected)
    assert one[1].values["", "entropy"].value != whole[1].values["", "entropy"].value
    assert one[1].step == 0
    with pytest.raises(InputError, match=r"mean_over: no layer 'layer\.77'"):
        read_points([tmp_path / "a"], mean_over="layer.77")


def test_a_sweep_that_an_earlier_version_collected_is_read_from_its_results(tmp_path):
    folder = sweep_folder(tmp_path / "sweep", n_checkpoints=1)
    expected = read_points([folder])
    table = pd.read_parquet(folder / "sweep.parquet")
    table[table.layer.notna()].astype({"layer": "int64"}).to_parquet(folder / "sweep.parquet", index=False)
    assert sweep_points(read_sweep(folder)) == []
    (found,) = read_points([folder])
    assert (found.name, found.step, found.series) == ("step0", 0, "org/tiny")
    assert found.values.keys() == expected[0].values.keys()


def test_no_folder_and_none_of_results_are_refused(tmp_path):
    with pytest.raises(InputError, match="expected at least one folder of results, got none"):
        read_points([])
    with pytest.raises(InputError, match="holds no result"):
        read_points([tmp_path])
