"""The page of the comparison, the table of every estimate, and what the README shows."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from rivals.study_figures import agreement_figure, cost_figure, layers_figure, moves_figure, svg
from rivals.study_words import (
    OURS,
    Study,
    cells,
    claims,
    columns,
    layer_words,
    losses,
    methods,
    problems,
    reading,
    readme_table,
)

PAGE, PICTURE = "comparison.html", "compare_estimators.png"


def write(study: Study, out: Path) -> None:
    """Write the page, every estimate, and the README's table and picture."""
    out.mkdir(parents=True, exist_ok=True)
    study.table.to_csv(out / "estimates.csv", index=False)
    (out / "table.md").write_text(readme_table(study), encoding="utf-8")
    agreement = agreement_figure(study.table, [one.rival for one in study.told], study.plan)
    agreement.savefig(out / PICTURE, dpi=110)
    (out / PAGE).write_text(page(study, agreement), encoding="utf-8")


def page(study: Study, agreement: Figure) -> str:
    """Render the page, with that picture; names of models, layers and labels are shown as text, whatever they hold."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    css = (files("softh_probe.report") / "assets" / "page.css").read_text(encoding="utf-8")
    rivals = [one.rival for one in study.told]
    plan = study.plan
    drawn = [
        (
            "Estimates against the truth",
            "A right estimator is on the dotted line. One that is only monotonic ranks layers rightly, on a scale of "
            "its own.",
            agreement,
        ),
        (
            "What else moves an estimate",
            f"One truth, {study.truth:.2f} nats of {plan.k} clusters: by the width of the states, their number, and "
            "the setting that the table names. A flat line is best.",
            moves_figure(study.table, study.told, plan),
        ),
        (
            "What an estimate costs",
            "Of one estimate, over the size of its states.",
            cost_figure(study.table, rivals, plan),
        ),
        (
            f"Layers of {study.model}",
            "Labels as they are. The truth is surely in the grey band: below the entropy of the labels, and above what "
            f"a linear probe shows. An estimate outside of it is wrong. {layer_words(study)}",
            layers_figure(study.table, rivals),
        ),
    ]
    return environment.get_template("study.html").render(
        title="Estimators of I(X;Z) where the truth is known",
        subtitle=f"{len(study.table):,} estimates in {study.seconds / 60:.0f} minutes: synthetic states, and those of "
        f"{study.model}",
        style=Markup(css),
        claims=claims(study),
        problems=problems(study),
        reading=reading(study),
        losses=losses(study.told),
        columns=["estimator", *columns(study)],
        rows=[
            {
                "name": one.rival.name,
                "source": one.rival.source,
                "ours": one.rival.name.startswith(OURS),
                "cells": cells(one, study),
            }
            for one in study.told
        ],
        figures=[{"title": title, "text": text, "svg": Markup(svg(of))} for title, text, of in drawn if of],
        methods=methods(study),
        footer=f"softh_probe · scripts/compare_estimators.py · seed {plan.seed} · {study.seconds / 60:.1f} minutes",
    )
