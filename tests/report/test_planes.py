"""Models and checkpoints as points: their data, their figures, and a user's groups."""

import math
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_rgba
from matplotlib.text import Text

from softh_probe.analysis.model_points import ModelPoint, PointValue
from softh_probe.errors import InputError
from softh_probe.report.figure_files import write_point_figures
from softh_probe.report.groups import read_groups
from softh_probe.report.packed import packed
from softh_probe.report.plane_data import few_points, limits_of, paths_of, places_of, plane_data, plane_orders
from softh_probe.report.plane_figures import distance_to_bound, plane_of_models
from tests.helpers.model_points import CORRECTED, RAW, models, training_run, values_of
from tests.helpers.report_data import unpacked

HOSTILE = ["<script>alert(1)</script>", "$x^2$", "a_b", "$\\frac{$ </b>"]


def point(name, x, y, **more) -> ModelPoint:
    return ModelPoint(**{"name": name, "model": f"org/{name}", "values": values_of(x, y)} | more)


# --- data ----------------------------------------------------------------------------------------------------


def test_the_data_of_a_page_are_the_points_values_in_their_order():
    points = [point("a", 0.5, 0.3), point("b", 0.4, 0.41, values=values_of(0.4, 0.41, sd=math.nan))]
    points[1].values["input_unigram", RAW] = PointValue(value=0.4, se=0.012345678)
    data = plane_data(points, [4.6, 3.0], {"licence": ["open", None]})
    assert data["series"][f"{RAW}|input_unigram"] == {"v": [0.5, 0.4], "s": [0.005, None], "se": [None, 0.01235]}
    assert data["series"][f"{RAW}|output_unigram"] == {"v": [0.3, 0.41], "s": [0.005, None]}
    assert data["series"][f"{CORRECTED}|output_unigram"]["v"] == [0.21, 0.287]
    assert data["series"]["optimality|unigram"]["v"] == [0.6, 1.025]
    assert [p["log_m"] for p in data["points"]] == [4.6, 3.0]
    assert data["orders"] == ["unigram"]
    assert data["groups"] == {"licence": ["open", None]}
    assert data["label_sets"] == ["input_unigram", "output_unigram"]


def test_what_a_point_lacks_is_missing_and_not_zero():
    bigram = point("b", 0.4, 0.2, values=values_of(0.4, 0.2, order="bigram"))
    points = [point("a", 0.5, 0.3), bigram, point("c", 0.1, 0.1, values={})]
    assert plane_orders(points) == ["unigram", "bigram"]
    assert plane_data(points, [1] * 3)["series"][f"{RAW}|input_bigram"]["v"] == [None, 0.4, None]
    assert plane_data(points[2:], [1])["orders"] == []
    x, y = places_of(points, "unigram", RAW)
    np.testing.assert_array_equal(np.isnan(x), [False, True, True])
    np.testing.assert_array_equal(np.isnan(y), [False, True, True])


def test_paths_go_through_the_checkpoints_of_a_run_in_order_of_steps():
    lone = point("lone", 0.3, 0.2, step=5)
    once = training_run([7], "org/once")
    points = [*training_run([100, 0, 10]), lone, *training_run([4, 2], "org/other"), *once]
    assert paths_of(points) == {"org/small": [1, 2, 0], "org/other": [5, 4]}
    assert plane_data(points, [1] * len(points))["paths"] == [
        {"name": "small", "points": [1, 2, 0]},
        {"name": "other", "points": [5, 4]},
    ]


def test_few_points_keep_the_ends_of_every_run():
    runs = [*training_run(range(900)), *training_run(range(300), "org/other"), *models(300)]
    few = few_points(runs, 100)
    assert 90 <= len(few) <= 100
    for series, last in (("org/small", 899), ("org/other", 299)):
        steps = [p.step for p in few if p.series == series]
        assert (steps[0], steps[-1]) == (0, last)
        assert max(np.diff(steps)) <= min(np.diff(steps)) + 1
    assert few_points(runs[:100], 100) == runs[:100]


