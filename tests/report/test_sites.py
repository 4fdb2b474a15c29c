"""Results of several sites: tables, figures, pages, findings and comparisons keep the rows of a site together."""

import io
import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from softh_probe import ProbeResult
from softh_probe.analysis.alignment import align, interpolated
from softh_probe.analysis.comparable import check_anchors, check_comparable, notes_on, same_anchors
from softh_probe.analysis.paired import compare_results, comparison_notes
from softh_probe.analysis.sites import common_lines, lines_of, of_site
from softh_probe.errors import InputError
from softh_probe.layer_places import place_layers
from softh_probe.report.compare import differences
from softh_probe.report.comparison_table import compare_folders
from softh_probe.report.figures import figures_of
from softh_probe.report.findings import findings
from softh_probe.report.page import run_page, write_report
from softh_probe.report.sweep_figures import layers_by_step
from softh_probe.report.sweep_files import read_sweep
from softh_probe.report.terminal import print_table
from softh_probe.sweep import collect
from tests.helpers.models import tiny_llama
from tests.helpers.probes import NAMES
from tests.helpers.report_data import result_of, unpacked
from tests.helpers.sweeps import collected_folder

ALL = "residual,attention,mlp,attention_heads"


def result(sites=ALL, spread=0.5):
    """Of models with other weights, where the spread of these differs."""
    return result_of(tiny_llama(initializer_range=spread), labels=NAMES[:2], sites=sites)


@pytest.fixture(scope="module")
def several():
    return result()


def page_data(html):
    return json.loads(re.search(r'id="data">(.*?)</script>', html)[1])


def values(result, row, metric, label_set=""):
    table = result.to_pandas()
    return table[(table.name == row) & (table.metric == metric) & (table.label_set == label_set)].value.item()


def test_a_site_is_a_result_of_its_own(several):
    assert several.sites == ["attention", "attention_heads", "mlp", "residual"]
    assert lines_of(several) == ["residual", "attention", "mlp"]
    mlp = of_site(several, "mlp")
    assert mlp.rows == ["layer.1.mlp", "layer.2.mlp", "layer.3.mlp"]
    assert mlp.places.indices == (1, 2, 3)
    assert mlp.places.last == 4
    table = several.to_pandas()
    expected = table[table.site == "mlp"].reset_index(drop=True)
    pd.testing.assert_frame_equal(mlp.to_pandas(), expected)
    residual = of_site(several, "residual").to_pandas()
    pd.testing.assert_frame_equal(residual, result("residual").to_pandas())
    with pytest.raises(InputError, match="site: expected any of attention"):
        of_site(several, "router")


def test_results_are_stored_with_their_sites(several, tmp_path):
    several.save(tmp_path)
    assert ProbeResult.load(tmp_path).sites == several.sites
    assert pd.read_parquet(tmp_path / "layers.parquet").site.unique().tolist()[:2] == ["residual", "attention"]


def test_modules_that_are_named_like_sites_are_no_sites():
    places = place_layers(["layer.1.mlp", "layer.2.mlp"], {"n_blocks": None})
    assert places.sites == ["residual", "residual"]
    assert places.indices == (0, 1)


# --- pages and figures ----------------------------------------------------------------------------------------


def test_a_page_has_a_run_for_each_site_and_cells_for_each_head(several):
    data = page_data(run_page(several))
    assert data["kind"] == "sites"
    assert [run["title"] for run in data["runs"]] == ["residual", "attention", "mlp"]
    assert data["runs"][1]["rows"] == ["layer.1.attention", "layer.2.attention", "layer.3.attention"]
    assert data["runs"][1]["layers"] == [1, 2, 3]
    (heads,) = data["heads"]
    assert heads["layers"] == [1, 2, 3]
    cells = np.array(heads["series"]["mutual_information|topic"])
    assert cells.shape == (4, 3)
    for head, layer in ((0, 1), (3, 2), (2, 3)):
        expected = values(several, f"layer.{layer}.head.{head}", "mutual_information", "topic")
        assert cells[head, layer - 1] == pytest.approx(expected, abs=1e-6)


def test_a_page_of_one_site_is_as_ever():
    one = result("residual")
    data = page_data(run_page(one))
    assert data["kind"] == "run"
    assert "heads" not in data
    assert 'id="heads"' not in run_page(one)


def test_heads_alone_are_drawn_as_their_mean_and_said_to_be(several):
    heads = of_site(several, "attention_heads")
    data = page_data(run_page(heads))
    assert data["runs"][0]["rows"] == [f"layer.{i}.head.mean" for i in (1, 2, 3)]
    expected = np.mean([values(several, f"layer.2.head.{h}", "entropy") for h in range(4)])
    assert data["runs"][0]["series"]["entropy|"]["v"][1] == pytest.approx(expected, abs=1e-6)
    assert figures_of(heads) == ["heads"]


