"""Pages, figures and the terminal's table: what they say and refuse."""

import io
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from softh_probe import ProbeResult
from softh_probe.analysis.comparable import check_comparable
from softh_probe.cli import main
from softh_probe.errors import InputError
from softh_probe.report.compare import differences
from softh_probe.report.findings import findings
from softh_probe.report.page import sweep_page, write_report
from softh_probe.report.page_data import embedded_json, run_data
from softh_probe.report.sweep_figures import layers_by_step, metric_by_step, plane_through_training
from softh_probe.report.sweep_files import read_sweep
from softh_probe.report.terminal import print_table
from tests.helpers.influences import documents, planted, result_of_documents
from tests.helpers.models import tiny_llama
from tests.helpers.probes import NAMES
from tests.helpers.report_data import HOSTILE, page_data, result_of, save, sweep_folder, unpacked


@pytest.fixture(scope="module")
def result():
    return result_of(tiny_llama(), labels=NAMES[:4])


def test_a_page_holds_the_results_values_in_units_of_log_m(result, tmp_path):
    page = write_report([save(result, tmp_path / "a")], tmp_path / "a")
    assert page == tmp_path / "a" / "report.html"
    series = page_data(page)["runs"][0]["series"]
    table = result.to_pandas(means=False)
    for (metric, label_set), part in table.groupby(["metric", "label_set"]):
        shown = series[f"{metric}|{label_set}"]
        assert shown["v"] == pytest.approx(part.value.tolist(), abs=1e-6, nan_ok=True)
        np.testing.assert_allclose(np.array(shown["s"], float), part.sd, atol=1e-6)
    assert len(series) == len(table.groupby(["metric", "label_set"]))


def test_a_page_fetches_nothing_and_runs_only_its_own_scripts(result, tmp_path):
    html = write_report([save(result, tmp_path)], tmp_path).read_text()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', html)[1]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy.split("script-src")[1].split(";")[0]
    own = re.sub(r"<script\b.*?</script>", "", html, flags=re.DOTALL)
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", own)


def test_figures_lie_beside_the_page_as_png_and_svg(result, tmp_path):
    write_report([save(result, tmp_path)], tmp_path)
    for name in ("overview", "entropy", "information", "chance", "optimality", "plane", "entropy_by_topic"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert ET.parse(tmp_path / f"{name}.svg").getroot().tag.endswith("svg")


def test_text_from_data_is_text_everywhere(tmp_path):
    hostile = result_of(tiny_llama(), labels=["input_unigram"], topics=[HOSTILE, "<b>bold</b>", "$x^2$\n{", "%{x}"])
    hostile.info["model"] = {"model": f"/models/{HOSTILE.replace('/', '')}", "revision": "<img src=x onerror=alert(2)>"}
    hostile.info["warnings"] = [HOSTILE]
    html = write_report([save(hostile, tmp_path)], tmp_path).read_text()
    assert "<script>alert" not in html
    assert "<img src=x" not in html
    assert html.count("&lt;script&gt;alert") >= 2
    assert HOSTILE in page_data(tmp_path / "report.html")["runs"][0]["labels"][0]["labels"]
    shown = hostile._repr_html_()
    assert "<script>" not in shown
    assert "<img src=x" not in shown


def test_embedded_json_reads_back_and_holds_no_markup():
    value = {"a": ["</script><!--", "&\u2028\u2029", "é\ud800", None, 1.5]}
    text = embedded_json(value)
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text)["a"][:2] == value["a"][:2]
    with pytest.raises(ValueError, match="JSON compliant"):
        embedded_json(float("nan"))


def test_a_result_without_labels_and_with_one_anchor_set_has_a_page(tmp_path):
    entropy_only = result_of(tiny_llama(), labels=(), anchor_sets=1)
    html = write_report([save(entropy_only, tmp_path)], tmp_path).read_text()
    assert 'id="information"' not in html
    assert {p.name for p in tmp_path.glob("*.svg")} == {"overview.svg", "entropy.svg"}
    assert entropy_only._repr_html_()