@pytest.mark.parametrize("x", [[0.4, 0.5], [0.1, 0.2], [0.3, 0.3], [0.0, 0.0]])
@pytest.mark.parametrize("y", [[0.1, 0.2], [0.45, 0.48], [0.9, 0.95], [0.0, 0.0]])
def test_every_point_and_a_part_of_the_bound_are_in_sight(x, y):
    (left, right), (low, high) = limits_of(np.array(x), np.array(y))
    assert left < min(x) <= max(x) < right
    assert low < min(y) <= max(y) < high
    assert min(right, high) - max(left, low) > 0.05 * min(right - left, high - low)


@pytest.mark.parametrize(("scale", "kind"), [(0.8, "u2"), (0.0, "u2"), (1.3, "u2"), (1000.0, "f4")])
def test_packed_numbers_are_those_within_what_is_shown(scale, kind):
    values = scale * np.random.default_rng(0).random((7, 5))
    values[2, 3], values[4, 1] = np.nan, np.inf
    found = packed(values)
    assert kind in found
    values[4, 1] = np.nan
    np.testing.assert_allclose(unpacked(found), values, atol=1.001e-5, rtol=1e-6)


def test_packed_numbers_of_which_none_is_known_are_all_missing():
    assert np.isnan(unpacked(packed(np.full((2, 2), np.nan)))).all()


# --- figures --------------------------------------------------------------------------------------------------


def artists(figure):
    """Points [P, 2] in all, lines [[x, y], …], and labels of a plane."""
    axes = figure.axes[0]
    points = [c for c in axes.collections if isinstance(c, PathCollection)]
    lines = [line.get_xydata() for line in axes.lines if line.get_linestyle() in ("-", ":")]
    return np.vstack([c.get_offsets() for c in points]), lines, [t for t in axes.texts if t.get_text()]


def test_a_plane_has_every_point_the_bound_and_the_sd():
    points = [point("a", 0.5, 0.3), point("b", 0.4, 0.41), point("c", 0.2, 0.1, values={})]
    figure = plane_of_models(points, "unigram")
    found, lines, labels = artists(figure)
    np.testing.assert_allclose(found, [[0.5, 0.3], [0.4, 0.41]])
    (bound,) = lines
    np.testing.assert_allclose(bound[:, 0], bound[:, 1])
    assert {label.get_text() for label in labels} == {"a", "b"}
    bars = [c.get_segments() for c in figure.axes[0].collections if isinstance(c, LineCollection)]
    np.testing.assert_allclose(bars[0][0], [[0.495, 0.3], [0.505, 0.3]])
    np.testing.assert_allclose(bars[1][1], [[0.4, 0.405], [0.4, 0.415]])
    corrected, _, _ = artists(plane_of_models(points, "unigram", CORRECTED))
    np.testing.assert_allclose(corrected, [[0.35, 0.21], [0.28, 0.287]])


def test_checkpoints_are_joined_in_order_of_steps_and_coloured_by_step():
    points = [*training_run([1000, 0, 10, 100]), *training_run([5, 50], "org/other", shift=0.1)]
    figure = plane_of_models(points, "unigram")
    found, (_, first, second), labels = artists(figure)
    np.testing.assert_allclose(first, found[[1, 2, 3, 0]])
    np.testing.assert_allclose(second, found[[4, 5]])
    assert {label.get_text() for label in labels} == {"small", "other"}
    (scatter,) = (c for c in figure.axes[0].collections if isinstance(c, PathCollection))
    green = [to_rgba(colour)[1] for colour in scatter.get_facecolors()]
    assert np.argsort(green).tolist() == [1, 4, 2, 5, 3, 0]  # viridis grows brighter
    # Equal ratios of steps are equal distances of colours: 10, 100 and 1000 are a decade apart.
    ticks = dict(
        zip([t.get_text() for t in figure.axes[1].get_yticklabels()], figure.axes[1].get_yticks(), strict=True)
    )
    assert ticks["1,000"] - ticks["100"] == pytest.approx(ticks["100"] - ticks["10"])


