"""Digests of the texts that a model is fed, by which results know that they are of the same ones.

A text is what one sequence was fed: the real tokens of a row, over all pieces and steps of its cache; of a packed row,
each of its texts. Its digest is the SHA-256 of its token ids, as 64-bit little-endian integers. Two digests of all
texts are sums modulo 2^256, so that texts may end in any order and parts of a measurement add up: that of their set
(each as often as it was fed), and that of their order, of digests that were hashed with the number of their sequence.
Only texts that are being fed are remembered, as hashes of the columns that their sequences no longer remember.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from softh_probe.attached.sequences import CachedSequences

_MODULUS = 2**256
_SIZE = 32

Columns = Mapping[str, np.ndarray]


class FedTexts:
    """The digests of all texts of a measurement.

    >>> texts = FedTexts()
    >>> texts.add(0, 0, hashlib.sha256(b"one").digest())
    >>> texts.n, len(texts.described()["sequence_set_sha256"])
    (1, 64)

    Args:
        distinct: take each distinct text once.

    Attributes:
        n: texts that ended.
        n_unknown: others, of which tokens are unknown.
        total: sum of the digests.
        ordered: sum of those with their sequences' numbers; None after a merge.
        distinct: the digests, where each distinct text is taken once.
    """

    def __init__(self, *, distinct: bool = False) -> None:
        self.n = 0
        self.n_unknown = 0
        self.total = 0
        self.ordered: int | None = 0
        self.distinct: set[bytes] | None = set() if distinct else None
        self._open: dict[int, CachedSequences] = {}

    # --- texts as they are fed --------------------------------------------------------------------------------

    def follow(self, sequences: CachedSequences) -> None:
        """Follow the texts of sequences, from their first tokens to `end`."""
        if sequences.number not in self._open:  # else it goes on; what others have followed began elsewhere
            is_known = sequences.past_known and sequences.texts is None
            sequences.texts = OpenTexts(self, sequences.documents_B, is_known=is_known)
            self._open[sequences.number] = sequences

    def take_over(self, sequences: CachedSequences, emptied: Iterable[int]) -> None:
        """Follow sequences that were fed with others so far; none is left under the numbers that are emptied."""
        self._open[sequences.number] = sequences
        for number in emptied:
            self._open.pop(number, None)

    def end(self, numbers: Iterable[int]) -> None:
        """End the texts of sequences, by the sequences' numbers."""
        for number in numbers:
            sequences = self._open.pop(number, None)
            if sequences is not None and sequences.texts is not None:
                sequences.texts.end(sequences.columns)

    def end_all(self) -> None:
        """End all texts."""
        self.end(list(self._open))

    def add(self, number: int, part: int, digest: bytes | None) -> None:
        """Add a text.

        Args:
            number: of its sequence, in the order of feeding.
            part: its number among the texts of that sequence.
            digest: of its tokens; None where some are unknown.
        """
        if digest is None:
            self.n_unknown += 1
            return
        if self.distinct is not None:
            if digest in self.distinct:
                return
            self.distinct.add(digest)
        self.n += 1
        self.total = (self.total + int.from_bytes(digest, "little")) % _MODULUS
        if self.ordered is not None:
            placed = hashlib.sha256(number.to_bytes(8, "little") + part.to_bytes(8, "little") + digest).digest()
            self.ordered = (self.ordered + int.from_bytes(placed, "little")) % _MODULUS

    # --- results and states -----------------------------------------------------------------------------------

    def described(self) -> dict[str, Any]:
        """Describe the texts so far for a result (JSON values): their number, and both digests.

        Digests are None where tokens are unknown, and that of the order after a merge; `sequences_note` says why.
        """
        now = self._with_open_texts()
        if now.n_unknown:
            why = (
                f"tokens of {now.n_unknown:,} sequences are unknown: they were fed without input_ids or before the "
                "probe's block, cut from a cache, or counted by an earlier version"
            )
            return {
                "sequences": now.n + now.n_unknown,
                **{"sequences_sha256": None, "sequence_set_sha256": None},
                "sequences_note": why,
            }
        return {
            "sequences": now.n,
            "sequences_sha256": None if now.ordered is None else now.sha256(now.ordered),
            "sequence_set_sha256": now.sha256(now.total),
            "sequences_note": "merged parts have no common order" if now.ordered is None else None,
        }

    def merge(self, other: FedTexts) -> None:
        """Add the texts of another part of a measurement; two parts that both have texts have no order."""
        theirs = other._with_open_texts()
        if self.is_empty and not self._open:
            self.ordered = theirs.ordered
        elif not theirs.is_empty:
            self.ordered = None
        self.n_unknown += theirs.n_unknown
        new = theirs.total
        if self.distinct is not None and theirs.distinct is not None:
            both = self.distinct & theirs.distinct
            new -= sum(int.from_bytes(digest, "little") for digest in both)
            self.distinct |= theirs.distinct
            self.n -= len(both)
        self.n += theirs.n
        self.total = (self.total + new) % _MODULUS

    def state_dict(self) -> dict[str, Any]:
        """Give what `of_state` reads, as if all texts ended now; nothing where there is none."""
        now = self._with_open_texts()
        if now.is_empty:
            return {}
        state: dict[str, Any] = {"n": now.n, "unknown": now.n_unknown, "total": _as_tensor(now.total)}
        if now.ordered is not None:
            state["ordered"] = _as_tensor(now.ordered)
        if now.distinct is not None:
            content = np.frombuffer(b"".join(sorted(now.distinct)), dtype=np.uint8)
            state["distinct"] = torch.from_numpy(content.reshape(-1, _SIZE).copy())
        return {"texts": state}

    @classmethod
    def of_state(cls, state: Mapping[str, Any], *, distinct: bool = False) -> FedTexts:
        """Continue from the state of rows; earlier versions digested nothing of the sequences that they counted."""
        found, part = cls(distinct=distinct), state.get("texts")
        if part is None:
            found.n_unknown = int(state["sequences"])
            return found
        found.n, found.n_unknown, found.total = part["n"], part["unknown"], _as_number(part["total"])
        found.ordered = _as_number(part["ordered"]) if "ordered" in part else None
        if distinct:
            found.distinct = {row.tobytes() for row in part["distinct"].numpy()}
        return found

    @property
    def is_empty(self) -> bool:
        """Whether no text ended."""
        return not self.n and not self.n_unknown

    def sha256(self, total: int) -> str:
        """Compute a digest of the number of texts and a sum, in hex."""
        return hashlib.sha256(self.n.to_bytes(8, "little") + total.to_bytes(_SIZE, "little")).hexdigest()

    def _with_open_texts(self) -> FedTexts:
        """Copy these digests and add those of texts that are being fed, as far as they were."""
        if not self._open:
            return self
        now = FedTexts()
        now.n, now.n_unknown, now.total, now.ordered = self.n, self.n_unknown, self.total, self.ordered
        now.distinct = None if self.distinct is None else set(self.distinct)
        for sequences in self._open.values():
            if sequences.texts is not None:
                sequences.texts.copy(now).end(sequences.columns)
        return now


