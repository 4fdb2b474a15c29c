"""States of a model against transformers and a probe, and bounds against joint tables and known posteriors."""

import math

import numpy as np
import pytest
import torch
from rivals import real_states
from rivals.real_states import (
    HeldOut,
    flip,
    flipped_bounds,
    held_out,
    read_states,
)
from rivals.truths import clusters, mean_directions, noisy_channel
from scipy.special import softmax
from transformers import BertConfig, BertModel

from softh_probe import SoftEntropyProbe
from softh_probe.errors import InputError
from softh_probe.estimators.anchors import Anchors
from softh_probe.estimators.soft_entropy import anchor_logits, assignments
from tests.helpers.models import tiny_llama

TEXTS = ["a b c d e f g", "h", "i j k l", "m n o p q r s t u v w", "x y z a b"]
LABELS = ["one", "two", "one", "three", "two"]
LENGTHS = [len(text.split()) for text in TEXTS]
LAYERS = ["layer.1", "layer.2", "layer.3"]


def read(model, tokenizer, texts=TEXTS, labels=LABELS, **changes):
    settings = {"layers": LAYERS, "most_positions": 1000, "max_length": 64, "seed": 0}
    return read_states(model, tokenizer, texts, labels, **{**settings, **changes})


# --- states -----------------------------------------------------------------------------------------------------------


def test_states_are_those_that_transformers_gives_for_each_text_alone(model, tokenizer):
    found = read(model, tokenizer)
    with torch.no_grad():
        alone = [model(tokenizer(t, return_tensors="pt").input_ids, output_hidden_states=True) for t in TEXTS]
    for i, layer in enumerate(LAYERS[:2], start=1):
        expected = torch.cat([one.hidden_states[i][0] for one in alone]).numpy()
        assert found.states[layer] == pytest.approx(expected, abs=1e-4)
    last = torch.cat([one.hidden_states[3][0] for one in alone])  # after the final norm, unlike the block's output
    with torch.no_grad():
        normed = model.model.norm(torch.from_numpy(found.states["layer.3"]))
    assert normed.numpy() == pytest.approx(last.numpy(), abs=1e-4)
    assert np.abs(found.states["layer.3"] - last.numpy()).max() > 0.1
    assert all(states.dtype == np.float32 for states in found.states.values())


def test_layers_are_those_that_a_probe_measures(model, tokenizer):
    found = read(model, tokenizer)
    probe = SoftEntropyProbe(model, labels=[], n_anchors=20, anchor_sets=2, layers=LAYERS)
    with probe, torch.no_grad():
        for text in TEXTS:
            model(tokenizer(text, return_tensors="pt").input_ids)
    anchors = Anchors.sample(n_anchors=20, dim=24, n_sets=2, seed=0)
    assert probe.layers == LAYERS
    for layer, sums in zip(LAYERS, probe.sums, strict=True):
        logits, _ = anchor_logits(torch.from_numpy(found.states[layer]), anchors.points_SMD, anchors.temperature)
        assert assignments(logits)[0].double().sum(dim=0).numpy() == pytest.approx(sums.numpy(), rel=1e-3)


def test_labels_and_documents_are_those_of_the_texts_in_their_order(model, tokenizer):
    found = read(model, tokenizer)
    assert found.label_names == ("one", "three", "two")
    assert found.document_N.tolist() == np.repeat(np.arange(5), LENGTHS).tolist()
    assert [found.label_names[x] for x in found.labels_N] == np.repeat(LABELS, LENGTHS).tolist()
    assert (found.labels_N.dtype, found.document_N.dtype) == (np.int64, np.int64)


