"""The four kinds of spread of a value, in words: a small table of pages and of README.md, the same in both."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup, escape

from softh_probe.result import ProbeResult


@dataclass(frozen=True, kw_only=True)
class Spread:
    """One kind of spread; names of columns, metrics and flags stand between backticks.

    Attributes:
        kind: what varies.
        names: its columns and metrics in the tidy table.
        says: what it says.
        matters: when it matters.
    """

    kind: str
    names: str
    says: str
    matters: str


HEADINGS = ("spread over", "in the table", "what it says", "when it matters")
ANCHORS = Spread(
    kind="anchors",
    names="`sd`",
    says="How much the value changes from one draw of anchors to the next. It takes `--anchor-sets` of 2 or more.",
    matters="When values were measured with different anchors. Those of the same anchors share most of it, so it says "
    "little of their difference.",
)
SAMPLED_LABELS = Spread(
    kind="sampled labels",
    names="`sampling_sd`",
    says="How far the value may be from that of all labels, where a sample of them was followed; 0 where it is exact.",
    matters="When n-grams are too many to follow each. More `--label-rows` lessen it; more documents or anchors do "
    "not.",
)
DOCUMENTS = Spread(
    kind="documents",
    names="`se`",
    says="How much the value would change with other documents of the same kind: ± 2 `se` is a 95% interval. It takes "
    "`--intervals`.",
    matters="When you speak of more than these documents: is a layer, a checkpoint or a model really above another?",
)
CHANCE = Spread(
    kind="chance",
    names="`mutual_information_null_sd`, `p_value`",
    says="What labels of whole documents give when they are dealt out anew: `mutual_information_null` ± this sd. "
    "`p_value` is the share of such relabelings that give as much information as was measured.",
    matters="When you ask whether layers know anything of a label of documents: a small p says that they do, not how "
    "much.",
)
SPREADS = (ANCHORS, SAMPLED_LABELS, DOCUMENTS, CHANCE)


def measured(results: Iterable[ProbeResult]) -> set[str]:
    """Find the kinds of spread that any of some results has."""
    found = set()
    for result in results:
        has = {
            ANCHORS: result.tensors["mass"].shape[1] > 1,
            SAMPLED_LABELS: bool(result.sampled_sets),
            DOCUMENTS: bool(result.standard_errors()),
            CHANCE: bool(result.p_values()),
        }
        found |= {spread.kind for spread, there in has.items() if there}
    return found


def html_of(text: str) -> Markup:
    """Convert text with names between backticks to HTML.

    >>> html_of("more `--label-rows` & less")
    Markup('more <code>--label-rows</code> &amp; less')
    """
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))
