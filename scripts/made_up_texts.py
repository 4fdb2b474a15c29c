"""Made-up documents, whose tokens are as unevenly frequent as words are and repeat in phrases."""

from __future__ import annotations

import numpy as np

VOCABULARY = 2**15  # four tokens are one number of 64 bits
_BLOCK, _LONGEST = 2000, 256
_SHARE, _STEEP = 0.9, 2.0


def made_up_documents(block: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and lengths of a block of documents.

    Some tokens are drawn by Zipf's law; most go on from the one before in one of a few ways, by a steeper one.
    """
    chance = np.random.default_rng(block)
    lengths = np.clip(chance.lognormal(np.log(90), 0.6, _BLOCK), 2, _LONGEST).astype(np.int64)
    shape = (_LONGEST, _BLOCK)
    drawn, step = (np.searchsorted(_zipf(power), chance.random(shape)) for power in (1.0, _STEEP))
    goes_on = chance.random(shape) < _SHARE
    tokens_TB = np.empty(shape, dtype=np.int32)
    tokens_TB[0] = drawn[0]
    for t in range(1, _LONGEST):
        following = (tokens_TB[t - 1].astype(np.int64) * 7919 + 12345 * step[t]) % VOCABULARY
        tokens_TB[t] = np.where(goes_on[t], following, drawn[t])
    return tokens_TB.T[np.arange(_LONGEST) < lengths[:, None]], lengths


def _zipf(power: float) -> np.ndarray:
    weights = 1.0 / np.arange(1, VOCABULARY + 1) ** power
    return np.cumsum(weights / weights.sum())[:-1]