def test_families_have_colours_and_a_legend_and_parameters_areas():
    points = [
        point("a", 0.5, 0.3, family="llama", n_parameters=10**8),
        point("b", 0.4, 0.2, family="opt", n_parameters=10**9),
        point("c", 0.3, 0.1, family="llama", n_parameters=10**10),
        point("d", 0.2, 0.1),
    ]
    figure = plane_of_models(points, "unigram")
    (scatter,) = (c for c in figure.axes[0].collections if isinstance(c, PathCollection))
    a, b, c, d = map(tuple, scatter.get_facecolors())
    assert a == c
    assert len({a, b, d}) == 3
    small, middle, large, unknown = scatter.get_sizes()
    assert middle - small == pytest.approx(large - middle)
    assert unknown == small < large
    families, sizes = ([text.get_text() for text in legend.get_texts()] for legend in figure.legends)
    assert families == ["llama (2)", "opt (1)", "unknown (1)"]
    assert sizes == ["100M", "1B", "10B"]
    by_name = plane_of_models(points, "unigram", colour_by={"a": "x", "b": "x", "c": "y"})
    assert [text.get_text() for text in by_name.legends[0].get_texts()] == ["x (2)", "y (1)", "unknown (1)"]


@pytest.mark.parametrize(("n", "most_left"), [(50, 5), (200, 160)])
def test_no_two_labels_touch_and_those_without_room_are_counted(n, most_left):
    figure = plane_of_models(models(n), "unigram")
    figure.draw_without_rendering()
    axes = figure.axes[0]
    frame = axes.get_window_extent()
    labels = [text for text in axes.texts if text.get_text()]
    boxes = [Text.get_window_extent(text) for text in labels]  # without the line to its point
    for i, one in enumerate(boxes):
        assert frame.x0 <= one.x0 <= one.x1 <= frame.x1
        assert frame.y0 <= one.y0 <= one.y1 <= frame.y1
        assert not any(one.overlaps(other) for other in boxes[:i])
    left = n - len(labels)
    assert left <= most_left
    assert axes.get_title(loc="right") == (f"{left} of {n} without a label" if left else "")


def test_bars_are_the_distances_to_the_bound_the_least_first():
    points = [point("a", 0.5, 0.3), point("b", 0.4, 0.41), point("c", 0.3, 0.2)]
    axes = distance_to_bound(points, "unigram").axes[0]
    np.testing.assert_allclose([bar.get_width() for bar in axes.patches], [-0.01, 0.1, 0.2])
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["b", "c", "a"]
    many = models(80)
    x, y = places_of(many, "unigram", CORRECTED)
    upright = distance_to_bound(many, "unigram", CORRECTED).axes[0]
    np.testing.assert_allclose([bar.get_height() for bar in upright.patches], np.sort(x - y))
    assert upright.get_xlabel() == "80 points, sorted; their names are in report.html"


def test_names_are_drawn_as_text_and_not_as_formulas(tmp_path):
    points = [point(name, 0.2 + 0.1 * i, 0.1, family=name) for i, name in enumerate(HOSTILE)]
    figure = plane_of_models(points, "unigram")
    _, _, labels = artists(figure)
    assert {label.get_text().replace("\\$", "$") for label in labels} == set(HOSTILE)
    write_point_figures(points, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"model_{name}.{suffix}" for name in ("distances", "plane", "plane_corrected") for suffix in ("png", "svg")
    ]
    assert "<script" not in (tmp_path / "model_plane.svg").read_text()


