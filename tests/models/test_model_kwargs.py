"""Arguments of from_pretrained reach it, unless they are set otherwise: then the error says how."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from softh_probe.config import RunConfig, config_yaml
from softh_probe.errors import InputError
from softh_probe.models.checkpoint import load_checkpoint
from softh_probe.models.source import resolve_model
from tests.helpers.models import tiny_llama


def load(folder: Path, **model_kwargs: Any) -> Any:
    return load_checkpoint(resolve_model(str(folder)), device_map="cpu", model_kwargs=model_kwargs)


def run_config(**changes: Any) -> RunConfig:
    return RunConfig(model="m", data="d", out="o", **changes)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_an_argument_reaches_from_pretrained(attention: str, tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    checkpoint = load(tmp_path, attn_implementation=attention)
    assert checkpoint.model.config._attn_implementation == attention
    assert checkpoint.info["model_kwargs"] == {"attn_implementation": attention}


def test_weights_are_packed_as_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    tiny_llama(hidden_size=64, intermediate_size=64).save_pretrained(tmp_path)
    checkpoint = load(tmp_path, quantization_config={"load_in_8bit": True})
    assert type(checkpoint.model.layers[0].mlp.up_proj).__name__ == "Linear8bitLt"
    assert checkpoint.info["model_kwargs"] == {"quantization_config": {"load_in_8bit": True}}


@pytest.mark.parametrize("sharded", [False, True])
def test_a_variant_is_loaded(sharded: bool, tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path, variant="half", max_shard_size="10KB" if sharded else "1GB")
    expected = tiny_llama().model
    with pytest.raises(InputError, match=r"variant half only; add --model-kwargs '\{\"variant\": \"half\"\}'"):
        load(tmp_path)
    with pytest.raises(InputError, match="variant half only"):
        load(tmp_path, variant="quarter")
    found = load(tmp_path, variant="half").model
    assert torch.equal(found.layers[2].mlp.up_proj.weight, expected.layers[2].mlp.up_proj.weight)


def test_a_variant_beside_other_weights_is_loaded(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({name: 2 * w for name, w in weights.items()}, tmp_path / "model.twice.safetensors", {"format": "pt"})
    one, two = load(tmp_path).model, load(tmp_path, variant="twice").model
    assert torch.equal(2 * one.norm.weight, two.norm.weight)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("device_map", "--device-map"),
        ("dtype", "--dtype"),
        ("torch_dtype", "--dtype"),
        ("trust_remote_code", "--trust-remote-code"),
        ("revision", "--revision"),
        ("use_safetensors", "--allow-pickle"),
        ("config", "config.json"),
        ("output_loading_info", "leave it out"),
        ("ignore_mismatched_sizes", "leave it out"),
        ("pretrained_model_name_or_path", "--model"),
        ("gguf_file", "--model"),
        ("token", "hf auth login"),
        ("cache_dir", "HF_HOME"),
        ("subfolder", "--model"),
        ("load_in_8bit", "quantization_config"),
        ("tp_plan", "torchrun"),
        ("low_cpu_mem_usage", "no effect"),
        ("key_mapping", "edit"),
    ],
)
def test_what_is_set_otherwise_is_refused(name: str, remedy: str) -> None:
    with pytest.raises(InputError) as caught:
        run_config(model_kwargs={name: True})
    assert f"'{name}'" in str(caught.value)
    assert remedy in str(caught.value)


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"num_hidden_layers": 1}, "'num_hidden_layers' is a field of config.json"),
        ({"attn_implementation": "fast"}, "attn_implementation"),
        ({"attn_implementation": "owner/kernel"}, "--trust-remote-code"),
        ({"frobnicate": 1}, "frobnicate"),
        ({"quantization_config": "8bit"}, "expected a mapping"),
        ({"quantization_config": {"load_in_7bit": True}}, "quantization_config"),
        ({"quantization_config": {"load_in_8bit": True, "colour": 1}}, "colour"),
    ],
)
def test_what_from_pretrained_does_not_take_is_one_line(given: dict[str, Any], part: str, tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    with pytest.raises(InputError) as caught:
        load(tmp_path, **given)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [{"a": {1, 2}}, {"a": float("nan")}, {"a": object()}])
def test_values_are_those_of_json(value: Any) -> None:
    with pytest.raises(InputError, match="expected a value of JSON"):
        run_config(model_kwargs=value)


def test_they_are_a_mapping() -> None:
    with pytest.raises(InputError, match="model_kwargs: expected a mapping of str to any value"):
        run_config(model_kwargs="eager")


def test_they_are_part_of_what_was_measured() -> None:
    text = config_yaml(run_config(model_kwargs={"attn_implementation": "eager"}))
    assert "model_kwargs:\n  attn_implementation: eager\n" in text


def test_a_packed_checkpoint_is_not_packed_otherwise(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    model = tiny_llama(hidden_size=64, intermediate_size=64)
    model.save_pretrained(tmp_path / "plain")
    packing = transformers.BitsAndBytesConfig(load_in_8bit=True)
    packed = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "plain", quantization_config=packing)
    packed.save_pretrained(tmp_path / "packed")
    load(tmp_path / "packed")
    with pytest.raises(InputError, match="packed already"):
        load(tmp_path / "packed", quantization_config={"llm_int8_threshold": 3.0})
