"""What the files of a checkpoint hold inside its body is loaded, or refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from softh_probe.errors import InputError
from softh_probe.models.checkpoint import load_checkpoint
from softh_probe.models.source import resolve_model
from tests.helpers.architectures import build, listed

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64}


def llama(**changes: Any) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**SMALL, "max_position_embeddings": 64, **changes})
    return transformers.LlamaForCausalLM(config)


def gpt2() -> transformers.PreTrainedModel:
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=64, n_positions=32)
    return transformers.GPT2LMHeadModel(config)


def bert() -> transformers.PreTrainedModel:
    return transformers.BertForMaskedLM(transformers.BertConfig(**SMALL))


def load(folder: Path, **options: Any) -> Any:
    return load_checkpoint(resolve_model(str(folder)), device_map="cpu", **options)


def refused(folder: Path, *parts: str, **options: Any) -> None:
    with pytest.raises(InputError) as caught:
        load(folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert [part for part in parts if part not in message] == [], message


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    values = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


def edit_weights(folder: Path, change: Any) -> None:
    file = folder / "model.safetensors"
    weights = change(load_file(file))
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, file, metadata={"format": "pt"})


def add(folder: Path, **tensors: torch.Tensor) -> None:
    edit_weights(folder, lambda weights: weights | {name.replace("__", "."): value for name, value in tensors.items()})


# --- inside the body -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mlp_bias": False}, "model.layers.0.mlp.down_proj.bias"),
        ({"attention_bias": False}, "model.layers.0.self_attn.k_proj.bias"),
        ({"num_hidden_layers": 1}, "model.layers.1.input_layernorm.weight"),
    ],
)
@pytest.mark.parametrize("saved", ["head", "body", "pickle"])
def test_a_config_that_leaves_weights_over_is_refused(
    changes: dict[str, Any], named: str, saved: str, tmp_path: Path
) -> None:
    model = llama(attention_bias=True, mlp_bias=True)
    if saved == "pickle":
        model.config.save_pretrained(tmp_path)
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    else:
        (model if saved == "head" else model.model).save_pretrained(tmp_path)
    options = {"allow_pickle": True} if saved == "pickle" else {}
    load(tmp_path, **options)
    edit_config(tmp_path, **changes)
    refused(tmp_path, named.removeprefix("model.") if saved == "body" else named, "config.json", **options)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_norm.weight",
        "model.embed_norm.weight",
        "model.layers.1.mlp.gate_proj.weight_scale_inv",
        "model.layers.1.mlp.gate_proj.qzeros",
    ],
)
def test_further_tensors_in_the_body_are_refused(name: str, tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    edit_weights(tmp_path, lambda weights: weights | {name: torch.rand(16)})
    refused(tmp_path, name)


def test_a_norm_beside_a_body_without_a_head_is_refused(tmp_path: Path) -> None:
    llama().model.save_pretrained(tmp_path)
    add(tmp_path, embed_norm__weight=torch.rand(16))
    refused(tmp_path, "embed_norm.weight")


def test_what_transformers_ignores_by_name_is_no_excuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ignores layer 61 of any DeepSeek, for those of 61 layers and one that predicts further tokens."""
    build("causal", "deepseek_v3", "DeepseekV3ForCausalLM").save_pretrained(tmp_path)
    kind = transformers.models.deepseek_v3.modeling_deepseek_v3.DeepseekV3PreTrainedModel
    monkeypatch.setattr(kind, "_keys_to_ignore_on_load_unexpected", [r"model\.layers\.3.*"])
    assert load(tmp_path).info["class"] == "DeepseekV3Model"
    edit_config(tmp_path, num_hidden_layers=3)
    refused(tmp_path, "model.layers.3.")


