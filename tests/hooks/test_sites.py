"""Sites of blocks, against hooks that are placed by hand in models of many families."""

import copy
import re
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AlbertConfig, AlbertModel

from softh_probe import SoftEntropyProbe, sample_anchors, temperature
from softh_probe.errors import InputError, ProbeError
from tests.helpers import architectures, references
from tests.helpers.models import tiny_llama

N_ANCHORS, HEADS, WIDTH = 20, architectures.HEADS, architectures.HIDDEN
IDS = torch.randint(3, 40, (2, 7), generator=torch.Generator().manual_seed(0))


def family(model_type, class_name, attention, mlp, *, kind="causal", heads=HEADS, **changes):
    """Where the attention's output, its heads (what that module takes) and the MLP's output are in block {}."""
    return pytest.param(SimpleNamespace(**locals()), id=model_type)


BERT = {"attention": "bert.encoder.layer.{}.attention.output.dense", "mlp": "bert.encoder.layer.{}.output.dense"}
FAMILIES = [
    family("llama", "LlamaForCausalLM", "model.layers.{}.self_attn.o_proj", "model.layers.{}.mlp"),
    family("gpt2", "GPT2LMHeadModel", "transformer.h.{}.attn.c_proj", "transformer.h.{}.mlp"),
    family("gpt_neox", "GPTNeoXForCausalLM", "gpt_neox.layers.{}.attention.dense", "gpt_neox.layers.{}.mlp"),
    family("gptj", "GPTJForCausalLM", "transformer.h.{}.attn.out_proj", "transformer.h.{}.mlp"),
    family("opt", "OPTForCausalLM", "model.decoder.layers.{}.self_attn.out_proj", "model.decoder.layers.{}.fc2"),
    # These two modules return sums with the residual stream.
    family(
        "bloom",
        "BloomForCausalLM",
        "transformer.h.{}.self_attention.dense",
        "transformer.h.{}.mlp.dense_4h_to_h",
    ),
    family("falcon", "FalconForCausalLM", "transformer.h.{}.self_attention.dense", "transformer.h.{}.mlp"),
    family("bert", "BertForMaskedLM", **BERT, kind="masked"),
    family(
        "t5",
        "T5ForConditionalGeneration",
        "block.{}.layer.0.SelfAttention.o",
        "block.{}.layer.1.DenseReluDense",
        kind="seq2seq",
    ),
    family("mixtral", "MixtralForCausalLM", "model.layers.{}.self_attn.o_proj", "model.layers.{}.mlp"),
    family("qwen2_moe", "Qwen2MoeForCausalLM", "model.layers.{}.self_attn.o_proj", "model.layers.{}.mlp"),
    family("deepseek_v3", "DeepseekV3ForCausalLM", "model.layers.{}.self_attn.o_proj", "model.layers.{}.mlp"),
    family("gemma2", "Gemma2ForCausalLM", "model.layers.{}.self_attn", "model.layers.{}.mlp"),
]


@contextmanager
def caught(model, places):
    """What modules give, or take where the name ends in '<', of each call: [calls] of [B, T, D]."""
    found = {name: [] for name in places}
    with ExitStack() as stack:
        for name, path in places.items():
            module, seen = model.get_submodule(path.removesuffix("<")), found[name]
            if path.endswith("<"):
                handle = module.register_forward_pre_hook(lambda _m, args, seen=seen: seen.append(args[0].clone()))
            else:
                handle = module.register_forward_hook(lambda _m, _a, out, seen=seen: seen.append(first(out).clone()))
            stack.callback(handle.remove)
        yield found


def built(family):
    """A model of float64, whose masks of padding would not be finite, and a batch without padding."""
    model = architectures.build(family.kind, family.model_type, family.class_name).double()
    model.config._experts_implementation = "eager"  # others have no float64
    batch = architectures.padded_batch(model)
    return model, {name: ids for name, ids in batch.items() if not name.endswith("mask")}


def first(value):
    return value if torch.is_tensor(value) else value[0]


