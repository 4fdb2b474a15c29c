"""What all estimators have in common: their contract, chance, order, and determinism."""

import doctest
import importlib
import json
import math
import pkgutil
from dataclasses import dataclass, replace

import numpy as np
import pytest
import rivals
import torch
from rivals.bins import Bins
from rivals.clusters import KMeans, NearestAnchor
from rivals.critics import Club, InfoNce
from rivals.estimator import Estimator, chunks
from rivals.ksg import Ksg
from rivals.ours import SoftEntropy
from rivals.renyi import Renyi
from rivals.truths import clusters, independent

from softh_probe.errors import InputError

K, DIM, N = 4, 48, 2400

#: Each estimator at a small size, and the largest of its values for independent labels. The bias of plug-in information
#: is about (patterns − 1)(labels − 1) / 2N where patterns are not rare; that of the others is told beside it.
SMALL = {
    "bins": (Bins(dimensions=2, bins=6), 35 * 3 / 2 / N * 1.6),
    "bins of components": (Bins(dimensions=2, bins=6, principal=True), 35 * 3 / 2 / N * 1.6),
    "k-means": (KMeans(clusters=16, batch=512), 15 * 3 / 2 / N * 2),
    "nearest anchor": (NearestAnchor(anchors=20, anchor_sets=3), 19 * 3 / 2 / N * 1.6),
    "linear Renyi": (Renyi(kernel="linear", most_positions=600), 0.15),  # DIM eigenvalues from 150 states a label
    "Gaussian Renyi": (Renyi(most_positions=600), 0.3),  # N of them: the largest bias of all
    "KSG": (Ksg(dimensions=3, most_positions=1500), 0.05),  # unbiased; what is left is its spread
    "InfoNCE": (InfoNce(hidden=32, epochs=4, batch=128), 0.03),  # a critic that learnt nothing is below 0
    "CLUB": (Club(hidden=32, epochs=4, batch=128), 0.06),
    "soft entropy": (SoftEntropy(anchors=20, anchor_sets=3), 0.01),
    "corrected": (SoftEntropy(anchors=20, anchor_sets=3, corrected=True), 0.002),
}
every = pytest.mark.parametrize("which", SMALL)


@pytest.fixture(scope="module")
def drawn():
    """Clusters of three concentrations, from hardly to quite apart."""
    truths = [clusters(K, DIM, kappa) for kappa in (4.0, 12.0, 40.0)]
    assert [round(truth.information / math.log(K), 1) for truth in truths] == [0.1, 0.5, 1.0]
    return [truth.draw(N, 0) for truth in truths]


@every
def test_independent_labels_have_information_near_zero(which):
    estimator, most = SMALL[which]
    value = estimator.estimate(*independent(clusters(K, DIM, 12.0), K).draw(N, 1))
    least = {"KSG": -0.05, "InfoNCE": -0.3, "CLUB": -0.06, "corrected": -0.002}.get(which, 0.0)
    assert least < value < most


@every
def test_information_increases_with_separation(which, drawn):
    values = [SMALL[which][0].estimate(*one) for one in drawn]
    assert values[0] < values[1] < values[2]
    assert values[2] > values[0] + 0.02


@every
def test_equal_seeds_give_equal_estimates_whatever_the_labels_are_called(which, drawn):
    estimator, (states, labels) = SMALL[which][0], drawn[1]
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    called = np.array([7, 100, 2**40, 2**41])[labels]
    assert estimator.estimate(states, labels) == estimator.estimate(states, called)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])


@every
def test_estimators_tell_what_they_need(which):
    estimator = SMALL[which][0]
    assert estimator.name
    assert estimator.passes >= 1
    assert json.loads(json.dumps(estimator.chosen)) == estimator.chosen
    assert not {"seed", "most_positions"} & set(estimator.chosen)
    assert estimator.needs_all == (estimator.most_positions is not None)


def test_names_are_all_different():
    names = [estimator.name for estimator, _ in SMALL.values()]
    assert len(set(names)) == len(names)


