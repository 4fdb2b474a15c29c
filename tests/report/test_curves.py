"""One curve of a result alone, on axes of one's own."""

import re
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from softh_probe.errors import InputError
from tests.helpers.models import tiny_llama
from tests.helpers.report_data import result_of

LABELS = ("input_unigram", "output_unigram")


@pytest.fixture(scope="module")
def result():
    """Of two anchor sets, sites, and a label set `topic`; with standard errors, as intervals measure them."""
    measured = result_of(tiny_llama(), labels=LABELS, anchor_sets=2, sites="residual,mlp,attention_heads")
    n_rows, n_sets = len(measured.rows), len(measured.label_sets)
    errors = {"se_entropy": torch.linspace(0.01, 0.02, n_rows, dtype=torch.float64)}
    for name in ("se_information", "se_regularity", "se_optimality"):
        errors[name] = torch.full((n_rows, n_sets), 0.03, dtype=torch.float64)
    return replace(measured, tensors={**measured.tensors, **errors})


def expected(result, metric, label_set="", site="residual", unit=1.0):
    """Indices of layers and values, from the tensors of the metric itself."""
    values_RS = {(x, name): values for x, name, values in result.metrics()}[label_set, metric]
    chosen = [row for row, other in enumerate(result.places.sites) if other == site]
    layers = np.array(result.places.indices)[chosen]
    return layers, values_RS[chosen].mean(dim=1).numpy() / unit, values_RS[chosen].std(dim=1).numpy() / unit


@pytest.mark.parametrize(
    ("figure", "chosen", "metric", "label_set"),
    [
        ("information", {"label_set": "topic", "metric": "corrected"}, "mutual_information_corrected", "topic"),
        ("information", {"label_set": "input_unigram"}, "mutual_information", "input_unigram"),
        ("information", {"label_set": "topic", "metric": "null"}, "mutual_information_null", "topic"),
        ("mutual_information_max", {"label_set": "topic"}, "mutual_information_max", "topic"),
        ("entropy", {}, "entropy", ""),
        ("conditional_entropy", {"label_set": "topic"}, "conditional_entropy", "topic"),
        ("overview", {"metric": "coverage", "label_set": "output_unigram"}, "coverage", "output_unigram"),
        ("overview", {"metric": "corrected", "label_set": "topic"}, "mutual_information_corrected", "topic"),
        ("optimality", {"metric": "corrected"}, "optimality_corrected", "unigram"),
        ("regularity", {"label_set": "topic"}, "regularity", "topic"),
    ],
)
def test_any_metric_is_drawn_alone_on_axes_of_ones_own(result, figure, chosen, metric, label_set):
    ours = Figure()
    axes = ours.add_subplot()
    drawn = result.plot(figure, unit="nats", ax=axes, **chosen)
    assert drawn is ours
    (line,) = axes.lines
    layers, values, _ = expected(result, metric, label_set)
    np.testing.assert_array_equal(line.get_xdata(), layers)
    np.testing.assert_allclose(line.get_ydata(), values, rtol=1e-12)
    assert not axes.collections
    assert axes.get_xlabel() == "layer (0: embeddings; 4: final norm)"


def test_units_sites_heads_and_a_figure_of_its_own(result):
    drawn = result.plot("information", "bits", label_set="topic", site="mlp")
    (axes,) = drawn.axes
    layers, values, _ = expected(result, "mutual_information", "topic", "mlp", unit=np.log(2))
    np.testing.assert_allclose(axes.lines[0].get_ydata(), values, rtol=1e-12)
    assert axes.get_ylabel() == "I(X;Z) (bits)"
    assert drawn._repr_png_().startswith(b"\x89PNG")
    (line,) = result.plot("regularity", label_set="topic", site="head.2").axes[0].lines
    rows = result.to_pandas().query("metric == 'regularity' and label_set == 'topic'").set_index("name").value
    assert line.get_ydata().tolist() == [rows[f"layer.{i}.head.2"] for i in (1, 2, 3)]
    assert layers.tolist() == [1, 2, 3] == line.get_xdata().tolist()


