"""checkpoint.py: what it loads is the backbone that transformers has, what it refuses it refuses in one line."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import accelerate
import gguf
import numpy as np
import pytest
import torch
import transformers
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as hf_logging

from softh_probe.errors import InputError
from softh_probe.models.checkpoint import load_checkpoint
from softh_probe.models.fingerprint import weights_fingerprint
from softh_probe.models.source import ModelSource, resolve_model
from softh_probe.models.tokenizer import load_tokenizer
from tests.helpers.hub import serving_folders

VOCABULARY = 64
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def llama(**changes: Any) -> PreTrainedModel:
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 64}
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**shape, **changes}))


def gpt2() -> PreTrainedModel:
    torch.manual_seed(1)
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=VOCABULARY, n_positions=64)
    return transformers.GPT2LMHeadModel(config)


def bert() -> PreTrainedModel:
    torch.manual_seed(2)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return transformers.BertForMaskedLM(transformers.BertConfig(**shape, vocab_size=VOCABULARY))


def t5() -> PreTrainedModel:
    torch.manual_seed(3)
    config = transformers.T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=VOCABULARY)
    return transformers.T5ForConditionalGeneration(config)


def trocr() -> PreTrainedModel:
    """A type that AutoModelForCausalLM knows and AutoModel does not."""
    torch.manual_seed(4)
    config = transformers.TrOCRConfig(
        d_model=16, decoder_layers=2, decoder_attention_heads=2, decoder_ffn_dim=32, vocab_size=VOCABULARY
    )
    return transformers.TrOCRForCausalLM(config)


def tokens() -> torch.Tensor:
    return torch.arange(2, 22).reshape(2, 10)


def save(model: PreTrainedModel, folder: Path, **options: Any) -> str:
    model.save_pretrained(folder, **options)
    return str(folder)


def save_tokenizer(folder: Path) -> None:
    words = {word: index for index, word in enumerate(["[UNK]", "a", "b", "c", "d", "e", "f", "g"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]").save_pretrained(folder)


def save_as_pickle(model: PreTrainedModel, folder: Path) -> str:
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return str(folder)


def save_as_gguf(model: PreTrainedModel, file: Path, **more: torch.Tensor) -> str:
    """A float32 .gguf of a llama: names and the order of rows in q and k as llama.cpp has them."""
    config, names = model.config, gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    for key, tensor in model.state_dict().items():
        rows = tensor.float().numpy()
        if key.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads
            rows = rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(name, np.ascontiguousarray(rows))
    for key, tensor in more.items():
        writer.add_tensor(key, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(file)


def edit_config(folder: str, **changes: Any) -> None:
    file = Path(folder, "config.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def refusal(call: Callable[[], object], *parts: str) -> InputError:
    """The InputError that `call` raises; it is one line that holds all `parts`."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    assert [part for part in parts if part not in message] == [], message
    return caught.value


def load(folder: str, **options: Any) -> Any:
    return load_checkpoint(resolve_model(folder), **options)


# --- resolve_model -------------------------------------------------------------------------------------------


def test_a_hub_id_is_taken_as_it_is() -> None:
    source = resolve_model("EleutherAI/pythia-160m", revision="step1000")
    assert source == ModelSource(name="EleutherAI/pythia-160m", revision="step1000")


def test_an_existing_path_wins_over_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(llama(), tmp_path / "owner" / "name")
    monkeypatch.chdir(tmp_path)
    source = resolve_model("owner/name")
    monkeypatch.chdir("/")
    assert source.folder == tmp_path / "owner" / "name"  # absolute: good from anywhere
    assert source.name == "owner/name"


@pytest.mark.parametrize("model", ["./here", "/not/here", "~/nowhere", "model.gguf", "a/b/c"])
def test_what_looks_like_a_path_has_to_exist(model: str) -> None:
    refusal(lambda: resolve_model(model), repr(model), "no such file or folder", "hub id")


