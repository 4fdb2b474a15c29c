"""Validity of the numbers: simulations with known truth, all through the probe itself."""

import math

import numpy as np
import pytest
import torch

from softh_probe import SoftEntropyProbe
from softh_probe.estimators.anchors import sample_anchors
from tests.helpers import references
from tests.helpers.probes import value

D, LAYER = 64, "states"


def measured(z_BTD, labels_BT=None, n_anchors=100, batch=None, anchor_sets=1, **settings):
    """A probe's result on given hidden states, with labels `x`, in batches."""
    net = torch.nn.Identity().eval()
    probe = SoftEntropyProbe(net, modules={LAYER: net}, n_anchors=n_anchors, anchor_sets=anchor_sets, **settings)
    with probe:
        for rows in torch.arange(len(z_BTD)).split(batch or len(z_BTD)):
            if labels_BT is None:
                net(z_BTD[rows])
            else:
                with probe.labelled(x=labels_BT[rows]):
                    net(z_BTD[rows])
    return probe


def of(probe, metric, label_set="x", unit="efficiency"):
    return value(probe.result(), LAYER, metric, label_set, unit=unit)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_uniform_directions_have_nearly_all_the_entropy():
    assert of(measured(torch.randn(20, 1000, D, generator=generator()), anchor_sets=8), "entropy", "") > 0.98


def test_one_direction_has_the_entropy_of_its_assignment():
    direction = torch.randn(D, generator=generator())
    z = direction * torch.rand(10, 100, 1, generator=generator()).add(0.1)  # length does not matter
    probe = measured(z, torch.arange(10) // 2, anchor_sets=4)
    assert of(probe, "entropy", "") < 0.9
    assert of(probe, "mutual_information") == pytest.approx(0, abs=1e-6)
    assert of(probe, "mutual_information_max") == pytest.approx(0, abs=1e-6)
    assert of(probe, "mutual_information_null") == pytest.approx(0, abs=1e-4)
    assert of(probe, "mutual_information_corrected") == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("k", [2, 4, 8])
def test_k_tight_clusters_on_anchors_of_their_own_give_log_k(k):
    """With a temperature that makes assignments hard, I is the labels' entropy, log k, and all of H."""
    anchors = sample_anchors(100, D)
    z = anchors[:k].repeat_interleave(500, dim=0) + 0.001 * torch.randn(500 * k, D, generator=generator())
    labels = torch.arange(k).repeat_interleave(500)
    probe = measured(z.view(k, 500, D), labels.view(k, 500), calibration=0.001)
    for metric in ("mutual_information", "mutual_information_max", "mutual_information_corrected"):
        assert of(probe, metric, unit="nats") == pytest.approx(math.log(k), abs=1e-3), metric
    assert of(probe, "entropy", "", unit="nats") == pytest.approx(math.log(k), abs=1e-3)
    assert of(probe, "regularity") == pytest.approx(1, abs=1e-3)
    assert of(probe, "mutual_information_null", unit="nats") < 0.05


@pytest.mark.parametrize("n", [4, 16, 64])
def test_labels_that_say_nothing_have_no_information(n):
    z = torch.randn(8, 1024, D, generator=generator(1)) * torch.linspace(0.2, 2, D) + 0.5
    labels = (torch.randperm(8192, generator=generator(2)) // n).view(8, 1024)
    probe = measured(z, labels, anchor_sets=2)
    assert of(probe, "mutual_information_corrected") == pytest.approx(0, abs=0.01)
    raw, null = of(probe, "mutual_information"), of(probe, "mutual_information_null")
    assert raw == pytest.approx(null, abs=0.002)
    assert raw > 0.3 / n, "the null is not nothing"


def test_the_null_is_what_shuffled_labels_give_and_the_ceiling_what_unique_ones_do():
    z = torch.randn(4, 500, D, generator=generator(3)).cumsum(dim=1) / 5 + torch.randn(
        4, 500, D, generator=generator(4)
    )
    counts = torch.tensor([1] * 200 + [2] * 150 + [5] * 100 + [50] * 20)
    sorted_labels = torch.arange(len(counts)).repeat_interleave(counts)
    assert len(sorted_labels) == 2000
    shuffled = [sorted_labels[torch.randperm(2000, generator=generator(s))].view(4, 500) for s in range(5)]
    real = measured(z, sorted_labels.view(4, 500))
    chance = np.mean([of(measured(z, labels), "mutual_information") for labels in shuffled])
    assert of(real, "mutual_information_null") == pytest.approx(chance, abs=0.002)
    unique = measured(z, torch.arange(2000).view(4, 500))
    assert of(unique, "mutual_information") == pytest.approx(of(real, "mutual_information_max"), abs=1e-6)
    assert of(unique, "mutual_information_null") == pytest.approx(of(unique, "mutual_information_max"), abs=1e-6)
    assert math.isnan(of(unique, "mutual_information_corrected"))
    assert of(real, "coverage") == pytest.approx(0.9)


def test_results_do_not_depend_on_batches_order_or_shards():
    z = torch.randn(24, 50, D, generator=generator(5)).cumsum(dim=1)
    labels = torch.randint(0, 40, (24, 50), generator=generator(6))
    order = torch.randperm(24, generator=generator(7))
    whole = measured(z, labels, anchor_sets=2)
    shard, rest = measured(z[:7], labels[:7], anchor_sets=2), measured(z[7:], labels[7:], anchor_sets=2, batch=3)
    shard.merge(rest)
    for other in (measured(z, labels, anchor_sets=2, batch=5), measured(z[order], labels[order], anchor_sets=2), shard):
        np.testing.assert_allclose(other.sums, whole.sums, rtol=1e-6)
        for metric in ("entropy", "mutual_information", "coverage"):
            name = "" if metric == "entropy" else "x"
            assert of(other, metric, name) == pytest.approx(of(whole, metric, name), abs=1e-6)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 2e-4), (torch.bfloat16, 2e-3)])
