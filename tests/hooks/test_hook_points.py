"""Modules found as blocks, and the evidence of a forward pass that they are not."""

from collections import namedtuple
from dataclasses import make_dataclass

import pytest
import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
    XLNetConfig,
    XLNetLMHeadModel,
)

from softh_probe import SoftEntropyProbe
from softh_probe.errors import InputError, ProbeError
from softh_probe.hooks.hook_points import find_hook_points, hidden_state
from tests.helpers.models import tiny_llama


class Backbone(nn.Module):
    """Blocks of which each adds to a residual stream that they are not handed."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(30, 8)
        self.attentions = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, input_ids, attention_mask=None):
        h = self.embeddings(input_ids)
        for attention in self.attentions:
            h = h + attention(h)
        return h


def ids(n_sequences: int, n_tokens: int, high: int = 30) -> torch.Tensor:
    return torch.randint(1, high, (n_sequences, n_tokens), generator=torch.Generator().manual_seed(0))


def test_modules_that_do_not_chain_are_no_blocks():
    model = Backbone().eval()
    probe = SoftEntropyProbe(model, labels=())
    with pytest.raises(ProbeError, match=r"attentions: these are not blocks .*\(2 of 2 are not\); .*modules="), probe:
        model(ids(2, 5))
    with pytest.raises(ProbeError, match="not blocks"):
        probe.result()


def test_a_hook_that_steers_one_block_does_not_undo_the_chain(model):
    probe = SoftEntropyProbe(model, labels=())
    with probe, torch.no_grad():
        handle = model.model.layers[0].register_forward_hook(lambda _m, _a, out: out + 1)
        model(ids(2, 5))
    handle.remove()
    assert probe.positions == 10


@pytest.mark.parametrize("shape", [(4, 6), (5, 5)])
def test_time_first_layers_are_refused_also_where_shapes_cannot_tell(shape):
    torch.manual_seed(0)
    model = XLNetLMHeadModel(XLNetConfig(vocab_size=30, d_model=16, n_layer=2, n_head=2, d_inner=16)).eval()
    with pytest.raises(ProbeError, match=r"expected hidden states"), SoftEntropyProbe(model, labels=()):
        model(ids(*shape))


def test_as_many_sequences_as_tokens_are_fine_elsewhere(model):
    probe = SoftEntropyProbe(model, labels=())
    with probe, torch.no_grad():
        model(ids(5, 5))
    assert probe.positions == 25


def test_both_stacks_of_an_encoder_decoder_each_with_its_own_text_and_mask():
    torch.manual_seed(0)
    config = T5Config(vocab_size=30, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_decoder_layers=3, num_heads=2)
    model = T5ForConditionalGeneration(config).eval()
    with pytest.raises(InputError, match=r"encoder-decoder.*model\.get_encoder\(\) or to model\.get_decoder\(\)"):
        SoftEntropyProbe(model)
    source, target = ids(3, 9), ids(3, 6).flip(1)
    source_mask, target_mask = torch.ones_like(source), torch.ones_like(target)
    source_mask[0, 4:] = 0
    target_mask[2, :3] = 0
    encoder = SoftEntropyProbe(model.get_encoder(), labels=["input_bigram"])
    decoder = SoftEntropyProbe(model.get_decoder(), labels=["output_unigram"])
    with encoder, decoder, torch.no_grad():
        model(
            input_ids=source,
            attention_mask=source_mask,
            decoder_input_ids=target,
            decoder_attention_mask=target_mask,
        )
    assert encoder.layers == ["embeddings", "layer.1", "layer.2", "final_norm"]
    assert decoder.layers == ["embeddings", "layer.1", "layer.2", "layer.3", "final_norm"]
    assert encoder.positions == 9 + 9 + 4 - 3
    assert decoder.positions == 6 + 6 + 3 - 3
    coverage = encoder.result().to_pandas().query("metric == 'coverage' and layer == 1").value.item()
    bigrams = [
        tuple(row[t - 1 : t + 1]) for row, n in zip(source.tolist(), [4, 9, 9], strict=True) for t in range(1, n)
    ]
    assert coverage == pytest.approx(sum(bigrams.count(b) > 1 for b in bigrams) / len(bigrams))


def test_the_calls_of_a_block_that_is_called_again_can_be_chosen_before_the_first_pass():
    torch.manual_seed(0)
    sizes = {"embedding_size": 8, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
    model = AlbertForMaskedLM(AlbertConfig(vocab_size=30, intermediate_size=16, **sizes)).eval()
    whole, chosen = SoftEntropyProbe(model, labels=()), SoftEntropyProbe(model, labels=(), layers=["layer.2", -1])
    assert whole.layers == list(whole.layer_devices()) == ["embeddings", "layer.1", "layer.2", "layer.3", "layer.4"]
    assert chosen.layers == list(chosen.layer_devices()) == ["layer.2", "layer.4"]
    with whole, chosen, torch.no_grad():
        model(ids(2, 5))
    assert chosen.layers == ["layer.2", "layer.4"]
    assert torch.equal(chosen.sums, whole.sums[[2, 4]])
    with pytest.raises(InputError, match=r"no layer 'layer\.5'; expected any of embeddings, .*layer\.4"):
        SoftEntropyProbe(model, layers=["layer.5"])


def test_lists_of_models_inside_the_model_are_left_out():
    model = tiny_llama()
    model.model.image_encoder = tiny_llama(num_hidden_layers=3).model
    assert find_hook_points(model).path == "model.layers"


def test_hidden_states_in_dataclasses_named_tuples_and_tuples():
    given = torch.randn(2, 5, 24)
    for kind in (namedtuple, make_dataclass):
        output = kind("Output", ["attention", "hidden_states"])(torch.randn(2, 5, 24), given)
        assert hidden_state(output, "layer.1") is given
    assert hidden_state((None, torch.ones(2, dtype=torch.long), given), "layer.1") is given
    with pytest.raises(ProbeError, match=r"layer\.1: expected a tensor of hidden states, got tuple"):
        hidden_state((None,), "layer.1")


def test_token_ids_are_those_of_the_model_around_a_backbone_that_is_fed_embeddings(model):
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.language_model = model.model

        def get_decoder(self):
            return self.language_model

        def forward(self, input_ids, attention_mask=None):
            embeds = self.language_model.embed_tokens(input_ids)
            return self.language_model(inputs_embeds=embeds, attention_mask=None)

    tokens, mask = ids(2, 6), torch.ones(2, 6, dtype=torch.long)
    mask[0, 4:] = 0
    wrapper = Wrapper().eval()
    probe = SoftEntropyProbe(wrapper, labels=["input_unigram"])
    with probe, torch.no_grad():
        wrapper(tokens, attention_mask=mask)
    assert probe.positions == 10
    expected = [*tokens[0, :4].tolist(), *tokens[1].tolist()]
    coverage = probe.result().to_pandas().query("metric == 'coverage' and layer == 1").value.item()
    assert coverage == pytest.approx(sum(expected.count(t) > 1 for t in expected) / 10)


def test_a_backbone_that_is_fed_something_else_than_the_tokens_is_refused():
    class Latents(Backbone):
        def forward(self, inputs, attention_mask=None):
            return super().forward(inputs[:, :2])

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base_model = Latents()

        def forward(self, input_ids):
            return self.base_model(input_ids)

    wrapper = Wrapper().eval()
    with pytest.raises(ProbeError, match="input_ids: the part of the model that holds the blocks is fed neither"):
        with SoftEntropyProbe(wrapper, labels=()):
            wrapper(ids(2, 5))


class Wrapper(nn.Module):
    """As parallel wrappers and embedders are: a model inside something that knows nothing of models."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, inputs):
        return self.module(**inputs)


def test_a_model_inside_something_else_is_found():
    model = Wrapper(tiny_llama())
    probe = SoftEntropyProbe(model)
    with probe, torch.no_grad():
        model({"input_ids": ids(2, 9)})
    assert probe.positions == 2 * 8
    assert probe.layers == ["embeddings", "layer.1", "layer.2", "layer.3", "final_norm"]
    small = T5Config(vocab_size=30, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    with pytest.raises(InputError, match="T5ForConditionalGeneration is an encoder-decoder"):
        SoftEntropyProbe(Wrapper(T5ForConditionalGeneration(small)))
