"""A dry run says what the run then does, loads no weights, and leaves the output folder alone."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MarianConfig, MarianMTModel, PreTrainedModel

from softh_probe.cache import cache_folder
from softh_probe.cli import main
from softh_probe.data.corpus import pad_batch
from softh_probe.errors import InputError, Interrupted
from softh_probe.run import forward, run
from softh_probe.run.dry_run import dry_run
from softh_probe.run.timing import Timing
from tests.helpers.interruptions import stop_after_three_batches
from tests.run.test_processes import options_of

LABELS = ["input_unigram", "output_bigram", "column:language"]


@pytest.fixture(autouse=True)
def no_weights(request, monkeypatch):
    """Loading weights fails, but in the runs that a dry run is compared with."""

    def allow():
        monkeypatch.undo()

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", lambda *_, **__: pytest.fail("weights were loaded"))
    monkeypatch.setattr("softh_probe.run.dry_run.time_run", lambda *_: "not here")  # the only one that loads them
    return allow


def test_a_dry_run_says_what_the_run_then_does(config, tmp_path, no_weights):
    wanted = config(labels=LABELS, tokens_per_batch=60, anchor_sets=2, layers=["layer.1", "final_norm"])
    found = dry_run(wanted, progress=False).to_json()
    assert not (tmp_path / "out").exists()
    no_weights()
    info = run(wanted, progress=False).info
    assert found["corpus"] == info["corpus"]
    assert found["config"] == info["config"]
    assert found["positions"] == info["positions"]
    assert found["tokens"] == info["tokens"]
    assert found["choices"] == info["choices"]
    assert found["warnings"] == info["warnings"]
    assert found["layers"] == {"layer.1": "cpu", "final_norm": "cpu"}
    for name, size in info["sums_memory"]["by_label_set_gib"].items():
        assert found["sums_memory"]["by_label_set_gib"][name] == size
    for name in LABELS:
        assert found["label_sets"][name]["memory_gib"] == info["sums_memory"]["by_label_set_gib"][name]
    assert {name: found["model"][name] for name in ("class", "model_type", "dtype", "n_parameters")} == {
        name: info["model"][name] for name in ("class", "model_type", "dtype", "n_parameters")
    }


def test_its_corpus_and_plan_are_those_of_the_run(config, no_weights, monkeypatch):
    dry_run(config(), progress=False)
    assert {path.name.split("-")[0] for path in cache_folder("auto").iterdir()} == {"corpus", "plan"}
    monkeypatch.setattr("softh_probe.data.prepared.tokenize", lambda *_, **__: pytest.fail("tokenised again"))
    monkeypatch.setattr("softh_probe.planned.plan.allocate_rows", lambda *_, **__: pytest.fail("planned again"))
    dry_run(config(), progress=False)


def test_json_alone_is_on_standard_output(config, capsys):
    assert main(["run", *options_of(config(labels=LABELS)), "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["documents"] == 30
    assert found["label_sets"]["column:language"]["labels"] == 2
    assert found["out"]["batches_done"] == 0
    assert main(["run", *options_of(config()), "--json"]) == 2
    assert "add --dry-run" in capsys.readouterr().err


def test_the_text_names_documents_batches_memory_and_place(config, capsys, tmp_path):
    assert main(["run", *options_of(config(labels=LABELS, tokens_per_batch=60)), "--dry_run"]) == 0
    out = capsys.readouterr().out
    for text in ("corpus: 30 documents, 455 tokens", "batches of up to 60 tokens", "column:language", "on cpu"):
        assert text in out
    assert "model: LlamaModel, 15,192 weights in float32" in out
    assert f"results: {tmp_path / 'out'}\n" in out


def test_a_sample_of_labels_is_told_and_is_that_of_the_run(config, capsys, tmp_path, no_weights):
    wanted = config(labels=LABELS, tokens_per_batch=60, label_rows=5)
    assert main(["run", *options_of(wanted), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "se: the standard error of the information to be expected of a sample of labels" in text
    assert main(["run", *options_of(wanted), "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    ngrams = [found["label_sets"][name] for name in ("input_unigram", "output_bigram")]
    assert sum(of_set["rows"] for of_set in ngrams) <= 5
    for of_set in ngrams:
        assert of_set["followed"] < of_set["labels"]
        assert of_set["threshold"] > 1
        assert f"{of_set['expected_se']:.5f}" in text
    language = found["label_sets"]["column:language"]
    assert (language["followed"], language["threshold"], language["expected_se"]) == (2, 1.0, 0.0)
    no_weights()
    assert run(wanted, progress=False).info["sums_memory"]["label_sets"] == {
        name: {key: of_set[key] for key in ("followed", "threshold", "expected_se")}
        for name, of_set in found["label_sets"].items()
    }


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"max_length": 5, "overflow": "split"}, None),
        ({"labels": ["input_quadgram", "output_quadgram"], "max_length": 5}, "every document is too short"),
        ({"text_column": "nowhere"}, "nowhere"),
        ({"layers": ["layer.9"]}, "no layer 'layer.9'"),
        ({"sums_memory_gb": 1e-9}, "sums_memory_gb: the sums of 5 layers take"),
        ({"device_map": "cuda:99"}, "no such device here"),
    ],
)
def test_it_finds_what_would_stop_the_run(config, changes, error, capsys):
    code = main(["run", *options_of(config(**changes)), "--dry-run"])
    assert (code == 0) == (error is None)
    assert (error or "") in capsys.readouterr().err


def test_documents_longer_than_the_model_takes_are_an_error(config, checkpoint, tmp_path):
    folder = tmp_path / "short"
    shutil.copytree(checkpoint, folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "max_position_embeddings": 8}))
    with pytest.raises(InputError, match="max_length"):
        dry_run(config(model=str(folder), max_length=20), progress=False)


def test_weights_may_come_later(config, checkpoint, tmp_path):
    folder = tmp_path / "config only"
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    found = dry_run(config(model=str(folder)), progress=False)
    assert found.to_json()["model"]["n_parameters"] == 15192
    assert any("model.safetensors" in text for text in found.warnings)


def test_the_encoder_of_an_encoder_decoder_is_what_would_be_measured(config, checkpoint, tmp_path):
    folder = tmp_path / "marian"
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    sizes = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 3, "vocab_size": 60, "pad_token_id": 0}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    MarianMTModel(MarianConfig(**sizes, **heads, decoder_start_token_id=0)).save_pretrained(folder)
    found = dry_run(config(model=str(folder)), progress=False).to_json()
    assert found["model"]["class"] == "MarianEncoder"
    assert list(found["layers"]) == ["embeddings", "layer.1", "layer.2"]


def test_results_and_snapshots_stay_as_they_are(config, tmp_path, no_weights, monkeypatch, capsys):
    no_weights()
    stop_after_three_batches(monkeypatch)
    with pytest.raises(Interrupted):
        run(config(tokens_per_batch=60), progress=False)
    monkeypatch.undo()
    before = sorted(path.relative_to(tmp_path) for path in (tmp_path / "out").rglob("*"))
    assert main(["run", *options_of(config(tokens_per_batch=60)), "--dry-run"]) == 0
    assert "which holds 4 batches of this run" in capsys.readouterr().out
    assert main(["run", *options_of(config(tokens_per_batch=60, seed=1)), "--dry-run"]) == 2
    assert "unfinished run of another configuration" in capsys.readouterr().err
    assert main(["run", *options_of(config(tokens_per_batch=60, seed=1, overwrite=True)), "--dry-run"]) == 0
    assert sorted(path.relative_to(tmp_path) for path in (tmp_path / "out").rglob("*")) == before
    run(config(tokens_per_batch=60), progress=False)
    assert main(["run", *options_of(config(tokens_per_batch=60)), "--dry-run"]) == 2
    assert "already holds the results of a run" in capsys.readouterr().err


def test_weights_to_come_leave_less_memory_for_sums(config, monkeypatch):
    monkeypatch.setattr("softh_probe.planned.memory.free_bytes", lambda _: 100_000)
    with pytest.raises(InputError, match=r"there are 0\.00 GiB for them"):
        dry_run(config(labels=["input_unigram"]), progress=False)
    monkeypatch.setattr("softh_probe.planned.memory.free_bytes", lambda _: 10_000_000)
    found = dry_run(config(labels=["input_unigram"]), progress=False)
    assert found.memory.budgets["cpu"] == 10_000_000 - int(0.8 * 4 * 15192)
    assert found.model["weights_gib"]["cpu"] == pytest.approx(4 * 15192 / 2**30)
    assert found.layers["layer.1"] == torch.device("cpu")


@pytest.mark.parametrize("stream", [False, True])
def test_weights_that_are_at_hand_are_timed_with_the_probe(config, tmp_path, no_weights, stream):
    no_weights()
    wanted = config(labels=LABELS, tokens_per_batch=60, anchor_sets=2, stream=stream)
    found = dry_run(wanted, progress=False, timed=True)
    assert isinstance(found.timing, Timing)
    assert found.timing.batches == (5 if found.feed.n_batches is None or found.feed.n_batches > 5 else 1)
    assert found.timing.tokens_per_second > 0
    assert found.timing.device == "cpu"
    if found.feed.n_tokens is not None:
        assert found.timing.seconds == pytest.approx(found.feed.n_tokens / found.timing.tokens_per_second)
    assert f"{found.timing.tokens_per_second:,.0f} tokens/s on cpu with the probe" in found.describe()
    assert found.to_json()["timing"]["batches"] == found.timing.batches
    assert not (tmp_path / "out").exists()
    untimed = dry_run(wanted, progress=False).to_json()
    assert {**found.to_json(), "timing": None} == untimed


def test_the_first_pass_is_not_timed_and_batches_are_evenly_chosen(config, no_weights, monkeypatch):
    no_weights()
    fed = []
    monkeypatch.setattr(
        "softh_probe.run.forward.run_backbone",
        lambda model, ids, mask, run=forward.run_backbone: (fed.append(ids.tolist()), run(model, ids, mask)),
    )
    found = dry_run(config(tokens_per_batch=60), progress=False, timed=True)
    plan = found.feed.rows
    chosen = [plan.batches[i] for i in np.linspace(0, len(plan.batches) - 1, 5).astype(int)]
    expected = [pad_batch(plan.corpus, documents)[0].tolist() for documents in chosen]
    assert fed == [expected[0], *expected]


def test_a_reason_is_told_where_nothing_can_be_timed(config, no_weights, tmp_path):
    no_weights()
    folder = tmp_path / "bare"
    shutil.copytree(config().model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    found = dry_run(config(model=str(folder)), progress=False, timed=True)
    assert "time: not known: the weights are not on this machine yet" in found.describe()
    shutil.copytree(config().model, tmp_path / "broken")
    weights = load_file(tmp_path / "broken" / "model.safetensors")
    save_file(
        {name: value * float("nan") for name, value in weights.items()}, tmp_path / "broken" / "model.safetensors"
    )
    found = dry_run(config(model=str(tmp_path / "broken")), progress=False, timed=True)
    assert "time: not known: " in found.describe()
    assert "not finite" in found.describe()
