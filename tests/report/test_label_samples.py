"""Samples of labels on pages, in figures, comparisons and on the terminal: shown where there are, and only there."""

import dataclasses
import io
import math
import re
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from softh_probe import ProbeResult, SoftEntropyProbe
from softh_probe.analysis.comparable import check_comparable
from softh_probe.errors import InputError
from softh_probe.report.bit_words import reading_lines
from softh_probe.report.compare import differences
from softh_probe.report.label_samples import sample_line, sample_sentences
from softh_probe.report.page import comparison_page, run_page, write_report
from softh_probe.report.page_data import run_data
from softh_probe.report.terminal import print_table
from tests.helpers.models import tiny_llama
from tests.helpers.probes import NAMES
from tests.helpers.report_data import page_data, result_of, sampled, save

BIGRAMS = ("input_bigram", "output_bigram")
KEY = "mutual_information|input_bigram"


@pytest.fixture(scope="module")
def whole():
    return result_of(tiny_llama(), labels=NAMES[:4])


@pytest.fixture(scope="module")
def result(whole):
    return sampled(whole, *BIGRAMS)


def without_scripts(html: str) -> str:
    return re.sub(r"<script\b.*?</script>", "", html, flags=re.DOTALL)


def most(result, metric: str) -> float:
    """The greatest standard error of a metric of the input's bigrams, in units of log m, rounded up."""
    sd = result.sampling_sds()["input_bigram", metric].max().item() / math.log(result.n_anchors)
    return math.ceil(sd * 1e4) / 1e4


def with_nan(result, *tensors: str, label_set: str = "input_bigram") -> ProbeResult:
    """The result, of which some values of a label set are not known."""
    changed = {name: result.tensors[name].clone() for name in tensors}
    for tensor in changed.values():
        tensor[:, result.label_sets.index(label_set)] = math.nan
    return dataclasses.replace(result, tensors={**result.tensors, **changed})


# --- pages -----------------------------------------------------------------------------------------------


def test_a_page_shows_the_standard_errors_of_what_was_sampled(result, tmp_path):
    page = write_report([save(result, tmp_path)], tmp_path)
    table = result.to_pandas(means=False)
    for key, shown in page_data(page)["runs"][0]["series"].items():
        metric, label_set = key.split("|")
        part = table[(table.metric == metric) & (table.label_set == label_set)]
        assert ("e" in shown) == (part.sampling_sd != 0).any()
        if "e" in shown:
            np.testing.assert_allclose(np.array(shown["e"], float), part.sampling_sd, atol=1e-6)


def test_a_page_says_how_many_labels_were_followed(result):
    text = without_scripts(run_page(result))
    raw, corrected = (most(result, f"mutual_information{end}") for end in ("", "_corrected"))
    for name in BIGRAMS:
        assert (
            f"<li>{name}: 8,123 of 193,456 labels were followed (all that occur once, or 310 times or more); the "
            f"standard error of that is at most {raw:.4f} log m, corrected {corrected:.4f}.</li>"
        ) in text
    assert "beside the standard deviation over anchor sets" in text
    assert text.count("labels were followed") == 2


def test_an_estimated_number_of_labels_is_said_to_be_one(whole):
    said = sample_sentences(sampled(whole, "input_bigram", estimated=True))
    assert said[0].startswith(
        "input_bigram: 8,123 of an estimated 193,456 labels were followed (at the end, one in 310 of those that were "
        "new); the standard error"
    )


def test_a_page_of_all_labels_says_nothing_of_samples(whole):
    described = dataclasses.replace(whole, info={**whole.info, "label_sampling": sampled(whole).info["label_sampling"]})
    for one in (whole, described):
        text = without_scripts(run_page(one))
        assert "sampl" not in text.split("What was run")[0].split("</style>")[1]
        assert all("e" not in series for series in run_data(one, "x")["series"].values())
        assert "same_labels" not in differences(one, one)


def test_one_anchor_set_has_the_error_by_sampling_alone(tmp_path):
    one = sampled(result_of(tiny_llama(), labels=NAMES[:4], anchor_sets=1), *BIGRAMS)
    series = run_data(one, "x")["series"][KEY]
    assert set(series) == {"v", "e"}
    assert all(error > 0 for error in series["e"])


