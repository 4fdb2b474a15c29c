"""Pages in a real Chromium: what covers what, on wide and narrow screens, in the dark and on paper."""

import math

import numpy as np
import pytest

from softh_probe.report.page import run_page, sweep_page
from softh_probe.report.sweep_files import read_sweep
from tests.helpers.corpora import corpus_of
from tests.helpers.models import tiny_llama
from tests.helpers.position_bins import planned_in_bins, tokens_of_lengths
from tests.helpers.probes import NAMES, run_planned
from tests.helpers.report_data import STEPS, result_of, sweep_of_steps

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [pytest.mark.chromium, pytest.mark.slow]

WIDTHS = (420, 1400)


def written(folder, name, html):
    path = folder / f"{name}.html"
    path.write_bytes(html.encode("utf-8"))
    return path


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A run of many layers and label sets, one of several sites with heads, and one with bins."""
    folder = tmp_path_factory.mktemp("pages")
    deep = tiny_llama(num_hidden_layers=28)
    sites = "residual,attention,attention_heads"
    labels = ["input_unigram", "output_unigram"]
    corpus = corpus_of(tokens_of_lengths([20] * 30))
    bins = run_planned(tiny_llama(), corpus, labels, 80, plan=planned_in_bins(corpus, labels, 80)).result()
    bins.info["model"] = {"model": "tiny"}
    return {
        "run": written(folder, "run", run_page(result_of(deep, labels=[*NAMES], anchor_sets=2))),
        "sites": written(folder, "sites", run_page(result_of(tiny_llama(), labels=NAMES[:2], sites=sites))),
        "bins": written(folder, "bins", run_page(bins)),
    }


#: Of each figure: its chart, and boxes [left, top, right, bottom] of its toolbar, of its data, and of its texts.
BOXES = """() => [...document.querySelectorAll('.plot')].map(plot => {
  const origin = plot.getBoundingClientRect(), size = plot._fullLayout._size;
  const box = (node) => { const r = node.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; };
  const texts = (selector) => [...plot.querySelectorAll(selector)].filter(n => n.textContent);
  return {
    chart: plot.closest('[data-chart]').dataset.chart, figure: box(plot),
    toolbar: box(plot.querySelector('.modebar')),
    grounds: [plot.querySelector('.modebar'), ...plot.querySelectorAll('.modebar-group')]
      .map(n => getComputedStyle(n).backgroundColor),
    data: [origin.left + size.l, origin.top + size.t, origin.left + size.l + size.w, origin.top + size.t + size.h],
    others: [...plot.querySelectorAll('.annotation-text-g, .cbaxis, .cbfills, .xtitle, .ytitle')].map(box),
    ticks: texts('.xtick text').map(n => [n.textContent, ...box(n)]),
    titles: texts('.g-xtitle text, .annotation-text-g').map(n => [n.textContent, ...box(n)]),
  };
})"""


def overlap(a, b):
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def boxes_at(page, width):
    """Set the window's width, and read the boxes of the figures once they are drawn for it."""
    page.set_viewport_size({"width": width, "height": 900})
    page.wait_for_timeout(400)  # figures wait until a window is no longer dragged
    page.evaluate("() => new Promise((next) => requestAnimationFrame(() => setTimeout(next, 50)))")
    boxes = page.evaluate(BOXES)
    assert all(of["figure"][2] <= width for of in boxes)
    return boxes


def check_ticks(of):
    """Ticks and titles are shown within the figure, and none touches another."""
    texts = [*of["ticks"], *of["titles"]]
    for i, (_, *one) in enumerate(texts):
        assert one[0] >= of["figure"][0], texts
        assert one[2] <= of["figure"][2] + 1, texts
        assert not any(overlap(one, other) for _, *other in texts[:i]), texts


@pytest.mark.parametrize("kind", ["run", "sites", "bins"])
def test_toolbars_ticks_and_navigation_have_room(open_page, pages, kind):
    page = open_page(pages[kind])
    for width in WIDTHS:
        for of in boxes_at(page, width):
            assert {*of["grounds"]} == {"rgba(0, 0, 0, 0)"}
            assert not any(overlap(of["toolbar"], other) for other in (of["data"], *of["others"])), of
            assert len(of["ticks"]) > 1
            check_ticks(of)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        links = page.eval_on_selector_all(".bar a", "ns => ns.map(n => n.getBoundingClientRect().right)")
        assert max(links) <= width
    # A chart would go to a server of plotly's.
    names = page.eval_on_selector_all(".modebar-btn", "ns => [...new Set(ns.map(n => n.dataset.title))]")
    assert names == ["Download plot", "Zoom", "Reset axes"]


