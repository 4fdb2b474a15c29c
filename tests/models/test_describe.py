"""`softh-probe layers` lists from the config alone the layers that are probed."""

import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    OPTConfig,
    T5Config,
    XLMConfig,
)

from softh_probe import SoftEntropyProbe
from softh_probe.cli import main
from softh_probe.models.describe import describe_layers, load_skeleton
from softh_probe.models.source import resolve_model

OPT = OPTConfig(
    vocab_size=50, hidden_size=32, word_embed_proj_dim=16, num_hidden_layers=3, num_attention_heads=4, ffn_dim=32
)
T5 = T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_decoder_layers=3, num_heads=2)
XLM = XLMConfig(vocab_size=50, emb_dim=16, n_layers=2, n_heads=2)


def skeleton(tmp_path, config):
    config.save_pretrained(tmp_path)
    return load_skeleton(resolve_model(str(tmp_path), need_weights=False))


@pytest.mark.parametrize(
    "model",
    [
        GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=3, n_head=2)),
        AlbertForMaskedLM(
            AlbertConfig(
                vocab_size=50,
                embedding_size=8,
                hidden_size=16,
                num_hidden_layers=4,
                num_attention_heads=2,
                intermediate_size=16,
            )
        ),
    ],
    ids=["gpt2", "albert"],
)
def test_what_is_described_is_what_is_probed(tmp_path, model):
    table = describe_layers(skeleton(tmp_path, model.config), "cpu")
    probe = SoftEntropyProbe(model.eval(), labels=())
    with probe, torch.no_grad():
        model(torch.ones(2, 5, dtype=torch.long))
    assert table.name.tolist() == probe.layers
    assert table.width.tolist() == [probe._sums[name].dim for name in probe.layers]
    assert set(table.device) == {"cpu"}
    modules = [type(model.base_model.get_submodule(path)).__name__ for path in table.module[1:]]
    assert table["class"].tolist() == [f"input of {modules[0]}", *modules]


def test_both_stacks_of_an_encoder_decoder_are_described(tmp_path):
    table = describe_layers(skeleton(tmp_path, T5))
    assert table["stack"].tolist() == ["encoder"] * 4 + ["decoder"] * 5
    assert table[table["stack"] == "decoder"].name.tolist()[-2:] == ["layer.3", "final_norm"]


def test_devices_are_those_that_accelerate_would_choose(tmp_path, monkeypatch):
    def spread(model, **_):
        return {"decoder.layers.0": 0, "decoder.layers.1": 1, "decoder": "cpu"}

    monkeypatch.setattr("softh_probe.models.describe.infer_auto_device_map", spread)
    table = describe_layers(skeleton(tmp_path, OPT), "auto").set_index("name")
    assert table.device.to_dict() == {
        "embeddings": "0",
        "layer.1": "0",
        "layer.2": "1",
        "layer.3": "cpu",
        "final_norm": "cpu",
    }


def test_the_command_shows_the_table(tmp_path, capsys):
    OPT.save_pretrained(tmp_path)
    assert main(["layers", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "module", "class", "width", "device"]
    assert lines[2].split()[:4] == ["layer.1", "decoder.layers.0", "OPTDecoderLayer", "32"]
    assert len(lines) == 1 + 1 + 3 + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["layers", "{xlm}"], "cannot tell which modules of XLMModel are its transformer blocks"),
        (["layers", "{xlm}", "--device-map", "gpu"], "device_map 'gpu': no such device here"),
        (["layers", "/no/such/folder"], "no such file or folder"),
        (["layers"], "required: MODEL; softh-probe layers --help"),
        (["layers", "{xlm}", "--depth", "3"], "depth: no such field; valid are: model, revision, device_map"),
    ],
)
def test_bad_input_is_told_in_one_line(tmp_path, capsys, arguments, message):
    XLM.save_pretrained(tmp_path)
    assert main([a.format(xlm=tmp_path) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert "Traceback" not in error


@pytest.mark.slow
@pytest.mark.checkpoint
def test_a_real_gguf_file_is_described_from_its_header(smollm2_gguf):
    table = describe_layers(load_skeleton(resolve_model(str(smollm2_gguf))))
    assert table.name.tolist() == ["embeddings", *(f"layer.{i}" for i in range(1, 31)), "final_norm"]
    assert set(table.width) == {576}
