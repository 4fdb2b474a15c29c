"""Which tensor of a named module's output is measured, and where its positions are: certain, declared or refused."""

import warnings
from collections import namedtuple
from dataclasses import make_dataclass

import numpy as np
import pytest
import torch
from torch import nn

from softh_probe import SoftEntropyProbe, sample_anchors, temperature
from softh_probe.errors import InputError, ProbeError
from softh_probe.hooks.layouts import arranged
from tests.helpers import references
from tests.helpers.probes import value


def q_of(states):
    h = states.detach().flatten(0, -2).double().numpy()
    return references.assignments(h, sample_anchors(100, h.shape[1]).numpy(), temperature(100, h.shape[1]))


def measured(net, modules, *args, labels=None, mask=None, **kwargs):
    probe = SoftEntropyProbe(net, modules=modules, anchor_sets=1)
    with probe, torch.no_grad(), probe.labelled(**(labels or {})):
        if mask is None:
            net(*args, **kwargs)
        else:
            with probe.masked(mask):
                net(*args, **kwargs)
    return probe


def assert_measures(probe, states, who=None):
    """Compare with hidden states [..., D], and labels of each of their positions."""
    q = q_of(states)
    assert probe.positions == len(q)
    np.testing.assert_allclose(probe.sums[0, 0], q.sum(0), atol=1e-3)
    if who is not None:
        expected = references.mutual_information(q, np.asarray(who).ravel())
        got = value(probe.result(), probe.layers[0], "mutual_information", "who", unit="nats")
        assert got == pytest.approx(expected, abs=1e-4)


def chosen(probe, layer):
    return [choice["chosen"] for choice in probe.result().info["choices"] if choice["about"] == layer]


class Pool(nn.Module):
    """Passes on what it is given, as the modules of sentence embedders do."""

    def forward(self, features):
        return {**features, "sentence_embedding": features["token_embeddings"].mean(1)}


