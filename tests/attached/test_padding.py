"""Padding of networks that are fed no token ids: masks of the user's, and arguments that say it."""

import contextlib
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel, XLMConfig, XLMModel

from softh_probe import SoftEntropyProbe, sample_anchors, temperature
from softh_probe.errors import InputError, ProbeError
from tests.helpers import references
from tests.helpers.probes import value

LENGTHS = torch.tensor([12, 5, 3])
MASK = torch.arange(12) < LENGTHS[:, None]
IDS = torch.randint(3, 50, (3, 12), generator=torch.Generator().manual_seed(1)) * MASK


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(50, 16)
        self.rnn = nn.GRU(16, 16, batch_first=True)

    def forward(self, x, **_):
        return self.rnn(self.words(x))[0]


@pytest.fixture
def net():
    return Recurrent().eval()


def q_of(states):
    h = states.detach().double().numpy()
    return references.assignments(h, sample_anchors(100, h.shape[1]).numpy(), temperature(100, h.shape[1]))


def assert_counts(probe, states, row=0):
    """Compare positions and sums with those of hidden states [N, D]."""
    assert probe.positions == len(states)
    np.testing.assert_allclose(probe.sums[row, 0], q_of(states).sum(0), atol=1e-3)


def measured(net, modules, *args, mask=None, labels=None, **kwargs):
    probe = SoftEntropyProbe(net, modules=modules, anchor_sets=1)
    with probe, torch.no_grad(), contextlib.ExitStack() as stack:
        if mask is not None:
            stack.enter_context(probe.masked(mask))
        if labels is not None:
            stack.enter_context(probe.labelled(**labels))
        net(*args, **kwargs)
    return probe


@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float32, torch.bfloat16])
def test_a_mask_selects_positions(net, kind):
    probe = measured(net, {"rnn": net.rnn}, IDS, mask=MASK.to(kind), labels={"language": torch.arange(3)})
    states = net(IDS)[MASK]
    assert_counts(probe, states)
    expected = references.mutual_information(q_of(states), np.repeat(range(3), LENGTHS))
    assert value(probe.result(), "rnn", "mutual_information", "language", unit="nats") == pytest.approx(
        expected, abs=1e-4
    )


@pytest.mark.parametrize("shape", [(3, 13), (3, 11), (2, 12), (12, 3), (6, 12), (3,), (12,), (3, 1)])
def test_a_mask_of_another_shape_is_refused(net, shape):
    with pytest.raises(ProbeError, match=r"mask: expected \[B, T\] = \[3, 12\] .*got .*probe\.masked"):
        measured(net, {"rnn": net.rnn}, IDS, mask=torch.ones(shape))


@pytest.mark.parametrize("shape", [(2, 11), (3, 12), (1, 12), (24, 12), (2,)])
def test_a_mask_of_other_tokens_is_refused(model, shape):
    probe = SoftEntropyProbe(model, labels=(), anchor_sets=1)
    with pytest.raises(ProbeError, match=r"mask: expected \[B, T\] = \[2, 12\] .*probe\.masked"):
        with probe, torch.no_grad(), probe.masked(torch.ones(shape)):
            model(input_ids=torch.ones(2, 12, dtype=torch.long))


def test_pooled_rows_count_where_any_of_their_positions_is_real():
    net = nn.Linear(6, 8).eval()
    x = torch.randn(3, 6)
    for mask in (torch.tensor([[1, 1], [0, 1], [0, 0]]), torch.tensor([1, 1, 0])):
        assert_counts(measured(net, {"fc": net}, x, mask=mask), net(x)[:2])
    with pytest.raises(ProbeError, match=r"mask: expected \[B\] = \[3\] or \[B, T\].*got \[2\]"):
        measured(net, {"fc": net}, x, mask=torch.ones(2))


def test_pooled_hidden_states_of_tokens():
    class Pooled(Recurrent):
        def forward(self, input_ids, attention_mask=None):
            return super().forward(input_ids).mean(1)

    net = Pooled().eval()
    probe = measured(
        net, {"out": net, "same": net}, input_ids=IDS, attention_mask=MASK.long() * torch.tensor([[1], [1], [0]])
    )
    assert_counts(probe, net(IDS)[:2])
    assert_counts(measured(net, {"out": net}, input_ids=IDS, mask=torch.tensor([0, 1, 1])), net(IDS)[1:])
    with pytest.raises(
        ProbeError, match=r"out: expected hidden states \[3, 12, 'D'\], got \[3, 16\]; .*probe of their own"
    ):
        measured(net, {"rnn": net.rnn, "out": net}, input_ids=IDS)


