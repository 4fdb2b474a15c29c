"""Anchors: streams that the user's own seeds do not start, the published draw, and what results record of them."""

import hashlib
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from softh_probe import Anchors, sample_anchors, soft_entropy, soft_mutual_information, temperature
from softh_probe.estimators.anchors import KINDS
from softh_probe.estimators.recipes import stream_seed
from tests.helpers import references

M, D = 100, 64
#: Seeds that people give their scripts; 8 sets of anchors of seed 0 have the first eight.
OWN_SEEDS = range(8)
OWN_STREAM = ("iid", "antithetic")


def first_draws(seed: int) -> dict[str, torch.Tensor]:
    """The first random numbers of scripts that begin with `torch.manual_seed(seed)`."""
    draws = {
        "randn": lambda: torch.randn(M, D),
        "a generator": lambda: torch.randn(M, D, generator=torch.Generator().manual_seed(seed)),
        "an embedding": lambda: nn.Embedding(M, D).weight.detach(),
        "a larger embedding": lambda: nn.Embedding(1000, D).weight.detach(),
        "normal_": lambda: torch.empty(M, D).normal_(std=0.02),
        "half of the rows": lambda: torch.randn(M // 2, D),
        "cluster centres": lambda: torch.randn(10, D),
    }
    found = {}
    for name, draw in draws.items():
        torch.manual_seed(seed)
        found[name] = draw()
    return found


def references_of(z: torch.Tensor, labels: torch.Tensor, seed: int) -> tuple[float, float]:
    """H and I, in units of log m, with anchors that NumPy draws."""
    w = np.random.default_rng(seed).standard_normal((M, z.shape[-1]))
    w /= np.linalg.norm(w, axis=1, keepdims=True)
    q = references.assignments(z.numpy(), w, temperature(M, z.shape[-1]))
    h, information = references.entropy(q.mean(axis=0)), references.mutual_information(q, labels.tolist())
    return h / math.log(M), information / math.log(M)


# --- the user's own draws -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", OWN_STREAM)
@pytest.mark.parametrize("own_seed", OWN_SEEDS)
def test_anchors_do_not_point_where_the_users_first_draws_point(own_seed, kind):
    sets = torch.cat([sample_anchors(M, D, seed, kind) for seed in OWN_SEEDS])
    for name, draw in first_draws(own_seed).items():
        cosine = (normalize(draw, dim=-1) @ sets.T).abs().max().item()
        assert cosine < 0.75, name  # the largest of up to 800,000 independent pairs; equal draws have 1


def test_the_published_draw_does_point_there():
    """The check above notices what it is for."""
    draws = first_draws(3)
    for name in ("randn", "a generator", "an embedding", "normal_"):
        assert torch.allclose(normalize(draws[name], dim=-1), sample_anchors(M, D, 3, "published")), name
    half = normalize(draws["half of the rows"], dim=-1)
    assert torch.allclose(half, sample_anchors(M, D, 3, "published_antithetic")[: M // 2])


@pytest.mark.parametrize("own_seed", OWN_SEEDS)
@pytest.mark.parametrize("kind", OWN_STREAM)
@pytest.mark.parametrize("n_centres", [10, 100])
def test_clusters_at_the_users_first_draws_have_the_values_of_any_others(n_centres, kind, own_seed):
    """On anchors of their own, 10 centres had H = 0.5 and 100 had I = 1."""
    torch.manual_seed(own_seed)
    centres = torch.randn(n_centres, D)
    labels = torch.arange(n_centres).repeat(20)
    z = centres.repeat(20, 1) + 0.01 * torch.randn(20 * n_centres, D)
    expected = np.array([references_of(z, labels, seed) for seed in range(8)])
    sd = expected.std(axis=0, ddof=1)
    for seed in OWN_SEEDS:
        h = soft_entropy(z, M, seed, anchors=kind).item()
        information = soft_mutual_information(z, labels, M, seed, anchors=kind).item()
        assert np.all(np.abs(np.array([h, information]) - expected.mean(axis=0)) < 6 * sd + 0.01)


def test_functions_measure_with_the_kind_they_are_given():
    z, labels = torch.randn(60, 12, generator=torch.Generator().manual_seed(1)), torch.arange(60) % 3
    found = set()
    for kind in KINDS:
        q = references.assignments(z.numpy(), sample_anchors(20, 12, 2, kind).numpy(), temperature(20, 12))
        h = soft_entropy(z, 20, 2, anchors=kind).item()
        assert h == pytest.approx(references.entropy(q.mean(axis=0)) / math.log(20), abs=1e-5)
        information = soft_mutual_information(z, labels, 20, 2, anchors=kind).item()
        assert information == pytest.approx(references.mutual_information(q, labels.tolist()) / math.log(20), abs=1e-5)
        found.add(round(h, 6))
    assert len(found) == len(KINDS)
    assert soft_entropy(z, 20, 2) == soft_entropy(z, 20, 2, anchors="iid")


# --- streams --------------------------------------------------------------------------------------------------


def test_the_seed_is_the_hash_that_is_documented():
    for kind, text in (("iid", b"softh_probe:7:100:576"), ("antithetic", b"softh_probe:antithetic:7:100:576")):
        first = int.from_bytes(hashlib.sha256(text).digest()[:8], "big") % 2**63 | 1 << 31
        assert stream_seed(kind, 7, 100, 576) == first
        generator = torch.Generator().manual_seed(first)
        drawn = normalize(torch.randn(50 if kind == "antithetic" else 100, 576, generator=generator), dim=-1)
        assert torch.equal(sample_anchors(100, 576, 7, kind)[: len(drawn)], drawn)


def test_draws_are_the_same_in_every_version():
    """Few numbers, which torch draws one by one: larger draws may differ in their last bits between processors."""
    assert stream_seed("iid", 0, 100, 576) == 7552460111725020150
    assert stream_seed("antithetic", 0, 100, 576) == 7068585645895814074
    assert {kind: Anchors.sample(n_anchors=4, dim=3, n_sets=2, kind=kind).sha256 for kind in KINDS} == {
        "iid": "87d8bdcf8bdff1d06ccf0065d6e1a3988c626ea9d0c9eecd2e3cd01591f92a80",
        "published": "4396d3aa73d1a8e45bf671176bea45cefef54aba8b1049324787d674713be446",
        "antithetic": "7a22406fee0a78a0bab11dcf4dbdaf17aac98dcaf48c8295f9f2bfb4e15d726f",
        "published_antithetic": "90ae5d54839e01351a0f7a8ee190539152742e6bcbd3f0efe49c04d4ac1cfe52",
    }


@pytest.mark.parametrize("kind", OWN_STREAM)
def test_every_seed_number_and_width_has_a_stream_of_its_own(kind):
    seeds = {
        stream_seed(kind, seed, n_anchors, dim) % 2**32  # the part that the generator's state takes
        for seed, n_anchors, dim in itertools.product(range(-2, 64), (2, 50, 100, 1000), (2, 64, 576, 4096))
    }
    assert len(seeds) == 66 * 4 * 4
    assert min(seeds) >= 2**31  # people's own seeds are smaller
    draws = [sample_anchors(m, d, seed, kind) for seed in range(64) for m, d in ((20, 16), (24, 16), (20, 24))]
    firsts = torch.stack([normalize(draw[:20, :16], dim=-1).flatten() for draw in draws])
    cosines = normalize(firsts, dim=-1) @ normalize(firsts, dim=-1).T - torch.eye(len(draws))
    assert cosines.abs().max() < 0.5  # rows of 320 numbers


def test_antithetic_anchors_are_no_iid_ones():
    pairs, single = sample_anchors(M, D, 0, "antithetic"), [sample_anchors(m, D, 0) for m in (M // 2, M)]
    for drawn in single:
        assert (pairs @ drawn.T).abs().max() < 0.75


def test_seeds_of_sets_count_from_the_first():
    for kind in KINDS:
        sets = Anchors.sample(n_anchors=10, dim=6, n_sets=3, seed=5, kind=kind).points_SMD
        assert torch.equal(sets, torch.stack([sample_anchors(10, 6, seed, kind) for seed in (5, 6, 7)]))


def test_the_users_random_state_is_neither_read_nor_changed():
    torch.manual_seed(1)
    before, expected = torch.get_rng_state(), sample_anchors(10, 6)
    torch.manual_seed(2)
    assert torch.equal(sample_anchors(10, 6), expected)
    torch.manual_seed(1)
    sample_anchors(10, 6)
    assert torch.equal(torch.get_rng_state(), before)


def test_numbers_of_numpy_draw_the_same():
    assert torch.equal(sample_anchors(10, np.int64(6)), sample_anchors(10, 6))


@pytest.mark.parametrize("kind", KINDS)
def test_anchors_are_unit_vectors_in_all_directions(kind):
    anchors = torch.cat([sample_anchors(M, D, seed, kind) for seed in range(50)])
    assert anchors.dtype == torch.float32
    torch.testing.assert_close(anchors.norm(dim=1), torch.ones(len(anchors)))
    assert anchors.mean(dim=0).abs().max() < 0.01
    covariance = anchors.T @ anchors / len(anchors) * D
    torch.testing.assert_close(covariance, torch.eye(D), atol=0.15, rtol=0)


def test_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match="anchors: expected iid, published, antithetic or published_antithetic, got 1"):
        sample_anchors(10, 6, kind=1)
    with pytest.raises(ValueError, match="got 'sobol'"):
        soft_entropy(torch.ones(3, 4), anchors="sobol")
    with pytest.raises(ValueError, match="even number, got 11"):
        sample_anchors(11, 6, kind="published_antithetic")
