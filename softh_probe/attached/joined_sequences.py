"""Feed sequences together that were fed with others so far.

An engine runs other sequences in each step: some have ended, others have joined. Their tokens, their labels so far and
the positions that wait move to new `CachedSequences`; layers move the soft assignments that they keep (`Regrouping`).

Shape suffixes: B sequences, L columns, C positions that wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from softh_probe.accumulators.dispatch import Regrouping
from softh_probe.attached.fed_texts import FedTexts, OpenTexts
from softh_probe.attached.sequences import NOT_YET, OF_DOCUMENTS, CachedSequences, empty_sequences

#: Values of columns where there is no token; others have −1.
_EMPTY = {"real": 0, "segment": 0, "place": 0}
_OF_ROWS = ("keys_B", "drawn_keys_B", "n_before_B", *OF_DOCUMENTS)


class _Part(NamedTuple):
    """Rows that come from the same sequences, and their rows in the new ones."""

    sequences: CachedSequences
    rows: np.ndarray
    new_rows: np.ndarray


def join(rows: Sequence[tuple[CachedSequences, int]], texts: FedTexts) -> tuple[CachedSequences, Regrouping]:
    """Move rows of sequences to new ones; the old ones keep their other rows.

    Args:
        rows: where each row of the new sequences is so far; each stands here once.
        texts: digests of what all of them are fed.
    """
    parts = _parts(rows)
    joined = empty_sequences(np.zeros(len(rows), dtype=np.uint64), 0)
    joined.is_packed = True
    for name in _OF_ROWS:
        first: np.ndarray = getattr(parts[0].sequences, name)
        values_B = np.zeros(len(rows), dtype=first.dtype)
        for part in parts:
            values_B[part.new_rows] = getattr(part.sequences, name)[part.rows]
        setattr(joined, name, values_B)
    joined.columns = _columns(parts, len(rows))
    joined.labels_B = _labels(parts, len(rows))
    moved = _move_waiting(joined, parts)
    joined.texts = OpenTexts.of_rows([(open_texts(old), row) for old, row in rows], texts)
    emptied = tuple(part.sequences.number for part in parts if not _keep_others(part, texts))
    texts.take_over(joined, emptied)
    return joined, Regrouping(number=joined.number, parts=moved, emptied=emptied)


def open_texts(sequences: CachedSequences) -> OpenTexts:
    """Give the digests of sequences that are followed."""
    assert sequences.texts is not None
    return sequences.texts


def _parts(rows: Sequence[tuple[CachedSequences, int]]) -> list[_Part]:
    found: dict[int, tuple[CachedSequences, list[int], list[int]]] = {}
    for new_row, (sequences, row) in enumerate(rows):
        _, old_rows, new_rows = found.setdefault(sequences.number, (sequences, [], []))
        old_rows.append(row)
        new_rows.append(new_row)
    return [
        _Part(sequences, np.array(old_rows), np.array(new_rows)) for sequences, old_rows, new_rows in found.values()
    ]


def _columns(parts: Sequence[_Part], n_rows: int) -> dict[str, np.ndarray]:
    """Give the columns of the new sequences: the last tokens of all rows stand in the last column."""
    length = max(part.sequences.shape[1] for part in parts)
    examples = {name: values for part in parts for name, values in part.sequences.columns.items()}
    columns = {}
    for name, example in examples.items():
        values_BL: Any = np.full((n_rows, length), _EMPTY.get(name, -1), dtype=example.dtype)
        for old, rows, new_rows in parts:
            if name in old.columns:
                values_BL[new_rows, length - old.shape[1] :] = old.columns[name][rows]
        columns[name] = values_BL
    return columns


def _labels(parts: Sequence[_Part], n_rows: int) -> dict[str, np.ndarray]:
    """Give the labels of the new sequences so far: none where only other label sets were seen."""
    names = dict.fromkeys(name for part in parts for name in part.sequences.labels_B)
    labels = {name: np.full(n_rows, NOT_YET) for name in names}
    for old, rows, new_rows in parts:
        was_seen = np.zeros(len(rows), dtype=bool)
        for of_set in old.labels_B.values():
            was_seen |= of_set[rows] != NOT_YET
        for name, labels_B in labels.items():
            labels_B[new_rows] = old.labels_B[name][rows] if name in old.labels_B else np.where(was_seen, -1, NOT_YET)
    return labels


def _move_waiting(joined: CachedSequences, parts: Sequence[_Part]) -> tuple[tuple[int, torch.Tensor], ...]:
    """Let positions of the rows wait in the new sequences; return what layers move."""
    waiting_rows, waiting_columns, moved = [], [], []
    for old, rows, new_rows in parts:
        new_row_of = np.full(len(old.keys_B), -1)
        new_row_of[rows] = new_rows
        moves_C = new_row_of[old.waiting_rows] >= 0
        waiting_rows.append(new_row_of[old.waiting_rows[moves_C]])
        waiting_columns.append(old.waiting_columns[moves_C] + joined.shape[1] - old.shape[1])
        if moves_C.any():
            moved.append((old.number, torch.from_numpy(old.waiting_places[moves_C])))
    joined.set_waiting(np.concatenate(waiting_rows), np.concatenate(waiting_columns))
    return tuple(moved)


def _keep_others(part: _Part, all_texts: FedTexts) -> bool:
    """Leave the other rows of sequences where they are; tell whether there are any."""
    old = part.sequences
    others = np.setdiff1d(np.arange(len(old.keys_B)), part.rows)
    if not len(others):
        return False
    texts, old.texts = open_texts(old), None  # the texts of the others go on
    old.select(others)
    old.texts = OpenTexts.of_rows([(texts, int(row)) for row in others], all_texts)
    return True
