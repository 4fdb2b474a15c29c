"""Each estimator against its definition, computed another way."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from rivals.bins import Bins
from rivals.clusters import KMeans, NearestAnchor
from rivals.components import principal_components
from rivals.critics import Club, InfoNce
from rivals.ksg import Ksg, ross_information
from rivals.ours import SoftEntropy
from rivals.renyi import Renyi
from rivals.truths import clusters, independent, noisy_channel
from scipy.integrate import quad
from scipy.special import digamma
from scipy.stats import norm
from sklearn.decomposition import PCA
from sklearn.feature_selection import mutual_info_classif
from torch import nn

from softh_probe import SoftEntropyProbe, soft_mutual_information


def plug_in(symbols, labels) -> float:
    """I(symbol; label) in nats by counting."""
    n, joint = len(labels), Counter(zip(symbols, labels, strict=True))
    left, right = Counter(symbols), Counter(labels)
    return sum(c / n * math.log(c * n / (left[s] * right[x])) for (s, x), c in joint.items())


def gaussians(n, dim, k=3, apart=1.5, seed=0):
    """Labels, and normal states around a mean of each."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(k, size=n)
    return (rng.standard_normal((n, dim)) + apart * rng.standard_normal((k, dim))[labels]).astype(np.float32), labels


def test_bins_count_the_patterns_of_the_first_dimensions():
    states, labels = gaussians(5000, 6)  # more than are read at a time
    low, high = states.min(axis=0), states.max(axis=0)
    patterns = [
        tuple(min(int((v - a) / (b - a) * 5), 4) for v, a, b in zip(row, low, high, strict=True))[:3]
        for row in states.astype(float)
    ]
    assert Bins(dimensions=3, bins=5).estimate(states, labels) == pytest.approx(plug_in(patterns, labels), abs=1e-12)


def test_bins_of_all_dimensions_know_every_label_of_states_that_say_nothing():
    states, labels = independent(clusters(2, 64, 1.0), 2).draw(1000, 0)
    entropy = plug_in(labels.tolist(), labels.tolist())
    assert Bins(dimensions=64).estimate(states, labels) == pytest.approx(entropy)
    assert Bins(dimensions=1, bins=4).estimate(states, labels) < 0.01


def test_bins_hold_a_constant_dimension():
    labels = np.arange(100) % 2
    states = np.stack([np.full(100, 7.0), labels], axis=1).astype(np.float32)
    assert Bins(dimensions=2).estimate(states, labels) == pytest.approx(math.log(2))
    assert Bins(dimensions=1).estimate(states, labels) == pytest.approx(0.0, abs=1e-12)


def test_principal_components_are_those_of_scikit_learn_though_the_mean_is_large():
    states, _ = gaussians(5000, 12)
    states = (states * np.linspace(1, 4, 12) + 1e6).astype(np.float32)
    theirs = PCA(3, svd_solver="full").fit_transform(states.astype(np.float64))
    assert np.abs(principal_components(states, 3).of(states)) == pytest.approx(np.abs(theirs), abs=1e-6)


def test_bins_of_components_find_what_no_first_dimension_shows():
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=2000)
    states = rng.standard_normal((2000, 10))
    states[:, 9] += 20 * labels
    found = Bins(dimensions=1, bins=10, principal=True).estimate(states.astype(np.float32), labels)
    assert found == pytest.approx(math.log(2), abs=0.01)
    assert Bins(dimensions=1, bins=10).estimate(states.astype(np.float32), labels) < 0.02


def test_clusters_that_are_apart_are_found_by_k_means():
    states, labels = gaussians(5000, 20, k=4, apart=40.0)
    assert KMeans(clusters=4, batch=1000).estimate(states, labels) == pytest.approx(plug_in(labels, labels), abs=1e-9)


def test_k_means_never_exceed_the_entropy_of_clusters():
    states, labels = gaussians(3000, 20, k=8, apart=5.0)
    assert 0.3 < KMeans(clusters=2, batch=1000).estimate(states, labels) <= math.log(2)


def test_the_nearest_anchor_is_soft_entropy_at_temperature_zero():
    states, labels = gaussians(5000, 30)
    limits = [
        soft_mutual_information(torch.from_numpy(states), torch.from_numpy(labels), 25, 3 + s, calibration=1e-6).item()
        for s in range(2)
    ]
    found = NearestAnchor(anchors=25, anchor_sets=2, seed=3).estimate(states, labels)
    assert found == pytest.approx(np.mean(limits) * math.log(25), abs=1e-4)


