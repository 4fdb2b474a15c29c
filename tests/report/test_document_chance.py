"""What chance gives for labels of whole documents, and the four kinds of spread: on pages, terminals and in README."""

import io
import math
import re
from html import unescape
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest

from softh_probe.report.bit_words import bits, reading_lines
from softh_probe.report.document_chance import chance_lines, document_chance
from softh_probe.report.findings import findings
from softh_probe.report.mean_words import mean_lines
from softh_probe.report.page import comparison_page, run_page, sweep_page, write_report
from softh_probe.report.spreads import HEADINGS, SPREADS, html_of, measured
from softh_probe.report.sweep_files import read_sweep
from softh_probe.report.terminal import print_table
from tests.helpers.models import tiny_llama
from tests.helpers.probes import NAMES
from tests.helpers.report_data import page_data, result_of, sampled, save, sweep_folder, with_chance

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def without():
    result = result_of(tiny_llama(), labels=NAMES[:2])
    for name in ("null_information_sd", "p_value"):
        result.tensors.pop(name, None)  # as results of before
    return result


@pytest.fixture(scope="module")
def result(without):
    return with_chance(without)


def visible(html: str) -> str:
    return unescape(re.sub(r"<(script|style)>.*?</\1>", "", html, flags=re.DOTALL))


def said_of(result) -> str:
    """The information of the most informative layer beside chance, from the tidy table."""
    table = result.to_pandas("bits", means=False).query("label_set == 'topic'").set_index(["metric", "name"])
    layer = table.loc["mutual_information"].value.idxmax()
    raw, null, sd = (table.loc[f"mutual_information{end}"].value[layer] for end in ("", "_null", "_null_sd"))
    p = table.loc["mutual_information"].p_value[layer]
    of_all = table.loc["label_entropy"].value[layer]
    raw, null, sd = (written(value) for value in (raw, null, sd))
    return f"{layer}: {raw} of {of_all:.2f} bits, by chance {null} ± {sd} (p = {p:.2g})"


def written(value: float) -> str:
    return bits(value * math.log(2))


def finding(result):
    (found,) = (found for found in findings(result) if "topic" in found.question)
    return found


def test_a_finding_says_the_information_beside_chance(result, without):
    found = finding(result)
    assert found.answer == "no more than chance"
    assert said_of(result) in found.text
    n = len(result.rows)
    assert found.text.endswith(f"; p is below 0.05 in 0 of {n} layers, where one of 20 is by chance.")
    known = finding(with_chance(result, p_values=(0.001, 0.04, 0.2)))
    assert "→" in known.answer
    assert f"p is below 0.05 in 2 of {n} layers" in known.text
    assert "would come by chance alone" in finding(without).text


def test_small_shares_keep_a_digit(result):
    assert document_chance(result, "topic").n_beyond == 0
    small = with_chance(result, p_values=(0.001,))
    small.tensors["conditional_entropy"] = small.tensors["labelled_entropy"] * (1 - 0.002)
    assert re.fullmatch(r"0\.00\d\d → 0\.00\d\d of 1\.58 bits", finding(small).answer)


def test_other_label_sets_have_no_such_chance(result):
    assert document_chance(result, "input_unigram") is None
    assert [line.split(":")[0] for line in chance_lines(result)] == ["topic"]


def test_a_page_shows_sd_and_p_and_says_what_they_are(result, without, tmp_path):
    page = write_report([save(result, tmp_path)], tmp_path)
    series = page_data(page)["runs"][0]["series"]
    table = result.to_pandas(means=False).query("label_set == 'topic'")
    raw = table[table.metric == "mutual_information"]
    assert series["mutual_information|topic"]["p"] == pytest.approx(raw.p_value.tolist())
    null_sd = table[table.metric == "mutual_information_null_sd"].value
    assert series["mutual_information_null_sd|topic"]["v"] == pytest.approx(null_sd.tolist(), abs=1e-6)
    assert [key for key, shown in series.items() if "p" in shown] == ["mutual_information|topic"]
    text = visible(page.read_text())
    assert said_of(result) in text
    assert "the shade then has a band" in text
    assert "p is the share of relabelings" in text
    before = visible(run_page(without))
    assert "the shade then has a band" not in before
    assert "p is the share of relabelings" not in before


def test_the_figure_of_chance_has_a_band_over_relabelings(result, without):
    def n_bands(drawn):
        return sum(len(axes.collections) for axes in drawn.plot("chance").axes)

    assert n_bands(result) == n_bands(without) + 1


def test_the_terminal_and_notebooks_say_it_below_the_table(result, without, capsys):
    file = io.StringIO()
    print_table(result, file)
    assert len(pd.read_csv(io.StringIO(file.getvalue()), sep=r"\s+")) == len(result.rows)
    error = capsys.readouterr().err
    assert error == "".join(
        f"{line}\n" for line in [*mean_lines(result), *reading_lines(result), *chance_lines(result)]
    )
    assert f"topic: highest in {said_of(result)}; p is below" in error
    terminal = io.StringIO()
    with mock.patch.object(terminal, "isatty", return_value=True), mock.patch.dict("os.environ", {"COLUMNS": "250"}):
        print_table(result, terminal)
    assert said_of(result) in terminal.getvalue()
    assert said_of(result) in result._repr_html_()
    print_table(without, io.StringIO())
    assert capsys.readouterr().err.splitlines() == [*mean_lines(without), *reading_lines(without)]


def test_a_label_set_without_positions_is_no_error(result):
    nothing = with_chance(result)
    nothing.tensors["conditional_entropy"][:, nothing.label_sets.index("topic")] = np.nan
    assert chance_lines(nothing) == []
    assert finding(nothing).answer == "nothing"
    run_page(nothing)


# --- the four kinds of spread ----------------------------------------------------------------------------


def test_readme_and_pages_explain_the_four_kinds_in_the_same_words(result, tmp_path):
    lines = [f"| {' | '.join(HEADINGS)} |", "|---|---|---|---|"]
    lines += [f"| {s.kind} | {s.names} | {s.says} | {s.matters} |" for s in SPREADS]
    assert "\n".join(lines) in README.read_text(encoding="utf-8")
    sweep = sweep_page(read_sweep(sweep_folder(tmp_path / "sweep", n_checkpoints=3)))
    for html in (run_page(result), comparison_page([result, result], ["a", "b"]), sweep):
        assert "Four kinds of spread" in html
        for spread in SPREADS:
            for text in (spread.names, spread.says, spread.matters):
                assert f">{html_of(text)}</td>" in html
    assert "not measured here" not in sweep


def test_a_page_says_which_kinds_were_not_measured(result, without):
    one = result_of(tiny_llama(), labels=NAMES[:1], anchor_sets=1)
    for name in ("null_information_sd", "p_value"):
        one.tensors.pop(name, None)
    assert measured([one]) == set()
    assert measured([without]) == {"anchors"}
    assert measured([result, one]) == {"anchors", "chance"}
    assert measured([sampled(without, "input_unigram")]) == {"anchors", "sampled labels"}
    rows = re.findall(r'<th scope="row">([^<]+)(.*?)</th>', run_page(result).split('<section id="glossary">')[0])
    assert [(kind, "not measured here" in rest) for kind, rest in rows] == [
        *(("anchors", False), ("sampled labels", True)),
        *(("documents", True), ("chance", False)),
    ]