def soft_counts(hidden, real=None):
    z = hidden.double().flatten(0, -2).numpy()
    z = z if real is None else z[real.flatten().bool().numpy()]
    anchors = sample_anchors(N_ANCHORS, z.shape[-1]).numpy()
    return references.assignments(z, anchors, temperature(N_ANCHORS, z.shape[-1])).sum(0)


def assert_rows(probe, expected, real=None, **tolerance):
    assert set(expected) <= set(probe.layers)
    for row, hidden in expected.items():
        ours = probe.sums[probe.layers.index(row), 0].numpy()
        np.testing.assert_allclose(
            ours, soft_counts(hidden, real), **{"rtol": 1e-5, "atol": 1e-5, **tolerance}, err_msg=row
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_sites_are_those_of_hooks_placed_by_hand(family):
    model, batch = built(family)
    stack = model.get_encoder() if family.kind == "seq2seq" else model
    n_blocks = model.config.num_hidden_layers
    places = {
        **{f"layer.{i + 1}.attention": family.attention.format(i) for i in range(n_blocks)},
        **{f"layer.{i + 1}.mlp": family.mlp.format(i) for i in range(n_blocks)},
    }
    probe = SoftEntropyProbe(
        stack, labels=(), n_anchors=N_ANCHORS, sites=("residual", "attention", "mlp"), anchor_sets=1
    )
    with probe, torch.no_grad(), caught(stack, places) as found:
        model(**batch)
    rows = [[f"layer.{i}.attention", f"layer.{i}.mlp", f"layer.{i}"] for i in range(1, n_blocks + 1)]
    assert [row for row in probe.layers if row != "final_norm"] == ["embeddings", *(r for block in rows for r in block)]
    expected = {row: states.view(*batch["input_ids"].shape, -1) for row, (states,) in found.items()}
    assert_rows(probe, expected)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.id not in ("gemma2",)])
def test_heads_are_what_the_output_projection_takes(family):
    model, batch = built(family)
    stack = model.get_encoder() if family.kind == "seq2seq" else model
    places = {f"layer.{i + 1}": family.attention.format(i) + "<" for i in range(model.config.num_hidden_layers)}
    probe = SoftEntropyProbe(stack, labels=(), n_anchors=N_ANCHORS, sites="attention_heads", anchor_sets=1)
    with probe, torch.no_grad(), caught(stack, places) as found:
        model(**batch)
    expected = {
        f"{block}.head.{head}": part
        for block, (states,) in found.items()
        for head, part in enumerate(states.view(*batch["input_ids"].shape, -1).chunk(HEADS, dim=-1))
    }
    assert probe.layers == list(expected)
    assert_rows(probe, expected)


def test_without_biases_the_attention_is_what_its_projection_makes_of_the_heads():
    model = tiny_llama()
    heads = SoftEntropyProbe(model, labels=(), n_anchors=N_ANCHORS, sites="attention_heads", anchor_sets=1)
    probe = SoftEntropyProbe(model, labels=(), n_anchors=N_ANCHORS, sites="attention", anchor_sets=1)
    with heads, probe, torch.no_grad(), caught(model, {"z": "model.layers.0.self_attn.o_proj<"}) as found:
        model(input_ids=IDS)
    (z,) = found["z"]
    by_head = model.model.layers[0].self_attn.o_proj.weight.view(24, 4, 6)
    attention = torch.einsum("bthd,ohd->bto", z.view(2, 7, 4, 6), by_head).detach()
    assert_rows(probe, {"layer.1.attention": attention}, rtol=1e-4, atol=1e-4)
    assert_rows(heads, {f"layer.1.head.{h}": part for h, part in enumerate(z.chunk(4, -1))})