class Embedder(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.pool = nn.Embedding(30, 16), Pool()

    def forward(self, ids):
        return self.pool({"input_ids": ids, "token_embeddings": self.words(ids)})


def test_one_of_several_tensors_is_named():
    net, ids = Embedder().eval(), torch.randint(0, 30, (5, 7))
    message = (
        r"pool: Pool gives several tensors, 'token_embeddings' \[5, 7, 16\], 'sentence_embedding' \[5, 16\]; name the "
        r"one to measure: modules=\{'pool': \(module, 'sentence_embedding'\)\}"
    )
    with pytest.raises(ProbeError, match=message):
        measured(net, {"pool": net.pool}, ids)
    with torch.no_grad():
        given = net(ids)
    for name in ("sentence_embedding", "token_embeddings"):
        probe = measured(net, {"pool": (net.pool, name)}, ids)
        assert_measures(probe, given[name])
        assert chosen(probe, "pool")[0].startswith(f"output {name}, layout B")
    with pytest.raises(ProbeError, match=r"pool: expected a tensor of hidden states as output 'cls' of Pool"):
        measured(net, {"pool": (net.pool, "cls")}, ids)
    copied = measured(net, {"pool": (net.pool, "token_embeddings")}, ids).new_like()
    with copied, torch.no_grad():
        net(ids)
    assert copied.positions == 35


class Gives(nn.Module):
    """Gives whatever a function makes of its input."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x, x.sum(), torch.ones(3, dtype=torch.long)),
        lambda x: {"loss": x.sum(), "out": x},
        lambda x: {"out": x, "again": x},
        lambda x: (None, [{"deep": x}]),
        lambda x: {"last_hidden_state": x, "pooler_output": x[:, 0]},
        lambda x: namedtuple("Output", ["weights", "hidden_states"])(x.mT, x),
    ],
)
def test_what_is_certain_needs_no_name(function):
    net, x = Gives(function).eval(), torch.randn(4, 5, 8)
    assert_measures(measured(nn.Sequential(net).eval(), {"out": net}, x), x)


@pytest.mark.parametrize(
    ("function", "name", "listed"),
    [
        (lambda x: (x.mean(1), x), 1, r"0 \[4, 8\], 1 \[4, 5, 8\]"),
        (lambda x: [x.mean(1), (x,)], "1.0", r"0 \[4, 8\], '1.0' \[4, 5, 8\]"),
        (lambda x: {"a": x.mean(1), "b": {"c": x}}, "b.c", r"'a' \[4, 8\], 'b.c' \[4, 5, 8\]"),
        (lambda x: {"a.b": x, "c": x + 1}, "a.b", r"'a.b' \[4, 5, 8\], 'c' \[4, 5, 8\]"),
        (lambda x: make_dataclass("Output", ["a", "b"])(x.mean(1), x), "b", r"'a' \[4, 8\], 'b' \[4, 5, 8\]"),
        (lambda x: (x.mean(1), x), -1, r"0 \[4, 8\], 1 \[4, 5, 8\]"),
    ],
)
def test_tensors_of_any_structure_are_listed_and_named(function, name, listed):
    net, x = Gives(function).eval(), torch.randn(4, 5, 8)
    with pytest.raises(ProbeError, match=f"out: Gives gives several tensors, {listed}; name the one to measure"):
        measured(nn.Sequential(net).eval(), {"out": net}, x)
    assert_measures(measured(nn.Sequential(net).eval(), {"out": (net, name)}, x), x)


SEQUENCE_MODULES = {
    "encoder layer": lambda first: nn.TransformerEncoderLayer(16, 2, 32, batch_first=first),
    "encoder": lambda first: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 2, 32, batch_first=first), 2, enable_nested_tensor=False
    ),
    "LSTM": lambda first: nn.LSTM(16, 16, batch_first=first),
    "GRU": lambda first: nn.GRU(16, 8, batch_first=first, bidirectional=True, num_layers=2),
    "RNN": lambda first: nn.RNN(16, 16, batch_first=first),
}


@pytest.mark.parametrize("shape", [(5, 5), (7, 4), (4, 7)])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", SEQUENCE_MODULES)
def test_the_layout_of_torchs_own_modules_is_known(kind, batch_first, shape):
    torch.manual_seed(0)
    net = SEQUENCE_MODULES[kind](batch_first).eval()
    x, (n_sequences, _) = torch.randn(*shape, 16), shape if batch_first else shape[::-1]
    with torch.no_grad():
        out = net(x)
    states = out[0] if isinstance(out, tuple) else out
    states = states if batch_first else states.transpose(0, 1)
    who = torch.arange(n_sequences)
    probe = measured(nn.Sequential(net).eval(), {"l": net}, x, labels={"who": who})
    assert_measures(probe, states, who[:, None].expand(states.shape[:2]))
    assert ("TBD" in chosen(probe, "l")[0]) if not batch_first else True
    mask = torch.rand(states.shape[:2], generator=torch.Generator().manual_seed(0)) > 0.3
    assert_measures(measured(nn.Sequential(net).eval(), {"l": net}, x, mask=mask), states[mask])


def test_parts_of_torchs_own_modules_have_their_layout():
    torch.manual_seed(0)
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32), 2).eval()
    x, given = torch.randn(5, 5, 16), []
    handle = net.layers[1].norm2.register_forward_hook(lambda _m, _a, out: given.append(out))
    probe = measured(net, {"norm": net.layers[1].norm2}, x, labels={"who": torch.arange(5)})
    handle.remove()
    assert_measures(probe, given[0].transpose(0, 1), torch.arange(5)[:, None].expand(5, 5))


def test_states_of_recurrent_nets_need_a_layout():
    net, x = nn.GRU(16, 16, num_layers=2, batch_first=True).eval(), torch.randn(3, 6, 16)
    with pytest.raises(ProbeError, match=r"l: output 1 of GRU, \[2, 3, 16\], has no sequence.*\(module, 1, 'TBD'\)"):
        measured(nn.Sequential(net).eval(), {"l": (net, 1)}, x)
    probe = measured(nn.Sequential(net).eval(), {"l": (net, 1, "TBD")}, x, labels={"who": torch.arange(3)})
    with torch.no_grad():
        states = net(x)[1].transpose(0, 1)
    assert_measures(probe, states, [[0, 0], [1, 1], [2, 2]])


class TimeFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(16, 16), nn.Linear(16, 8)

    def forward(self, x):
        return self.head(self.rnn(x)[0])


def test_where_time_may_come_first_as_many_sequences_as_tokens_are_refused():
    torch.manual_seed(0)
    net, x, who = TimeFirst().eval(), torch.randn(5, 5, 16), torch.arange(5)
    message = r"head: as many sequences as tokens \(5\).*modules=\{'head': \(module, None, 'TBD'\)\}, or 'BTD'"
    with pytest.raises(ProbeError, match=message):
        measured(net, {"head": net.head}, x, labels={"who": who})
    with torch.no_grad():
        states = net(x)
    assert_measures(measured(net, {"head": net.head}, x), states)
    declared = measured(net, {"head": (net.head, None, "TBD")}, x, labels={"who": who})
    assert_measures(declared, states.transpose(0, 1), who[:, None].expand(5, 5))
    other = torch.randn(7, 4, 16)
    with pytest.raises(ProbeError, match=r"who: expected labels \[7, 4\], got \[4\]"):
        measured(net, {"head": net.head}, other, labels={"who": torch.arange(4)})


def test_the_usual_layout_is_warned_of_where_another_one_looks_the_same():
    net, who = nn.Sequential(nn.Linear(8, 16)).eval(), torch.arange(5)
    with pytest.warns(UserWarning, match=r"fc: layout \[B, T, D\] \(the usual one; where sequences are as many"):
        probe = measured(net, {"fc": net[0]}, torch.randn(5, 5, 8), labels={"who": who})
    assert chosen(probe, "fc") == ["layout [B, T, D]"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measured(net, {"fc": (net[0], None, "BTD")}, torch.randn(5, 5, 8), labels={"who": who})
        measured(net, {"fc": net[0]}, torch.randn(5, 5, 8))  # without labels, it makes no difference
        probe = SoftEntropyProbe(net, modules={"fc": net[0]}, anchor_sets=1)
        with probe, torch.no_grad(), probe.labelled(who=who):
            net(torch.randn(5, 3, 8))  # shows that sequences come first
            net(torch.randn(5, 5, 8))


def test_images_have_a_position_for_each_pixel():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Conv2d(3, 8, 3)).eval(), torch.randn(4, 3, 5, 6)
    with pytest.raises(ProbeError, match=r"conv: .*got \[4, 8, 3, 4\]; .*modules=\{'conv': \(module, None, 'BCHW'\)\}"):
        measured(net, {"conv": net[0]}, x)
    probe = measured(net, {"conv": (net[0], None, "BCHW")}, x, labels={"who": torch.tensor([0, 1, 1, 2])})
    with torch.no_grad():
        states = net(x).permute(0, 2, 3, 1).flatten(1, 2)
    assert_measures(probe, states, torch.tensor([0, 1, 1, 2])[:, None].expand(4, 12))
    mask = torch.arange(12) < torch.tensor([12, 3, 0, 5])[:, None]
    assert_measures(measured(net, {"conv": (net[0], None, "BCHW")}, x, mask=mask), states[mask])


def test_channels_of_sounds_come_second():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU()).eval(), torch.randn(4, 3, 9)
    with torch.no_grad():
        conv, out = net[0](x).mT, net(x).mT
    assert_measures(measured(net, {"conv": net[0]}, x), conv)
    with pytest.warns(UserWarning, match=r"relu: layout \[B, T, D\] .*channels second.*\(module, None, 'BCT'\)"):
        measured(net, {"relu": net[1]}, x)
    assert_measures(measured(net, {"relu": (net[1], None, "BCT")}, x), out)


def test_a_layout_of_other_dimensions_is_refused():
    net = nn.Sequential(nn.Linear(8, 16)).eval()
    with pytest.raises(
        ProbeError, match=r"fc: expected the 4 dimensions of layout 'BHWC', got hidden states \[5, 16\]"
    ):
        measured(net, {"fc": (net[0], None, "BHWC")}, torch.randn(5, 8))


@pytest.mark.parametrize(
    "entry", [None, "fc", (), (nn.ReLU(),) * 2, (nn.ReLU(), 1.5), (nn.ReLU(), None, "BTD", 1), ("fc", nn.ReLU())]
)
def test_other_entries_of_modules_are_refused(entry):
    with pytest.raises(InputError, match=r"modules: fc: expected a module, \(module, name of its output\) or"):
        SoftEntropyProbe(nn.ReLU(), modules={"fc": entry}, anchor_sets=1)


@pytest.mark.parametrize("layout", ["", "B", "BT", "BTDC", "BTTD", "btd", "XTD", 3, "B T D"])
def test_other_layouts_are_refused(layout):
    with pytest.raises(InputError, match=r"modules: fc: expected a layout such as 'BTD'"):
        SoftEntropyProbe(nn.ReLU(), modules={"fc": (nn.ReLU(), None, layout)}, anchor_sets=1)


@pytest.mark.parametrize(
    ("layout", "shape", "order"),
    [
        ("BTD", (2, 3, 8), (2, 3, 8)),
        ("TBD", (3, 2, 8), (2, 3, 8)),
        ("BCT", (2, 8, 3), (2, 3, 8)),
        ("BD", (2, 8), (2, 8)),
        ("BHWC", (2, 3, 4, 8), (2, 12, 8)),
        ("BCTHW", (2, 8, 3, 4, 5), (2, 60, 8)),
        ("TD", (3, 8), (1, 3, 8)),
    ],
)
def test_layouts(layout, shape, order):
    hidden = torch.arange(float(np.prod(shape))).view(shape)
    out = arranged(hidden, layout, "l")
    assert tuple(out.shape) == order
    width = next(i for i, letter in enumerate(layout) if letter in "DC")
    assert torch.equal(out.reshape(-1, 8), hidden.movedim(width, -1).reshape(-1, 8)) or layout == "TBD"


def test_blocks_of_a_library_give_the_state_first(model):
    probe = SoftEntropyProbe(model, labels=(), modules={"attention": model.model.layers[0].self_attn}, anchor_sets=1)
    with probe, torch.no_grad():
        model(input_ids=torch.randint(3, 30, (2, 6)), output_attentions=True)
    assert probe.positions == 12
    assert chosen(probe, "attention")[0] == "output 0, layout BTD"


def test_hooks_that_change_what_the_model_itself_gives_are_told():
    net = nn.Linear(6, 8).eval()
    for steer in (lambda _m, _a, out: out + 1, lambda _m, _a, out: out.add_(1).numel() < 0 or None):
        handle = net.register_forward_hook(steer)
        with pytest.raises(ProbeError, match="Linear: hooks change what the model itself gives"):
            measured(net, {"fc": net}, torch.randn(3, 6))
        handle.remove()
    net.register_forward_hook(lambda *_: None)
    assert measured(net, {"fc": net}, torch.randn(3, 6)).positions == 3


def test_a_label_set_with_a_single_value_is_warned_of_once(model):
    probe, ids = SoftEntropyProbe(model, labels=(), anchor_sets=1), torch.randint(3, 30, (3, 6))
    with probe, torch.no_grad(), probe.labelled(language=torch.tensor([7, 7, -1]), topic=torch.tensor([0, 1, 1])):
        model(input_ids=ids)
    with pytest.warns(UserWarning, match="single value") as told:
        results = [probe.result() for _ in range(2)]
    assert [str(warning.message) for warning in told] == [
        "language: the single value '7' (all labelled positions have it, so the information is 0 by construction; "
        "label several values)"
    ]
    for result in results:
        assert [choice["about"] for choice in result.info["choices"] if not choice["certain"]] == ["language"]
    with probe, torch.no_grad(), probe.labelled(language=torch.tensor([8, 7, -1])):
        model(input_ids=ids)
    assert all(choice["certain"] for choice in probe.result().info["choices"])
