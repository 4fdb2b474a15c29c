"""Figures as files (PNG and SVG), for papers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from softh_probe.analysis.model_points import ModelPoint
from softh_probe.analysis.sites import HEADS, common_lines, lines_of, of_site
from softh_probe.files import replacing
from softh_probe.forks import run_in_forks
from softh_probe.report.figure_style import boxes_for_missing_glyphs, lay_out
from softh_probe.report.figures import FIGURES, compared_by_depth, entropy_by_label, figures_of
from softh_probe.report.groups import Groups
from softh_probe.report.plane_data import INFORMATIONS, paths_of, plane_orders
from softh_probe.report.plane_figures import distance_to_bound, plane_of_models
from softh_probe.report.sweep_data import Sweep
from softh_probe.report.sweep_figures import layers_by_step, metric_by_step, plane_through_training
from softh_probe.result import ProbeResult

_DPI = 150
#: Metrics of a sweep that are drawn against the training step, with the names of their files.
_BY_STEP = {"mutual_information": "information", "optimality": "optimality", "entropy": "entropy"}
_MAX_BYTES = 120  # of a name; file systems allow 255, suffixes included


def write_figures(result: ProbeResult, folder: Path) -> None:
    """Write the figures of one result; of several sites, those of each, with its name before theirs."""
    sets = dict.fromkeys(label_set for label_set, _ in result.labels)
    _write(((name, FIGURES[name](result)) for name in figures_of(result)), folder)
    lead, *others = lines_of(result)
    for site in others:
        own = of_site(result, site)
        _write(((f"{site}_{name}", FIGURES[name](own)) for name in figures_of(own)), folder)
    if lead != HEADS:
        own = of_site(result, lead)
        _write(((f"entropy_by_{name.removeprefix('column:')}", entropy_by_label(own, name)) for name in sets), folder)


def write_comparison_figures(results: Sequence[ProbeResult], titles: Sequence[str], folder: Path) -> None:
    """Write figures in which several results are overlaid, of each site that all of them have."""
    sites = common_lines(results)
    for site in sites:
        prefix = "" if site == sites[0] else f"{site}_"
        _write_compared([of_site(result, site) for result in results], titles, folder, prefix)


def _write_compared(results: Sequence[ProbeResult], titles: Sequence[str], folder: Path, prefix: str) -> None:
    metrics = {"entropy": "entropy"}
    if any(result.label_sets for result in results):
        metrics |= {"information": "mutual_information", "corrected": "mutual_information_corrected"}
    drawn = ((f"{prefix}{name}", compared_by_depth(results, titles, metric)) for name, metric in metrics.items())
    _write(drawn, folder)


def write_sweep_figures(
    sweep: Sweep,
    folder: Path,
    points: Sequence[ModelPoint] = (),
    groups: Groups | None = None,
    beside: Sequence[Callable[[], None]] = (),
) -> None:
    """Write figures of each model of a sweep: layers by steps, metrics by step, and the information plane.

    Args:
        sweep: one site of it.
        folder: for the files.
        points: its checkpoints, of which planes and distances are drawn, too.
        groups: as in `write_point_figures`.
        beside: further tasks that only write files, which the cores share with these.
    """
    before = "" if sweep.site == sweep.sites[0] else f"{sweep.site}_"
    taken: set[str] = set()
    drawn = [*_point_figures(points, groups), *_sweep_figures(sweep)]
    tasks = [partial(_draw, draw, folder, _stem(f"{before}{name}", taken)) for name, draw in drawn]
    run_in_forks([*tasks, *beside])


def _sweep_figures(sweep: Sweep) -> Iterator[tuple[str, Callable[[], Figure]]]:
    models = list(dict.fromkeys(str(c["model"]) for c in sweep.done))
    steps = {c["checkpoint"]: c.get("step") for c in sweep.done}
    metrics = set(sweep.table.metric.unique())
    for model in models:
        table, axis = sweep.table_of(model)
        table = table.assign(step=table.checkpoint.map(steps).astype("Int64"))
        prefix = "" if len(models) == 1 else f"{Path(model).name}_"
        # Those of one panel last: cores that are done before the others then wait for little.
        if "optimality" in metrics:
            yield f"{prefix}plane", partial(plane_through_training, table)
            corrected = "mutual_information_corrected"
            yield f"{prefix}plane_corrected", partial(plane_through_training, table, corrected)
        if sweep.label_sets:
            yield f"{prefix}information", partial(layers_by_step, table, "mutual_information", axis=axis)
        for metric, name in _BY_STEP.items():
            if metric in metrics:
                yield f"{prefix}{name}_by_step", partial(metric_by_step, table, metric)
        yield f"{prefix}entropy", partial(layers_by_step, table, "entropy", axis=axis)


def write_point_figures(points: Sequence[ModelPoint], folder: Path, groups: Groups | None = None) -> None:
    """Write the planes of models and checkpoints, raw and corrected, and bars of their distances to the bound.

    Args:
        points: one or none has no plane.
        folder: for the files.
        groups: the first of their columns gives the colours.
    """
    run_in_forks([partial(_draw, draw, folder, name) for name, draw in _point_figures(points, groups)])


def _point_figures(points: Sequence[ModelPoint], groups: Groups | None) -> Iterator[tuple[str, Callable[[], Figure]]]:
    if len(points) < 2:
        return
    columns = groups.columns_of(points) if groups else {}
    names = [point.name for point in points]
    colour_by = next((dict(zip(names, column, strict=True)) for column in columns.values()), None)
    for metric, end in zip(INFORMATIONS, ("", "_corrected"), strict=True):
        if plane_orders(points, metric):
            yield f"model_plane{end}", partial(plane_of_models, points, None, metric, colour_by)
    is_one_run = any(len(path) == len(points) for path in paths_of(points).values())
    if plane_orders(points) and not is_one_run:  # whose distances are drawn by step
        yield "model_distances", partial(distance_to_bound, points, colour_by=colour_by)


def _write(figures: Iterable[tuple[str, Figure]], folder: Path) -> None:
    """Write figures by name, each as one file for every format."""
    taken: set[str] = set()
    for name, figure in figures:
        _save(figure, folder, _stem(name, taken))


def _draw(draw: Callable[[], Figure], folder: Path, stem: str) -> None:
    """Draw a figure and write it."""
    _save(draw(), folder, stem)


def _save(figure: Figure, folder: Path, stem: str) -> None:
    """Write a figure as PNG and SVG. `Figure.savefig` would lay it out and draw it twice for each of them."""
    with boxes_for_missing_glyphs():
        lay_out(figure)
        figure.set_dpi(_DPI)
        with replacing(folder / f"{stem}.png") as part:
            FigureCanvasAgg(figure).print_png(part)  # type: ignore[no-untyped-call]
        with replacing(folder / f"{stem}.svg") as part:
            FigureCanvasSVG(figure).print_svg(part)  # type: ignore[no-untyped-call]


def _stem(name: str, taken: set[str]) -> str:
    """Make a file name from any text, unlike the taken ones in letters alone: some file systems ignore case.

    >>> taken = set()
    >>> [_stem(name, taken) for name in ("by_a b", "by_a/b", "by_../../x")]
    ['by_a_b', 'by_a_b-2', 'by_.._.._x']
    """
    cut = re.sub(r"[^\w.-]+", "_", name).strip("._").encode()[:_MAX_BYTES].decode(errors="ignore") or "figure"
    stem, n = cut, 1
    while stem.casefold() in taken:
        n += 1
        stem = f"{cut}-{n}"
    taken.add(stem.casefold())
    return stem
