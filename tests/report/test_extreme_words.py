"""The highest layer in words, and what pages, figures and the terminal say of a spread that is not known."""

import io
import re

import numpy as np
import pandas as pd
import pytest

from softh_probe.report.comparison_table import sentence
from softh_probe.report.extreme_words import ONE_SET, one_set_line
from softh_probe.report.figures import FIGURES, entropy_by_layer
from softh_probe.report.findings import findings
from softh_probe.report.notebook import to_html
from softh_probe.report.page import comparison_page, run_page, sweep_page
from softh_probe.report.share_words import share_words
from softh_probe.report.sweep_files import read_sweep
from softh_probe.report.terminal import print_table
from tests.helpers.influences import documents, planted, result_of_documents
from tests.helpers.models import tiny_llama
from tests.helpers.probes import NAMES
from tests.helpers.report_data import result_of, sampled, sweep_folder

#: Words that speak of a spread over anchor sets as one that is there.
OF_SPREAD = re.compile(r"the band is|stronger band|± is the standard deviation over anchor sets|± sd", re.IGNORECASE)
SAID = ONE_SET[0].upper() + ONE_SET[1:] + "."


@pytest.fixture(scope="module")
def one():
    return result_of(tiny_llama(), labels=NAMES[:4], anchor_sets=1)


@pytest.fixture(scope="module")
def several():
    return result_of(tiny_llama(), labels=NAMES[:4], anchor_sets=3)


def words_of(page: str) -> str:
    """The text of a page, without its scripts and its table of the kinds of spread, which tells what was measured."""
    text = re.sub(r"<(script|style).*?</\1>|<table class=\"plain spreads\">.*?</table>", "", page, flags=re.DOTALL)
    return re.sub(r"<[^>]+>", "", text)


def test_one_set_is_told_with_the_flag_of_the_default():
    assert ONE_SET == "one anchor set: the spread over anchors is unknown (--anchor-sets 8)"


def test_a_page_of_one_set_says_so_and_speaks_of_no_band(one, several):
    page = words_of(run_page(one))
    assert SAID in page
    assert ONE_SET in page.split("Click a heading to sort")[1]
    assert not OF_SPREAD.search(page)
    page = words_of(run_page(several))
    assert "one anchor set" not in page.lower()
    assert {found.lower() for found in OF_SPREAD.findall(page)} == {
        "the band is",
        "± is the standard deviation over anchor sets",
    }


def test_a_sample_of_labels_has_the_only_band_of_a_page_of_one_set(one, several):
    assert "that: it is the band, hidden" in words_of(run_page(sampled(one, NAMES[2])))
    assert "standard deviation over anchor sets: it is the stronger band" in words_of(
        run_page(sampled(several, NAMES[2]))
    )


def test_results_side_by_side_name_those_of_one_set(one, several):
    page = words_of(comparison_page([one, several], ["small", "large"]))
    assert "One anchor set in small: the spread over anchors is unknown (--anchor-sets 8)." in page
    assert "the band is" in page.lower()
    page = words_of(comparison_page([one, one], ["small", "other"]))
    assert SAID in page
    assert not OF_SPREAD.search(page)
    assert one_set_line([several, several], ["a", "b"]) == ""


def test_a_sweep_of_one_set_says_so(tmp_path):
    folder = sweep_folder(tmp_path / "sweep", n_checkpoints=2)
    assert "the band is" in words_of(sweep_page(read_sweep(folder))).lower()
    sweep = read_sweep(folder)
    sweep.table["sd"] = np.nan
    page = words_of(sweep_page(sweep))
    assert SAID in page
    assert not OF_SPREAD.search(page)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_terminal_says_that_the_spread_is_unknown(one, several, is_terminal, monkeypatch, capsys):
    for result, is_said in ((one, True), (several, False)):
        out = io.StringIO()
        monkeypatch.setattr(out, "isatty", lambda: is_terminal)
        print_table(result, out)
        assert (ONE_SET in out.getvalue().replace("\n", " ") + capsys.readouterr().err) == is_said


