"""The truths against independent integrals, scipy's distributions and counts of what is drawn."""

import math

import numpy as np
import pytest
from rivals.quadrature import cluster_information
from rivals.truths import (
    clusters,
    independent,
    mean_directions,
    noisy_channel,
    sampled_cluster_information,
    von_mises_fisher,
)
from scipy.integrate import dblquad, quad
from scipy.special import ive
from scipy.stats import ks_2samp, vonmises_fisher

from softh_probe.errors import InputError


def information_of_two(dim: int, concentration: float, cosine: float) -> float:
    """Two clusters: an integral over the plane of their mean directions, in polar coordinates."""
    apart = math.acos(cosine)

    def mean(value):
        def integrand(angle, radius):
            own, other = (concentration * radius * math.cos(angle - at) for at in (0.0, apart))
            weight = math.exp(own - concentration) * (1 - radius**2) ** ((dim - 4) / 2) * radius
            return weight * value(other - own)

        return dblquad(integrand, 0, 1, -math.pi, math.pi, epsabs=1e-13, epsrel=1e-10)[0]

    return math.log(2) - mean(lambda gap: math.log1p(math.exp(gap))) / mean(lambda gap: 1.0)


@pytest.mark.parametrize(("dim", "concentration", "cosine"), [(20, 4.0, 0.0), (40, 12.0, 0.0), (24, 30.0, 0.6)])
def test_two_clusters_agree_with_an_integral_over_their_plane(dim, concentration, cosine):
    expected = information_of_two(dim, concentration, cosine)
    assert 0.1 < expected < math.log(2) - 0.005
    assert cluster_information(2, dim, concentration, cosine) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("k", "dim", "concentration", "cosine"),
    [(10, 64, 15.0, 0.0), (40, 64, 25.0, 0.3), (50, 512, 60.0, 0.0), (10, 64, 300.0, 0.98)],
)
def test_many_clusters_agree_with_the_posterior_of_states_that_are_drawn(k, dim, concentration, cosine):
    means = mean_directions(k, dim, cosine, seed=5)
    sampled, error = sampled_cluster_information(means, concentration, 20_000, seed=1)
    assert 0.05 * math.log(k) < sampled < 0.98 * math.log(k)
    assert abs(cluster_information(k, dim, concentration, cosine) - sampled) < 4 * error


def test_the_integral_of_4096_dimensions_agrees_with_the_posterior_of_states_that_are_drawn():
    means = mean_directions(10, 4096, 0.0, seed=5)
    sampled, error = sampled_cluster_information(means, 120.0, 3000, seed=1)
    assert abs(cluster_information(10, 4096, 120.0) - sampled) < 4 * error
    assert error < 0.03


def test_information_of_clusters_grows_with_concentration_to_log_k():
    values = [cluster_information(20, 64, kappa) for kappa in (0.01, 3, 10, 30, 100, 150)]
    assert values == sorted(values)
    assert values[0] == pytest.approx(0.0, abs=1e-5)
    assert values[-1] == pytest.approx(math.log(20), abs=1e-9)


def test_information_of_close_clusters_is_second_order_in_the_concentration():
    # I = κ²·(mean squared deviation of the cosines) / 2 + …, and of orthonormal directions that is (1 − 1/k) / d.
    assert cluster_information(5, 100, 0.05) == pytest.approx(0.05**2 * (1 - 1 / 5) / 100 / 2, rel=0.01, abs=1e-11)


def test_clusters_on_a_circle_agree_with_an_integral_over_it():
    means = np.array([[1.0, 0.0], [0.0, 1.0], [-0.6, 0.8]])
    angles = np.arctan2(means[:, 1], means[:, 0])

    def density(x, c):
        return math.exp(2.5 * math.cos(x - angles[c])) / (2 * math.pi * ive(0, 2.5) * math.exp(2.5))

    def integrand(x):
        p = np.array([density(x, c) for c in range(3)])
        return float((p / 3 * np.log(p / p.mean())).sum())

    expected = quad(integrand, -math.pi, math.pi)[0]
    sampled, error = sampled_cluster_information(means, 2.5, 100_000)
    assert abs(sampled - expected) < 4 * error
    assert error < 0.003


def test_clusters_on_a_sphere_agree_with_an_integral_over_it():
    means = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])

    def integrand(angle, height):  # equal areas of the sphere have equal heights
        around = math.sqrt(1 - height**2)
        exponents = 4.0 * np.array([around * math.cos(angle), around * math.sin(angle)])
        p = 4.0 / (4 * math.pi * math.sinh(4.0)) * np.exp(exponents)
        return float((p / 2 * np.log(p / p.mean())).sum())

    expected = dblquad(integrand, -1, 1, -math.pi, math.pi, epsabs=1e-8)[0]
    sampled, error = sampled_cluster_information(means, 4.0, 100_000)
    assert abs(sampled - expected) < 4 * error