@pytest.mark.parametrize("model", ["", "two words", "owner/na me"])
def test_neither_path_nor_hub_id(model: str) -> None:
    refusal(lambda: resolve_model(model), repr(model), "owner/name")


def test_folders_without_the_files_of_a_model(tmp_path: Path) -> None:
    refusal(lambda: resolve_model(str(tmp_path)), str(tmp_path), "config.json", "save_pretrained")
    (tmp_path / "adapter_config.json").write_text("{}")
    refusal(lambda: resolve_model(str(tmp_path)), "adapter", "merge")
    (tmp_path / "config.json").write_text("{}")
    refusal(lambda: resolve_model(str(tmp_path)), str(tmp_path), "no weights", "model.safetensors")
    weights = tmp_path / "weights.safetensors"
    weights.touch()
    refusal(lambda: resolve_model(str(weights)), str(weights), "folder")


def test_gguf_files_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "one.gguf").touch()
    expected = {"folder": tmp_path, "gguf_file": "one.gguf"}
    assert resolve_model(str(tmp_path)) == ModelSource(name=str(tmp_path), **expected)
    file = str(tmp_path / "one.gguf")
    assert resolve_model(file) == ModelSource(name=file, **expected)
    (tmp_path / "two.gguf").touch()
    refusal(lambda: resolve_model(str(tmp_path)), "several", "one.gguf, two.gguf")
    assert resolve_model(file).gguf_file == "one.gguf"
    save(llama(), tmp_path)  # a whole model beside them: that is what the folder means
    assert resolve_model(str(tmp_path)).gguf_file is None


def test_a_local_model_has_no_revisions(tmp_path: Path) -> None:
    folder = save(llama(), tmp_path)
    refusal(lambda: resolve_model(folder, revision="step1"), "revision 'step1'", folder, "leave it out")


# --- what is loaded ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [llama, gpt2, bert, trocr])
def test_outputs_equal_those_of_the_backbone_of_the_whole_model(
    make: Callable[[], PreTrainedModel], tmp_path: Path
) -> None:
    whole = make().eval()
    with load(save(whole, tmp_path)) as checkpoint:
        model = checkpoint.model
        assert model.get_output_embeddings() is None
        assert not any("lm_head" in name or "cls" in name for name, _ in model.named_parameters())
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert getattr(model.config, "use_cache", False) is False
        with torch.no_grad():
            mine = model(input_ids=tokens(), output_hidden_states=True).hidden_states
            theirs = whole(input_ids=tokens(), output_hidden_states=True).hidden_states
    assert len(mine) == len(theirs) == 3
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_of_an_encoder_decoder_the_encoder_is_loaded(tmp_path: Path) -> None:
    whole = t5().eval()
    folder, file = save(whole, tmp_path), tmp_path / "model.safetensors"
    weights = load_file(file)
    save_file({name: w for name, w in weights.items() if "decoder" not in name}, file, metadata={"format": "pt"})
    checkpoint = load(folder)
    assert (checkpoint.info["class"], checkpoint.info["stack"]) == ("T5Stack", "encoder")
    assert checkpoint.info["weights_sha256"] == weights_fingerprint(whole.encoder)
    with torch.no_grad():
        ours, theirs = (m(input_ids=tokens()).last_hidden_state for m in (checkpoint.model, whole.encoder))
    assert torch.equal(ours, theirs)
    for missing in ("shared.weight", "encoder.block.1.layer.0.SelfAttention.q.weight"):
        save_file({name: w for name, w in weights.items() if name != missing}, file, metadata={"format": "pt"})
        refusal(lambda: load(folder), folder, "weights do not fit config.json, the files lack", missing)


