"""Checkpoints loaded with the head that predicts the next token, against transformers' own loading."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    LlamaModel,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from softh_probe.errors import InputError
from softh_probe.models.checkpoint import load_checkpoint, load_with_head
from softh_probe.models.source import resolve_model
from tests.helpers.models import tiny_llama


def with_head(folder):
    return load_with_head(resolve_model(str(folder)), device_map="cpu")


def tiny_t5() -> T5Config:
    return T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0)


def test_logits_are_those_of_transformers(tmp_path):
    tiny_llama(tie_word_embeddings=False).save_pretrained(tmp_path)
    ids = torch.arange(12).reshape(2, 6)
    with with_head(tmp_path) as checkpoint, torch.no_grad():
        found = checkpoint.model(input_ids=ids).logits
        assert not checkpoint.model.training
        assert checkpoint.info["class"] == "LlamaForCausalLM"
    expected = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)(input_ids=ids).logits
    torch.testing.assert_close(found, expected)
    assert all(parameter.is_meta for parameter in checkpoint.model.parameters())  # its memory was freed


def test_an_encoder_decoder_has_both_halves(tmp_path):
    T5ForConditionalGeneration(tiny_t5()).save_pretrained(tmp_path)
    with with_head(tmp_path) as checkpoint:
        assert checkpoint.info["class"] == "T5ForConditionalGeneration"


def test_models_without_such_a_head_are_refused_in_a_line(tmp_path):
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    models = {
        "BertForMaskedLM": BertForMaskedLM(BertConfig(**sizes, num_attention_heads=2)),
        "LlamaModel": LlamaModel(tiny_llama().config),
        "T5EncoderModel": T5EncoderModel(tiny_t5()),
    }
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        load_checkpoint(resolve_model(str(tmp_path / name)), device_map="cpu").free()  # it can be measured
        with pytest.raises(InputError, match=f"a {name} has no head that predicts the next token"):
            with_head(tmp_path / name)


def test_a_head_that_the_files_lack_is_not_drawn_at_random(tmp_path):
    tiny_llama(tie_word_embeddings=False).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    load_checkpoint(resolve_model(str(tmp_path)), device_map="cpu").free()
    with pytest.raises(InputError, match=r"the files lack lm_head\.weight"):
        with_head(tmp_path)
