"""Scores as a tidy table, whatever file they come from."""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd

from softh_probe.errors import abbreviated

COLUMNS = ("model", "revision", "benchmark", "score")


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of models.

    Attributes:
        table: one line a score, with the columns `COLUMNS`; no model, revision and benchmark stands twice. The revision
            is None where none is named.
        others: numbers that are no scores, in the same columns; they may be controls.
        notes: what was left out or chosen, a line each.
        source: the file or folder.
    """

    table: pd.DataFrame
    others: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=[*COLUMNS]))
    notes: list[str] = field(default_factory=list)
    source: str = ""

    @property
    def benchmarks(self) -> list[str]:
        """Names of the benchmarks, in the order of the file."""
        return [*dict.fromkeys(self.table["benchmark"])]


def reduced(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Leave out scores of a model, revision and benchmark that stand several times and differ.

    >>> lines = [("a", None, "BBH", 1.0), ("a", None, "BBH", 2.0), ("b", None, "BBH", 3.0), ("b", None, "BBH", 3.0)]
    >>> table, said = reduced(pd.DataFrame(lines, columns=[*COLUMNS]))
    >>> table.values.tolist()
    [['b', None, 'BBH', 3.0]]
    >>> said
    ['several lines that differ, all left out; keep one of each: a']
    """
    once = table.drop_duplicates()
    differing = once.duplicated([*COLUMNS[:3]], keep=False)
    names = [
        named(model, revision) for model, revision in once.loc[differing, ["model", "revision"]].itertuples(index=False)
    ]
    said = [f"several lines that differ, all left out; keep one of each: {abbreviated([*dict.fromkeys(names)])}"]
    left = once[~differing].reset_index(drop=True).astype({"revision": object})
    return left.where(left.notna(), None), said * bool(names)


def named(model: str, revision: str | None) -> str:
    """Name a model and its revision.

    >>> named("org/a", "step10"), named("org/a", None)
    ('org/a @ step10', 'org/a')
    """
    return f"{model} @ {revision}" if revision else model
