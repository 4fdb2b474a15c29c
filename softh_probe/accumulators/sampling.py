"""The sample of positions and the bootstrap weights of documents, drawn by hashes of the text.

Keys are hashes of token ids. Results therefore do not depend on the order of documents, on batches and padding, or
on shards and processes. In a run, keys of the sample of documents are also of the numbers of their rows in
the data: else it would hold all copies of a text or none.
"""

from __future__ import annotations

import hashlib

import numpy as np
from scipy.special import pdtr

#: Positions of which a layer keeps the soft assignment, for the null and the bias correction.
SAMPLE_SIZE = 2048

#: Documents of which a layer keeps the sums, for labels of whole documents: their null, p-value and correction. All are
#: kept where there are no more; else the null's relative error is some 1/sqrt(4,096) times the variation of documents.
MAX_DOCUMENTS = 4096

#: Bootstrap replicates of the documents.
N_REPLICATES = 100


GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # the step of SplitMix64
_BEYOND_POSITIONS = 1 << 40  # keys of weights are none of a position
_PLACES = np.uint64(0xFF)  # bits of a document's key that tell its place in its row
_POISSON_CDF = pdtr(np.arange(20), 1.0)


def sequence_key(tokens: np.ndarray) -> int:
    """Hash a sequence of token ids to 64 bits."""
    content = np.ascontiguousarray(tokens, dtype="<i4").tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def position_keys(sequence_keys_N: np.ndarray, index_N: np.ndarray) -> np.ndarray:
    """Hash positions to uniform 64-bit numbers [N] by their sequence's key and their index in the sequence."""
    return splitmix64(sequence_keys_N.astype(np.uint64) + (index_N.astype(np.uint64) + np.uint64(1)) * GOLDEN)


def document_keys(first_keys_D: np.ndarray, row_D: np.ndarray, place_D: np.ndarray) -> np.ndarray:
    """Hash documents of a run to distinct 64-bit numbers [D], those of a row to numbers that follow each other.

    Copies of a text differ by their rows, so that a sample of the smallest keys has its share of them.

    Args:
        first_keys_D: hash of the first text of each document's row.
        row_D: number of the row in the data.
        place_D: place of the document in its row.
    """
    row_keys_D = position_keys(first_keys_D, row_D)
    return row_keys_D & ~_PLACES | np.minimum(place_D.astype(np.uint64), _PLACES)


def splitmix64(x: np.ndarray) -> np.ndarray:
    """Mix the bits of uint64 numbers: the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


def poisson_weights(sequence_keys_B: np.ndarray) -> np.ndarray:
    """Draw how often each sequence occurs in each bootstrap replicate: Poisson(1), float64 [N_REPLICATES, B]."""
    draws = np.arange(N_REPLICATES)[:, None] + _BEYOND_POSITIONS
    keys = position_keys(np.broadcast_to(sequence_keys_B, (N_REPLICATES, len(sequence_keys_B))), draws)
    return np.searchsorted(_POISSON_CDF, keys / 2.0**64).astype(np.float64)


def bottom_k(keys_N: np.ndarray, size: int) -> np.ndarray:
    """Find the indices of the `size` smallest keys, in ascending order of keys; all where there are fewer."""
    if size < len(keys_N):
        chosen = np.argpartition(keys_N, size)[:size]
        return chosen[np.argsort(keys_N[chosen], kind="stable")]
    return np.argsort(keys_N, kind="stable")


class BottomKSample:
    """Bottom-k sample: the positions with the smallest keys so far, a uniform sample of bounded size.

    The sample does not depend on the order of positions, nor on their distribution over probes that are merged.
    """

    def __init__(self, size: int = SAMPLE_SIZE) -> None:
        self._size = size
        self.keys = np.zeros(0, dtype=np.uint64)

    def offer(self, keys_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Choose the new positions that enter the sample, and their slots."""
        n_old = len(self.keys)
        kept = bottom_k(np.concatenate([self.keys, keys_N]), self._size)
        taken = kept[kept >= n_old] - n_old
        free = np.setdiff1d(np.arange(min(self._size, n_old + len(keys_N))), kept[kept < n_old])[: len(taken)]
        grown = np.concatenate([self.keys, np.zeros(max(0, len(kept) - n_old), dtype=np.uint64)])
        grown[free] = keys_N[taken]
        self.keys = grown
        return taken, free