def test_batches_of_few_tokens_give_the_same_states(model, tokenizer, monkeypatch):
    whole = read(model, tokenizer)
    monkeypatch.setattr(real_states, "BATCH_TOKENS", 8)
    shapes = []
    model.model.register_forward_pre_hook(
        lambda _module, _args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    small = read(model, tokenizer)
    assert sorted(shapes) == [(1, 5), (1, 7), (1, 11), (2, 4)]
    for layer in LAYERS:
        assert small.states[layer] == pytest.approx(whole.states[layer], abs=1e-4)


def test_padding_of_a_batch_does_not_reach_the_states_of_a_model_that_reads_both_ways(tokenizer):
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    model = BertModel(BertConfig(vocab_size=40, initializer_range=0.5, **sizes)).eval()
    found = read(model, tokenizer)
    with torch.no_grad():
        alone = [model(tokenizer(t, return_tensors="pt").input_ids, output_hidden_states=True) for t in TEXTS]
    for i, layer in enumerate(LAYERS, start=1):  # no norm stands after the last block
        expected = torch.cat([one.hidden_states[i][0] for one in alone]).numpy()
        assert found.states[layer] == pytest.approx(expected, abs=1e-4)


def test_a_sample_of_positions_is_uniform_and_keeps_each_state_with_its_label(model, tokenizer):
    whole = read(model, tokenizer, layers=["layer.2"])
    row_of = {row.tobytes(): i for i, row in enumerate(whole.states["layer.2"].round(2))}
    assert len(row_of) == 28
    taken = np.zeros(28)
    for seed in range(40):
        found = read(model, tokenizer, layers=["layer.2"], most_positions=14, seed=seed)
        rows = [row_of[row.tobytes()] for row in found.states["layer.2"].round(2)]
        assert len(set(rows)) == 14
        assert rows == sorted(rows)
        assert [found.label_names[x] for x in found.labels_N] == [whole.label_names[whole.labels_N[r]] for r in rows]
        assert found.document_N.tolist() == whole.document_N[rows].tolist()
        taken[rows] += 1
    assert taken.min() >= 8  # 20 expected, with a standard deviation of 3.2
    assert taken.max() <= 32
    again = [read(model, tokenizer, most_positions=14, seed=3).document_N.tolist() for _ in range(2)]
    assert again[0] == again[1]


def test_long_texts_are_cut_off_and_first_tokens_can_be_left_out(model, tokenizer):
    found, whole = read(model, tokenizer, max_length=6, skip=2), read(model, tokenizer)
    kept = np.concatenate([np.arange(n) for n in LENGTHS])
    kept = (kept >= 2) & (kept < 6)
    assert found.document_N.tolist() == whole.document_N[kept].tolist()
    assert found.label_names == ("one", "three", "two")
    assert found.states["layer.3"] == pytest.approx(whole.states["layer.3"][kept], abs=1e-4)


def test_label_names_are_those_of_the_sample(model, tokenizer):
    found = read(model, tokenizer, labels=["one", "gone", "one", "three", "three"], skip=1)
    assert found.label_names == ("one", "three")
    assert sorted(set(found.labels_N.tolist())) == [0, 1]


@pytest.mark.parametrize("fails", [False, True])
def test_a_model_is_left_as_it_was(model, tokenizer, monkeypatch, fails):
    model.train()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    if fails:
        monkeypatch.setattr(model.model.norm, "forward", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            read(model, tokenizer)
    else:
        read(model, tokenizer)
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())


def test_words_label_their_tokens_in_a_model(model, tokenizer):
    spans = [[(0, 1, "A"), (2, 3, "B"), (4, 5, "A")], [(2, 3, "C")]]
    found = read(model, tokenizer, texts=["a b c", "d e"], labels=spans)
    assert [found.label_names[x] for x in found.labels_N] == ["A", "B", "A", "C"]  # d is in no word
    assert found.document_N.tolist() == [0, 0, 0, 1]
    whole = read(model, tokenizer, texts=["a b c", "d e"], labels=["x", "y"])
    assert found.states["layer.3"] == pytest.approx(whole.states["layer.3"][[0, 1, 2, 4]], abs=1e-5)


# --- labels that a channel changed ------------------------------------------------------------------------------------


def information(joint) -> float:
    """I in nats of a joint table."""
    joint = np.asarray(joint, dtype=float)
    product = np.outer(joint.sum(axis=1), joint.sum(axis=0))
    held = joint > 0
    return float((joint[held] * np.log(joint[held] / product[held])).sum())


def channel(k, p):
    """P(y|x)."""
    table = np.full((k, k), p / (k - 1))
    np.fill_diagonal(table, 1 - p)
    return table


FREQUENCIES = [[40, 30, 20, 10], [1, 1], [25, 25, 25, 25, 25], [90, 5, 5], [50, 50, 0]]
PROBABILITIES = [0.0, 0.1, 0.5, 0.75, 1.0]


def test_labels_are_changed_to_each_other_label_alike():
    labels = np.random.default_rng(0).integers(4, size=60_000)
    changed = flip(labels, 4, 0.3, seed=1)
    table = np.array([np.bincount(changed[labels == x], minlength=4) / (labels == x).sum() for x in range(4)])
    assert table == pytest.approx(channel(4, 0.3), abs=0.015)
    assert changed.dtype == np.int64
    assert np.array_equal(changed, flip(labels, 4, 0.3, seed=1))
    assert not np.array_equal(changed, flip(labels, 4, 0.3, seed=2))
    changes = (changed != labels).astype(float)
    assert abs(np.corrcoef(changes[1:], changes[:-1])[0, 1]) < 0.02  # each position by itself


def test_no_label_is_changed_at_0_and_every_one_at_1():
    labels = np.arange(300) % 3
    assert np.array_equal(flip(labels, 3, 0.0, seed=0), labels)
    assert (flip(labels, 3, 1.0, seed=0) != labels).all()


@pytest.mark.parametrize("p", PROBABILITIES)
@pytest.mark.parametrize("counts", FREQUENCIES)
def test_information_of_states_that_determine_a_label_is_that_of_the_joint_table(counts, p):
    labels, k = np.repeat(np.arange(len(counts)), counts), len(counts)
    expected = information(np.diag(counts) / sum(counts) @ channel(k, p))
    assert flipped_bounds(labels, k, p, accuracy=1.0) == pytest.approx((expected, expected), abs=1e-12)


@pytest.mark.parametrize("p", PROBABILITIES)
@pytest.mark.parametrize("counts", FREQUENCIES)
def test_any_states_that_give_a_probe_its_accuracy_have_information_within_the_bounds(counts, p):
    k, rng = len(counts), np.random.default_rng(0)
    labels = np.repeat(np.arange(k), counts)
    for sharpness in (0.0, 1.0, 3.0, 10.0) * 10:
        # The states are k + 2 symbols, and the probe has one guess for each symbol.
        given_x = softmax(sharpness * (np.eye(k, k + 2) + rng.random((k, k + 2))), axis=1)
        of_state = np.diag(counts) / sum(counts) @ given_x
        accuracy = of_state[np.arange(k + 2) % k, np.arange(k + 2)].sum()
        truth = information(channel(k, p).T @ of_state)
        low, high = flipped_bounds(labels, k, p, accuracy)
        assert 0 <= low <= truth + 1e-12
        assert truth <= high + 1e-12


@pytest.mark.parametrize(("k", "p", "wrong"), [(5, 0.2, 0.05), (5, 0.8, 0.05), (2, 0.1, 0.3), (4, 0.9, 0.1)])
def test_the_lower_bound_is_reached_where_a_probe_errs_to_all_labels_alike(k, p, wrong):
    truth = information(channel(k, p).T @ channel(k, wrong) / k)
    assert flipped_bounds(np.arange(k), k, p, 1 - wrong)[0] == pytest.approx(truth, abs=1e-12)


def test_bounds_of_a_noisy_channel_hold_its_information():
    truth = noisy_channel(4, 32, 0.3)
    sent = noisy_channel(4, 32, 0.0)
    states, labels = sent.draw(3000, 0)
    documents = np.arange(3000) // 30
    accuracy = held_out(states, labels, documents, seed=0).accuracy
    low, high = flipped_bounds(np.arange(4), 4, 0.3, accuracy)
    assert accuracy > 0.999
    assert low <= truth.information <= high + 1e-12
    assert high - low < 0.01


# --- bounds of a probe ------------------------------------------------------------------------------------------------

K, DIM, KAPPA = 4, 24, 9.0


@pytest.fixture(scope="module")
def drawn():
    """Clusters whose posterior is known: states, labels, documents of 20 positions and the posterior."""
    states, labels = clusters(K, DIM, KAPPA).draw(6000, 0)
    posterior = softmax(KAPPA * states.astype(float) @ mean_directions(K, DIM, 0.0, 0).T, axis=1)
    return states, labels, np.arange(6000) // 20, posterior


def test_bounds_of_a_probe_hold_the_information_of_clusters(drawn):
    states, labels, documents, posterior = drawn
    truth = clusters(K, DIM, KAPPA).information
    low, high = held_out(states, labels, documents, seed=0).bounds()
    assert 0.9 * truth < low < truth + 0.02  # a linear probe can have the very posterior
    assert high == pytest.approx(math.log(K), abs=0.01)
    accuracy = held_out(states, labels, documents, seed=0).accuracy
    assert accuracy == pytest.approx((posterior.argmax(axis=1) == labels).mean(), abs=0.03)


@pytest.mark.parametrize("p", [0.1, 0.4, 0.75, 1.0])
def test_bounds_of_changed_labels_hold_the_information_of_their_posterior(drawn, p):
    states, labels, documents, posterior = drawn
    changed = posterior @ channel(K, p)
    truth = (changed * np.log(changed * K)).sum(axis=1).mean()  # E KL(P(y|z) ‖ P(y))
    probe = held_out(states, labels, documents, seed=0)
    low, high = probe.bounds(p)
    assert 0.85 * truth - 1e-3 < low < truth + 0.02
    assert truth < high + 1e-3
    assert high == pytest.approx(information(channel(K, p) / K), abs=1e-2)
    by_accuracy = flipped_bounds(labels, K, p, probe.accuracy)
    assert by_accuracy[0] < truth + 0.01
    assert by_accuracy[1] == high


def test_the_cross_entropy_of_changed_labels_is_the_mean_over_changes(drawn):
    states, labels, documents, _ = drawn
    probe = held_out(states, labels, documents, seed=0)
    changed_q = probe.q_HK @ channel(K, 0.2)
    losses = [
        -np.log(changed_q[np.arange(len(changed_q)), flip(probe.labels_H, K, 0.2, seed)]).mean() for seed in range(50)
    ]
    frequencies = np.bincount(labels) / len(labels) @ channel(K, 0.2)
    entropy = -(frequencies * np.log(frequencies)).sum()
    assert probe.bounds(0.2)[0] == pytest.approx(entropy - np.mean(losses), abs=2e-3)


def test_bounds_are_those_of_entropy_and_cross_entropy():
    q = np.array([[0.7, 0.2, 0.1], [0.5, 0.25, 0.25], [0.2, 0.2, 0.6]])
    probe = HeldOut(np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 2]), q)
    entropy = -sum(f * math.log(f) for f in (2 / 6, 1 / 6, 3 / 6))
    assert probe.bounds()[1] == pytest.approx(entropy)
    assert probe.bounds()[0] == pytest.approx(max(0, entropy + (math.log(0.7) + math.log(0.25) + math.log(0.6)) / 3))
    assert probe.accuracy == pytest.approx(2 / 3)
    assert HeldOut(probe.labels_N, np.array([2, 2, 1]), q).bounds()[0] == 0  # worse than nothing