class OpenTexts:
    """The texts of the sequences of one cache that are being fed.

    Args:
        all_texts: takes the digests of texts that end.
        numbers_B: number of each sequence, in the order of feeding.
        is_known: whether all tokens are known that were fed before.

    Attributes:
        has_new_B: whether a sequence was fed anything since its last text ended.
    """

    def __init__(self, all_texts: FedTexts, numbers_B: np.ndarray, *, is_known: bool = True) -> None:
        self._all = all_texts
        self._texts_B = [_Text(int(number), is_known=is_known) for number in numbers_B]
        self.has_new_B = np.zeros(len(numbers_B), dtype=bool)

    @classmethod
    def of_rows(cls, rows: Sequence[tuple[OpenTexts, int]], all_texts: FedTexts) -> OpenTexts:
        """Follow rows that others have followed so far."""
        made = cls(all_texts, np.zeros(0, dtype=np.int64))
        made._texts_B = [texts._texts_B[row] for texts, row in rows]  # noqa: SLF001 - of its own class
        made.has_new_B = np.array([texts.has_new_B[row] for texts, row in rows], dtype=bool)
        return made

    def copy(self, all_texts: FedTexts) -> OpenTexts:
        """Copy these, for digests of their own."""
        made = OpenTexts(all_texts, np.zeros(0, dtype=np.int64))
        made._texts_B, made.has_new_B = [text.copy() for text in self._texts_B], self.has_new_B
        return made

    def grow(self, real_BT: np.ndarray) -> None:
        """Note which sequences are fed real tokens."""
        self.has_new_B = self.has_new_B | real_BT.any(axis=1)

    def drop(self, columns: Columns, n_columns: int) -> None:
        """Hash the first columns, which will no longer be remembered."""
        self._all_add(text.take(*rest) for text, rest in zip(self._texts_B, _rows(columns, n_columns), strict=True))

    def end(self, columns: Columns, rows_B: np.ndarray | None = None) -> None:
        """End the texts of some rows as they are, those that grew since their last end; they may grow on."""
        ending_B = self.has_new_B if rows_B is None else self.has_new_B & rows_B
        for text, rest, ends in zip(self._texts_B, _rows(columns), ending_B, strict=True):
            if ends:
                last = text.copy()
                self._all_add([last.take(*rest), [last.end()]])
                text.part = last.part
        self.has_new_B = self.has_new_B & ~ending_B

    def select(self, columns: Columns, rows: np.ndarray) -> None:
        """Follow sequences that were reordered or chosen from; where there are fewer now, the others ended.

        Beams that are given up leave no text. Copies are texts of their own once they are fed something.
        """
        if len(rows) < len(self._texts_B):
            self.end(columns, ~np.isin(np.arange(len(self._texts_B)), rows))
        is_first = np.zeros(len(rows), dtype=bool)
        is_first[np.unique(rows, return_index=True)[1]] = True
        self.has_new_B = self.has_new_B[rows] & is_first
        self._texts_B = [self._texts_B[row].copy() for row in rows]

    def crop(self, columns: Columns, n_columns: int, *, is_draft: bool) -> None:
        """Follow sequences whose last columns are about to be removed; unless these were drafts, a text ends there."""
        length = columns["real"].shape[1]
        cut = min(n_columns, length)
        if not is_draft:
            self.end(columns, np.asarray(columns["real"][:, length - cut :].any(axis=1)))
        if n_columns > length:
            for text in self._texts_B:
                text.lose()

    def _all_add(self, found: Iterable[Iterable[tuple[int, int, bytes | None]]]) -> None:
        for ended in found:
            for number, part, digest in ended:
                self._all.add(number, part, digest)


