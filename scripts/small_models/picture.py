"""The picture of a sweep over training: whole models in the plane, their learning, optimality against the score."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from small_models.training import Plan
from softh_probe.report.figure_style import COLOURS, lay_out, style_axes
from softh_probe.report.label_places import place_labels
from softh_probe.report.plane_data import limits_of, places_of
from softh_probe.report.points import read_points

#: Order of the n-grams.
ORDER = "unigram"
_BOUND = {"color": "0.5", "linestyle": ":", "linewidth": 1.2, "zorder": 1}


def draw(out: Path, plan: Plan, entropy: float) -> None:
    """Draw train_and_sweep.png and .svg in the folder of results.

    Args:
        out: the folder.
        plan: what was trained.
        entropy: of the tokens held out, in nats: the least loss of a model that knows frequencies alone.
    """
    points = sorted(read_points([out / "sweep"]), key=lambda point: point.step or 0)
    scores = pd.read_csv(out / "sweep" / "scores.csv").set_index(["model", "step"]).value
    score = scores.loc[[(point.series, point.step) for point in points]].to_numpy()
    found = pd.read_csv(out / "sweep" / "correlations.csv").query(f"metric == 'optimality' and label_set == '{ORDER}'")
    optimality = np.array([point.values[ORDER, "optimality"].value for point in points])
    x, y = places_of(points, ORDER, "mutual_information")

    figure = Figure(figsize=(11.2, 5.2), layout="constrained")
    grid = figure.add_gridspec(3, 3, width_ratios=[1.2, 1, 1])
    plane, right = figure.add_subplot(grid[:, 0]), figure.add_subplot(grid[:, 2])
    courses = [figure.add_subplot(grid[row, 1]) for row in range(3)]
    style_axes(
        plane,
        "Whole models in the plane",
        "I(input unigram; Z), share of log m",
        "I(output unigram; Z), share of log m",
    )
    plane.set(**dict(zip(("xlim", "ylim"), limits_of(x, y), strict=True)))
    plane.axline((0, 0), slope=1, label="bound", **_BOUND)
    _steps_below(courses, plan.checkpoints())
    courses[0].set_title("Optimality (unigram)", loc="left")
    courses[1].set_title("Held-out loss (dotted: unigrams)", loc="left")
    courses[1].axhline(entropy, **_BOUND)
    courses[2].set_title("Cloze accuracy (dotted: chance)", loc="left")
    correlation = f"Spearman {found.spearman.iloc[0]:.2f} (n = {found.n.iloc[0]})"
    style_axes(right, correlation, "optimality (unigram)", "cloze accuracy")
    right.xaxis.set_major_locator(MaxNLocator(5))
    for axes in (courses[2], right):
        axes.axhline(0.25, **_BOUND)
    for name, colour, marker in zip(plan.shapes, COLOURS, "os", strict=False):
        own = [i for i, point in enumerate(points) if Path(point.series).name == name]
        steps = [points[i].step for i in own]
        losses = json.loads((out / "models" / name / "training.json").read_text())
        look = {"color": colour, "marker": marker, "markersize": 5, "linewidth": 1.2}
        plane.plot(
            x[own],
            y[own],
            label=f"{name}, {(points[own[0]].n_parameters or 0) / 1e6:.1f}M",
            **look,
        )
        courses[0].plot(steps, optimality[own], **look)
        courses[1].plot([at["step"] for at in losses], [at["loss"] for at in losses], **look)
        courses[2].plot(steps, score[own], **look)
        right.plot(optimality[own], score[own], **look | {"linestyle": ""})
    plane.legend(frameon=False, loc="upper left")
    lay_out(figure)
    names = [f"{point.step:,}" for point in points]
    for axes, across, up in ((plane, x, y), (right, optimality, score)):
        place_labels(axes, across, up, names, np.full(len(points), look["markersize"] ** 2))
    for suffix in ("png", "svg"):
        figure.savefig(out / f"train_and_sweep.{suffix}", dpi=130)


def _steps_below(courses: Sequence[Axes], steps: Sequence[int]) -> None:
    """Give panels one axis of training steps, on a log scale from step 1 on; names stand below the last one."""
    for axes in courses:
        style_axes(axes, "", "", "")
        axes.set_xscale("symlog", linthresh=1, linscale=0.4)
        axes.set_xticks(steps, [str(step) if i % 2 else "" for i, step in enumerate(steps, len(steps) % 2)])
        axes.minorticks_off()
        axes.tick_params(labelbottom=axes is courses[-1])
    courses[-1].set_xlabel("training step (log scale)")
