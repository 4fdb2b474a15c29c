"""`softh-probe correlate`: correlations of results with benchmark scores, as text and files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from softh_probe.analysis.model_points import differences
from softh_probe.analysis.point_correlation import Correlations, correlate
from softh_probe.analysis.score_correlation import ALL
from softh_probe.analysis.scores import read_scores
from softh_probe.errors import InputError
from softh_probe.files import write_bytes, write_text
from softh_probe.report.correlation_page import correlations_page
from softh_probe.report.points import read_points
from softh_probe.report.sweep_files import SWEEP_PARQUET

CORRELATIONS = ("correlations.csv", "correlations.json", "correlations.html")
DEFAULT_FOLDER = "correlate"
#: Of several kinds, that by which lines are chosen and ordered.
_LEADING = "spearman"
_SHOWN = 12


def correlate_folders(
    folders: Sequence[str | Path],
    scores: str | Path,
    *,
    control: Sequence[str] = (),
    by: str | None = None,
    out: str | Path | None = None,
    mean_over: str | Sequence[str | int] | None = None,
    as_json: bool = False,
    allow_different: bool = False,
) -> str:
    """Correlate the results in folders with benchmark scores, and write correlations.csv, .json and .html.

    Args:
        folders: of results or sweeps.
        scores: a table, or a file or folder of lm-evaluation-harness, as `read_scores` takes it.
        control, by: as in `correlate`.
        out: folder for the files; None is the sweep's own folder if a sweep stands alone, else `correlate` here.
        mean_over: layers that the row `mean` averages, as in `read_points`.
        as_json: return what correlations.json holds, not lines.
        allow_different: correlate results of other texts, anchors or positions, too; a note says in what they differ.

    Returns:
        What is to be printed.

    Raises:
        InputError: as `read_points`, `read_scores` and `correlate`; or the results were not measured alike.
    """
    read, points = read_scores(scores), read_points(folders, mean_over=mean_over)
    differing = "; ".join(differences(points))
    if differing and not allow_different:
        raise InputError(
            f"results: expected ones that were measured alike, got different {differing}; leave some out, or add "
            "--allow-different"
        )
    found = correlate(points, read, control=control, by=by)
    found.notes.extend([f"results differ in {differing}: their values may not be comparable"] * bool(differing))
    found.notes.extend([f"values are means over {mean_over}"] * bool(mean_over))
    folder = Path(out) if out is not None else _default_folder(folders)
    described = json.dumps(found.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
    folder.mkdir(parents=True, exist_ok=True)
    table, values, page = (folder / name for name in CORRELATIONS)
    write_text(table, found.table.to_csv(index=False))
    write_text(values, described)
    write_bytes(page, correlations_page(found).encode("utf-8", "replace"))  # as its content security policy hashes it
    return described if as_json else "\n".join([*summary_lines(found), f"all in {table} and .json; open {page}"])


def summary_lines(found: Correlations) -> Iterator[str]:
    """Give the strongest correlations of all models, and every note and model without a match."""
    of_all = found.table[found.table["group"] == ALL]
    strongest = of_all.iloc[np.argsort(-of_all[_LEADING].abs().to_numpy(), kind="stable")]
    shown = strongest.head(_SHOWN)
    given = [kind for kind in found.kinds if kind == f"partial_{_LEADING}"]
    yield f"{len(found.points)} models; the {len(shown)} strongest of {len(of_all)} correlations:"
    columns = {
        "benchmark": [*shown["benchmark"]],
        "metric": [" ".join(filter(None, pair)) for pair in zip(shown["metric"], shown["label_set"], strict=True)],
        "n": [*shown["n"]],
        **{name: value for kind in (_LEADING, *given) for name, value in _columns(shown, kind).items()},
    }
    yield from pd.DataFrame(columns).to_string(index=False).splitlines()
    if given:
        yield f"(partial: given {', '.join(found.control)})"
    for group in [name for name in found.table["group"].unique() if name != ALL]:
        part = found.table[found.table["group"] == group]
        best = part.iloc[int(np.argmax(part[_LEADING].abs().to_numpy()))]
        where = " ".join(filter(None, (best["metric"], best["label_set"])))
        yield f"within {group}: strongest {best['benchmark']} with {where}, {best[_LEADING]:+.2f} (n {best['n']})"
    yield from (f"note: {note}" for note in found.notes)
    yield from (f"unmatched: {line}" for line in found.unmatched)


def _columns(shown: pd.DataFrame, kind: str) -> dict[str, list[str]]:
    """Write a coefficient, its 95% interval and q."""
    name = kind.replace("_spearman", "")
    low, high = shown[f"{kind}_low"], shown[f"{kind}_high"]
    intervals = ["" if np.isnan(a) else f"{a:+.2f} to {b:+.2f}" for a, b in zip(low, high, strict=True)]
    return {
        name: ["" if np.isnan(r) else f"{r + 0.0:+.2f}" for r in shown[kind]],
        f"{name} 95%": intervals,
        f"{name} q": ["" if np.isnan(q) else f"{q:.2g}" for q in shown[f"{kind}_q"]],
    }


def _default_folder(folders: Sequence[str | Path]) -> Path:
    first = Path(folders[0])
    return first if len(folders) == 1 and (first / SWEEP_PARQUET).is_file() else Path(DEFAULT_FOLDER)