def test_a_set_of_which_no_label_was_followed_is_unknown_not_empty():
    texts = torch.arange(36).reshape(2, 18)
    probe = SoftEntropyProbe(model := tiny_llama(), labels=["input_unigram", "output_unigram"], label_rows=1)
    with probe, torch.no_grad():
        model(input_ids=texts)
    with pytest.warns(UserWarning, match="raise label_rows"):
        found = probe.result()
    name = next(name for name, of_set in found.info["label_sampling"].items() if not of_set["followed"])
    page = run_page(found)
    assert f"Too few labels of {name} were followed; raise --label-rows." in page
    assert "No position has a label" not in page
    assert f"{name}: none of the labels were followed; its information is not known" in page
    assert any(choice["chosen"] == f"none of the labels of {name}" for choice in found.info["choices"])


def test_what_is_not_known_is_said_with_the_remedy(result):
    nothing = with_nan(result, "conditional_entropy", "conditional_entropy_sampling_sd")
    assert "its information is not known, since too few were followed: raise --label-rows." in run_page(nothing)
    assert run_data(nothing, "x")["series"][KEY]["e"] == [None] * len(result.rows)
    no_error = with_nan(result, "conditional_entropy_sampling_sd", "corrected_information_sampling_sd")
    said = sample_sentences(no_error)[0]
    assert said.endswith("times or more); the standard error of its information is not known, since too few were "
                         "followed: raise --label-rows.")  # fmt: skip
    assert "nan" not in said


def test_a_finding_of_a_set_of_which_nothing_is_known(whole):
    nothing = with_nan(sampled(whole, "input_unigram"), "conditional_entropy", label_set="input_unigram")
    nothing.info["label_sampling"]["input_unigram"] |= {"labels": 0, "followed": 0, "estimated": True}
    html = run_page(nothing)
    assert "Too few labels of input_unigram were followed; raise --label-rows." in html
    assert "input_unigram: none of the labels were followed" in html


@pytest.mark.parametrize(
    "sampling",
    [["input_bigram"], {"input_bigram": 5}, {"input_bigram": {"labels": "many", "followed": 1, "threshold": 2.0}}],
)
def test_a_page_refuses_a_sample_that_is_none(whole, sampling, tmp_path):
    wrong = dataclasses.replace(whole, info={**whole.info, "label_sampling": sampling})
    with mock.patch.object(ProbeResult, "sampled_sets", []):
        save(wrong, tmp_path)
    with pytest.raises(InputError, match="label_sampling"):
        write_report([tmp_path], tmp_path)


# --- figures ---------------------------------------------------------------------------------------------


def n_bands(figure: Figure) -> int:
    return sum(len(axes.collections) for axes in figure.axes)


@pytest.mark.parametrize(
    ("name", "n_lines"),
    [("information", 2), ("chance", 4), ("optimality", 2), ("overview", 4), ("entropy", 0), ("plane", 0)],
)
def test_figures_have_a_band_of_the_sampling_and_its_key(whole, result, name, n_lines):
    figure = result.plot(name)
    # The raw and the corrected optimality of bigrams; the corrected one is missing where there is none.
    n_keys = n_lines > 0
    assert n_bands(figure) - n_bands(whole.plot(name)) == n_lines + n_keys
    legends = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert legends.count("± sampling of labels") == n_keys
    assert figure._repr_png_()


def test_the_band_is_the_standard_error(result):
    table = result.to_pandas(means=False)
    part = table[(table.metric == "mutual_information") & (table.label_set == "input_bigram")]
    bands = [band.get_paths()[0].vertices[:, 1] for band in result.plot("information").axes[0].collections[:-1]]
    edges = [(part.value - part.sampling_sd).min(), (part.value + part.sampling_sd).max()]
    assert any(np.allclose([band.min(), band.max()], edges) for band in bands)


# --- comparisons -----------------------------------------------------------------------------------------


