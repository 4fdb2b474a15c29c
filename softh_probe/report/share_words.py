"""Shares of the ceiling that each order of n-grams adds, in words."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from softh_probe.analysis.layers import extreme_over_anchors
from softh_probe.analysis.sites import lead_site, of_site
from softh_probe.labels import DIRECTIONS
from softh_probe.metrics import levels_of
from softh_probe.report.extreme_words import alike_words
from softh_probe.result import ProbeResult


class ShareWords(NamedTuple):
    """What the orders of a direction add in one layer: the sum of all beyond unigrams, and all in words.

    `alike` are the layers in which longer n-grams add as much, as far as the spread over anchor sets tells.
    """

    layer: str
    added: str
    shares: str
    alike: str

    @property
    def where(self) -> str:
        """The layer, and those that cannot be told from it."""
        return self.layer + (f" (not distinguishable from {self.alike})" if self.alike else "")


def share_words(result: ProbeResult, direction: str) -> ShareWords | None:
    """Say which share of the ceiling each order of a direction adds, in the layer whose sum of longer ones is highest.

    Shares are corrected for chance where that is known. None where only unigrams were measured, or nothing is known.
    """
    levels = levels_of(direction, result.label_sets)
    if len(levels) < 2:
        return None
    lead = of_site(result, lead_site(result))
    values = {(name, metric): values_RS.numpy() for name, metric, values_RS in lead.metrics() if name in levels}
    for suffix, corrected in (("_corrected", ", corrected for chance"), ("", "")):
        if not all((level, f"information_share{suffix}") in values for level in levels):
            continue
        shares_LRS = np.stack([values[level, f"information_share{suffix}"] for level in levels])
        # A layer in which one order has no share has no sum, not even of the others.
        added_RS = np.where(np.isnan(shares_LRS[0]), np.nan, shares_LRS[1:].sum(axis=0))
        found = extreme_over_anchors(lead.rows, added_RS)
        if found is not None:
            share_L = shares_LRS[:, found.row].mean(axis=1)
            parts = [f"{level.partition('_')[2]}s {_signed(s)}" for level, s in zip(levels, share_L, strict=True)]
            words = f"{', '.join(parts).replace('+', '', 1)}, {100 * (1 - share_L.sum()):.0f}% left{corrected}"
            added = _signed(added_RS[found.row].mean())
            return ShareWords(lead.rows[found.row], added, words, alike_words(found, with_distance=False))
    return None


def share_lines(result: ProbeResult) -> list[str]:
    """Say it of each direction of which longer n-grams were measured, on a line each."""
    said = [(direction, share_words(result, direction)) for direction in DIRECTIONS]
    return [f"shares of the ceiling, {d} n-grams, {words.layer}: {words.shares}" for d, words in said if words]


def _signed(share: float) -> str:
    """Write a share in percent with its sign.

    >>> _signed(0.123), _signed(-0.4)
    ('+12%', '−40%')
    """
    return f"{100 * share:+.0f}%".replace("-", "−")
