"""Layers whose states point one way: where the anisotropy is high, entropy and every information are low.

The anisotropy of a layer is the norm of the mean unit vector of its positions, a = ‖(1/n) Σ h/‖h‖‖: 0 where directions
cancel, 1 where all are one. The mean cosine of two different positions is (n a² − 1)/(n − 1), some a² where there are
many. A fraction 1 − a² of what unit vectors hold lies beside their mean; the soft assignments to anchors see mostly the
mean, so that labels that a linear probe tells apart change them little.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from softh_probe.errors import abbreviated, one_line
from softh_probe.layer_places import is_centered

if TYPE_CHECKING:
    from softh_probe.result import ProbeResult

ANISOTROPY = "anisotropy"
#: Anisotropy from which on readers are told, that of many positions: less than a fifth of what unit vectors hold,
#: 1 − 0.9², lies beside their mean. Blocks 2 to 30 of SmolLM2-135M have 0.70 to 0.84 (attached, on the topics of
#: pydoc); those of Gemma 3 270M that give hardly any information about a language that a linear probe reads off have
#: mean cosines of 0.94 to 0.98, which is 0.97 to 0.99.
HIGH = 0.9
#: What it means, in a sentence's end.
MEANING = (
    "these states point one way, which lowers entropy and every information: low information there does not mean that "
    "the layer does not know; --center measures states minus their mean, too"
)
_MAX_NAMES = 6


def is_high(anisotropy: float, n_positions: float) -> bool:
    """Tell whether states point one way, by the mean cosine of two different positions.

    >>> is_high(0.95, n_positions=1000), is_high(0.95, n_positions=1), is_high(float("nan"), n_positions=1000)
    (True, False, False)
    """
    if n_positions < 2:
        return False
    return (n_positions * anisotropy**2 - 1) / (n_positions - 1) >= HIGH**2


def rows_without_anisotropy(result: ProbeResult) -> list[str]:
    """Name the rows of which it is not known."""
    if ANISOTROPY not in result.tensors:
        return list(result.rows)
    return [row for row, a in zip(result.rows, result.tensors[ANISOTROPY], strict=True) if a.isnan()]


def high_rows(result: ProbeResult) -> str | None:
    """Give the rows whose states point one way, and the values of the lowest and the highest of them.

    Returns:
        As in "0.94 to 0.98 in layer.2, layer.3"; None where there are none, or where it was not measured.
    """
    if ANISOTROPY not in result.tensors:
        return None
    values = zip(result.rows, result.tensors[ANISOTROPY].tolist(), result.tensors["positions"].tolist(), strict=True)
    found = {row: a for row, a, n in values if is_high(a, n) and not is_centered(row)}
    if not found:
        return None
    n_rows = sum(not is_centered(row) for row in result.rows)
    least, most = (f"{value:.2f}" for value in (min(found.values()), max(found.values())))
    where = abbreviated([one_line(row) for row in found], _MAX_NAMES)
    return f"{least}{f' to {most}' if most != least else ''} in {where} ({len(found)} of {n_rows})"


def anisotropy_lines(results: Sequence[ProbeResult], titles: Sequence[str] = ("",)) -> list[str]:
    """Say of each result in which rows states point one way, and what that means; nothing of the others.

    Args:
        titles: of the results; empty for a single one.
    """
    said = [(title, high_rows(result)) for result, title in zip(results, titles, strict=True)]
    return [f"{f'{title}: ' * bool(title)}anisotropy is {where}: {MEANING}" for title, where in said if where]