def test_a_block_that_predicts_further_tokens_is_recorded(tmp_path: Path) -> None:
    build("causal", "deepseek_v3", "DeepseekV3ForCausalLM").save_pretrained(tmp_path)
    before = load(tmp_path).info["weights_sha256"]

    def with_prediction(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        last = {n.replace("layers.3.", "layers.4."): t.clone() for n, t in weights.items() if ".layers.3." in n}
        return weights | last | {"model.layers.4.eh_proj.weight": torch.rand(64, 128)}

    edit_weights(tmp_path, with_prediction)
    checkpoint = load(tmp_path)
    assert checkpoint.info["weights_sha256"] == before
    (choice,) = checkpoint.choices
    assert choice.about == "weights left out"
    assert "model.layers.4" in choice.chosen
    assert choice.certain


def test_frequencies_of_another_base_are_refused(tmp_path: Path) -> None:
    llama(rope_theta=1e4).save_pretrained(tmp_path)
    frequencies = {base: base ** (-torch.arange(4) / 4) for base in (1e4, 1e6)}
    add(tmp_path, model__layers__0__self_attn__rotary_emb__inv_freq=frequencies[1e4].bfloat16())
    load(tmp_path)
    add(tmp_path, model__layers__0__self_attn__rotary_emb__inv_freq=frequencies[1e6])
    refused(tmp_path, "model.layers.0.self_attn.rotary_emb.inv_freq")


def test_scaled_frequencies_go_with_stored_ones_before_scaling(tmp_path: Path) -> None:
    llama(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}).save_pretrained(tmp_path)
    add(tmp_path, model__layers__0__self_attn__rotary_emb__inv_freq=1e4 ** (-torch.arange(4) / 4))
    load(tmp_path)


# --- what need not be loaded -----------------------------------------------------------------------------------


def test_masks_and_positions_of_older_versions_are_no_weights(tmp_path: Path) -> None:
    gpt2().save_pretrained(tmp_path)
    mask = torch.ones(32, 32, dtype=torch.uint8).tril().reshape(1, 1, 32, 32)
    add(tmp_path, transformer__h__0__attn__bias=mask, transformer__h__0__attn__masked_bias=torch.tensor(-1e4))
    assert not list(load(tmp_path).choices)
    add(tmp_path, transformer__h__1__attn__bias=torch.rand(16))
    refused(tmp_path, "transformer.h.1.attn.bias")


def test_position_ids_count(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path)
    add(tmp_path, bert__embeddings__position_ids=torch.arange(512)[None])
    load(tmp_path)
    add(tmp_path, bert__embeddings__position_ids=torch.arange(512).flip(0)[None])
    refused(tmp_path, "bert.embeddings.position_ids")


@pytest.mark.parametrize("name", ["score.weight", "v_head.summary.weight", "lm_head.bias", "mtp.layers.0.norm.weight"])
def test_heads_may_be_left_out(name: str, tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    edit_weights(tmp_path, lambda weights: weights | {name: torch.rand(3, 16)})
    load(tmp_path)


def test_a_decoder_may_be_left_out_where_the_encoder_is_measured(tmp_path: Path) -> None:
    config = transformers.T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=64)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    edit_config(tmp_path, num_decoder_layers=1)
    load(tmp_path)
    edit_config(tmp_path, num_layers=1)
    refused(tmp_path, "encoder.block.1.layer.0.SelfAttention.k.weight")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "model_type", "class_name"), listed())
def test_no_architecture_is_refused_for_weights_that_it_has(
    kind: str, model_type: str, class_name: str, tmp_path: Path
) -> None:
    try:
        model = build(kind, model_type, class_name)
    except Exception as error:
        pytest.skip(f"cannot be built: {error}"[:100])
    bodies = [model]
    if isinstance(model.base_model, transformers.PreTrainedModel) and model.base_model is not model:
        bodies.append(model.base_model)
    for number, saved in enumerate(bodies):
        saved.save_pretrained(tmp_path / str(number))
        try:
            found = [str(choice) for choice in load(tmp_path / str(number)).choices if not choice.certain]
        except InputError as error:
            found = [part for part in ("weights inside the model", "of which one is used") if part in str(error)]
        assert found == []


