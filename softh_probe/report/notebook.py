"""HTML of a result for notebooks."""

from __future__ import annotations

import base64

from markupsafe import Markup, escape

from softh_probe.report.bit_words import reading_lines
from softh_probe.report.document_chance import chance_lines
from softh_probe.report.extreme_words import one_set_line
from softh_probe.report.facts import policy_lines, summary
from softh_probe.report.figures import FIGURES, figures_of
from softh_probe.report.label_samples import sample_sentences
from softh_probe.report.page_data import full_title, warnings_of
from softh_probe.report.wide_table import wide_table
from softh_probe.result import ProbeResult


def to_html(result: ProbeResult) -> str:
    """Render model, summary, warnings, overview figure and a folded table as HTML; all text is escaped."""
    picture = base64.b64encode(FIGURES[figures_of(result)[0]](result)._repr_png_()).decode()  # type: ignore[attr-defined]
    table = wide_table(result).to_html(index=False, float_format=lambda x: f"{x:.4f}", border=0, escape=True)
    warnings = Markup("").join(Markup('<p style="color:#b45f06">⚠ {}</p>').format(text) for text in warnings_of(result))
    notes = "".join(
        f"<br>{escape(text)}"
        for text in (
            *policy_lines(result),
            *reading_lines(result),
            *filter(None, [one_set_line([result])]),
            *chance_lines(result),
            *sample_sentences(result),
        )
    )
    return (
        f"<div><b>{escape(full_title(result))}</b><br>{escape(summary(result))}{notes}{warnings}"
        f'<img alt="entropy, information, optimality and the information plane, layer by layer" '
        f'style="max-width:100%;background:#fff" src="data:image/png;base64,{picture}">'
        f"<details><summary>values, in units of log m</summary>{table}</details></div>"
    )
