"""The null of labels of whole documents against relabelings one by one, in float64 loops."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from softh_probe.errors import InputError
from softh_probe.estimators.relabeling import FEW_LABELS, DocumentLabels, NullInformation, Relabelings
from tests.helpers import references


def documents(n_documents: int, seed: int = 0, n_anchors: int = 20, n_sets: int = 2, scale: float = 1.0, groups=None):
    """Sums of soft assignments [D, S, M] and unequal lengths [D]; documents of a group share half of their variance."""
    rng = np.random.default_rng(seed)
    lengths = np.ceil(rng.lognormal(2, 1, n_documents)).astype(np.int64)
    logits = rng.standard_normal((n_documents, n_sets, n_anchors))
    if groups is not None:
        logits += rng.standard_normal((groups.max() + 1, n_sets, n_anchors))[groups]
    q = np.exp(scale * logits + rng.standard_normal((n_sets, n_anchors)))
    return q / q.sum(axis=-1, keepdims=True) * lengths[:, None, None], lengths


def plug_in(mass: np.ndarray, lengths: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """H(Z) − Σ P(x) H(p̂_x) [S], label by label."""
    found = []
    for s in range(mass.shape[1]):
        information = references.entropy(mass[:, s].sum(axis=0))
        for label in np.unique(labels):
            rows = labels == label
            if lengths[rows].sum():
                information -= lengths[rows].sum() / lengths.sum() * references.entropy(mass[rows, s].sum(axis=0))
        found.append(information)
    return np.array(found)


def exchanged(labels: np.ndarray, groups: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    if groups is None:
        return rng.permutation(labels)
    new = labels.copy()
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        new[rows] = labels[rng.permutation(rows)]
    return new


def by_brute_force(mass, lengths, labels, groups=None, n=1000) -> np.ndarray:
    """[n, S]."""
    rng = np.random.default_rng(99)
    return np.stack([plug_in(mass, lengths, exchanged(labels, groups, rng)) for _ in range(n)])


def null_of(mass, lengths, labels, groups=None, documents_C=None, seed=0) -> NullInformation:
    documents_C = np.bincount(labels) if documents_C is None else documents_C
    labels = DocumentLabels(label_D=labels, documents_C=documents_C, group_D=groups)
    return Relabelings(labels, seed).null(torch.from_numpy(mass).float(), torch.from_numpy(lengths))


def assert_agree(null: NullInformation, brute: np.ndarray, rtol_mean: float = 0.0, rtol_sd: float = 0.1) -> None:
    error = brute.std(axis=0) * math.sqrt(1 / len(brute) + 1 / len(null.information_WS))
    assert np.all(abs(null.mean_S.numpy() - brute.mean(axis=0)) < 4 * error + rtol_mean * brute.mean(axis=0))
    assert null.sd == pytest.approx(brute.mean(axis=1).std(), rel=rtol_sd)


def skewed(n_documents: int, n_labels: int, seed: int = 0) -> np.ndarray:
    """Labels of unequal frequency, each of which occurs."""
    rng = np.random.default_rng(seed)
    labels = (n_labels * rng.random(n_documents) ** 2).astype(np.int64)
    return np.unique(labels, return_inverse=True)[1]


# --- against brute force -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_documents", "n_labels"), [(150, 2), (150, 8), pytest.param(500, 200, marks=pytest.mark.slow)]
)
def test_mean_and_sd_are_those_of_labels_exchanged_between_documents(n_documents, n_labels):
    mass, lengths = documents(n_documents)
    labels = skewed(n_documents, n_labels)
    assert_agree(null_of(mass, lengths, labels), by_brute_force(mass, lengths, labels))


def test_pairs_exchange_labels_within_pairs():
    groups = np.arange(120) // 2
    mass, lengths = documents(120, groups=groups)
    labels = np.arange(120) % 2
    null, brute = null_of(mass, lengths, labels, groups), by_brute_force(mass, lengths, labels, groups)
    assert_agree(null, brute)
    assert null.mean_S.mean() < 0.8 * null_of(mass, lengths, labels).mean_S.mean()


def test_labels_are_exchanged_within_groups_of_any_size():
    rng = np.random.default_rng(3)
    groups = np.sort(rng.integers(12, size=160))
    mass, lengths = documents(160, groups=groups)
    labels = np.clip(groups // 4 + rng.integers(0, 2, size=160), 0, 3)
    order = rng.permutation(160)
    mass, lengths, labels, groups = mass[order], lengths[order], labels[order], groups[order]
    null, brute = null_of(mass, lengths, labels, groups * 7 + 5), by_brute_force(mass, lengths, labels, groups)
    assert_agree(null, brute)
    assert null.mean_S.mean() > 1.2 * null_of(mass, lengths, labels).mean_S.mean()  # groups tell of the label


@pytest.mark.slow
@pytest.mark.parametrize("n_labels", [2, 8, 200])
def test_a_sample_of_1000_documents_stands_for_5000(n_labels):
    mass, lengths = documents(5000, n_sets=1)
    labels = skewed(5000, n_labels)
    rows = np.random.default_rng(1).permutation(5000)[:1000]
    null = null_of(mass[rows], lengths[rows], labels[rows], documents_C=np.bincount(labels))
    brute = by_brute_force(mass, lengths, labels, n=400 if n_labels < 100 else 100)
    assert null.mean_S.numpy() == pytest.approx(brute.mean(axis=0), rel=0.1)
    assert null.sd == pytest.approx(brute.std(), rel=0.2)


def test_p_values_of_a_sample_count_its_error():
    rng, found = np.random.default_rng(0), []
    for i in range(60):
        mass, lengths = documents(2400, seed=i, n_sets=1, scale=0.5)
        shorter = lengths.clip(max=60)
        mass *= (shorter / lengths)[:, None, None]
        labels, rows = rng.integers(0, 200, size=2400), rng.permutation(2400)[:600]
        null = null_of(mass[rows], shorter[rows], labels[rows], documents_C=np.bincount(labels))
        assert null.sampling_error > null.sd / null.mean_S.item()  # the relabelings alone vary less
        found.append(null.p_value(plug_in(mass, shorter, labels)[0]))
    assert kstest(found, "uniform").pvalue > 0.01
    assert null_of(mass, shorter, labels).sampling_error == 0


def test_rare_labels_of_a_sample_keep_their_number_of_documents():
    mass, lengths = documents(6000, n_sets=1, scale=2)
    labels = np.zeros(6000, dtype=np.int64)
    labels[:40] = 1 + np.arange(40) // 2  # twenty labels of two documents
    rows = np.random.default_rng(1).permutation(6000)[:1500]
    null = null_of(mass[rows], lengths[rows], labels[rows], documents_C=np.bincount(labels))
    brute = by_brute_force(mass, lengths, labels, n=150)
    assert null.mean_S.numpy() == pytest.approx(brute.mean(axis=0), rel=0.1)


def test_more_labels_than_virtual_documents_are_themselves_sampled(monkeypatch):
    monkeypatch.setattr("softh_probe.estimators.relabeling.MAX_VIRTUAL_DOCUMENTS", 600)
    mass, lengths = documents(3000, n_sets=1)
    labels = np.arange(3000) // 3
    rows = np.random.default_rng(1).permutation(3000)[:600]
    null = null_of(mass[rows], lengths[rows], labels[rows], documents_C=np.bincount(labels))
    brute = by_brute_force(mass, lengths, labels, n=5)
    assert null.mean_S.numpy() == pytest.approx(brute.mean(axis=0), rel=0.1)


def test_what_groups_say_of_labels_does_not_shrink_with_the_number_of_documents():
    rng = np.random.default_rng(0)
    groups = rng.integers(5, size=2000)
    mass, lengths = documents(2000, groups=groups, scale=0.5)
    labels = (rng.random(2000) < 0.1 + 0.2 * groups).astype(np.int64)
    rows = rng.permutation(2000)[:500]
    null = null_of(mass[rows], lengths[rows], labels[rows], groups[rows], documents_C=np.bincount(labels))
    brute = by_brute_force(mass, lengths, labels, groups, n=300)
    # What 500 documents say of five groups is itself a little too much.
    assert null.mean_S.mean().item() == pytest.approx(brute.mean(), rel=0.15)
    assert null.sd == pytest.approx(brute.mean(axis=1).std(), rel=0.2)


# --- the formula ---------------------------------------------------------------------------------------------------


def test_each_relabeling_has_the_information_of_the_direct_formula():
    mass, lengths = documents(6, n_sets=1)
    labels = np.array([0, 0, 1, 1, 1, 2])
    possible = [plug_in(mass, lengths, np.array(p))[0] for p in set(itertools.permutations(labels.tolist()))]
    found = null_of(mass, lengths, labels).information_WS[:, 0].numpy()
    nearest = np.abs(found[:, None] - np.array(possible)).min(axis=1)
    assert nearest.max() < 1e-7
    assert len(set(found.round(6))) == len(set(np.array(possible).round(6))) == 60


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 30)), min_size=1, max_size=9),
    st.booleans(),
    st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_informations_are_those_of_exchanged_labels(rows, with_groups, seed):
    labels, groups, lengths = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))
    labels = np.unique(labels, return_inverse=True)[1]
    rng = np.random.default_rng(seed)
    q = rng.dirichlet(np.ones(5), size=(len(rows), 1))
    mass = q * lengths[:, None, None]
    null = null_of(mass, lengths, labels, groups if with_groups else None)
    found = np.unique(null.information_WS.numpy().round(7))
    possible = {exchanged_all for exchanged_all in _relabeled(labels, groups if with_groups else None)}
    expected = np.array([plug_in(mass, lengths, np.array(p))[0] if lengths.sum() else 0.0 for p in possible])
    assert np.abs(found[:, None] - expected).min(axis=1).max() < 1e-6
    assert len(possible) > 60 or np.abs(found[:, None] - expected).min(axis=0).max() < 1e-6  # each occurs


def _relabeled(labels: np.ndarray, groups: np.ndarray | None) -> list[tuple[int, ...]]:
    groups = np.zeros_like(labels) if groups is None else groups
    names = np.unique(groups)
    parts = [set(itertools.permutations(labels[groups == g].tolist())) for g in names if (groups == g).sum() <= 6]
    if len(parts) < len(names):  # too many to list
        rng = np.random.default_rng(0)
        return [tuple(exchanged(labels, groups, rng).tolist()) for _ in range(20_000)]
    found = []
    for chosen in itertools.product(*parts):
        new = labels.copy()
        for g, values in zip(names, chosen, strict=True):
            new[groups == g] = values
        found.append(tuple(new.tolist()))
    return found


def test_informations_of_a_millionth_of_a_nat_are_right():
    mass, lengths = documents(400, scale=0.02)
    labels = np.arange(400) % 2
    null, brute = null_of(mass, lengths, labels), by_brute_force(mass, lengths, labels, n=1000)
    assert 1e-8 < brute.mean() < 2e-5
    assert_agree(null, brute)
    two = np.array([0, 1])  # two documents have one information however labels are exchanged
    expected = plug_in(mass[:2], lengths[:2], two)
    assert null_of(mass[:2], lengths[:2], two).mean_S.numpy() == pytest.approx(expected, rel=1e-3)


def test_an_anchor_without_mass_or_nearly_so_changes_nothing():
    mass, lengths = documents(50)
    plain = null_of(mass, lengths, np.arange(50) % 3)
    without = np.concatenate([mass, np.zeros_like(mass[..., :1]), np.full_like(mass[..., :1], 1e-37)], axis=-1)
    found = null_of(without, lengths, np.arange(50) % 3)
    assert found.information_WS.numpy() == pytest.approx(plain.information_WS.numpy(), rel=1e-5)


def test_more_anchors_than_a_block():
    mass, lengths = documents(60, n_anchors=300, n_sets=1)
    labels = np.arange(60) % 4
    assert_agree(null_of(mass, lengths, labels), by_brute_force(mass, lengths, labels, n=400), rtol_sd=0.12)


def test_equal_arguments_give_equal_relabelings_in_every_layer():
    mass, lengths = documents(40)
    relabelings = Relabelings(DocumentLabels(label_D=np.arange(40) % 3, documents_C=np.bincount(np.arange(40) % 3)))
    first, second = (relabelings.null(torch.from_numpy(mass), torch.from_numpy(lengths)) for _ in range(2))
    again = null_of(mass, lengths, np.arange(40) % 3)
    assert torch.equal(first.information_WS, second.information_WS)
    torch.testing.assert_close(first.information_WS, again.information_WS, rtol=1e-5, atol=1e-9)
    other = null_of(mass, lengths, np.arange(40) % 3, seed=1)
    assert not torch.equal(other.information_WS, again.information_WS)


# --- p-values ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("n_labels", "pairs"), [(2, False), (8, False), (100, False), (2, True)])
def test_p_values_of_random_labels_are_uniform(n_labels, pairs):
    rng = np.random.default_rng(5)
    groups = np.arange(240) // 2
    mass, lengths = documents(240, n_anchors=8, n_sets=1, groups=groups)
    found = []
    for seed in range(200):
        labels = (np.arange(240) % 2)[np.arange(240) ^ rng.integers(2, size=120).repeat(2)] if pairs else None
        if labels is None:
            labels = np.unique(rng.integers(n_labels, size=240), return_inverse=True)[1]
        null = null_of(mass, lengths, labels, groups if pairs else None, seed=seed)
        found.append(null.p_value(plug_in(mass, lengths, labels).mean()))
    assert kstest(found, "uniform").pvalue > 0.01


@pytest.mark.parametrize("pairs", [False, True])
def test_a_planted_signal_is_found(pairs):
    groups = np.arange(100) // 2
    mass, lengths = documents(100, groups=groups)
    labels = np.arange(100) % 2
    mass[labels == 1, :, 0] *= 4 if pairs else 10
    mass *= (lengths[:, None] / mass.sum(axis=-1))[..., None]
    null = null_of(mass, lengths, labels, groups if pairs else None)
    assert null.p_value(plug_in(mass, lengths, labels).mean()) == 0.001


def test_the_observed_labels_count_as_a_relabeling_and_ties_as_reached():
    null = NullInformation(information_WS=torch.tensor([[1.0, 3.0], [2.0, 2.0], [4.0, 4.0]]))
    assert [null.p_value(x) for x in (0.0, 2.0, 2.0 + 1e-7, 3.0, 5.0)] == [1.0, 1.0, 1.0, 0.5, 0.25]
    assert null.mean_S.tolist() == pytest.approx([7 / 3, 3.0])
    assert null.sd == pytest.approx(np.std([2, 2, 4], ddof=1))


# --- degenerate label sets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "groups"),
    [([0] * 6, None), (list(range(6)), None), ([0, 1, 0, 1, 0, 1], list(range(6))), ([0], None), ([0], [0])],
    ids=["one label", "a label for each document", "groups of one", "one document", "one document in a group"],
)
def test_labels_that_cannot_be_exchanged_have_the_observed_information(labels, groups):
    mass, lengths = documents(len(labels))
    labels = np.array(labels)
    null = null_of(mass, lengths, labels, None if groups is None else np.array(groups))
    expected = plug_in(mass, lengths, labels)
    assert null.information_WS.numpy() == pytest.approx(np.tile(expected, (len(null.information_WS), 1)), abs=1e-6)
    assert null.sd == pytest.approx(0, abs=1e-6)
    if np.any(expected > 1e-9):
        assert null.p_value(expected.mean()) > 0.9
    else:
        assert null.p_value(0.0) == 1


def test_pairs_with_a_missing_half_keep_their_label():
    groups = np.arange(60) // 2
    mass, lengths = documents(60, groups=groups)
    kept = np.arange(60) % 7 != 0
    mass, lengths, labels, groups = mass[kept], lengths[kept], (np.arange(60) % 2)[kept], groups[kept]
    assert_agree(null_of(mass, lengths, labels, groups), by_brute_force(mass, lengths, labels, groups))


def test_documents_without_positions_in_the_layer_say_nothing():
    mass, lengths = documents(80)
    mass[::3], lengths[::3] = 0, 0
    labels = np.arange(80) % 5
    assert_agree(null_of(mass, lengths, labels), by_brute_force(mass, lengths, labels))
    nothing = null_of(np.zeros_like(mass), np.zeros_like(lengths), labels)
    assert not nothing.information_WS.any()


def test_few_labels_have_more_relabelings():
    mass, lengths = documents(200)
    assert len(null_of(mass, lengths, np.arange(200) % FEW_LABELS).information_WS) == 999
    assert len(null_of(mass, lengths, np.arange(200) % (FEW_LABELS + 1)).information_WS) == 199


@pytest.mark.parametrize(
    ("label_D", "documents_C", "group_D", "message"),
    [
        ([], [1], None, "label_D: expected the label of one document or more"),
        ([0, 2], [1, 1], None, "label_D: expected labels from 0 to 1, the length of documents_C, got 0 to 2"),
        ([0, 0], [1, 1], None, "documents_C: expected at least the documents of the sample"),
        ([0, 1], [1, 1], [0], "group_D: expected a group for each of 2 documents, got 1"),
    ],
)
def test_labels_that_do_not_fit_are_refused(label_D, documents_C, group_D, message):
    with pytest.raises(InputError, match=message):
        DocumentLabels(
            label_D=np.array(label_D, dtype=np.int64),
            documents_C=np.array(documents_C),
            group_D=None if group_D is None else np.array(group_D),
        )


def test_sums_of_other_documents_are_refused():
    labels = DocumentLabels(label_D=np.array([0, 1]), documents_C=np.array([1, 1]))
    with pytest.raises(InputError, match=r"mass_DSM: expected sums \[2, S, M\] of the documents of the label set"):
        Relabelings(labels).null(torch.ones(3, 1, 4), torch.ones(3))
