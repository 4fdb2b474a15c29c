"""`mean_over`: the layers of the row `mean` in a run, which changes nothing that is measured."""

import json

import pandas as pd
import pytest

from softh_probe.analysis.comparable import check_comparable
from softh_probe.errors import InputError
from softh_probe.result import ProbeResult
from softh_probe.run import run
from softh_probe.run.dry_run import dry_run


@pytest.mark.parametrize("mean_over", ["layer.1, layer.2", ["layer.2", 1]])
def test_a_run_averages_the_layers_that_are_named(config, mean_over, tmp_path):
    plain = run(config(out=str(tmp_path / "plain")), progress=False)
    chosen = run(config(mean_over=mean_over), progress=False)
    assert "mean_over" not in plain.info
    assert chosen.mean_rows == {"mean": ["layer.1", "layer.2"]}
    assert ProbeResult.load(tmp_path / "out").info["mean_over"] == ["layer.1", "layer.2"]
    pd.testing.assert_frame_equal(chosen.to_pandas(means=False), plain.to_pandas(means=False))
    pd.testing.assert_frame_equal(plain.averaged_over([1, 2]).to_pandas(), chosen.to_pandas())
    assert not chosen.to_pandas().equals(plain.to_pandas())
    assert check_comparable([plain, chosen], ["a", "b"]) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mean_over": "layer.9"}, r"mean_over: no layer 'layer\.9' is measured; expected any of embeddings, layer\.1"),
        ({"mean_over": "layer.2", "layers": "layer.1"}, r"mean_over: no layer 'layer\.2' is measured"),
    ],
)
def test_a_layer_that_is_not_measured_is_refused_before_the_model_runs(config, changes, said, monkeypatch, tmp_path):
    with pytest.raises(InputError, match=said):
        dry_run(config(**changes), progress=False)
    monkeypatch.setattr("softh_probe.run.pipeline.run_batches", lambda *_, **__: pytest.fail("the model ran"))
    with pytest.raises(InputError, match=said):
        run(config(**changes), progress=False)
    assert not (tmp_path / "out" / "result.json").exists()


def test_none_and_what_is_no_layer_are_refused_with_the_configuration(config):
    with pytest.raises(InputError, match="mean_over: expected at least one, got none; null averages the blocks"):
        config(mean_over="")
    assert config(mean_over="layer.1,-1").mean_over == ("layer.1", -1)


def test_the_configuration_keeps_what_was_asked_for(config, tmp_path):
    run(config(mean_over="1,-1"), progress=False)
    info = json.loads((tmp_path / "out" / "result.json").read_text())
    assert info["config"]["mean_over"] == [1, -1]
    assert info["mean_over"] == ["layer.1", "final_norm"]
