"""Pages with models and checkpoints as points, in a real Chromium, and reports of more results than are drawn."""

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest

from softh_probe.cli import main
from softh_probe.report import page as pages
from softh_probe.report import side_by_side
from softh_probe.report.page import comparison_page, sweep_page, write_report
from softh_probe.report.plane_data import plane_data
from softh_probe.report.sweep_files import read_sweep
from tests.helpers.model_points import models, training_run
from tests.helpers.models import tiny_llama
from tests.helpers.probes import NAMES
from tests.helpers.report_data import page_data, result_of, save, sweep_folder

HOSTILE = ["<script>alert(1)</script>", "$x^2$", "a_b", "%{y} &lt;</b>"]


@pytest.fixture(scope="module")
def result():
    return result_of(tiny_llama(), labels=NAMES[:2])


def page_of(result, points, folder, groups=None):
    """Write a page of two results and of points of any number."""
    planes = {**plane_data(points, [3.0] * len(points), groups or {}), "n_points": len(points)}
    path = folder / "report.html"
    path.write_text(comparison_page([result, result], [point.name for point in points], [], planes))
    return path


# --- more results than are drawn -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fourteen(result, tmp_path_factory):
    """Results of 14 models, of which the last one was measured with a warning."""
    folder = tmp_path_factory.mktemp("fourteen")
    for i in range(14):
        tensors = {**result.tensors, "conditional_entropy": result.tensors["conditional_entropy"] * (1 - i / 50)}
        model = {"model": f"org/m{i}", "revision": None, "model_type": ("llama", "opt")[i % 2], "n_parameters": 10**9}
        info = {**result.info, "model": model, "warnings": ["hot"] if i == 13 else []}
        save(replace(result, tensors=tensors, info=info), folder / f"m{i}")
    return [folder / f"m{i}" for i in range(14)]


def test_of_many_results_the_layers_of_a_dozen_are_drawn_and_all_are_points(fourteen, tmp_path, monkeypatch):
    (tmp_path / "groups.csv").write_text("model,licence\norg/m0,open\nm13,closed\nother,open\n")
    monkeypatch.setattr(pages, "write_comparison_figures", lambda results, titles, _: None)
    command = ["report", *map(str, fourteen), "--out", str(tmp_path), "--groups", str(tmp_path / "groups.csv")]
    assert main(command) == 0
    data, text = page_data(tmp_path / "report.html"), (tmp_path / "report.html").read_text()
    assert [run["title"] for run in data["runs"]] == [f"m{i}" for i in range(12)]
    assert "14 results side by side: all as points, and in the table of models; layer by layer the first 12" in text
    assert "<title>m0 · m1 · m2 and 11 more" in text
    assert "<li>m13: hot</li>" in text
    assert "has lines of models that are not here: other." in text
    planes = data["planes"]
    assert [p["name"] for p in planes["points"]] == [f"m{i}" for i in range(14)]
    assert [p["family"] for p in planes["points"]][:2] == ["llama", "opt"]
    assert planes["groups"] == {"licence": ["open", *[None] * 12, "closed"]}
    for i, run in enumerate(data["runs"]):  # the mean over layer.1 … layer.3
        layers = run["series"]["mutual_information|input_unigram"]["v"][1:4]
        assert planes["series"]["mutual_information|input_unigram"]["v"][i] == pytest.approx(np.mean(layers), abs=1e-5)
    assert (tmp_path / "model_plane.svg").is_file()


def test_results_that_are_not_drawn_are_not_kept_in_memory(fourteen, monkeypatch):
    load, read = side_by_side.load, []

    def followed(folder):
        result = load(folder)
        read.append(weakref.ref(result.tensors["mass"]))
        return result

    monkeypatch.setattr(side_by_side, "load", followed)
    found = side_by_side.read_side_by_side(fourteen)
    gc.collect()
    assert [tensor() is not None for tensor in read] == [True] * 12 + [False] * 2
    assert len(found.titles) == len(found.points) == 14


def test_notes_of_many_results_stand_once(fourteen, result, tmp_path):
    other = {**result.info, "corpus": {"sha256": "1" * 64, "data": "other.txt"}}
    folders = [
        *fourteen,
        save(replace(result, info=other), tmp_path / "a"),
        save(replace(result, info=other), tmp_path / "b"),
    ]
    with pytest.raises(pages.InputError, match="differ in their corpus"):
        side_by_side.read_side_by_side(folders)
    notes = side_by_side.read_side_by_side(folders, allow_different=True).notes
    (note,) = (note for note in notes if "their corpus" in note)
    assert note.startswith("m0 (m0) and tiny (a), tiny (b) differ in their corpus")


def test_groups_of_a_single_result_are_refused(fourteen, tmp_path):
    (tmp_path / "groups.csv").write_text("model,licence\nm0,open\n")
    with pytest.raises(pages.InputError, match=r"^groups: .* is one result, which has no plane of models"):
        write_report(fourteen[:1], tmp_path, groups=tmp_path / "groups.csv")


def test_a_page_of_200_models_stays_under_8_mb(result, tmp_path):
    page = page_of(result, models(200), tmp_path)
    assert page.stat().st_size < 5.5e6  # two results are drawn; a dozen of 30 layers and 8 label sets take 2 MB more


def test_more_points_than_are_drawn_are_told(result, tmp_path, monkeypatch):
    folder = sweep_folder(tmp_path / "sweep", n_checkpoints=3)
    monkeypatch.setattr(pages, "sweep_points", lambda _: training_run(range(1500)))
    assert "1000 of 1500 are drawn, evenly chosen." in sweep_page(read_sweep(folder))


