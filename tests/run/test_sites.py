"""Runs of several sites and of named modules: planned, streamed, resumed, in processes; their memory is told before."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from softh_probe import ProbeResult, SoftEntropyProbe
from softh_probe.cli import main
from softh_probe.config import RunConfig
from softh_probe.errors import InputError, Interrupted
from softh_probe.run import run
from softh_probe.run.dry_run import dry_run
from tests.helpers import architectures
from tests.helpers.comparisons import assert_same_values
from tests.helpers.interruptions import stop_after_three_batches
from tests.run.test_processes import together

SITES = "residual,attention,mlp,attention_heads"
SETTINGS = {"sites": SITES, "labels": ["input_unigram", "column:language"], "tokens_per_batch": 60}
IN_BLOCK = ["attention", "head.0", "head.1", "head.2", "head.3", "mlp"]
ROWS = [
    "embeddings",
    *(row for i in (1, 2, 3) for row in (*(f"layer.{i}.{part}" for part in IN_BLOCK), f"layer.{i}")),
    "final_norm",
]


def test_a_run_has_a_row_for_each_site_whichever_others_are_measured(config):
    result = run(config(**SETTINGS), progress=False)
    assert result.rows == ROWS
    assert result.sites == ["attention", "attention_heads", "mlp", "residual"]
    table = result.to_pandas()
    assert list(table.columns)[-1] == "site"
    assert table[table.name == "layer.2.head.3"][["layer", "site"]].drop_duplicates().values.tolist() == [
        [2, "attention_heads"]
    ]
    means = ["mean", "mean.attention", "mean.attention_heads", "mean.mlp"]
    assert list(table.name.drop_duplicates()) == [*ROWS, *means]
    for row in ("layer.2.mlp", "layer.2.head.3", "final_norm"):
        alone = run(config(**{**SETTINGS, "layers": [row], "out": f"{config().out}-{row}"}), progress=False)
        assert alone.rows == [row]
        mine = table[table.name == row].value.to_numpy(float)
        np.testing.assert_array_equal(alone.to_pandas(means=False).value.to_numpy(float), mine)
    assert ProbeResult.load(config().out).to_pandas().equals(table)


def test_a_run_measures_what_a_probe_that_is_attached_does(config, checkpoint, data):
    result = run(config(**{**SETTINGS, "labels": []}), progress=False)
    model, tokenizer = AutoModel.from_pretrained(checkpoint).eval(), AutoTokenizer.from_pretrained(checkpoint)
    probe = SoftEntropyProbe(model, labels=(), n_anchors=20, sites=SITES, anchor_sets=1)
    with probe, torch.no_grad():
        for line in data.read_text().splitlines():
            model(**tokenizer(json.loads(line)["text"], return_tensors="pt"))
    assert probe.layers == result.rows
    torch.testing.assert_close(probe.result().tensors["mass"], result.tensors["mass"], rtol=1e-5, atol=1e-6)


def test_without_sites_the_table_is_as_ever(config):
    result = run(config(labels=[]), progress=False)
    assert "site" not in result.to_pandas()
    assert result.sites == ["residual"]


def test_a_streamed_run_measures_the_same(config):
    planned = run(config(**SETTINGS), progress=False)
    streamed = run(config(**SETTINGS, stream=True, out=config().out + "-2"), progress=False)
    assert streamed.rows == ROWS
    assert_same_values(planned.to_pandas(), streamed.to_pandas())


def test_a_run_that_is_stopped_goes_on(config, monkeypatch):
    wanted = config(**SETTINGS)
    whole = run(config(**SETTINGS, out=wanted.out + "-2"), progress=False)
    with pytest.raises(Interrupted), monkeypatch.context() as patch:
        stop_after_three_batches(patch)
        run(wanted, progress=False)
    with pytest.raises(InputError, match="sites: expected"):
        run(config(**{**SETTINGS, "sites": "residual"}), progress=False)
    again = run(wanted, progress=False)
    assert again.info["interruptions"] == 1
    for name, values in whole.tensors.items():
        torch.testing.assert_close(again.tensors[name], values, rtol=0, atol=0, equal_nan=True)


@pytest.mark.slow
def test_processes_add_up_to_one(config, tmp_path):
    alone = run(config(**SETTINGS, out=str(tmp_path / "alone")), progress=False)
    wanted = config(**SETTINGS, out=str(tmp_path / "both"))
    assert [code for code, _ in together(wanted, tmp_path)] == [0, 0]
    assert_same_values(alone.to_pandas(), ProbeResult.load(wanted.out).to_pandas())


def test_intervals_are_those_of_each_row(config):
    result = run(config(**SETTINGS, intervals=True), progress=False)
    table = result.to_pandas()
    se = table[(table.metric == "mutual_information") & (table.label_set == "input_unigram")].set_index("name").se
    assert se[["layer.2.mlp", "layer.2.head.3", "layer.2"]].gt(0).all()
    residual = run(config(**{**SETTINGS, "sites": "residual"}, intervals=True, out=config().out + "-2"), progress=False)
    own = residual.to_pandas().query("metric == 'entropy'").set_index("name").se
    both = table[table.metric == "entropy"].set_index("name").se
    np.testing.assert_allclose(both[own.index], own, rtol=1e-6)


def test_a_dry_run_tells_rows_and_memory_by_site(config):
    wanted = config(**SETTINGS)
    found = dry_run(wanted, progress=False)
    said = found.to_json()
    info = run(wanted, progress=False).info
    assert list(said["layers"]) == ROWS
    assert said["sums_memory"]["by_site_gib"] == info["sums_memory"]["by_site_gib"]
    by_site = said["sums_memory"]["by_site_gib"]
    assert by_site["attention_heads"] == pytest.approx(4 * by_site["attention"])
    assert "by site: residual 5 rows" in found.describe()
    assert "attention_heads 12 rows" in found.describe()


def test_the_anchors_of_each_width_are_counted(config):
    one = dry_run(config(labels=[]), progress=False).memory
    both = dry_run(config(labels=[], sites="residual,attention_heads", out=config().out + "-2"), progress=False).memory
    assert one.anchors == {"cpu": 4 * 20 * 24}
    assert both.anchors == {"cpu": 4 * 20 * (24 + 6)}
    assert both.directions == {"cpu": 8 * (5 * 24 + 12 * 6)}
    assert both.bytes_by_place["cpu"] == 17 * both.bytes_per_layer + 4 * 20 * 30 + 8 * (5 * 24 + 12 * 6)


def test_too_little_memory_is_told_before_the_model_is_loaded(config):
    with pytest.raises(InputError, match=r"the sums of 23 layers take .* use fewer anchor sets, sites or layers"):
        dry_run(config(**SETTINGS, sums_memory_gb=1e-5), progress=False)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_modules_are_measured_by_the_names_that_a_pattern_writes(config, checkpoint, prefix):
    wanted = config(modules=f"{prefix}layers.*.mlp.act_fn,{prefix}norm", labels="input_unigram")
    said = dry_run(wanted, progress=False).to_json()
    result = run(wanted, progress=False)
    names = [*(f"{prefix}layers.{i}.mlp.act_fn" for i in range(3)), f"{prefix}norm"]
    assert result.rows == names == list(said["layers"])
    assert result.places.n_blocks == 0
    assert result.to_pandas().layer.drop_duplicates().tolist() == [0, 1, 2, 3]
    normed = run(config(labels="input_unigram", layers=["final_norm"], out=wanted.out + "-2"), progress=False)
    ours = result.to_pandas().query("layer == 3").value.to_numpy(float)
    np.testing.assert_allclose(ours, normed.to_pandas().value.to_numpy(float), rtol=1e-6)


def test_a_pattern_that_matches_nothing_names_paths_that_there_are(config):
    with pytest.raises(
        InputError, match=r"modules: 'layers\.\*\.mpl' matches no module of LlamaModel; .*layers\.0\.mlp"
    ):
        run(config(modules="layers.*.mpl"), progress=False)


def test_configurations_are_checked():
    paths = {"model": "m", "data": "d", "out": "o"}
    assert RunConfig(**paths, sites="residual,mlp").sites == ("mlp", "residual")
    assert RunConfig(**paths, sites=["attention"]).sites == ("attention",)
    assert RunConfig(**paths, modules="a.*,b").modules == ("a.*", "b")
    for changes, message in (
        ({"sites": "atn"}, "sites: no site 'atn'"),
        ({"sites": ""}, "sites: expected any of"),
        ({"modules": ""}, "modules: expected at least one"),
        ({"modules": "a", "sites": "mlp"}, "sites: they are those of blocks"),
    ):
        with pytest.raises(InputError, match=message):
            RunConfig(**paths, **changes)


def test_layers_lists_the_rows_of_sites_and_modules(checkpoint, capsys):
    assert main(["layers", str(checkpoint), "--sites", "attention,attention_heads"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [line[0] for line in lines][:6] == [
        "layer.1.attention",
        *(f"layer.1.head.{h}" for h in range(4)),
        "layer.2.attention",
    ]
    assert lines[0][1:] == ["layers.0.self_attn.o_proj", "Linear", "24", "cpu"]
    assert lines[1][1:] == ["layers.0.self_attn.o_proj", "input", "of", "Linear", "6", "cpu"]
    assert main(["layers", str(checkpoint), "--modules", "layers.*.mlp"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == [
        f"layers.{i}.mlp" for i in range(3)
    ]
    assert main(["layers", str(checkpoint), "--modules", "layers.0.mlp,layers.0.mlp.*_proj"]) == 0
    assert [line.split()[-2] for line in capsys.readouterr().out.splitlines()[1:]] == ["-", "32", "32", "24"]
    assert main(["layers", str(checkpoint), "--sites", "router"]) == 2
    assert "no block of LlamaModel has a mixture of experts" in capsys.readouterr().err


def test_a_mixture_is_run_with_its_router(tmp_path, config):
    model = architectures.build("causal", "mixtral", "MixtralForCausalLM")
    model.save_pretrained(tmp_path / "mixtral")
    tokenizer = config().model
    result = run(
        config(model=str(tmp_path / "mixtral"), tokenizer=tokenizer, sites="router,mlp", labels="input_unigram"),
        progress=False,
    )
    assert result.rows == [f"layer.{i}.{site}" for i in (1, 2, 3, 4) for site in ("router", "mlp")]
    assert [anchors["dim"] for anchors in result.info["anchors"]] == [4, 64]


def test_a_snapshot_of_before_is_of_the_residual_stream(config, monkeypatch):
    wanted = config(labels=["input_unigram"], tokens_per_batch=60)
    with pytest.raises(Interrupted), monkeypatch.context() as patch:
        stop_after_three_batches(patch)
        run(wanted, progress=False)
    from softh_probe.run.snapshots import Snapshots

    original = Snapshots.newest

    def of_before(self):
        progress, state = original(self)
        for name in ("sites", "modules"):
            progress.run["config"].pop(name)
        state["settings"].pop("sites")
        return progress, state

    monkeypatch.setattr(Snapshots, "newest", of_before)
    assert run(wanted, progress=False).info["interruptions"] == 1


def test_results_know_their_sites(config, tmp_path):
    result = run(config(**SETTINGS), progress=False)
    info = json.loads((tmp_path / "out" / "result.json").read_text())
    assert info["settings"]["sites"] == result.sites
