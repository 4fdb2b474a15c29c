"""report.html: one self-contained page that opens from disk."""

from __future__ import annotations

import base64
import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from softh_probe.analysis.alignment import equally_deep
from softh_probe.analysis.model_points import ModelPoint
from softh_probe.analysis.sites import common_lines, lead_site, lines_of, of_site
from softh_probe.anisotropy import anisotropy_lines
from softh_probe.errors import InputError
from softh_probe.files import write_bytes
from softh_probe.metrics import UNITS
from softh_probe.report.anchor_words import anchor_rows, anchors_data
from softh_probe.report.compare import differences
from softh_probe.report.extreme_words import ONE_SET, one_set_line, rule_words
from softh_probe.report.facts import facts, summary
from softh_probe.report.figure_files import (
    write_comparison_figures,
    write_figures,
    write_point_figures,
    write_sweep_figures,
)
from softh_probe.report.findings import findings
from softh_probe.report.glossary import GLOSSARIES
from softh_probe.report.groups import Groups, read_groups
from softh_probe.report.label_samples import sample_sentences
from softh_probe.report.page_data import (
    UNIT_NAMES,
    embedded_json,
    full_title,
    warnings_of,
)
from softh_probe.report.plane_data import few_points, plane_data, plane_orders
from softh_probe.report.points import sweep_points
from softh_probe.report.position_words import position_data
from softh_probe.report.side_by_side import MOST_DRAWN, load, read_side_by_side
from softh_probe.report.site_data import heads_data, site_data
from softh_probe.report.spreads import CHANCE, HEADINGS, SPREADS, html_of, measured
from softh_probe.report.sweep_data import Sweep
from softh_probe.report.sweep_files import SWEEP_PARQUET, read_sweep
from softh_probe.report.sweep_findings import sweep_findings
from softh_probe.result import ProbeResult

REPORT_HTML = "report.html"
_SCRIPTS = (
    *("ink.js", "ticks.js", "packed.js", "base.js", "table.js", "planes.js"),
    *("shares.js", "positions.js", "anchors.js", "runs.js", "sweep.js", "start.js"),
)

logger = logging.getLogger(__name__)


