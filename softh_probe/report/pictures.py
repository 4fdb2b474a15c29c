"""Figures as files, PNG and SVG, for papers."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from softh_probe.report.figures import FIGURES, compared_by_depth, entropy_by_label, figures_of, layers_by_step
from softh_probe.report.sweeps import Sweep
from softh_probe.result import ProbeResult

_SUFFIXES = ("png", "svg")


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
    """Heat maps of layers and steps, for each model of a sweep."""
    models = list(dict.fromkeys(str(c["model"]) for c in sweep.done))
    for model in models:
        done = [c for c in sweep.done if str(c["model"]) == model]
        table = sweep.table[sweep.table.checkpoint.isin([c["checkpoint"] for c in done])]
        steps = [c["checkpoint"] if c.get("step") is None else f"{c['step']:,}" for c in done]
        prefix = "" if len(models) == 1 else f"{Path(model).name}_"
        for name, metric, label_set in _maps(sweep):
            _write(layers_by_step(table, steps, metric, label_set), folder, f"{prefix}{name}")


def _maps(sweep: Sweep) -> Iterator[tuple[str, str, str]]:
    yield "entropy", "entropy", ""
    for label_set in sweep.label_sets:
        yield f"information_{label_set}", "mutual_information", label_set


def _write(figure: Figure, folder: Path, name: str) -> None:
    stem = re.sub(r"[^\w.-]+", "_", name).strip("._")[:80] or "figure"  # names of columns are any text
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # of a label's script: shown as boxes
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once, for all formats
        for suffix in _SUFFIXES:
            part = folder / f".{stem}.{suffix}.part"
            figure.savefig(part, dpi=150, format=suffix)
            os.replace(part, folder / f"{stem}.{suffix}")
