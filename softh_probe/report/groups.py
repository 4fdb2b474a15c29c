"""A user's table of models: columns by which the points of a plane are coloured.

>>> from softh_probe.analysis.model_points import ModelPoint
>>> groups = Groups(path="groups.csv", lines={"tiny": {"licence": "open"}, "huge": {"licence": "closed"}})
>>> groups.columns_of([ModelPoint(name="one", model="a/tiny", values={})])
{'licence': ['open']}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from softh_probe.analysis.model_points import ModelPoint
from softh_probe.errors import InputError, abbreviated

#: The column that names the models.
_MODEL = "model"
#: Most names that a note lists.
_MAX_NAMES = 20


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Columns of models, as text.

    Attributes:
        path: of the file.
        lines: by the model's name: column and value; an empty value is none.
    """

    path: str
    lines: dict[str, dict[str, str]]

    def columns_of(self, points: Sequence[ModelPoint]) -> dict[str, list[str | None]]:
        """Give each column's value for each point; None where its model has none."""
        columns = list(dict.fromkeys(name for line in self.lines.values() for name in line))
        found = [self.lines.get(self._name_of(point) or "", {}) for point in points]
        return {column: [line.get(column) or None for line in found] for column in columns}

    def notes(self, points: Sequence[ModelPoint]) -> list[str]:
        """Say which points have no line, and which lines no point."""
        names = [self._name_of(point) for point in points]
        missing = [point.name for point, name in zip(points, names, strict=True) if name is None]
        unused = [name for name in self.lines if name not in names]
        said = []
        if missing:
            said.append(f"{self.path} has no line for {abbreviated(missing, _MAX_NAMES)}.")
        if unused:
            said.append(f"{self.path} has lines of models that are not here: {abbreviated(unused, _MAX_NAMES)}.")
        return said

    def _name_of(self, point: ModelPoint) -> str | None:
        """Find the name under which a point has a line: its own, its model's with the revision or without, the end."""
        ends = (point.model, Path(point.model).name)
        names = [point.name, *(f"{end}@{point.revision}" for end in ends if point.revision), *ends]
        return next((name for name in names if name in self.lines), None)


def read_groups(path: str | Path) -> Groups:
    """Read a CSV with the column `model` (a result's name, a hub id or the end of one) and others.

    Raises:
        InputError: it cannot be read, lacks a column, or names a model twice.
    """
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            header = file.readline()
        separator = next((one for one in ",;\t" if one in header), ",")
        table = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"groups: cannot read {path}: {error}; expected a CSV with the column {_MODEL}") from error
    if _MODEL not in table or len(table.columns) < 2:
        raise InputError(
            f"groups: {path}: expected the column {_MODEL} and others to colour by, got {', '.join(table.columns)}"
        )
    twice = table[_MODEL][table[_MODEL].duplicated()].tolist()
    if twice:
        raise InputError(f"groups: {path}: expected each model once, got {abbreviated(twice, _MAX_NAMES)} again")
    lines = table.set_index(_MODEL).to_dict("index")
    of_text = {str(model): {str(column): v for column, v in line.items()} for model, line in lines.items()}
    return Groups(path=str(path), lines=of_text)