def test_a_probe_gains_nothing_by_knowing_the_documents_it_was_trained_on():
    rng = np.random.default_rng(0)
    of_document = rng.integers(2, size=60)
    documents = np.repeat(np.arange(60), 20)
    states = (10 * rng.standard_normal((60, 200))[documents] + rng.standard_normal((1200, 200))).astype(np.float32)
    labels = of_document[documents]
    assert held_out(states, labels, documents, seed=0).accuracy < 0.75
    assert held_out(states, labels, np.arange(1200), seed=0).accuracy > 0.99  # no document is held out


def test_halves_are_drawn_by_the_seed_and_scales_of_dimensions_do_not_matter(drawn):
    states, labels, documents, _ = drawn
    values = {seed: held_out(states, labels, documents, seed).accuracy for seed in (0, 1)}
    assert values[0] != values[1]
    assert held_out(states, labels, documents, 0).accuracy == values[0]
    scaled = (states * np.logspace(-2, 3, DIM) + 5).astype(np.float32)
    assert held_out(scaled, labels, documents, 0).accuracy == pytest.approx(values[0], abs=2e-3)


def test_a_label_that_the_probe_never_saw_costs_a_finite_number_of_nats(drawn):
    states, labels, documents, _ = drawn
    labels = np.where(documents == documents.max(), K, labels)
    bounds = [held_out(states, labels, documents, seed).bounds() for seed in range(4)]
    assert all(0.3 < low < high < math.log(K + 1) for low, high in bounds)
    seen = [documents.max() in documents[_trained(documents, seed)] for seed in range(4)]
    assert not all(seen)


