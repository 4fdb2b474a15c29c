"""Any number of results side by side: a dozen whole, and of each its whole-model values."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from softh_probe.analysis.comparable import check_comparable
from softh_probe.analysis.model_points import ModelPoint, point_of
from softh_probe.errors import InputError, abbreviated
from softh_probe.report.page_data import check_info, distinct_titles, warnings_of
from softh_probe.result import ProbeResult

#: Most results whose layers are drawn: the layers of more would be megabytes, and no line could be told from another.
MOST_DRAWN = 12
#: Most notes and warnings that a page lists, and most names in one.
_MOST_NOTES, _MAX_NAMES = 40, 8


@dataclass(frozen=True, kw_only=True)
class SideBySide:
    """Results that are shown side by side.

    Attributes:
        drawn: the first dozen, whole; the others are not kept.
        titles: of all results.
        points, log_m: whole-model values of the results that have any, and the unit of those of each, in nats.
        notes: differences, and warnings of the results that are not drawn.
    """

    drawn: list[ProbeResult]
    titles: list[str]
    points: list[ModelPoint]
    log_m: list[float]
    notes: list[str]


def read_side_by_side(folders: Sequence[Path], *, allow_different: bool = False) -> SideBySide:
    """Read results one after the other, and check that each is comparable with the first.

    Raises:
        InputError: a folder holds no result, or results are not comparable (see `check_comparable`).
    """
    results: list[ProbeResult] = []
    points: dict[int, ModelPoint] = {}
    log_m: list[float] = []
    for n, folder in enumerate(folders):
        result = load(folder)
        with contextlib.suppress(InputError):  # it measured modules, whose mean says nothing
            points[n] = point_of(result, name=str(folder), folder=str(folder))
            log_m.append(math.log(result.n_anchors))
        results.append(result if n < MOST_DRAWN else replace(result, tensors={}, influence=None, bins={}))
    titles = distinct_titles(results, folders)
    notes = _notes(results, titles, allow_different)
    if points and (without := [title for n, title in enumerate(titles) if n not in points]):
        notes.append(f"{abbreviated(without, _MAX_NAMES)}: no mean over layers, so no point of a model.")
    return SideBySide(
        drawn=results[:MOST_DRAWN],
        titles=titles,
        points=[replace(point, name=titles[n]) for n, point in points.items()],
        log_m=log_m,
        notes=notes,
    )


def load(folder: Path) -> ProbeResult:
    """Read a result, and check what pages show of it.

    Raises:
        InputError: the folder holds none, or an entry of its `info` has another type than softh_probe gives it.
    """
    result = ProbeResult.load(folder)
    check_info(result, str(folder))
    return result


def _notes(results: Sequence[ProbeResult], titles: Sequence[str], allow_different: bool) -> list[str]:
    """List the differences from the first result; of more than a dozen results, those of equal words in one."""
    if len(results) <= MOST_DRAWN:
        return check_comparable(results, titles, allow_different=allow_different)
    first = titles[0]
    of_words: dict[str, list[str]] = {}
    for result, title in zip(results[1:], titles[1:], strict=True):
        notes = check_comparable([results[0], result], [first, title], allow_different=allow_different)
        for note in notes:
            of_words.setdefault(note.removeprefix(f"{first} and {title}"), []).append(title)
    found = [f"{first} and {abbreviated(names, _MAX_NAMES)}{words}" for words, names in of_words.items()]
    warned: dict[str, list[str]] = {}
    for result, title in zip(results[MOST_DRAWN:], titles[MOST_DRAWN:], strict=True):
        for text in warnings_of(result):
            warned.setdefault(text, []).append(title)
    found += [f"{abbreviated(names, _MAX_NAMES)}: {text}" for text, names in warned.items()]
    if len(found) <= _MOST_NOTES:
        return found
    return [
        *found[:_MOST_NOTES],
        f"and {len(found) - _MOST_NOTES} more notes; softh-probe compare tells those of two results.",
    ]
