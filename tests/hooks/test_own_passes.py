"""Forward passes of another model through the same modules do not count, and are never left out silently."""

import copy
import warnings

import pytest
import torch
from peft import (
    IA3Config,
    LoraConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
    inject_adapter_in_model,
)
from peft.helpers import rescale_adapter_scale
from torch import nn
from transformers import LlamaForCausalLM

from softh_probe import ProbeResult, SoftEntropyProbe
from softh_probe.errors import ProbeError
from softh_probe.hooks import left_out
from tests.helpers.models import tiny_llama

IDS = torch.arange(3, 33).view(3, 10)
LORA = {"r": 4, "target_modules": ["q_proj", "up_proj"], "init_lora_weights": False, "lora_alpha": 64}


def lora(*names, **changes):
    """A model with adapters, of which the first is active."""
    torch.manual_seed(1)
    names = names or ("default",)
    model = get_peft_model(tiny_llama(), LoraConfig(**{**LORA, **changes}), names[0])
    for name in names[1:]:
        model.add_adapter(name, LoraConfig(**{**LORA, **changes}))
    return model.eval()


def alone(model, n_texts=3, **settings):
    probe = SoftEntropyProbe(model, labels=(), anchor_sets=1, **settings)
    with probe, torch.no_grad():
        model(IDS[:n_texts])
    return probe


def run(probe, *passes):
    """Run forward passes inside the probe's block."""
    with probe, torch.no_grad():
        for forward_pass in passes:
            forward_pass()


def left_out_of(probe):
    """What the result says was left out."""
    return [choice["chosen"] for choice in probe.result().info["choices"] if choice["about"] == "forward passes"]


def assert_only_the_first_pass_counts(model, others, n_others=1):
    """Run the model, then `others` inside the same block."""
    expected = alone(model, 1)
    probe = SoftEntropyProbe(model, labels=(), anchor_sets=1)
    with pytest.warns(UserWarning, match=f"{n_others} {left_out.OTHER_ADAPTERS} did not count"):
        run(probe, lambda: model(IDS[:1]), others)
    assert probe.positions == expected.positions == 10
    torch.testing.assert_close(probe.sums, expected.sums)
    assert left_out_of(probe) == [f"{n_others} {left_out.OTHER_ADAPTERS} did not count"]


def disabled(model):
    with model.disable_adapter():
        model(IDS)


def base_disabled(model):
    model.base_model.disable_adapter_layers()
    model(IDS)
    model.base_model.enable_adapter_layers()


def generates_disabled(model):
    with model.disable_adapter():
        model.generate(IDS, max_new_tokens=1)


def merged_then_disabled(model):
    model.merge_adapter()
    disabled(model)


def scaled(model):
    with rescale_adapter_scale(model, 0.5):
        model(IDS)


def unloaded(model):
    model.unload()
    model.base_model.model(IDS)


OTHERS = [disabled, base_disabled, generates_disabled, merged_then_disabled, scaled, unloaded]


@pytest.mark.parametrize("others", OTHERS)
def test_passes_without_the_adapters(others):
    model = lora()
    assert_only_the_first_pass_counts(model, lambda: others(model))


def switched(model):
    model.set_adapter("ref")
    model(IDS)


def both(model):
    model.base_model.set_adapter(["policy", "ref"])
    model(IDS)


def other_merged(model):
    model.merge_adapter(["ref"])
    model(IDS)


def named_for_each_row(model):
    model(IDS, adapter_names=["ref", "__base__", "ref"])


@pytest.mark.parametrize("others", [switched, both, other_merged, named_for_each_row])
def test_passes_with_other_adapters(others):
    model = lora("policy", "ref")
    assert_only_the_first_pass_counts(model, lambda: others(model))


@pytest.mark.parametrize(
    "config", [IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])]
)
def test_adapters_of_another_kind(config):
    model = get_peft_model(tiny_llama(), config).eval()
    assert_only_the_first_pass_counts(model, lambda: disabled(model))


