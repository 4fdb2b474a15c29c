"""Influences of documents as formulas: exact derivatives of the values, and intervals that hold the truth."""

import numpy as np
import pytest
import torch

from softh_probe.accumulators.influence_sums import DocumentSums
from softh_probe.analysis.intervals import MeasuredValues, influence_names, influences, standard_errors
from softh_probe.influence import DocumentInfluence, standard_error

SETS = ["input_unigram", "output_unigram", "column:kind"]
METRICS = ("mutual_information", "regularity")


def h(mass: torch.Tensor) -> torch.Tensor:
    """Entropy of the rows, weighted by their mass: [L, M] -> []."""
    n = mass.sum(dim=-1)
    return (torch.xlogy(n, n) - torch.xlogy(mass, mass).sum(dim=-1)).sum() / n.sum()


def sums_by_label(q, labels, weights):
    return torch.zeros(int(labels.max()) + 1, q.shape[1], dtype=q.dtype).index_add(0, labels, weights[:, None] * q)


def values_of(q, labels, weights) -> dict:
    """Every value of positions with weights, with labels by set; −1 is none."""
    found = {("", "entropy"): h((weights @ q)[None])}
    for name, of in labels.items():
        known = of >= 0
        by_label = sums_by_label(q[known], of[known], weights[known])
        total = h(by_label.sum(dim=0, keepdim=True))
        found[name, "mutual_information"] = total - h(by_label)
        found[name, "regularity"] = found[name, "mutual_information"] / total
    given, output = (found[f"{name}_unigram", "mutual_information"] for name in ("input", "output"))
    return {**found, ("unigram", "optimality"): output / given}


def inputs_of(q_SNM, document_N, labels) -> tuple[DocumentSums, torch.Tensor, MeasuredValues]:
    """What the second pass gives for these positions, with one layer."""
    n_documents = int(document_N.max()) + 1

    def by_document(x):
        return torch.zeros(n_documents, *x.shape[1:], dtype=torch.float64).index_add_(0, document_N, x)

    def reference(known):
        log_SM = (q_SNM[:, known].sum(dim=1) / known.sum()).log()
        return by_document(torch.einsum("snm,sm->ns", q_SNM, log_SM))

    n = torch.ones_like(document_N, dtype=torch.float64)
    references, terms = [reference(n > 0)], []
    for of in labels.values():
        references.append(reference(of >= 0))
        masses = torch.stack([sums_by_label(q, of.clamp_min(0), (of >= 0).double()) for q in q_SNM])
        log_SLM = (masses / masses.sum(dim=-1, keepdim=True)).log()
        terms.append(by_document((q_SNM * log_SLM[:, of.clamp_min(0)]).sum(dim=-1).T))
    sums = DocumentSums(by_document(n)[None], torch.stack(references, dim=1)[None], torch.stack(terms, dim=1)[None])
    values = [values_of(q, labels, n) for q in q_SNM]
    information = torch.stack([torch.stack([v[name, "mutual_information"] for v in values]) for name in labels])
    ratio = torch.stack([torch.stack([v[name, "regularity"] for v in values]) for name in labels])
    labelled = torch.tensor([[float((of >= 0).sum()) for of in labels.values()]], dtype=torch.float64)
    measured = MeasuredValues(
        label_sets=list(labels),
        n_positions=len(document_N),
        positions=torch.tensor([float(len(document_N))], dtype=torch.float64),
        labelled_positions=labelled,
        entropy=torch.stack([v["", "entropy"] for v in values])[None],
        labelled_entropy=(information / ratio)[None],
        information=information[None],
    )
    labelled_DX = torch.stack([by_document((of >= 0).double()[:, None])[:, 0] > 0 for of in labels.values()], dim=1)
    return sums, labelled_DX, measured