def test_errors_are_those_that_are_chosen(result):
    layers, values, sd = expected(result, "mutual_information", "topic")

    def parts(error):
        figure = Figure()
        axes = figure.add_subplot()
        result.plot("information", "nats", label_set="topic", ax=axes, error=error)
        bands = [c for c in axes.collections if isinstance(c, mpl.collections.PolyCollection)]
        bars = [c for c in axes.collections if isinstance(c, mpl.collections.LineCollection)]
        return bands, bars

    (band,), no_bars = parts("sd")
    assert no_bars == []
    heights = band.get_paths()[0].vertices
    for layer, value, spread in zip(layers, values, sd, strict=True):
        edges = heights[heights[:, 0] == layer][:, 1]
        assert (edges.min(), edges.max()) == (pytest.approx(value - spread), pytest.approx(value + spread))
    no_bands, (bars,) = parts("se")
    assert no_bands == []
    lengths = [np.ptp(np.array(one)[:, 1]) for one in bars.get_segments()]
    np.testing.assert_allclose(lengths, 2 * 0.03)
    assert [len(part) for part in parts("both")] == [1, 1]
    assert [len(part) for part in parts(None)] == [0, 0]


def test_several_curves_share_axes_whose_labels_stay(result):
    figure = Figure()
    axes = figure.subfigures(1, 2)[1].add_subplot()  # a part of a figure
    axes.set_ylabel("what layers know")
    assert result.plot("information", label_set="topic", ax=axes, label="topics", color="k", marker="s") is figure
    assert result.plot("information", label_set="input_unigram", ax=axes, error="sd") is figure
    first, second = axes.lines
    assert (first.get_label(), first.get_color(), first.get_marker()) == ("topics", "k", "s")
    assert second.get_label() == "mutual information input unigram"
    assert axes.get_ylabel() == "what layers know"


@pytest.mark.parametrize(
    ("figure", "chosen", "message"),
    [
        ("information", {"label_set": "lang"}, r"label_set: expected one of input_unigram, .*topic.*, got 'lang'"),
        (
            "information",
            {"metric": "corrected"},
            r"label_set: expected one of input_unigram, .*, whose mutual_",
        ),
        ("entropy", {"label_set": "topic"}, "label_set: entropy is of no label set, got 'topic'"),
        (
            "information",
            {"label_set": "topic", "metric": "sharpness"},
            "metric: expected one of entropy, .*got 'sh",
        ),
        ("overview", {"label_set": "topic"}, "metric: expected one of entropy, .*, to be drawn alone"),
        ("plane", {"label_set": "topic"}, "figure: 'plane' is no single curve, .* expected information, or a metric"),
        ("topic", {"error": "sd"}, "figure: 'topic' is no single curve"),
        ("entropy", {"error": "sem"}, "error: expected sd, se, both or None, got 'sem'"),
        (
            "information",
            {"label_set": "topic", "metric": "corrected", "error": "se"},
            "corrected of the result has no",
        ),
        (
            "entropy",
            {"site": "router"},
            r"site: expected .*mlp.* or head.0, head.1, … of attention_heads, got",
        ),
        ("entropy", {"site": "attention_heads"}, "site: expected .*, got 'attention_heads'"),
        ("entropy", {"ax": [1, 2]}, "ax: expected the axes of matplotlib, got list; of several, give one"),
        ("information", {"label_set": ["topic"]}, r"label_set: expected a string, got \['topic'\]"),
        ("information", {"label_set": "topic", "metric": 3}, "metric: expected a string, got 3"),
        ("entropy", {"site": 3}, "site: expected a string, got 3"),
        (None, {}, "figure: expected a string, got None"),
        (3, {}, "figure: expected a string, got 3"),
        ("entropy", {"colour": "k"}, "plot: .*colour.*; it takes figure, unit, label_set, metric, ax, error, site"),
    ],
)
def test_what_is_no_curve_is_answered_with_what_there_is(result, figure, chosen, message):
    with pytest.raises(InputError, match=message):
        result.plot(figure, **chosen)


def test_errors_that_were_not_measured_are_told(result):
    single = result_of(tiny_llama(), labels=LABELS, anchor_sets=1)
    with pytest.raises(InputError, match="error: the result has no sd, which takes anchor_sets=2 or more"):
        single.plot("entropy", error="sd")
    with pytest.raises(InputError, match="entropy of the result has no se, which takes the intervals of a run"):
        single.plot("entropy", error="se")
    assert single.plot("optimality", label_set="unigram").axes[0].lines


def test_the_figure_of_the_readme(result, tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (lines,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "ax=ax" in block)
    assert len(lines.splitlines()) == 3
    monkeypatch.chdir(tmp_path)
    exec(lines.replace('"language"', '"topic"'), {"plt": plt, "result": result})
    plt.close()
    assert (tmp_path / "language.pdf").read_bytes().startswith(b"%PDF")