def write_report(
    folders: Sequence[str | Path],
    out: str | Path,
    *,
    allow_different: bool = False,
    groups: str | Path | None = None,
) -> Path:
    """Write report.html and figures (PNG and SVG) of a run, of several side by side, or of a sweep.

    Args:
        folders: folders of results, or a single folder of a sweep (it holds sweep.parquet).
        out: folder to write into, or a name that ends in .html for the page.
        allow_different: show results side by side although their corpora or anchors differ; the page then warns.
        groups: a CSV with the column `model` and others, by which the points of models are coloured.

    Returns:
        The page's path.

    Raises:
        InputError: no folder, one without results, or results that cannot be compared.
    """
    paths = [Path(folder) for folder in folders]
    page = _page_in(Path(out))
    sweeps = [folder for folder in paths if (folder / SWEEP_PARQUET).is_file()]
    if not paths:
        raise InputError("folders: expected at least one folder of results, got none")
    if sweeps and len(paths) > 1:
        raise InputError(f"folders: {sweeps[0]} is a sweep, which has a page of its own; name it alone")
    columns = None if groups is None else read_groups(groups)
    if sweeps:
        return _write_sweep(paths[0], page, columns)
    if len(paths) == 1 and columns:
        raise InputError(f"groups: {paths[0]} is one result, which has no plane of models; name several, or a sweep")
    if len(paths) == 1:
        return write_run_report(load(paths[0]), page)
    side_by_side = read_side_by_side(paths, allow_different=allow_different)
    of_groups = columns.notes(side_by_side.points) if columns else []
    for note in of_groups:
        logger.warning("%s", note)
    html = comparison_page(
        side_by_side.drawn,
        side_by_side.titles,
        side_by_side.notes,
        _planes(side_by_side.points, side_by_side.log_m, columns),
        of_groups,
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    write_comparison_figures(side_by_side.drawn, side_by_side.titles[: len(side_by_side.drawn)], page.parent)
    write_point_figures(side_by_side.points, page.parent, columns)
    _write(page, html)
    return page


def _write_sweep(folder: Path, page: Path, groups: Groups | None) -> Path:
    """Write the pages and figures of a sweep, a page for each site; the path is that of the first."""
    lead = read_sweep(folder)
    pages = {site: page if site == lead.site else page.with_stem(f"{page.stem}_{site}") for site in lead.sites}
    page.parent.mkdir(parents=True, exist_ok=True)
    for site, path in pages.items():
        sweep = lead if site == lead.site else read_sweep(folder, site)
        points = sweep_points(sweep) if site == lead.site else []
        for note in groups.notes(points) if groups and points else []:
            logger.warning("%s", note)
        names = {site: other.name for site, other in pages.items()}
        write_page = partial(_write_sweep_page, path, sweep, names, groups)
        write_sweep_figures(sweep, page.parent, points, groups, beside=[write_page])
    return page


def _write_sweep_page(path: Path, sweep: Sweep, pages: Mapping[str, str], groups: Groups | None) -> None:
    _write(path, sweep_page(sweep, pages, groups))


def _planes(points: Sequence[ModelPoint], log_m: Sequence[float], groups: Groups | None) -> dict[str, Any]:
    """Convert points to the data of their planes, as many as a page draws; there is none of a single point."""
    few = few_points(points) if len(points) > 1 else []
    if not few:
        return {}
    unit_of = {point.name: unit for point, unit in zip(points, log_m, strict=True)}
    data = plane_data(few, [unit_of[point.name] for point in few], groups.columns_of(few) if groups else {})
    return {**data, "n_points": len(points)}


def write_run_report(result: ProbeResult, out: Path) -> Path:
    """Write the page and the figures of one result, as `write_report` does."""
    page = _page_in(out)
    page.parent.mkdir(parents=True, exist_ok=True)
    write_figures(result, page.parent)
    _write(page, run_page(result))
    return page


def run_page(result: ProbeResult) -> str:
    """Render the page of one result."""
    title = full_title(result)
    lines = lines_of(result)
    several = len(lines) > 1
    runs = [site_data(result, site, site.replace("_", " ") if several else title) for site in lines]
    runs[0]["by_position"] = position_data(of_site(result, lines[0]))
    return render(
        "sites" if several else "run",
        title=title,
        subtitle=summary(result),
        findings=findings(result),
        warnings=warnings_of(result),
        runs=[_Run(title, facts(result), [])],
        samples=_samples([result], [""]),
        measured=measured([result]),
        one_set=one_set_line([result]),
        one_way=anisotropy_lines([result]),
        rule=rule_words(of_site(result, lead_site(result))),
        result=result,
        anchor_rows=anchor_rows(result),
        data={
            "kind": "sites" if several else "run",
            "by_depth": False,
            "runs": runs,
            "anchors": anchors_data(result),
            **heads_data([result], [title]),
        },
    )


def comparison_page(
    results: Sequence[ProbeResult],
    titles: Sequence[str],
    notes: Sequence[str] = (),
    planes: Mapping[str, Any] = MappingProxyType({}),
    of_groups: Sequence[str] = (),
) -> str:
    """Render the page of several results side by side.

    Args:
        results: those whose layers are drawn.
        titles: theirs, then those of further results.
        notes: differences of the results.
        planes: the points of all results, as `plane_data` gives them.
        of_groups: notes on the groups of points.
    """
    all_titles, titles = titles, titles[: len(results)]
    runs = [_Run(title, facts(result), warnings_of(result)) for result, title in zip(results, titles, strict=True)]
    sites = common_lines(results)
    pairs = [(result, title, site) for result, title in zip(results, titles, strict=True) for site in sites]
    return render(
        "comparison",
        title=_several_titles(all_titles),
        subtitle=_several_results(len(all_titles), len(results)),
        findings=[],
        warnings=[*notes, *of_groups, *(f"{run.title}: {text}" for run in runs for text in run.warnings)],
        runs=runs,
        samples=_samples(results, titles),
        measured=measured(results),
        one_set=one_set_line(results, titles),
        one_way=anisotropy_lines(results, titles),
        rule="",
        result=results[0],
        data={
            "kind": "comparison",
            "by_depth": not equally_deep([result.places for result in results]),
            "runs": [
                site_data(result, site, f"{title} · {site.replace('_', ' ')}" if len(sites) > 1 else title)
                for result, title, site in pairs
            ],
            "differences": [
                {
                    **differences(of_site(results[0], site), of_site(other, site)),
                    "first": sites.index(site),
                    "other": number,
                }
                for number, (other, _, site) in enumerate(pairs)
                if number >= len(sites)
            ],
            **heads_data(results, titles),
        },
        planes=planes,
    )


def _several_titles(titles: Sequence[str]) -> str:
    if len(titles) <= MOST_DRAWN:
        return " · ".join(titles)
    return f"{' · '.join(titles[:3])} and {len(titles) - 3} more"


def _several_results(n: int, n_drawn: int) -> str:
    text = f"{n} results side by side"
    if n == n_drawn:
        return text
    return f"{text}: all as points, and in the table of models; layer by layer the first {n_drawn}"


def sweep_page(sweep: Sweep, pages: Mapping[str, str] = MappingProxyType({}), groups: Groups | None = None) -> str:
    """Render the page of one site of a sweep; `pages` are the files of all sites, `groups` those of its points."""
    points = sweep_points(sweep) if sweep.site == sweep.sites[0] else []
    has_plane = bool(plane_orders(points))
    log_m = math.log(sweep.n_anchors)
    return render(
        "sweep",
        title=sweep.title,
        subtitle=sweep.summary,
        findings=sweep_findings(sweep),
        warnings=[*sweep.warnings, *(groups.notes(points) if groups and has_plane else [])],
        runs=[],
        samples=sweep.sample_sentences,
        measured=None,
        one_set="" if sweep.has_anchor_spread else ONE_SET,
        rule="",
        result=None,
        sweep=sweep,
        pages=dict(pages) if len(pages) > 1 else {},
        data=sweep.data(),
        planes=_planes(points, [log_m] * len(points), groups) if has_plane else {},
    )


@dataclass(frozen=True)
class _Run:
    title: str
    facts: dict[str, list[tuple[str, str]]]
    warnings: list[str]


def _samples(results: Sequence[ProbeResult], titles: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Say of each result that followed a sample of labels which one, by title."""
    said = [(title, sample_sentences(result)) for result, title in zip(results, titles, strict=True)]
    return [(title, sentences) for title, sentences in said if sentences]


def _page_in(out: Path) -> Path:
    return out if out.suffix == ".html" else out / REPORT_HTML


def render(
    kind: str,
    *,
    data: dict[str, Any],
    planes: Mapping[str, Any] = MappingProxyType({}),
    own_scripts: Sequence[str] = _SCRIPTS,
    **values: Any,
) -> str:
    """Render the template of a kind of page, with `data` for its scripts and `values` for its text."""
    environment = Environment(
        loader=PackageLoader("softh_probe.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["named"] = html_of
    environment.filters["sentence"] = lambda text: f"{text[0].upper()}{text[1:]}."
    plotly, scripts = get_plotlyjs(), [_asset(name) for name in own_scripts]
    series = [*(run["series"] for run in data.get("runs", [])), data.get("series", {})]
    data = {**data, "units": [{"id": unit, "name": UNIT_NAMES[unit]} for unit in UNITS]}
    if planes:
        data["planes"] = planes
    template = "comparison" if kind == "sites" else kind
    return environment.get_template(f"{template}.html").render(
        kind=kind,
        units=UNIT_NAMES,
        spreads=SPREADS,
        glossaries=GLOSSARIES,
        spread_headings=HEADINGS,
        chance=CHANCE.kind,
        style=Markup(_asset("page.css")),
        scripts=[Markup(script) for script in scripts],
        plotly=Markup(plotly),
        script_hashes=" ".join(_csp_hash(script) for script in (plotly, *scripts)),
        data=Markup(embedded_json(data)),
        planes=planes,
        has_heads="heads" in data,
        has_labels=any(run["labels"] for run in data.get("runs", [])[:1]),
        has_bands=any("s" in of for one in series for of in one.values()),
        has_intervals=any("se" in of for one in series for of in one.values()),
        has_optimality=any(key.startswith("optimality|") for one in series for key in one),
        has_shares=any(key.startswith("information_share|") for one in series for key in one),
        **values,
    )


@cache
def _asset(name: str) -> str:
    return (files("softh_probe.report") / "assets" / name).read_text(encoding="utf-8")


@cache
def _csp_hash(script: str) -> str:
    """Compute the hash by which the content security policy allows a script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _write(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8", "replace"))  # exactly the bytes that the content security policy hashes