# --- in a browser ----------------------------------------------------------------------------------------------

PLOT = "document.querySelector('[data-chart={}] .plot')"
LABELS = """() => [...document.querySelectorAll('[data-chart="points"] .annotation-text-g')].map(node => {
  const r = node.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; })"""
in_browser = pytest.mark.chromium


def overlap(a, b):
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@in_browser
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "least"), [(420, 10), (1400, 40)])
def test_fifty_models_are_labelled_without_overlap_on_any_screen(open_page, result, tmp_path, scheme, width, least):
    page = open_page(page_of(result, models(50), tmp_path), scheme, width)
    boxes = page.evaluate(LABELS)
    assert len(boxes) >= least
    for i, one in enumerate(boxes):
        assert 0 <= one[0] <= one[2] <= width
        assert not any(overlap(one, other) for other in boxes[:i])
    assert (
        page.locator("#points-note").text_content() == f"{50 - len(boxes)} of 50 names have no room; hover shows them."
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@in_browser
@pytest.mark.slow
def test_colours_keys_units_hover_and_table_of_models(open_page, result, tmp_path):
    points = models(12)
    licence = [("open", "closed", None)[i % 3] for i in range(12)]
    page = open_page(page_of(result, points, tmp_path, {"licence": licence}), width=1400)
    read = f"{PLOT.format('points')}.data.at(-1)"
    assert page.evaluate(f"{read}.x") == pytest.approx(
        [p.values["input_unigram", "mutual_information"].value for p in points], abs=1e-5
    )
    assert page.locator("#points-colour option").all_text_contents() == ["licence", "family"]
    assert page.locator("#points-keys .key").all_inner_texts()[:3] == ["open (4)", "closed (4)", "unknown (4)"]
    colours = page.evaluate(f"{read}.marker.color")
    assert len({(one, of) for one, of in zip(colours, licence, strict=True)}) == len(set(colours)) == 3
    page.select_option("#points-colour", "family")
    assert len(set(page.evaluate(f"{read}.marker.color"))) == 5
    page.get_by_role("button", name="llama (3)").click()
    assert len(page.evaluate(f"{read}.x")) == 9
    assert len(page.evaluate(f"{PLOT.format('distances')}.data[0].x")) == 9
    page.get_by_role("button", name="llama (3)").click()
    distances = page.evaluate(f"{PLOT.format('distances')}.data[0].x")
    assert distances == sorted(distances)
    page.select_option("#points-metric", "mutual_information_corrected")
    np.testing.assert_allclose(
        page.evaluate(f"{PLOT.format('distances')}.data[0].x"), np.array(distances) * 0.7, atol=2e-5
    )
    page.locator("#unit").get_by_text("nats").click()
    np.testing.assert_allclose(
        page.evaluate(f"{PLOT.format('distances')}.data[0].x"), np.array(distances) * 2.1, atol=6e-5
    )
    plot = page.locator('[data-chart="points"] .plot')
    plot.scroll_into_view_if_needed()
    box = plot.locator(".scatterlayer .trace").last.locator(".point").nth(3).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    hover = plot.locator(".hoverlayer").text_content()
    assert points[3].name in hover
    assert "distance to the bound" in hover
    assert page.locator("#points-table tbody tr").count() == 12
    page.locator("#points-table thead th").nth(0).click()
    names = page.locator("#points-table tbody th").all_text_contents()
    assert sorted(names) == sorted(p.name for p in points)


@in_browser
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_checkpoints_are_joined_in_order_of_steps(open_page, tmp_path, monkeypatch, scheme):
    steps = [1000, 0, 1, 10, 100]
    points = [*training_run(steps), *training_run(steps, "org/large", shift=0.03, n_parameters=10**9)]
    monkeypatch.setattr(pages, "sweep_points", lambda _: points)
    (tmp_path / "report.html").write_text(sweep_page(read_sweep(sweep_folder(tmp_path / "sweep", n_checkpoints=3))))
    page = open_page(tmp_path / "report.html", scheme, 420)
    small, large, marks = page.evaluate(f"{PLOT.format('points')}.data.map(t => t.x)")
    assert small == [marks[i] for i in (1, 2, 3, 4, 0)]
    assert large == [marks[i] for i in (6, 7, 8, 9, 5)]
    colours = page.evaluate(f"{PLOT.format('points')}.data.at(-1).marker.color")
    assert colours[:5] == colours[5:]
    assert len(set(colours)) == 5
    shown = page.locator('[data-chart="points"] .annotation-text').all_text_contents()
    assert sorted(shown) == ["large", "small"]
    assert page.locator("#points-keys .ramp").text_content() == "step 01,000 (log scale)"
    assert page.evaluate("document.documentElement.scrollWidth") <= 420


@in_browser
@pytest.mark.slow
def test_hostile_names_of_models_show_as_text(open_page, result, tmp_path):
    points = [replace(p, name=n, family=n, model=n) for p, n in zip(models(4), HOSTILE, strict=True)]
    page = open_page(page_of(result, points, tmp_path, {HOSTILE[0]: HOSTILE}), width=1400)
    assert set(page.locator('[data-chart="points"] .annotation-text').all_text_contents()) == set(HOSTILE)
    assert set(page.locator('[data-chart="distances"] .ytick text').all_text_contents()) == set(HOSTILE)
    assert page.locator("#points-table tbody th").all_text_contents() == HOSTILE
    assert {text.removesuffix(" (1)") for text in page.locator("#points-keys button").all_inner_texts()} == set(HOSTILE)
    assert page.locator("#points b, #points img, #points script").count() == 0