def test_figures_draw_one_site_at_a_time(several):
    assert {"sites", "heads"} <= set(figures_of(several))
    assert not {"sites", "heads"} & set(figures_of(result("residual")))
    (axes,) = several.plot("entropy").axes
    assert axes.lines[0].get_xdata().tolist() == [0, 1, 2, 3, 4]
    axes = several.plot("sites").axes[0]
    mlp = axes.lines[2]
    assert mlp.get_xdata().tolist() == [1, 2, 3]
    np.testing.assert_allclose(mlp.get_ydata(), [values(several, f"layer.{i}.mlp", "entropy") for i in (1, 2, 3)])


def test_the_map_of_heads_has_a_cell_for_each(several):
    image = several.plot("heads").axes[0].images[0]
    cells = np.ma.filled(image.get_array(), np.nan)
    expected = [[values(several, f"layer.{i}.head.{h}", "entropy") for i in (1, 2, 3)] for h in range(4)]
    np.testing.assert_allclose(cells, expected)


@pytest.mark.slow
def test_files_of_figures_name_the_site(several, tmp_path):
    several.save(tmp_path)
    write_report([tmp_path], tmp_path)
    names = {path.stem for path in tmp_path.glob("*.png")}
    assert {"entropy", "attention_entropy", "mlp_information", "sites", "heads", "entropy_by_topic"} <= names


def test_findings_are_of_one_site_and_name_the_most_of_each(several):
    *of_residual, last = findings(several)
    assert [f.text for f in of_residual] == [f.text for f in findings(result("residual"))]
    assert last.question == f"Which site holds the most information about {NAMES[0]}?"
    for site in ("attention", "mlp", "residual", "attention heads"):
        assert f"{site}: " in last.text


def test_the_terminal_shows_a_table_for_each_site(several):
    class Screen(io.StringIO):
        def isatty(self):
            return True

    screen, pipe = Screen(), io.StringIO()
    print_table(several, screen)
    said = screen.getvalue()
    assert said.index("residual") < said.index("layer.1 ") < said.index("layer.1.attention") < said.index("layer.1.mlp")
    table, heads, _ = said.partition("attention heads: in layers.csv")
    assert heads
    assert "head.0" not in table
    print_table(several, pipe)
    assert "layer.1.head.0" in pipe.getvalue()


# --- comparisons ----------------------------------------------------------------------------------------------


