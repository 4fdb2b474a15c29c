"""Rows of states minus their mean: against float64, beside the published rows, and the same in all parts."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from softh_probe import ProbeResult, SoftEntropyProbe, sample_anchors, temperature
from softh_probe.errors import InputError, ProbeError
from tests.helpers.probes import run, values_by_key

SETTINGS = {"labels": ["input_unigram", "output_unigram"], "n_anchors": 20, "anchor_sets": 1}


@pytest.fixture
def texts() -> list[list[int]]:
    chance = np.random.default_rng(1)
    return [chance.integers(1, 40, size=n).tolist() for n in (9, 4, 17, 12, 6, 11, 5)]


def states_of(model, texts) -> dict[str, list[np.ndarray]]:
    """Find the states of each text alone, float64."""
    found: dict[str, list[np.ndarray]] = {}
    with torch.no_grad():
        for text in texts:
            states = model(input_ids=torch.tensor([text]), output_hidden_states=True).hidden_states
            for row, state in zip(("embeddings", "layer.1"), states, strict=False):
                found.setdefault(row, []).append(state[0].double().numpy())
    return found


def entropy_of(states_ND: np.ndarray) -> float:
    anchors_MD = sample_anchors(20, states_ND.shape[1], 0).double().numpy()
    cosines = states_ND / np.linalg.norm(states_ND, axis=1, keepdims=True) @ anchors_MD.T
    logits = cosines / temperature(20, states_ND.shape[1])
    q_NM = np.exp(logits - logits.max(axis=1, keepdims=True))
    p_M = (q_NM / q_NM.sum(axis=1, keepdims=True)).mean(axis=0)
    return float(-(p_M * np.log(p_M)).sum())


def test_states_minus_the_mean_of_the_first_pass_against_float64(model, texts):
    probe = run(SoftEntropyProbe(model, **SETTINGS, center=True), model, texts)
    values = values_by_key(probe.result())
    for row, states in states_of(model, texts).items():
        first = [state[:-1] for state in states[:4]]  # a batch of four
        first[2] = states[2]  # the last token of the longest might go on: it waits, and is part of the mean
        mean_D = np.concatenate(first).mean(axis=0)
        np.testing.assert_allclose(probe.centers[row], mean_D, atol=1e-6)
        counted = np.concatenate([state[:-1] for state in states]) - mean_D
        assert values[f"{row}.centered", "entropy", ""] == pytest.approx(entropy_of(counted), abs=1e-6)
        mean_unit = (counted / np.linalg.norm(counted, axis=1, keepdims=True)).mean(axis=0)
        assert values[f"{row}.centered", "anisotropy", ""] == pytest.approx(np.linalg.norm(mean_unit), abs=1e-6)


def test_published_rows_are_those_of_a_run_without_bit_by_bit(model, texts):
    result = run(SoftEntropyProbe(model, **SETTINGS, center=True), model, texts).result()
    without = run(SoftEntropyProbe(model, **SETTINGS), model, texts).result()
    rows = [result.rows.index(row) for row in without.rows]
    for name, tensor in without.tensors.items():
        assert torch.equal(result.tensors[name][rows].nan_to_num(), tensor.nan_to_num()), name
    assert result.sites == ["centered", "residual"]
    assert result.mean_rows["mean"] == without.mean_rows["mean"]
    assert result.places.indices[result.rows.index("final_norm.centered")] == without.places.indices[-1]


def test_a_direction_that_all_share_lowers_entropy_and_centring_restores_it():
    """Isotropic states plus c·u: entropy falls as c grows; that of centred states stays that of c = 0."""
    generator = torch.Generator().manual_seed(0)
    states_ND, u_D = torch.randn(4000, 48, generator=generator), nn.functional.normalize(torch.ones(48), dim=0)
    module, found = nn.Identity().eval(), {}
    for c in (0.0, 3.0, 10.0, 100.0):
        probe = SoftEntropyProbe(module, modules={"states": module}, center=True, anchor_sets=2)
        with probe:
            module(states_ND + c * u_D)
        table = probe.result().to_pandas().set_index(["name", "metric"]).value
        found[c] = table["states", "entropy"], table["states.centered", "entropy"], table["states", "anisotropy"]
    plain, centred, anisotropy = (list(values) for values in zip(*found.values(), strict=True))
    assert plain == sorted(plain, reverse=True)
    assert plain[-1] < plain[0] - 0.3
    assert anisotropy == sorted(anisotropy)
    np.testing.assert_allclose(centred, plain[0], atol=2e-4)


def test_steps_and_several_anchors_are_centred_alike(model):
    def generated(**changes) -> ProbeResult:
        probe = SoftEntropyProbe(model, **{**SETTINGS, **changes}, center=True)
        with probe, torch.no_grad():
            model.generate(torch.arange(1, 13).view(2, 6), max_new_tokens=5, do_sample=False, pad_token_id=0)
        return probe.result()

    several, single = generated(n_anchors=[20, 12]), generated(n_anchors=12)
    other = several.others["n_anchors=12"]
    for name, tensor in single.tensors.items():
        assert torch.equal(other.tensors[name].nan_to_num(), tensor.nan_to_num()), name


def test_a_state_goes_on_with_its_mean(model, texts):
    whole = run(SoftEntropyProbe(model, **SETTINGS, center=True), model, texts)
    first = run(SoftEntropyProbe(model, **SETTINGS, center=True), model, texts[:4])
    continued = SoftEntropyProbe(model, **SETTINGS, center=True)
    continued.load_state_dict(first.state_dict())
    run(continued, model, texts[4:])
    assert torch.equal(continued.sums, whole.sums)
    assert continued.result().info["center"] == whole.result().info["center"]
    with pytest.raises(InputError, match="state: expected center=False, got True"):
        SoftEntropyProbe(model, **SETTINGS).load_state_dict(first.state_dict())


def test_parts_need_the_same_means(model, texts):
    whole = run(SoftEntropyProbe(model, **SETTINGS, center=True), model, texts)
    first = run(SoftEntropyProbe(model, **SETTINGS, center=True), model, texts[:4])
    other = run(SoftEntropyProbe(model, **SETTINGS, center=True), model, texts[4:])
    before = first.sums
    with pytest.raises(InputError, match="merge: states minus different means cannot be added; give both probes"):
        first.merge(other)
    assert torch.equal(first.sums, before)  # nothing was added
    second = run(SoftEntropyProbe(model, **SETTINGS, center=first.centers), model, texts[4:])
    first.merge(second)
    torch.testing.assert_close(first.sums, whole.sums, rtol=1e-6, atol=1e-6)
    merged = SoftEntropyProbe(model, **SETTINGS, center=True)
    merged.merge(first)  # it has seen nothing, and takes the mean over
    assert merged.centers.keys() == first.centers.keys()


def test_few_positions_are_warned_of_and_states_that_are_not_finite_do_not_count():
    module = nn.Identity().eval()
    probe = SoftEntropyProbe(module, modules={"states": module}, center=True, anchor_sets=1)
    states_ND = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    with probe:
        module(torch.cat([states_ND, torch.full((1, 8), math.nan)]))
    torch.testing.assert_close(probe.centers["states"], states_ND.mean(dim=0))
    with pytest.warns(UserWarning, match="hidden states: those that are zero or not finite"):
        result = probe.result()
    (choice,) = [choice for choice in result.info["choices"] if choice["about"] == "center"]
    assert (choice["chosen"], choice["certain"]) == ("the mean of the first 51 positions", False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"center": 3}, "center: expected True, False or a vector for each layer, got 3"),
        ({"center": {}}, "center: expected True, False or a vector for each layer"),
        ({"center": {"layer.1": [math.nan, 1.0]}}, "center: layer.1: expected a vector of finite numbers"),
        ({"center": True, "sites": "mlp"}, "center: it is of the residual stream, and sites are mlp; add residual"),
        ({"sites": "centered"}, "sites: no site 'centered'"),
    ],
)
def test_wrong_arguments_end_in_one_line(model, changes, message):
    with pytest.raises(InputError, match=message):
        SoftEntropyProbe(model, **changes)


def test_means_of_another_width_or_of_other_layers_are_named(model, texts):
    whole = run(SoftEntropyProbe(model, **SETTINGS, center=True), model, texts).centers
    for centers, message in (
        ({"layer.1": whole["layer.1"]}, "center: expected a vector for each measured layer, got none of embeddings"),
        ({**whole, "foo": whole["layer.1"]}, "center: expected .* got one of 'foo', which is no layer"),
    ):
        with pytest.raises(InputError, match=message):
            SoftEntropyProbe(model, **SETTINGS, center=centers)
    probe = SoftEntropyProbe(model, **SETTINGS, center={**whole, "layer.1": torch.zeros(3)})
    with pytest.raises(ProbeError, match=r"center: expected a vector of 24 numbers for layer.1, got one of 3"):
        run(probe, model, texts)


def test_centred_rows_have_to_be_among_the_layers(model):
    with pytest.raises(InputError, match="center: layers name no row of centered states; add one"):
        SoftEntropyProbe(model, layers=["layer.1"], center=True)
    with pytest.raises(InputError, match=r"layers: no layer 'layer.1.centered'.*rows of centered states need --center"):
        SoftEntropyProbe(model, layers=["layer.1.centered"])
