"""Sums of documents in a second forward pass, against float64 loops over real hidden states."""

from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch

import softh_probe.accumulators.influence_sums as influence_module
from softh_probe import SoftEntropyProbe, sample_anchors, temperature
from softh_probe.accumulators import assigned_layers
from softh_probe.data.corpus import length_batches, pad_batch
from softh_probe.labels import parse_label_sets, shortest_document
from softh_probe.planned import row_allocation
from softh_probe.planned.plan import Plan
from softh_probe.planned.second_pass import SecondPass
from softh_probe.run.forward import forward
from tests.helpers import references
from tests.helpers.corpora import COLUMNS, corpus_of, documents, values_of
from tests.helpers.probes import NAMES, NGRAMS

DOCUMENTS = documents(16)
LANGUAGE, TOPIC = values_of(16)


def plan_of(names=(*NAMES, *COLUMNS), per_label=(), intervals=True) -> Plan:
    corpus = corpus_of(DOCUMENTS, language=LANGUAGE, topic=TOPIC)
    sets = parse_label_sets(names)
    keep = corpus.lengths >= shortest_document(sets)
    return Plan(corpus, sets, length_batches(corpus.lengths, 60, keep=keep), per_label, intervals=intervals)


def both_passes(model, plan, *, on_host=False, around=nullcontext, size=3):
    """Sums of each document that is measured, by its number: [R], [R, A, S], [R, X, S]."""
    probe = SoftEntropyProbe(model, n_anchors=20, anchor_sets=2, plan=plan)
    probe.reserve(probe.layer_devices() if on_host else ())
    forward(probe, model.model, plan, progress=False)
    probe.retire()
    counted = probe.positions, probe.sums
    second = SecondPass(plan)
    windows = np.flatnonzero(second.is_measured)
    found = {}
    with probe, probe.second_pass() as sums, torch.inference_mode(), around():
        for start in range(0, len(windows), size):
            batch = windows[start : start + size]
            ids, mask = pad_batch(plan.corpus, batch)
            with probe.batch(second.batch(batch)):
                model(input_ids=ids, attention_mask=mask)
            taken = sums.take()
            for b, window in enumerate(batch.tolist()):
                found[window] = [tensor[:, b].numpy() for tensor in taken]
    assert probe.positions == counted[0]
    assert torch.equal(probe.sums, counted[1])
    return probe, second, found


def expected_sums(model, plan, seed):
    """The same by loops: of each document that counts, for each layer: positions, references [A], labels [X]."""
    names = [s.name for s in plan.label_sets]
    ngrams = [ngram for ngram in NGRAMS if ngram[0] in names]
    anchors = sample_anchors(20, model.config.hidden_size, seed).numpy()
    columns = {"column:language": LANGUAGE, "column:topic": TOPIC}
    dense = references.measure(model, DOCUMENTS, ngrams, anchors, temperature(20, model.config.hidden_size), columns)
    short = shortest_document(plan.label_sets)
    document_of = [d for d, tokens in enumerate(DOCUMENTS) for _ in range(len(tokens) - short + 1)]
    found = {}
    for r, q in enumerate(dense.q.values()):
        for d in sorted(set(document_of)):
            own = [i for i, number in enumerate(document_of) if number == d]
            total, terms, labels = q.mean(axis=0), [], []
            terms.append(sum((q[i] * np.log(total)).sum() for i in own))
            for name in names:
                of = dense.labels[name]
                share = q[[i for i, label in enumerate(of) if label is not None]].mean(axis=0)
                terms.append(sum((q[i] * np.log(share)).sum() for i in own))
                with_label = [q[[j for j, label in enumerate(of) if label == of[i]]].mean(axis=0) for i in own]
                labels.append(sum((q[i] * np.log(p)).sum() for i, p in zip(own, with_label, strict=True)))
            found[d, r] = len(own), np.array(terms), np.array(labels)
    return found


