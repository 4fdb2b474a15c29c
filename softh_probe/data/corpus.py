"""Tokenised corpora and batches of documents of similar length.

Shape suffixes: B documents of a batch, T tokens of its longest document.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from softh_probe.choices import Choice, Choices
from softh_probe.errors import InputError
from softh_probe.hashing import arrays_sha256

NO_LABEL = -1

#: Documents that are sorted by length together. Fewer give labels shorter lifetimes, more give less padding; the
#: paper's 10,000 documents are one window.
SORT_WINDOW = 10_000

_ARRAYS = ("tokens", "offsets", "source", "rows")
_COUNTS = ("n_read", "n_empty", "n_truncated", "n_without_tokens", "n_unknown")


@dataclass(frozen=True, kw_only=True)
class LabelColumn:
    """One label column of a corpus."""

    ids: np.ndarray
    """int32 [n_documents], index into `names`; NO_LABEL for a document without a label."""
    names: list[str]
    """The labels in order of first appearance."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Tokens of all documents, concatenated in the order of the data."""

    tokens: np.ndarray
    """int32 [n_tokens]."""
    offsets: np.ndarray
    """int64 [n_documents + 1], start of each document in `tokens`, then the end of the last."""
    source: np.ndarray
    """int32 [n_documents], ascending: number of the document read; windows of a split document share it."""
    columns: dict[str, LabelColumn]
    """Label columns by name."""
    n_read: int
    """Documents read, including empty ones."""
    n_empty: int
    """Documents without text or tokens; they are not in the corpus."""
    n_truncated: int
    """Documents longer than max_length, which were truncated or split."""
    n_without_tokens: int = 0
    """Those of `n_empty` that have text, for which the tokenizer has no token."""
    n_unknown: int = 0
    """Tokens that stand for text that the tokenizer does not know (<unk>)."""
    texts_sha256: str | None = None
    """SHA-256 of the texts as they were read, whatever the tokenizer (see `TextsDigest`); None if not known."""
    token_name: Callable[[int], Any] = str
    """The string of a token id, as the tokenizer writes it."""
    choices: Sequence[Choice] = ()
    """What was chosen for the user while the data was read and tokenised."""
    data_commit: str | None = None
    """Commit of the data set on the hub; None for local data, and where it is unknown."""
    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """int64 [n_documents], ascending: number of the document's row of the data; documents of several text columns of a
    row share it, as windows do. Where it is not given, each document read is a row of its own."""
    counted: np.ndarray | None = None
    """bool [n_tokens], where the policies of positions hold (`softh_probe.positions`); None: at every token."""

    def __post_init__(self) -> None:
        if not len(self.rows):
            object.__setattr__(self, "rows", self.source.astype(np.int64))

    @property
    def n_documents(self) -> int:
        """Number of documents in the corpus; each window of a split document counts."""
        return len(self.offsets) - 1

    @property
    def n_tokens(self) -> int:
        """Number of tokens in the corpus."""
        return len(self.tokens)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each document: int64 [n_documents]."""
        return np.diff(self.offsets)

    def arrays(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Give the corpus without its token names as arrays and JSON values, to be stored."""
        columns = {f"column.{i}": column.ids for i, column in enumerate(self.columns.values())}
        own = {name: getattr(self, name) for name in _ARRAYS}
        if self.counted is not None:
            own["counted"] = self.counted
        return {**own, **columns}, {
            "columns": [[name, column.names] for name, column in self.columns.items()],
            "counts": {name: getattr(self, name) for name in _COUNTS},
            "texts_sha256": self.texts_sha256,
            "choices": Choices(self.choices).to_json(),
            "data_commit": self.data_commit,
        }

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], head: Mapping[str, Any], token_name: Callable[[int], Any]
    ) -> Corpus:
        """Rebuild a corpus from what `arrays` gave."""
        columns = {
            name: LabelColumn(ids=arrays[f"column.{i}"], names=names) for i, (name, names) in enumerate(head["columns"])
        }
        own: dict[str, Any] = {name: arrays[name] for name in (*_ARRAYS, "counted") if name in arrays}
        return cls(
            columns=columns,
            token_name=token_name,
            texts_sha256=head["texts_sha256"],
            choices=tuple(Choices.from_json(head["choices"])),
            data_commit=head["data_commit"],
            **own,
            **head["counts"],
        )

    def document(self, index: int) -> np.ndarray:
        """Give the tokens of one document: int32 [length], a view."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def counted_rows(self, documents: np.ndarray, width: int) -> np.ndarray:
        """Tell where the policies of positions hold in documents padded on the right: bool [B, width]."""
        mask_BT: np.ndarray = np.arange(width) < self.lengths[documents][:, None]
        if self.counted is not None:
            starts = self.offsets[documents][:, None]
            mask_BT &= self.counted[np.minimum(starts + np.arange(width), self.n_tokens - 1)]
        return mask_BT

    @cached_property
    def counted_sha256(self) -> str:
        """Digest of where the policies of positions hold, in hex; empty where they hold at every token."""
        return "" if self.counted is None else arrays_sha256(self.counted)

    @cached_property
    def sha256(self) -> str:
        """SHA-256, in hex, of the number and lengths of documents (int64) and the tokens (int32), little endian."""
        digest = hashlib.sha256(np.int64(self.n_documents).astype("<i8").tobytes())
        digest.update(self.lengths.astype("<i8").tobytes())
        digest.update(np.ascontiguousarray(self.tokens, dtype="<i4").data)
        return digest.hexdigest()

    @cached_property
    def chained_sha256(self) -> str:
        """The digest of the documents one by one, in hex, which a stream has too; see `chained_digest`."""
        return chained_digest(self).hex()


def chained_digest(corpus: Corpus, before: bytes = bytes(32)) -> bytes:
    """Compute a digest of documents that are never held together, each with its window of neighbours.

    The digest of a document is the SHA-256 of the digest of the document before it (32 bytes; zeros for the first one),
    its number of tokens (int64) and its tokens (int32), little endian. The digest of a corpus is that of its last.

    >>> one, two = (Corpus(tokens=np.array(ids), offsets=np.array([0, len(ids)]), source=np.array([0]), columns={},
    ...                    n_read=1, n_empty=0, n_truncated=0) for ids in ([7, 8], [9]))
    >>> both = Corpus(tokens=np.array([7, 8, 9]), offsets=np.array([0, 2, 3]), source=np.array([0, 1]), columns={},
    ...               n_read=2, n_empty=0, n_truncated=0)
    >>> chained_digest(two, before=chained_digest(one)) == chained_digest(both)
    True
    """
    for document in range(corpus.n_documents):
        tokens = corpus.document(document).astype("<i4")
        before = hashlib.sha256(before + len(tokens).to_bytes(8, "little") + tokens.tobytes()).digest()
    return before


def length_batches(
    lengths: np.ndarray,
    tokens_per_batch: int,
    keep: np.ndarray | None = None,
    window: int = SORT_WINDOW,
    *,
    equal: bool = False,
) -> list[np.ndarray]:
    """Group documents of similar length into batches.

    Documents are sorted by length within windows of neighbours, longest first; equal lengths keep their order. Windows
    cost little padding and keep the lifetimes short of labels that only neighbours share (a language, a topic).

    >>> [batch.tolist() for batch in length_batches(np.array([2, 5, 2, 3]), tokens_per_batch=6)]
    [[1], [3, 0], [2]]
    >>> [batch.tolist() for batch in length_batches(np.array([2, 5, 2, 3]), tokens_per_batch=6, equal=True)]
    [[1], [3], [0, 2]]

    Args:
        lengths: int [n_documents], tokens of each document.
        tokens_per_batch: tokens of a batch at most, padding included; a longer document is a batch by itself.
        keep: bool [n_documents], documents to use; None for all.
        window: documents that are sorted together.
        equal: group documents of one length only, so that there is no padding.

    Returns:
        int64 [B] for each batch: indices of documents.

    Raises:
        InputError: `tokens_per_batch` is less than 1.
    """
    if tokens_per_batch < 1:
        raise InputError(f"tokens_per_batch: {tokens_per_batch}, but it has to be 1 or more")
    lengths = np.asarray(lengths)
    kept = np.arange(len(lengths)) if keep is None else np.flatnonzero(keep)
    batches = []
    for first in range(0, len(kept), window):
        neighbours = kept[first : first + window]
        order = neighbours[np.argsort(-lengths[neighbours], kind="stable")]
        ends = np.flatnonzero(np.diff(lengths[order])) + 1
        for group in np.split(order, ends) if equal else [order]:
            start = 0
            while start < len(group):
                size = max(1, tokens_per_batch // max(1, int(lengths[group[start]])))
                batches.append(group[start : start + size])
                start += size
    return batches


def pad_batch(
    corpus: Corpus, documents: Sequence[int] | np.ndarray, pad_id: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give documents as `input_ids` and `attention_mask`, int64 [B, T], padded on the right with `pad_id`.

    >>> corpus = Corpus(tokens=np.array([7, 8, 9], dtype=np.int32), offsets=np.array([0, 2, 3]),
    ...                 source=np.array([0, 1]), columns={}, n_read=2, n_empty=0, n_truncated=0)
    >>> pad_batch(corpus, [1, 0])
    (tensor([[9, 0],
            [7, 8]]), tensor([[1, 0],
            [1, 1]]))
    """
    return pad_rows([corpus.document(int(index)) for index in documents], pad_id)


def pad_rows(rows: Sequence[np.ndarray], pad_id: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the tokens of several documents as `pad_batch` does."""
    lengths_B = np.array([len(row) for row in rows])
    mask_BT = np.arange(lengths_B.max()) < lengths_B[:, None]
    ids_BT = np.full(mask_BT.shape, pad_id, dtype=np.int64)
    ids_BT[mask_BT] = np.concatenate(rows)
    return torch.from_numpy(ids_BT), torch.from_numpy(mask_BT.astype(np.int64))