@pytest.mark.parametrize(("dim", "concentration"), [(3, 2.0), (64, 40.0), (512, 30.0)])
def test_states_have_the_mean_cosine_of_their_distribution(dim, concentration):
    mean = mean_directions(1, dim, 0.0, 3)
    states = von_mises_fisher(mean, np.zeros(20_000, dtype=int), concentration, np.random.default_rng(0))
    assert np.linalg.norm(states, axis=1) == pytest.approx(1.0, abs=1e-5)
    cosines = states @ mean[0]
    expected = ive(dim / 2, concentration) / ive(dim / 2 - 1, concentration)
    assert cosines.mean() == pytest.approx(expected, abs=4 * cosines.std() / math.sqrt(20_000))


def test_states_are_distributed_as_those_of_scipy():
    mean = mean_directions(1, 5, 0.0, 3)
    ours = von_mises_fisher(mean, np.zeros(5000, dtype=int), 6.0, np.random.default_rng(0))
    theirs = vonmises_fisher(mean[0], 6.0).rvs(5000, random_state=np.random.default_rng(1))
    for direction in (mean[0], np.eye(5)[0], np.eye(5)[3]):
        assert ks_2samp(ours @ direction, theirs @ direction).pvalue > 0.001


def test_mean_directions_have_the_cosine_asked_for():
    means = mean_directions(6, 32, 0.4, seed=0)
    assert means @ means.T == pytest.approx(0.6 * np.eye(6) + 0.4)
    assert not np.allclose(means, mean_directions(6, 32, 0.4, seed=1))


def test_draws_of_a_truth_share_their_clusters_but_not_their_states():
    truth = clusters(3, 64, 100.0)
    (states, labels), again, (others, other_labels) = truth.draw(500, 0), truth.draw(500, 0), truth.draw(500, 1)
    assert np.array_equal(states, again[0])
    assert np.array_equal(labels, again[1])
    assert not np.array_equal(states, others)
    assert (states.dtype, labels.dtype) == (np.float32, np.int64)
    for c in range(3):
        one, other = states[labels == c].mean(axis=0), others[other_labels == c].mean(axis=0)
        assert one @ other > 0.9 * np.linalg.norm(one) * np.linalg.norm(other)


def test_independent_labels_say_nothing_of_the_states():
    of_clusters = clusters(3, 64, 100.0)
    truth = independent(of_clusters, 3)
    assert truth.information == 0
    states, labels = truth.draw(9000, 4)
    clusters_drawn = of_clusters.draw(9000, 4)[1]
    assert np.array_equal(states, of_clusters.draw(9000, 4)[0])
    joint = np.histogram2d(labels, clusters_drawn, bins=3)[0] / 9000
    assert joint == pytest.approx(np.full((3, 3), 1 / 9), abs=0.015)


@pytest.mark.parametrize(("k", "flipped"), [(2, 0.1), (5, 0.3), (5, 0.8), (4, 0.0), (4, 1.0)])
def test_information_of_a_noisy_channel_is_that_of_its_joint_table(k, flipped):
    joint = np.full((k, k), flipped / (k - 1) / k)
    np.fill_diagonal(joint, (1 - flipped) / k)
    held = joint[joint > 0]
    assert noisy_channel(k, 16, flipped).information == pytest.approx((held * np.log(held * k * k)).sum(), abs=1e-12)


def test_a_noisy_channel_changes_labels_that_its_states_determine():
    states, labels = noisy_channel(4, 32, 0.3, signal=0.1, directions=7).draw(20_000, 0)
    scores = states @ mean_directions(4, 32, 0.0, 7).T
    assert np.sort(scores, axis=1)[:, :3] == pytest.approx(0.0, abs=1e-6)  # nothing but the label's own direction
    assert scores.max(axis=1) == pytest.approx(0.1, abs=1e-6)
    received = np.array([np.bincount(labels[scores.argmax(axis=1) == c], minlength=4) for c in range(4)]) / 5000
    assert np.diag(received) == pytest.approx(0.7, abs=0.04)
    assert received[~np.eye(4, dtype=bool)] == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: cluster_information(1, 64, 1.0), "dim"),
        (lambda: cluster_information(60, 64, 1.0), "dim"),
        (lambda: cluster_information(2, 64, 0.0), "concentration"),
        (lambda: cluster_information(2, 64, 1e4), "concentration"),
        (lambda: cluster_information(2, 64, 1.0, -0.1), "cosine"),
        (lambda: cluster_information(2, 64, 1.0, 1.0), "cosine"),
        (lambda: noisy_channel(4, 4, 0.1), "dim"),
        (lambda: noisy_channel(4, 8, 1.1), "flipped"),
        (lambda: noisy_channel(4, 8, 0.1, signal=1.0), "signal"),
        (lambda: mean_directions(4, 4, 0.5, 0), "dim"),
    ],
)
def test_truths_refuse_what_they_cannot_give(make, name):
    with pytest.raises(InputError, match=f"^{name}: expected .* got "):
        make()