def test_patches_of_a_vision_model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = ViTModel(ViTConfig(image_size=8, patch_size=4, initializer_range=0.5, **sizes)).eval()
    images = torch.randn(2, 3, 8, 8)
    mask = torch.tensor([[0, 1, 1, 1, 0], [0, 1, 1, 0, 0]])
    probe = SoftEntropyProbe(model, labels=(), anchor_sets=1)
    with probe, torch.no_grad(), probe.masked(mask):
        output = model(images, output_hidden_states=True)
    assert_counts(probe, output.hidden_states[1][mask.bool()], row=1)
    with pytest.raises(ProbeError, match=r"mask: expected \[B, T\] = \[2, 5\].*got \[2, 4\].*class token"):
        with probe, torch.no_grad(), probe.masked(mask[:, 1:]):
            model(images)


@pytest.fixture
def clip():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text, vision = {**sizes, "vocab_size": 60, "eos_token_id": 2}, {**sizes, "image_size": 8, "patch_size": 4}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision)).eval()


def test_a_norm_of_the_class_token_alone_is_no_layer(clip):
    images = torch.randn(3, 3, 8, 8)
    probe = SoftEntropyProbe(clip.vision_model, labels=(), anchor_sets=1)
    with probe, torch.no_grad():
        output = clip.vision_model(images, output_hidden_states=True)
    assert probe.layers == ["embeddings", "layer.1", "layer.2"]
    assert_counts(probe, output.hidden_states[1].flatten(0, 1), row=1)
    assert [choice["about"] for choice in probe.result().info["choices"]] == ["final_norm"]
    asked = SoftEntropyProbe(clip.vision_model, labels=(), layers=["layer.1", "final_norm"], anchor_sets=1)
    with pytest.raises(ProbeError, match=r"final_norm: expected hidden states \[3, 5, 'D'\], got \[3, 16\]"):
        with asked, torch.no_grad():
            clip.vision_model(images)


def test_positions_of_images_beside_text(clip):
    inputs = {"input_ids": torch.randint(3, 60, (3, 7)), "pixel_values": torch.randn(3, 3, 8, 8)}
    modules = {"image": (clip.vision_model, "last_hidden_state")}
    with pytest.raises(ProbeError, match=r"got \[3, 5, 'D'\]; .*such as an image, attach the probe to the part"):
        measured(clip, modules, **inputs)
    probe = SoftEntropyProbe(clip.vision_model, modules=modules, anchor_sets=1)
    with warnings.catch_warnings(), probe, torch.no_grad():
        warnings.simplefilter("error")  # the layout of a last_hidden_state is certain
        output = clip(**inputs).vision_model_output
    assert_counts(probe, output.last_hidden_state.flatten(0, 1))


class Encoder(nn.Module):
    """Computes its own mask, which the probe sees as an argument of the module."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(50, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x):
        return self.encoder(self.words(x), src_key_padding_mask=x == 0)


def test_a_key_padding_mask_is_true_at_padding():
    net = Encoder().eval()
    assert_counts(measured(net, {"encoder": net.encoder}, IDS), net(IDS)[MASK])
    encoder, x = net.encoder, net.words(IDS)
    added = torch.zeros(3, 12).masked_fill(~MASK, -torch.inf)
    for padding in (~MASK, added):
        probe = measured(encoder, {"encoder": encoder}, x, src_key_padding_mask=padding)
        assert_counts(probe, encoder(x, src_key_padding_mask=padding)[MASK])
        assert_counts(
            measured(encoder, {"layer": encoder.layers[0]}, x, src_key_padding_mask=padding),
            encoder.layers[0](x, src_key_padding_mask=padding)[MASK],
        )


def test_layers_of_an_encoder_that_computes_no_padding():
    """In evaluation mode, torch's encoder feeds its layers nested tensors, which hold the real positions alone."""
    torch.manual_seed(0)
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 16, batch_first=True), 2).eval()
    x, given = torch.randn(3, 12, 16), []
    handle = net.layers[0].register_forward_hook(lambda _m, _a, out: given.append(out.to_padded_tensor(0.0)))
    probe = measured(net, {"layer": net.layers[0], "encoder": net}, x, src_key_padding_mask=~MASK)
    handle.remove()
    assert_counts(probe, given[0][MASK])
    with torch.no_grad():
        assert_counts(probe, net(x, src_key_padding_mask=~MASK)[MASK], row=1)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("n_tokens", [12, 3])
