"""Layers of several models beside each other: by name where they are equally deep, else by relative depth.

The relative depth of a layer is its index / (L + 1) in a model of L blocks. Embeddings stand beside embeddings and
final norms beside final norms, never beside a block, and the rows of a site beside those of the same one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from softh_probe.layer_places import EMBEDDINGS, FINAL_NORM, LayerPlaces, layer_index

_ENDS = (EMBEDDINGS, FINAL_NORM)


def equally_deep(places: Iterable[LayerPlaces]) -> bool:
    """Test whether an index is the same layer in all: equally many blocks, or the same modules.

    >>> from softh_probe.layer_places import place_layers
    >>> two, three = (place_layers(["embeddings"], {"n_blocks": n}) for n in (2, 3))
    >>> equally_deep([two, two]), equally_deep([two, three])
    (True, False)
    """
    places = list(places)
    modules = {one.names for one in places if not one.n_blocks}
    return len({one.n_blocks for one in places}) == 1 and len(modules) <= 1


def interpolated(first: LayerPlaces, other: LayerPlaces, values_RS: np.ndarray) -> np.ndarray:
    """Give the values of `other` in the layers of `first`, NaN where `other` has none.

    Models of unequal depth are interpolated linearly between blocks at the relative depth of each layer of `first`.
    Deeper than its last block, `other` has the values of that block.

    Args:
        values_RS: a line for each row of `other`.

    Returns:
        A line for each row of `first`.
    """
    found = np.full((len(first.names), values_RS.shape[1]), np.nan)
    for part in dict.fromkeys(first.parts):
        (ours, own_rows), (theirs, their_rows) = first.of_part(part), other.of_part(part)
        if their_rows:
            found[own_rows] = _interpolated_part(ours, theirs, values_RS[their_rows])
    return found


def _interpolated_part(first: LayerPlaces, other: LayerPlaces, values_RS: np.ndarray) -> np.ndarray:
    """Do so for rows that are the same part of their layers."""
    found = np.full((len(first.names), values_RS.shape[1]), np.nan)
    if equally_deep([first, other]):
        row_of = {index: row for row, index in enumerate(other.indices)}
        for row, index in enumerate(first.indices):
            if index in row_of:
                found[row] = values_RS[row_of[index]]
        return found
    both_have_blocks = bool(first.n_blocks and other.n_blocks)
    for row, (name, depth) in enumerate(zip(first.names, first.depths, strict=True)):
        if both_have_blocks and name in _ENDS:
            if name in other.names:
                found[row] = values_RS[other.names.index(name)]
        else:
            found[row] = _at_depth(other, depth, values_RS, without_norm=both_have_blocks)
    return found


def _at_depth(other: LayerPlaces, depth: float, values_RS: np.ndarray, *, without_norm: bool) -> np.ndarray:
    rows = [row for row, name in enumerate(other.names) if not (without_norm and name == FINAL_NORM)]
    known = [other.depths[row] for row in rows]
    reaches_end = bool(rows) and other.indices[rows[-1]] >= other.n_blocks
    if not rows or depth < known[0] or (depth > known[-1] and not reaches_end):
        return np.full(values_RS.shape[1], np.nan)
    place = round(float(np.interp(depth, known, range(len(known)))), 9)
    lower, upper = values_RS[rows[math.floor(place)]], values_RS[rows[math.ceil(place)]]
    weight = place - math.floor(place)
    mixed: np.ndarray = lower if weight == 0 else (1 - weight) * lower + weight * upper
    return mixed


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """The layers of several models in one list.

    Attributes:
        rows: names of all layers of any model, by depth.
        equally_deep: whether an index is the same layer in all models.
        deepest: the places of the model with the most blocks.
        shown: rows (by number) that stand for all models: all if these are equally deep, else those of the deepest.
    """

    rows: tuple[str, ...]
    equally_deep: bool
    deepest: LayerPlaces
    shown: tuple[int, ...]

    @property
    def places(self) -> list[float]:
        """Where the shown rows stand: index in the model if these are equally deep, else relative depth."""
        indices = [self._index(self.rows[row]) for row in self.shown]
        return [*indices] if self.equally_deep else [index / max(1, self.deepest.last) for index in indices]

    @property
    def labels(self) -> list[str]:
        """Names of the shown rows for readers."""
        names = [self.rows[row] for row in self.shown]
        if self.equally_deep:
            return names
        of = f" of {self.deepest.n_blocks}" if self.deepest.n_blocks else ""
        pairs = zip(names, self.places, strict=True)
        return [name if name in _ENDS else f"depth {depth:.2f} ({name}{of})" for name, depth in pairs]

    def beside(self, places: LayerPlaces) -> list[str | None]:
        """Name the layer of a model that stands beside each shown row; None where it measured none."""
        return [self._beside(self.rows[row], place, places) for row, place in zip(self.shown, self.places, strict=True)]

    def _index(self, name: str) -> int:
        n_blocks = self.deepest.n_blocks
        index = layer_index(name, n_blocks) if n_blocks else None
        return self.deepest.indices[self.deepest.names.index(name)] if index is None else index

    def _beside(self, name: str, place: float, places: LayerPlaces) -> str | None:
        if self.equally_deep or name in _ENDS or places == self.deepest:
            return name if name in places.names else None
        part = self.deepest.parts[self.deepest.names.index(name)] if name in self.deepest.names else ""
        pairs = zip(places.names, places.depths, places.parts, strict=True)
        blocks = {other: depth for other, depth, of in pairs if other not in _ENDS and of == part}
        return min(blocks, key=lambda other: round(abs(blocks[other] - place), 9)) if blocks else None


def align(places: Sequence[LayerPlaces]) -> Alignment:
    """Align the layers of several models.

    >>> from softh_probe.layer_places import place_layers
    >>> names = lambda n: ["embeddings", *(f"layer.{i + 1}" for i in range(n)), "final_norm"]
    >>> two, three = (place_layers(names(n), {"n_blocks": n}) for n in (2, 3))
    >>> align([two, three]).beside(two)
    ['embeddings', 'layer.1', 'layer.1', 'layer.2', 'final_norm']
    """
    same = equally_deep(places)
    deepest = max(places, key=lambda one: (one.n_blocks, len(one.names)))
    index_of: dict[str, int] = {}  # the greatest that a name has anywhere: that of final_norm is behind all blocks
    for one in places:
        for name, index in zip(one.names, one.indices, strict=True):
            index_of[name] = max(index, index_of.get(name, 0))
    rows = tuple(sorted(index_of, key=index_of.__getitem__))
    shown = tuple(i for i, name in enumerate(rows) if same or name in {*deepest.names, *_ENDS})
    return Alignment(rows=rows, equally_deep=same, deepest=deepest, shown=shown)
