"""Entropies of the labels of all sets, pooled by the labels' counts.

Shape suffixes: X label sets, C counts, S anchor sets, L labels or pools of labels, K columns of a row of sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

ROWS_AT_ONCE = 8192  # of a table of labels, while their entropies are taken in float64


class CountTables(NamedTuple):
    """Sums over the labels of each set and count.

    Attributes:
        counts_C: the distinct counts n.
        labels_XC: the labels of each set and count; an estimate where counts are not known of all.
        followed_XC: the sum of the weights of those that are followed; where all are followed, their number.
        weighted_XCS: Σ n·H(p̂_x), weighted, in nats.
        own_XCS: sum of the positions' own assignment entropies, weighted, in nats.
    """

    counts_C: Tensor
    labels_XC: Tensor
    followed_XC: Tensor
    weighted_XCS: Tensor
    own_XCS: Tensor

    @property
    def of_followed(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Counts, and the sums over the labels that are followed, weighted."""
        return self.counts_C, self.followed_XC, self.weighted_XCS, self.own_XCS

    @property
    def entropy_of_labels(self) -> Tensor:
        """H(X) of the labels of each set in nats [X]; NaN where there are none."""
        positions_XC = self.labels_XC * self.counts_C
        n_X1 = positions_XC.sum(dim=1, keepdim=True)
        return (positions_XC / n_X1 * (n_X1.log() - self.counts_C.double().log())).sum(dim=1)

    def of_set(self, x: int) -> CountTables:
        """The sums of one set, [C] and [C, S]."""
        return CountTables(self.counts_C, *(table[x] for table in self[1:]))


class LabelPools:
    """Collect labels, or pools of labels of one count."""

    def __init__(self, n_label_sets: int, n_anchor_sets: int) -> None:
        self._n_label_sets, self._n_anchor_sets = n_label_sets, n_anchor_sets
        self._parts: list[tuple[Tensor, ...]] = []

    def add(
        self,
        sets_L: Tensor,
        counts_L: Tensor,
        labels_L: Tensor,
        weighted_LS: Tensor,
        own_LS: Tensor,
        *,
        followed_L: Tensor | None = None,
    ) -> None:
        """Add pools of labels of one set and count.

        Args:
            sets_L, counts_L: set and count of each pool.
            labels_L: how many labels there are.
            weighted_LS, own_LS: Σ n·H(p̂_x) and Σ of assignment entropies of those that are followed, weighted.
            followed_L: sum of their weights; None where all are followed.
        """
        followed_L = labels_L if followed_L is None else followed_L
        columns = [labels_L.double().unsqueeze(1), followed_L.double().unsqueeze(1), weighted_LS.double()]
        self._parts.append((sets_L, counts_L, torch.cat([*columns, own_LS.double()], dim=1)))

    def by_count(self) -> CountTables:
        """Sum the pools of each set and count."""
        sets, counts, sums = (torch.cat(column) for column in zip(*self._parts, strict=True))
        counts_C, c = counts.unique(return_inverse=True)
        shape = (self._n_label_sets, len(counts_C))
        pooled = sums.new_zeros(shape[0] * shape[1], sums.shape[1])
        pooled.index_add_(0, sets * shape[1] + c, sums)
        # A label none of whose positions had a direction has no entropy either.
        pooled, counts_C = pooled.unflatten(0, shape)[:, counts_C > 0], counts_C[counts_C > 0]
        labels, followed, *entropies = pooled.split([1, 1, self._n_anchor_sets, self._n_anchor_sets], dim=2)
        return CountTables(counts_C, labels.squeeze(2), followed.squeeze(2), *entropies)


def chunks(rows: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the rows of a table in chunks, and what belongs to them."""
    yield from zip(*(tensor.split(ROWS_AT_ONCE) for tensor in (rows, *others)), strict=True)


def sum_rows(table_LK: Tensor, rows: np.ndarray, weights: Tensor | None = None) -> Tensor:
    """Sum rows of a table, each times its weight, in float64: [K]."""
    total_K = table_LK.new_zeros(table_LK.shape[1], dtype=torch.float64)
    if weights is None:
        for (part,) in chunks(torch.from_numpy(rows)):
            total_K = total_K + table_LK[part].sum(dim=0, dtype=torch.float64)
        return total_K
    for part, weight in chunks(torch.from_numpy(rows), weights):
        total_K = total_K + weight @ table_LK[part].double()
    return total_K
