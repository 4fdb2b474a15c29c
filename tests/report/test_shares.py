"""Shares of the ceiling that orders of n-grams add: the figure, the page, and the words."""

import io

import numpy as np
import pytest
import torch

from softh_probe import SoftEntropyProbe
from softh_probe.report.figures import figures_of
from softh_probe.report.findings import findings
from softh_probe.report.page import write_report, write_run_report
from softh_probe.report.share_figures import LEFT, shares_by_layer
from softh_probe.report.share_words import share_lines, share_words
from softh_probe.report.terminal import print_table
from tests.helpers.models import tiny_llama
from tests.helpers.probes import NAMES
from tests.helpers.report_data import page_data, result_of, save

LABELS = [*NAMES[:2], "input_bigram", "input_trigram", "output_bigram"]


@pytest.fixture(scope="module")
def result(request):
    return result_of(request.getfixturevalue("module_model"), labels=LABELS)


@pytest.fixture(scope="module")
def module_model():
    from tests.helpers.models import tiny_llama

    return tiny_llama()


def shares(result, suffix, levels):
    table = result.to_pandas(means=False)
    table = table[table.metric == f"information_share{suffix}"]
    return np.array([table[table.label_set == level].value for level in levels])


def test_the_figure_stacks_each_direction_raw_and_corrected_up_to_the_ceiling(result):
    figure = shares_by_layer(result)
    panels = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left") for axes in panels] == [
        "input, raw",
        "output, raw",
        "input, corrected for chance",
        "output, corrected for chance",
    ]
    edges = np.array([line.get_ydata() for line in panels[0].lines[:-1]])  # the last is the ceiling
    expected = shares(result, "", [f"input_{order}" for order in ("unigram", "bigram", "trigram")]).cumsum(axis=0)
    assert np.allclose(edges, expected, rtol=0, atol=1e-12)
    assert panels[0].lines[-1].get_ydata() == [1, 1]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [LEFT, "trigram", "bigram", "unigram"]


def test_only_results_with_unigrams_have_the_figure(module_model):
    assert "shares" in figures_of(result_of(module_model, labels=["output_unigram"]))
    assert "shares" not in figures_of(result_of(module_model, labels=["output_bigram"]))


def test_the_page_has_what_the_figure_needs_and_the_files_are_written(result, tmp_path):
    page = write_run_report(result, tmp_path)
    assert {"shares.png", "shares.svg"} <= {path.name for path in tmp_path.iterdir()}
    series = page_data(page)["runs"][0]["series"]
    parts = [series[f"information_share|input_{order}"]["v"] for order in ("unigram", "bigram", "trigram")]
    total = np.array([*parts, series["residual|input"]["v"]]).sum(axis=0)
    assert np.allclose(total, 1, atol=5e-6)  # rounded to the digits of a page
    assert 'data-chart="shares"' in page.read_text()


def test_a_page_without_unigrams_or_of_several_results_has_no_such_section(module_model, result, tmp_path):
    page = write_run_report(result_of(module_model, labels=["input_bigram"]), tmp_path / "one")
    assert 'data-chart="shares"' not in page.read_text()
    folders = [save(result, tmp_path / name) for name in "ab"]
    assert 'data-chart="shares"' not in write_report(folders, tmp_path / "two").read_text()


def test_words_name_the_layer_where_longer_n_grams_add_the_most(result):
    levels = ["input_unigram", "input_bigram", "input_trigram"]
    of_levels = shares(result, "_corrected", levels)
    added = of_levels[1:].sum(axis=0)
    most = int(added.argmax())
    words = share_words(result, "input")
    assert words.layer == result.rows[most]
    assert words.added == f"{100 * added[most]:+.0f}%".replace("-", "−")
    assert words.shares.startswith(f"unigrams {100 * of_levels[0, most]:.0f}%, bigrams ")
    assert words.shares.endswith(f"{100 * (1 - of_levels[:, most].sum()):.0f}% left, corrected for chance")
    assert f"shares of the ceiling, input n-grams, {words.layer}: {words.shares}" in share_lines(result)


def test_findings_and_the_terminal_say_it_where_several_orders_were_measured(result, module_model, capsys):
    found = {finding.question: finding for finding in findings(result)}
    assert found["How much do longer contexts add?"].answer.startswith("input ")
    print_table(result, io.StringIO())
    assert capsys.readouterr().err.count("shares of the ceiling, ") == 2
    short = result_of(module_model, labels=NAMES[:2])
    assert "How much do longer contexts add?" not in {finding.question for finding in findings(short)}
    print_table(short, io.StringIO())
    assert "shares" not in capsys.readouterr().err


def test_only_the_residual_stream_is_told_where_there_are_other_sites():
    names = ["input_unigram", "input_bigram", "output_unigram", "output_bigram"]
    results = []
    for sites in (("residual",), ("attention", "residual")):
        model = tiny_llama()
        with SoftEntropyProbe(model, labels=names, sites=sites) as probe:
            for seed in range(4):
                model(input_ids=torch.randint(12, (4, 30), generator=torch.Generator().manual_seed(seed)))
        results.append(probe.result())
    assert share_lines(results[0]) == share_lines(results[1]) != []