@pytest.mark.parametrize("figure", ["overview", "entropy", "information", "chance", "optimality", "plane", "topic"])
@pytest.mark.parametrize("unit", ["efficiency", "bits"])
def test_plot_gives_a_figure_that_notebooks_show(result, figure, unit):
    drawn = result.plot(figure, unit)
    assert isinstance(drawn, Figure)
    assert drawn._repr_png_().startswith(b"\x89PNG")


def test_the_figures_show_the_results_values(result):
    line = result.plot("entropy", "nats").axes[0].lines[0]
    table = result.to_pandas("nats", means=False)
    np.testing.assert_allclose(line.get_ydata(), table[table.metric == "entropy"].value)
    points = result.plot("plane").axes[0].collections[0].get_offsets()
    wide = result.to_pandas()
    wide = wide[wide.metric == "mutual_information"].pivot_table(index="layer", columns="label_set", values="value")
    np.testing.assert_allclose(points[:, 0], wide["input_unigram"])
    np.testing.assert_allclose(points[:, 1], wide["output_unigram"])


def test_plot_names_the_figures_there_are(result):
    with pytest.raises(InputError, match=r"figure: expected one of overview, .*topic, or a metric, got 'pie'"):
        result.plot("pie")
    with pytest.raises(InputError, match="unit: expected one of"):
        result.plot("plane", "shannons")


# --- side by side ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_results_of_other_text_or_other_anchors_are_refused_unless_allowed(tmp_path, capsys):
    one = save(result_of(tiny_llama(), labels=NAMES[:2]), tmp_path / "one")
    other_text = save(result_of(tiny_llama(), labels=NAMES[:2], corpus="f" * 64), tmp_path / "text")
    other_seed = save(result_of(tiny_llama(), labels=NAMES[:2], seed=7), tmp_path / "seed")
    unknown = save(result_of(tiny_llama(), labels=NAMES[:2], corpus=None), tmp_path / "unknown")
    for other, what in (
        (other_text, "their corpus"),
        (other_seed, "their anchors (seed 0 and 7)"),
        (unknown, "record"),
    ):
        out = tmp_path / f"report_{other.name}"
        assert main(["report", str(one), str(other), "--out", str(out)]) == 2
        error = capsys.readouterr().err
        assert what in error
        assert "--allow-different" in error
        assert not (out / "report.html").exists()
        assert main(["report", str(one), str(other), "--out", str(out), "--allow-different"]) == 0
        html = (out / "report.html").read_text()
        assert html.index('class="warnings"') < html.index("<main")
        assert "not comparable" in html


def test_models_of_other_widths_are_compared_when_their_anchors_are_drawn_alike(tmp_path):
    narrow = result_of(tiny_llama(), labels=NAMES[:2])
    wide = result_of(tiny_llama(hidden_size=32, num_hidden_layers=5), labels=NAMES[:2])
    notes = check_comparable([narrow, wide], ["narrow", "wide"])
    assert len(notes) == 1
    assert "24 and 32 wide" in notes[0]
    more_anchors = result_of(tiny_llama(hidden_size=32), labels=NAMES[:2], n_anchors=30)
    with pytest.raises(InputError, match="n_anchors 20 and 30"):
        check_comparable([narrow, more_anchors], ["narrow", "wide"])


def test_differences_and_their_spread_against_numpy():
    torch.manual_seed(1)
    one, other = (result_of(model, labels=NAMES[:2]) for model in (tiny_llama(), tiny_llama(initializer_range=0.4)))
    found = differences(one, other)
    assert found["paired"]
    a, b = ({(s, m): v.numpy() for s, m, v in r.metrics()} for r in (one, other))
    for metric, name in (("mutual_information", "input_unigram"), ("entropy", "")):
        x, y = (values[name, metric] / np.log(20) for values in (a, b))
        shown = found["series"][f"{metric}|{name}"]
        np.testing.assert_allclose(shown["d"], (y - x).mean(axis=1), atol=1e-6)
        np.testing.assert_allclose(shown["p"], (y - x).std(axis=1, ddof=1), atol=1e-6)
        spread = np.sqrt(x.std(axis=1, ddof=1) ** 2 + y.std(axis=1, ddof=1) ** 2)
        np.testing.assert_allclose(shown["s"], spread, atol=1e-6)