def assert_as_expected(model, plan, second, found):
    labelled = second.labelled(np.arange(len(DOCUMENTS)))
    for seed in (0, 1):
        expected = expected_sums(model, plan, seed)
        assert {d for d, _ in expected} == found.keys()
        for (d, r), (n, reference, label) in expected.items():
            positions, references_found, labels_found = found[d]
            assert positions[r] == n
            np.testing.assert_allclose(references_found[r, :, seed], reference, rtol=2e-6)
            of = labelled[d]
            np.testing.assert_allclose(labels_found[r, of, seed], label[of], rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("kept_labels", [1000, 1])
@pytest.mark.parametrize("per_label", [(), ("input_unigram", "output_quadgram")])
def test_sums_of_documents_are_those_of_loops(model, monkeypatch, kept_labels, per_label):
    monkeypatch.setattr(row_allocation, "KEPT_LABELS", kept_labels)
    plan = plan_of(per_label=per_label)
    assert plan.allocation.has_rows_at_end.all()
    _, second, found = both_passes(model, plan)
    assert_as_expected(model, plan, second, found)


@pytest.mark.parametrize("kind", ["tables in host memory", "few bags at a time", "a layer at a time", "gathered"])
def test_sums_do_not_depend_on_how_they_are_computed(model, monkeypatch, kind):
    plan = plan_of(["input_unigram", "output_bigram", *COLUMNS])
    if kind == "few bags at a time":
        monkeypatch.setattr(influence_module, "_BAGS_AT_ONCE", 7)
    if kind == "a layer at a time":
        monkeypatch.setattr(assigned_layers, "MOST_BYTES", 1)
    size = 8 if kind == "gathered" else 1  # padding is left out, or there is none
    _, second, found = both_passes(model, plan, on_host=kind == "tables in host memory", size=size)
    assert_as_expected(model, plan, second, found)


def test_autocast_does_not_reach_the_sums(model):
    plan = plan_of(["input_unigram", *COLUMNS])
    around = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    plain, autocast = both_passes(model, plan)[2], both_passes(model, plan, around=around)[2]
    for ours, theirs in zip(plain.values(), autocast.values(), strict=True):
        for tensor, other in zip(ours, theirs, strict=True):  # the embeddings are those of float32 in both
            np.testing.assert_allclose(tensor[0], other[0], rtol=1e-6)


def test_positions_without_direction_add_nothing(model):
    plan = plan_of(["input_unigram", "output_unigram", "column:language"])

    def spoil(module, args, output):
        output[:, 3] = 0.0
        output[:, 5] = float("nan")
        return output

    handle = model.model.layers[-1].register_forward_hook(spoil)
    probe, _, found = both_passes(model, plan)
    handle.remove()
    row = probe.layers.index("layer.3")
    for d, (positions, reference, label) in found.items():
        n = len(DOCUMENTS[d]) - 1
        assert positions[row] == n - (n > 3) - (n > 5)
        assert positions[0] == n
        assert np.isfinite(reference[row]).all()
        assert np.isfinite(label[row]).all()
    # All of them: Σ_i Σ_j q_ij log p̂_j is −N H(Z), and with p̂_x it is −N H(Z|X).
    statistics = probe.result().tensors
    total = sum(reference[row, 0] for _, reference, _ in found.values())
    n = sum(positions[row] for positions, *_ in found.values())
    p = (probe.sums[row] / probe.sums[row].sum(dim=1, keepdim=True)).numpy()
    np.testing.assert_allclose(-total / n, -(p * np.log(p)).sum(axis=1), rtol=1e-6)
    conditional = -sum(label[row] for *_, label in found.values()) / n
    np.testing.assert_allclose(conditional, statistics["conditional_entropy"][row], rtol=1e-6)


def test_without_intervals_no_rows_are_held():
    assert not plan_of(intervals=False).allocation.held.any()
    assert len(plan_of(intervals=False).row_labels().retired_rows) == 0