def test_info_is_json_and_names_the_checkpoint(tmp_path: Path) -> None:
    folder = save(llama().to(torch.bfloat16), tmp_path)
    checkpoint = load(folder)
    info = json.loads(json.dumps(checkpoint.info))
    assert len(info.pop("weights_sha256")) == 64
    assert info.pop("n_parameters") == sum(p.numel() for p in llama().model.parameters())
    on_cpu = not torch.accelerator.is_available()
    assert info.pop("dtype") == ("float32" if on_cpu else "bfloat16")
    assert len(info.pop("devices")) == 1
    assert info == {
        "model": folder,
        "revision": None,
        "commit": None,
        "gguf_file": None,
        "model_type": "llama",
        "class": "LlamaModel",
        "stack": None,
        "quantization": None,
        "weights_note": None,
        "trust_remote_code": False,
        "allow_pickle": False,
        "model_kwargs": {},
    }


def test_dtype(tmp_path: Path) -> None:
    folder = save(llama().to(torch.bfloat16), tmp_path)
    for dtype in ("float32", "bfloat16", "float16"):
        checkpoint = load(folder, dtype=dtype)
        assert checkpoint.info["dtype"] == dtype
        assert {p.dtype for p in checkpoint.model.parameters()} == {getattr(torch, dtype)}
    assert load(folder, dtype="auto", device_map="cpu").info["dtype"] == "float32"
    refusal(lambda: load(folder, dtype="int4"), "dtype 'int4'", "auto, float32, bfloat16, float16")


def test_device_map(tmp_path: Path) -> None:
    folder = save(llama(), tmp_path)
    assert load(folder, device_map="cpu").info["devices"] == ["cpu"]
    assert load(folder, device_map="auto").info["weights_sha256"]
    for device in ("cuda:99", "meta", "nonsense", ""):
        refusal(lambda d=device: load(folder, device_map=d), f"device_map {device!r}", "cpu, auto")


def test_a_freed_checkpoint_holds_no_memory(tmp_path: Path) -> None:
    with load(save(t5(), tmp_path)) as checkpoint:
        model = checkpoint.model  # somebody else holds on to it
        assert all(not tensor.is_meta for tensor in model.state_dict().values())
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    assert checkpoint.info["class"] == "T5Stack"


