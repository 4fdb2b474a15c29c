"""Words about made-up results: so many of H(X) bits, as many as so many anchors, and never a percentage of log m."""

import io
import math
import re

import pytest
import torch

from softh_probe import ProbeResult
from softh_probe.report.bit_words import label_bits, reading_lines
from softh_probe.report.document_chance import chance_lines
from softh_probe.report.findings import findings
from softh_probe.report.page import run_page
from softh_probe.report.terminal import print_table
from tests.helpers.models import tiny_llama
from tests.helpers.report_data import result_of, sampled, with_chance

LN2 = math.log(2)
N_ANCHORS = 100


def made_up(label_set="column:language", information=(0.37, 0.52), null=0.05, of_all=2.75, shares=(0.9, 0.7)):
    """A result of two layers, with informations and H(X) in bits, and entropies in units of log m."""
    n_layers, log_m = len(information), math.log(N_ANCHORS)

    def per_set(values):
        return torch.tensor(values, dtype=torch.float64).reshape(n_layers, 1, -1) * LN2

    conditional = torch.full((n_layers, 1, 1), 4.0, dtype=torch.float64) * LN2
    positions = torch.full((n_layers, 1), 500.0, dtype=torch.float64)
    tensors = {
        "mass": torch.stack([500 * with_entropy(share * log_m) for share in shares]).unsqueeze(1),
        "positions": positions[:, 0],
        "position_entropy": torch.ones(n_layers, 1, dtype=torch.float64),
        "entropy_document_sd": torch.zeros(n_layers, 1, dtype=torch.float64),
        "labelled_positions": positions,
        "covered_positions": positions,
        "labelled_entropy": conditional + per_set(information),
        "labelled_position_entropy": torch.ones(n_layers, 1, 1, dtype=torch.float64),
        "conditional_entropy": conditional,
        "null_information": per_set([null] * n_layers),
        "corrected_information": per_set([i - null for i in information]),
        "label_positions": torch.zeros(n_layers, 0, dtype=torch.float64),
        "label_entropy": torch.zeros(n_layers, 0, 1, dtype=torch.float64),
    }
    if of_all is not None:
        tensors["entropy_of_labels"] = torch.full((n_layers, 1), of_all * LN2, dtype=torch.float64)
    info = {"n_blocks": n_layers - 1, "positions": 500, "settings": {}, "label_sampling": {}, "labelled_positions": {}}
    rows = ["embeddings", *(f"layer.{i}" for i in range(1, n_layers))]
    return ProbeResult(rows=rows, label_sets=[label_set], tensors=tensors, info=info)


def with_entropy(nats: float) -> torch.Tensor:
    """A distribution over the anchors with an entropy: one is likelier than all others, which are alike."""

    def entropy(p):
        return -p * math.log(p) - (1 - p) * math.log((1 - p) / (N_ANCHORS - 1))

    low, high = 1 / N_ANCHORS, 1 - 1e-12
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if entropy(middle) > nats else (low, middle)
    rest = torch.full((N_ANCHORS - 1,), (1 - low) / (N_ANCHORS - 1), dtype=torch.float64)
    return torch.cat([torch.tensor([low], dtype=torch.float64), rest])


def told(result) -> tuple[str, str]:
    found = next(f for f in findings(result) if "say of" in f.question)
    return found.answer, found.text


def test_information_is_so_many_of_the_bits_there_are():
    answer, text = told(made_up())
    assert answer == "0.37 → 0.52 of 2.75 bits"
    assert "in layer.1 (0.52 of 2.75 bits, 19%)" in text
    assert "in a typical layer about 0.050 bits (12% of it) would come by chance alone" in text


def test_small_and_negative_and_missing_values_are_told():
    answer, text = told(made_up(information=(0.00412, -1e-9), null=0.004))
    assert answer == "0.0041 → 0 of 2.75 bits"
    assert "(0.0041 of 2.75 bits, 0.1%)" in text
    assert told(made_up(information=(math.nan, 0.2)))[0] == "– → 0.20 of 2.75 bits"
    assert told(made_up(of_all=0.0, information=(0.0, 0.0)))[0] == "0 → 0 of 0 bits"
    assert "%" not in told(made_up(of_all=0.0, information=(0.0, 0.0), null=math.nan))[1]


def test_of_results_without_it_the_bits_alone():
    answer, text = told(made_up(of_all=None))
    assert answer == "0.37 → 0.52 bits"
    assert "in layer.1 (0.52 bits)" in text
    assert reading_lines(made_up(of_all=None)) == [
        "entropy of layer.1: as many as 25 of 100 anchors, evenly used",
    ]


def test_an_estimate_is_about_as_much():
    result = sampled(made_up(), "column:language", estimated=True)
    assert told(result)[0] == "0.37 → 0.52 of about 2.75 bits"
    assert label_bits(sampled(made_up(), "column:language"), "column:language").size == "2.75"  # counts are known


def test_entropy_reads_as_that_of_so_many_anchors():
    found = findings(made_up())[0]
    assert found.answer == "90% → 70%"
    assert "in embeddings (90%: as many as 63 of 100 anchors, evenly used)" in found.text
    assert "in layer.1 (70%: as many as 25)" in found.text


def test_the_terminal_says_how_its_units_read(capsys):
    print_table(made_up(), io.StringIO())
    assert capsys.readouterr().err.splitlines()[:3] == [
        "mean of layer.1: entropy 0.70, information (language) 0.08",
        "entropy of layer.1: as many as 25 of 100 anchors, evenly used",
        "in bits: 1 is log m = 6.64; there is to know of labels, H(X): column:language 2.75",
    ]


def test_labels_of_whole_documents_are_told_in_bits_with_chance():
    result = with_chance(made_up("topic"), sd=0.01 * LN2 / math.log(N_ANCHORS), p_values=(0.3, 0.001))
    (line,) = chance_lines(result)
    assert "0.52 of 2.75 bits, by chance 0.050 ± 0.011 (p = 0.001); p is below 0.05 in 1 of 2 layers" in line
    assert "0.52 of 2.75 bits, by chance 0.050 ± 0.011 (p = 0.001)" in told(result)[1]


@pytest.mark.parametrize("labels", [["input_unigram", "output_unigram"], []])
def test_no_finding_gives_information_as_a_share_of_log_m(labels):
    result = result_of(tiny_llama(), labels=labels, anchor_sets=1)
    for finding in findings(result):
        assert "log m" not in finding.text + finding.answer
        if "hidden states" not in finding.question and "topic" not in finding.question:
            assert re.fullmatch(r"[\d.]+ → [\d.]+ of [\d.]+ bits", finding.answer)
    page = run_page(result)
    assert "Information is in bits, of H(X)" in page


def test_h_of_x_is_that_of_the_table():
    result = result_of(tiny_llama(), labels=["input_unigram"], anchor_sets=1)
    table = result.to_pandas("bits")
    of_set = table[(table.metric == "label_entropy") & (table.label_set == "topic")].value
    assert label_bits(result, "topic").size == f"{of_set.iloc[0]:.2f}" == "1.58"  # of three topics
