"""The user's own labels, each of which keeps its row to the end: their numbers, their names, and their rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from itertools import count
from typing import Any

import numpy as np
import torch

from softh_probe.attached.label_bags import kept_rows
from softh_probe.attached.own_values import OwnLabels
from softh_probe.errors import InputError


class KeptLabels:
    """Number the user's own labels, and give each a row when it is first counted.

    An integer is its own number; strings of a set are numbered as they come. The numbers of two parts of the data
    differ, so parts are merged by names.

    Attributes:
        tables: by set, the row of each number that was counted.
    """

    def __init__(self) -> None:
        self.tables: dict[str, dict[int, int]] = {}
        self._names: dict[str, dict[str, int]] = {}
        self._next_row = count()

    def __len__(self) -> int:
        return sum(map(len, self.tables.values()))

    def require_kind(self, name: str, labels: OwnLabels) -> None:
        """Refuse strings in a set that has integers, and integers in one that has strings.

        Raises:
            InputError: it is so.
        """
        known = self._kind(name)
        if labels.kind and known and labels.kind != known:
            raise InputError(
                f"{name}: expected {known}, as before, got {labels.kind}; give one kind, or name another label set"
            )

    def numbers(self, name: str, labels: OwnLabels) -> np.ndarray:
        """Number labels; −1 where a position has none.

        Raises:
            InputError: the set has labels of the other kind.
        """
        self.require_kind(name, labels)
        if not labels.names:
            return labels.codes
        table = self._names.setdefault(name, {})
        numbers = np.array([table.setdefault(label, len(table)) for label in labels.names] + [-1])
        found: np.ndarray = numbers[labels.codes]
        return found

    def rows(self, own: Mapping[str, np.ndarray], n_positions: int) -> list[np.ndarray]:
        """Find the rows [N] of the labels [N] of some positions in every set, and take new ones; −1 is none."""
        for name in own:
            self._table(name)
        none = np.full(n_positions, -1)
        return [kept_rows(table, own[name]) if name in own else none for name, table in self.tables.items()]

    def describe(self, first_set: int) -> tuple[np.ndarray, list[str | None]]:
        """Give the set and the name of each row; the sets are numbered from `first_set` on."""
        sets, names = np.zeros(len(self), dtype=np.int64), dict[int, str]()
        for i, (name, table) in enumerate(self.tables.items()):
            sets[list(table.values())] = first_set + i
            strings = list(self._names.get(name, ()))
            names |= {row: strings[number] if strings else str(number) for number, row in table.items()}
        return sets, [names[row] for row in range(len(names))]

    def state_dict(self) -> dict[str, Any]:
        """Copy the numbers and rows of each set, and the strings of sets that have any, in their numbers' order."""
        state: dict[str, Any] = {
            "own": {name: torch.tensor(list(table), dtype=torch.int64) for name, table in self.tables.items()},
            "own_rows": [torch.tensor(list(table.values()), dtype=torch.int64) for table in self.tables.values()],
        }
        if self._names:
            state["own_names"] = {name: list(table) for name, table in self._names.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace everything by a state; those without strings have no names."""
        self._next_row = count(sum(len(labels) for labels in state["own"].values()))
        self.tables = {}
        for (name, labels), rows in zip(state["own"].items(), state["own_rows"], strict=True):
            self._table(name).update(zip(labels.tolist(), rows.tolist(), strict=True))
        strings = state.get("own_names", {}).items()
        self._names = {name: {label: number for number, label in enumerate(labels)} for name, labels in strings}

    def merge(self, other: KeptLabels) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Take over the labels of another part of the data.

        Returns:
            The row here of each of their rows; and by set of strings, the number here of each of their numbers, with
            −1 at the end for none.

        Raises:
            InputError: a set has strings in one part and integers in the other; nothing was taken over.
        """
        for name in other.tables.keys() & self.tables.keys():
            ours, theirs = self._kind(name), other._kind(name)
            if ours and theirs and ours != theirs:
                raise InputError(f"merge: {name} has {ours} here and {theirs} in the other; label both parts alike")
        renumbered = {
            name: self.numbers(name, OwnLabels(codes=np.append(np.arange(len(table)), -1), names=tuple(table)))
            for name, table in other._names.items()
        }
        rows = np.zeros(len(other), dtype=np.int64)
        for name, theirs_of in other.tables.items():
            table, numbers = self._table(name), renumbered.get(name)
            found = theirs_of if numbers is None else numbers[list(theirs_of)].tolist()
            rows[list(theirs_of.values())] = [table[number] for number in found]
        return rows, renumbered

    def _table(self, name: str) -> dict[int, int]:
        return self.tables.setdefault(name, defaultdict(self._next_row.__next__))

    def _kind(self, name: str) -> str:
        """Tell what labels a set has so far: "strings", "integers", or none."""
        if self._names.get(name):
            return "strings"
        return "integers" if self.tables.get(name) else ""
