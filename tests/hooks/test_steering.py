"""Hooks of others that change what a block takes or gives: its state is what the next block takes."""

from contextlib import ExitStack, contextmanager, nullcontext

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AlbertConfig, AlbertModel

from softh_probe import SoftEntropyProbe, sample_anchors, temperature
from softh_probe.errors import ProbeError
from softh_probe.patching import replaced
from tests.helpers import references
from tests.helpers.models import tiny_llama

IDS = torch.randint(3, 40, (2, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    return tiny_llama()


def first(value):
    return value if torch.is_tensor(value) else value[0]


def changed(value, by):
    return value + by if torch.is_tensor(value) else (value[0] + by, *value[1:])


def direction(width=24):
    return 3 * torch.randn(width, generator=torch.Generator().manual_seed(1))


def give_more(_module, _args, output):
    return changed(output, direction())


def give_more_with_kwargs(_module, _args, _kwargs, output):
    return changed(output, direction())


def give_more_in_place(_module, _args, output):
    first(output).add_(direction())


def take_more(_module, args, kwargs):
    return (args[0] + direction(), *args[1:]), kwargs


def take_more_in_place(_module, args):
    args[0].add_(direction())


@contextmanager
def what_is_taken(model):
    """Record what the forward methods of blocks and norm are given, past all hooks, and what the norm gives."""
    taken = []

    def forward(original, hidden, *args, **kwargs):
        taken.append(hidden.clone())
        return original(hidden, *args, **kwargs)

    with ExitStack() as stack:
        for module in [*model.model.layers, model.model.norm]:
            stack.enter_context(replaced(module, "forward", forward))
        yield taken


def assert_states(probe, states):
    """Compare the sums of layers with those of hidden states [B, T, D]."""
    for sums, state in zip(probe.sums[:, 0], states, strict=False):
        h = state.reshape(-1, state.shape[-1]).double().numpy()
        q = references.assignments(h, sample_anchors(100, h.shape[1]).numpy(), temperature(100, h.shape[1]))
        np.testing.assert_allclose(sums, q.sum(0), atol=1e-3)


STEERING = {
    "hook": lambda m: m.model.layers[0].register_forward_hook(give_more),
    "hook in front": lambda m: m.model.layers[0].register_forward_hook(give_more, prepend=True),
    "hook with kwargs": lambda m: m.model.layers[1].register_forward_hook(give_more_with_kwargs, with_kwargs=True),
    "hook that is always called": lambda m: m.model.layers[1].register_forward_hook(give_more, always_call=True),
    "hook in place": lambda m: m.model.layers[0].register_forward_hook(give_more_in_place),
    "hook on the last block": lambda m: m.model.layers[-1].register_forward_hook(give_more),
    "hook on every block": lambda m: [b.register_forward_hook(give_more) for b in m.model.layers],
    "pre-hook": lambda m: m.model.layers[1].register_forward_pre_hook(take_more, with_kwargs=True),
    "pre-hook in front": lambda m: m.model.layers[1].register_forward_pre_hook(
        take_more, with_kwargs=True, prepend=True
    ),
    "pre-hook in place": lambda m: m.model.layers[2].register_forward_pre_hook(take_more_in_place),
    "pre-hook on the first block": lambda m: m.model.layers[0].register_forward_pre_hook(take_more, with_kwargs=True),
    "pre-hook on every block": lambda m: [
        b.register_forward_pre_hook(take_more, with_kwargs=True) for b in m.model.layers
    ],
    "pre-hook on the norm": lambda m: m.model.norm.register_forward_pre_hook(take_more_in_place),
    "pre-hook that changes nothing": lambda m: m.model.layers[1].register_forward_pre_hook(lambda *_: None),
}


@pytest.mark.parametrize("when", ["before", "inside", "during"])
@pytest.mark.parametrize("steering", STEERING)
def test_a_blocks_state_is_what_the_next_one_takes(model, steering, when):
    probe, steer = SoftEntropyProbe(model, labels=()), STEERING[steering]
    refused = when == "during" and steering in ("pre-hook on the first block", "pre-hook on every block")
    outcome = pytest.raises(ProbeError, match="a hook was registered as it was called") if refused else nullcontext()
    with outcome, probe, torch.no_grad(), what_is_taken(model) as taken:
        if when == "inside":
            steer(model)
        if when == "during":
            model.model.embed_tokens.register_forward_hook(lambda *_: steer(model) and None)
        model(IDS)
        if when != "during":
            model(IDS)
            taken[:] = [torch.cat(pair) for pair in zip(taken[:4], taken[4:], strict=True)]
    assert_states(probe, [] if refused else taken)


def test_the_final_norms_state_is_what_the_head_takes(model):
    probe, given = SoftEntropyProbe(model, labels=()), []
    with probe, torch.no_grad():
        model.model.norm.register_forward_hook(give_more)
        model.lm_head.register_forward_pre_hook(lambda _m, args: given.append(args[0].clone()))
        model(IDS)
    q = references.assignments(
        given[0].flatten(0, 1).double().numpy(), sample_anchors(100, 24).numpy(), temperature(100, 24)
    )
    np.testing.assert_allclose(probe.sums[-1, 0], q.sum(0), atol=1e-3)


def test_a_hook_that_registers_another_on_the_same_block(model):
    """As libraries do whose hooks hold for one call."""
    block = model.model.layers[0]
    probe = SoftEntropyProbe(model, labels=())
    with probe, torch.no_grad(), what_is_taken(model) as taken:
        block.register_forward_pre_hook(lambda m, _a: m.register_forward_hook(give_more) and None)
        model(IDS)
    assert_states(probe, taken)


def test_hooks_that_come_and_go_between_passes(model):
    probe, states = SoftEntropyProbe(model, labels=()), [[] for _ in range(4)]
    with probe, torch.no_grad():
        for steered in (False, True, False):
            handles = [model.model.layers[1].register_forward_pre_hook(take_more, with_kwargs=True)] if steered else []
            handles += [model.model.layers[1].register_forward_hook(give_more)] if steered else []
            with what_is_taken(model) as taken:
                model(IDS)
            for kept, state in zip(states, taken, strict=True):
                kept.append(state)
            for handle in handles:
                handle.remove()
    assert_states(probe, list(map(torch.cat, states)))


def test_two_probes_see_the_same(model):
    one, other = (SoftEntropyProbe(model, labels=()) for _ in range(2))
    with one, other, torch.no_grad(), what_is_taken(model) as taken:
        STEERING["hook"](model)
        STEERING["pre-hook in place"](model)
        model(IDS)
    assert_states(one, taken)
    assert torch.equal(one.sums, other.sums)


@pytest.mark.parametrize("steering", ["hook", "pre-hook"])
def test_steering_while_generating(model, steering):
    probe, alone = (SoftEntropyProbe(model, labels=()) for _ in range(2))
    STEERING[steering](model)
    how = {"attention_mask": torch.ones_like(IDS), "max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    with probe:
        output = model.generate(IDS, **how, pad_token_id=0)
    with alone, torch.no_grad(), what_is_taken(model) as taken:
        model(output[:, :-1], use_cache=False)
    assert_states(alone, taken)
    torch.testing.assert_close(probe.sums, alone.sums, rtol=1e-3, atol=1e-3)


def test_a_block_that_is_called_again(model):
    torch.manual_seed(0)
    sizes = {"embedding_size": 24, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    albert = AlbertModel(AlbertConfig(vocab_size=40, intermediate_size=16, initializer_range=0.5, **sizes)).eval()
    layer = albert.encoder.albert_layer_groups[0]
    probe, taken = SoftEntropyProbe(albert, labels=()), []

    def forward(original, hidden, *args, **kwargs):
        taken.append(hidden.clone())
        return original(hidden, *args, **kwargs)

    with probe, torch.no_grad(), replaced(layer, "forward", forward):
        layer.register_forward_hook(give_more)
        layer.register_forward_pre_hook(take_more, with_kwargs=True)
        albert(IDS)
    assert probe.layers == ["embeddings", "layer.1", "layer.2", "layer.3"]
    assert len(taken) == 3
    assert_states(probe, taken)


def test_hooks_of_layers_that_are_left_out_change_nothing(model):
    probe = SoftEntropyProbe(model, labels=(), layers=["layer.2"])
    with probe, torch.no_grad(), what_is_taken(model) as taken:
        STEERING["hook"](model)
        STEERING["pre-hook on every block"](model)
        model(IDS)
    assert_states(probe, taken[2:])


def test_a_named_module_gives_what_its_hooks_make_of_it():
    net = nn.Sequential(nn.Linear(8, 24), nn.ReLU()).eval()
    probe, given = SoftEntropyProbe(net, modules={"fc": net[0]}), []
    with probe, torch.no_grad():
        net[0].register_forward_hook(give_more)
        net[1].register_forward_pre_hook(lambda _m, args: given.append(args[0].clone()))
        net(torch.randn(9, 8))
    assert_states(probe, given)


def test_a_module_that_another_one_replaces_is_told(model):
    class Wrapper(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, *args, **kwargs):
            return changed(self.inner(*args, **kwargs), direction())

    probe = SoftEntropyProbe(model, labels=())
    with pytest.raises(ProbeError, match=r"model\.layers\.0: another module stands in its place"):
        with probe, torch.no_grad():
            model.model.layers[0] = Wrapper(model.model.layers[0])
            model(IDS)


def test_a_hook_that_is_registered_while_its_module_runs_is_told(model):
    block, words = model.model.layers[0], model.model.embed_tokens
    for module, register in ((block.mlp, block.register_forward_hook), (words, block.register_forward_pre_hook)):
        probe = SoftEntropyProbe(model, labels=())
        with pytest.raises(ProbeError, match="LlamaDecoderLayer: a hook was registered as it was called"):
            with probe, torch.no_grad():
                handle = module.register_forward_hook(lambda *_, register=register: register(lambda *_: None) and None)
                model(IDS)
        handle.remove()
