"""The sample of n-gram labels that are followed where not all of them fit the rows of a layer.

Each n-gram of a label set has a number u, uniform in [0, 1): a hash of its tokens, the set and the seed. A label that
occurs n times is followed if u < n/τ, where τ is the threshold of its set. So it is followed with probability
π = min(1, n/τ), the same in every checkpoint, process and resumed run, and frequent labels always are. Estimates weight
each followed label by 1/π (Horvitz and Thompson 1952), scaled to known totals stratum by stratum (the ratio estimator
of Hájek 1971).

Shape suffixes: L labels, n tokens of an n-gram, I pools of labels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from softh_probe.accumulators.sampling import GOLDEN, splitmix64

#: The threshold at which every label is followed.
ALL = 1.0


def uniform_numbers(tokens_Ln: np.ndarray, set_name: str, seed: int) -> np.ndarray:
    """Hash n-grams to uniform numbers in [0, 1), float64 [L].

    >>> u = uniform_numbers(np.arange(20_000).reshape(-1, 2), "input_bigram", seed=0)
    >>> len(u), round(float(u.mean()), 1), round(float((u < 0.1).mean()), 1)
    (10000, 0.5, 0.1)

    Args:
        tokens_Ln: the tokens of each n-gram.
        set_name: the label set; sets draw independently of each other.
        seed: the seed of the measurement.
    """
    start = hashlib.blake2b(f"softh_probe labels {set_name} {seed}".encode(), digest_size=8).digest()
    key_L = np.full(len(tokens_Ln), int.from_bytes(start, "little"), dtype=np.uint64)
    for token_L in tokens_Ln.T:
        key_L = splitmix64(key_L + (token_L.astype(np.uint64) + np.uint64(1)) * GOLDEN)
    return (key_L >> np.uint64(11)) * 2.0**-53


def inclusion(counts_L: np.ndarray, threshold: float) -> np.ndarray:
    """Compute the probability π = min(1, n/τ) that a label of count n is followed.

    >>> inclusion(np.array([1, 5, 20]), 10.0).tolist()
    [0.1, 0.5, 1.0]
    """
    found: np.ndarray = np.minimum(1.0, counts_L / threshold)
    return found


def samples_of(info: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Select the label sets of which a sample of labels was followed from a result's information.

    >>> samples_of({"label_sampling": {"input_unigram": {"threshold": 1.0}, "input_bigram": {"threshold": 9.5}}})
    {'input_bigram': {'threshold': 9.5}}
    """
    sampling = info.get("label_sampling") or {}
    return {name: of_set for name, of_set in sampling.items() if of_set["threshold"] > ALL}


def describe_sample(sample: Mapping[str, Any]) -> str:
    """Say how many labels of a set are followed.

    >>> describe_sample({"labels": 193456, "followed": 8123, "threshold": 310.0, "estimated": True})
    '8,123 of an estimated 193,456 labels'

    Args:
        sample: what `RowLabels.sampling` gives of the set.
    """
    if not sample["followed"]:
        return "none of the labels"  # how many there are is not estimated either
    return f"{sample['followed']:,} of {'an estimated ' if sample['estimated'] else ''}{sample['labels']:,} labels"
