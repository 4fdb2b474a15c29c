"""Bins of positions in figures, on the page and in words."""

import io

import numpy as np
import pytest

from softh_probe.errors import InputError
from softh_probe.report.figures import figures_of
from softh_probe.report.findings import findings
from softh_probe.report.page import write_report, write_run_report
from softh_probe.report.position_figures import information_by_position
from softh_probe.report.position_words import over_bins, position_line
from softh_probe.report.terminal import print_table
from tests.helpers.corpora import corpus_of
from tests.helpers.models import tiny_llama
from tests.helpers.position_bins import planned_in_bins, tokens_of_lengths
from tests.helpers.probes import run_planned
from tests.helpers.report_data import page_data, result_of, save

LABELS = ["input_unigram", "output_unigram", "column:topic"]


@pytest.fixture(scope="module")
def result():
    docs = tokens_of_lengths([3, 20, 20, 20] * 8)
    corpus = corpus_of(docs, topic=["sea", "sky", "land", None] * 8)
    found = run_planned(tiny_llama(), corpus, LABELS, 80, plan=planned_in_bins(corpus, LABELS, 80)).result()
    found.info["model"] = {"model": "tiny", "revision": None}
    found.info["corpus"] = {"sha256": "0" * 64, "data": "texts.jsonl"}
    return found


def corrected(result, label_set):
    table = result.by_position()
    table = table[(table.metric == "mutual_information_corrected") & (table.label_set == label_set)]
    return table.pivot(index="position", columns="name", values="value")


def test_the_figure_has_a_panel_a_label_set_and_a_line_a_layer(result):
    figure = information_by_position(result)
    panels = {axes.get_title(loc="left").split(",")[0]: axes for axes in figure.axes if axes.get_title(loc="left")}
    assert [*panels] == ["input unigram", "output unigram", "column:topic"]
    expected = corrected(result, "output_unigram")
    axes = panels["output unigram"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "1", "2-3", "4-7", "8-15", "16-31"]
    for line, layer in zip(axes.lines, result.rows, strict=True):
        values = expected[layer].reindex(["0", "1", "2-3", "4-7", "8-15", "16-31"])
        np.testing.assert_array_equal(line.get_ydata(), values)
    assert "by_position" in figures_of(result)
    assert len(result.plot("by_position", unit="bits").axes) >= 3


def test_a_result_without_bins_has_no_such_figure(model):
    other = result_of(model, labels=["input_unigram"])
    assert "by_position" not in figures_of(other)
    with pytest.raises(InputError, match="by_position: the result has no bins"):
        other.plot("by_position")


def test_the_page_has_the_values_of_each_bin(result, tmp_path):
    page = write_run_report(result, tmp_path)
    assert {"by_position.png", "by_position.svg"} <= {path.name for path in tmp_path.iterdir()}
    found = page_data(page)["runs"][0]["by_position"]
    assert found["bins"] == ["0", "1", "2-3", "4-7", "8-15", "16-31"]
    assert found["positions"] == [result.bins[name].info["positions"] for name in found["bins"]]
    expected = corrected(result, "input_unigram").reindex(found["bins"])[result.rows].to_numpy()
    shown = np.array(found["series"]["mutual_information_corrected|input_unigram"], dtype=float)
    np.testing.assert_allclose(shown, expected, atol=1e-6)
    assert 'data-chart="by-position"' in page.read_text()


def test_pages_of_several_results_and_of_others_have_no_such_section(result, model, tmp_path):
    folders = [save(result, tmp_path / name) for name in "ab"]
    page = write_report(folders, tmp_path / "two")
    assert 'data-chart="by-position"' not in page.read_text()
    page = write_run_report(result_of(model, labels=["input_unigram"]), tmp_path / "one")
    assert 'data-chart="by-position"' not in page.read_text()


def test_a_line_names_the_layer_that_changes_most(result, capsys):
    of_bins = over_bins(result.by_position(), "input_unigram").values
    known = of_bins.apply(lambda column: column.dropna())
    change = known.apply(lambda column: abs(column.iloc[-1] - column.iloc[0]))
    layer = change.idxmax()
    line = position_line(result)
    assert line.startswith(f"by position: information about input_unigram in {layer}, corrected for chance: ")
    for value, name in ((known[layer].iloc[0], known.index[0]), (known[layer].iloc[-1], known.index[-1])):
        bits = value * np.log2(result.n_anchors)
        of_all = result.bins[name].to_pandas("bits").query("metric == 'label_entropy' and label_set == 'input_unigram'")
        assert f"{bits:.2f} of {of_all.value.iloc[0]:.2f} bits at {name}" in line
    print_table(result, io.StringIO())
    assert line in capsys.readouterr().err
    assert "Does it grow with the position?" in {finding.question for finding in findings(result)}