def corpus(generator, n_documents=100, n_anchors=8):
    """A corpus of documents from one generator: a kind each, a taste for words, words that follow others."""
    kinds, n_words = 3, 6
    fixed = np.random.default_rng(1)
    of_kind, of_word, of_next = (fixed.normal(size=(n, n_anchors)) for n in (kinds, n_words, n_words))
    follows = fixed.dirichlet(np.full(n_words, 0.5), size=n_words)
    lengths = generator.integers(8, 30, size=n_documents)
    document = np.repeat(np.arange(n_documents), lengths)
    kind = generator.integers(0, kinds, size=n_documents)[document]
    taste = generator.dirichlet(np.full(n_words, 1.0), size=n_documents)[document]
    word = (taste.cumsum(axis=1) < generator.random(len(document))[:, None]).sum(axis=1).clip(max=n_words - 1)
    following = (follows[word].cumsum(axis=1) < generator.random(len(document))[:, None]).sum(axis=1)
    own = generator.normal(size=(n_documents, n_anchors))[document]
    logits = of_kind[kind] + of_word[word] + of_next[following.clip(max=n_words - 1)] + 0.5 * own
    logits += generator.normal(size=logits.shape)
    q = torch.from_numpy(logits).softmax(dim=1)
    labels = dict(zip(SETS, map(torch.from_numpy, (word, following.clip(max=n_words - 1), kind)), strict=True))
    return q, torch.from_numpy(document), labels


def test_influences_are_derivatives_by_the_weights_of_documents():
    generator = np.random.default_rng(0)
    q, document_N, labels = corpus(generator, n_documents=12)
    q_SNM = torch.stack([q, q.roll(1, dims=0)])
    labels["column:kind"] = torch.where(document_N % 4 == 0, -1, labels["column:kind"])  # some have no label
    sums, labelled, measured = inputs_of(q_SNM, document_N, labels)
    found = influences(sums, labelled, measured, SETS)
    assert list(found) == influence_names(SETS, SETS)
    weights = torch.ones(12, dtype=torch.float64, requires_grad=True)
    values = [values_of(of_set, labels, weights[document_N]) for of_set in q_SNM]
    for name, psi_RD in found.items():
        (slope,) = torch.autograd.grad(sum(v[name] for v in values) / 2, weights, retain_graph=True)
        np.testing.assert_allclose(psi_RD[0] / measured.n_positions, slope, atol=1e-12, err_msg=str(name))


def test_sets_that_are_not_known_have_no_influences():
    q, document_N, labels = corpus(np.random.default_rng(0), n_documents=12)
    found = influences(*inputs_of(q[None], document_N, labels), ["output_unigram"])
    assert list(found) == influence_names(SETS, ["output_unigram"])
    influence = DocumentInfluence(
        rows=["layer.1"],
        documents=np.arange(12),
        keys=np.arange(12, dtype=np.uint64),
        units=np.arange(12),
        positions=np.bincount(document_N),
        n_documents=12,
        n_units=12,
        n_positions=len(q),
        values={name: psi_RD.numpy() for name, psi_RD in found.items()},
    )
    errors = standard_errors(influence, SETS)
    assert errors["se_information"].isnan().tolist() == [[True, False, True]]
    assert errors["se_optimality"].isnan().all()
    assert (errors["se_entropy"] > 0).all()


def test_a_ratio_of_nothing_has_no_influence():
    q, document_N, labels = corpus(np.random.default_rng(0), n_documents=12)
    labels["input_unigram"] = torch.zeros_like(labels["input_unigram"])  # a single label: no information
    sums, labelled, measured = inputs_of(q[None], document_N, labels)
    found = influences(sums, labelled, measured, SETS)
    assert found["input_unigram", "mutual_information"].abs().max() < 1e-9
    assert not found["unigram", "optimality"].isinf().any()


@pytest.mark.slow
def test_intervals_hold_the_truth_of_the_plug_in_nineteen_times_of_twenty():
    generator, n_documents = np.random.default_rng(0), 100
    values: dict = {}
    errors: dict = {}
    for _ in range(1000):
        q, document_N, labels = corpus(generator, n_documents)
        n = torch.ones(len(q), dtype=torch.float64)
        found = influences(*inputs_of(q[None], document_N, labels), SETS)
        for name, value in values_of(q, labels, n).items():
            values.setdefault(name, []).append(value.item())
            se = standard_error(found[name].numpy() / len(q), np.arange(n_documents), n_documents)
            errors.setdefault(name, []).append(se.item())
    for name, of_corpora in values.items():
        held = np.abs(np.array(of_corpora) - np.mean(of_corpora)) <= 1.96 * np.array(errors[name])
        assert 0.92 < held.mean() < 0.98, name
        assert np.mean(errors[name]) == pytest.approx(np.std(of_corpora), rel=0.08), name