@pytest.mark.parametrize(
    ("model_type", "class_name", "gate"),
    [
        ("mixtral", "MixtralForCausalLM", "model.layers.{}.mlp.gate"),
        ("qwen2_moe", "Qwen2MoeForCausalLM", "model.layers.{}.mlp.gate"),
        ("gpt_oss", "GptOssForCausalLM", "model.layers.{}.mlp.router"),
        ("dbrx", "DbrxForCausalLM", "transformer.blocks.{}.ffn.router.layer"),
    ],
)
def test_router_is_the_logits_of_each_token(model_type, class_name, gate):
    model = architectures.build("causal", model_type, class_name)
    batch = architectures.padded_batch(model)
    places = {f"layer.{i + 1}.router": gate.format(i) + "<" for i in range(architectures.N_LAYERS)}
    probe = SoftEntropyProbe(model, labels=(), n_anchors=N_ANCHORS, sites=("router",), anchor_sets=1)
    with probe, torch.no_grad(), caught(model, places) as found:
        model(**batch)
    expected = {}
    for i, (row, (taken,)) in enumerate(found.items()):
        router = model.get_submodule(gate.format(i))
        logits = nn.functional.linear(taken, router.weight, getattr(router, "bias", None)).detach()
        expected[row] = logits.view(*batch["input_ids"].shape, -1)
    assert probe.layers == list(expected)
    assert_rows(probe, expected, batch["attention_mask"])


def test_a_router_that_a_model_has_in_some_blocks_has_rows_in_these():
    model = architectures.build("causal", "deepseek_v3", "DeepseekV3ForCausalLM")
    dense = sum(not hasattr(block.mlp, "experts") for block in model.model.layers)
    assert 0 < dense < architectures.N_LAYERS
    probe = SoftEntropyProbe(model, labels=(), sites=("router", "mlp"), anchor_sets=1)
    routers = [row for row in probe.layers if row.endswith(".router")]
    assert routers == [f"layer.{i}.router" for i in range(dense + 1, architectures.N_LAYERS + 1)]
    with probe, torch.no_grad():
        model(input_ids=IDS)


def test_a_repeated_block_has_sites_for_each_call():
    torch.manual_seed(0)
    model = AlbertModel(
        AlbertConfig(
            vocab_size=50,
            embedding_size=8,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=3,
            num_attention_heads=2,
        )
    ).eval()
    layer = "encoder.albert_layer_groups.0.albert_layers.0"
    places = {"attention": f"{layer}.attention.dense", "mlp": f"{layer}.ffn_output"}
    probe = SoftEntropyProbe(model, labels=(), n_anchors=N_ANCHORS, sites="attention,mlp", anchor_sets=1)
    with probe, torch.no_grad(), caught(model, places) as found:
        model(input_ids=IDS)
    expected = {f"layer.{i + 1}.{site}": states[i] for i in range(3) for site, states in found.items()}
    assert probe.layers == list(expected)
    assert_rows(probe, expected)


@pytest.mark.parametrize("sites", ["attention,mlp", "attention_heads", "router,mlp"])
def test_decode_steps_with_a_cache_count_as_the_whole_text_does(sites):
    kind = ("mixtral", "MixtralForCausalLM") if "router" in sites else ("llama", "LlamaForCausalLM")
    model = architectures.build("causal", *kind)
    with torch.no_grad():
        how = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "use_cache": True}
        cached, whole = (
            SoftEntropyProbe(model, labels=(), n_anchors=N_ANCHORS, sites=sites, anchor_sets=1) for _ in range(2)
        )
        with cached:
            output = model.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), **how)
        with whole:
            model(input_ids=output[:, :-1], use_cache=False)
    assert cached.positions == whole.positions == 2 * 11
    assert cached.layers == whole.layers
    torch.testing.assert_close(cached.sums, whole.sums, rtol=1e-3, atol=1e-3)


# --- hooks of others ------------------------------------------------------------------------------------------


def changed(value, by):
    return value + by if torch.is_tensor(value) else (value[0] + by, *value[1:])