def test_each_order_has_a_panel_with_the_points_that_have_it():
    both = values_of(0.4, 0.2) | values_of(0.5, 0.1, order="bigram", corrected=math.nan)
    points = [point("a", 1, 1, values=both), point("b", 0.6, 0.3), point("c", 0.1, 0.1, values={})]
    unigram, bigram, *_ = plane_of_models(points).axes
    assert (unigram.get_title("left"), bigram.get_title("left")) == ("unigram", "bigram")
    places = [
        np.vstack([c.get_offsets() for c in axes.collections if isinstance(c, PathCollection)])
        for axes in (unigram, bigram)
    ]
    np.testing.assert_allclose(places[0], [[0.4, 0.2], [0.6, 0.3]])
    np.testing.assert_allclose(places[1], [[0.5, 0.1]])
    assert [{t.get_text() for t in axes.texts if t.get_text()} for axes in (unigram, bigram)] == [{"a", "b"}, {"a"}]
    bars = [[bar.get_width() for bar in axes.patches] for axes in distance_to_bound(points).axes]
    np.testing.assert_allclose(np.concatenate(bars), [0.2, 0.3, 0.4])
    only = plane_of_models(points, metric=CORRECTED).axes[0]  # bigrams have no corrected one
    assert only.get_title("left") == "Information plane · unigram, corrected"


def test_a_single_point_has_no_figures_and_a_single_run_no_bars(tmp_path):
    write_point_figures([point("a", 0.5, 0.3)], tmp_path / "none")
    assert not (tmp_path / "none").exists()
    write_point_figures(training_run([1, 10]), tmp_path)
    assert {path.stem for path in tmp_path.iterdir()} == {"model_plane", "model_plane_corrected"}
    write_point_figures([*training_run([1, 10]), point("b", 0.5, 0.3)], tmp_path)
    assert (tmp_path / "model_distances.svg").exists()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (
            {"order": "trigram"},
            "order: no point has mutual_information about input_trigram and output_trigram; orders ",
        ),
        ({"order": "unigram", "colour_by": "size"}, "colour_by: expected 'family' or 'step', or groups by "),
    ],
)
def test_what_cannot_be_drawn_is_said(options, error):
    for draw in (plane_of_models, distance_to_bound):
        with pytest.raises(InputError, match=f"^{error}"):
            draw([point("a", 0.5, 0.3)], **options)


# --- groups ---------------------------------------------------------------------------------------------------


def test_groups_are_found_by_name_revision_id_and_the_end_of_the_id(tmp_path):
    path = tmp_path / "groups.csv"
    path.write_text("model,licence,size\nmine,open,\norg/b,closed,large\nc@main,open,small\nd,closed,1\nz,open,1\n")
    groups = read_groups(path)
    points = [
        point("mine", 1, 1, model="org/b"),
        *(point(f"the {name}", 1, 1, model=f"org/{name}", revision="main") for name in "bcde"),
    ]
    assert groups.columns_of(points) == {
        "licence": ["open", "closed", "open", "closed", None],
        "size": [None, "large", "small", "1", None],
    }
    assert groups.notes(points) == [
        f"{path} has no line for the e.",
        f"{path} has lines of models that are not here: z.",
    ]
    assert groups.notes([replace(points[0], name=name) for name in groups.lines]) == []


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("name,licence\na,open\n", "expected the column model and others to colour by, got name, licence"),
        ("model\na\n", "expected the column model and others to colour by, got model"),
        ("model,licence\na,open\na,closed\n", "expected each model once, got a again"),
        ("", "cannot read"),
        (None, "cannot read"),
    ],
)
def test_groups_that_cannot_be_read_are_refused_in_one_line(tmp_path, text, error):
    if text is not None:
        (tmp_path / "groups.csv").write_text(text)
    with pytest.raises(InputError, match=error) as raised:
        read_groups(tmp_path / "groups.csv")
    assert str(raised.value).startswith("groups: ")
    assert "\n" not in str(raised.value)