def test_rows_stand_beside_those_of_the_same_site():
    def names(n):
        parts = [[f"layer.{i}.attention", f"layer.{i}.head.0", f"layer.{i}"] for i in range(1, n + 1)]
        return ["embeddings", *(row for of_block in parts for row in of_block), "final_norm"]

    four, eight = (place_layers(names(n), {"n_blocks": n}) for n in (4, 8))
    assert four.indices == (0, *(i for i in (1, 2, 3, 4) for _ in range(3)), 5)
    base = {"attention": 100.0, "head.0": 200.0, "": 0.0}
    values_RS = np.array([[base[part] + depth] for part, depth in zip(eight.parts, eight.depths, strict=True)])
    found = interpolated(four, eight, values_RS)[:, 0]
    expected = [base[part] + depth for part, depth in zip(four.parts, four.depths, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-9)
    beside = align([four, eight]).beside(four)
    shown = [align([four, eight]).rows[row] for row in align([four, eight]).shown]
    for row, other in zip(shown, beside, strict=True):
        assert row.split(".")[2:] == other.split(".")[2:]


def test_equal_models_are_compared_row_by_row():
    one, other = result("attention,mlp"), result("residual,mlp", spread=0.7)
    table = compare_results(one, other)
    assert set(table.name) == {f"layer.{i}.mlp" for i in (1, 2, 3)}
    assert set(table.site) == {"mlp"}
    of_row = table[(table.name == "layer.2.mlp") & (table.metric == "entropy")]
    assert of_row.b.item() == pytest.approx(values(other, "layer.2.mlp", "entropy"))
    assert common_lines([one, other]) == ["mlp"]


def test_results_without_a_site_in_common_are_refused(tmp_path):
    one, other = result("attention"), result("mlp")
    with pytest.raises(InputError, match="a measured attention and b mlp, with no site in common"):
        compare_results(one, other)
    for name, measured in (("one", one), ("other", other)):
        measured.save(tmp_path / name)
    with pytest.raises(InputError, match="no site in common"):
        write_report([tmp_path / "one", tmp_path / "other"], tmp_path / "both", allow_different=True)


def test_different_sites_are_noted_and_anchors_are_compared_at_common_widths(several):
    attention = result("attention")
    assert same_anchors(several, attention)
    notes = check_comparable([several, attention], ["a", "b"])
    assert any(
        "they measured different sites (attention, attention_heads, mlp, residual and attention)" in n for n in notes
    )


@pytest.mark.slow
def test_models_of_other_widths_are_compared_by_site():
    """Heads are as wide in both, the residual stream is not."""
    sites = "residual,attention_heads"
    one = result(sites)
    wide = tiny_llama(hidden_size=48, num_attention_heads=8, num_key_value_heads=8)
    other = result_of(wide, labels=NAMES[:2], sites=sites)
    check_anchors(one, other, ["a", "b"])
    assert [note for note in notes_on(one, other) if "wide" in note] == [
        "hidden states of residual are 24 and 48 wide, so anchors of the same recipe differ; the spread over anchor "
        "sets says how much that matters."
    ]
    assert not same_anchors(one, other)
    heads, residual = (
        differences(of_site(one, site), of_site(other, site)) for site in ("attention_heads", "residual")
    )
    assert (heads["paired"], residual["paired"]) == (True, False)


def test_widths_of_sites_that_one_result_lacks_are_no_difference(several):
    residual = result("residual")
    assert same_anchors(several, residual)
    assert not [note for note in notes_on(several, residual) if "wide" in note]


def test_modules_beside_layers_are_said_to_be_others():
    layers = result("residual")
    names = [f"module{row}" for row in range(len(layers.rows))]
    notes = comparison_notes(replace(layers, rows=names, info={**layers.info, "n_blocks": None}), layers)
    assert any("they measured modules that were named and layers" in note for note in notes)
    assert not any("unequal numbers of blocks" in note for note in notes)


@pytest.mark.slow
def test_a_comparison_has_differences_of_each_site(several, tmp_path):
    other = result(spread=0.7)
    for name, measured in (("one", several), ("two", other)):
        measured.info["model"] = {"model": name}
        measured.save(tmp_path / name)
    page = write_report([tmp_path / "one", tmp_path / "two"], tmp_path / "both")
    data = page_data(page.read_text())
    titles = [run["title"] for run in data["runs"]]
    assert titles == [f"{name} · {site}" for name in ("one", "two") for site in ("residual", "attention", "mlp")]
    assert [(one["first"], one["other"]) for one in data["differences"]] == [(0, 3), (1, 4), (2, 5)]
    change = values(other, "layer.2.attention", "entropy") - values(several, "layer.2.attention", "entropy")
    assert data["differences"][1]["series"]["entropy|"]["d"][1] == pytest.approx(change, abs=1e-6)
    assert (tmp_path / "both" / "mlp_entropy.png").is_file()
    said = compare_folders([str(tmp_path / "one"), str(tmp_path / "two")])
    assert "entropy · attention heads (share of log m)" in said
    assert "mutual information · topic · mlp" in said


# --- sweeps ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sweep_has_a_page_for_each_site(tmp_path):
    results = {(1, step): result(spread=0.4 * step) for step in (1, 2)}
    folder = collected_folder(tmp_path / "sweep", results)
    table = pd.read_parquet(folder / "sweep.parquet")
    assert set(table.site) == {"residual", "attention", "mlp", "attention_heads"}
    page = write_report([folder], folder)
    data = page_data(page.read_text())
    assert data["rows"] == ["embeddings", "layer.1", "layer.2", "layer.3", "final_norm"]
    assert 'href="report_attention.html"' in page.read_text()
    attention = page_data((folder / "report_attention.html").read_text())
    assert attention["rows"] == [f"layer.{i}.attention" for i in (1, 2, 3)]
    expected = [values(results[1, 2], row, "entropy") for row in attention["rows"]]
    np.testing.assert_allclose(unpacked(attention["series"]["entropy|"]["v"])[1], expected, atol=1.1e-5)
    heads = page_data((folder / "report_attention_heads.html").read_text())
    assert heads["rows"][:2] == ["layer.1.head.0", "layer.1.head.1"]
    assert heads["places"] == list(range(12))
    assert all("over 12 heads" in line for lines in heads["courses"].values() for line in lines)
    assert not any("several widths" in warning for warning in collect(folder).warnings)
    sweep = read_sweep(folder, "attention_heads")
    of_heads, axis = sweep.table_of(str(sweep.done[0]["model"]))
    of_heads = of_heads.assign(step=of_heads.checkpoint.cat.codes + 1)
    assert axis == "layer and head"
    cells = layers_by_step(of_heads, "entropy", axis=axis).axes[0]
    assert len(cells.images[0].get_array()) == 12
    assert [tick.get_text() for tick in cells.get_yticklabels()][:5] == ["1.h0", "1.h1", "1.h2", "1.h3", "2.h0"]
    assert (folder / "mlp_entropy.png").is_file()


def test_a_sweep_of_the_residual_stream_is_as_ever(tmp_path):
    folder = collected_folder(tmp_path / "sweep", {(1, step): result("residual", spread=0.4 * step) for step in (1, 2)})
    assert "site" not in pd.read_parquet(folder / "sweep.parquet")
    page = write_report([folder], folder)
    assert "pages of the others" not in page.read_text()
    assert [path.name for path in folder.glob("*.html")] == ["report.html"]