def renyi_by_eigenvalues(states, labels, kernel) -> float:
    """S(A) + S(B) − S(A∘B / tr(A∘B)) of whole Gram matrices."""
    n = len(labels)
    gram, equal = np.array(
        [[[kernel(a, b) for b in states] for a in states], np.equal.outer(labels, labels)], dtype=float
    )
    normal = [g / np.sqrt(np.outer(np.diag(g), np.diag(g))) / n for g in (gram, equal)]
    joint = normal[0] * normal[1]

    def entropy(matrix):
        eigenvalues = np.linalg.eigvalsh(matrix)
        eigenvalues = eigenvalues[eigenvalues > 1e-14]
        return -(eigenvalues * np.log(eigenvalues)).sum()

    return entropy(normal[0]) + entropy(normal[1]) - entropy(joint / np.trace(joint))


def test_linear_renyi_information_is_that_of_whole_gram_matrices():
    states, labels = gaussians(60, 5)
    expected = renyi_by_eigenvalues(states.astype(float), labels, np.dot)
    assert Renyi(kernel="linear").estimate(states, labels) == pytest.approx(expected, abs=1e-9)


def test_gaussian_renyi_information_is_that_of_whole_gram_matrices():
    states, labels = gaussians(60, 5)
    distances = np.array([np.linalg.norm(a - b) for i, a in enumerate(states) for b in states[:i]], dtype=float)
    sigma = 0.7 * np.median(distances)
    expected = renyi_by_eigenvalues(
        states.astype(float), labels, lambda a, b: math.exp(-np.sum((a - b) ** 2) / (2 * sigma**2))
    )
    assert Renyi(width=0.7).estimate(states, labels) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kernel", ["linear", "gaussian"])
def test_renyi_information_of_tight_orthogonal_clusters_is_the_entropy_of_their_labels(kernel):
    labels = np.repeat([0, 1, 2], [50, 100, 50])
    states = (10 * np.eye(3, 8)[labels] + 1e-3 * np.random.default_rng(0).standard_normal((200, 8))).astype(np.float32)
    expected = plug_in(labels.tolist(), labels.tolist())
    assert Renyi(kernel=kernel, width=0.1).estimate(states, labels) == pytest.approx(expected, abs=1e-3)


def ross_by_loops(values, labels, k) -> float:
    """The formula of Ross 2014, state by state."""
    kept = [i for i in range(len(labels)) if (labels == labels[i]).sum() > 1]
    terms = []
    for i in kept:
        own = sorted(np.linalg.norm(values[i] - values[j]) for j in kept if j != i and labels[j] == labels[i])
        k_i = min(k, len(own))
        m = sum(np.linalg.norm(values[i] - values[j]) <= own[k_i - 1] for j in kept if j != i)
        terms.append(digamma(k_i) - digamma(len(own) + 1) - digamma(m))
    return digamma(len(kept)) + np.mean(terms)


def test_ross_information_is_that_of_a_loop_over_states():
    states, labels = gaussians(150, 3)
    labels[:4] = [50, 51, 51, 52]  # labels of one and of two positions
    values = states.astype(float)
    assert ross_information(values, labels, 3) == pytest.approx(ross_by_loops(values, labels, 3), abs=1e-12)


def test_ross_information_of_one_dimension_is_that_of_scikit_learn():
    states, labels = gaussians(500, 1)
    theirs = mutual_info_classif(states.astype(float), labels, n_neighbors=4, random_state=0)[0]
    assert ross_information(states.astype(float), labels, 4) == pytest.approx(theirs, abs=1e-6)


def test_ksg_finds_the_information_of_two_normal_distributions():
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=4000)
    states = 0.01 * rng.standard_normal((4000, 5))
    states[:, 3] += 2 * labels
    states[:, 3] += rng.standard_normal(4000)

    def lost(z):
        p, q = norm.pdf(z), norm.pdf(z - 2)
        return (p * np.log1p(q / p) + q * np.log1p(p / q)) / 2

    truth = math.log(2) - quad(lost, -8, 10)[0]
    assert Ksg(dimensions=1).estimate(states.astype(np.float32), labels) == pytest.approx(truth, abs=0.04)


def test_infonce_is_a_mean_over_batches_of_pairs_that_are_held_out():
    estimator = InfoNce(hidden=8, batch=5)
    torch.manual_seed(0)
    critic, z, x = estimator._critic(4, 3), torch.randn(12, 4), torch.randint(3, (12,))
    terms = []
    for batch in (range(5), range(5, 10)):  # the last two do not fill a batch
        for i in batch:
            score = {j: (critic.encoder(z[j]) @ critic.labels.weight[x[i]]).item() / math.sqrt(8) for j in batch}
            terms.append(score[i] - math.log(sum(math.exp(s) for s in score.values()) / 5))
    assert estimator._information(critic, z, x) == pytest.approx(np.mean(terms), abs=1e-5)


