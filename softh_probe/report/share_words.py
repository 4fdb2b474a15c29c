"""Shares of the ceiling that each order of n-grams adds, in words."""

from __future__ import annotations

from typing import NamedTuple

from softh_probe.analysis.sites import lead_site, of_site
from softh_probe.labels import DIRECTIONS
from softh_probe.metrics import levels_of
from softh_probe.result import ProbeResult


class ShareWords(NamedTuple):
    """What the orders of a direction add in one layer: the layer, the sum of all beyond unigrams, and all in words."""

    layer: str
    added: str
    shares: str


def share_words(result: ProbeResult, direction: str) -> ShareWords | None:
    """Say which share of the ceiling each order of a direction adds, in the layer where longer n-grams add the most.

    Shares are corrected for chance where that is known. None where only unigrams were measured, or nothing is known.
    """
    levels = levels_of(direction, result.label_sets)
    if len(levels) < 2:
        return None
    table = of_site(result, lead_site(result)).to_pandas()
    for suffix, corrected in (("_corrected", ", corrected for chance"), ("", "")):
        shares = table[(table.metric == f"information_share{suffix}") & table.label_set.isin(levels)]
        wide = shares.pivot_table(index="name", columns="label_set", values="value", sort=False).dropna()
        if len(wide) and set(levels) <= set(wide.columns):
            added = wide[levels[1:]].sum(axis=1)
            most = int(added.argmax())
            of_layer = wide.iloc[most]
            parts = [f"{level.partition('_')[2]}s {_signed(of_layer[level])}" for level in levels]
            words = f"{', '.join(parts).replace('+', '', 1)}, {100 * (1 - of_layer[levels].sum()):.0f}% left{corrected}"
            return ShareWords(str(wide.index[most]), _signed(added.iloc[most]), words)
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
