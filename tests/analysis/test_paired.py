"""Differences of two results: right standard errors, right p-values, and what is said and refused."""

import math

import numpy as np
import pytest
from scipy import stats

from softh_probe.analysis.holm import holm
from softh_probe.analysis.paired import COMPARED, compare_results, comparison_notes
from softh_probe.errors import InputError
from tests.helpers.influences import documents, planted, result_of_documents, subset, values_of


def keyed(table, column):
    return {key: part[column].to_numpy() for key, part in table.groupby(["label_set", "metric"], sort=False)}


def bootstrap_sd(a, b, pick, n=600, seed=1):
    """The sd of differences over bootstrap samples of units, the same ones for both; `pick` draws from each."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        in_a, in_b = pick(random)
        one, other = values_of(subset(a, in_a)), values_of(subset(b, in_b))
        found.append({key: other[key] - one[key] for key in one})
    return {key: np.std([sample[key] for sample in found], axis=0, ddof=1) for key in found[0]}


def test_holm_is_that_of_its_definition():
    random = np.random.default_rng(0)
    p = random.uniform(size=9) ** 3
    expected = np.empty(9)
    order = np.argsort(p)
    for rank, i in enumerate(order):
        expected[i] = min(1, max((9 - k) * p[order[k]] for k in range(rank + 1)))
    np.testing.assert_allclose(holm(p), expected)


@pytest.fixture(scope="module")
def two():
    """The same documents at two checkpoints that are much alike; layer 1 changed more."""
    return documents(300), planted(documents(300, change=0.3), 1, 0.2)


def test_values_and_differences_are_those_of_the_sums(two):
    a, b = two
    table = compare_results(result_of_documents(a), result_of_documents(b), unit="nats")
    assert set(table.metric) == set(COMPARED)
    for key, expected in values_of(a).items():
        part = table[(table.label_set == key[0]) & (table.metric == key[1])]
        np.testing.assert_allclose(part.a, expected, atol=1e-10)
        np.testing.assert_allclose(part.difference, values_of(b)[key] - expected, atol=1e-10)
    efficiency = compare_results(result_of_documents(a), result_of_documents(b))
    has_unit = table.metric.isin(["entropy", "mutual_information"])
    factor = np.where(has_unit, math.log(6), 1.0)
    for column in ("a", "b", "difference", "se"):
        np.testing.assert_allclose(efficiency[column] * factor, table[column])
    t = table.difference / table.se * math.sqrt(299 / 300)  # the sample sd has n − 1, the delta method n
    np.testing.assert_allclose(efficiency.p_value, 2 * stats.t.sf(np.abs(t), 299), atol=1e-9)
    for part in (p for _, p in efficiency.groupby(["label_set", "metric"])):
        np.testing.assert_allclose(part.p_holm, holm(part.p_value.to_numpy()))
    assert (efficiency.significant == (efficiency.p_holm < 0.05)).all()


def test_the_standard_error_is_that_of_a_paired_bootstrap(two):
    a, b = two
    table = compare_results(result_of_documents(a), result_of_documents(b), unit="nats")

    def pick(random):
        chosen = random.integers(0, 300, 300)
        return chosen, chosen

    expected = bootstrap_sd(a, b, pick)
    for key, se in keyed(table, "se").items():
        np.testing.assert_allclose(se, expected[key], rtol=0.12, err_msg=str(key))
        assert np.mean(se / expected[key]) == pytest.approx(1, abs=0.1)


def test_documents_of_a_row_are_drawn_together(two):
    a, b = ({**one, "units": np.arange(300) // 3} for one in two)
    table = compare_results(result_of_documents(a), result_of_documents(b), unit="nats")

    def pick(random):
        rows = random.integers(0, 100, 100)
        chosen = (3 * rows[:, None] + np.arange(3)).ravel()
        return chosen, chosen

    expected = bootstrap_sd(a, b, pick)
    for key, se in keyed(table, "se").items():
        assert np.mean(se / expected[key]) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_few_documents_make_no_differences(n):
    """Halves of the documents of one checkpoint: at most a few of 40 splits find a difference."""
    found = 0
    for seed in range(40):
        whole = documents(2 * n, seed=seed)
        halves = (subset(whole, slice(n)), subset(whole, slice(n, None)))
        table = compare_results(*(result_of_documents(half) for half in halves))
        found += table[table.metric == "entropy"].significant.any()
    assert found <= 4


def test_a_single_document_says_nothing_of_noise():
    one, other = documents(1), documents(8, seed=1)
    other["numbers"] = other["numbers"] + 1000
    table = compare_results(result_of_documents(one), result_of_documents(other))
    assert table.p_holm.isna().all()
    assert not table.significant.any()


def test_other_data_is_an_independent_sample():
    a, b = documents(200), documents(350, seed=2)
    b["numbers"] = b["numbers"] + 1000
    one, other = result_of_documents(a), result_of_documents(b)
    table = compare_results(one, other, unit="nats")
    for name, se in keyed(table, "se").items():
        expected = np.hypot(one.influence.standard_error(name), other.influence.standard_error(name))
        np.testing.assert_allclose(se, expected)
    assert "0 of which are the same" in comparison_notes(one, other)[-1]


def test_data_that_partly_overlap_agree_with_a_bootstrap():
    """A has the documents 0 to 249, B 100 to 349: those that both have are paired."""
    whole = documents(350)
    a, b = subset(whole, slice(0, 250)), planted(subset(whole, slice(100, 350)), 1, 0.2)
    table = compare_results(result_of_documents(a), result_of_documents(b), unit="nats")

    def pick(random):
        chosen = random.integers(0, 350, 350)
        return chosen[chosen < 250], chosen[chosen >= 100] - 100

    expected = bootstrap_sd(a, b, pick, n=800)
    for key, se in keyed(table, "se").items():
        assert np.mean(se / expected[key]) == pytest.approx(1, abs=0.1)


def test_a_share_of_the_units_is_scaled_and_unequal_shares_meet(two):
    a, b = two
    corpus = {"corpus": {"sha256": "0" * 64, "data": "texts"}}
    whole = keyed(compare_results(result_of_documents(a, **corpus), result_of_documents(b, **corpus)), "se")
    random = np.random.default_rng(3)
    order = random.permutation(300)
    for n_a, n_b in ((150, 150), (200, 120)):
        one = result_of_documents(a, share=np.sort(order[:n_a]), **corpus)
        other = result_of_documents(b, share=np.sort(order[:n_b]), **corpus)
        shares = keyed(compare_results(one, other), "se")
        for key, se in shares.items():
            assert np.mean(se / whole[key]) == pytest.approx(1, abs=0.2)


def test_the_same_documents_in_other_tokens_are_paired_by_number(two):
    one, other = (
        result_of_documents(of, corpus={"sha256": tokens * 64, "texts_sha256": "t" * 64, "data": "texts"})
        for of, tokens in zip(two, "01", strict=True)
    )
    paired = keyed(compare_results(one, other), "se")
    other.influence.keys[:] += 3
    for key, se in keyed(compare_results(one, other), "se").items():
        np.testing.assert_allclose(se, paired[key])
    assert any("their tokens differ" in note for note in comparison_notes(one, other))


def test_it_is_antisymmetric(two):
    one, other = map(result_of_documents, two)
    there, back = compare_results(one, other), compare_results(other, one)
    np.testing.assert_allclose(there.difference, -back.difference)
    for column in ("se", "p_value", "p_holm"):
        np.testing.assert_allclose(there[column], back[column])
    np.testing.assert_allclose(there.a, back.b)


def test_equal_results_do_not_differ(two):
    table = compare_results(result_of_documents(two[0]), result_of_documents(two[0]))
    assert (table.difference == 0).all()
    assert (table.se == 0).all()
    assert (table.p_value == 1).all()
    assert not table.significant.any()
    assert comparison_notes(result_of_documents(two[0]), result_of_documents(two[0])) != []


def test_differences_by_rounding_are_not_significant(two):
    one, other = result_of_documents(two[0]), result_of_documents(two[0])
    other.tensors["conditional_entropy"] += 1e-8
    assert not compare_results(one, other).significant.any()


def test_equal_checkpoints_on_random_halves_have_no_significant_layer():
    """Of 100 splits about 95 have none; layers are correlated, and the correction then errs on the safe side."""
    whole = documents(400, layers=6)
    random = np.random.default_rng(0)
    n_false = dict.fromkeys([("", "entropy"), ("input_unigram", "mutual_information")], 0)
    for _ in range(100):
        order = random.permutation(400)
        halves = [result_of_documents(subset(whole, np.sort(part))) for part in (order[:200], order[200:])]
        table = compare_results(*halves)
        for key in n_false:
            n_false[key] += table[(table.label_set == key[0]) & (table.metric == key[1])].significant.any()
    assert all(n <= stats.binom.ppf(0.995, 100, 0.05) for n in n_false.values()), n_false


def test_a_planted_change_is_found_and_only_there():
    base = documents(400, layers=6)
    table = compare_results(result_of_documents(base), result_of_documents(planted(base, 2, 0.05)))
    for _, part in table[table.metric != "optimality"].groupby(["label_set", "metric"]):
        assert part.significant.tolist() == [False, False, True, False, False, False]


def test_layers_of_models_of_unequal_depth_are_aligned(two):
    deep = result_of_documents(documents(300, layers=6))
    table = compare_results(result_of_documents(two[0]), deep)
    assert list(table.name[:4]) == ["embeddings", "layer.1", "layer.2", "final_norm"]
    assert table.se.notna().all()
    notes = comparison_notes(result_of_documents(two[0]), deep, ["x", "y"])
    assert any("values of y are those at the relative depth of x's layers" in note for note in notes)


def test_notes_say_what_was_compared(two):
    corpus = {"corpus": {"sha256": "0" * 64, "data": "texts"}}
    whole = result_of_documents(two[0], **corpus)
    part = result_of_documents(two[1], share=np.arange(100), **corpus)
    assert comparison_notes(whole, part)[-1].endswith("100 of which are the same; the others are left out.")
    other = result_of_documents(documents(200, seed=2), corpus={"sha256": "1" * 64, "data": "other"})
    notes = comparison_notes(whole, other)
    assert not any("leave out other ends" in note for note in notes)  # it is the texts that differ
    assert any("positions: raw information is biased" in note for note in notes)


def test_without_intervals_there_are_differences_and_a_remedy(two):
    one, other = result_of_documents(two[0], with_intervals=False), result_of_documents(two[1])
    table = compare_results(one, other)
    assert table.difference.notna().all()
    assert table[["se", "p_value", "p_holm"]].isna().all(axis=None)
    assert not table.significant.any()
    assert "softh-probe run --intervals" in comparison_notes(one, other, ["x", "y"])[-1]
    assert comparison_notes(one, other, ["x", "y"])[-1].startswith("x has no intervals")


def test_other_anchors_are_refused_and_other_widths_are_told(two):
    def anchored(digest, width=8, **settings):
        anchors = [{"sha256": digest, "temperature": 1.0, "dim": width}]
        result = result_of_documents(two[0], anchors=anchors)
        result.info["settings"] |= settings
        return result

    for changed in ({"seed": 1}, {"calibration": "asymptotic"}, {"n_anchors": 7}):
        with pytest.raises(InputError, match=rf"{next(iter(changed))}.*not comparable"):
            compare_results(anchored("a"), anchored("b", **changed))
    with pytest.raises(InputError, match="SHA-256"):
        compare_results(anchored("a"), anchored("b"))
    compare_results(anchored("a"), anchored("b", width=16))
    assert any("8 and 16 wide" in note for note in comparison_notes(anchored("a"), anchored("b", width=16)))
    with pytest.raises(InputError, match="unit: expected one of"):
        compare_results(anchored("a"), anchored("a"), unit="dits")
