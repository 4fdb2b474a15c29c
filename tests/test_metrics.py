"""The declared metrics: their order in the table, their units, and an entry that is added."""

from dataclasses import replace

import pytest
import torch

from softh_probe import metrics
from softh_probe.metrics import ENTROPIES, METRICS, Metric
from tests.helpers.probes import NAMES
from tests.helpers.report_data import result_of, sampled

OF_POSITIONS = ["entropy", "entropy_document_sd", "anisotropy"]
OF_A_SET = [
    "label_entropy",
    "conditional_entropy",
    "mutual_information",
    "mutual_information_max",
    "mutual_information_null",
    "mutual_information_corrected",
    "coverage",
    "regularity",
]
OF_AN_ORDER = ["optimality", "optimality_corrected"]
OF_A_LEVEL = ["information_share", "information_share_corrected"]
OF_A_DIRECTION = ["residual", "residual_corrected"]


@pytest.fixture
def result(model):
    return result_of(model, labels=[*NAMES[:2], "input_bigram"])


def test_the_table_has_its_metrics_in_order(result):
    expected = [("", metric) for metric in OF_POSITIONS]
    of_documents = [*OF_A_SET[:5], "mutual_information_null_sd", *OF_A_SET[5:]]  # of labels of whole documents alone
    expected += [
        (label_set, metric)
        for label_set in result.label_sets
        for metric in (of_documents if label_set == "topic" else OF_A_SET)
    ]
    expected += [("unigram", metric) for metric in OF_AN_ORDER]  # of bigrams, only the input was measured
    for direction, levels in (("input", ["input_unigram", "input_bigram"]), ("output", ["output_unigram"])):
        expected += [(level, metric) for level in levels for metric in OF_A_LEVEL]
        expected += [(direction, metric) for metric in OF_A_DIRECTION]
    assert [(label_set, metric) for label_set, metric, _ in result.metrics()] == expected
    assert {values_RS.shape for _, _, values_RS in result.metrics()} == {(len(result.rows), 3)}


def test_ratios_have_no_unit(result):
    ratios = ["anisotropy", "coverage", "regularity", *OF_AN_ORDER, *OF_A_LEVEL, *OF_A_DIRECTION]
    assert [metric.name for metric in METRICS if metric.name not in ENTROPIES] == ratios
    nats, bits = (result.to_pandas(unit).groupby("metric").value.sum() for unit in ("nats", "bits"))
    assert (nats[ratios] == bits[ratios]).all()
    assert (nats["entropy"] / bits["entropy"]) == pytest.approx(torch.tensor(2.0).log().item())


def test_a_metric_is_added_by_one_entry(result, monkeypatch):
    excess = Metric(
        name="excess",
        scope="label_set",
        has_unit=False,
        compute=torch.sub,
        inputs=("mutual_information", "null_information"),
    )
    monkeypatch.setattr(metrics, "METRICS", (*METRICS, excess))
    table = result.to_pandas("nats").pivot_table(index=["layer", "label_set"], columns="metric", values="value")
    table = table[table.excess.notna()]
    assert len(table) == len(result.rows) * len(result.label_sets)
    assert (table.excess - (table.mutual_information - table.mutual_information_null)).abs().max() < 1e-12


def values(result):
    return {(label_set, metric): values_RS for label_set, metric, values_RS in result.metrics()}


def test_shares_are_what_each_order_adds_to_the_order_below_over_the_ceiling(model):
    result = result_of(model, labels=[*NAMES[:2], "input_bigram", "input_trigram"])
    of = values(result)
    for suffix in ("", "_corrected"):
        one, two, three = (of[f"input_{n}gram", f"mutual_information{suffix}"] for n in ("uni", "bi", "tri"))
        ceiling = of["input_unigram", "mutual_information_max"]
        expected = {
            "input_unigram": one / ceiling,
            "input_bigram": (two - one) / ceiling,
            "input_trigram": (three - two) / ceiling,
        }
        for level, share in expected.items():
            assert torch.equal(of[level, f"information_share{suffix}"], share), level
        assert torch.equal(of["input", f"residual{suffix}"], (ceiling - three) / ceiling)
        assert of["output", f"residual{suffix}"].shape == ceiling.shape  # of unigrams alone
        shares = sum(of[level, f"information_share{suffix}"] for level in expected)
        assert (shares + of["input", f"residual{suffix}"] - 1).abs().max() < 1e-12


def test_label_sets_of_n_grams_have_one_ceiling(model):
    of = values(result_of(model, labels=[*NAMES[:2], "input_bigram", "output_bigram"]))
    ceilings = [v for (name, metric), v in of.items() if metric == "mutual_information_max" and name != "topic"]
    assert len(ceilings) == 4
    assert all(torch.equal(ceiling, ceilings[0]) for ceiling in ceilings)


def test_shares_need_every_lower_order(model):
    of = values(result_of(model, labels=["input_bigram", "output_unigram", "output_trigram"]))
    shared = {name for name, metric in of if metric == "information_share"}
    assert shared == {"output_unigram"}
    assert {name for name, metric in of if metric == "residual"} == {"output"}
    rest = of["output", "residual"]  # unigrams leave it, whatever trigrams say
    assert (rest + of["output_unigram", "information_share"] - 1).abs().max() < 1e-12


def test_shares_are_missing_without_a_ceiling(result):
    tensors = {name: tensor.clone() for name, tensor in result.tensors.items()}
    tensors["labelled_position_entropy"][1] = tensors["labelled_entropy"][1] * (1 - 1e-9)  # rounding is no ceiling
    of = values(replace(result, tensors=tensors))
    for name, metric in (("input_bigram", "information_share"), ("input", "residual"), ("input", "residual_corrected")):
        missing = of[name, metric].isnan().all(dim=1)
        assert missing.tolist() == [row == 1 for row in range(len(result.rows))]


def test_shares_carry_the_error_of_sampled_labels(model):
    result = sampled(result_of(model, labels=[*NAMES[:2], "input_bigram"]), "input_bigram")
    of, errors = values(result), result.sampling_sds()
    ceiling = of["input_unigram", "mutual_information_max"]
    scale = (1 / ceiling).mean(dim=1)
    for name, metric, base in (
        ("input_bigram", "information_share", "mutual_information"),
        ("input_bigram", "information_share_corrected", "mutual_information_corrected"),
        ("input", "residual", "mutual_information"),
    ):
        expected = errors["input_bigram", base] * scale
        assert torch.allclose(errors[name, metric], expected, rtol=1e-9), metric
        assert (errors[name, metric] > 0).all()
    assert (errors["input_unigram", "information_share"] == 0).all()
    assert (errors["output", "residual"] == 0).all()
