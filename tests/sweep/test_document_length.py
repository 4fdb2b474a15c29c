"""Checkpoints of a sweep share one length of documents: what all of them take."""

import transformers

from softh_probe.cli import main
from softh_probe.sweep.config import SweepConfig
from softh_probe.sweep.document_length import with_shared_length
from softh_probe.sweep.grid import expand
from tests.helpers.models import tiny_llama

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}


def save(folder):
    """Two checkpoints of one model, one of another that takes 32 tokens, and a broken one."""
    for step in (1, 2):
        tiny_llama(max_position_embeddings=1024).save_pretrained(folder / f"checkpoint-{step}")
    roberta = transformers.RobertaConfig(**SMALL, max_position_embeddings=34, pad_token_id=1)
    transformers.RobertaModel(roberta).save_pretrained(folder / "checkpoint-3")
    (folder / "checkpoint-4").mkdir()
    (folder / "checkpoint-4/config.json").write_text("{nope")


def settings(folder, names, **changes):
    models = [str(folder / f"checkpoint-{name}") for name in names]
    return SweepConfig(model=models, data="texts.txt", out=str(folder / "out"), **changes)


def test_it_is_what_every_checkpoint_takes(tmp_path):
    save(tmp_path)
    config = settings(tmp_path, [1, 2, 3, 4])
    used, notes = with_shared_length(config, expand(config))
    assert used.max_length == 32
    assert notes == ["max_length: 32 (the model takes no more than that; the default is 512)"]


def test_it_is_the_default_where_all_take_that_many_and_stays_as_given(tmp_path):
    save(tmp_path)
    config = settings(tmp_path, [1, 2])
    used, notes = with_shared_length(config, expand(config))
    assert (used.max_length, notes) == (512, [])
    config = settings(tmp_path, [1, 3], max_length=40)
    assert with_shared_length(config, expand(config)) == (config, [])


def test_a_dry_run_warns_of_it(tmp_path, capsys):
    save(tmp_path)
    flags = ["sweep", "--model", f"{tmp_path}/checkpoint-3", "--data", "texts.txt", "--out", f"{tmp_path}/out"]
    assert main([*flags, "--dry-run"]) == 0
    assert "warning: max_length: 32 (" in capsys.readouterr().out
