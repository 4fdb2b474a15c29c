"""Runs from end to end, on tiny models and on the real one: files, errors, memory."""

import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from softh_probe import ProbeResult, sample_anchors, temperature
from softh_probe.cli import main
from softh_probe.config import RunConfig
from softh_probe.errors import InputError, ProbeError
from softh_probe.run import run
from tests.helpers import references
from tests.helpers.comparisons import assert_same_values
from tests.helpers.corpora import LANGUAGES, TEXTS
from tests.helpers.models import tiny_llama
from tests.helpers.probes import NAMES, NGRAMS, value


def tokens_of(checkpoint, texts=TEXTS):
    return PreTrainedTokenizerFast.from_pretrained(checkpoint)(texts)["input_ids"]


@pytest.mark.parametrize("tokens_per_batch", [1, 60, 4096])
def test_a_run_equals_every_document_alone(config, checkpoint, tokens_per_batch):
    result = run(config(labels=[*NAMES, "column:language"], tokens_per_batch=tokens_per_batch), progress=False)
    docs = tokens_of(checkpoint)
    model = LlamaForCausalLM.from_pretrained(checkpoint)
    columns = {"column:language": LANGUAGES}
    expected = references.measure(model, docs, NGRAMS, sample_anchors(20, 24).numpy(), temperature(20, 24), columns)
    for row, mass_SM in zip(result.rows, result.tensors["mass"], strict=True):
        q = expected.q[row]
        np.testing.assert_allclose(mass_SM[0], q.sum(axis=0), rtol=1e-5)
        for name in NAMES:
            information = references.mutual_information(q, expected.labels[name])
            assert value(result, row, "mutual_information", name) == pytest.approx(information, abs=1e-6)
        labels = np.array(expected.labels["column:language"])
        has = labels != None  # noqa: E711 - elementwise
        information = references.mutual_information(q[has], labels[has].tolist())
        assert value(result, row, "mutual_information", "column:language") == pytest.approx(information, abs=1e-6)
    assert result.info["positions"] == len(expected.labels["input_unigram"])


def test_a_column_of_a_single_value_is_told_once(config, tmp_path):
    data = tmp_path / "one.jsonl"
    data.write_text("\n".join(json.dumps({"text": text, "language": "en"}) for text in TEXTS))
    result = run(config(data=str(data), labels=["column:language"]), progress=False)
    told = [text for text in result.info["warnings"] if "the single value 'en'" in text]
    assert len(told) == 1
    assert told[0].startswith("column:language: ")


def test_the_output_folder_holds_what_was_found_and_where_it_comes_from(config, checkpoint, tmp_path):
    result = run(config(report=True, labels=["input_unigram", "output_unigram"], anchor_sets=2), progress=False)
    out = tmp_path / "out"
    drawn = ("overview", "entropy", "information", "chance", "optimality", "plane", "shares")
    figures = {f"{name}.{suffix}" for name in drawn for suffix in ("png", "svg")}
    names = {"config.yaml", "layers.csv", "layers.parquet", "report.html", "result.json"} | figures
    assert {path.name for path in out.iterdir()} == names | {"sums.safetensors"}
    table = result.to_pandas()
    pd.testing.assert_frame_equal(pd.read_parquet(out / "layers.parquet"), table)
    csv = pd.read_csv(
        out / "layers.csv", keep_default_na=False, na_values={"sd": "", "layer": ""}, dtype={"layer": "Int64"}
    )
    pd.testing.assert_frame_equal(csv, table, check_dtype=False)
    assert list(table.columns) == ["layer", "name", "label_set", "metric", "value", "sd"]
    assert load_file(out / "sums.safetensors")["mass"].dtype == torch.float64
    info = json.loads((out / "result.json").read_text())
    docs = tokens_of(checkpoint)
    assert info["tokens"] == info["corpus"]["tokens"] == sum(map(len, docs))
    assert info["positions"] == sum(len(d) - 1 for d in docs)
    assert info["corpus"]["documents"] == info["corpus"]["documents_read"] == 30
    assert len(info["corpus"]["sha256"]) == len(info["model"]["weights_sha256"]) == 64
    assert [a["dim"] for a in info["anchors"]] == [24]
    assert set(info["seconds"]) == {"load", "tokenise", "plan", "forward", "finish"}
    assert info["tokens_per_second"] > 0
    assert info["peak_memory_gib"]["host"] > 0
    assert info["versions"]["torch"] == torch.__version__
    assert info["model"]["trust_remote_code"] is False


