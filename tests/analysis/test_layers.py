"""The highest layer of a result is named as such only where it is beyond the paired spread of each other one."""

from dataclasses import replace

import numpy as np
import pytest

from softh_probe.analysis.layers import extreme
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


def test_without_influences_noise_is_not_measured():
    result = result_of_documents(documents(50), with_intervals=False)
    found = extreme(result, "", "entropy")
    assert (found.is_measured, found.alike) == (False, ())
    assert extreme(result, "no such set", "entropy") is None


def test_influences_that_are_missing_are_not_measured():
    result = result_of_documents(documents(50))
    nothing: dict = {name: np.full_like(psi, np.nan) for name, psi in result.influence.values.items()}
    counts = {n: getattr(result.influence, n) for n in DocumentInfluence.__dataclass_fields__ if n != "values"}
    result = replace(result, influence=DocumentInfluence(values=nothing, **counts))
    assert not extreme(result, "", "entropy").is_measured


def test_a_single_document_does_not_tell_layers_apart():
    assert not extreme(result_of_documents(documents(1)), "", "entropy").is_measured