@pytest.mark.parametrize("path", ["self_attn", "self_attn.o_proj"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_vector_added_to_the_attention_is_measured_with_it(path, when):
    model = tiny_llama()
    vector = 3 * torch.randn(24, generator=torch.Generator().manual_seed(1))
    probe = SoftEntropyProbe(model, labels=(), n_anchors=N_ANCHORS, sites="attention", anchor_sets=1)
    with caught(model, {"z": "model.layers.1.self_attn.o_proj"}) as found, torch.no_grad():
        model(input_ids=IDS)
    (plain,) = found["z"]
    steered = model.model.layers[1].get_submodule(path)
    with ExitStack() as stack:
        if when == "before":
            stack.callback(steered.register_forward_hook(lambda _m, _a, out: changed(out, vector)).remove)
        stack.enter_context(probe)
        if when == "after":
            stack.callback(steered.register_forward_hook(lambda _m, _a, out: changed(out, vector)).remove)
        with torch.no_grad():
            model(input_ids=IDS)
    assert_rows(probe, {"layer.2.attention": plain + vector})


def test_what_others_do_to_a_sum_with_the_residual_stream_is_not_the_attentions():
    model = architectures.build("causal", "bloom", "BloomForCausalLM")
    probe = SoftEntropyProbe(model, labels=(), n_anchors=N_ANCHORS, sites="attention,mlp", anchor_sets=1)
    places = {
        "layer.2.attention": "transformer.h.1.self_attention.dense",
        "layer.2.mlp": "transformer.h.1.mlp.dense_4h_to_h",
    }
    with ExitStack() as stack, torch.no_grad():
        for part in (model.transformer.h[1].self_attention, model.transformer.h[1].mlp):
            stack.callback(part.register_forward_hook(lambda _m, _a, out: changed(out, 1.0)).remove)
        found = stack.enter_context(caught(model, places))
        stack.enter_context(probe)
        model(input_ids=IDS)
    assert_rows(probe, {row: states for row, (states,) in found.items()})


def test_nothing_is_left_behind_and_copies_have_no_hooks():
    model = tiny_llama()
    before = [(len(m._forward_hooks), len(m._forward_pre_hooks), m.forward) for m in model.modules()]
    probe = SoftEntropyProbe(model, labels=(), sites="attention,attention_heads,mlp", anchor_sets=1)
    with probe, torch.no_grad():
        twin = copy.deepcopy(model)
        model(input_ids=IDS)
        positions = probe.positions
        twin(input_ids=IDS)
        assert probe.positions == positions
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in twin.modules())
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks), m.forward) for m in model.modules()] == before


def test_a_module_that_takes_the_place_of_a_sites_is_told():
    model = tiny_llama()
    probe = SoftEntropyProbe(model, labels=(), sites="mlp", anchor_sets=1)
    mlp = model.model.layers[1].mlp
    with pytest.raises(ProbeError, match=r"layers\.1\.mlp\.down_proj: another module stands in its place"):
        with probe, torch.no_grad():
            mlp.down_proj = copy.deepcopy(mlp.down_proj)
            model(input_ids=IDS)


def test_adapters_are_part_of_a_site():
    peft = pytest.importorskip("peft")
    model = tiny_llama()
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=["o_proj", "down_proj"], init_lora_weights=False)
    ).eval()
    places = {
        "layer.1.attention": "base_model.model.model.layers.0.self_attn",
        "layer.1.mlp": "base_model.model.model.layers.0.mlp",
    }
    probe = SoftEntropyProbe(adapted, labels=(), n_anchors=N_ANCHORS, sites="attention,mlp", anchor_sets=1)
    with probe, torch.no_grad(), caught(adapted, places) as found:
        adapted(input_ids=IDS)
    assert_rows(probe, {row: states for row, (states,) in found.items()})


def test_a_compiled_model_is_measured():
    model = tiny_llama()
    compiled = torch.compile(model, backend="eager")
    plain, probe = (SoftEntropyProbe(model, labels=(), sites="attention,mlp", anchor_sets=1) for _ in range(2))
    with torch.no_grad():
        with plain:
            model(input_ids=IDS)
        with probe:
            compiled(input_ids=IDS)
    assert torch.equal(probe.sums, plain.sums)


# --- which rows -----------------------------------------------------------------------------------------------