class _Text:
    """The text that a sequence is being fed, as far as it is no longer among the columns."""

    __slots__ = ("_is_known", "_n", "_segment", "number", "part", "sha256")

    def __init__(self, number: int, *, is_known: bool) -> None:
        self.number, self.part = number, 0
        self.sha256: Any = None
        self._n = 0
        self._segment = 0
        self._is_known = is_known

    def copy(self) -> _Text:
        made = copy.copy(self)
        made.sha256 = None if self.sha256 is None else self.sha256.copy()
        return made

    def lose(self) -> None:
        """Note that tokens were removed which are only known by their hash."""
        self._is_known &= not self._n

    def take(self, ids_T: np.ndarray, segment_T: np.ndarray) -> list[tuple[int, int, bytes | None]]:
        """Hash real tokens; return the texts that ended among them, where others began in the same row."""
        ended = []
        starts = [0, *(np.flatnonzero(segment_T[1:] != segment_T[:-1]) + 1).tolist(), len(ids_T)]
        for start, stop in pairwise(starts):
            if start == stop:
                continue
            ids, segment = ids_T[start:stop], segment_T[start:stop]
            if self._n and segment[0] != self._segment:
                ended.append(self.end())
            self._segment = int(segment[0])
            self._n += len(ids)
            self._is_known &= bool(ids.min() >= 0)
            self.sha256 = self.sha256 or hashlib.sha256()
            self.sha256.update(np.ascontiguousarray(ids, dtype="<i8"))
        return ended

    def end(self) -> tuple[int, int, bytes | None]:
        """End the text: number of its sequence, its own among those of the sequence, and its digest."""
        digest = self.sha256.digest() if self.sha256 is not None and self._is_known else None
        ended = self.number, self.part, digest
        self.part += 1
        self.sha256, self._n = None, 0
        return ended


def _as_tensor(number: int) -> torch.Tensor:
    return torch.tensor(list(number.to_bytes(_SIZE, "little")), dtype=torch.uint8)


def _as_number(digits: torch.Tensor) -> int:
    return int.from_bytes(bytes(digits.tolist()), "little")


def _rows(columns: Columns, n_columns: int | None = None) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Give the real tokens of each sequence, and the segments that they belong to, in the first columns or all."""
    real_BL, ids_BL, segment_BL = (columns[name][:, :n_columns] for name in ("real", "ids", "segment"))
    for real, ids, segment in zip(real_BL, ids_BL, segment_BL, strict=True):
        yield ids[real], segment[real]