@pytest.mark.parametrize("bars", [True, False])
@pytest.mark.parametrize("hub_bars", [True, False])
@pytest.mark.parametrize("verbosity", [hf_logging.WARNING, hf_logging.DEBUG])
def test_loading_is_silent_and_restores_the_settings(
    bars: bool,
    hub_bars: bool,
    verbosity: int,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader = transformers.modeling_gguf_pytorch_utils
    bar = type("Bar", (reader.tqdm,), {})

    def settings() -> tuple[Any, ...]:
        hub = not are_progress_bars_disabled()
        return hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled(), hub, reader.tqdm

    folder = save(bert(), tmp_path / "bert")  # reports missing and unexpected keys
    file = save_as_gguf(llama(), tmp_path / "llama.gguf")
    before = settings()
    monkeypatch.setattr(reader, "tqdm", bar)
    try:
        set_logging(verbosity, bars, hub_bars)
        capfd.readouterr()
        load(folder)
        load(file)
        edit_config(folder, num_hidden_layers=3)
        refusal(lambda: load(folder))
        assert capfd.readouterr() == ("", "")
        assert settings() == (verbosity, bars, hub_bars, bar)
    finally:
        set_logging(*before[:3])


def set_logging(verbosity: int, bars: bool, hub_bars: bool) -> None:
    hf_logging.set_verbosity(verbosity)
    (hf_logging.enable_progress_bar if bars else hf_logging.disable_progress_bar)()
    (enable_progress_bars if hub_bars else disable_progress_bars)()


# --- GGUF ----------------------------------------------------------------------------------------------------


def test_gguf_gives_the_same_model_as_safetensors(tmp_path: Path) -> None:
    model = llama()
    plain = load(save(model, tmp_path / "plain"), device_map="cpu")
    packed = load(save_as_gguf(model, tmp_path / "model.gguf"), device_map="cpu")
    assert packed.info["gguf_file"] == "model.gguf"
    assert packed.info["class"] == "LlamaModel"
    assert packed.info["weights_sha256"] == plain.info["weights_sha256"]


@pytest.mark.parametrize(
    "more",
    [
        {"blk.0.attn_q.bias": torch.rand(16)},
        {"blk.1.attn_q_norm.weight": torch.rand(8)},
        {"token_embd_norm.weight": torch.rand(16)},
        {"rope_freqs.weight": torch.tensor([1.0, 1.0, 4.0, 8.0])},
    ],
)
def test_gguf_tensors_that_are_not_read_are_refused(more: dict[str, torch.Tensor], tmp_path: Path) -> None:
    file = save_as_gguf(llama(), tmp_path / "model.gguf", **more)
    refusal(lambda: load(file), next(iter(more)))


def test_gguf_frequencies_that_are_divided_by_one_are_known(tmp_path: Path) -> None:
    load(save_as_gguf(llama(), tmp_path / "model.gguf", **{"rope_freqs.weight": torch.ones(4)}))


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:-100],
        lambda b: b[:40],
        lambda b: b"",
        lambda b: b"GGUF" + bytes(range(256)) * 9,
        lambda b: b[1:],
    ],
    ids=["truncated", "no header", "empty", "garbage", "no magic"],
)
def test_damaged_gguf(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    file = Path(save_as_gguf(llama(), tmp_path / "model.gguf"))
    file.write_bytes(damage(file.read_bytes()))
    error = refusal(lambda: load(str(file)), str(file), "download it again")
    assert error.__cause__ is not None
    refusal(lambda: load_tokenizer(resolve_model(str(file))), str(file), "tokenizer")


def tensor_entry(content: bytes, name: bytes) -> int:
    """Find a vector's type (4 bytes) and offset (8 bytes) in a header."""
    return content.index(name) + len(name) + 4 + 8


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda b: b.replace(b"block_count\x04\0\0\0\x02\0\0\0", b"block_count\x04\0\0\0\0\0\0\x40"),
            "1073741824 blocks",
        ),
        (lambda b: b.replace(b"llama.block_count", b"llama.block-count"), "32 blocks, the file holds 2"),
        (lambda b: b.replace(b"llama.embedding_length", b"llama.embedding-length"), "weights, the file holds"),
        (
            lambda b: b[: (at := tensor_entry(b, b"output_norm.weight") + 4)] + bytes(8) + b[at + 8 :],
            "'token_embd.weight' and 'output_norm.weight' overlap",
        ),
        (lambda b: b[: (at := tensor_entry(b, b"output_norm.weight"))] + b"\x19" + b[at + 1 :], "I16"),
    ],
    ids=["blocks", "no blocks", "no width", "overlap", "type"],
)
def test_gguf_headers_that_lie(damage: Callable[[bytes], bytes], said: str, tmp_path: Path) -> None:
    """Taken at their word, they would fill memory, never end, or give other weights."""
    file = Path(save_as_gguf(llama(), tmp_path / "model.gguf"))
    content = file.read_bytes()
    file.write_bytes(damage(content))
    assert file.read_bytes() != content
    refusal(lambda: load(str(file)), said, "download it again")


@pytest.mark.slow
@pytest.mark.checkpoint
def test_the_real_checkpoint(smollm2_gguf: Path) -> None:
    source = resolve_model(str(smollm2_gguf))
    tokenizer = load_tokenizer(source)
    assert tokenizer.decode(tokenizer("Hello world").input_ids) == "Hello world"
    with load_checkpoint(source, dtype="float32", device_map="cpu") as checkpoint:
        assert checkpoint.info["class"] == "LlamaModel"
        assert checkpoint.info["n_parameters"] == 134_515_008
        assert checkpoint.info["weights_sha256"].startswith("b82447a568ec22f0")
        with torch.no_grad():
            ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
            state = checkpoint.model(ids).last_hidden_state[0, -1]
            logits = state @ checkpoint.model.get_input_embeddings().weight.T  # SmolLM2 ties its head
    assert tokenizer.decode(logits.argmax()) == " Paris"


# --- weights that do not fit -----------------------------------------------------------------------------------


