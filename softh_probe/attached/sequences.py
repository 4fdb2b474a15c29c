"""The tokens that the sequences of a key-value cache were fed: the prompt first, then token by token.

A model with a cache is fed new tokens only. The tokens before a position, which label it, came in an earlier forward
pass, and the tokens after it come in a later one. `CachedSequences` remembers the former and keeps the positions that
wait for the latter. It follows its cache when beams reorder it or rejected drafts are cropped.

Shape suffixes: B sequences, L columns (tokens fed so far, padding included), C positions that wait.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np

from softh_probe.accumulators.sampling import GOLDEN, splitmix64
from softh_probe.attached.fed_texts import OpenTexts
from softh_probe.attached.inputs import TokenBatch
from softh_probe.errors import ProbeError

#: Columns that are remembered. Labels need a few; after a crop by more the past is unknown.
REMEMBERED = 256

#: Names of columns that cannot be label sets.
RESERVED_COLUMNS = ("real", "ids", "segment", "counted", "place", "passed")

#: No counted position of a sequence has had a label yet.
NOT_YET = -2

#: Attributes that tell the documents of sequences.
OF_DOCUMENTS = ("documents_B", "units_B", "groups_B", "document_keys_B", "is_new_B", "is_new_unit_B")

#: SplitMix64 steps of the two 64-bit halves of a prefix key.
_STEPS = np.array([GOLDEN, 0xD1B54A32D192ED03], dtype=np.uint64)

_numbers = count()


@dataclass(kw_only=True)
class CachedSequences:
    """The sequences of one cache, or of one forward pass without one.

    Attributes:
        columns: by name, [B, L], the last L columns: `real` (bool), `ids` (token ids; −1 where unknown),
            `segment` (number of the text packed into a row), `counted` (whether policies of positions hold; nonzero),
            `place` (number of the token in its text), `passed` (1: it was noted that the position does not count) and
            the user's own labels (−1 where there is none).
        prefixes_BL2: uint64, for each column the key of all real tokens up to it; None where prefixes are not counted.
        keys_B: uint64, a key of each sequence that stays the same as it grows.
        drawn_keys_B: uint64, keys that draw the bootstrap weights; those of documents that sequences are windows of.
        documents_B, units_B, groups_B: number of the document of each sequence, of its unit, and of the group between
            which and others no labels are exchanged (−1: there are no groups).
        document_keys_B: uint64, key of each document in their sample; those of a unit are equal or follow each other.
        is_new_B, is_new_unit_B: whether the document, or its unit, has yet to be counted.
        labels_B: by label set, the label that all counted positions of a sequence have had so far; `NOT_YET` before the
            first.
        n_before_B: real tokens before these columns.
        waiting_rows, waiting_columns, waiting_places: positions that wait, and where each layer has kept their soft
            assignments, among n_held.
        n_columns: all columns fed so far.
        past_known: False if earlier tokens were fed outside the probe's block.
        is_packed: whether each row's real tokens stand at its end, where later ones follow them: rows grow by different
            numbers of tokens, and no cache counts columns.
        number: under which layers keep what waits.
        texts: digests of what the sequences are fed; None where nobody asks for them.
    """

    columns: dict[str, np.ndarray]
    prefixes_BL2: np.ndarray | None
    keys_B: np.ndarray
    drawn_keys_B: np.ndarray
    documents_B: np.ndarray
    units_B: np.ndarray
    groups_B: np.ndarray
    document_keys_B: np.ndarray
    is_new_B: np.ndarray
    is_new_unit_B: np.ndarray
    n_before_B: np.ndarray
    labels_B: dict[str, np.ndarray] = field(default_factory=dict)
    waiting_rows: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    waiting_columns: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    waiting_places: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    n_held: int = 0
    n_columns: int = 0
    n_queued: int = 0
    past_known: bool = True
    is_packed: bool = False
    number: int = field(default_factory=_numbers.__next__)
    texts: OpenTexts | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(B, L)."""
        n_sequences, length = self.columns["real"].shape
        return n_sequences, length

    @property
    def n_fed(self) -> int:
        """Tokens a sequence was fed in all, those of queued decode steps included."""
        return self.n_columns + self.n_queued

    @property
    def real(self) -> np.ndarray:
        """Mask of real tokens, bool [B, L]."""
        return self.columns["real"]

    def select(self, rows: np.ndarray) -> None:
        """Replace sequence i by sequence rows[i]: beams were reordered, or sequences repeated.

        A waiting position stays in the first sequence that has it, since it was fed once.
        """
        if self.texts is not None:
            self.texts.select(self.columns, rows)
        self.columns = {name: values[rows] for name, values in self.columns.items()}
        self.prefixes_BL2 = None if self.prefixes_BL2 is None else self.prefixes_BL2[rows]
        self.keys_B, self.drawn_keys_B = self.keys_B[rows], self.drawn_keys_B[rows]
        self.n_before_B = self.n_before_B[rows]
        for name in OF_DOCUMENTS:
            setattr(self, name, getattr(self, name)[rows])
        self.labels_B = {name: labels_B[rows] for name, labels_B in self.labels_B.items()}
        if "passed" in self.columns:
            repeated = np.ones(len(rows), dtype=bool)
            repeated[np.unique(rows, return_index=True)[1]] = False
            self.columns["passed"][repeated] = 1
        first = np.full(int(max(self.waiting_rows.max(initial=0), rows.max(initial=0))) + 1, -1)
        first[rows[::-1]] = np.arange(len(rows))[::-1]
        self._keep_waiting(first[self.waiting_rows] >= 0)
        self.waiting_rows = first[self.waiting_rows]

    def crop(self, n_columns: int, *, is_draft: bool = False) -> int:
        """Remove the last columns; return how many real tokens they held. Those of a draft were no text."""
        length = self.shape[1]
        if self.texts is not None:
            self.texts.crop(self.columns, n_columns, is_draft=is_draft)
        n_columns = min(n_columns, length)
        left = length - n_columns
        n_real = int(self.real[:, left:].sum())
        self.columns = {name: values[:, :left] for name, values in self.columns.items()}
        self.prefixes_BL2 = None if self.prefixes_BL2 is None else self.prefixes_BL2[:, :left]
        self._keep_waiting(self.waiting_columns < left)
        self.n_columns -= n_columns
        return n_real

    def extend(self, fed: TokenBatch, own: Mapping[str, np.ndarray], with_prefixes: bool) -> int:
        """Append the columns of a forward pass; return the number of columns before it."""
        n_sequences, n_new = fed.real_BT.shape
        if n_sequences != self.shape[0]:
            raise ProbeError(f"cache: expected {self.shape[0]} sequences, got {n_sequences}")
        past = self.shape[1]
        ids = np.full(fed.real_BT.shape, -1) if fed.ids_BT is None else fed.ids_BT
        last_segment = self.columns["segment"][:, -1:] if past else np.zeros((n_sequences, 1), dtype=np.int64)
        segment = last_segment + (0 if fed.starts_BT is None else fed.starts_BT.cumsum(axis=1))
        new = {"real": fed.real_BT, "ids": ids, "segment": np.broadcast_to(segment, fed.real_BT.shape), **own}
        if fed.counted_BT is not None:
            new["counted"] = fed.counted_BT.astype(np.int64)
        for name in dict.fromkeys([*new, *self.columns]):  # in an order that no hash seed changes
            absent = [np.full((n_sequences, n), -1) for n in (past, n_new)]
            self.columns[name] = np.concatenate([self.columns.get(name, absent[0]), new.get(name, absent[1])], axis=1)
        self.n_columns += n_new
        if self.texts is not None:
            self.texts.grow(fed.real_BT)
        if with_prefixes:
            self._extend_prefixes(past)
        return past

    def pack(self) -> np.ndarray:
        """Move each row's real tokens to its end, if rows are packed; return where each column was: [B, L]."""
        if not self.is_packed:
            return np.broadcast_to(np.arange(self.shape[1]), self.shape)
        order_BL = np.argsort(self.real, axis=1, kind="stable")
        column_BL = np.argsort(order_BL, axis=1)
        n_empty = self.shape[1] - int(self.real.sum(axis=1).max(initial=0))
        before_BL: np.ndarray = order_BL[:, n_empty:]
        self.columns = {name: np.take_along_axis(values, before_BL, axis=1) for name, values in self.columns.items()}
        self.waiting_columns = column_BL[self.waiting_rows, self.waiting_columns] - n_empty
        return before_BL

    def trim(self) -> None:
        """Remove the oldest columns, up to the first that waits."""
        oldest = max(0, self.shape[1] - REMEMBERED)
        if len(self.waiting_columns):
            oldest = min(oldest, int(self.waiting_columns.min()))
        if oldest:
            if self.texts is not None:
                self.texts.drop(self.columns, oldest)
            self.n_before_B = self.n_before_B + self.real[:, :oldest].sum(axis=1)
            self.columns = {name: values[:, oldest:] for name, values in self.columns.items()}
            self.prefixes_BL2 = None if self.prefixes_BL2 is None else self.prefixes_BL2[:, oldest:]
            self.waiting_columns = self.waiting_columns - oldest

    def set_waiting(self, rows: np.ndarray, columns: np.ndarray) -> None:
        """Set the positions that wait; layers keep their soft assignments in this order."""
        self.waiting_rows, self.waiting_columns = rows, columns
        self.waiting_places, self.n_held = np.arange(len(rows)), len(rows)

    def places(self) -> np.ndarray:
        """Count the real tokens of its sequence before each column [B, L]."""
        before_BL: np.ndarray = self.n_before_B[:, None] + self.real.cumsum(axis=1) - self.real
        return before_BL

    def places_in_texts(self, past: int) -> np.ndarray:
        """Count the real tokens of its text before each column [B, L]; they are kept as the column `place`.

        Args:
            past: columns whose places are known, if any are.
        """
        places_BL = self.columns.get("place")
        start = 0 if places_BL is None else past
        real_BL, segment_BL = self.real[:, start:], self.columns["segment"]
        n_so_far_B = np.zeros(len(real_BL), dtype=np.int64)
        if places_BL is not None and start:
            n_so_far_B = places_BL[:, start - 1] + self.real[:, start - 1]
        before_BL = real_BL.cumsum(axis=1) - real_BL
        begins_BL = np.diff(segment_BL, prepend=segment_BL[:, :1], axis=1)[:, start:] != 0
        texts_BL = np.maximum.accumulate(np.where(begins_BL, before_BL, -n_so_far_B[:, None]), axis=1)
        found: np.ndarray = before_BL - texts_BL
        if places_BL is not None:
            found = np.concatenate([places_BL[:, :start], found], axis=1)
        self.columns["place"] = found
        return found

    def forget(self) -> None:
        """Note of all columns that they were fed unseen, so that none of them counts, or is passed over."""
        self.columns["passed"] = np.ones(self.shape, dtype=np.int64)

    def pass_over(self, n_before: int, n_after: int) -> tuple[np.ndarray, np.ndarray]:
        """Find positions, by rows and columns, that policies alone leave out and that were not found before.

        Args:
            n_before, n_after: as `defined` takes them.
        """
        if (counted_BL := self.columns.get("counted")) is None:
            none = np.zeros(0, dtype=np.int64)
            return none, none
        passed_BL = self.columns.get("passed", np.zeros(self.shape, dtype=np.int64))
        defined_BL, _ = self._have_labels(n_before, n_after)
        found_BL = defined_BL & (counted_BL == 0) & (passed_BL != 1)
        self.columns["passed"] = np.where(found_BL, 1, passed_BL)
        rows, columns = np.nonzero(found_BL)
        return rows, columns

    def defined(self, n_before: int, n_after: int) -> tuple[np.ndarray, np.ndarray]:
        """Find positions that count: their n-gram labels are defined; and positions whose labels later tokens complete.

        Policies of positions hold at both. A label is defined where the neighbours, as far as the n-grams reach, are
        real tokens of the same text.

        Args:
            n_before, n_after: tokens that labels need before and after a position.

        Returns:
            Two disjoint masks, bool [B, L].
        """
        defined_BL, may_be_BL = self._have_labels(n_before, n_after)
        if (counted_BL := self.columns.get("counted")) is not None:
            defined_BL, may_be_BL = defined_BL & (counted_BL != 0), may_be_BL & (counted_BL != 0)
        return defined_BL, may_be_BL & ~defined_BL

    def _have_labels(self, n_before: int, n_after: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the positions whose labels are defined, and those together with others whose labels may be completed."""
        real_BL, segment_BL = self.real, self.columns["segment"]
        defined_BL = real_BL.copy()
        for k in range(1, n_before + 1):
            defined_BL[:, k:] &= real_BL[:, :-k] & (segment_BL[:, k:] == segment_BL[:, :-k])
            defined_BL[:, :k] = False
        may_be_BL = defined_BL.copy()
        for k in range(1, n_after + 1):
            follows = real_BL[:, k:] & (segment_BL[:, k:] == segment_BL[:, :-k])
            may_be_BL[:, :-k] &= follows
            defined_BL[:, :-k] &= follows
            defined_BL[:, -k:] = False
        return defined_BL, may_be_BL

    def prefix_keys(self, rows: np.ndarray, columns: np.ndarray) -> list[bytes]:
        """Give the keys of the prefixes that end at positions."""
        assert self.prefixes_BL2 is not None
        keys: list[bytes] = np.ascontiguousarray(self.prefixes_BL2[rows, columns]).view("V16").reshape(-1).tolist()
        return keys

    def _keep_waiting(self, kept_C: np.ndarray) -> None:
        self.waiting_rows, self.waiting_columns = self.waiting_rows[kept_C], self.waiting_columns[kept_C]
        self.waiting_places = self.waiting_places[kept_C]

    def _extend_prefixes(self, past: int) -> None:
        """Compute the key of each prefix from that of the prefix before it and its last token."""
        real, ids, segment = self.real, self.columns["ids"].astype(np.uint64), self.columns["segment"]
        n_sequences, length = self.shape
        keys = np.zeros((n_sequences, length, 2), dtype=np.uint64)
        if self.prefixes_BL2 is not None:
            keys[:, :past] = self.prefixes_BL2
        state = keys[:, past - 1] if past else np.zeros((n_sequences, 2), dtype=np.uint64)
        for t in range(past, length):
            if t:
                state = np.where((segment[:, t] != segment[:, t - 1])[:, None], np.uint64(0), state)
            following = splitmix64(state + (ids[:, t, None] + np.uint64(1)) * _STEPS)
            state = np.where(real[:, t, None], following, state)
            keys[:, t] = state
        self.prefixes_BL2 = keys


def empty_sequences(keys_B: np.ndarray, first_number: int, *, past_known: bool = True) -> CachedSequences:
    """Make sequences before their first token; one column stands for an unknown past.

    Args:
        keys_B: a key of each sequence.
        first_number: number of the first one's document; each sequence is a document.
        past_known: False if earlier tokens were fed unseen.
    """
    shape = (len(keys_B), 0 if past_known else 1)
    columns: dict[str, Any] = {
        "real": np.zeros(shape, dtype=bool),
        "ids": np.full(shape, -1),
        "segment": np.zeros(shape, dtype=np.int64),
    }
    return CachedSequences(
        columns=columns,
        prefixes_BL2=None,
        keys_B=keys_B,
        drawn_keys_B=keys_B,
        documents_B=first_number + np.arange(len(keys_B)),
        units_B=first_number + np.arange(len(keys_B)),
        groups_B=np.full(len(keys_B), -1),
        document_keys_B=keys_B,
        is_new_B=np.ones(len(keys_B), dtype=bool),
        is_new_unit_B=np.ones(len(keys_B), dtype=bool),
        n_before_B=np.zeros(len(keys_B), dtype=np.int64),
        past_known=past_known,
    )
