"""Layers on an accelerator: its path gives what the path of a CPU and float64 give. It runs on the CPU here."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from softh_probe import SoftEntropyProbe, sample_anchors, temperature
from softh_probe.accelerators import accelerator_path
from softh_probe.accumulators import assigned_layers
from softh_probe.estimators.projection import Projection
from tests.helpers import references
from tests.helpers.models import tiny_llama
from tests.helpers.probes import NAMES

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


class Replay(nn.Module):
    """Hand on stored hidden states, as a model that reads tokens would."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Identity(), nn.Identity()

    def forward(self, input_ids, hidden_states, others):
        return self.first(hidden_states), self.second(others)


def states(n: int, dim: int, dtype: torch.dtype) -> torch.Tensor:
    """States of clusters around an offset, as those of language models are: [1, n, dim]."""
    generator = torch.Generator().manual_seed(dim)
    centres = torch.randn(20, dim, generator=generator)
    cluster = torch.randint(20, (n,), generator=generator)
    offset = 2 * torch.randn(dim, generator=generator)
    return (centres[cluster] + torch.randn(n, dim, generator=generator) + offset).to(dtype).unsqueeze(0)


def measured(h_1ND: torch.Tensor, *, anchor_sets: int = 2) -> SoftEntropyProbe:
    model = Replay().eval()
    ids = torch.arange(h_1ND.shape[1]).remainder(30).unsqueeze(0)
    modules = {"first": model.first, "second": model.second}
    with SoftEntropyProbe(model, labels=["input_unigram"], anchor_sets=anchor_sets, modules=modules) as probe:
        model(input_ids=ids, hidden_states=h_1ND, others=h_1ND[..., : h_1ND.shape[-1] // 2])
    return probe


def values(probe: SoftEntropyProbe) -> dict[str, np.ndarray]:
    table = probe.result().to_pandas()
    return {metric: of_metric.value.to_numpy() for metric, of_metric in table.groupby("metric")}


@pytest.mark.parametrize("dim", [64, 576, 4096])
@pytest.mark.parametrize("dtype", DTYPES)
def test_entropy_and_information_are_within_1e_6_of_the_float32_path_and_of_float64(dtype, dim):
    h_1ND = states(600, dim, dtype)
    on_cpu = values(measured(h_1ND))
    with accelerator_path():
        probe = measured(h_1ND)
        found = values(probe)
    for metric in ("entropy", "mutual_information", "mutual_information_max"):
        np.testing.assert_allclose(found[metric], on_cpu[metric], atol=1e-6, rtol=0, err_msg=metric)
    for s in range(2):
        q = references.assignments(
            h_1ND[0].double().numpy(), sample_anchors(100, dim, s).numpy(), temperature(100, dim)
        )
        exact = references.entropy(q.sum(0)) / math.log(100)
        assert references.entropy(probe.sums[0, s].numpy()) / math.log(100) == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize("dim", [6, 8, 16, 24])
@pytest.mark.parametrize("n", [1, 300])
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_narrow_states_have_the_numbers_of_float32(dtype, n, dim):
    """Errors of halves weigh more there, as those of a router's logits: few components, and a low temperature."""
    h_1ND = states(n, dim, dtype)
    on_cpu = values(measured(h_1ND))["entropy"]
    with accelerator_path():
        np.testing.assert_allclose(values(measured(h_1ND))["entropy"], on_cpu, atol=1e-6, rtol=0)


def test_float64_states_are_taken_in_float32_as_on_a_cpu():
    h_1ND = states(300, 64, torch.float64)
    on_cpu = values(measured(h_1ND))
    with accelerator_path():
        found = values(measured(h_1ND))
    for metric in ("entropy", "mutual_information", "mutual_information_max"):
        np.testing.assert_allclose(found[metric], on_cpu[metric], atol=1e-6, rtol=0, err_msg=metric)


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_high_halves_alone_would_not_do(dtype, monkeypatch):
    h_1ND, found = states(600, 4096, dtype), []

    def high_and_zero(projection, dtype):
        high_KD = projection.points_SMD.flatten(0, 1).to(dtype)
        return torch.cat([high_KD, torch.zeros_like(high_KD)])

    monkeypatch.setattr(Projection, "_halves_of", high_and_zero)
    with accelerator_path():
        found = values(measured(h_1ND))["entropy"]
    monkeypatch.undo()
    assert np.abs(found - values(measured(h_1ND))["entropy"]).max() > 3e-6


@pytest.mark.parametrize("dtype", DTYPES)
def test_states_without_direction_are_left_out(dtype):
    h_1ND = states(50, 64, dtype)
    h_1ND[0, 3], h_1ND[0, 7], h_1ND[0, 9, 0], h_1ND[0, 11, 1] = 0.0, math.nan, math.inf, math.nan
    on_cpu, left_out = measured(h_1ND).sums, {"first": 4, "second": 4}
    with accelerator_path():
        probe = measured(h_1ND)
        assert probe.result().invalid_positions() == left_out
    assert torch.isfinite(probe.sums).all()
    torch.testing.assert_close(probe.sums, on_cpu, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [1e-14, 1e17])
def test_norms_near_the_limits_of_float32_are_right(size):
    h_1ND = states(200, 64, torch.float32)
    with accelerator_path():
        torch.testing.assert_close(measured(h_1ND * size).sums, measured(h_1ND).sums, rtol=1e-4, atol=1e-4)


def test_norms_beyond_them_are_told_not_guessed():
    h_1ND = states(20, 64, torch.bfloat16)
    h_1ND[0, :5] *= 1e30
    h_1ND[0, 5] *= 1e-30
    with accelerator_path(), pytest.warns(UserWarning, match="no direction"):
        assert measured(h_1ND).result().invalid_positions() == {"first": 6, "second": 6}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("most_layers", [1, 2, 32])
def test_a_language_model_gives_the_numbers_of_a_cpu(dtype, most_layers, monkeypatch):
    monkeypatch.setattr(assigned_layers, "MOST_LAYERS", most_layers)
    model = tiny_llama().to(dtype)
    ids = torch.randint(1, 40, (4, 30), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, 7:] = 0
    tables = []
    for on_accelerator in (False, True):
        with SoftEntropyProbe(model, labels=NAMES, anchor_sets=3) as probe, torch.inference_mode():
            for _ in range(2):
                if on_accelerator:
                    with accelerator_path():
                        model(input_ids=ids, attention_mask=mask)
                else:
                    model(input_ids=ids, attention_mask=mask)
        tables.append(probe.result().to_pandas("nats").value)
    np.testing.assert_allclose(*tables, atol=3e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_passes_of_which_no_position_counts_are_none(dtype):
    """Of a prompt none does where what the model writes alone is counted."""
    model, sums = tiny_llama(hidden_size=64).to(dtype), []
    prompt = torch.randint(1, 40, (2, 9), generator=torch.Generator().manual_seed(0))
    for path in (torch.no_grad, accelerator_path):
        with path(), SoftEntropyProbe(model, labels=["input_bigram"], anchor_sets=1, positions="generated") as probe:
            model.generate(input_ids=prompt, max_new_tokens=5, do_sample=False, pad_token_id=0)
        sums.append(probe.sums)
    torch.testing.assert_close(*sums, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_the_halves_of_anchors_hold_their_components(dtype):
    points = sample_anchors(100, 4096).unsqueeze(0)
    with accelerator_path():
        halves = Projection(points, 0.005)._halves_of(dtype).double()
    assert (halves[:100] + halves[100:] - points[0]).abs().max() < 2**-17 * points.abs().max()
    assert (halves[:100] - points[0]).abs().max() > 1e-6


@pytest.mark.parametrize("path", [accelerator_path, torch.no_grad])
def test_what_the_user_allows_for_products_of_the_model_does_not_touch_ours(path):
    h_1ND, exact = states(300, 576, torch.float32), measured(states(300, 576, torch.float32)).sums
    torch.set_float32_matmul_precision("medium")
    try:
        with path():
            torch.testing.assert_close(measured(h_1ND).sums, exact, rtol=2e-6, atol=1e-6)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "allow_fp16_accumulation"), reason="this torch has no such setting"
)
def test_halves_accumulate_in_float32_whatever_the_user_allows_for_float16(monkeypatch):
    setting, seen, product = torch.backends.cuda.matmul, [], torch.mm

    def noting(*args, **kwargs):
        seen.append(setting.allow_fp16_accumulation)
        return product(*args, **kwargs)

    monkeypatch.setattr(torch, "mm", noting)
    setting.allow_fp16_accumulation = True
    try:
        with accelerator_path():
            measured(states(30, 64, torch.float16))
        assert seen
        assert not any(seen)
        assert setting.allow_fp16_accumulation
    finally:
        setting.allow_fp16_accumulation = False