def test_missing_weights_are_refused_by_name(tmp_path: Path) -> None:
    folder = save(llama(), tmp_path)
    edit_config(folder, num_hidden_layers=3)
    refusal(lambda: load(folder), folder, "layers.2.input_layernorm.weight", "and 6 more", "config.json")


def test_missing_weights_are_refused_behind_a_head_too(tmp_path: Path) -> None:
    folder = save(trocr(), tmp_path)
    edit_config(folder, decoder_layers=3)
    refusal(lambda: load(folder), folder, "layers.2.", "config.json")


def test_weights_that_cannot_be_converted_are_refused(tmp_path: Path) -> None:
    torch.manual_seed(5)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape |= {"num_key_value_heads": 2, "vocab_size": VOCABULARY, "num_local_experts": 2}
    folder = save(transformers.MixtralForCausalLM(transformers.MixtralConfig(**shape)), tmp_path)
    assert load(folder).info["class"] == "MixtralModel"
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    expert = next(name for name in weights if "experts.1.w1" in name)  # transformers stacks the experts
    save_file(weights | {expert: torch.zeros(3, 16)}, file, metadata={"format": "pt"})
    refusal(lambda: load(folder), folder, "model.safetensors", "conversion", "download it again")


def test_a_missing_head_is_not_missed(tmp_path: Path) -> None:
    model = trocr()
    model.config.tie_word_embeddings = False
    folder, file = save(model, tmp_path), tmp_path / "model.safetensors"
    weights = {name: tensor for name, tensor in load_file(file).items() if "output_projection" not in name}
    save_file(weights, file, metadata={"format": "pt"})
    assert load(folder).info["weights_sha256"] == weights_fingerprint(model.model)


def test_weights_of_the_wrong_shape_are_refused_by_name(tmp_path: Path) -> None:
    folder = save(llama(), tmp_path)
    edit_config(folder, vocab_size=VOCABULARY + 1)
    refusal(lambda: load(folder), folder, "embed_tokens.weight (64, 16) instead of (65, 16)", "config.json")


# --- damaged and incomplete folders ------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:100], lambda b: b"", lambda b: b"\xff" * len(b)])
def test_damaged_safetensors(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    folder = save(llama(), tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    error = refusal(lambda: load(folder), str(file), "damaged", "download it again")
    assert error.__cause__ is not None


def test_a_shard_is_missing_or_damaged(tmp_path: Path) -> None:
    folder = save(llama(), tmp_path, max_shard_size="10KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    refusal(lambda: load(folder), str(shard), "damaged")
    shard.unlink()
    refusal(lambda: load(folder), folder, f"has no {shard.name}", "download it again")
    index = tmp_path / "model.safetensors.index.json"
    for text in ("{", "[]", "{}"):
        index.write_text(text)
        refusal(lambda: load(folder), str(index), "download it again")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{nope", "not a valid JSON"),
        ('{"model_type": "zork"}', "`zork`"),
        ("{}", "Unrecognized model"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "hidden_size"),
    ],
)
def test_unusable_config(text: str, part: str, tmp_path: Path) -> None:
    folder = save(llama(), tmp_path)
    (tmp_path / "config.json").write_text(text)
    refusal(lambda: load(folder), str(tmp_path / "config.json"), part, "download it again", "transformers 5")


def test_out_of_memory_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(llama(), tmp_path)

    def fail(*args: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", fail)
    with pytest.raises(torch.OutOfMemoryError):
        load(folder)


# --- safety ------------------------------------------------------------------------------------------------------


def test_pickles_need_a_flag(tmp_path: Path) -> None:
    folder = save_as_pickle(llama(), tmp_path)
    refusal(lambda: load(folder), folder, "pytorch_model.bin", "--allow-pickle")
    info = load(folder, allow_pickle=True).info
    assert info["allow_pickle"] is True
    assert info["weights_sha256"] == load(save(llama(), tmp_path / "safe")).info["weights_sha256"]


def test_safetensors_win_over_pickles(tmp_path: Path) -> None:
    folder = save_as_pickle(gpt2(), tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"must not be read")
    save(gpt2(), tmp_path)
    load(folder)
    load(folder, allow_pickle=True)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["SOFTH_TEST_BOMB"],)


def test_a_pickle_with_code_is_refused_even_with_the_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_as_pickle(llama(), tmp_path)
    monkeypatch.setenv("SOFTH_TEST_BOMB", str(tmp_path / "exploded"))
    torch.save({"weight": Bomb()}, tmp_path / "pytorch_model.bin")
    refusal(lambda: load(folder, allow_pickle=True), folder, "pytorch_model.bin", "download it again")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:-200],
        lambda b: b"",
        lambda b: bytes(range(256)),
        lambda b: b[: len(b) // 2],
        lambda b: b[:3000] + bytes(2000) + b[5000:-100],
    ],
    ids=["truncated", "empty", "garbage", "half", "hole"],
)
def test_damaged_pickles(damage: Callable[[bytes], bytes], new: bool, tmp_path: Path) -> None:
    folder = save_as_pickle(llama(), tmp_path)
    file = tmp_path / "pytorch_model.bin"
    torch.save(torch.load(file), file, _use_new_zipfile_serialization=new)
    file.write_bytes(damage(file.read_bytes()))
    refusal(lambda: load(folder, allow_pickle=True), folder, "pytorch_model.bin", "download it again")