def test_a_notebook_says_that_the_spread_is_unknown(one, monkeypatch):
    monkeypatch.setitem(FIGURES, "overview", lambda result: entropy_by_layer(result))  # drawn in less time
    assert ONE_SET in to_html(one)


def test_findings_of_one_set_name_the_highest_layer_by_its_value_alone(one):
    page = words_of(run_page(one))
    assert "name a layer by its value alone: no spread is known to compare layers by" in page
    for found in findings(one):
        assert not re.search(r"\b(most|least) in ", found.text)
        assert "not distinguishable" not in found.text
    for found in findings(one)[:3]:
        assert "one anchor set: spread unknown, noise over documents was not measured" in found.text


def test_findings_of_several_sets_go_by_the_spread_over_anchors():
    base = planted(planted(documents(200), 0, 0.6), 3, 0.6)  # its anchor sets differ more than two of its layers
    result = result_of_documents(base, with_intervals=False)
    texts = [found.text for found in findings(result)]
    assert re.search(r"highest in layer\.\d .*not distinguishable from layer\.\d \(0\.\d+ ± 0\.\d+ bits\)", texts[1])
    assert "more than two of its standard deviations over anchor sets" in words_of(run_page(result))
    alone = result_of_documents(planted(base, 2, 0.9), with_intervals=False)
    alone.tensors["mass"][:, 1] = alone.tensors["mass"][:, 0]  # both sets are as the first
    for tensor in ("labelled_entropy", "conditional_entropy"):
        alone.tensors[tensor][..., 1] = alone.tensors[tensor][..., 0]
    assert all("not distinguishable" not in found.text for found in findings(alone))
    assert "most in layer.1 (" in findings(alone)[1].text
    assert "corrected for the number of layers (Holm)" in words_of(run_page(result_of_documents(base)))


def test_shares_name_the_layers_that_cannot_be_told_apart(several):
    values = {(name, metric): v.numpy() for name, metric, v in several.metrics()}
    added_RS = values["input_bigram", "information_share_corrected"]
    words = share_words(several, "input")
    best = int(added_RS.mean(axis=1).argmax())
    apart_RS = added_RS[best] - added_RS
    near = [r for r in range(len(apart_RS)) if r != best and apart_RS[r].mean() <= 2 * apart_RS[r].std(ddof=1)]
    near.sort(key=lambda r: apart_RS[r].mean())
    assert words.layer == several.rows[best]
    assert words.alike == ", ".join(several.rows[r] for r in near[:3]) + (
        f" and {len(near) - 3} more" if len(near) > 3 else ""
    )
    assert words.where in next(found.text for found in findings(several) if "longer contexts" in found.question)


def test_the_largest_of_several_differences_is_not_called_the_most():
    part = pd.DataFrame(
        {
            "name": ["layer.1", "layer.2"],
            "difference": [0.5, 0.4],
            "se": [0.1, 0.1],
            "p_holm": [1e-5, 1e-3],
            "significant": [True, True],
        }
    )
    assert sentence(part) == "2 of 2 layers differ beyond noise: the largest in layer.1 (+0.5000 ± 0.1000)"


@pytest.mark.parametrize("anchor_sets", [1, 2])
def test_sites_that_cannot_be_told_from_the_one_with_the_most_are_named_with_it(anchor_sets):
    several = result_of(tiny_llama(), labels=NAMES[:1], anchor_sets=anchor_sets, sites=("residual", "attention", "mlp"))
    found = findings(several)[-1]
    value_RS = next(v.numpy() for n, m, v in several.metrics() if (n, m) == (NAMES[0], "mutual_information"))
    apart_RS = value_RS[value_RS.mean(axis=1).argmax()] - value_RS
    within_R = apart_RS.mean(axis=1) == 0
    if anchor_sets > 1:
        within_R |= apart_RS.mean(axis=1) <= 2 * apart_RS.std(axis=1, ddof=1)
    sites = {several.places.sites[r] for r in within_R.nonzero()[0]}
    assert set(found.answer.split(", ")[0].split(" or ")) == sites
    assert ("spread unknown" in found.text) == (anchor_sets == 1)
    assert not (anchor_sets == 1 and re.search(r"\bmost in ", found.text))