def test_models_of_other_depths_are_compared_at_the_same_relative_depth():
    shallow, deep = (result_of(tiny_llama(num_hidden_layers=n), labels=()) for n in (3, 7))  # 5 and 9 rows
    found = differences(shallow, deep)
    assert found["interpolated"]
    h = [r.metrics()[0][2].mean(dim=1).numpy() / np.log(20) for r in (shallow, deep)]
    np.testing.assert_allclose(found["series"]["entropy|"]["d"], h[1][::2] - h[0], atol=1e-6)


# --- sweeps ------------------------------------------------------------------------------------------------


def test_a_sweeps_page_lists_failures_and_duplicates_and_holds_every_value(tmp_path):
    folder = sweep_folder(tmp_path / "sweep", n_checkpoints=5)
    page = write_report([folder], folder)
    html = page.read_text()
    assert "5 checkpoints" not in html.split("<main")[0]  # five done, one failed
    assert "6 checkpoints: 5 done, 1 failed" in html
    assert "CUDA out of &lt;memory&gt;" in html
    assert "step0 = step1" in html
    data = page_data(page)
    table = pd.read_parquet(folder / "sweep.parquet").dropna(subset="layer")
    part = table[(table.metric == "mutual_information") & (table.label_set == "input_unigram")]
    shown = unpacked(data["series"]["mutual_information|input_unigram"]["v"])
    steps = [c["step"] for c in data["checkpoints"]]
    assert steps == sorted(steps)
    for step, values in zip(steps, shown, strict=True):
        np.testing.assert_allclose(values, part[part.step == step].sort_values("layer").value, atol=1e-5)
    for name in ("entropy", "information", "entropy_by_step", "information_by_step", "plane"):
        assert (folder / f"{name}.png").is_file()
        assert (folder / f"{name}.svg").is_file()


def test_a_sweeps_figures_show_the_tables_values(tmp_path):
    table = pd.read_parquet(sweep_folder(tmp_path / "sweep", n_checkpoints=5) / "sweep.parquet").sort_values("step")
    by_step = metric_by_step(table, "mutual_information", layers=[2])
    for axes, name in zip(by_step.axes, ("input_unigram", "output_unigram", "topic"), strict=False):
        part = table[(table.metric == "mutual_information") & (table.label_set == name) & (table.layer == 2)]
        line = axes.lines[0]
        np.testing.assert_allclose(line.get_ydata(), part.value)
        assert list(line.get_xdata()) == list(part.step)
    last = (
        table[(table.metric == "mutual_information") & (table.step == table.step.max())]
        .dropna(subset="layer")
        .sort_values("layer")
    )
    path = plane_through_training(table).axes[0].lines[-3]  # the last checkpoint's, before its mark and the diagonal
    np.testing.assert_allclose(path.get_xdata(), last[last.label_set == "input_unigram"].value)
    np.testing.assert_allclose(path.get_ydata(), last[last.label_set == "output_unigram"].value)
    cells = layers_by_step(table, "entropy").axes[0].images[0].get_array()
    np.testing.assert_allclose(cells[3], table[(table.metric == "entropy") & (table.layer == 3)].value)


def test_checkpoints_without_steps_are_drawn_one_by_one(tmp_path):
    table = pd.read_parquet(sweep_folder(tmp_path / "sweep", n_checkpoints=3) / "sweep.parquet").assign(step=None)
    assert list(metric_by_step(table, "entropy").axes[0].lines[0].get_xdata()) == [0, 1, 2]
    assert plane_through_training(table)._repr_png_()


