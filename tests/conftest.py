"""Fixtures and hooks of pytest; functions that test modules share are in `tests/helpers/`."""

import json
import os
from pathlib import Path

import pytest
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from softh_probe.config import RunConfig
from tests.helpers.corpora import write_texts
from tests.helpers.lm_eval_tasks import multiple_choice
from tests.helpers.models import tiny_llama
from tests.helpers.sweeps import small_tokenizer, train


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch) -> None:
    """No test finds what another one, or a user, has kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def model() -> LlamaForCausalLM:
    return tiny_llama()


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """Words are letters."""
    vocabulary = ["<pad>", "<eos>", "<unk>", *"abcdefghijklmnopqrstuvwxyz"]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=64
    )


@pytest.fixture
def task(tmp_path) -> Path:
    """A folder with `letters`, a task of lm-evaluation-harness."""
    questions = ["a b c", "g h i j k l", "p", "x y"]
    rows = [{"question": q, "choices": [" d", " e f"], "answer": i % 2} for i, q in enumerate(questions)]
    (tmp_path / "rows.json").write_text("\n".join(json.dumps(row) for row in rows))
    letters = multiple_choice("letters", tmp_path / "rows.json", "acc")
    (tmp_path / "letters.yaml").write_text(yaml.safe_dump(letters))
    return tmp_path


@pytest.fixture(scope="session")
def training(tmp_path_factory) -> Path:
    """Twelve checkpoints of one training run, and texts."""
    folder = tmp_path_factory.mktemp("training")
    train(folder / "run")
    write_texts(folder / "texts.jsonl")
    return folder


@pytest.fixture
def config_file(training, tmp_path):
    """A sweep's configuration file in a folder of its own."""

    def make(**changes) -> Path:
        settings = {
            "model": str(training / "run" / "checkpoint-*"),
            "data": str(training / "texts.jsonl"),
            "out": str(tmp_path / "out"),
            "labels": ["input_unigram", "output_unigram"],
            "n_anchors": 20,
            "anchor_sets": 1,
            "workers": 2,
            "gpus_per_worker": 0,
        }
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump({**settings, **changes}))
        return path

    return make


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The real checkpoint, which scripts/test fetches."""
    path = Path(os.environ.get("SMOLLM2_GGUF", ""))
    if not path.is_file():
        pytest.skip("SMOLLM2_GGUF does not name the real checkpoint; run scripts/test, which fetches it")
    return path


def pytest_terminal_summary(terminalreporter) -> None:
    """Count the architectures in transformers' lists that are right, refused or not built, with reasons."""
    found = _properties(terminalreporter, "architecture")
    if found:
        _tell_architectures(terminalreporter, found)
    for site in ("attention", "mlp", "router"):
        if of_site := _properties(terminalreporter, f"site {site}"):
            right = sum(line.split(": ")[1] == "right" for line in of_site)
            terminalreporter.line(f"{site}: {right} right, {len(of_site) - right} refused")


def _properties(terminalreporter, name: str) -> list[str]:
    return [
        value
        for outcome in ("passed", "skipped", "failed")
        for report in terminalreporter.getreports(outcome)
        for own, value in getattr(report, "user_properties", ())
        if own == name and report.when == "call"
    ]


def _tell_architectures(terminalreporter, found: list[str]) -> None:
    words = ("right", "refused", "not built")
    counts = {word: sum(line.split(": ")[1] == word for line in found) for word in words}
    terminalreporter.section("architectures")
    terminalreporter.line(
        f"{len(found)} listed, {counts['right'] + counts['refused']} built, {counts['right']} right, "
        f"{counts['refused']} refused, {counts['not built']} not built"
    )
    for line in sorted(line for line in found if line.split(": ")[1] != "right"):
        terminalreporter.line(line)
    others = ", ".join(line.split(": ")[0] for line in found if "by definition" in line)
    terminalreporter.line(f"right by definition, output_hidden_states being something else: {others or 'none'}")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A tiny model with its tokenizer, as save_pretrained writes them."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = small_tokenizer()
    tokenizer.save_pretrained(folder)
    tiny_llama(vocab_size=len(tokenizer)).save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path) -> Path:
    return write_texts(tmp_path / "texts.jsonl")


@pytest.fixture
def config(checkpoint, data, tmp_path):
    def make(**changes) -> RunConfig:
        paths = {"model": str(checkpoint), "data": str(data), "out": str(tmp_path / "out")}
        return RunConfig(**{**paths, "n_anchors": 20, "anchor_sets": 1, "report": False, **changes})

    return make