CODE = """
import pathlib
pathlib.Path({ran!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


def save_with_code(folder: Path, ran: Path) -> str:
    """A llama of a type that only the code beside it knows; running that code leaves the file `ran`."""
    save(llama(), folder)
    (folder / "own.py").write_text(CODE.format(ran=str(ran)))
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    edit_config(str(folder), model_type="own", auto_map=classes)
    return str(folder)


def test_code_from_the_checkpoint_needs_a_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: object) -> str:
        raise AssertionError("asked on stdin")

    monkeypatch.setattr("builtins.input", ask)
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    ran = tmp_path / "ran"
    folder = save_with_code(tmp_path / "own_model", ran)
    refusal(lambda: load(folder), folder, "code", "--trust-remote-code")
    assert not ran.exists()
    checkpoint = load(folder, trust_remote_code=True)
    assert ran.exists()
    assert checkpoint.info["trust_remote_code"] is True
    assert checkpoint.info["class"] == "LlamaModel"  # the backbone of OwnModel: only a causal model was offered
    assert weights_fingerprint(checkpoint.model) == weights_fingerprint(llama().model)


def test_code_of_a_tokenizer_needs_a_flag(tmp_path: Path) -> None:
    folder = save(llama(), tmp_path)
    save_tokenizer(tmp_path)
    settings = tmp_path / "tokenizer_config.json"
    auto_map = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    settings.write_text(json.dumps(auto_map))
    edit_config(folder, model_type="zork")
    refusal(lambda: load_tokenizer(resolve_model(folder)), folder, "tokenizer", "--trust-remote-code")


# --- tokenizer ---------------------------------------------------------------------------------------------------


def test_a_tokenizer_is_loaded(tmp_path: Path) -> None:
    folder = save(llama(), tmp_path)
    save_tokenizer(tmp_path)
    assert load_tokenizer(resolve_model(folder))("a b zebra").input_ids[:3] == [1, 2, 0]


@pytest.mark.parametrize("make", [llama, gpt2, bert, t5])
def test_a_missing_tokenizer(make: Callable[[], PreTrainedModel], tmp_path: Path) -> None:
    folder = save(make(), tmp_path)  # transformers makes up an empty one for all of these but llama
    refusal(lambda: load_tokenizer(resolve_model(folder)), folder, "tokenizer", "tokenizer.json")


@pytest.mark.parametrize("text", ["{nope", '{"model": {}}', '{"added_tokens": [], "model": {"type": "zork"}}', ""])
def test_a_damaged_tokenizer(text: str, tmp_path: Path) -> None:
    folder = save(llama(), tmp_path)
    save_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(text)
    refusal(lambda: load_tokenizer(resolve_model(folder)), folder, "tokenizer", "tokenizer.json")


# --- fingerprint -------------------------------------------------------------------------------------------------


def test_one_changed_element_changes_the_fingerprint() -> None:
    model = gpt2()
    seen = {weights_fingerprint(model)}
    for tensor in model.state_dict().values():
        flat = tensor.view(-1)
        before = flat[-1].item()
        flat[-1] += 1e-3
        seen.add(weights_fingerprint(model))
        flat[-1] = before
    assert len(seen) == 1 + len({t.data_ptr() for t in model.state_dict().values()})
    assert weights_fingerprint(model) in seen


def test_names_shapes_and_dtypes_count() -> None:
    def holder(name: str, tensor: torch.Tensor) -> torch.nn.Module:
        module = torch.nn.Module()
        module.register_buffer(name, tensor)
        return module

    zeros = torch.zeros(2, 6)
    modules = [
        holder("a", zeros),
        holder("b", zeros),
        holder("a", zeros.reshape(3, 4)),
        holder("a", zeros.to(torch.int32)),
        holder("a", torch.zeros(2, 6, dtype=torch.bfloat16)),
        holder("a", torch.tensor(0.0)),
        holder("a", torch.zeros(0)),
    ]
    assert len({weights_fingerprint(module) for module in modules}) == len(modules)


def test_storage_does_not_count(tmp_path: Path) -> None:
    expected = weights_fingerprint(llama())
    strided = llama()
    for parameter in strided.parameters():
        parameter.data = torch.stack([parameter.data] * 2, dim=-1)[..., 0]
    assert not any(parameter.is_contiguous() for parameter in strided.parameters())
    assert weights_fingerprint(strided) == expected

    tied, untied = t5(), t5()
    untied.encoder.embed_tokens.weight = torch.nn.Parameter(untied.shared.weight.detach().clone())
    assert tied.encoder.embed_tokens.weight.data_ptr() == tied.shared.weight.data_ptr()
    assert weights_fingerprint(tied) == weights_fingerprint(untied)

    one = load(save(llama(), tmp_path / "one")).info["weights_sha256"]
    many = load(save(llama(), tmp_path / "many", max_shard_size="5KB")).info["weights_sha256"]
    assert one == many == load(str(tmp_path / "one")).info["weights_sha256"]
    assert one != load(save(llama(), tmp_path / "one"), dtype="bfloat16").info["weights_sha256"]


def test_a_random_pooler_does_not_count(tmp_path: Path) -> None:
    folder = save(bert(), tmp_path)
    first, second = load(folder), load(folder)
    assert not torch.equal(first.model.pooler.dense.weight, second.model.pooler.dense.weight)
    assert first.info["weights_sha256"] == second.info["weights_sha256"]


def test_offloaded_weights_are_read_through_their_hooks() -> None:
    model = llama().model
    expected = weights_fingerprint(model)
    offloaded = accelerate.cpu_offload(copy.deepcopy(model), torch.device("cpu"))
    assert offloaded.embed_tokens.weight.is_meta
    assert weights_fingerprint(offloaded) == expected
    assert weights_fingerprint(copy.deepcopy(model).to("meta")) is None


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    folder = save(llama(), tmp_path)
    before = load(folder).info["weights_sha256"]
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] += 1e-6
    save_file(weights, file, metadata={"format": "pt"})
    assert load(folder).info["weights_sha256"] != before


# --- the hub -----------------------------------------------------------------------------------------------------

ASK = """
import json, sys, time
from softh_probe.models.checkpoint import load_checkpoint
from softh_probe.models.tokenizer import load_tokenizer
from softh_probe.models.source import resolve_model
for name, revision, options in json.loads(sys.argv[1]):
    start, answer = time.monotonic(), {}
    try:
        source = resolve_model(name, revision=revision)
        answer["info"] = load_checkpoint(source, device_map="cpu", **options).info
        trust = options.get("trust_remote_code", False)
        answer["ids"] = load_tokenizer(source, trust_remote_code=trust)("a b").input_ids
    except Exception as error:
        answer["error"], answer["type"] = str(error), type(error).__name__
    print(json.dumps(answer | {"seconds": time.monotonic() - start}), flush=True)