@pytest.mark.slow
def test_a_page_of_200_checkpoints_stays_under_8_mb(tmp_path):  # scripts/measure_page.py times pages
    folder = sweep_folder(tmp_path / "sweep", n_checkpoints=200, layers=30, labels=NAMES)
    sweep = read_sweep(folder)
    assert len(sweep.drawn) == 200
    assert len(sweep_page(sweep).encode()) < 8e6


@pytest.mark.slow
def test_a_page_of_30_layers_and_8_label_sets_stays_under_6_mb(tmp_path):
    deep = result_of(tiny_llama(num_hidden_layers=28), labels=NAMES)
    page = write_report([save(deep, tmp_path)], tmp_path)
    assert len(deep.rows) == 30
    assert page.stat().st_size < 6e6


# --- the command line ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["missing"], "missing: holds no result"),
        (["."], "holds no result"),
        ([], "report"),
        (["a", "--wat", "1"], "valid are: folders, out, allow_different, groups"),
    ],
)
def test_what_report_cannot_do_is_said_in_one_line(arguments, error, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *arguments]) == 2
    said = capsys.readouterr().err
    assert error in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_report_prints_the_pages_path(result, tmp_path, capsys):
    folder = save(result, tmp_path / "a")
    assert main(["report", str(folder)]) == 0
    assert Path(capsys.readouterr().out.strip()) == folder / "report.html"
    assert ProbeResult.load(folder).rows == result.rows


# --- the terminal ------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def printed(result, monkeypatch, *, columns=100, **environment):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    terminal = Terminal()
    print_table(result, terminal)
    return terminal.getvalue()


def test_a_terminal_gets_bars_in_colour_and_a_pipe_gets_plain_columns(result, monkeypatch):
    coloured = printed(result, monkeypatch)
    assert "\x1b[" in coloured
    assert "█" in coloured
    without = printed(result, monkeypatch, NO_COLOR="1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", without)
    assert "█" in without
    pipe = io.StringIO()
    print_table(result, pipe)
    assert pipe.getvalue().isascii()
    table = pd.read_csv(io.StringIO(pipe.getvalue()), sep=r"\s+")
    entropy = result.to_pandas(means=False).query("metric == 'entropy'")
    np.testing.assert_allclose(table.entropy, entropy.value, atol=5e-5)


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
def test_lines_fit_the_terminal_and_no_value_is_lost(columns, monkeypatch):
    result = result_of(tiny_llama(), labels=NAMES)
    text = printed(result, monkeypatch, columns=columns, NO_COLOR="1")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert max(map(len, plain.splitlines())) <= columns
    table, _ = plain.split("topic: highest in ")
    assert len(re.findall(r"\b[01]\.\d{4}\b", table)) == len(result.rows) * (1 + len(result.label_sets))


def test_a_heat_map_shows_the_most_frequent_labels_and_says_of_how_many():
    topics = [f"topic {i}" for i in range(60)]
    many = result_of(tiny_llama(), labels=["input_unigram"], topics=topics)
    shown = run_data(many, "x")["labels"][0]
    assert shown["n_labels"] == len(set(many.conditional_entropy("topic").label))
    assert len(shown["labels"]) == min(40, shown["n_labels"])
    assert shown["counts"] == sorted(shown["counts"], reverse=True)


def finding_texts(result):
    return [finding.text for finding in findings(result)]


def test_a_finding_names_the_highest_layer_only_where_that_is_beyond_noise():
    base = planted(planted(documents(200), 0, 0.4), 3, 0.4)
    assert "most in layer." in finding_texts(result_of_documents(base))[1]
    mass = base["mass"].copy()
    for layer, change in ((1, 0.3), (2, -0.3)):
        mass[:, layer] = documents(200, change=change)["mass"][:, 1]
    alike = finding_texts(result_of_documents({**base, "mass": mass}))[1]
    assert re.search(
        r"highest in layer\.\d \(0\.\d+ bits\), not distinguishable from layer\.\d \(0\.\d+ ± 0\.\d+ bits\)", alike
    )
    for text in finding_texts(result_of_documents(base, with_intervals=False)):
        assert text.count("noise over documents was not measured") == 1
