"""Pages in a real Chromium: nothing fetched, no error, all drawn, and text from data stays text."""

import math

import numpy as np
import pytest

from softh_probe.report.page import sweep_page, write_report
from softh_probe.report.sweep_files import read_sweep
from tests.helpers.corpora import corpus_of
from tests.helpers.influences import documents, planted, result_of_documents
from tests.helpers.models import tiny_llama
from tests.helpers.position_bins import planned_in_bins, tokens_of_lengths
from tests.helpers.probes import NAMES, run_planned
from tests.helpers.report_data import HOSTILE, result_of, sampled, save, sweep_folder, with_chance
from tests.helpers.sweeps import collected_folder

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [pytest.mark.chromium, pytest.mark.slow]

N_DRAWN = "[...document.querySelectorAll('.plot')].filter(p => p.querySelector('.plot-container .main-svg')).length"


@pytest.fixture(scope="module")
def page_of_a_run(tmp_path_factory):
    """30 layers, 8 label sets and a column."""
    folder = tmp_path_factory.mktemp("run")
    return write_report([save(result_of(tiny_llama(num_hidden_layers=28), labels=[*NAMES]), folder)], folder)


def numbers(page, selector):
    return page.eval_on_selector_all(selector, "cells => cells.map(c => parseFloat(c.firstChild.textContent))")


def test_everything_is_drawn(page_of_a_run, open_page):
    page = open_page(page_of_a_run)
    # entropy, 9 label sets, optimality and plane of 4 orders, shares of 2 directions, a heat map
    assert page.evaluate(N_DRAWN) == 1 + 9 + 4 + 4 + 2 + 1
    assert page.locator(".plot .heatmaplayer image").count() == 1
    for chart in ("entropy", "information", "optimality", "plane"):
        assert page.locator(f'[data-chart="{chart}"] .scatterlayer .js-line').count() > 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_sites_are_overlaid_and_heads_are_maps(open_page, tmp_path, scheme):
    sites = "residual,attention,mlp,attention_heads"
    page = open_page(
        write_report([save(result_of(tiny_llama(), labels=NAMES[:2], sites=sites), tmp_path)], tmp_path), scheme
    )
    # three label sets, optimality, plane, heads, two directions of shares, a heat map
    assert page.evaluate(N_DRAWN) == 1 + 3 + 1 + 1 + 1 + 2 + 1
    assert page.locator("#run-keys .key").all_text_contents() == ["residual", "attention", "mlp"]
    lines = page.locator('[data-chart="entropy"] .scatterlayer .js-line')
    before = lines.count()
    page.locator("#run-keys .key").nth(1).click()
    assert lines.count() < before
    cells = "document.querySelector('[data-chart=heads] .plot').data[0].z"
    entropy = page.evaluate(cells)
    assert [len(entropy), len(entropy[0])] == [4, 3]
    page.locator("#heads-key").select_option("mutual_information|topic")
    assert page.evaluate(cells) != entropy
    assert page.locator("#layer-table thead th").nth(1).text_content() == "site"


def test_the_unit_switch_rescales_figures_and_table(page_of_a_run, open_page):
    page = open_page(page_of_a_run)
    read = "document.querySelector('[data-chart=entropy] .plot').data.at(-1).y"
    before, cells = page.evaluate(read), numbers(page, "#layer-table td:nth-child(2)")
    page.locator("#unit").get_by_text("bits", exact=True).click()
    log2_m = 4.321928094887363  # of 20 anchors
    assert page.evaluate(read) == pytest.approx([v * log2_m for v in before])
    assert numbers(page, "#layer-table td:nth-child(2)") == pytest.approx([v * log2_m for v in cells], abs=5e-4)
    assert "H(Z) (bits)" in page.locator('[data-chart="entropy"] .ytitle').text_content()
    page.locator("#unit").get_by_text("share of log m", exact=True).click()
    assert page.evaluate(read) == before


