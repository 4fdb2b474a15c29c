"""Checkpoints that processes may hold between them, as far as transformers has a plan; no weights are needed."""

import json

import pytest
from transformers import AutoConfig, AutoModel

from softh_probe.errors import InputError
from softh_probe.models import tensor_parallel
from softh_probe.models.architecture import build_skeleton
from softh_probe.models.source import ModelSource, resolve_model
from softh_probe.models.tensor_parallel import check_can_be_split, split_parameters

SIZES = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture
def without_weights(tmp_path):
    """A source that has a config alone."""

    def make(kind="llama", **changes) -> ModelSource:
        AutoConfig.for_model(kind, **SIZES | changes).save_pretrained(tmp_path)
        return resolve_model(str(tmp_path), need_weights=False)

    return make


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "gpt_neox", "phi", "mixtral"])
def test_architectures_with_a_plan_are_taken(without_weights, kind):
    check_can_be_split(without_weights(kind), 2)


@pytest.mark.parametrize("kind", ["gpt2", "opt", "bert"])
def test_architectures_without_a_plan_are_refused(without_weights, kind):
    with pytest.raises(InputError, match=r"tensor_parallel: transformers \S+ has no plan to split a \w+; leave"):
        check_can_be_split(without_weights(kind), 2)


@pytest.mark.parametrize(
    ("changes", "size", "message"),
    [
        (
            {"num_key_value_heads": 2},
            4,
            r"divisor of the 2 heads \(num_key_value_heads\) .* got 4; take one of 2,",
        ),
        ({}, 3, r"divisor of the 4 heads \(num_attention_heads\) of the LlamaModel, got 3; .* 2, 4,"),
        ({"num_key_value_heads": 1}, 2, r"divisor of the 1 heads .* take one of none, or leave"),
    ],
)
def test_processes_that_cannot_share_the_heads_are_refused(without_weights, changes, size, message):
    with pytest.raises(InputError, match=message):
        check_can_be_split(without_weights(**changes), size)


def test_packed_weights_are_refused(without_weights):
    source = without_weights()
    with pytest.raises(InputError, match="packed weights"):
        check_can_be_split(source, 2, model_kwargs={"quantization_config": {"load_in_8bit": True}})
    file = source.folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(InputError, match="packed weights"):
        check_can_be_split(source, 2)


def test_gguf_files_are_refused():
    source = ModelSource(name="model.gguf", gguf_file="model.gguf")
    with pytest.raises(InputError, match=r"splits no \.gguf file; give the checkpoint's safetensors"):
        check_can_be_split(source, 2)


def test_an_older_transformers_is_named(without_weights, monkeypatch):
    monkeypatch.setattr(tensor_parallel, "_splits_in_groups", lambda: False)
    with pytest.raises(InputError, match=r"needs transformers 5.23, not transformers \S+; update it, or leave"):
        check_can_be_split(without_weights(), 2)


def test_each_process_holds_parts_of_projections_and_embeddings_and_whole_norms_and_biases():
    config = AutoConfig.for_model("phi", **SIZES)
    found = split_parameters(build_skeleton(AutoModel, config))
    block = {f"self_attn.{name}_proj.{kind}" for name in "qkv" for kind in ("weight", "bias")}
    block |= {"self_attn.dense.weight", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight"}
    assert found == {f"layers.{i}.{path}" for i in range(2) for path in block} | {"embed_tokens.weight"}