def test_a_report_that_fails_costs_no_result(config, tmp_path, monkeypatch, capsys):
    def fail(result, folder):
        raise OSError("no font")

    monkeypatch.setattr("softh_probe.report.page.write_run_report", fail)
    run(config(report=True))
    assert "the report could not be written (OSError: no font)" in capsys.readouterr().err
    loaded = ProbeResult.load(tmp_path / "out")
    assert any("no font" in text for text in loaded.info["warnings"])


def test_a_result_reads_back_and_a_damaged_one_is_refused(config, tmp_path):
    result = run(config(labels=["column:language"]), progress=False)
    out = tmp_path / "out"
    again = ProbeResult.load(out)
    pd.testing.assert_frame_equal(again.to_pandas("bits"), result.to_pandas("bits"))
    pd.testing.assert_frame_equal(
        again.conditional_entropy("column:language"), result.conditional_entropy("column:language")
    )
    assert again.info == json.loads(json.dumps(result.info))
    with pytest.raises(InputError, match=r"holds no result: result\.json is missing"):
        ProbeResult.load(tmp_path)
    sums = (out / "sums.safetensors").read_bytes()
    (out / "sums.safetensors").write_bytes(sums[:100])
    with pytest.raises(InputError, match="damaged"):
        ProbeResult.load(out)


def test_the_saved_configuration_repeats_the_result(config, tmp_path):
    first = run(config(labels=["input_bigram"], anchor_sets=2, max_length=9, overflow="split"), progress=False)
    saved = tmp_path / "out" / "config.yaml"
    assert yaml.safe_load(saved.read_text())["max_length"] == 9
    assert main(["run", "--config", str(saved), "--out", str(tmp_path / "again")]) == 0
    again = ProbeResult.load(tmp_path / "again")
    assert torch.equal(again.tensors["mass"], first.tensors["mass"])
    pd.testing.assert_frame_equal(again.to_pandas(), first.to_pandas())


def test_the_order_of_documents_does_not_matter(config, data, tmp_path):
    first = run(config(labels=NAMES, tokens_per_batch=80), progress=False)
    lines = data.read_text().splitlines()
    data.write_text("\n".join(reversed(lines)))
    second = run(config(labels=NAMES, tokens_per_batch=80, out=str(tmp_path / "again")), progress=False)
    np.testing.assert_allclose(second.tensors["mass"], first.tensors["mass"], rtol=1e-5)
    assert_same_values(second.to_pandas("nats"), first.to_pandas("nats"))
    assert second.info["corpus"]["sha256"] != first.info["corpus"]["sha256"]


def test_the_head_is_not_run(config, monkeypatch):
    monkeypatch.setattr(LlamaForCausalLM, "forward", lambda *_, **__: pytest.fail("the head was run"))
    assert run(config(), progress=False).info["model"]["class"] == "LlamaModel"


def test_preference_pairs_give_the_information_about_preference(config, tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    rows = [
        {"chosen": f"yes the cat sat {'and saw ' * (i % 3)}", "rejected": "dogs again ." * (1 + i % 2)}
        for i in range(20)
    ]
    pairs.write_text("\n".join(map(json.dumps, rows)))
    names = ["column:text_column", "input_unigram"]
    result = run(config(data=str(pairs), text_column="chosen,rejected", labels=names), progress=False)
    assert result.info["corpus"]["documents"] == 40
    table = result.conditional_entropy("column:text_column").query("name == 'layer.1'")
    assert sorted(table.label) == ["chosen", "rejected"]
    assert 0 < value(result, "layer.1", "mutual_information", "column:text_column") <= math.log(2)


def test_documents_too_short_are_told(config, data):
    data.write_text(data.read_text() + '\n{"text": "a", "language": "en"}')
    result = run(config(labels=["input_quadgram", "output_quadgram"]), progress=False)
    assert result.info["corpus"]["documents_too_short"] >= 1
    assert "shorter than the 8 tokens" in result.info["warnings"][0]


def test_rows_are_chosen_by_index_too(config):
    assert run(config(layers="0,-1"), progress=False).rows == ["embeddings", "final_norm"]


def test_a_column_of_nulls_is_refused(config, data):
    data.write_text("\n".join(json.dumps({"text": text, "language": None}) for text in TEXTS))
    with pytest.raises(InputError, match="labels: column:language is null in every document"):
        run(config(labels=["column:language"]), progress=False)


def test_a_tokenizer_of_another_vocabulary_is_refused(config, checkpoint, tmp_path):
    tiny_llama(vocab_size=5).save_pretrained(tmp_path / "small")
    for file in checkpoint.glob("tokenizer*"):
        (tmp_path / "small" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(InputError, match="the model has embeddings for 5; tokenizer and weights have to be of one"):
        run(config(model=str(tmp_path / "small")), progress=False)


def test_the_output_folder_may_be_a_link_to_another_file_system(config, tmp_path):
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as elsewhere:
        (tmp_path / "out").symlink_to(elsewhere)
        run(config(), progress=False)
        run(config(seed=1, overwrite=True), progress=False)
        assert ProbeResult.load(tmp_path / "out").info["settings"]["seed"] == 1
        assert not [path for path in Path(elsewhere).iterdir() if path.name.startswith(".")]


def test_overwriting_is_asked_for(config, tmp_path):
    run(config(), progress=False)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    before = (tmp_path / "out" / "result.json").read_bytes()
    with pytest.raises(InputError, match="already holds the results of a run; name another folder, or add --overwrite"):
        run(config(seed=1), progress=False)
    assert (tmp_path / "out" / "result.json").read_bytes() == before
    result = run(config(seed=1, overwrite=True), progress=False)
    assert ProbeResult.load(tmp_path / "out").info["settings"]["seed"] == result.info["settings"]["seed"] == 1
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def damage_weights(folder: Path, how: str) -> None:
    weights = folder / "model.safetensors"
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-200])
    elif how == "garbage":
        weights.write_bytes(b"\xff" * 1000)
    else:
        weights.unlink()