# --- names -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rename", "parts"),
    [
        (lambda n: f"_orig_mod.{n}", ["'_orig_mod.'", "torch.compile", "save_file"]),
        (lambda n: n.replace("layers.0.", "layers.0._orig_mod."), ["'_orig_mod.'", "torch.compile"]),
        (lambda n: f"module.{n}", ["'module.'", "DistributedDataParallel"]),
        (lambda n: f"module._orig_mod.{n}", ["'_orig_mod.'", "torch.compile"]),
        (lambda n: f"_forward_module.{n}", ["'_forward_module.'"]),
        (lambda n: n.replace("self_attn.", "_fsdp_wrapped_module.self_attn."), ["'_fsdp_wrapped_module.'", "FSDP"]),
        (lambda n: f"base_model.model.{n}", ["'base_model.model.'", "PEFT"]),
    ],
)
@pytest.mark.parametrize("pickled", [False, True])
def test_prefixes_of_wrappers_are_named(rename: Any, parts: list[str], pickled: bool, tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    edit_weights(tmp_path, lambda weights: {rename(name): tensor for name, tensor in weights.items()})
    if pickled:
        torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    refused(tmp_path, *parts, allow_pickle=pickled)


def test_the_remedy_for_a_prefix_works(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    expected = load(tmp_path).info["weights_sha256"]
    edit_weights(tmp_path, lambda weights: {f"_orig_mod.{name}": tensor for name, tensor in weights.items()})
    with pytest.raises(InputError) as caught:
        load(tmp_path)
    snippet = str(caught.value).partition("safetensors.torch: ")[2]
    exec(snippet, {"save_file": save_file, "load_file": load_file, "f": tmp_path / "model.safetensors"})
    assert load(tmp_path).info["weights_sha256"] == expected


@pytest.mark.parametrize("name", ["lora_A.default.weight", "lora_B.weight", "base_layer.weight"])
def test_weights_of_an_adapter_are_named(name: str, tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    edit_weights(tmp_path, lambda weights: weights | {f"model.layers.0.self_attn.q_proj.{name}": torch.rand(2, 16)})
    refused(tmp_path, name, "adapter", "merge_and_unload")


def test_an_adapter_beside_the_weights_is_refused(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    refused(tmp_path, "adapter", "merge")


def test_a_weight_under_two_names_is_refused(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    add(tmp_path, norm__weight=torch.rand(16))
    refused(tmp_path, "'norm.weight'", "'model.norm.weight'")


# --- files -----------------------------------------------------------------------------------------------------


def test_a_shard_that_the_index_does_not_list_is_refused(tmp_path: Path) -> None:
    llama(num_hidden_layers=4).save_pretrained(tmp_path, max_shard_size="20KB")
    load(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    listed_files = json.loads(index.read_text())
    last = sorted(set(listed_files["weight_map"].values()))[-1]
    shorter = {name: file for name, file in listed_files["weight_map"].items() if file != last}
    index.write_text(json.dumps({**listed_files, "weight_map": shorter}))
    refused(tmp_path, last, "index")


def test_shards_that_hold_different_values_of_a_weight_are_refused(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path, max_shard_size="10KB")
    first, second = sorted(tmp_path.glob("model-*.safetensors"))[:2]
    name, tensor = next(iter(load_file(first).items()))
    save_file(load_file(second) | {name: tensor + 1}, second, metadata={"format": "pt"})
    refused(tmp_path, name, first.name, second.name)


def test_a_whole_file_beside_shards_is_recorded(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path, max_shard_size="10KB")
    shard = min(tmp_path.glob("model-*.safetensors")).name
    torch.manual_seed(1)
    llama().save_pretrained(tmp_path / "whole")
    (tmp_path / "whole/model.safetensors").rename(tmp_path / "model.safetensors")
    (choice,) = load(tmp_path).choices
    assert (choice.about, choice.chosen, choice.certain) == ("weights", "model.safetensors", False)
    assert shard in choice.reason
