"""The course of a value through training, in one sentence: where it rises and falls, and what is beyond noise.

>>> described = course(["0", "10", "100", "1,000"], [0.1, 0.2, 0.6, 0.3], se_of_change=lambda i, j: 0.05)
>>> print(described)
rises from step 0 to 100, then falls to 1,000; changes beyond noise: 0 → 100, 100 → 1,000

Turning points are those of a zigzag: between two of them the value changes by a twentieth of its range or more, and
at most eight are kept. Where the noise of changes is known, turning points are given up one by one until each change
between two is beyond noise (Holm, over the changes). At the start and the end of a change, checkpoints at which little
happens are cut off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from softh_probe.analysis.holm import ALPHA, holm, p_values

#: Least change between turning points, as a share of the range; and most turning points, with both ends.
LEAST_CHANGE, MOST_POINTS = 0.05, 8
#: The first and the last twentieth of a change are cut off where they take twice that share of its checkpoints.
_SLOW, _LONG = 0.05, 0.1

#: Standard error of the change between two checkpoints; NaN where it is not known.
SeOfChange = Callable[[int, int], float]
#: Units of documents that such an error comes from.
UnitsOfChange = Callable[[int, int], float]


def course(
    steps: Sequence[str],
    values: Sequence[float],
    se_of_change: SeOfChange | None = None,
    *,
    units_of_change: UnitsOfChange | None = None,
    what: str = "step",
) -> str:
    """Describe the course of a value.

    Args:
        steps: names of the checkpoints' steps, in order.
        values: of the checkpoints; those that are NaN are left out.
        se_of_change: gives the standard error of the change between two checkpoints, by their numbers. It is called for
            turning points alone. None where no noise was measured.
        units_of_change: gives the units that this error comes from; it is called after `se_of_change`. None is many.
        what: what the steps are.

    Returns:
        Words without a subject and a full stop; empty where there are fewer than two values.
    """
    known = [i for i, value in enumerate(values) if math.isfinite(value)]
    if len(known) < 2:
        return ""
    value_C = np.array([values[i] for i in known])

    nodes = turning_points(value_C)
    n_changes = len(nodes) - 1

    def beyond_noise(nodes: Sequence[int]) -> list[bool | None]:
        changes = np.array([value_C[j] - value_C[i] for i, j in pairwise(nodes)])
        errors = np.array([se_of_change(known[i], known[j]) if se_of_change else math.nan for i, j in pairwise(nodes)])
        units = np.array(
            [units_of_change(known[i], known[j]) if units_of_change else np.inf for i, j in pairwise(nodes)]
        )
        return _beyond_noise(changes, errors, units, n_changes)

    nodes = _without_noise(nodes, value_C, beyond_noise)
    ends = f"from {what} {steps[known[0]]} to {steps[known[-1]]}"
    if value_C.min() == value_C.max():
        return f"is the same {ends}"
    if len(nodes) == 2 and beyond_noise(nodes) == [False]:
        return f"does not change beyond noise {ends}"
    moves = [_cut(value_C, start, stop) for start, stop in pairwise(nodes)]
    places = sorted({0, len(known) - 1, *(node for move in moves for node in move)})
    beyond = beyond_noise(places)
    if False in beyond and True not in beyond:  # what was cut off made the difference
        moves, places, beyond = list(pairwise(nodes)), nodes, beyond_noise(nodes)
    said = _in_words(value_C, moves, [steps[i] for i in known], what)
    if all(one is None for one in beyond):
        return f"{said}; noise over documents was not measured"
    changes = [
        f"{steps[known[i]]} → {steps[known[j]]}"
        for (i, j), is_beyond in zip(pairwise(places), beyond, strict=True)
        if is_beyond
    ]
    return f"{said}; changes beyond noise: {', '.join(changes) or 'none'}"


def turning_points(value_C: np.ndarray) -> list[int]:
    """Find the checkpoints between which a value rises and falls, with the first and the last one.

    >>> turning_points(np.array([0.0, 1.0, 0.98, 2.0, 0.0, 0.1]))
    [0, 3, 4, 5]
    >>> turning_points(np.array([0.0, 1.0, 0.98, 2.0, 0.0, 0.0]))
    [0, 3, 5]
    """
    least = LEAST_CHANGE * float(np.ptp(value_C))
    found = _zigzag(value_C, least) if least > 0 else [0, len(value_C) - 1]
    while len(found) > MOST_POINTS:
        least *= 1.25
        found = _zigzag(value_C, least)
    return found


def _zigzag(value_C: np.ndarray, least: float) -> list[int]:
    """Find the extremes from which the value turns back by `least` or more."""
    found, low, high, extreme, direction = [0], 0, 0, 0, 0
    for i, value in enumerate(value_C.tolist()):
        if not direction:  # so far there is neither a rise nor a fall
            low, high = (i if value < value_C[low] else low), (i if value > value_C[high] else high)
            if value_C[high] - value_C[low] >= least:
                extreme, direction = i, 1 if high > low else -1
        elif direction * (value - value_C[extreme]) > 0:
            extreme = i
        elif direction * (value_C[extreme] - value) >= least:
            found.append(extreme)
            extreme, direction = i, -direction
    return [*found, len(value_C) - 1]


def _beyond_noise(changes: np.ndarray, errors: np.ndarray, units: np.ndarray, n_changes: int) -> list[bool | None]:
    """Test changes, `n_changes` or more of which were looked at; None where the noise is not known."""
    others = np.ones(max(0, n_changes - len(changes)))  # given up since: looked at all the same
    corrected = holm(np.append(p_values(changes, errors, units), others))[: len(changes)]
    return [None if math.isnan(p) else bool(p < ALPHA) for p in corrected.tolist()]


def _without_noise(
    nodes: list[int], value_C: np.ndarray, beyond_noise: Callable[[Sequence[int]], list[bool | None]]
) -> list[int]:
    """Give up the turning points of the smallest change within noise, until there is none or one change is left."""
    while len(nodes) > 2:
        within = [n for n, is_beyond in enumerate(beyond_noise(nodes)) if is_beyond is False]
        if not within:
            break
        n = min(within, key=lambda n: abs(value_C[nodes[n + 1]] - value_C[nodes[n]]))
        given_up = {nodes[n], nodes[n + 1]} - {nodes[0], nodes[-1]}
        nodes = [node for node in nodes if node not in given_up]
    rises = [value_C[j] > value_C[i] for i, j in pairwise(nodes)]
    turns = [node for node, (before, after) in zip(nodes[1:], pairwise(rises), strict=False) if before != after]
    return [nodes[0], *turns, nodes[-1]]


def _cut(value_C: np.ndarray, start: int, stop: int) -> tuple[int, int]:
    """Cut off the ends of a change at which little happens."""
    change = float(value_C[stop] - value_C[start])
    if change == 0:
        return start, stop
    share = (value_C[start : stop + 1] - value_C[start]) / change
    first = int(np.argmax(share > _SLOW)) - 1
    last = int(np.argmax(share >= 1 - _SLOW))
    long = _LONG * (stop - start)
    return start + (first if first > long else 0), start + last if stop - start - last > long else stop


def _in_words(value_C: np.ndarray, moves: Sequence[tuple[int, int]], steps: Sequence[str], what: str) -> str:
    said = ""
    for n, (start, stop) in enumerate(moves):
        verb = "rises" if value_C[stop] > value_C[start] else "falls"
        if not n:
            said = f"{verb} from {what} {steps[start]} to {steps[stop]}"
        elif start == moves[n - 1][1]:
            said += f", then {verb} to {steps[stop]}"
        else:
            said += f", then {verb} from {steps[start]} to {steps[stop]}"
    return said