def as_options(config: RunConfig, **changes) -> list[str]:
    values = {"model": config.model, "data": config.data, "out": config.out, **changes}
    return [f"--{name.replace('_', '-')}={setting}" for name, setting in values.items()]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "./nowhere"}, "nowhere"),
        ({"data": "./nowhere.jsonl"}, "nowhere.jsonl"),
        ({"split": "nope"}, "nope"),
        ({"text_column": "body"}, "body"),
        ({"labels": "column:colour"}, "colour"),
        ({"labels": "input_pentagram"}, "expected any of input_unigram"),
        ({"n_anchors": 1}, "n_anchors: expected at least 2, got 1"),
        ({"n_anchors": "many"}, "n_anchors: expected a whole number, or several with commas, got 'many'"),
        ({"anchor_kind": 3}, "anchor_kind: no such field"),
        ({"dtype": "int3"}, "int3"),
        ({"overflow": "wrap"}, "overflow: expected truncate or split, got 'wrap'"),
        ({"max_length": 4, "labels": "input_quadgram,output_quadgram"}, "every document is too short"),
        ({"max_length": 4096, "sample_by": "page"}, "sample_by"),
        ({"layers": "layer.77"}, "layers: no layer 'layer.77'"),
        ({"layers": ""}, "layers: expected at least one, got none"),
        ({"device_map": "cuda:99"}, "cuda:99"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(config, tmp_path, capsys, changes, message):
    before = sorted(tmp_path.iterdir())
    assert main(["run", *as_options(config(), **changes)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("softh-probe: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("how", ["truncated", "garbage", "missing"])
def test_damaged_weights_are_one_line(config, checkpoint, tmp_path, capsys, how):
    import shutil

    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    damage_weights(copy, how)
    assert main(["run", *as_options(config(model=str(copy)))]) == 2
    assert "copy" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["", "\n\n", '{"text": null}\n', "{broken"])
def test_empty_or_broken_data_is_one_line(config, data, tmp_path, capsys, content):
    data.write_text(content)
    assert main(["run", *as_options(config())]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("softh-probe: ")
    assert not (tmp_path / "out").exists()


def test_a_document_longer_than_the_model_takes_is_refused(config, data):
    data.write_text(json.dumps({"text": "the cat " * 200}))
    with pytest.raises(InputError, match=r"documents of up to 128 tokens, the longest here has .* --max-length 128"):
        run(config(max_length=512), progress=False)


def bert2bert():
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = EncoderDecoderConfig.from_encoder_decoder_configs(*(BertConfig(vocab_size=150, **sizes) for _ in range(2)))
    return EncoderDecoderModel(config)


def t5():
    return T5ForConditionalGeneration(T5Config(vocab_size=150, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2))


BART_SIZES = {"d_model": 16, "encoder_layers": 2, "encoder_ffn_dim": 32, "encoder_attention_heads": 2}
BART_SIZES |= {"decoder_layers": 1, "decoder_ffn_dim": 32, "decoder_attention_heads": 2, "max_position_embeddings": 64}


def bart():
    return BartForConditionalGeneration(BartConfig(vocab_size=150, **BART_SIZES))


def marian():
    """Its positions are in no checkpoint, but computed."""
    return MarianMTModel(MarianConfig(vocab_size=150, decoder_vocab_size=150, pad_token_id=149, **BART_SIZES))


@pytest.mark.parametrize("make", [t5, bart, marian, bert2bert])
def test_of_an_encoder_decoder_the_encoder_reads_the_documents(config, checkpoint, tmp_path, capsys, make):
    torch.manual_seed(0)
    model, folder = make().eval(), tmp_path / "model"
    model.save_pretrained(folder)
    for file in checkpoint.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    result = run(config(model=str(folder), labels=NAMES[:2]))
    lines = capsys.readouterr().err
    assert "model: an encoder-decoder, whose encoder reads the documents; to measure its decoder, attach to" in lines
    assert result.info["model"]["stack"] == "encoder"
    encoder, anchors = model.get_encoder(), sample_anchors(20, 16).numpy()
    expected = references.measure(encoder, tokens_of(checkpoint), NGRAMS[:2], anchors, temperature(20, 16))
    assert result.rows[:3] == ["embeddings", "layer.1", "layer.2"]
    assert (result.rows[-1] == "final_norm") == (make is t5)
    for row, mass_SM in zip(result.rows, result.tensors["mass"], strict=True):
        np.testing.assert_allclose(mass_SM[0], expected.q[row].sum(axis=0), rtol=1e-5)
        for name in NAMES[:2]:
            information = references.mutual_information(expected.q[row], expected.labels[name])
            assert value(result, row, "mutual_information", name) == pytest.approx(information, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n_anchor: 5", "n_anchor: no such field (did you mean n_anchors?); valid are: model,"),
        ("n_anchors: {five: 6}", "n_anchors: expected int, str or a list of int"),
        ("labels: [", "config"),
        ("!!python/object/apply:os.system ['true']", "config"),
        ("seed: 3\nseed: 4", "seed stands twice; give each field once"),
        ("seed: 010", "line 1: 010 is another number, or none, to YAML"),  # 8
        ("seed: 1:30", "line 1: 1:30 is another number"),  # 90
        ("seed: " + "9" * 5000, "is another number, or none, to YAML"),
        ("seed: !!int abc", "is another number, or none, to YAML"),
        ("seed: 2020-13-45", "cannot be read as YAML: month must be in 1..12"),
        ("labels: &a [*a]", "nest too deeply or are too many"),
        ("a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\nlabels: [*c,*c]", "nest too deeply or are too many"),
        ("labels: " + "[" * 3000, "values nest too deeply"),
        ("labels: !!set {a, b}", "tagged 'tag:yaml.org,2002:set'"),
        ("? [a]\n: b", "line 1: expected the name of a field, got a list or a mapping"),
        ("5: 3", "expected the name of a field, got '5'"),
        ("hello", "expected a line `field: value` for each field"),
        ("labels: [1, 2]", "labels: expected str or a list of str, got '[1, 2]'"),
        ("\0", "cannot be read as YAML"),
    ],
)
def test_a_wrong_configuration_file_is_one_line(config, tmp_path, capsys, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert main(["run", "--config", str(path), *as_options(config())]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert message in err


def test_a_configuration_file_of_another_encoding(config, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_bytes("seed: 3".encode("utf-16"))
    assert main(["run", "--config", str(tmp_path / "mine.yaml"), *as_options(config())]) == 2
    assert "cannot be read as YAML: 'utf-8' codec" in capsys.readouterr().err


def test_a_missing_configuration_file_is_one_line(config, capsys):
    assert main(["run", "--config", "nowhere.yaml", *as_options(config())]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "nowhere.yaml" in err


def test_a_layer_without_usable_states_stops_the_run_at_the_first_batch(config, checkpoint, tmp_path):
    model = tiny_llama(vocab_size=150)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.fill_(float("nan"))
    model.save_pretrained(tmp_path / "nan")
    for file in checkpoint.glob("tokenizer*"):
        (tmp_path / "nan" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ProbeError, match=r"layer\.2: hidden states are zero or not finite at \d+ of \d+"):
        run(config(model=str(tmp_path / "nan")), progress=False)
    assert not (tmp_path / "out").exists()


def test_an_unforeseen_failure_is_one_line_too_and_debug_shows_it(config, monkeypatch, capsys):
    monkeypatch.setattr("softh_probe.run.run", lambda *_, **__: 1 / 0)
    assert main(["run", *as_options(config())]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        main(["run", "--debug", *as_options(config())])


def test_help_and_print_config_explain_every_field(config, capsys):
    for words in (["run", "--help"], ["run", *as_options(config()), "--print_config"]):
        with pytest.raises(SystemExit) as exit_:
            main(words)
        assert exit_.value.code == 0
        text = " ".join(capsys.readouterr().out.split())
        assert "Tokens a document (or window) has at most;" in text
        for name in RunConfig.__dataclass_fields__:
            assert name in text.replace("-", "_")


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_configurations_are_valid(path):
    RunConfig(**yaml.safe_load(path.read_text()))


MEASURE_PEAK = """
import sys
from softh_probe.config import RunConfig
from softh_probe.run import run
model, data, out = sys.argv[1:]
result = run(RunConfig(model=model, data=data, out=out, max_length=128, n_anchors=20), progress=False)
print(result.info["tokens"], result.info["peak_memory_gib"]["host"] * 1024)
"""


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_number_of_documents(checkpoint, tmp_path):
    """Eight times the documents: kept hidden states would add 0.5 KB a token, some 90 MB; tokens add 4 bytes."""
    peaks = []
    for times in (1, 8):
        data = tmp_path / f"{times}.txt"
        data.write_text("\n".join(["the cat sat on the mat and saw 2 dogs again . " * 12] * 250 * times))
        words = [sys.executable, "-c", MEASURE_PEAK, str(checkpoint), str(data), str(tmp_path / f"out{times}")]
        out = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
        peaks.append((int(out[0]), float(out[1])))
    (few, small), (many, large) = peaks
    assert many == 8 * few
    assert many > 150_000
    assert large - small < 30, f"{few} tokens: {small:.0f} MB, {many} tokens: {large:.0f} MB"


@pytest.mark.slow
def test_the_example_script_runs(checkpoint, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(TEXTS))
    words = [sys.executable, "scripts/probe_checkpoint.py", str(checkpoint), str(texts)]
    out = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    expected = sum(len(d) - 1 for d in tokens_of(checkpoint, [t.strip() for t in TEXTS]))
    assert out.startswith(f"{expected} positions")
    assert "mutual_information" in out


@pytest.mark.slow
@pytest.mark.checkpoint
def test_the_real_checkpoint_equals_every_document_alone(smollm2_gguf, tmp_path):
    """SmolLM2-135M on Python's help topics: all 32 rows, four n-gram orders in both directions, in float64."""
    from pydoc_data.topics import topics

    from transformers import AutoModelForCausalLM, AutoTokenizer

    texts = [text[:400] for _, text in sorted(topics.items())[:10]]
    data = tmp_path / "topics.jsonl"
    data.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    result = run(
        RunConfig(
            anchor_sets=1,
            model=str(smollm2_gguf),
            data=str(data),
            out=str(tmp_path / "out"),
            labels=NAMES,
            max_length=64,
            tokens_per_batch=200,
        ),
        progress=False,
    )
    where = {"pretrained_model_name_or_path": str(smollm2_gguf.parent), "gguf_file": smollm2_gguf.name}
    docs = AutoTokenizer.from_pretrained(**where)(texts, truncation=True, max_length=64)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()
    expected = references.measure(model, docs, NGRAMS, sample_anchors(100, 576).numpy(), temperature(100, 576))
    assert result.rows == ["embeddings", *(f"layer.{i}" for i in range(1, 31)), "final_norm"]
    for row, mass_SM in zip(result.rows, result.tensors["mass"], strict=True):
        q = expected.q[row]
        np.testing.assert_allclose(mass_SM[0], q.sum(axis=0), rtol=1e-5)
        assert value(result, row, "entropy") == pytest.approx(references.entropy(q.mean(0)), abs=1e-5)
        for name in NAMES:
            information = references.mutual_information(q, expected.labels[name])
            assert value(result, row, "mutual_information", name) == pytest.approx(information, abs=1e-5)


def test_no_path_of_a_secret_reaches_the_results(config, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret_of_the_user")
    run(config(), progress=False)
    for path in (tmp_path / "out").iterdir():
        assert b"hf_secret_of_the_user" not in path.read_bytes()
    assert os.environ["HF_TOKEN"] == "hf_secret_of_the_user"


def test_secrets_of_the_environment_are_written_nowhere(config, tmp_path, monkeypatch, capfd):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "hf_thisisnobodysbusiness")
    run(config(report=True, cache=str(tmp_path / "cache")))
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 15
    assert not [path for path in written if b"thisisnobodysbusiness" in path.read_bytes()]
    assert "thisisnobodysbusiness" not in "".join(capfd.readouterr())
