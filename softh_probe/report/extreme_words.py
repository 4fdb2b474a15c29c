"""The highest and the lowest layer in words, and what is known of the spread over anchor sets."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from softh_probe.analysis.layers import Extreme
from softh_probe.errors import abbreviated
from softh_probe.estimators.recipes import DEFAULT_ANCHOR_SETS
from softh_probe.result import ProbeResult

#: Most layers that are listed as not distinguishable from the highest one.
_MAX_ALIKE = 3

_UNKNOWN_SPREAD = f"the spread over anchors is unknown (--anchor-sets {DEFAULT_ANCHOR_SETS})"
#: What is said where results have a single set of anchors.
ONE_SET = f"one anchor set: {_UNKNOWN_SPREAD}"

_OVER_DOCUMENTS = (
    "“Most in” and “least in” name a layer that is beyond noise over documents: its difference from each other one, on "
    "the same documents, has p < 0.05, corrected for the number of layers (Holm). “Highest in” and “lowest in” name "
    "the first of several that noise cannot tell apart; ± is the standard error of the difference."
)
_OVER_ANCHORS = (
    "“Most in” and “least in” name a layer that is beyond the spread over anchors: its difference from each other one, "
    "on the same anchors, is more than two of its standard deviations over anchor sets. “Highest in” and “lowest in” "
    "name the first of several that this spread cannot tell apart; ± is that standard deviation."
)
_BY_VALUE = "“Highest in” and “lowest in” name a layer by its value alone: no spread is known to compare layers by."


def rule_words(result: ProbeResult) -> str:
    """Say when findings call a layer the one with the most."""
    if result.standard_errors():
        return _OVER_DOCUMENTS
    return _OVER_ANCHORS if n_anchor_sets(result) > 1 else _BY_VALUE


def n_anchor_sets(result: ProbeResult) -> int:
    """Count the anchor sets of a result."""
    return int(result.tensors["mass"].shape[1])


def one_set_line(results: Sequence[ProbeResult], titles: Sequence[str] = ()) -> str:
    """Say that the spread over anchors is unknown where results have a single set of anchors; empty for all others.

    Args:
        titles: of the results, where there are several.
    """
    alone = [n_anchor_sets(result) == 1 for result in results]
    if not any(alone):
        return ""
    if all(alone):
        return ONE_SET
    which = abbreviated([title for title, is_alone in zip(titles, alone, strict=True) if is_alone])
    return f"one anchor set in {which}: {_UNKNOWN_SPREAD}"


def named(
    rows: Sequence[str],
    found: Extreme,
    say: Callable[[int], str],
    *,
    lowest: bool = False,
) -> str:
    """Name the layer with the most or the least, and those that noise cannot tell from it.

    >>> found = Extreme(row=1, alike=(), noise="anchors")
    >>> named(["layer.1", "layer.2"], found, lambda row: "43%")
    'most in layer.2 (43%)'

    Args:
        rows: names of the layers.
        found: one of them.
        say: gives the value of a row in words.
        lowest: whether it is the lowest one.
    """
    most, highest = ("least", "lowest") if lowest else ("most", "highest")
    words = f"{most if found.stands_out else highest} in {rows[found.row]} ({say(found.row)})"
    return f"{words}, not distinguishable from {alike}" if (alike := alike_words(found)) else words


def alike_words(found: Extreme, *, with_distance: bool = True) -> str:
    """List the layers that noise cannot tell from the highest one, the nearest first; empty without any.

    >>> alike = (("layer.2", 0.0004, 0.0003), ("layer.3", 0.02, 0.03))
    >>> alike_words(Extreme(row=1, alike=alike, noise="anchors"))
    'layer.2 (0.00058 ± 0.00043 bits), layer.3'

    Args:
        with_distance: tell how far the nearest is, in bits; of a metric that has a unit.
    """
    if not found.alike:
        return ""
    (nearest, distance, noise), *others = found.alike
    apart = f" ({_in_bits(distance, noise)})" if with_distance else ""
    return abbreviated([nearest + apart, *(name for name, _, _ in others)], _MAX_ALIKE)


def _in_bits(distance: float, noise: float) -> str:
    """Write a distance and its noise, given in nats, with three decimals, or as many as the noise needs to be seen."""
    distance, noise = distance / math.log(2), noise / math.log(2)
    digits = min(6, max(3, 1 - math.floor(math.log10(noise)))) if noise > 0 else 3
    return f"{distance:.{digits}f} ± {noise:.{digits}f} bits"