"""


def ask_hub(questions: list[tuple[str, str | None, dict[str, Any]]], cache: Path, **environment: str) -> list[Any]:
    """Load models in a fresh process, which reads the hub's address from its environment."""
    command = [sys.executable, "-c", ASK, json.dumps(questions)]
    quiet = {"HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    done = subprocess.run(
        command, env=clean | quiet | environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """A stand-in of the hub's HTTP interface with a few models; gives its address and what was asked for."""
    root = tmp_path / "hub"
    save(llama(), root / "own/safe", max_shard_size="10KB")
    save_tokenizer(root / "own/safe")
    save_as_pickle(llama(), root / "own/safe")  # its pickle is not to be downloaded
    save_as_pickle(llama(), root / "own/pickle")
    save_tokenizer(root / "own/pickle")
    save_with_code(root / "own/code", tmp_path / "ran")
    save_tokenizer(root / "own/code")
    (root / "own/empty").mkdir(parents=True)
    (root / "own/empty/README.md").write_text("nothing")
    with serving_folders(root, COMMIT) as (address, requests):
        yield address, requests


@pytest.mark.slow
def test_the_hub(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    address, requests = hub
    cache = tmp_path / "cache"
    good, pickled, refused, untrusted, trusted, *errors = ask_hub(
        [
            ("own/safe", "main", {}),
            ("own/pickle", None, {"allow_pickle": True}),
            ("own/pickle", None, {}),
            ("own/code", None, {}),
            ("own/code", None, {"trust_remote_code": True}),
            ("own/absent", None, {}),
            ("own/gated", None, {}),
            ("own/safe", "step7", {}),
            ("own/broken", None, {}),
            ("own/empty", None, {}),
        ],
        cache,
        HF_ENDPOINT=address,
    )
    assert good["info"]["model"] == "own/safe"
    assert (good["info"]["revision"], good["info"]["commit"]) == ("main", COMMIT)
    assert good["info"]["weights_sha256"] == weights_fingerprint(llama().model)
    assert good["ids"][:2] == [1, 2]
    assert pickled["info"]["weights_sha256"] == good["info"]["weights_sha256"]
    assert trusted["info"]["weights_sha256"] == good["info"]["weights_sha256"]
    assert trusted["ids"] == good["ids"]
    assert not any("own/safe" in request and ".bin" in request for request in requests)

    expected = [
        ("own/pickle", "--allow-pickle"),
        ("own/code", "--trust-remote-code"),
        ("own/absent", "no such model", "hf auth login"),
        ("own/gated", "restricted", "hf auth login"),
        ("own/safe", "'step7'", "Files and versions"),
        ("own/broken", "500", "HF_ENDPOINT"),
        ("own/empty", "config.json", "model"),
    ]
    for answer, parts in zip([refused, untrusted, *errors], expected, strict=True):
        assert answer["type"] == "InputError", answer
        assert "\n" not in answer["error"]
        assert all(part in answer["error"] for part in parts), answer
        assert answer["seconds"] < 20

    # Nothing answers any more: what was downloaded still loads, the rest is one line, and at once.
    questions = [("own/safe", "main", {}), ("own/safe", COMMIT, {}), ("own/other", None, {})]
    for environment in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        *cached, other = ask_hub(questions, cache, **environment)
        assert [answer.get("info", answer)["weights_sha256"] for answer in cached] == [
            good["info"]["weights_sha256"]
        ] * 2
        assert cached[0]["ids"] == good["ids"]
        assert other["type"] == "InputError"
        assert "own/other" in other["error"]
        assert "HF_HUB_OFFLINE" in other["error"]
        assert "\n" not in other["error"]
        assert other["seconds"] < 20