def test_half_precision_states_cost_only_their_own_rounding(dtype, error):
    z = torch.randn(10, 500, D, generator=generator(8)) * torch.linspace(0.1, 3, D) + 1
    labels = torch.randint(0, 50, (10, 500), generator=generator(9))
    exact, half = measured(z, labels), measured(z.to(dtype), labels)
    rounded = measured(z.to(dtype).float(), labels)
    for metric in ("entropy", "mutual_information"):
        name = "" if metric == "entropy" else "x"
        assert of(half, metric, name) == pytest.approx(of(exact, metric, name), abs=error)
        assert of(half, metric, name) == pytest.approx(of(rounded, metric, name), abs=1e-7)


@pytest.mark.parametrize("kind", ["iid", "antithetic"])
def test_the_spread_over_sets_predicts_the_deviation_from_many_sets(kind):
    """Means of 8 sets scatter about the mean of 64 as their sd says they do."""
    z = torch.randn(10, 300, D, generator=generator(10)) * torch.linspace(0.1, 3, D) + 0.7
    t = measured(z, anchor_sets=64, anchors=kind, n_anchors=50).result().tensors["mass"][0]
    entropies_S = torch.tensor([references.entropy(mass.numpy()) for mass in t])
    groups = entropies_S.view(8, 8)
    predicted = (groups.std(dim=1) / math.sqrt(8)).square().mean().sqrt()
    observed = (groups.mean(dim=1) - entropies_S.mean()).square().mean().sqrt()
    assert 0.5 < observed / predicted < 1.8
    one = measured(z, anchor_sets=8, anchors=kind, n_anchors=50).result().to_pandas("nats")
    row = one[one.metric == "entropy"].iloc[0]
    assert row.value == pytest.approx(groups[0].mean().item(), abs=1e-5)
    assert row.sd == pytest.approx(groups[0].std().item(), abs=1e-5)


def test_antithetic_anchors_are_pairs_and_odd_numbers_of_them_are_refused():
    anchors = sample_anchors(10, D, seed=3, kind="antithetic")
    assert torch.equal(anchors[:5], -anchors[5:])
    drawn_before = sample_anchors(10, D, seed=3, kind="published_antithetic")
    assert torch.equal(drawn_before[:5], -drawn_before[5:])
    assert torch.equal(drawn_before[:5], sample_anchors(5, D, seed=3, kind="published"))
    with pytest.raises(ValueError, match="even number, got 11"):
        sample_anchors(11, D, kind="antithetic")
    with pytest.raises(ValueError, match="antithetic or published_antithetic, got 'sobol'"):
        sample_anchors(10, D, kind="sobol")


def test_the_spread_over_documents_is_that_of_new_documents():
    """Documents differ from each other: the bootstrap of one corpus predicts how H varies from corpus to corpus."""
    topics = 0.7 * torch.randn(20, D, generator=generator(11)) + torch.randn(D, generator=generator(12))

    def corpus(seed):
        topic = torch.randint(0, 20, (60, 1), generator=generator(seed))
        return topics[topic] + torch.randn(60, 30, D, generator=generator(seed + 1000))

    entropies = [of(measured(corpus(seed)), "entropy", "", unit="nats") for seed in range(40)]
    predicted = [of(measured(corpus(seed)), "entropy_document_sd", "", unit="nats") for seed in range(10)]
    assert np.mean(predicted) == pytest.approx(np.std(entropies, ddof=1), rel=0.35)
