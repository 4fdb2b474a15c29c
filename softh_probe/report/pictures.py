"""Figures as files, PNG and SVG, for papers."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from softh_probe.report.figures import FIGURES, compared_by_depth, entropy_by_label, figures_of
from softh_probe.report.sweep_figures import layers_by_step, metric_by_step, plane_through_training
from softh_probe.report.sweeps import Sweep
from softh_probe.result import ProbeResult

_SUFFIXES = ("png", "svg")
#: Metrics of a sweep that are drawn against the training step, and what their files are called.
_BY_STEP = {"entropy": "entropy", "mutual_information": "information", "optimality": "optimality"}


def write_figures(result: ProbeResult, folder: Path) -> None:
    """The figures of one result."""
    for name in figures_of(result):
        _write(FIGURES[name](result), folder, name)
    for name in dict.fromkeys(label_set for label_set, _ in result.labels):
        _write(entropy_by_label(result, name), folder, f"entropy_by_{name.removeprefix('column:')}")


def write_comparison_figures(results: Sequence[ProbeResult], titles: Sequence[str], folder: Path) -> None:
    """Several results, overlaid."""
    _write(compared_by_depth(results, titles), folder, "entropy")
    if any(result.label_sets for result in results):
        for metric, name in (("mutual_information", "information"), ("mutual_information_corrected", "corrected")):
            _write(compared_by_depth(results, titles, metric), folder, name)


def write_sweep_figures(sweep: Sweep, folder: Path) -> None:
    """Layers by steps, metrics against steps and the information plane, for each model of a sweep."""
    models = list(dict.fromkeys(str(c["model"]) for c in sweep.done))
    metrics = set(sweep.table.metric)
    for model in models:
        order = {c["checkpoint"]: i for i, c in enumerate(c for c in sweep.done if str(c["model"]) == model)}
        table = sweep.table[sweep.table.checkpoint.isin(order)]
        table = table.iloc[table.checkpoint.map(order).to_numpy().argsort(kind="stable")]
        prefix = "" if len(models) == 1 else f"{Path(model).name}_"
        _write(layers_by_step(table, "entropy"), folder, f"{prefix}entropy")
        for label_set in table.label_set[table.metric == "mutual_information"].unique():
            _write(layers_by_step(table, "mutual_information", label_set), folder, f"{prefix}information_{label_set}")
        for metric, name in _BY_STEP.items():
            if metric in metrics:
                _write(metric_by_step(table, metric), folder, f"{prefix}{name}_by_step")
        if "optimality" in metrics:
            _write(plane_through_training(table), folder, f"{prefix}plane")
            _write(plane_through_training(table, "mutual_information_corrected"), folder, f"{prefix}plane_corrected")


def _write(figure: Figure, folder: Path, name: str) -> None:
    stem = re.sub(r"[^\w.-]+", "_", name).strip("._")[:80] or "figure"  # names of columns are any text
    for suffix in _SUFFIXES:
        part = folder / f".{stem}.{suffix}.part"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")  # of a label's script: shown as boxes
            figure.savefig(part, dpi=150, format=suffix)
        os.replace(part, folder / f"{stem}.{suffix}")