def test_the_table_sorts_by_each_column_both_ways(page_of_a_run, open_page):
    page = open_page(page_of_a_run)
    heading = page.locator("#layer-table thead th").nth(1)
    for expected, order in (("ascending", False), ("descending", True)):
        heading.click()
        assert heading.get_attribute("aria-sort") == expected
        values = numbers(page, "#layer-table td:nth-child(2)")
        assert values == sorted(values, reverse=order)
        assert len(set(values)) > 10
    page.locator("#layer-table thead th").nth(0).click()
    assert page.locator("#layer-table tbody th").nth(0).text_content() == "embeddings"
    assert page.locator("#layer-table tbody th").nth(-1).text_content() == "final_norm"


def test_another_metric_fills_the_table(page_of_a_run, open_page):
    page = open_page(page_of_a_run)
    before = numbers(page, "#layer-table td:nth-child(3)")
    page.locator("#table-metric").select_option("mutual_information_corrected")
    assert numbers(page, "#layer-table td:nth-child(3)") != before


def test_hover_shows_the_exact_value(page_of_a_run, open_page):
    page = open_page(page_of_a_run)
    plot = page.locator('[data-chart="entropy"] .plot')
    plot.scroll_into_view_if_needed()
    point = plot.locator(".scatterlayer .point").nth(4)
    box = point.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    value = page.evaluate("document.querySelector('[data-chart=entropy] .plot').data.at(-1).y[4]")
    shown = plot.locator(".hoverlayer").text_content()
    assert "layer.4" in shown
    assert f"{value:.4f}" in shown


