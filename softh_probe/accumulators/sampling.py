"""What chance decides: the sample of positions and the bootstrap weights of documents, both from the text itself.

Keys are hashes of token ids, so results do not depend on the order of documents, on how they are batched and
padded, or on which shard or process met them.
"""

from __future__ import annotations

import hashlib

import numpy as np
from scipy.stats import poisson

#: Positions of which a layer keeps the soft assignment, to tell what chance alone would give.
SAMPLE_SIZE = 2048

#: Bootstrap replicates of the documents.
N_REPLICATES = 100


GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # the step of SplitMix64
_BEYOND_POSITIONS = 1 << 40  # keys of weights are none of a position
_POISSON_CDF = poisson(1.0).cdf(np.arange(20))


def sequence_key(tokens: np.ndarray) -> int:
    """A number of 64 bits that stands for a sequence of token ids."""
    content = np.ascontiguousarray(tokens, dtype="<i4").tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def position_keys(sequence_keys_N: np.ndarray, index_N: np.ndarray) -> np.ndarray:
    """Uniform numbers of 64 bits, one a position, from its sequence's key and its place there [N], uint64."""
    return splitmix64(sequence_keys_N.astype(np.uint64) + (index_N.astype(np.uint64) + np.uint64(1)) * GOLDEN)


def splitmix64(x: np.ndarray) -> np.ndarray:
    """Numbers that look random, uint64 to uint64: the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def poisson_weights(sequence_keys_B: np.ndarray) -> np.ndarray:
    """How often each sequence occurs in each bootstrap replicate: Poisson(1), float64 [N_REPLICATES, B]."""
    draws = np.arange(N_REPLICATES)[:, None] + _BEYOND_POSITIONS
    keys = position_keys(np.broadcast_to(sequence_keys_B, (N_REPLICATES, len(sequence_keys_B))), draws)
    return np.searchsorted(_POISSON_CDF, keys / 2.0**64).astype(np.float64)


def bottom_k(keys_N: np.ndarray, size: int) -> np.ndarray:
    """Indices of the `size` smallest keys, ascending by key; all of them where there are fewer."""
    if size < len(keys_N):
        chosen = np.argpartition(keys_N, size)[:size]
        return chosen[np.argsort(keys_N[chosen], kind="stable")]
    return np.argsort(keys_N, kind="stable")


class BottomKSample:
    """The positions with the smallest keys of all so far: a uniform sample whose size is bounded.

    Which positions they are does not depend on the order in which they come, nor on how they are shared out among
    probes that are merged.
    """

    def __init__(self, size: int = SAMPLE_SIZE) -> None:
        self._size = size
        self.keys = np.zeros(0, dtype=np.uint64)

    def offer(self, keys_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of new positions are taken in, and the slots they go to."""
        n_old = len(self.keys)
        kept = bottom_k(np.concatenate([self.keys, keys_N]), self._size)
        taken = kept[kept >= n_old] - n_old
        free = np.setdiff1d(np.arange(min(self._size, n_old + len(keys_N))), kept[kept < n_old])[: len(taken)]
        grown = np.concatenate([self.keys, np.zeros(max(0, len(kept) - n_old), dtype=np.uint64)])
        grown[free] = keys_N[taken]
        self.keys = grown
        return taken, free
