"""The declared metrics: their order in the table, their units, and an entry that is added."""

import pytest
import torch

from softh_probe import metrics
from softh_probe.metrics import ENTROPIES, METRICS, Metric
from tests.helpers.probes import NAMES
from tests.helpers.report_data import result_of

OF_POSITIONS = ["entropy", "entropy_document_sd"]
OF_A_SET = [
    "conditional_entropy",
    "mutual_information",
    "mutual_information_max",
    "mutual_information_null",
    "mutual_information_corrected",
    "coverage",
    "regularity",
]
OF_AN_ORDER = ["optimality", "optimality_corrected"]


@pytest.fixture
def result(model):
    return result_of(model, labels=[*NAMES[:2], "input_bigram"])


def test_the_table_has_its_metrics_in_order(result):
    expected = [("", metric) for metric in OF_POSITIONS]
    of_documents = [*OF_A_SET[:4], "mutual_information_null_sd", *OF_A_SET[4:]]  # of labels of whole documents alone
    expected += [
        (label_set, metric)
        for label_set in result.label_sets
        for metric in (of_documents if label_set == "topic" else OF_A_SET)
    ]
    expected += [("unigram", metric) for metric in OF_AN_ORDER]  # of bigrams, only the input was measured
    assert [(label_set, metric) for label_set, metric, _ in result.metrics()] == expected
    assert {values_RS.shape for _, _, values_RS in result.metrics()} == {(len(result.rows), 3)}


def test_ratios_have_no_unit(result):
    ratios = ["coverage", "regularity", *OF_AN_ORDER]
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