def test_a_key_hides_its_line(page_of_a_run, open_page):
    page = open_page(page_of_a_run)
    count = "document.querySelectorAll('[data-chart=information] .scatterlayer .js-line').length"
    before = page.evaluate(count)
    page.get_by_role("button", name="by chance").click()
    assert page.evaluate(count) == before - 9 - 1  # the topic is of whole documents: chance has a band


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_ink_stands_out_in_both_schemes_and_on_paper(page_of_a_run, open_page, scheme):
    page = open_page(page_of_a_run, scheme)
    luminance = """(colour) => { const c = colour.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
        .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * c[0] + 0.7152 * c[1] + 0.0722 * c[2]; }"""
    for selector, key in ((".subtitle", "color"), (".xtick text", "fill"), (".ytitle", "fill"), (".read", "color")):
        for media in ("screen", "print"):
            page.emulate_media(media=media, color_scheme=scheme)
            ink, paper = (
                page.evaluate(f"({luminance})(getComputedStyle(document.querySelector('{s}')).{k})")
                for s, k in ((selector, key), ("body", "backgroundColor"))
            )
            lighter, darker = max(ink, paper), min(ink, paper)
            assert (lighter + 0.05) / (darker + 0.05) > 4.5
            assert paper > 0.9 if scheme == "light" or media == "print" else paper < 0.1


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_the_page_fits_every_width(page_of_a_run, open_page, width):
    page = open_page(page_of_a_run, width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_shares_are_stacked_to_the_ceiling_raw_and_corrected(open_page, tmp_path, scheme):
    result = result_of(tiny_llama(), labels=[*NAMES[:2], "input_bigram"])
    page = open_page(write_report([save(result, tmp_path)], tmp_path / "out"), scheme)
    edges = "[...document.querySelectorAll('[data-chart=\"shares\"] .plot')].map(p => p.data.map(t => t.y))"
    for version in ("", "_corrected"):
        page.select_option("#shares-version", version)
        table = result.to_pandas(means=False)
        table = table[table.metric == f"information_share{version}"]
        for direction, orders in (("input", ["unigram", "bigram"]), ("output", ["unigram"])):
            base, *found = page.evaluate(edges)[direction == "output"]
            assert base == [0] * len(result.rows)
            shares = [table[table.label_set == f"{direction}_{order}"].value for order in orders]
            for edge, expected in zip(found, np.cumsum(shares, axis=0), strict=False):
                np.testing.assert_allclose(edge, expected, atol=1e-5)
            np.testing.assert_allclose(found[-1], 1, atol=1e-5)
    assert page.locator("#shares-keys .key").all_inner_texts() == ["unigram", "bigram", "left of the ceiling"]


def test_bins_of_positions_are_shown_for_the_chosen_set_and_metric(open_page, tmp_path):
    labels = ["input_unigram", "output_unigram"]
    corpus = corpus_of(tokens_of_lengths([20] * 30))
    result = run_planned(tiny_llama(), corpus, labels, 80, plan=planned_in_bins(corpus, labels, 80)).result()
    page = open_page(write_report([save(result, tmp_path)], tmp_path / "out"))
    table = result.by_position()
    shown = "document.querySelector('[data-chart=\"by-position\"] .plot').data[0]"
    for label_set, metric in (("output_unigram", "mutual_information"), ("", "entropy")):
        page.select_option("#position-set", label_set)
        if label_set:
            page.select_option("#position-metric", metric)
        drawn = page.evaluate(f"{shown}.z")
        part = table[(table.label_set == label_set) & (table.metric == metric)]
        wide = part.pivot(index="name", columns="position", values="value")
        expected = wide.loc[result.rows, ["0", "1", "2-3", "4-7", "8-15", "16-31"]]
        np.testing.assert_allclose(np.array(drawn, float), expected.to_numpy(), atol=1e-5)
    assert page.evaluate(f"{shown}.text")[2][3].startswith("<b>layer.2</b><br>position 4-7 (120 positions)<br>")


def test_hostile_text_shows_as_text(open_page, tmp_path):
    texts = [
        HOSTILE,
        '<a href="https://example.org/">x</a>',
        "<b>bold</b>",
        "%{y} $x^2$ &lt;",
        "<img src=x onerror=alert(1)>",
    ]
    result = result_of(tiny_llama(), labels=["input_unigram", "output_unigram"], topics=texts)
    result.info["model"] = {"model": f"m/{texts[4]}", "revision": texts[2]}
    result.info["warnings"] = texts
    page = open_page(write_report([save(result, tmp_path)], tmp_path))
    assert page.locator("h1").text_content() == f"{texts[4]} @ {texts[2]}"
    assert page.locator(".warnings li").all_text_contents() == texts
    ticks = page.locator('[data-chart="labels"] .ytick text').all_text_contents()
    assert len(ticks) == 5
    assert any(tick.startswith("<b>bold</b>") for tick in ticks)
    assert any(tick.startswith("%{y} $x^2$ &lt;") for tick in ticks)
    assert page.locator("img, main a[href^=http], svg a, .plot b").count() == 0
    for x, y in ((0.3, 0.3), (0.3, 0.5), (0.5, 0.7)):
        box = page.locator('[data-chart="labels"] .plot').bounding_box()
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
    assert page.locator(".hoverlayer a, .hoverlayer img").count() == 0


def test_a_comparison_marks_differences_within_the_anchor_spread(open_page, tmp_path):
    one = result_of(tiny_llama(), labels=NAMES[:2])
    other = result_of(tiny_llama(initializer_range=0.1), labels=NAMES[:2])
    folders = [save(r, tmp_path / name) for r, name in ((one, "one"), (one, "same"), (other, "other"))]
    page = open_page(write_report(folders, tmp_path / "report"))
    assert page.evaluate(N_DRAWN) == 1 + 3 + 1 + 1 + 2  # the last two are the plane of models and its bars
    cells = page.locator("#difference-table td")
    assert {text[0] for text in cells.all_text_contents() if text != "–"} == {"≈"}  # nothing differs from itself
    page.locator("#difference-run").select_option("1")
    beyond = page.locator("#difference-table td.beyond")
    assert 0 < beyond.count() < cells.count()
    assert "Bold is beyond 2 of these sd" in page.locator("#differences-read").text_content()
    entropy_RS, of_other_RS = (
        next(v.numpy() for _, m, v in r.metrics() if m == "entropy") / math.log(20) for r in (one, other)
    )
    apart_RS = of_other_RS - entropy_RS  # both have the same anchors
    is_beyond_R = abs(apart_RS.mean(axis=1)) > 2 * apart_RS.std(axis=1, ddof=1)
    column = page.locator("#difference-table tbody td:nth-child(2)")
    assert column.evaluate_all("cells => cells.map(cell => cell.className === 'beyond')") == is_beyond_R.tolist()
    assert column.evaluate_all("cells => cells.map(cell => !cell.textContent.startsWith('≈'))") == is_beyond_R.tolist()
    page.get_by_role("button", name="tiny (same)").click()
    assert page.evaluate("document.querySelector('[data-chart=entropy] .plot').data.length") == 4


def test_a_comparison_of_single_anchor_sets_marks_nothing(open_page, tmp_path):
    folders = [
        save(result_of(tiny_llama(**how), labels=NAMES[:2], anchor_sets=1), tmp_path / name)
        for name, how in (("one", {}), ("other", {"initializer_range": 0.1}))
    ]
    page = open_page(write_report(folders, tmp_path / "report"))
    said = page.locator("#differences-read").text_content()
    assert (
        "One anchor set: the spread over anchors is unknown (--anchor-sets 8), so that no difference is marked" in said
    )
    assert page.locator("#difference-table td.beyond, #difference-table td.within").count() == 0
    assert "±" not in page.locator("#layer-table").text_content()
    assert page.evaluate("document.querySelector('[data-chart=entropy] .plot').data.length") == 2  # lines, no bands


def test_hover_table_and_keys_tell_of_sampled_labels(open_page, tmp_path):
    result = sampled(result_of(tiny_llama(), labels=NAMES[:4]), "input_bigram", errors=(0.03, 0.0, 0.05, 0.0, 0.0))
    page = open_page(write_report([save(result, tmp_path)], tmp_path))
    error = result.sampling_sds()["input_bigram", "mutual_information"][2].item() / math.log(result.n_anchors)
    keys = page.locator("#information-keys .key").all_text_contents()
    assert keys[-2:] == ["± sd over anchor sets", "± sampling of labels"]
    plots = "[...document.querySelectorAll('[data-chart=information] .plot')]"
    texts = page.evaluate(f"{plots}.map(p => p.data.at(-1).text[2])")
    assert [text.count("sampling ±") for text in texts] == [0, 2, 0, 0, 0]  # raw and corrected
    assert f"(sampling ± {error:.4f})" in texts[1]
    bands = f"{plots}.map(p => p.data.filter(t => (t.fillcolor || '').endsWith('66')).length)"
    assert page.evaluate(bands) == [0, 2, 0, 0, 0]
    cells = page.locator("#layer-table tbody tr").nth(2).locator("td small").all_text_contents()
    assert next(text for text in cells if "(" in text).endswith(f"(± {error:.4f})")


def test_the_band_hover_and_table_tell_of_chance(open_page, tmp_path):
    result = with_chance(result_of(tiny_llama(), labels=NAMES[:2]), sd=0.002, p_values=(0.52, 0.041, 0.001))
    page = open_page(write_report([save(result, tmp_path)], tmp_path))
    null = result.to_pandas().query("label_set == 'topic'").pivot_table(index="layer", columns="metric", values="value")
    plot = page.locator('[data-chart="information"] .plot').nth(2)
    band, line = plot.evaluate("p => p.data.filter(t => t.fill).slice(0, 2).map(t => t.y)")
    assert line == pytest.approx(null.mutual_information_null.tolist(), abs=1e-5)
    assert band[: len(line)] == pytest.approx(
        (null.mutual_information_null + null.mutual_information_null_sd).tolist(), abs=1e-5
    )
    texts = plot.evaluate("p => p.data.at(-1).text")
    assert [text.split("<br>")[-1] for text in texts[:3]] == ["p = 0.52", "p = 0.041", "p = 0.001"]
    assert f"by chance: {line[0]:.4f} ± 0.0020" in texts[0]
    headings = page.locator("#layer-table thead th").all_text_contents()
    column = headings.index("topic: p") + 1
    assert numbers(page, f"#layer-table td:nth-child({column})")[:4] == [0.52, 0.041, 0.001, 0.001]
    page.locator("#layer-table thead th").nth(column - 1).click()
    assert numbers(page, f"#layer-table td:nth-child({column})")[-1] == 0.52
    page.locator("#table-metric").select_option("coverage")
    assert "topic: p" not in page.locator("#layer-table thead th").all_text_contents()


def test_results_of_the_same_labels_are_compared_without_the_error_of_sampling(open_page, tmp_path):
    one = sampled(result_of(tiny_llama(), labels=NAMES[:4]), "input_bigram")
    other = sampled(one, "input_bigram", threshold=512.0)
    folders = [save(r, tmp_path / name) for r, name in ((one, "one"), (one, "same"), (other, "other"))]
    page = open_page(write_report(folders, tmp_path / "report"))
    assert "followed the same labels" in page.locator("#differences-read").text_content()
    page.locator("#difference-run").select_option("1")
    assert "followed different samples of labels" in page.locator("#differences-read").text_content()


def test_a_sweep_of_sampled_labels_has_bands_of_that(open_page, tmp_path):
    results = {("m", n): sampled(result_of(tiny_llama(), labels=NAMES[:2]), NAMES[0]) for n in (1, 10, 100)}
    folder = collected_folder(tmp_path, results)
    (folder / "report.html").write_text(sweep_page(read_sweep(folder)))
    page = open_page(folder / "report.html")
    n_keys = page.locator("#steps-keys .key").count()
    page.locator("#steps-key").select_option(f"mutual_information|{NAMES[0]}")
    assert page.locator("#steps-keys .key").count() == n_keys + 2
    strong = (
        "document.querySelector('[data-chart=steps] .plot').data.filter(t => (t.fillcolor || '').endsWith('66')).length"
    )
    assert page.evaluate(strong) == n_keys
    assert "(sampling ± " in page.evaluate("document.querySelector('[data-chart=steps] .plot').data.at(-1).text[0]")
    page.locator("#steps-key").select_option("entropy|")
    assert page.locator("#steps-keys .key").count() == n_keys


def axis_values(page, chart, axis="x"):
    return page.evaluate(f"document.querySelector('[data-chart={chart}] .plot').data.at(-1).{axis}")


def test_axes_are_at_scale(open_page, tmp_path):
    some = ["embeddings", "layer.10", "layer.25", "final_norm"]
    part, whole, other = (
        result_of(tiny_llama(num_hidden_layers=n), labels=NAMES[:2], layers=layers)
        for n, layers in ((30, some), (30, None), (12, None))
    )
    folders = [save(r, tmp_path / name) for r, name in ((whole, "whole"), (other, "other"), (part, "part"))]
    page = open_page(write_report(folders[2:], tmp_path / "one"))
    for chart in ("entropy", "information", "optimality", "labels"):
        assert axis_values(page, chart) == [0, 10, 25, 31]
    ticks = page.locator('[data-chart="entropy"] .xtick text').all_text_contents()
    assert ticks == ["emb", "10", "25", "norm"]
    page = open_page(write_report([folders[0], folders[2]], tmp_path / "two"))
    assert axis_values(page, "entropy") == [0, 10, 25, 31]
    cells = page.locator("#difference-table tbody tr td:nth-child(2)").all_text_contents()
    assert [i for i, text in enumerate(cells) if text != "–"] == [0, 10, 25, 31]
    page = open_page(write_report([folders[1], folders[2]], tmp_path / "three"))
    assert axis_values(page, "entropy") == pytest.approx([0, 10 / 31, 25 / 31, 1])
    assert "relative depth (layer / (L + 1)" in page.locator('[data-chart="entropy"] .xtitle').text_content()


def test_a_sweep_over_unequal_depths_pairs_ends_with_ends(open_page, tmp_path):
    results = {
        (n, step): result_of(tiny_llama(num_hidden_layers=n, initializer_range=0.1 * step), labels=NAMES[:2])
        for n in (4, 6)
        for step in (1, 2)
    }
    folder = collected_folder(tmp_path, results)
    page = open_page(write_report([folder], folder))
    for model, last in (("run/of4", 5), ("run/of6", 7)):
        page.locator("#map-model").select_option(model)
        assert axis_values(page, "map", "y") == list(range(last + 1))
    entropy = {key: r.to_pandas().query("metric == 'entropy'").set_index("name").value for key, r in results.items()}
    select = page.locator("#table-layer")
    for choice in select.locator("option").all():
        select.select_option(choice.get_attribute("value"))
        rows = page.locator("#checkpoint-table tbody tr")
        for row, key in zip(rows.all(), results, strict=True):
            cells = row.locator("td").all_text_contents()
            layer = cells[1].split()[0]
            assert cells[1] == f"{layer} of {key[0]}"
            assert "–" not in cells
            assert float(cells[2].split()[0]) == pytest.approx(entropy[key][layer], abs=6e-5)
            if (name := choice.text_content()) in ("embeddings", "final_norm"):
                assert layer == name


def test_a_sweep_plays_through_training(open_page, tmp_path):
    folder = sweep_folder(tmp_path / "sweep", n_checkpoints=6, reason=HOSTILE)
    page = open_page(write_report([folder], folder))
    assert page.evaluate(N_DRAWN) == 5
    assert page.locator("#unfinished td.text").text_content() == HOSTILE
    read = "document.querySelector('[data-chart=path] .plot').data.at(-1).x"
    last = page.evaluate(read)
    assert page.locator("#checkpoint-name").text_content() == "step 6"
    page.locator("#checkpoint").fill("0")
    assert page.locator("#checkpoint-name").text_content() == "step 0"
    assert page.evaluate(read) != last
    page.get_by_role("button", name="Play").click()
    playwright.expect(page.locator("#checkpoint")).to_have_value("5")
    assert page.evaluate(read) == last
    before = page.locator('[data-chart="map"] .heatmaplayer image').get_attribute("href")
    page.locator("#map-key").select_option("mutual_information|input_unigram")
    assert page.locator('[data-chart="map"] .heatmaplayer image').get_attribute("href") != before
    page.locator("#checkpoint-table thead th").nth(1).click()
    page.locator("#checkpoint-table thead th").nth(1).click()
    assert page.locator("#checkpoint-table tbody th").nth(0).text_content() == "step6"


def test_a_page_of_200_checkpoints_opens(open_page, tmp_path):
    folder = sweep_folder(tmp_path / "sweep", n_checkpoints=200, layers=30, labels=NAMES)
    (folder / "report.html").write_text(sweep_page(read_sweep(folder)))
    page = open_page(folder / "report.html")
    assert page.evaluate(N_DRAWN) == 5
    assert page.locator("#checkpoint-table tbody tr").count() == 200


CORPUS = {"corpus": {"sha256": "0" * 64, "texts_sha256": "1" * 64, "data": "texts.jsonl"}}
DOTTED = "document.querySelector('[data-chart={}] .plot').data.filter(t => t.line.dash === 'dot' && t.line.width < 1.5)"


def test_intervals_over_documents_have_edges_a_key_and_a_switch(open_page, tmp_path):
    result = result_of_documents(documents(80), model={"model": "tiny"}, **CORPUS)
    page = open_page(write_report([save(result, tmp_path)], tmp_path))
    assert page.locator("#entropy-keys .key").all_text_contents() == [
        "± sd over anchor sets",
        "95% interval over documents (± 1.96 standard errors)",
    ]
    log_m = math.log(result.n_anchors)
    se = (result.tensors["se_entropy"] / log_m).tolist()
    line = axis_values(page, "entropy", "y")
    (edges,) = page.evaluate(DOTTED.format("entropy") + ".map(t => t.y)")
    assert edges == pytest.approx(
        [*(v + 1.96 * s for v, s in zip(line, se, strict=True)), None]
        + [v - 1.96 * s for v, s in zip(line, se, strict=True)],
        abs=1e-5,
    )
    assert f"(documents: se {se[1]:.4f})" in axis_values(page, "entropy", "text")[1]
    assert f"se {se[1]:.4f}" in page.locator("#layer-table tbody tr").nth(1).locator("td").nth(0).text_content()
    page.locator("#bands").get_by_text("documents").click()
    assert page.evaluate(DOTTED.format("entropy") + ".length") == 0
    page.locator("#bands").get_by_text("documents").click()
    assert page.evaluate(DOTTED.format("optimality") + ".length") == 1


def test_a_comparison_marks_differences_beyond_noise_by_words_and_weight(open_page, tmp_path):
    base = documents(150)
    results = [result_of_documents(of, model={"model": "tiny"}, **CORPUS) for of in (base, planted(base, 1, 0.1))]
    folders = [save(result, tmp_path / name) for result, name in zip(results, "ab", strict=True)]
    page = open_page(write_report(folders, tmp_path / "report"))
    assert page.locator("#difference-noise").input_value() == "documents"
    cells = page.locator("#difference-table tbody tr td:nth-child(2)")
    assert [text[0] for text in cells.all_text_contents()] == ["≈", "+", "≈", "≈"]
    assert "p < 0.0001" in cells.nth(1).text_content()
    assert cells.nth(1).evaluate("cell => getComputedStyle(cell).fontWeight") == "650"
    said = page.locator("#differences-read").text_content()
    assert "Layers beyond noise: H(Z) in 1 of 4, input unigram in 1 of 4" in said
    page.locator("#difference-noise").select_option("anchors")
    assert "anchor spread" in page.locator("#differences-read").text_content()


def test_a_comparison_without_intervals_says_how_to_measure_them(open_page, tmp_path):
    result = result_of_documents(documents(80), with_intervals=False, model={"model": "tiny"}, **CORPUS)
    page = open_page(write_report([save(result, tmp_path / name) for name in "ab"], tmp_path / "report"))
    assert "softh-probe run --intervals" in page.locator("#differences-read").text_content()
    assert page.locator("#difference-noise").is_hidden()
    assert page.locator("#bands").is_hidden()


@pytest.mark.parametrize("width", [420, 1400])
def test_a_sweep_says_what_each_metric_does(open_page, tmp_path, width):
    strengths = {1: 0.5, 10: 0.5, 1000: 0.1, 8000: 0.4}
    results = {}
    for step, strength in strengths.items():
        of = documents(150)
        for layer in range(4):
            of = planted(of, layer, strength)
        results["m", step] = result_of_documents(of, **CORPUS)
    folder = collected_folder(tmp_path, results)
    page = open_page(write_report([folder], folder), width=width)
    (said,) = page.locator("#steps-course p").all_text_contents()
    assert said == (
        "The mean over 4 layers falls from step 10 to 1,000, then rises to 8,000; "
        "changes beyond noise: 10 → 1,000, 1,000 → 8,000."
    )
    assert page.evaluate(DOTTED.format("steps") + ".length") == 4
    page.locator("#steps-key").select_option("mutual_information|input_unigram")
    assert "rises from step 10 to 1,000, then falls" in page.locator("#steps-course p").text_content()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
