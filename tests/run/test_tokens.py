"""Runs whose tokens are chosen: another tokenizer, special tokens, variables of the chat template."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from softh_probe import ProbeResult
from softh_probe.cli import main
from softh_probe.config import EXECUTION_FIELDS, plain_config
from softh_probe.errors import InputError
from softh_probe.report.facts import facts
from softh_probe.run import run
from softh_probe.sweep import sweep
from softh_probe.sweep.config import PER_CHECKPOINT_FIELDS, SweepConfig
from tests.helpers.corpora import TEXTS

TEMPLATE = "{% if short %}{% else %}the cat {% endif %}{{ messages[0].content }}"


@pytest.fixture
def bare(checkpoint: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The checkpoint without its tokenizer, and the tokenizer."""
    bare, tokenizer = tmp_path / "bare", tmp_path / "tokenizer"
    shutil.copytree(checkpoint, bare)
    tokenizer.mkdir()
    for file in bare.glob("*token*"):
        file.rename(tokenizer / file.name)
    return bare, tokenizer


def test_a_run_with_another_tokenizer(bare, checkpoint, data, tmp_path, capsys):
    folder, tokenizer = bare
    words = ["run", "--model", folder, "--data", data, "--out", tmp_path / "out", "--n-anchors", 20, "--no-report"]
    assert main(list(map(str, words))) == 2
    assert "--tokenizer" in capsys.readouterr().err
    assert main([*map(str, words), "--tokenizer", str(tokenizer)]) == 0
    result = ProbeResult.load(tmp_path / "out")
    assert yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["tokenizer"] == str(tokenizer)
    assert ("tokenizer", str(tokenizer)) in facts(result)["Settings"]
    chosen = {choice["about"]: choice for choice in result.info["choices"]}["tokenizer"]
    assert (chosen["chosen"], chosen["certain"]) == (str(tokenizer), True)
    whole = ["run", "--model", checkpoint, *words[3:5], "--out", tmp_path / "whole", *words[7:]]
    assert main(list(map(str, whole))) == 0
    assert ProbeResult.load(tmp_path / "whole").to_pandas().equals(result.to_pandas())


def test_settings_of_tokens_are_of_the_command_line(checkpoint, tmp_path):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "chat")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"messages": [{"role": "user", "content": text}]}) for text in TEXTS))
    words = ["run", "--model", checkpoint, "--tokenizer", tmp_path / "chat", "--data", rows, "--n-anchors", 20]
    n_tokens = {}
    for name, more in {
        "long": [],
        "short": ["--chat-template-kwargs", '{"short": true}'],
        "special": ["--add-special-tokens", "false"],
    }.items():
        more = [*more, "--no-report", "--out", tmp_path / name]
        assert main(list(map(str, [*words, *more]))) == 0
        result = ProbeResult.load(tmp_path / name)
        n_tokens[name] = result.info["corpus"]["tokens"]
    assert n_tokens["short"] == sum(map(len, tokenizer(TEXTS, add_special_tokens=False)["input_ids"]))
    assert n_tokens["long"] == n_tokens["special"] > n_tokens["short"]
    assert any("special_tokens of conversations" in text for text in result.info["warnings"])
    with_file = [*words[:2], "--config", tmp_path / "short" / "config.yaml", "--out", tmp_path / "again"]
    assert main(list(map(str, with_file[:1] + with_file[2:]))) == 0
    assert ProbeResult.load(tmp_path / "again").info["corpus"]["tokens"] == n_tokens["short"]


def save_words(folder: Path, *words: str) -> str:
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["?", *words])}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?").save_pretrained(folder)
    return str(folder)


def test_texts_have_one_digest_under_two_tokenizers(config, tmp_path):
    words = save_words(tmp_path / "words", "the", "cat", "sat", "on", "mat", "and", "saw", "dogs", "again", ".")
    one = run(config(), progress=False).info
    other = run(config(tokenizer=words, out=str(tmp_path / "b")), progress=False).info
    assert one["corpus"]["sha256"] != other["corpus"]["sha256"]
    assert one["corpus"]["texts_sha256"] == other["corpus"]["texts_sha256"]
    assert (one["corpus"]["tokens_unknown"], other["corpus"]["tokens_unknown"]) == (0, 30)  # 0, 1 and 2 dogs
    assert any("% of tokens are ?" in text for text in other["warnings"])
    assert any("the checkpoint's own has" in text for text in other["warnings"])


def test_a_tokenizer_of_another_model_is_refused(config, tmp_path):
    words = save_words(tmp_path / "words", *(f"{i:03}" for i in range(500)), "the", "cat")
    problem = r"^model: the tokenizer gives token 502, the model has embeddings for \d+.*--tokenizer$"
    with pytest.raises(InputError, match=problem):
        run(config(tokenizer=words), progress=False)


def test_another_setting_of_tokens_is_another_run(config):
    values = {"tokenizer": "x", "add_special_tokens": True, "chat_template_kwargs": {"a": 1}}
    assert not values.keys() & EXECUTION_FIELDS
    assert not values.keys() & PER_CHECKPOINT_FIELDS
    for name, value in values.items():
        assert plain_config(config(**{name: value})) == plain_config(config()) | {name: value}


@pytest.mark.slow
def test_a_sweep_of_checkpoints_without_tokenizers(bare, data, tmp_path):
    folder, tokenizer = bare
    for step in (1, 2):
        shutil.copytree(folder, tmp_path / "train" / f"checkpoint-{step}")
    config = SweepConfig(
        model=str(tmp_path / "train" / "checkpoint-*"),
        tokenizer=str(tokenizer),
        data=str(data),
        out=str(tmp_path / "sweep"),
        n_anchors=20,
        workers=1,
        gpus_per_worker=0,
    )
    assert config.run_config(model="-", revision=None, out="-").tokenizer == str(tokenizer)
    assert config.measured()["tokenizer"] == str(tokenizer)
    outcome = sweep(config)
    assert len(outcome.done) == 2
