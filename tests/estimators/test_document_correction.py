"""The corrected information of labels of whole documents against loops over documents, and against known truths."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from softh_probe.errors import InputError
from softh_probe.estimators import document_correction
from softh_probe.estimators.document_correction import corrected_by_documents
from softh_probe.estimators.document_curve import document_curve
from softh_probe.estimators.relabeling import DocumentLabels, Relabelings
from tests.helpers import references


def drawn(shared: np.ndarray, rng: np.random.Generator, spread: float = 1.0):
    """Sums [D, 1, M] and unequal lengths of documents with these logits, whose positions scatter."""
    lengths = np.ceil(rng.lognormal(1.5, 1, len(shared))).clip(1, 50).astype(np.int64)
    logits = np.repeat(shared, lengths, axis=0)
    q = np.exp(logits + spread * rng.standard_normal(logits.shape))
    q /= q.sum(axis=1, keepdims=True)
    return np.add.reduceat(q, np.cumsum(lengths) - lengths)[:, None], lengths


def entropies(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(np.maximum(p, 1e-300))).sum(axis=-1)


def information(sums: np.ndarray, lengths: np.ndarray) -> float:
    """Of labels with these sums [C, M] and positions."""
    shares = lengths / lengths.sum()
    of_labels = sum(w * references.entropy(p) for w, p in zip(shares, sums, strict=True) if w > 0)
    return references.entropy(sums.sum(axis=0)) - of_labels


def sums_of(mass: np.ndarray, lengths: np.ndarray, labels: np.ndarray, n_labels: int):
    sums, positions = np.zeros((n_labels, *mass.shape[1:])), np.zeros(n_labels)
    np.add.at(sums, labels, mass)
    np.add.at(positions, labels, lengths)
    return sums, positions


def corrected(mass, lengths, labels, groups=None, rows=None) -> np.ndarray:
    """Corrected information; the sample is these rows of the documents."""
    n_labels = labels.max() + 1
    rows = np.arange(len(labels)) if rows is None else rows
    label_set = DocumentLabels(
        label_D=labels[rows],
        documents_C=np.bincount(labels),
        group_D=None if groups is None else groups[rows],
    )
    sums, positions = (torch.from_numpy(x) for x in sums_of(mass, lengths, labels, n_labels))
    sample = torch.from_numpy(mass[rows]), torch.from_numpy(lengths[rows])
    return corrected_by_documents(label_set, *sample, sums, positions).numpy()


@pytest.fixture
def first_order(monkeypatch):
    """The jackknife alone."""
    monkeypatch.setattr(document_correction, "FEWEST_DOCUMENTS", math.inf)


def jackknife_by_label(mass: np.ndarray, lengths: np.ndarray, strata: np.ndarray, labels: np.ndarray) -> float:
    """Σ (k − 1)/k (I₋d − I), where the sums of the rest of a stratum stand for all of it."""
    n_labels, bias = labels.max() + 1, 0.0
    sums, positions = sums_of(mass, lengths, labels, n_labels)
    whole = information(sums[:, 0], positions)
    for d in range(len(labels)):
        members = np.flatnonzero(strata == strata[d])
        if len(members) < 2:
            continue
        rest, others = members[members != d], np.flatnonzero(strata != strata[d])
        weight = np.zeros(len(labels))
        weight[rest], weight[others] = len(members) / len(rest), 1.0
        without = sums_of(mass * weight[:, None, None], lengths * weight, labels, n_labels)
        bias += (1 - 1 / len(members)) * (information(without[0][:, 0], without[1]) - whole)
    return whole - bias


def jackknife_by_group(mass: np.ndarray, lengths: np.ndarray, groups: np.ndarray, labels: np.ndarray) -> float:
    names, n_labels = np.unique(groups), labels.max() + 1
    sums, positions = sums_of(mass, lengths, labels, n_labels)
    whole = information(sums[:, 0], positions)
    found = []
    for group in names:
        rows = groups != group
        without = sums_of(mass[rows], lengths[rows], labels[rows], n_labels)
        found.append(information(without[0][:, 0], without[1]))
    return whole - (len(names) - 1) * (np.mean(found) - whole)


# --- against loops -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("first_order")
@pytest.mark.parametrize("n_labels", [1, 2, 7])
def test_without_groups_a_label_is_a_stratum_of_documents(n_labels):
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.arange(n_labels).repeat(2), rng.integers(n_labels, size=30)])
    mass, lengths = drawn(rng.standard_normal((len(labels), 12)), rng)
    expected = jackknife_by_label(mass, lengths, labels, labels)
    assert corrected(mass, lengths, labels) == pytest.approx(expected, abs=1e-12)


def test_matched_documents_are_left_out_by_group():
    rng = np.random.default_rng(0)
    groups = np.arange(60) // 3
    labels = np.arange(60) % 3
    kept = rng.random(60) < 0.8  # some groups lack some labels
    labels, groups = labels[kept], groups[kept]
    mass, lengths = drawn(rng.standard_normal((len(labels), 12)), rng)
    expected = jackknife_by_group(mass, lengths, groups, labels)
    order = rng.permutation(len(labels))
    found = corrected(mass[order], lengths[order], labels[order], 11 * groups[order])
    assert found == pytest.approx(expected, abs=1e-12)


def test_groups_larger_than_a_part_of_the_computation(monkeypatch):
    monkeypatch.setattr(document_correction, "_VALUES", 50)
    test_matched_documents_are_left_out_by_group()


def test_a_group_of_few_documents_of_one_label_is_left_out_whole():
    rng = np.random.default_rng(0)
    groups = np.arange(60) // 3
    labels = rng.integers(6, size=60)
    mass, lengths = drawn(rng.standard_normal((60, 12)), rng)
    expected = jackknife_by_group(mass, lengths, groups, labels)
    assert corrected(mass, lengths, labels, groups) == pytest.approx(expected, abs=1e-12)


@pytest.mark.usefixtures("first_order")
def test_documents_of_one_label_in_a_large_group_are_a_stratum():
    rng = np.random.default_rng(0)
    groups, labels = rng.integers(3, size=80), rng.integers(2, size=80)
    mass, lengths = drawn(rng.standard_normal((80, 12)) + rng.standard_normal((3, 12))[groups], rng)
    expected = jackknife_by_label(mass, lengths, 2 * groups + labels, labels)
    assert corrected(mass, lengths, labels, groups) == pytest.approx(expected, abs=1e-12)


def test_the_curve_is_that_of_documents_put_together_at_random():
    rng = np.random.default_rng(0)
    mass, lengths = drawn(2 * rng.standard_normal((600, 15)), rng)
    curve = document_curve(torch.from_numpy(mass), torch.from_numpy(lengths))
    numbers = [1, 2, 3, 5, 10, 40, 200]
    whole = mass[:, 0].sum(axis=0) / lengths.sum()
    expected = []
    for n in numbers:
        rows = np.stack([rng.permutation(600)[:n] for _ in range(6000 // n if n < 40 else 300)])
        positions = lengths[rows].sum(axis=1)
        p = mass[rows, 0].sum(axis=1) / positions[:, None]
        expected.append(np.average((p * np.log(p / whole)).sum(axis=1), weights=positions))
    bias = curve(torch.tensor([[*numbers, 600]], dtype=torch.float64))[0, :, 0].numpy()
    np.testing.assert_allclose(bias[:-1] - bias[-1], expected, rtol=0.06)


# --- against the truth ---------------------------------------------------------------------------------------------

WORLDS = [  # labels, documents of each, standard deviations of label centres and of documents
    pytest.param(2, 25, 0.6, 0.8, id="2 labels"),
    pytest.param(8, 12, 0.6, 0.8, id="8 labels"),
    pytest.param(50, 5, 0.6, 0.8, id="50 labels of five"),
    pytest.param(8, 12, 1.0, 0.3, id="documents alike"),
    pytest.param(8, 60, 0.6, 0.8, id="many documents"),
]


@pytest.mark.parametrize(("n_labels", "k", "of_label", "of_document"), WORLDS)
def test_the_mean_is_near_the_information_of_infinitely_many_documents(n_labels, k, of_label, of_document):
    rng = np.random.default_rng(1)
    centres = of_label * rng.standard_normal((n_labels, 20))
    many = centres[:, None] + math.hypot(of_document, 1.0) * rng.standard_normal((n_labels, 8000, 20))
    q = np.exp(many)
    p = (q / q.sum(axis=-1, keepdims=True)).mean(axis=1)
    truth = entropies(p.mean(axis=0)) - entropies(p).mean()
    labels = np.arange(n_labels).repeat(k)
    relabelings = Relabelings(DocumentLabels(label_D=labels, documents_C=np.bincount(labels)))
    errors, by_chance = [], []
    for repeat in range(12 if len(labels) > 200 else 40):
        mass, lengths = drawn(centres[labels] + of_document * rng.standard_normal((len(labels), 20)), rng)
        sums, positions = sums_of(mass, lengths, labels, n_labels)
        plug_in = information(sums[:, 0], positions)
        if repeat < 5:
            by_chance.append(relabelings.null(torch.from_numpy(mass), torch.from_numpy(lengths)).mean_S.item())
        errors.append([plug_in - truth, corrected(mass, lengths, labels)[0] - truth])
    (of_plug_in, of_corrected), spread = np.mean(errors, axis=0), np.std(errors, axis=0)[1] / len(errors) ** 0.5
    assert abs(of_corrected) < 0.12 * of_plug_in + 3 * spread
    assert abs(of_corrected) < 0.25 * abs(of_plug_in - np.mean(by_chance)) + 3 * spread


@pytest.mark.parametrize(("n_labels", "k"), [(2, 30), (8, 10), (50, 5)])
def test_labels_that_say_nothing_have_none_on_average(n_labels, k):
    rng = np.random.default_rng(2)
    labels = np.arange(n_labels).repeat(k)
    found, raw = [], []
    for _ in range(40):
        mass, lengths = drawn(0.8 * rng.standard_normal((len(labels), 20)), rng)
        found.append(corrected(mass, lengths, labels)[0])
        raw.append(information(*(x.squeeze() for x in sums_of(mass, lengths, labels, n_labels))))
    assert abs(np.mean(found)) < 3 * np.std(found) / 40**0.5 + 0.05 * np.mean(raw)
    assert min(found) < 0


@pytest.mark.parametrize("of_label", [0.0, 0.3])
@pytest.mark.parametrize("halves", [False, True])
def test_pairs_are_corrected_for_what_pairs_do_not_share(of_label, halves):
    rng = np.random.default_rng(3)
    effect = of_label * np.array([[1.0], [-1.0]]) * rng.standard_normal(20)
    many = np.exp(effect[:, None] + math.sqrt(1 + 1 + 0.09) * rng.standard_normal((2, 100_000, 20)))
    p = (many / many.sum(axis=-1, keepdims=True)).mean(axis=1)
    truth = entropies(p.mean(axis=0)) - entropies(p).mean()
    errors = []
    for _ in range(60):
        groups, labels = np.arange(160) // 2, np.arange(160) % 2
        kept = rng.random(160) > (0.15 if halves else 0)
        shared = rng.standard_normal((80, 20))[groups] + 0.3 * rng.standard_normal((160, 20)) + effect[labels]
        groups, labels = groups[kept], labels[kept]
        mass, lengths = drawn(shared[kept], rng)
        sums, positions = sums_of(mass, lengths, labels, 2)
        plug_in = information(sums[:, 0], positions)
        errors.append([plug_in - truth, corrected(mass, lengths, labels, groups)[0] - truth])
    (of_plug_in, of_corrected), spread = np.mean(errors, axis=0), np.std(errors, axis=0)[1] / 60**0.5
    assert abs(of_corrected) < 0.1 * of_plug_in + 3 * spread


@pytest.mark.parametrize("kind", ["labels", "pairs", "groups"])
def test_a_sample_of_documents_corrects_as_all_do(kind):
    rng = np.random.default_rng(4)
    unit = np.arange(6000) // 2
    groups = {"labels": None, "pairs": unit, "groups": unit % 4}[kind]
    labels = np.arange(6000) % 2 if kind == "pairs" else rng.integers(10, size=6000)
    shared = rng.standard_normal((10, 20))[labels] + rng.standard_normal((6000, 20))
    mass, lengths = drawn(shared + rng.standard_normal((3000, 20))[unit], rng)
    rows = np.flatnonzero(np.isin(unit, rng.permutation(3000)[:750]))
    sums, positions = sums_of(mass, lengths, labels, labels.max() + 1)
    plug_in = information(sums[:, 0], positions)
    bias_of_all, bias = (plug_in - corrected(mass, lengths, labels, groups, r)[0] for r in (None, rows))
    assert bias_of_all > 0
    assert bias == pytest.approx(bias_of_all, rel=0.12)  # 1,500 of 6,000 documents


# --- degenerate label sets -----------------------------------------------------------------------------------------


def test_labels_of_one_document_are_left_out():
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.arange(4).repeat(6), np.arange(4, 9)])
    mass, lengths = drawn(rng.standard_normal((len(labels), 12)), rng)
    found = corrected(mass, lengths, labels)
    assert found == pytest.approx(corrected(mass[:24], lengths[:24], labels[:24]), abs=1e-12)


@pytest.mark.parametrize("groups", [None, [0, 0, 1, 1, 2]])
def test_nothing_is_known_where_every_document_has_a_label_of_its_own(groups):
    rng = np.random.default_rng(0)
    mass, lengths = drawn(rng.standard_normal((5, 12)), rng)
    assert np.isnan(corrected(mass, lengths, np.arange(5), None if groups is None else np.array(groups))).all()
    assert np.isnan(corrected(mass[:1], lengths[:1], np.zeros(1, dtype=np.int64))).all()


@pytest.mark.parametrize("groups", [None, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]])
def test_one_label_says_nothing(groups):
    rng = np.random.default_rng(0)
    mass, lengths = drawn(rng.standard_normal((10, 12)), rng)
    found = corrected(mass, lengths, np.zeros(10, dtype=np.int64), None if groups is None else np.array(groups))
    assert found == pytest.approx(0, abs=1e-12)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 20)), min_size=1, max_size=30),
    st.booleans(),
    st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_any_labels_groups_and_lengths_give_numbers(rows, with_groups, seed):
    labels, groups, lengths = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))
    labels = np.unique(labels, return_inverse=True)[1]
    q = np.random.default_rng(seed).dirichlet(np.full(6, 0.3), size=(len(rows), 2))
    q[:, :, 0] = 0  # an anchor without mass
    mass = q / q.sum(axis=-1, keepdims=True) * lengths[:, None, None]
    found = corrected(mass, lengths, labels, groups if with_groups else None)
    assert np.isnan(found).all() == (np.bincount(labels).max() < 2)
    assert np.isfinite(found).all() or np.isnan(found).all()
    order = np.random.default_rng(seed).permutation(len(rows))
    with pytest.MonkeyPatch.context() as patch:  # shuffles of the curve depend on the order of documents
        patch.setattr(document_correction, "FEWEST_DOCUMENTS", math.inf)
        group = groups if with_groups else None
        first = corrected(mass, lengths, labels, group)
        again = corrected(mass[order], lengths[order], labels[order], None if group is None else group[order])
    np.testing.assert_allclose(again, first, atol=1e-9)


def test_sums_of_other_documents_or_labels_are_refused():
    labels = DocumentLabels(label_D=np.array([0, 0, 1]), documents_C=np.array([2, 1]))
    with pytest.raises(InputError, match=r"mass_DSM: expected sums \[3, S, M\] of the documents"):
        corrected_by_documents(labels, torch.ones(2, 1, 4), torch.ones(2), torch.ones(2, 1, 4), torch.ones(2))
    with pytest.raises(InputError, match=r"mass_CSM: expected sums \[2, 1, 4\] of the labels, got \[3, 1, 4\]"):
        corrected_by_documents(labels, torch.ones(3, 1, 4), torch.ones(3), torch.ones(3, 1, 4), torch.ones(3))