def test_results_that_followed_the_same_labels_say_so(result):
    assert not any("samples of labels" in note for note in check_comparable([result, result], ["x", "y"]))
    found = differences(result, result)
    assert found["same_labels"] is True
    assert found["series"][KEY]["p"] == [0.0] * len(result.rows)


@pytest.mark.parametrize("other", [{"threshold": 512.0}, {"label_rows": 4096, "threshold": 620.0}, None])
def test_other_samples_are_told_and_their_errors_added(whole, result, other):
    second = whole if other is None else sampled(whole, *BIGRAMS, errors=(0.03, 0, 0.01, 0, 0), **other)
    second.info["settings"].setdefault("label_rows", 65_536)
    (note,) = [n for n in check_comparable([result, second], ["x", "y"]) if "samples of labels" in n]
    rows = {8192: "8192 in both"}.get(n := second.info["settings"]["label_rows"], f"8192 and {n}")
    assert note.startswith(f"x and y: they followed different samples of labels (label_rows {rows})")
    found = differences(result, second)
    assert found["same_labels"] is False
    sds = [one.sampling_sds()["input_bigram", "mutual_information"].numpy() for one in (result, second)]
    by_sampling = np.hypot(*sds) / math.log(result.n_anchors)
    np.testing.assert_allclose(found["series"][KEY]["p"], by_sampling, atol=1e-6)
    table = result.to_pandas(means=False).query("metric == 'mutual_information' and label_set == 'input_bigram'")
    expected = np.sqrt(2 * table.sd**2 + by_sampling**2)
    np.testing.assert_allclose(found["series"][KEY]["s"], expected, atol=1e-6)
    exact = differences(whole, whole)["series"]["entropy|"]
    assert found["series"]["entropy|"] == exact


def test_another_corpus_or_seed_is_another_sample(result):
    for key, change in (("corpus", {"sha256": "1" * 64}), ("settings", {"seed": 1})):
        other = dataclasses.replace(result, info={**result.info, key: {**result.info[key], **change}})
        assert differences(result, other)["same_labels"] is False


def test_a_comparison_tells_each_results_sample(whole, result):
    html = without_scripts(comparison_page([result, whole], ["one", "other"]))
    assert "<summary>one</summary>" in html
    assert "<summary>other</summary>" not in html
    assert html.count("labels were followed") == 2


# --- the terminal and notebooks --------------------------------------------------------------------------


def test_the_terminals_table_ends_with_a_line_on_the_sample(whole, result, capsys):
    file = io.StringIO()
    print_table(result, file)
    table = pd.read_csv(io.StringIO(file.getvalue()), sep=r"\s+")
    assert len(table) == len(result.rows)  # what is piped stays a table
    said = (
        "labels were sampled in input_bigram, output_bigram: the standard error of information by that is at most "
        f"{most(result, 'mutual_information'):.4f} log m"
    )
    of_mean, of_anchors, of_bits, of_chance, *of_shares, of_sample = capsys.readouterr().err.splitlines()
    assert of_mean.startswith("mean of layers 1–3: entropy 0.")
    assert [of_anchors, of_bits] == reading_lines(result)
    assert all(line.startswith("shares of the ceiling, ") for line in of_shares)
    assert of_chance.startswith("topic: highest in ")
    assert of_sample == said
    print_table(whole, io.StringIO())
    assert "sampled" not in capsys.readouterr().err
    terminal = io.StringIO()
    with mock.patch.object(terminal, "isatty", return_value=True), mock.patch.dict("os.environ", {"COLUMNS": "200"}):
        print_table(result, terminal)
    assert said in terminal.getvalue()


def test_a_line_on_a_sample_of_which_nothing_is_known(result):
    nothing = with_nan(sampled(result, "input_bigram"), "conditional_entropy_sampling_sd")
    assert sample_line(nothing) == (
        "labels were sampled in input_bigram: the standard error of information by that is not known; too few were "
        "followed in input_bigram: raise --label-rows"
    )


def test_a_notebook_tells_of_the_sample(whole, result):
    assert "8,123 of 193,456 labels were followed" in result._repr_html_()
    assert "followed" not in whole._repr_html_()