def test_modules_that_are_trained_as_a_whole():
    model = lora(target_modules=["lm_head"], modules_to_save=["embed_tokens"])
    model.base_model.model.model.embed_tokens.modules_to_save["default"].weight.data.mul_(-2)
    assert_only_the_first_pass_counts(model, lambda: disabled(model))


@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig])
def test_passes_without_the_trained_prompt(kind):
    model = get_peft_model(tiny_llama(), kind(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()

    def others():
        disabled(model)
        model.base_model(IDS)  # past the prompt

    assert_only_the_first_pass_counts(model, others, n_others=2)


def test_the_adapters_of_transformers_itself():
    model = tiny_llama()
    torch.manual_seed(1)
    model.add_adapter(LoraConfig(**LORA))
    model.eval()

    def others():
        model.disable_adapters()
        model(IDS)
        model.enable_adapters()

    assert_only_the_first_pass_counts(model, others)


def test_the_base_model_counts_where_it_is_what_the_block_began_with():
    model = lora()
    probe = SoftEntropyProbe(model, labels=(), anchor_sets=1)
    with model.disable_adapter():
        expected = alone(model, 1)
        with probe, torch.no_grad():
            model(IDS[:1])
            model.base_model.enable_adapter_layers()
            model(IDS)
            model.base_model.disable_adapter_layers()
    torch.testing.assert_close(probe.sums, expected.sums)
    assert probe.positions == 10


def test_adapters_that_are_injected_later_make_another_model():
    model = tiny_llama()
    assert_only_the_first_pass_counts(model, lambda: inject_adapter_in_model(LoraConfig(**LORA), model).eval()(IDS))


@pytest.mark.parametrize("merge", ["merge_adapter", "merge_and_unload"])
def test_a_merged_adapter_computes_the_same_and_counts(merge):
    model = lora("policy", "ref")
    expected = alone(model)
    expected.merge(alone(model, 1))
    probe = SoftEntropyProbe(model, labels=(), anchor_sets=1)
    with warnings.catch_warnings(), probe, torch.no_grad():
        warnings.simplefilter("error")
        model(IDS[:1])
        getattr(model, merge)()
        model(IDS[1:])
        if merge == "merge_adapter":
            model.unmerge_adapter()
            model.set_adapter("ref")
            model.set_adapter("policy")
        model(IDS[:1])
    assert probe.positions == expected.positions
    torch.testing.assert_close(probe.sums, expected.sums, rtol=1e-4, atol=1e-4)
    assert not left_out_of(probe)


def test_adapters_that_are_named_for_each_row_count_where_they_are_the_active_ones():
    model = lora("policy", "ref")
    probe = SoftEntropyProbe(model, labels=(), anchor_sets=1)
    with probe, torch.no_grad():
        model(IDS, adapter_names=["policy"] * 3)
    torch.testing.assert_close(probe.sums, alone(model).sums)
    with pytest.raises(ProbeError, match="adapter_names: expected the adapters that were active"), probe:
        model(IDS, adapter_names=["policy", "ref", "policy"])


def sharing(model):
    other = LlamaForCausalLM(model.config).eval()
    other.model = model.model
    return other


@pytest.mark.parametrize(
    "reference", [sharing, copy.copy, lambda model: nn.Sequential(sharing(model))], ids=["sharing", "copy", "inside"]
)
def test_a_reference_that_shares_the_backbone(reference):
    model = tiny_llama()
    other = reference(model)
    probe = SoftEntropyProbe(model, labels=(), anchor_sets=1)
    with pytest.warns(UserWarning, match="2 of another model that shares modules"):
        run(probe, lambda: model(IDS), lambda: other(IDS), lambda: other(IDS))
    torch.testing.assert_close(probe.sums, alone(model).sums)
    assert left_out_of(probe) == [f"2 {left_out.OTHER_MODEL} did not count"]
    assert alone(other[0] if isinstance(other, nn.Sequential) else other).positions == 30


def test_a_reference_that_shares_layers():
    model, other = tiny_llama(), tiny_llama()
    other.model.layers[0] = model.model.layers[0]
    probe = SoftEntropyProbe(model, labels=(), anchor_sets=1)
    with pytest.warns(UserWarning, match=f"2 {left_out.LAYERS_ALONE} did not count"):
        run(probe, lambda: other(IDS), lambda: model(IDS), lambda: other(IDS))
    torch.testing.assert_close(probe.sums, alone(model).sums)


def test_wrappers_around_the_model_and_calls_of_its_backbone_count():
    model = tiny_llama()
    probe = SoftEntropyProbe(model, labels=(), anchor_sets=1)
    with warnings.catch_warnings(), probe, torch.no_grad():
        warnings.simplefilter("error")
        nn.Sequential(model).eval()(IDS[:1])
        model.model(IDS[1:2])
        model.model.forward(IDS[2:])
        model.generate(IDS[:1], max_new_tokens=1, do_sample=False)
    assert probe.positions == 40
    probe = SoftEntropyProbe(model.model, labels=(), anchor_sets=1)
    with probe, torch.no_grad():
        model(IDS)
        sharing(model)(IDS)  # the backbone alone is probed, whoever runs it
    assert probe.positions == 60


def test_what_was_left_out_is_kept_in_states_and_results(tmp_path):
    model = lora()
    probe = SoftEntropyProbe(model, labels=(), anchor_sets=1)
    for _ in range(2):
        with pytest.warns(UserWarning, match="did not count"):
            run(probe, lambda: model(IDS), lambda: disabled(model))
    model.train()
    with warnings.catch_warnings(), probe:
        warnings.simplefilter("error")  # nothing new is to be said
        model(IDS)
    both = probe.new_like()
    both.load_state_dict(probe.state_dict())
    both.merge(probe)
    expected = [f"4 {left_out.OTHER_ADAPTERS} did not count", f"2 {left_out.TRAINING} did not count"]
    assert left_out_of(both) == expected
    both.result().save(tmp_path)
    assert [choice["chosen"] for choice in ProbeResult.load(tmp_path).info["choices"]] == expected


def test_nothing_counted_says_what_was_left_out():
    model = lora()
    probe = SoftEntropyProbe(model, labels=(), anchor_sets=1)
    with pytest.warns(UserWarning, match="did not count"):
        run(probe, lambda: disabled(model))
    with pytest.raises(ProbeError, match=r"no position was counted: .*1 with other adapters"):
        probe.result()


def test_passes_that_are_traced_are_no_part_of_an_evaluation():
    net, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval(), torch.randn(5, 8)
    probe = SoftEntropyProbe(net, modules={"relu": net[1]}, labels=[], anchor_sets=1)
    with warnings.catch_warnings(record=True) as said, probe, torch.no_grad():
        warnings.simplefilter("always")
        net(x)
        traced = torch.jit.trace(net, torch.randn(3, 8), check_trace=False)
        exported = torch.export.export(net, (torch.randn(3, 8),), strict=False)
    assert any("that torch.jit or torch.export traced did not count" in str(warning.message) for warning in said)
    assert probe.positions == 5
    computed = [node.kind() for node in traced.inlined_graph.nodes() if node.kind().startswith("aten::")]
    assert computed == ["aten::linear", "aten::relu"]
    assert [str(node.target) for node in exported.graph.nodes if node.op == "call_function"] == [
        "aten.linear.default",
        "aten.relu.default",
    ]
    probe.result()


def test_a_pass_that_a_hook_begins_leaves_the_outer_one_alone():
    model, ids = tiny_llama().eval(), torch.randint(1, 40, (2, 7))
    alone, probe = (SoftEntropyProbe(model, labels=["input_unigram"], anchor_sets=1) for _ in range(2))
    with alone, torch.no_grad():
        model(ids)
    started = []

    def contrast(*_):
        if not started:
            started.append(True)
            model(ids[:, :3])

    handle = model.model.layers[0].register_forward_hook(contrast)
    with pytest.warns(UserWarning, match="1 that code began inside another one of the model"), probe, torch.no_grad():
        model(ids)
    handle.remove()
    assert probe.positions == 14
    torch.testing.assert_close(probe.sums, alone.sums)