def test_blocks_of_torchs_own_may_put_time_first_and_leave_padding_out(batch_first, n_tokens):
    """As many sequences as tokens look the same either way; what is fed as nested tensors has no padding."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 16, batch_first=batch_first)
    net = nn.TransformerEncoder(layer, 2).eval()
    mask = (MASK & (torch.arange(12) < 9))[:, :n_tokens] & (torch.arange(n_tokens) < torch.tensor([[12], [2], [1]]))
    x, given = torch.randn(3, n_tokens, 16), []

    def keep(_module, _args, out):
        dense = out.to_padded_tensor(0.0, (3, n_tokens, 16)) if out.is_nested else out
        given.append((dense if batch_first else dense.transpose(0, 1))[mask])

    handle = net.layers[0].register_forward_hook(keep)
    for own in (mask, None):
        probe = SoftEntropyProbe(net, labels=[], anchor_sets=1)
        with probe, torch.no_grad(), contextlib.nullcontext() if own is None else probe.masked(own):
            net(x if batch_first else x.transpose(0, 1), src_key_padding_mask=~mask)
        assert_counts(probe, given[-1], row=probe.layers.index("layer.1"))
        chosen = [c["chosen"] for c in probe.result().info["choices"] if c["about"] == "layer.1"]
        assert chosen == ["layout BTD" if batch_first else "layout TBD"]
    handle.remove()


def test_masks_may_be_wider_than_the_longest_sequence_without_padding():
    net, mask = Packed().eval(), MASK.clone()
    wider = nn.functional.pad(mask, (0, 4))
    probe = measured(net, {"rnn": net.rnn}, IDS, mask=wider)
    assert_counts(probe, net(IDS)[mask])
    wider[0, 13] = True
    with pytest.raises(ProbeError, match="mask: 1 positions that count are padding"):
        measured(net, {"rnn": net.rnn}, IDS, mask=wider)
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 16, batch_first=True), 2).eval()
    x, mask = torch.randn(3, 12, 16), MASK & (torch.arange(12) < 9)
    for own in (mask, None):
        modules = {"layer": encoder.layers[0], "encoder": encoder}
        probe = measured(encoder, modules, x, src_key_padding_mask=~mask, mask=own)
        assert_counts(probe, encoder(x, src_key_padding_mask=~mask)[mask], row=1)


def test_pooled_states_of_a_batch_that_is_given_as_a_dictionary():
    """As sentence embedders do: the attention mask is that of the tokens, and a row counts if any of them is real."""

    class Pool(nn.Module):
        def forward(self, states, attention_mask):
            return (states * attention_mask[:, :, None]).sum(1)

    class Embedder(Recurrent):
        def __init__(self):
            super().__init__()
            self.pool = Pool()

        def forward(self, features):
            return self.pool(super().forward(features["input_ids"]), features["attention_mask"])

    net = Embedder().eval()
    features = {"input_ids": IDS, "attention_mask": MASK.long()}
    assert_counts(measured(net, {"pool": net.pool}, features), net(features))
    features["attention_mask"] = features["attention_mask"] * torch.tensor([[1], [0], [1]])
    assert_counts(measured(net, {"pool": net.pool}, features), net(features)[[0, 2]])


def test_a_mask_that_is_added_to_logits_is_refused(net):
    for added in (torch.where(MASK, 0.0, -1e9), -(~MASK).long()):
        with pytest.raises(InputError, match=r"mask: expected 0 at padding.*got negative values; .*give mask >= 0"):
            measured(net, {"rnn": net.rnn}, IDS, mask=added)


def test_an_encoder_and_a_decoder_have_masks_of_their_own():
    torch.manual_seed(0)
    net = nn.Transformer(16, 2, 1, 1, 16, batch_first=True).eval()
    source, target, mask = (
        torch.randn(3, 12, 16),
        torch.randn(3, 7, 16),
        torch.arange(7) < torch.tensor([[7], [5], [3]]),
    )
    masks = {"src_key_padding_mask": ~MASK, "tgt_key_padding_mask": ~mask}
    for layer, n_positions in ((net.encoder, 20), (net.decoder, 15), (net, 15)):
        assert measured(net, {"layer": layer}, source, target, **masks).positions == n_positions
    with pytest.raises(ProbeError, match=r"tgt_key_padding_mask: expected \[B, T\] = \[3, 12\].*probe\.masked"):
        measured(net, {"layer": net.encoder.layers[0].linear2}, source, target, **masks)


def test_padding_that_only_a_later_module_tells_of_is_refused_unless_masked():
    net = Encoder().eval()
    modules = {"words": net.words, "encoder": net.encoder}
    with pytest.raises(ProbeError, match=r"16 positions that count are padding in what the module is given.*masked"):
        measured(net, modules, IDS)
    assert_counts(measured(net, modules, IDS, mask=MASK), net(IDS)[MASK], row=1)


def test_the_keys_of_another_sequence_say_nothing_of_the_queries():
    attention = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    x, y = torch.randn(3, 12, 16), torch.randn(3, 12, 16)
    probe = measured(attention, {"attention": attention}, x, y, y, key_padding_mask=~MASK)
    assert_counts(probe, attention(x, y, y, key_padding_mask=~MASK)[0].flatten(0, 1))


def test_an_attention_mask_counts_without_token_ids(net):
    assert_counts(measured(net, {"rnn": net.rnn}, IDS, attention_mask=MASK.long()), net(IDS)[MASK])
    with pytest.raises(ProbeError, match=r"attention_mask: expected \[B, T\] = \[3, 12\].*got \[3, 24\]; .*masked"):
        measured(net, {"rnn": net.rnn}, IDS, attention_mask=MASK.long().repeat(1, 2))


@pytest.mark.parametrize("lengths", [LENGTHS, LENGTHS.tolist()])
def test_lengths_count_with_a_warning(net, lengths):
    with pytest.warns(UserWarning, match=r"padding: by lengths .*probe\.masked\(mask\)"):
        probe = measured(net, {"rnn": net.rnn}, IDS, lengths=lengths)
    assert_counts(probe, net(IDS)[MASK])
    assert "by lengths" in [choice["chosen"] for choice in probe.result().info["choices"]]
    with pytest.raises(ProbeError, match=r"lengths: expected lengths of at most 12.*probe\.masked"):
        measured(net, {"rnn": net.rnn}, IDS, lengths=2 * LENGTHS)


def test_a_mask_of_unknown_meaning_is_warned_of(net):
    with pytest.warns(UserWarning, match=r"padding: none .*pad_mask means.*probe\.masked\(mask\)"):
        probe = measured(net, {"rnn": net.rnn}, IDS, pad_mask=~MASK)
    assert probe.positions == 36
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert measured(net, {"rnn": net.rnn}, IDS, pad_mask=~MASK, mask=MASK).positions == 20
        assert measured(net, {"rnn": net.rnn}, IDS, pad_mask=torch.zeros_like(MASK)).positions == 36


def test_lengths_of_a_language_model():
    torch.manual_seed(0)
    model = XLMModel(XLMConfig(vocab_size=50, emb_dim=16, n_layers=2, n_heads=2, pad_index=0)).eval()
    modules = {"last": model.layer_norm2[-1]}
    by_lengths, by_mask = (
        SoftEntropyProbe(model, labels=["input_unigram"], modules=modules, anchor_sets=1) for _ in range(2)
    )
    with by_lengths, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model(input_ids=IDS, lengths=LENGTHS)
    with by_mask, torch.no_grad(), by_mask.masked(MASK):
        model(input_ids=IDS, lengths=LENGTHS)
    assert by_lengths.positions == by_mask.positions == 20
    assert torch.equal(by_lengths.sums, by_mask.sums)


class Packed(Recurrent):
    def forward(self, x):
        packed = pack_padded_sequence(self.words(x), (x > 0).sum(1), batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0]


def test_packed_sequences_have_no_padding():
    net, order = Packed().eval(), torch.tensor([2, 0, 1])
    ids, mask = IDS[order], MASK[order]
    probe = measured(net, {"rnn": net.rnn}, ids, labels={"language": torch.arange(3)})
    states = net(ids)[mask]
    assert_counts(probe, states)
    expected = references.mutual_information(q_of(states), np.repeat(range(3), LENGTHS[order]))
    assert value(probe.result(), "rnn", "mutual_information", "language", unit="nats") == pytest.approx(
        expected, abs=1e-4
    )
    modules = {"words": net.words, "rnn": net.rnn}
    assert_counts(measured(net, modules, ids, mask=mask), states, row=1)
    with pytest.raises(ProbeError, match="16 positions that count are padding"):
        measured(net, modules, ids)


def test_a_mask_of_the_prompt_holds_while_generating(model):
    prompt, mask = torch.randint(3, 30, (2, 6)), torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]])
    how = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    for more in ({}, {"use_cache": False}, {"num_return_sequences": 2, "do_sample": True}):
        known, own = (SoftEntropyProbe(model, labels=(), anchor_sets=1) for _ in range(2))
        for probe, given in ((known, None), (own, mask)):
            torch.manual_seed(0)
            with probe, probe.masked(given) if given is not None else contextlib.nullcontext():
                model.generate(prompt, attention_mask=mask, **{**how, **more})
        assert own.positions == known.positions
        assert torch.equal(own.sums, known.sums)
