"""The class that loads a checkpoint is the one that its files are of; models that read no text are named."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from softh_probe.choices import Choices
from softh_probe.errors import InputError
from softh_probe.models.architecture import model_class
from softh_probe.models.checkpoint import load_checkpoint
from softh_probe.models.describe import describe_layers, load_skeleton
from softh_probe.models.lengths import length_limit
from softh_probe.models.source import resolve_model
from tests.helpers.architectures import listed, shrink

T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 64}
BART = {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": 64, "max_position_embeddings": 32,
}  # fmt: skip
BERT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64}


def load(folder: Path, **options: Any) -> Any:
    return load_checkpoint(resolve_model(str(folder)), device_map="cpu", **options)


def states(model: Any) -> torch.Tensor:
    ids = torch.arange(2, 14).reshape(2, 6)
    with torch.no_grad():
        return model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


# --- halves of encoder-decoders --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("T5EncoderModel", transformers.T5Config(**T5)),
        ("MT5EncoderModel", transformers.MT5Config(**T5)),
        ("UMT5EncoderModel", transformers.UMT5Config(**T5)),
        ("LongT5EncoderModel", transformers.LongT5Config(**T5)),
        ("SwitchTransformersEncoderModel", transformers.SwitchTransformersConfig(**T5, num_sparse_encoder_layers=1)),
        ("T5ForTokenClassification", transformers.T5Config(**T5)),
    ],
)
def test_an_encoder_that_was_saved_alone_is_measured(name: str, config: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = getattr(transformers, name)(config)
    model.save_pretrained(tmp_path)
    encoder = model.transformer if hasattr(model, "transformer") else model
    checkpoint = load(tmp_path)
    torch.testing.assert_close(states(checkpoint.model), states(encoder))
    assert not list(checkpoint.choices)
    table = describe_layers(load_skeleton(resolve_model(str(tmp_path))), "cpu")
    assert table.name.tolist()[:3] == ["embeddings", "layer.1", "layer.2"]


@pytest.mark.parametrize("kind", ["Bart", "MBart", "Pegasus", "Marian", "Blenderbot", "BlenderbotSmall", "PLBart"])
def test_a_decoder_that_was_saved_alone_is_measured(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    special = {"pad_token_id": 1, "decoder_start_token_id": 1, "eos_token_id": 2, "forced_eos_token_id": 2}
    model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**BART, **special))
    model.save_pretrained(tmp_path)
    checkpoint = load(tmp_path)
    assert torch.equal(states(checkpoint.model), states(model.model.decoder))
    assert not [weight for weight in load_file(tmp_path / "model.safetensors") if "encoder." in weight]


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_the_stacks_of_bart_alone(part: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    stack = getattr(transformers.BartModel(transformers.BartConfig(**BART)), part)
    stack.save_pretrained(tmp_path)
    edit_config(tmp_path, is_encoder_decoder=False)
    assert torch.equal(states(load(tmp_path).model), states(stack))


def test_the_whole_of_an_encoder_decoder_is_still_measured_by_its_encoder(tmp_path: Path) -> None:
    model = transformers.BartForConditionalGeneration(transformers.BartConfig(**BART))
    model.save_pretrained(tmp_path)
    assert load(tmp_path).info["stack"] == "encoder"
    assert torch.equal(states(load(tmp_path).model), states(model.model.encoder))


@pytest.mark.parametrize("is_decoder", [True, False])
def test_a_bert_decoder_is_causal_where_its_config_says_so(is_decoder: bool, tmp_path: Path) -> None:
    model = transformers.BertLMHeadModel(transformers.BertConfig(**BERT, is_decoder=is_decoder))
    model.save_pretrained(tmp_path)
    assert torch.equal(states(load(tmp_path).model), states(model.bert))


def test_a_context_encoder_is_loaded_as_one(tmp_path: Path) -> None:
    model = transformers.DPRContextEncoder(transformers.DPRConfig(**BERT))
    model.save_pretrained(tmp_path)
    assert load(tmp_path).info["class"] == "DPRContextEncoder"


def test_without_architectures_the_model_type_decides_and_the_files_are_checked(tmp_path: Path) -> None:
    transformers.T5EncoderModel(transformers.T5Config(**T5)).save_pretrained(tmp_path)
    edit_config(tmp_path, architectures=None)
    with pytest.raises(InputError, match="the files lack decoder"):
        load(tmp_path)
    transformers.BertModel(transformers.BertConfig(**BERT)).save_pretrained(tmp_path)
    edit_config(tmp_path, architectures=None)
    assert not list(load(tmp_path).choices)


@pytest.mark.parametrize("name", ["LlamaForRewards", "BertForMaskedLM", 7])
def test_an_unknown_class_is_recorded(name: Any, tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**BERT)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    config.architectures = [name]
    choices = Choices()
    assert model_class("here", config, choices) is transformers.AutoModel
    (choice,) = choices
    assert (choice.about, choice.chosen, choice.certain) == ("class", "LlamaModel", False)
    assert str(name) in choice.reason


@pytest.mark.slow
def test_classes_of_the_lists_are_known() -> None:
    choices = Choices()
    for _, model_type, name in listed():
        with suppress(Exception):  # some default configs are refused
            config = transformers.CONFIG_MAPPING[model_type]()
            config.architectures = [name]
            model_class("here", config, choices)
    assert not list(choices)


# --- models that read no text ----------------------------------------------------------------------------------


def save_config(model_type: str, folder: Path) -> None:
    config = transformers.CONFIG_MAPPING[model_type]
    config.from_dict(shrink(config().to_dict())).save_pretrained(folder)


@pytest.mark.parametrize(
    ("model_type", "what"),
    [
        ("vit", "images (pixel_values)"),
        ("clip_vision_model", "images (pixel_values)"),
        ("sam", "images (pixel_values)"),
        ("resnet", "images (pixel_values)"),
        ("wav2vec2", "audio (input_values)"),
        ("whisper", "audio (input_features)"),
        ("hubert", "audio (input_values)"),
        ("patchtst", "time series (past_values)"),
        ("perceiver", "'inputs'"),
        ("decision_transformer", "'states'"),
        ("yolos", "images (pixel_values)"),
    ],
)
def test_models_that_read_no_text_are_told(model_type: str, what: str, tmp_path: Path) -> None:
    save_config(model_type, tmp_path)
    source = resolve_model(str(tmp_path), need_weights=False)
    with pytest.raises(InputError) as caught:
        length_limit(source)
    assert "\n" not in str(caught.value)
    assert what in str(caught.value)
    assert "no text" in str(caught.value)


@pytest.mark.parametrize(
    "model_type",
    [
        "clip",
        "siglip",
        "chinese_clip",
        "altclip",
        "metaclip_2",
        "clap",
        "blip",
        "align",
        "owlvit",
        "groupvit",
        "siglip2",
    ],
)
def test_the_text_tower_is_named_and_can_be_measured(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = transformers.CONFIG_MAPPING[model_type]
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config.from_dict(shrink(config().to_dict())))
    model.save_pretrained(tmp_path / "both")
    with pytest.raises(InputError) as caught:
        length_limit(resolve_model(str(tmp_path / "both")))
    assert "its text tower can be measured alone" in str(caught.value)
    with pytest.raises(InputError, match="text tower"):
        load(tmp_path / "both")
    with pytest.raises(InputError, match="text tower"):
        load_skeleton(resolve_model(str(tmp_path / "both")))
    snippet = str(caught.value).partition("alone: ")[2].partition(", with the tokenizer")[0]
    monkeypatch.chdir(tmp_path)
    exec(snippet, {"AutoModel": transformers.AutoModel})
    assert torch.equal(states(load(tmp_path / "text_tower").model), states(model.text_model))