def test_what_is_chosen_are_the_fields_and_passes_follow_them():
    estimator = KMeans(clusters=50, batch=60, epochs=7, seed=3)
    assert estimator.chosen == {"clusters": 50, "batch": 60, "epochs": 7}
    assert estimator.passes == 8
    assert replace(estimator, seed=4).chosen == estimator.chosen


@dataclass(frozen=True, kw_only=True)
class Sizes(Estimator):
    """Gives the number of positions that it was given, plus the mean of states beyond their labels."""

    name = "sizes"
    passes = 1

    def _estimate(self, states_ND, labels_N):
        return len(states_ND) + float(np.abs(states_ND[:, 0] - labels_N).max())


def test_more_positions_than_an_estimator_takes_are_sampled_with_their_labels():
    labels = np.arange(500)
    states = np.repeat(labels[:, None], 2, axis=1).astype(np.float32)
    assert Sizes().estimate(states, labels) == 500
    assert Sizes(most_positions=500).estimate(states, labels) == 500
    sampled = Sizes(most_positions=80).estimate(states, labels)
    assert sampled > 80 + 100  # labels are numbered anew, and the sample is not the first 80
    assert sampled != Sizes(most_positions=80, seed=1).estimate(states, labels)


def test_chunks_cover_all_positions_once():
    assert np.concatenate([np.arange(10_000)[part] for part in chunks(10_000)]).tolist() == list(range(10_000))


@pytest.mark.parametrize(
    ("states", "labels", "name"),
    [
        (np.zeros((4, 3)), np.zeros(4, dtype=int), "states_ND"),
        (np.zeros(4, dtype=np.float32), np.zeros(4, dtype=int), "states_ND"),
        (np.zeros((1, 3), dtype=np.float32), np.zeros(1, dtype=int), "states_ND"),
        (np.full((4, 3), np.nan, dtype=np.float32), np.zeros(4, dtype=int), "states_ND"),
        (np.zeros((4, 3), dtype=np.float32), np.zeros(3, dtype=int), "labels_N"),
        (np.zeros((4, 3), dtype=np.float32), np.zeros(4), "labels_N"),
    ],
)
def test_states_and_labels_of_another_kind_are_refused(states, labels, name):
    with pytest.raises(InputError, match=f"^{name}: expected .* got "):
        NearestAnchor().estimate(states, labels)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Bins(dimensions=0), "dimensions"),
        (lambda: Bins(bins=257), "bins"),
        (lambda: KMeans(epochs=0), "epochs"),
        (lambda: Renyi(kernel="cubic"), "kernel"),
        (lambda: Ksg(most_positions=0), "most_positions"),
        (lambda: InfoNce(held_out=1.0), "held_out"),
    ],
)
def test_parameters_out_of_range_are_refused(make, name):
    with pytest.raises(InputError, match=f"^{name}: expected .* got "):
        make()


@pytest.mark.parametrize(
    ("estimator", "name"),
    [
        (Bins(dimensions=9), "dimensions"),
        (Bins(dimensions=9, principal=True), "dimensions"),
        (Ksg(dimensions=9), "dimensions"),
        (KMeans(clusters=31), "clusters"),
        (Club(batch=20), "batch"),
    ],
)
def test_what_is_too_much_for_few_small_states_is_refused(estimator, name):
    states = np.random.default_rng(0).standard_normal((30, 8), dtype=np.float32)
    with pytest.raises(InputError, match=f"^{name}: expected .* got "):
        estimator.estimate(states, np.arange(30) % 3)


@pytest.mark.parametrize("estimator", [SoftEntropy(corrected=True), Ksg(dimensions=2)])
def test_labels_that_all_occur_once_are_refused_where_no_estimate_is_possible(estimator):
    states = np.random.default_rng(0).standard_normal((30, 8), dtype=np.float32)
    with pytest.raises(InputError, match=r"^labels_N: expected a label that occurs twice"):
        estimator.estimate(states, np.arange(30))


def test_examples_of_docstrings_run():
    found = [
        doctest.testmod(importlib.import_module(f"rivals.{one.name}")) for one in pkgutil.iter_modules(rivals.__path__)
    ]
    assert sum(result.attempted for result in found) >= 8
    assert not any(result.failed for result in found)