def test_infonce_never_exceeds_the_log_of_its_batch():
    states, labels = noisy_channel(40, 64, 0.0, signal=0.9).draw(2000, 0)
    value = InfoNce(hidden=64, epochs=5, batch=8, learning_rate=5e-3).estimate(states, labels)
    assert 0.8 * math.log(8) < value <= math.log(8)  # the truth is log 40


def test_infonce_is_a_lower_bound():
    truth = clusters(4, 32, 12.0)
    value = InfoNce(hidden=64, epochs=10, batch=128).estimate(*truth.draw(4000, 0))
    assert 0.5 * truth.information < value < truth.information + 0.05


def test_club_is_a_mean_over_all_pairs_of_states_and_labels_held_out():
    estimator = Club(hidden=8)
    torch.manual_seed(0)
    critic, z, x = estimator._critic(4, 3), torch.randn(9, 4), torch.randint(3, (9,))
    log_q = torch.log_softmax(critic(z), dim=1).tolist()
    pairs = np.mean([log_q[i][x[i]] for i in range(9)])
    everything = np.mean([log_q[i][x[j]] for i in range(9) for j in range(9)])
    assert estimator._information(critic, z, x) == pytest.approx(pairs - everything, abs=1e-6)


def test_club_is_an_upper_bound():
    truth = clusters(4, 32, 12.0)
    assert Club(hidden=64, epochs=4, batch=128).estimate(*truth.draw(4000, 0)) > truth.information


@pytest.mark.parametrize("estimator", [InfoNce(hidden=64, batch=50), Club(hidden=64, batch=50)])
def test_a_critic_that_knows_its_training_positions_by_heart_gains_nothing(estimator):
    rng = np.random.default_rng(0)
    states, labels = rng.standard_normal((300, 200), dtype=np.float32), rng.integers(3, size=300)
    assert estimator.estimate(states, labels) < 0.1


@pytest.mark.parametrize("estimator", [InfoNce(hidden=32, epochs=3, batch=64), Club(hidden=32, epochs=3, batch=64)])
def test_a_constant_dimension_changes_nothing_for_a_critic(estimator):
    states, labels = clusters(4, 32, 12.0).draw(1200, 0)
    values = []
    for constant in (0.0, 7.3e5):
        states[:, 0] = constant
        values.append(estimator.estimate(states, labels))
    assert values[0] == values[1]


def test_states_of_another_scale_and_origin_train_a_critic_alike():
    states, labels = clusters(4, 32, 12.0).draw(1200, 0)
    estimator = InfoNce(hidden=32, epochs=3, batch=64)
    moved = (states * 300 + 5).astype(np.float32)
    assert estimator.estimate(moved, labels) == pytest.approx(estimator.estimate(states, labels), abs=0.01)


def test_raw_soft_entropy_is_the_public_function_in_nats():
    states, labels = gaussians(5000, 30)
    values = [
        soft_mutual_information(torch.from_numpy(states), torch.from_numpy(labels), 40, 2 + s).item() for s in range(3)
    ]
    found = SoftEntropy(anchors=40, anchor_sets=3, seed=2).estimate(states, labels)
    assert found == pytest.approx(np.mean(values) * math.log(40), abs=1e-5)


def test_soft_entropy_is_what_a_probe_reports():
    states, labels = gaussians(1800, 30, k=300, apart=0.6)  # labels of about six positions
    net = nn.Sequential(nn.Identity()).eval()
    probe = SoftEntropyProbe(net, modules={"z": net[0]}, n_anchors=40, anchor_sets=3)
    with probe, probe.labelled(own=torch.from_numpy(labels).unsqueeze(0)), torch.no_grad():
        net(torch.from_numpy(states).unsqueeze(0))
    table = probe.result().to_pandas(unit="nats").query("name == 'z' and label_set == 'own'").set_index("metric").value
    raw, corrected = (
        SoftEntropy(anchors=40, anchor_sets=3, corrected=c).estimate(states, labels) for c in (False, True)
    )
    assert raw == pytest.approx(table["mutual_information"], abs=1e-5)
    assert corrected == pytest.approx(table["mutual_information_corrected"], abs=0.01)
    assert raw - corrected > 0.1