@pytest.mark.parametrize("n", [1, 2, 1500])
def test_ticks_of_steps_are_readable_at_any_number_of_checkpoints(open_page, tmp_path, n):
    steps = STEPS[n]
    folder = sweep_of_steps(tmp_path / "sweep", steps, labels=NAMES[:1], layers=["embeddings", "final_norm"])
    page = open_page(written(tmp_path, "report", sweep_page(read_sweep(folder))))
    for width in WIDTHS:
        boxes = boxes_at(page, width)
        assert [of["chart"] for of in boxes] == ["map", "steps"]
        for of in boxes:
            check_ticks(of)
            numbers = [int(text.replace(",", "")) for text, *_ in of["ticks"]]
            assert min(3, n) <= len(numbers) <= 14
            assert numbers == sorted(numbers)
            assert numbers[0] == steps[0]
            assert not any(overlap(of["toolbar"], other) for other in (of["data"], *of["others"])), of
    for steps in STEPS.values():
        for room in (150, 300, 600, 1000):
            ticks = page.evaluate(f"logSteps({steps}, {room})")["axis"]
            names, places = ticks["ticktext"], np.array(ticks["tickvals"])
            assert min(2, len(steps)) <= len(names)
            values = [math.log10(step) for step in steps if step > 0]
            span = max(values) - min(values) + 0.5 * (0 in steps) or 1
            letters = np.array([7 * len(name) for name in names])
            assert np.all(np.diff(places) / span * room > (letters[1:] + letters[:-1]) / 2)


def test_a_panel_that_is_alone_in_its_row_is_as_wide_as_the_page(open_page, pages):
    page = open_page(pages["run"], width=1400)
    chosen = '[data-chart="information"], [data-chart="information"] > figure'
    whole, *panels, last = page.eval_on_selector_all(chosen, "ns => ns.map(n => n.clientWidth)")
    assert last == whole
    assert max(panels) < whole / 3
    caption = page.locator('[data-chart="information"] figcaption').last.text_content()
    assert caption == "topic H(X) = 1.58 bits; on a vertical scale of its own; n-grams share one"


def test_a_page_without_label_sets_is_drawn(open_page, tmp_path):
    page = open_page(written(tmp_path, "report", run_page(result_of(tiny_llama(), labels=[], anchor_sets=2))))
    assert page.locator(".plot .scatterlayer .point").count() == 5


LUMINANCE = """(colour) => {
  const c = colour.startsWith('#') ? [1, 3, 5].map(i => parseInt(colour.slice(i, i + 2), 16))
    : colour.match(/[\\d.]+/g).map(Number);
  const [r, g, b] = c.slice(0, 3).map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}"""
TRACES = "[...document.querySelectorAll('.plot')].flatMap(p => p.data)"


@pytest.mark.parametrize("kind", ["run", "sites"])
def test_figures_are_bright_in_the_dark_and_light_on_paper(open_page, pages, kind):
    page = open_page(pages[kind], "dark")
    colours = f"{TRACES}.map(t => t.line && t.line.color).filter(c => c && c.length === 7)"
    keys = "[...document.querySelectorAll('.key line')].map(n => getComputedStyle(n).stroke)"
    in_the_dark = page.evaluate(colours)
    paper = page.evaluate(f"({LUMINANCE})(getComputedStyle(document.body).backgroundColor)")
    for lines in (colours, keys):
        assert min((one + 0.05) / (paper + 0.05) for one in page.evaluate(f"{lines}.map({LUMINANCE})")) > 4
    bands = page.evaluate(f"{TRACES}.map(t => t.fillcolor).filter(c => c && c.length === 9)")
    assert min(int(colour[7:], 16) / 255 for colour in bands) >= 0.25

    sheet = 688  # 182 mm, in pixels
    page.set_viewport_size({"width": sheet, "height": 900})
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    on_paper = page.evaluate(colours)
    assert all(one != other for one, other in zip(in_the_dark, on_paper, strict=True))
    assert "#0072B2" in on_paper
    assert page.evaluate("document.documentElement.scrollWidth") <= sheet + 1  # or the sheet is shrunk, or cut
    svgs = "ns => ns.map(n => [n.querySelector('.main-svg').clientWidth, n.clientWidth])"
    assert all(svg == node for svg, node in page.eval_on_selector_all(".plot", svgs))
    assert page.locator(".modebar:visible, .bar:visible, .tools button:visible").count() == 0
    assert page.locator(".tools select:visible").count() > 0  # what was chosen
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(colours) == in_the_dark
