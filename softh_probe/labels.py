"""Label sets: the variables X of I(X;Z).

`input_bigram` labels a position by the two tokens that end there, `output_bigram` by the two that follow it, and
`column:language` by a column of the data set, the same for all positions of a document.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from numbers import Integral
from typing import Any, Literal

from softh_probe.errors import InputError

ORDERS = {"unigram": 1, "bigram": 2, "trigram": 3, "quadgram": 4}
DIRECTIONS = ("input", "output")
NGRAM_SETS = tuple(f"{direction}_{order}" for order in ORDERS for direction in DIRECTIONS)
COLUMN_PREFIX = "column:"
#: Label column made from the name of the text column, where there are several.
PREFERENCE_LABEL = "text_column"

#: Rows of n-gram labels that a layer holds at a time, over all sets, or "all": every label is followed.
LabelRows = int | Literal["all"]
DEFAULT_LABEL_ROWS = 65_536
#: Rows have numbers of 32 bits.
MOST_LABEL_ROWS = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class LabelSet:
    """One label set.

    Attributes:
        name: name in configurations and results.
        direction: "input", "output" or "column".
        order: n of the n-gram; 0 for a column.
        column: name of the data set's column; empty for n-grams.
    """

    name: str
    direction: str
    order: int = 0
    column: str = ""


def parse_label_sets(names: Iterable[str], *, has_columns: bool = True) -> tuple[LabelSet, ...]:
    """Parse the names of label sets, in the order given.

    >>> [s.order for s in parse_label_sets(["input_unigram", "output_quadgram", "column:language"])]
    [1, 4, 0]

    Args:
        names: the names.
        has_columns: whether there is a data set, whose columns may be label sets.

    Raises:
        InputError: an unknown name, or a repeated one.
    """
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise InputError(f"labels: expected a list of names, got {names!r}; () counts every token")
    names = list(names)
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f"labels: {', '.join(repeated)} stands twice; name each label set once")
    return tuple(_parse_label_set(name, has_columns) for name in names)


def _parse_label_set(name: str, has_columns: bool) -> LabelSet:
    if not isinstance(name, str):
        raise InputError(f"labels: expected names of label sets, got {name!r}")
    if name in NGRAM_SETS:
        direction, order = name.split("_")
        return LabelSet(name=name, direction=direction, order=ORDERS[order])
    column = name.removeprefix(COLUMN_PREFIX)
    if has_columns and column and column != name:
        return LabelSet(name=name, direction="column", column=column)
    raise InputError(f"labels: unknown label set {name!r}; {_remedy(name, column, has_columns)}")


def _remedy(name: str, column: str, has_columns: bool) -> str:
    """Say what an unknown name of a label set may stand for."""
    ngrams = ", ".join(NGRAM_SETS)
    if get_close_matches(name, NGRAM_SETS):
        return f"expected any of {ngrams}" + ", or column:NAME for a column of the data set" * has_columns
    if has_columns:
        return f"for a column of the data set write column:{column or 'NAME'}; n-grams are {ngrams}"
    block = f"`with probe.labelled({column if column.isidentifier() else 'name'}=…):`"
    return f"labels of your own are given by {block} around forward passes; n-grams are {ngrams}"


def spellings(name: str) -> set[str]:
    """Give the names that a label set may have where a user names it: the prefix `column:` may be omitted.

    >>> sorted(spellings("language"))
    ['column:language', 'language']
    """
    return {name, COLUMN_PREFIX + name}


def context(label_sets: Sequence[LabelSet]) -> tuple[int, int]:
    """Count the tokens before and after a position that its n-gram labels need.

    All label sets share one population: positions before … L − after − 1 of a document of L tokens count.

    >>> context(parse_label_sets(["input_bigram", "output_unigram"]))
    (1, 1)
    """
    before = max((s.order - 1 for s in label_sets if s.direction == "input"), default=0)
    after = max((s.order for s in label_sets if s.direction == "output"), default=0)
    return before, after


def shortest_document(label_sets: Sequence[LabelSet]) -> int:
    """Compute the least number of tokens of a document with a position that counts."""
    before, after = context(label_sets)
    return before + after + 1


def check_label_rows(value: Any) -> LabelRows:
    """Check a number of label rows.

    >>> check_label_rows("all"), check_label_rows(8192)
    ('all', 8192)

    Raises:
        InputError: it is neither "all" nor a whole number from 1 to `MOST_LABEL_ROWS`.
    """
    if value == "all":
        return "all"
    if isinstance(value, Integral) and not isinstance(value, bool) and 1 <= int(value) <= MOST_LABEL_ROWS:
        return int(value)
    raise InputError(
        f"label_rows: expected 'all', or the rows of n-gram labels that a layer holds at a time (1 to "
        f"{MOST_LABEL_ROWS:,}; the default is {DEFAULT_LABEL_ROWS:,}), got {value!r}"
    )