def _trained(documents, seed):
    from sklearn.model_selection import GroupShuffleSplit

    return next(GroupShuffleSplit(1, test_size=0.5, random_state=seed).split(documents, groups=documents))[0]


# --- what is refused --------------------------------------------------------------------------------------------------


class Slow:
    is_fast = False


STATES, ZEROS, TWO = np.ones((8, 3), dtype=np.float32), np.zeros(8, dtype=int), np.arange(8) % 2


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda t: read(tiny_llama(), t, layers=["layer.4", "final_norm"]), "layers"),
        (lambda t: read(tiny_llama(), t, labels=["one"]), "labels"),
        (lambda t: read(tiny_llama(), t, texts=[], labels=[]), "labels"),
        (lambda t: read(tiny_llama(), t, skip=20), "texts"),
        (lambda t: read(tiny_llama(), Slow(), labels=[[]] * 5), "tokenizer"),
        (lambda _: flip(TWO, 1, 0.1, 0), "labels_N"),
        (lambda _: flip(TWO + 1, 2, 0.1, 0), "labels_N"),
        (lambda _: flip(TWO, 2, 1.1, 0), "p"),
        (lambda _: flipped_bounds(TWO, 2, -0.1, 1.0), "p"),
        (lambda _: flipped_bounds(TWO, 2, 0.1, 1.1), "accuracy"),
        (lambda _: held_out(STATES, TWO, ZEROS, 0), "document_N"),
        (lambda _: held_out(STATES, ZEROS, TWO, 0), "labels_N"),
    ],
)
def test_arguments_out_of_range_are_refused(call, name, tokenizer):
    with pytest.raises(InputError, match=f"^{name}: expected .* got "):
        call(tokenizer)
