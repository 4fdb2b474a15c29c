"""The tokens of a whole document, and where those of its windows are among them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from softh_probe.errors import InputError


class OfDocument(NamedTuple):
    """The tokens of a document before it is cut."""

    ids: np.ndarray
    """int64 [L]."""
    counted: np.ndarray
    """bool [L], where a policy holds."""


def counted_in_windows(whole: OfDocument, windows: list[list[int]], truncation_side: str) -> np.ndarray:
    """Tell which tokens of some windows count, by those of the document from which they were cut: bool [n_tokens].

    Windows of a split document are successive. A truncated text keeps the special tokens at its start and at its end.
    Those at its end count only where any text before them does.

    >>> whole = OfDocument(np.array([0, 5, 6, 7, 8, 1]), np.array([False, False, False, True, True, True]))
    >>> counted_in_windows(whole, [[0, 5, 6, 7], [8, 1]], "right")
    array([False, False, False,  True,  True,  True])
    >>> counted_in_windows(whole, [[0, 5, 6, 1]], "right"), counted_in_windows(whole, [[0, 7, 8, 1]], "left")
    (array([False, False, False, False]), array([False,  True,  True,  True]))

    Args:
        whole: the document.
        windows: the token ids of its windows; none where it has no text.
        truncation_side: "right" or "left", the end that is cut off where it is too long.

    Raises:
        InputError: they are not of this document.
    """
    ids = np.array([token for window in windows for token in window], dtype=np.int64)
    n, n_whole = len(ids), len(whole.ids)
    if not n:
        return np.zeros(0, dtype=bool)
    n_first, n_last = n_common(ids, whole.ids), n_common(ids[::-1], whole.ids[::-1])
    if n_first + n_last < n:
        raise InputError(
            "positions: the tokenizer gives other tokens for a text when it truncates it, so whose they are is not "
            "certain; use overflow split"
        )
    from_left = truncation_side == "left"
    n_first = n - n_last if from_left else n_first
    first, last = whole.counted[:n_first], whole.counted[n_whole - (n - n_first) :]
    found: np.ndarray = np.concatenate([first, last if from_left or first.any() else np.zeros_like(last)])
    return found


def n_common(one: np.ndarray, other: np.ndarray) -> int:
    """Count the tokens that two sequences have in common at their start.

    >>> n_common(np.array([1, 2, 3]), np.array([1, 2, 4, 5]))
    2
    """
    n = min(len(one), len(other))
    different = np.flatnonzero(one[:n] != other[:n])
    return int(different[0]) if len(different) else n
