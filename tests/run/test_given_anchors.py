"""Runs with anchors from a file."""

import numpy as np
import pytest
import torch
import yaml

from softh_probe import sample_anchors
from softh_probe.cli import main
from softh_probe.config import RunConfig
from softh_probe.errors import InputError
from softh_probe.run import run
from softh_probe.sweep import SweepConfig


@pytest.fixture
def anchors(tmp_path):
    """Two sets of 20 anchors of the width of the tiny checkpoint, as the kind iid draws them."""
    path = tmp_path / "anchors.npy"
    np.save(path, torch.stack([sample_anchors(20, 24, seed) for seed in (0, 1)]).numpy())
    return path


def test_a_run_with_a_file_measures_what_its_anchors_measure(config, anchors, tmp_path):
    drawn = run(config(anchor_sets=2, out=str(tmp_path / "drawn")), progress=False)
    given = run(config(anchors=str(anchors), out=str(tmp_path / "given"), anchor_sets=8), progress=False)
    assert torch.equal(given.tensors["mass"], drawn.tensors["mass"])
    assert given.info["anchors"][0]["recipe"] == "given"
    assert given.info["anchors"][0]["sha256"] == drawn.info["anchors"][0]["sha256"]
    written = yaml.safe_load((tmp_path / "given" / "config.yaml").read_text())
    assert (written["n_anchors"], written["anchor_sets"]) == (20, 2)
    again = RunConfig(**{**written, "out": str(tmp_path / "again")})
    assert torch.equal(run(again, progress=False).tensors["mass"], given.tensors["mass"])
    np.save(anchors, sample_anchors(20, 24, 7).numpy()[None].repeat(2, axis=0))
    with pytest.raises(
        InputError, match=r"anchors_sha256: expected the anchors with SHA-256 .* name the file they were"
    ):
        RunConfig(**{**written, "out": str(tmp_path / "third")})


def test_anchors_of_another_width_end_in_one_line(config, tmp_path, capsys):
    np.save(tmp_path / "wide.npy", sample_anchors(20, 32).numpy())
    given = config(anchors=str(tmp_path / "wide.npy"))
    words = ["run", "--model", given.model, "--data", given.data, "--out", given.out, "--anchors", given.anchors]
    assert main(words) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "anchors: they are for hidden states of width 32, and these are 24 wide" in said


def test_unknown_kinds_name_the_known_ones(config):
    with pytest.raises(
        InputError, match=r"anchors: expected iid, published, .* or a \.npy, \.npz or \.safetensors file"
    ):
        config(anchors="random")
    with pytest.raises(InputError, match=r"anchors: there is no file"):
        config(anchors="missing.npy")


def test_a_sweep_finds_the_file_from_anywhere(anchors, monkeypatch):
    monkeypatch.chdir(anchors.parent)
    config = SweepConfig(model="a/b", data="texts.jsonl", out="out", anchors=anchors.name)
    one = config.run_config(model="a/b", revision=None, out="out/a")
    assert one.anchors == str(anchors)
    assert (one.anchors_sha256, one.anchor_sets) == (config.anchors_sha256, 2)
