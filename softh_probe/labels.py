"""Label sets: what X is in I(X;Z).

`input_bigram` labels a position by the two tokens that end there, `output_bigram` by the two that follow it, and
`column:language` by a column of the data set, the same for all positions of a document.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from softh_probe.errors import InputError

ORDERS = {"unigram": 1, "bigram": 2, "trigram": 3, "quadgram": 4}
DIRECTIONS = ("input", "output")
NGRAM_SETS = tuple(f"{direction}_{order}" for order in ORDERS for direction in DIRECTIONS)
COLUMN_PREFIX = "column:"


@dataclass(frozen=True, kw_only=True)
class LabelSet:
    """One label set.

    Attributes:
        name: as the user writes it and as results carry it.
        direction: "input", "output" or "column".
        order: n of the n-gram; 0 for a column.
        column: name of the data set's column; empty for n-grams.
    """

    name: str
    direction: str
    order: int = 0
    column: str = ""


def parse_label_sets(names: Iterable[str]) -> tuple[LabelSet, ...]:
    """Label sets from their names, in the order given.

    >>> [s.order for s in parse_label_sets(["input_unigram", "output_quadgram", "column:language"])]
    [1, 4, 0]

    Raises:
        InputError: a name that is none of these, or one that stands twice.
    """
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise InputError(f"labels: expected a list of names, got {names!r}; () counts every token")
    names = list(names)
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f"labels: {', '.join(repeated)} stands twice; name each label set once")
    return tuple(_parse_label_set(name) for name in names)


def _parse_label_set(name: str) -> LabelSet:
    if name in NGRAM_SETS:
        direction, order = name.split("_")
        return LabelSet(name=name, direction=direction, order=ORDERS[order])
    column = str(name).removeprefix(COLUMN_PREFIX)
    if column and column != name:
        return LabelSet(name=name, direction="column", column=column)
    raise InputError(
        f"labels: unknown label set {name!r}; expected any of {', '.join(NGRAM_SETS)}, or column:NAME for a "
        "column of the data set"
    )


def context(label_sets: Sequence[LabelSet]) -> tuple[int, int]:
    """Tokens that must stand before and after a position for all its n-gram labels to be defined.

    One population serves all label sets: positions before … L − after − 1 of a document of L tokens count.

    >>> context(parse_label_sets(["input_bigram", "output_unigram"]))
    (1, 1)
    """
    before = max((s.order - 1 for s in label_sets if s.direction == "input"), default=0)
    after = max((s.order for s in label_sets if s.direction == "output"), default=0)
    return before, after


def shortest_document(label_sets: Sequence[LabelSet]) -> int:
    """Tokens a document needs for one position of it to count."""
    before, after = context(label_sets)
    return before + after + 1


def ngram_ids(tokens: np.ndarray, offsets: np.ndarray, max_order: int) -> list[np.ndarray]:
    """Exact dense ids of the n-grams that end at each token, for n = 1 … max_order.

    An n-gram is its (n−1)-gram and its last token, so each order is interned from the one below: ids are exact,
    never hashed, and equal n-grams have equal ids.

    >>> ngram_ids(np.array([7, 8, 7, 8, 9]), np.array([0, 5]), 2)
    [array([0, 1, 0, 1, 2], dtype=int32), array([-1,  0,  1,  0,  2], dtype=int32)]

    Args:
        tokens: [n_tokens], documents one after the other.
        offsets: [n_documents + 1], where each document starts.

    Returns:
        For each order an int32 array [n_tokens]; −1 where the document has fewer than n tokens up to there.
    """
    unigram, distinct = pd.factorize(tokens)
    ids = [unigram.astype(np.int32)]
    depth = np.arange(len(tokens)) - np.repeat(offsets[:-1], np.diff(offsets))
    for order in range(2, max_order + 1):
        defined = depth >= order - 1
        previous = np.roll(ids[-1], 1)[defined].astype(np.int64)
        interned, _ = pd.factorize(previous * len(distinct) + unigram[defined])
        longer = np.full(len(tokens), -1, dtype=np.int32)
        longer[defined] = interned
        ids.append(longer)
    return ids