def test_an_index_stands_for_all_sites_of_a_layer_and_a_name_for_one_row():
    model = tiny_llama()

    def rows(**how):
        return SoftEntropyProbe(model, labels=(), anchor_sets=1, **how).layers

    assert rows(sites=("attention",), layers=[3]) == ["layer.3.attention"]
    assert rows(sites="residual,mlp", layers=[-2, 0]) == ["embeddings", "layer.3.mlp", "layer.3"]
    assert rows(sites="residual,mlp", layers=["layer.2.mlp", -1]) == ["layer.2.mlp", "final_norm"]
    assert rows(sites="attention_heads", layers=["layer.1.head.3"]) == ["layer.1.head.3"]
    assert rows(layers=[3]) == ["layer.3"]


@pytest.mark.parametrize("layers", [[0], ["layer.1"], [9], ["layer.9.mlp"]])
def test_layers_that_a_site_does_not_have_are_refused(layers):
    with pytest.raises(InputError, match="layers: no layer"):
        SoftEntropyProbe(tiny_llama(), sites="mlp", layers=layers, anchor_sets=1)


def test_sites_are_checked():
    model = tiny_llama()
    with pytest.raises(InputError, match="sites: no site 'atention'; expected any of attention, attention_heads"):
        SoftEntropyProbe(model, sites=["atention"], anchor_sets=1)
    with pytest.raises(InputError, match="sites: expected any of"):
        SoftEntropyProbe(model, sites=[], anchor_sets=1)
    with pytest.raises(InputError, match="sites: expected none where modules are named"):
        SoftEntropyProbe(model, modules={"a": model.model.layers[0]}, sites="mlp", anchor_sets=1)
    with pytest.raises(InputError, match="no block of LlamaModel has a mixture of experts"):
        SoftEntropyProbe(model, sites="router", anchor_sets=1)


def test_what_is_not_certain_is_refused_by_name_in_one_line():
    mamba = architectures.build("causal", "mamba", "MambaForCausalLM")
    with pytest.raises(InputError, match="sites: no block of MambaModel has an attention") as error:
        SoftEntropyProbe(mamba, sites=("residual", "attention"), anchor_sets=1)
    assert re.search(r"modules=\{name: module\}$", str(error.value))
    xlnet = architectures.build("causal", "xlnet", "XLNetLMHeadModel")
    with pytest.raises(InputError, match=r"'attention' of transformer\.layer\.0 \(XLNetLayer\)"):
        SoftEntropyProbe(xlnet, sites="attention", anchor_sets=1)


def test_an_mlp_of_equal_widths_is_known_by_the_name_of_its_last_projection():
    model = tiny_llama(intermediate_size=24)
    probe = SoftEntropyProbe(model, labels=(), n_anchors=N_ANCHORS, sites="mlp", anchor_sets=1)
    with probe, torch.no_grad(), caught(model, {"layer.1.mlp": "model.layers.0.mlp"}) as found:
        model(input_ids=IDS)
    assert_rows(probe, {row: states for row, (states,) in found.items()})


# --- states ---------------------------------------------------------------------------------------------------


def test_states_keep_the_sites_and_those_of_before_are_of_the_residual_stream():
    model = tiny_llama()
    one, other = (SoftEntropyProbe(model, labels=(), sites="residual,mlp", anchor_sets=1) for _ in range(2))
    with one, other, torch.no_grad():
        model(input_ids=IDS)
    copied = one.new_like()
    copied.load_state_dict(one.state_dict())
    copied.merge(other)
    assert copied.layers == one.layers
    torch.testing.assert_close(copied.sums, one.sums + other.sums)
    residual = SoftEntropyProbe(model, labels=(), anchor_sets=1)
    with pytest.raises(InputError, match="expected sites="):
        residual.merge(one)
    with residual, torch.no_grad():
        model(input_ids=IDS)
    state = residual.state_dict()
    del state["settings"]["sites"]
    again = SoftEntropyProbe(model, labels=(), anchor_sets=1)
    again.load_state_dict(state)
    assert torch.equal(again.sums, residual.sums)
    with pytest.raises(InputError, match="expected sites="):
        one.load_state_dict(state)
