"""Counts of the n-grams that are not followed, in a fixed memory: a count-min sketch.

Each n-gram adds to one cell of every row, and its count is the least of its cells (Cormode and Muthukrishnan 2005). So
it is never too small; it is too large by what others have added to the same cells, which with `CELLS` cells for each
row of labels is a few percent of the threshold τ.
"""

from __future__ import annotations

import numpy as np

from softh_probe.accumulators.sampling import GOLDEN, splitmix64

#: Cells of a row of the sketch for each row of labels.
CELLS = 64
_DEPTH = 2


class FrequencySketch:
    """Count n-grams by their numbers u.

    >>> sketch = FrequencySketch(label_rows=16)
    >>> sketch.add(np.array([0.5, 0.25, 0.5]))
    >>> sketch.estimate(np.array([0.5, 0.25, 0.75])).tolist()
    [2, 1, 0]

    Args:
        label_rows: rows of labels, to which the size is proportional.

    Attributes:
        cells: int32 [rows, cells], the counts.
    """

    def __init__(self, label_rows: int) -> None:
        self.cells = np.zeros((_DEPTH, 2 ** int(CELLS * label_rows).bit_length()), dtype=np.int32)

    def add(self, u_N: np.ndarray, times: np.ndarray | int = 1) -> None:
        """Count each n-gram so many times; negative numbers take back."""
        for row, cell_N in zip(self.cells, self._cells_of(u_N), strict=True):
            np.add.at(row, cell_N, times)

    def estimate(self, u_N: np.ndarray) -> np.ndarray:
        """Estimate how often each n-gram was counted: int64 [N], never too small."""
        counts = [row[cell_N] for row, cell_N in zip(self.cells, self._cells_of(u_N), strict=True)]
        found: np.ndarray = np.minimum.reduce(counts).astype(np.int64)
        return found

    def merge(self, other: FrequencySketch) -> None:
        """Add the counts of another part of the data, of the same size."""
        self.cells += other.cells

    def _cells_of(self, u_N: np.ndarray) -> list[np.ndarray]:
        bits_N = (u_N * 2.0**53).astype(np.uint64)
        last = np.uint64(self.cells.shape[1] - 1)
        return [(splitmix64(bits_N + np.uint64(i) * GOLDEN) & last).astype(np.int64) for i in range(len(self.cells))]
