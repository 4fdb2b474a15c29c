"""Weights of the labels that are followed, from their probabilities and the known totals of their strata.

A label that is followed with probability π stands for 1/π labels. Weights w = c/π are scaled by strata so that
positions add up to what is known (the ratio estimator of Hájek 1971; Särndal, Swensson and Wretman 1992, chapter 7):

- A plan knows the labels of every count. Its strata are neighbouring counts of a set, with at least `LEAST` labels.
- Attached, the positions of each set are known, and those of the labels that are followed for certain; the other labels
  of the set are one stratum.

Shape suffixes: L live rows, X label sets, I buckets.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from softh_probe.accumulators.row_labels import RowLabels

#: Followed labels of a stratum of neighbouring counts, at least, where the set has as many.
LEAST = 16


class BucketWeights(NamedTuple):
    """The weight of each bucket's followed labels [I], and the stratum of each bucket [I]."""

    weights_I: np.ndarray
    strata_I: np.ndarray


class LiveWeights(NamedTuple):
    """Weights of the labels that have rows.

    Attributes:
        own_L: of live rows that belong to one label.
        shared: of each set's labels in shared rows.
        unknown: sets with positions for which no label stands that is followed.
        complete: sets all of whose positions are in the sums of labels that are followed.
    """

    own_L: Tensor
    shared: list[Tensor]
    unknown: frozenset[int]
    complete: frozenset[int]


def bucket_weights(rows: RowLabels) -> BucketWeights:
    """Weight the followed labels of each bucket; 1 where all labels of the bucket are followed."""
    weights, strata = np.ones(len(rows.bucket_sets)), np.arange(len(rows.bucket_sets))
    for x in np.flatnonzero(rows.thresholds > 1):
        sampled = np.flatnonzero((rows.bucket_sets == x) & (rows.bucket_probability < 1))
        if not len(sampled):
            continue
        sampled = sampled[np.argsort(-rows.bucket_counts[sampled], kind="stable")]
        for part in _parts(rows.bucket_followed[sampled]):
            of = sampled[part]
            followed = rows.bucket_counts[of] * rows.bucket_followed[of] / rows.bucket_probability[of]
            known = (rows.bucket_counts[of] * rows.bucket_labels[of]).sum()
            with np.errstate(divide="ignore", invalid="ignore"):  # no label of the set is followed
                weights[of] = known / followed.sum() / rows.bucket_probability[of]
            strata[of] = of[0]
    weights[~np.isfinite(weights)] = np.nan
    return BucketWeights(weights, strata)


def _parts(followed: np.ndarray) -> list[slice]:
    """Cut buckets into runs of neighbours with at least `LEAST` followed labels."""
    ends, n = [], 0
    for i, more in enumerate(followed.tolist()):
        n += more
        if n >= LEAST:
            ends.append(i + 1)
            n = 0
    if n or not ends or ends[-1] < len(followed):
        ends = [*ends[:-1], len(followed)]
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def live_weights(rows: RowLabels, counts_L: Tensor, positions_X: Tensor) -> LiveWeights | None:
    """Weight the labels that have rows; None where all are followed, and in plans, whose labels are retired.

    Args:
        rows: the label of each row.
        counts_L: positions of each live row.
        positions_X: positions that have a label of each set.
    """
    if not rows.shared_probability:
        return None
    own_L = torch.from_numpy(rows.live_scale / rows.live_probability)
    shared = [torch.from_numpy(1.0 / probability) for probability in rows.shared_probability]
    sets_L = torch.from_numpy(rows.live_sets)
    unknown: set[int] = set()
    complete: set[int] = set()
    for x in np.flatnonzero(rows.thresholds > 1).tolist():
        of_set, in_shared = sets_L == x, counts_L[torch.from_numpy(rows.shared_rows[x])].double()
        positions = torch.cat([counts_L[of_set].double(), in_shared])
        weights = torch.cat([own_L[of_set], shared[x]])
        own_sampled, shared_sampled = (
            torch.from_numpy(probability < 1) for probability in (rows.live_probability, rows.shared_probability[x])
        )
        sampled = torch.cat([own_sampled[of_set], shared_sampled])
        known = positions_X[x] - (positions * weights)[~sampled].sum()
        if positions.sum() == positions_X[x]:
            complete.add(x)
            own_L[of_set], shared[x][:] = 1.0, 1.0
            continue
        if known > 0 and not sampled.any():
            unknown.add(x)
            continue
        scale = known / (positions * weights)[sampled].sum()
        own_L[of_set & own_sampled] *= scale
        shared[x][shared_sampled] *= scale
    return LiveWeights(own_L, shared, frozenset(unknown), frozenset(complete))
