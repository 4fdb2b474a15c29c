"""Information and entropy in words: so many of H(X) bits, and as even as over so many anchors.

Information is a share of what there is to know: I(X;Z) never exceeds H(X), the entropy of the labels. A share of log m
says little of it, since labels of few values have few bits. Entropy H(Z), in units of log m, is that of m^H(Z) anchors
that are evenly used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from softh_probe.analysis.sites import lead_site, of_site
from softh_probe.estimators.soft_entropy import entropy
from softh_probe.result import ProbeResult

#: Bits below this are written as 0: float32 assignments are hardly more exact.
_LEAST_BITS = 5e-5
#: H(X) below this, in nats, is that of labels of a single value.
_LEAST_LABELS = 1e-9


@dataclass(frozen=True)
class LabelBits:
    """H(X) of a label set.

    Attributes:
        nats: NaN where it is not known: results of earlier versions do not have it.
        is_estimated: whether it is estimated from a sample of labels.
    """

    nats: float
    is_estimated: bool = False

    def of(self, nats: float) -> str:
        """Say how much information there is of how much there is to know.

        >>> LabelBits(2.75 * math.log(2)).of(0.37 * math.log(2)), LabelBits(math.nan).of(0.37 * math.log(2))
        ('0.37 of 2.75 bits', '0.37 bits')
        """
        return f"{bits(nats)}{f' of {self.size}' if self.size else ''} bits"

    def of_and_share(self, nats: float) -> str:
        """Say it with the percentage of H(X).

        >>> LabelBits(2.0 * math.log(2)).of_and_share(0.5 * math.log(2))
        '0.50 of 2.00 bits, 25%'
        """
        return f"{self.of(nats)}, {percent(nats / self.nats)}" if self.nats > _LEAST_LABELS else self.of(nats)

    @property
    def size(self) -> str:
        """H(X) in bits, in words; empty where it is not known."""
        return "" if math.isnan(self.nats) else f"{'about ' * self.is_estimated}{bits(self.nats)}"


def label_bits(result: ProbeResult, label_set: str) -> LabelBits:
    """Look up H(X) of a label set; that of all layers is the same."""
    found = result.tensors.get("entropy_of_labels")
    if found is None:
        return LabelBits(math.nan)
    known = found[:, result.label_sets.index(label_set)]
    known = known[known.isfinite()]
    sampling = (result.info.get("label_sampling") or {}).get(label_set, {})
    return LabelBits(float(known[0]) if len(known) else math.nan, bool(sampling.get("estimated")))


def bits(nats: float) -> str:
    """Write a number of nats in bits: two decimals, and below 0.1 two digits that count.

    >>> [bits(x * math.log(2)) for x in (2.746, 0.0431, 0.00431, -0.2, 1e-7, math.nan)]
    ['2.75', '0.043', '0.0043', '−0.20', '0', '–']
    """
    value = nats / math.log(2)
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    if size < _LEAST_BITS:
        return "0"
    digits = 2 if size >= 0.0995 else 1 - math.floor(math.log10(size))
    return f"{'−' if value < 0 else ''}{size:.{digits}f}"


def anchors(share: float, n_anchors: int) -> str:
    """Write m^H, the anchors whose even use has the same entropy.

    >>> anchors(0.7, 100), anchors(0.2, 100), anchors(math.nan, 100)
    ('25', '2.5', '–')

    Args:
        share: H(Z) in units of log m.
        n_anchors: the number of anchors m.
    """
    n = n_anchors**share
    if not math.isfinite(n):
        return "–"
    return f"{n:.0f}" if n >= 9.95 else f"{n:.1f}"


def percent(share: float) -> str:
    """Write a share in percent: whole, and below 1% with one digit that counts.

    >>> percent(0.427), percent(0.0043), percent(0.0)
    ('43%', '0.4%', '0%')
    """
    if not np.isfinite(share):
        return "–"
    return f"{100 * share:.0f}%" if share > 0.0095 or share <= 0 else f"{100 * share:.1g}%"


def reading_lines(result: ProbeResult) -> list[str]:
    """Say below a table in units of log m how it reads in anchors and bits, and what there is to know of the labels."""
    lead, m = of_site(result, lead_site(result)), result.n_anchors
    nats_R = entropy(lead.tensors["mass"]).mean(dim=1)
    said = f"entropy of {lead.rows[-1]}: as many as {anchors(float(nats_R[-1]) / math.log(m), m)} of {m} anchors"
    lines = [f"{said}, evenly used"]
    of_sets = [f"{name} {size}" for name in result.label_sets if (size := label_bits(result, name).size)]
    if of_sets:
        lines.append(
            f"in bits: 1 is log m = {math.log2(m):.2f}; there is to know of labels, H(X): {', '.join(of_sets)}"
        )
    return lines
