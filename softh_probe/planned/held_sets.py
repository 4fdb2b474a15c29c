"""Label sets whose rows are held to the end of a run, where the influence of documents needs them.

The influence of a document on the information of a label set needs p̂_x, the mean assignment, of each of its labels. A
second forward pass finds it in the rows of the first, if these are not given back. Labels that occur once need no row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from softh_probe.choices import Choice
from softh_probe.labels import LabelRows
from softh_probe.planned.lifetimes import Lifetimes

if TYPE_CHECKING:
    from softh_probe.planned.plan import Plan


def choose_held(lifetimes: Mapping[int, Lifetimes], label_rows: LabelRows) -> list[int]:
    """Choose the label sets whose rows are held: as many as fit, those of the fewest labels first.

    All labels of these sets are followed; only those of other sets may be sampled.

    Args:
        lifetimes: the labels of each set that has no kept rows, by the set's number.
        label_rows: rows of the sets that are held at most, beside those of labels that come and go; "all" is no limit.
    """
    repeated = {x: int((lives.count > 1).sum()) for x, lives in lifetimes.items()}
    held, n_rows = [], 0
    for x in sorted(repeated, key=lambda x: repeated[x]):
        n_rows += repeated[x]
        if label_rows == "all" or n_rows <= label_rows:
            held.append(x)
    return held


def unknown_intervals(plan: Plan, label_rows: LabelRows) -> Iterator[Choice]:
    """Say of which label sets the rows are not held, so that the influence of documents on them is not known."""
    n = plan.allocation
    for x in np.flatnonzero(~n.has_rows_at_end):
        repeated = int(n.bucket_labels[(n.bucket_sets == x) & (n.bucket_counts > 1)].sum())
        reason = (
            f"its {repeated:,} labels that occur several times do not fit, beside those of other sets, in label_rows "
            f"{label_rows:,}; raise --label-rows"
        )
        yield Choice(about=f"intervals of {plan.set_names[x]}", chosen="not known", reason=reason)
