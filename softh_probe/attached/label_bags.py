"""Labels of positions: n-grams around them, kept rows, and the bags that positions of one label make.

Shape suffixes: B sequences, T columns, N positions, n tokens of an n-gram, E positions in bags.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from softh_probe.accumulators.dispatch import Bags, sort_into_bags


def label_bags(
    kept: Sequence[np.ndarray], opened: Sequence[np.ndarray], place_N: np.ndarray, n_kept: int, n_labels: int
) -> Bags:
    """Sort positions by kept row, then by number of the n-gram; negative ones have no bag."""
    if not kept and not opened:
        return sort_into_bags(np.zeros((0, len(place_N)), dtype=np.int64), place_N, 0)
    is_none = [numbers < 0 for numbers in (*kept, *opened)]
    groups = [*kept, *(n_kept + numbers for numbers in opened)]
    if not any(none.any() for none in is_none):
        return sort_into_bags(np.stack(groups), place_N, n_kept + n_labels, n_pieced=n_kept)
    some = ~np.concatenate(is_none)
    groups_1E, positions_E = np.concatenate(groups)[None, some], np.tile(place_N, len(groups))[some]
    return sort_into_bags(groups_1E, positions_E, n_kept + n_labels, n_pieced=n_kept)


def kept_rows(table: Mapping[int, int], labels: np.ndarray) -> np.ndarray:
    """Find the kept row of each label, and take new ones; −1 for a negative label."""
    distinct, inverse = np.unique(labels, return_inverse=True)
    rows = [table[label] if label >= 0 else -1 for label in distinct.tolist()]
    return np.array(rows, dtype=np.int64)[inverse]


def ngrams(ids_BT: np.ndarray, order: int, sequence_N: np.ndarray, start_N: np.ndarray) -> np.ndarray:
    """Find the n tokens from `start_N` on, int32 [N, n]."""
    if not len(start_N):
        return np.zeros((0, order), dtype=np.int32)
    tokens_Nn: np.ndarray = sliding_window_view(ids_BT.astype(np.int32), order, axis=1)[sequence_N, start_N]
    return tokens_Nn
