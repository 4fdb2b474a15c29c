"""Ticks of training steps in static figures, as matplotlib draws them."""

from itertools import pairwise

import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg

from softh_probe.report.step_ticks import log_ticks
from softh_probe.report.sweep_figures import layers_by_step, metric_by_step
from tests.helpers.report_data import STEPS

SPANS = {**STEPS, "narrow": [142_000, 143_000]}


def table_of(steps, label_sets):
    head = {"name": "embeddings", "layer": 0, "metric": "mutual_information", "value": 0.5, "sd": 0.01}
    rows = [{"checkpoint": f"step{s}", "step": s, "label_set": name, **head} for s in steps for name in label_sets]
    return pd.DataFrame(rows)


def labels_of(axes, figure):
    shown = [label for label in axes.get_xticklabels() if label.get_text() and label.get_visible()]
    return [(label.get_text(), label.get_window_extent(figure.canvas.get_renderer())) for label in shown]


def drawn_by_agg(figure):
    FigureCanvasAgg(figure).draw()
    return figure


@pytest.mark.parametrize("n", SPANS)
@pytest.mark.parametrize("sets", [["a"], ["a", "b", "c"]])
def test_ticks_keep_apart(n, sets):
    steps = SPANS[n]
    table = table_of(steps, sets)
    for figure in (
        metric_by_step(table, "mutual_information"),
        layers_by_step(table, "mutual_information", "a"),
        layers_by_step(table, "mutual_information"),
    ):
        drawn_by_agg(figure)
        drawn = [found for axes in figure.axes[: len(sets)] if (found := labels_of(axes, figure))]
        for found in drawn:
            assert min(2, len(steps)) <= len(found) <= 14
            assert found[0][0] == f"{steps[0]:,}"
            assert all(one.x1 < other.x0 for (_, one), (_, other) in pairwise(found)), [text for text, _ in found]
        assert drawn
        plt.close(figure)


def test_panels_above_an_empty_one_have_ticks():
    figure = drawn_by_agg(metric_by_step(table_of([1, 10, 100], ["a", "b", "c"]), "mutual_information"))
    assert [len(labels_of(axes, figure)) > 0 for axes in figure.axes[:3]] == [False, True, True]


def test_a_label_set_that_a_checkpoint_lacks_is_drawn_at_the_others():
    table = table_of([1, 10, 100, 1000], ["a", "b"])
    table = table[(table.label_set != "a") | (table.step != 10)]
    lines = [axes.lines[0].get_xdata() for axes in metric_by_step(table, "mutual_information").axes[:2]]
    assert [list(x) for x in lines] == [[1, 100, 1000], [1, 10, 100, 1000]]
    figure = layers_by_step(table, "mutual_information")
    lacking, whole, *_ = drawn_by_agg(figure).axes
    assert lacking.get_xlim() == whole.get_xlim() == (-0.5, 3.5)
    assert [text for text, _ in labels_of(whole, figure)] == ["1", "10", "100", "1,000"]


def test_step_0_has_a_tick_however_near_the_others_are():
    assert log_ticks(STEPS[1500], inches=1.0)[0] == 0
    assert log_ticks([0], inches=1.0) == [0]
