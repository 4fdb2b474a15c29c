"""Where max_length is left open, documents are as long as the default and the model allow; the result says so."""

import json
from pathlib import Path

import pytest
import transformers
import yaml

from softh_probe.cli import main
from softh_probe.config import RunConfig
from softh_probe.errors import InputError, ProbeError
from softh_probe.models.loading_errors import running_on_tokens
from softh_probe.run import run
from tests.helpers.models import tiny_llama

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64}


@pytest.fixture
def tokenizer(checkpoint):
    return transformers.PreTrainedTokenizerFast.from_pretrained(checkpoint)


@pytest.fixture
def roberta(tmp_path, tokenizer):
    """A checkpoint of 34 positions for 32 tokens."""
    folder = tmp_path / "roberta"
    settings = {**SMALL, "vocab_size": len(tokenizer), "max_position_embeddings": 34, "pad_token_id": 1}
    transformers.RobertaModel(transformers.RobertaConfig(**settings)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def texts(tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": "the dog and the fox " * n}) + "\n" for n in (1, 2, 200)))
    return file


def settings(model, data, out, **changes):
    return RunConfig(model=str(model), data=str(data), out=str(out), cache="none", report=False, **changes)


def test_a_model_that_takes_fewer_tokens_shortens_documents_and_says_so(roberta, texts, tmp_path):
    result = run(settings(roberta, texts, tmp_path / "out"), progress=False)
    (choice,) = [choice for choice in result.info["choices"] if choice["about"] == "max_length"]
    assert choice["chosen"] == "32"
    assert not choice["certain"]
    assert any(line.startswith("max_length: 32 (") for line in result.info["warnings"])
    assert result.info["config"]["max_length"] == 32
    assert yaml.safe_load((tmp_path / "out/config.yaml").read_text())["max_length"] == 32
    assert result.info["corpus"]["documents_longer_than_max_length"] == 1
    again = run(settings(roberta, texts, tmp_path / "again", max_length=32), progress=False)
    assert again.info["corpus"]["sha256"] == result.info["corpus"]["sha256"]
    assert "max_length" not in [choice["about"] for choice in again.info["choices"]]


def test_it_is_certain_where_no_document_is_longer(roberta, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("the dog and the fox\nthe dog\n")
    result = run(settings(roberta, short, tmp_path / "out"), progress=False)
    assert [choice["certain"] for choice in result.info["choices"] if choice["about"] == "max_length"] == [True]
    assert not [line for line in result.info["warnings"] if "max_length" in line]


def test_an_explicit_length_stays_an_error_whose_advice_works(roberta, texts, tmp_path):
    for length in (33, 34, 512):
        with pytest.raises(InputError, match=r"set --max-length 32$"):
            run(settings(roberta, texts, tmp_path / "out", max_length=length), progress=False)
    run(settings(roberta, texts, tmp_path / "out", max_length=32), progress=False)


def test_the_default_is_512(texts, tmp_path, tokenizer):
    folder = tmp_path / "llama"
    tiny_llama(vocab_size=len(tokenizer), max_position_embeddings=1024).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    result = run(settings(folder, texts, tmp_path / "out"), progress=False)
    assert result.info["config"]["max_length"] == 512
    assert "max_length" not in [choice["about"] for choice in result.info["choices"]]


@pytest.mark.parametrize("model_type", ["vit", "clip", "wav2vec2", "whisper"])
def test_a_model_that_reads_no_text_is_one_line_of_the_command(model_type, texts, tmp_path, capsys):
    transformers.CONFIG_MAPPING[model_type]().save_pretrained(tmp_path / "model")
    (tmp_path / "model/model.safetensors").touch()
    flags = ["run", "--model", str(tmp_path / "model"), "--data", str(texts), "--out", str(tmp_path / "out")]
    assert main(flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "text" in line
    assert ("text tower" in line) == (model_type == "clip")


def test_errors_of_a_model_that_needs_more_than_tokens_are_one_line():
    model = transformers.BertModel(transformers.BertConfig(**SMALL))
    for error in (ValueError("You have to\nspecify pixel_values"), IndexError("index out of range in self")):
        with pytest.raises(ProbeError, match=r"BertModel cannot be run on these token ids alone .*--max-length"):
            with running_on_tokens(model):
                raise error
    with pytest.raises(RuntimeError, match=r"^CUDA out of memory"):
        with running_on_tokens(model):
            raise RuntimeError("CUDA out of memory. Tried to allocate; index")


def test_model_kwargs_of_the_command(checkpoint, texts, tmp_path):
    out = tmp_path / "out"
    flags = ["run", "--model", str(checkpoint), "--data", str(texts), "--out", str(out), "--no-report"]
    assert main([*flags, "--cache", "none", "--model-kwargs", '{"attn_implementation": "eager"}']) == 0
    saved = yaml.safe_load(Path(out, "config.yaml").read_text())
    assert saved["model_kwargs"] == {"attn_implementation": "eager"}
    info = json.loads(Path(out, "result.json").read_text())
    assert info["model"]["model_kwargs"] == {"attn_implementation": "eager"}
    assert main(["run", "--config", str(out / "config.yaml"), "--out", str(tmp_path / "again"), "--cache", "none"]) == 0


def test_model_kwargs_are_checked_before_anything_is_read(tmp_path, capsys):
    flags = ["run", "--model", "nowhere", "--data", "nowhere", "--out", str(tmp_path / "out")]
    assert main([*flags, "--model-kwargs", '{"torch_dtype": "float16"}']) == 2
    assert "--dtype" in capsys.readouterr().err
    assert main([*flags, "--model-kwargs", "eager"]) == 2
    assert "model_kwargs: expected" in capsys.readouterr().err
