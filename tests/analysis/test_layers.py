"""The highest layer of a result is named as such only where it is beyond the paired spread of each other one."""

import statistics
from dataclasses import replace

import numpy as np
import pytest

from softh_probe.analysis.layers import extreme, extreme_over_anchors
from softh_probe.influence import DocumentInfluence
from tests.helpers.influences import documents, planted, result_of_documents, subset, values_of


def test_a_layer_that_stands_out_has_none_like_it():
    base = documents(300)
    for layer in (0, 1, 3):
        base = planted(base, layer, 0.3)
    result = result_of_documents(base)
    found = extreme(result, "input_unigram", "mutual_information")
    assert (found.row, found.alike, found.is_measured) == (2, (), True)
    assert extreme(result, "", "entropy", lowest=True).row == 2


def test_layers_within_the_paired_spread_are_listed_the_nearest_first():
    base = documents(300)
    mass = base["mass"].copy()
    for layer, change in ((1, 0.3), (2, -0.3)):  # much alike, and correlated
        mass[:, layer] = documents(300, change=change)["mass"][:, 1]
    base = planted(planted({**base, "mass": mass}, 0, 0.5), 3, 0.5)
    result = result_of_documents(base)
    found = extreme(result, "input_unigram", "mutual_information")
    value = values_of(base)["input_unigram", "mutual_information"]
    best, other = (1, 2) if value[1] > value[2] else (2, 1)
    assert found.row == best
    ((name, distance, se),) = found.alike
    assert (name, distance) == (result.rows[other], pytest.approx(value[best] - value[other]))
    random = np.random.default_rng(0)
    samples = [values_of(subset(base, random.integers(0, 300, 300))) for _ in range(600)]
    values = np.array([sample["input_unigram", "mutual_information"] for sample in samples])
    assert se == pytest.approx((values[:, best] - values[:, other]).std(), rel=0.1)


def by_hand(value_RS, lowest=False):
    """The highest row, and those within two sd of their difference from it over the sets, the nearest first."""
    sets = range(len(value_RS[0]))
    mean = {r: statistics.fmean(values) for r, values in enumerate(value_RS) if not any(v != v for v in values)}
    best = (min if lowest else max)(mean, key=mean.get)
    near = []
    for r in mean.keys() - {best}:
        apart = [value_RS[best][s] - value_RS[r][s] for s in sets]
        if abs(statistics.fmean(apart)) <= 2 * statistics.stdev(apart):
            near.append((abs(statistics.fmean(apart)), r, statistics.stdev(apart)))
    return best, [(f"layer.{r}", pytest.approx(d), pytest.approx(sd)) for d, r, sd in sorted(near)]


@pytest.mark.parametrize("n_sets", [2, 3, 8])
@pytest.mark.parametrize("lowest", [False, True])
def test_without_intervals_layers_are_compared_on_the_same_anchor_sets(n_sets, lowest):
    random = np.random.default_rng(n_sets)
    names, found_alike = [f"layer.{r}" for r in range(7)], 0
    for _ in range(50):
        of_set = 0.2 * random.normal(size=(1, n_sets))  # common to all layers: far larger than what tells them apart
        value_RS = 0.5 + 0.02 * random.normal(size=(7, 1)) + of_set + 0.01 * random.normal(size=(7, n_sets))
        value_RS[random.random(7) < 0.2] = np.nan
        value_RS[3] = 0.5 + of_set  # one is known
        found = extreme_over_anchors(names, value_RS, lowest=lowest)
        best, alike = by_hand(value_RS.tolist(), lowest)
        assert (found.row, list(found.alike), found.noise) == (best, alike, "anchors")
        assert found.stands_out == (not alike)
        found_alike += bool(alike)
    assert 5 < found_alike < 50


def test_values_of_a_result_are_compared_set_by_set():
    base = documents(40, sets=8)
    found = extreme(result_of_documents(base, with_intervals=False), "", "entropy")
    mass_RSM = base["mass"].sum(axis=0)[:, 0].sum(axis=1)
    p_RSM = mass_RSM / mass_RSM.sum(axis=2, keepdims=True)
    best, alike = by_hand((-p_RSM * np.log(p_RSM)).sum(axis=2).tolist())
    rows = ["embeddings", "layer.1", "layer.2", "final_norm"]
    assert found.row == best
    assert found.noise == "anchors"
    assert [name for name, _, _ in found.alike] == [rows[int(name.removeprefix("layer."))] for name, _, _ in alike]
    assert [(d, sd) for _, d, sd in found.alike] == [(d, sd) for _, d, sd in alike]


def test_layers_with_the_same_states_are_not_told_apart_by_rounding():
    value_RS = np.array([[0.5, 0.6], [0.5, 0.6], [0.4, 0.5]]) + np.array([[1e-9], [0], [0]])
    found = extreme_over_anchors(["layer.1", "final_norm", "embeddings"], value_RS)
    assert [name for name, _, _ in found.alike] == ["final_norm"]


def test_layers_without_a_value_are_neither_highest_nor_alike():
    value_RS = np.array([[np.nan, np.nan], [0.1, 0.3], [np.nan, 0.2]])
    found = extreme_over_anchors(["a", "b", "c"], value_RS)
    assert (found.row, found.alike, found.stands_out) == (1, (), True)
    assert extreme_over_anchors(["a", "b"], np.full((2, 3), np.nan)) is None


def test_one_set_without_intervals_tells_nothing():
    found = extreme(result_of_documents(documents(50, sets=1), with_intervals=False), "", "entropy")
    assert (found.is_measured, found.stands_out, found.alike, found.noise) == (False, False, (), None)


def test_a_label_set_that_a_result_does_not_have_has_no_highest_layer():
    assert extreme(result_of_documents(documents(50), with_intervals=False), "no such set", "entropy") is None


def test_influences_that_are_missing_leave_the_spread_over_anchors():
    result = result_of_documents(documents(50))
    nothing: dict = {name: np.full_like(psi, np.nan) for name, psi in result.influence.values.items()}
    counts = {n: getattr(result.influence, n) for n in DocumentInfluence.__dataclass_fields__ if n != "values"}
    result = replace(result, influence=DocumentInfluence(values=nothing, **counts))
    assert extreme(result, "", "entropy").noise == "anchors"


@pytest.mark.parametrize(("sets", "noise"), [(1, None), (2, "anchors")])
def test_a_single_document_does_not_tell_layers_apart(sets, noise):
    assert extreme(result_of_documents(documents(1, sets=sets)), "", "entropy").noise == noise
