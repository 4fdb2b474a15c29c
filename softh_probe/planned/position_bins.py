"""Plans of the bins of positions: each is a population of its own, measured in the same forward passes.

A bin is a corpus whose policy of positions is narrower. Its rows, samples and sums are therefore those of any plan, and
so are its metrics. Its batches, n-grams and keys are those of the plan of all positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from softh_probe.labels import LabelRows, LabelSet
from softh_probe.planned.plan import Plan
from softh_probe.position_bins import bin_name


def bins_of(places_N: np.ndarray) -> np.ndarray:
    """Find the number of the bin of each place in a document, that of its binary digits: int [N].

    >>> bins_of(np.array([0, 1, 2, 3, 4, 7, 8])).tolist()
    [0, 1, 2, 2, 3, 3, 4]
    """
    _, exponents_N = np.frexp(places_N.astype(np.float64))
    found: np.ndarray = exponents_N.astype(np.int64)
    return found


def plan_bins(
    plan: Plan,
    batches: Sequence[np.ndarray],
    per_label: Sequence[str] = (),
    n_shares: int = 1,
    label_rows: LabelRows = "all",
    seed: int = 0,
    within: str | None = None,
) -> dict[str, Plan]:
    """Plan each bin that has a position that counts, by its name, in order.

    Label sets of which no document with a position in a bin has a label are left out of that bin.

    Args:
        plan: that of all positions.
        batches: those that it was made of.
        per_label, n_shares, label_rows, seed, within: as it was made with; `label_rows` is a limit of each bin.
    """
    corpus, documents = plan.corpus, np.concatenate(plan.batches)
    tokens = plan.population.tokens(documents)
    bin_of_token = np.full(corpus.n_tokens, -1, dtype=np.int8)
    bin_of_token[tokens] = bins_of(plan.population.places(documents))
    document_of_token = np.repeat(documents, plan.population.counts(documents))
    found = {}
    for number in np.unique(bin_of_token[tokens]).tolist():
        counted = bin_of_token == number
        there = np.unique(document_of_token[counted[tokens]])
        found[bin_name(number)] = Plan(
            replace(corpus, counted=counted),
            _labelled(plan, there),
            batches,
            per_label,
            None,
            n_shares,
            label_rows=label_rows,
            seed=seed,
            within=within,
            like=plan,
        )
    return found


def _labelled(plan: Plan, documents: np.ndarray) -> list[LabelSet]:
    """Select the label sets of which some document has a label."""
    columns = plan.corpus.columns
    return [s for s in plan.label_sets if s.direction != "column" or (columns[s.column].ids[documents] >= 0).any()]
