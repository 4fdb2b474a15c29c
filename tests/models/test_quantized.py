"""Weights of 8 and 4 bits: checkpoints that transformers loads on a CPU are measured as it runs them, or refused."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedTokenizerFast, TorchAoConfig

from softh_probe import sample_anchors, temperature
from softh_probe.errors import InputError
from softh_probe.models.describe import describe_layers, load_skeleton
from softh_probe.models.source import resolve_model
from softh_probe.run import run
from tests.helpers import references
from tests.helpers.corpora import TEXTS
from tests.helpers.models import tiny_llama
from tests.helpers.probes import NAMES, NGRAMS, value

WIDTH = 64


@pytest.fixture
def plain(checkpoint):
    """A model whose widths the packing formats take."""
    vocab_size = json.loads((checkpoint / "config.json").read_text())["vocab_size"]
    return tiny_llama(vocab_size=vocab_size, hidden_size=WIDTH, intermediate_size=128, initializer_range=0.2)


@pytest.fixture
def folder(plain, checkpoint, tmp_path) -> Path:
    """Its checkpoint, to be quantized."""
    plain.save_pretrained(tmp_path / "model")
    for file in checkpoint.glob("tokenizer*"):
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "model"


def by_library(folder: Path, quantization) -> None:
    """Saved as transformers does, before the model ran: on a CPU bitsandbytes packs anew what ran."""
    AutoModelForCausalLM.from_pretrained(folder, quantization_config=quantization, dtype=torch.float32).save_pretrained(
        folder
    )


def by_hand(folder: Path, quantization: dict, packed) -> None:
    """The files of checkpoints that only other tools write: each matrix becomes what `packed` gives."""
    file = folder / "model.safetensors"
    weights: dict[str, torch.Tensor] = {}
    for name, weight in load_file(file).items():
        weights |= packed(name, weight) if "proj" in name else {name: weight}
    save_file(weights, file, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))


def bitsandbytes_8(folder):
    pytest.importorskip("bitsandbytes")
    by_library(folder, BitsAndBytesConfig(load_in_8bit=True))


def bitsandbytes_4(folder):
    pytest.importorskip("bitsandbytes")
    by_library(folder, BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"))


def torchao_8(folder):
    pytest.importorskip("torchao", reason="torchao writes to standard error wherever it is installed")
    from torchao.quantization import Int8WeightOnlyConfig

    by_library(folder, TorchAoConfig(Int8WeightOnlyConfig()))


def compressed_tensors(folder, bits, layout, strategy, packed):
    pytest.importorskip("compressed_tensors")
    weights = {"num_bits": bits, "type": "int", "symmetric": True, **strategy}
    group = {"targets": ["Linear"], "weights": weights, "format": layout}
    quantization = {"quant_method": "compressed-tensors", "format": layout, "quantization_status": "compressed"}
    by_hand(folder, {**quantization, "ignore": ["lm_head"], "config_groups": {"group_0": group}}, packed)


def compressed_tensors_8(folder):
    def packed(name, weight):
        scale = weight.abs().amax(1, keepdim=True) / 127
        return {name: (weight / scale).round().to(torch.int8), f"{name}_scale": scale}

    compressed_tensors(folder, 8, "int-quantized", {"strategy": "channel"}, packed)


def compressed_tensors_4(folder):
    def packed(name, weight):
        from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

        groups = weight.unflatten(1, (-1, 32))
        scale = groups.abs().amax(2) / 7
        integers = (groups / scale[..., None]).round().to(torch.int8).flatten(1)
        parts = {"packed": pack_to_int32(integers, 4), "scale": scale, "shape": torch.tensor(weight.shape)}
        return {f"{name}_{part}": tensor for part, tensor in parts.items()}

    compressed_tensors(folder, 4, "pack-quantized", {"strategy": "group", "group_size": 32}, packed)


def fp8(folder):
    def packed(name, weight):
        blocks = weight.unflatten(1, (-1, 32)).unflatten(0, (-1, 32))
        scale = blocks.abs().amax((1, 3)) / 448
        eighths = (blocks / scale[:, None, :, None]).reshape(weight.shape).to(torch.float8_e4m3fn)
        return {name: eighths, f"{name}_scale_inv": scale}

    by_hand(folder, {"quant_method": "fp8", "weight_block_size": [32, 32], "activation_scheme": "dynamic"}, packed)


FORMATS = [bitsandbytes_8, bitsandbytes_4, torchao_8, compressed_tensors_8, compressed_tensors_4, fp8]


@pytest.mark.parametrize("quantize", FORMATS, ids=lambda f: f.__name__)
def test_a_quantized_checkpoint_is_measured_as_the_library_runs_it(config, plain, folder, quantize):
    quantize(folder)
    # One document at a time, for bitsandbytes rounds a batch's states together.
    settings = {"model": str(folder), "labels": NAMES[:2], "tokens_per_batch": 1, "max_documents": 8}
    result = run(config(**settings), progress=False)
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    docs = PreTrainedTokenizerFast.from_pretrained(folder)(TEXTS[:8])["input_ids"]
    with torch.no_grad():
        whole(torch.tensor(docs[:1]))  # the first pass of the whole unpacks what is to be unpacked
    drawn = sample_anchors(20, WIDTH).numpy(), temperature(20, WIDTH)
    expected, unquantized = (references.measure(model, docs, NGRAMS[:2], *drawn) for model in (whole, plain))
    for row, mass_SM in zip(result.rows, result.tensors["mass"], strict=True):
        q = expected.q[row]
        np.testing.assert_allclose(mass_SM[0], q.sum(axis=0), rtol=1e-5)
        for name in NAMES[:2]:
            information = references.mutual_information(q, expected.labels[name])
            assert value(result, row, "mutual_information", name) == pytest.approx(information, abs=1e-6)
    assert np.abs(expected.q["layer.3"] - unquantized.q["layer.3"]).max() > 1e-3  # there is something to get wrong

    info = result.info["model"]
    assert (info["class"], info["dtype"]) == ("LlamaModel", "float32")
    assert info["quantization"]["quant_method"].replace("-", "_") in quantize.__name__
    assert info["n_parameters"] >= sum(p.numel() for p in plain.model.parameters())
    again = run(config(**settings, overwrite=True), progress=False)
    assert again.info["model"]["weights_sha256"] == info["weights_sha256"]
    table = describe_layers(load_skeleton(resolve_model(str(folder))), "cpu")
    assert table.name.tolist() == result.rows
    assert set(table.width) == {WIDTH}


def test_weights_that_come_in_one_dtype_are_refused_in_another(config, folder):
    bitsandbytes_4(folder)
    with pytest.raises(InputError, match="dtype 'bfloat16': transformers loads these weights in float32 only; leave"):
        run(config(model=str(folder), dtype="bfloat16"), progress=False)


@pytest.mark.skipif(importlib.util.find_spec("gptqmodel") is not None, reason="its package is here")
def test_a_missing_package_is_named(config, folder):
    by_hand(folder, {"quant_method": "awq", "bits": 4}, lambda name, weight: {name: weight})
    with pytest.raises(InputError, match=r"needs a package that is not installed: .*gptqmodel"):
        run(config(model=str(folder)), progress=False)
