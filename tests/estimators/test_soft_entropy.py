"""The pure functions against float64 loops and against the published package."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from softh_probe import sample_anchors, soft_entropy, soft_mutual_information, temperature
from softh_probe.errors import InputError
from softh_probe.estimators.soft_entropy import assignments
from tests.helpers import references


def clustered(n: int, dim: int, n_labels: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(n_labels, (n,), generator=generator)
    centres = torch.randn(n_labels, dim, generator=generator)
    return centres[labels] + torch.randn(n, dim, generator=generator), labels


@pytest.mark.parametrize("dim", [8, 64, 576])
@pytest.mark.parametrize("n_anchors", [2, 100])
@pytest.mark.parametrize("calibration", ["exact", "leading_order", "amos", 0.03])
def test_equal_to_float64_reference(dim, n_anchors, calibration):
    z, labels = clustered(700, dim, 12)
    epsilon = calibration if isinstance(calibration, float) else temperature(n_anchors, dim, calibration)
    q = references.assignments(z.numpy(), sample_anchors(n_anchors, dim, 3).numpy(), epsilon)
    h = soft_entropy(z, n_anchors, seed=3, calibration=calibration)
    mi = soft_mutual_information(z, labels, n_anchors, seed=3, calibration=calibration)
    assert h.shape == mi.shape == ()
    assert h.item() == pytest.approx(references.entropy(q.mean(0)) / math.log(n_anchors), abs=1e-5)
    assert mi.item() == pytest.approx(references.mutual_information(q, labels.tolist()) / math.log(n_anchors), abs=1e-5)


def test_equal_to_the_published_package():
    published = pytest.importorskip("soft_entropy.pytorch")
    calibration = pytest.importorskip("soft_entropy.temp_calibration")
    z, labels = clustered(900, 128, 9)
    epsilon = calibration.find_eps(100, 128)
    same = {"calibration": epsilon, "anchors": "published"}
    assert soft_entropy(z, **same).item() == pytest.approx(published.soft_entropy(z).item(), abs=1e-5)
    ours = soft_mutual_information(z, labels, **same).item()
    assert ours == pytest.approx(published.soft_mutual_information(z, labels).item(), abs=1e-5)


def test_anchors_equal_the_published_reference():
    generator = torch.Generator().manual_seed(5)
    expected = normalize(torch.randn(100, 48, generator=generator), dim=-1)
    torch.manual_seed(1)
    assert torch.equal(sample_anchors(100, 48, seed=5, kind="published"), expected)


def test_gradients_agree_with_finite_differences():
    z, labels = clustered(12, 5, 3)
    z = z.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: soft_entropy(z, 7, calibration=0.4), z)
    assert torch.autograd.gradcheck(lambda z: soft_mutual_information(z, labels, 7, calibration=0.4), z)


def test_gradients_stay_finite_where_assignments_underflow_or_a_state_is_zero():
    z = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    z[2] = 0
    z.requires_grad_()
    soft_entropy(z, calibration=1e-4).backward()
    assert torch.isfinite(z.grad).all()


def test_fifty_thousand_labels_in_one_pass():
    z, _ = clustered(100_000, 8, 4)
    labels = torch.arange(100_000) % 50_000
    q = references.assignments(z.numpy(), sample_anchors(10, 8).numpy(), temperature(10, 8))
    pairs = (q[:50_000] + q[50_000:]) / 2
    conditional = -(pairs * np.log(pairs)).sum(axis=1).mean()
    expected = (references.entropy(q.mean(0)) - conditional) / math.log(10)
    assert soft_mutual_information(z, labels, 10).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_norms_do_not_overflow(dtype):
    z = (clustered(300, 64, 3)[0] * 20_000).clamp(-60_000, 60_000).to(dtype)
    assert soft_entropy(z).item() == pytest.approx(soft_entropy(z.double()).item(), abs=1e-5)


def test_zero_states_count_as_uniform_and_scale_does_not_matter():
    z, _ = clustered(50, 16, 2)
    assert soft_entropy(torch.zeros(3, 16)).item() == pytest.approx(1.0)
    assert soft_entropy(z * 1e6).item() == pytest.approx(soft_entropy(z).item(), abs=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e20, 1e30])
def test_norms_whose_squares_leave_float32_are_right(scale):
    z, labels = clustered(200, 32, 4)
    assert soft_entropy(z * scale).item() == pytest.approx(soft_entropy(z).item(), abs=1e-5)
    information = soft_mutual_information(z * scale, labels).item()
    assert information == pytest.approx(soft_mutual_information(z, labels).item(), abs=1e-5)


def test_autocast_does_not_reach_the_estimate():
    z, labels = clustered(200, 48, 5)
    h, information = soft_entropy(z), soft_mutual_information(z, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(soft_entropy(z), h)
        assert torch.equal(soft_mutual_information(z, labels), information)


def test_anchors_are_the_same_under_any_default():
    expected = sample_anchors(10, 8)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert torch.equal(sample_anchors(10, 8), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_leading_dimensions_are_positions():
    z, labels = clustered(60, 16, 4)
    assert torch.equal(soft_entropy(z.view(3, 20, 16)), soft_entropy(z))
    assert torch.equal(
        soft_mutual_information(z.view(3, 20, 16), labels.view(3, 20)), soft_mutual_information(z, labels)
    )


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda z, x: soft_entropy(z[:0]), "z: no positions"),
        (lambda z, x: soft_entropy(z[0]), "z: expected"),
        (lambda z, x: soft_entropy(x), "z: expected"),
        (lambda z, x: soft_entropy(z, 1), "n_anchors"),
        (lambda z, x: soft_mutual_information(z, x[:-1]), "labels: expected one per position"),
        (lambda z, x: soft_mutual_information(z, x.float()), "labels: expected integers"),
        (lambda z, x: soft_mutual_information(z, x.tolist()), "labels: expected a tensor of integers, got list"),
        (lambda z, x: soft_entropy(z.numpy()), "z: expected floating point hidden states .* got ndarray"),
    ],
)
def test_bad_arguments_are_named(call, named):
    with pytest.raises(InputError, match=named):
        call(*clustered(20, 6, 2))


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 1000.0])
@pytest.mark.parametrize("wide", [False, True])
def test_assignments_are_those_of_float64(scale, wide):
    logits = scale * torch.randn(40, 3, 100, generator=torch.Generator().manual_seed(0))
    q = torch.softmax(logits.double(), dim=-1)
    entropies = torch.special.entr(q).sum(dim=-1)
    rows = torch.full((40, 3, 110), 7.0)
    given, found = assignments(logits, out=rows[..., :100] if wide else None)
    torch.testing.assert_close(given.double(), q, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.double(), entropies, atol=1e-5, rtol=0)
    assert not wide or (torch.equal(rows[..., :100], given) and (rows[..., 100:] == 7).all())
