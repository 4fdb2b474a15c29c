"""Tokenised corpora and batches of documents of similar length.

Shape suffixes: B documents of a batch, T tokens of its longest document.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from softh_probe.choices import Choice, Choices
from softh_probe.data.chat_template import check_template_kwargs
from softh_probe.data.documents import Document
from softh_probe.data.texts_digest import TextsDigest, has_text
from softh_probe.data.tokenizing import Windows, encodable_content, encode, n_special_tokens, tell_special_tokens
from softh_probe.data.unknown_tokens import tell_dropped, tell_left_out, tell_unknown, unknown_ids
from softh_probe.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_LABEL = -1
OVERFLOW = ("truncate", "split")

#: Documents that are sorted by length together. Fewer give labels shorter lifetimes, more give less padding; the
#: paper's 10,000 documents are one window.
SORT_WINDOW = 10_000

_COUNTS = ("n_read", "n_empty", "n_truncated", "n_without_tokens", "n_unknown")
_CHUNK_DOCUMENTS = 256
_CHUNK_CHARACTERS = 1 << 20  # a tokenizer uses some 200 bytes for each


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
        return {"tokens": self.tokens, "offsets": self.offsets, "source": self.source, **columns}, {
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
        tokens, offsets, source = (arrays[name] for name in ("tokens", "offsets", "source"))
        return cls(
            tokens=tokens,
            offsets=offsets,
            source=source,
            columns=columns,
            token_name=token_name,
            texts_sha256=head["texts_sha256"],
            choices=tuple(Choices.from_json(head["choices"])),
            data_commit=head["data_commit"],
            **head["counts"],
        )

    def document(self, index: int) -> np.ndarray:
        """Give the tokens of one document: int32 [length], a view."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    @cached_property
    def sha256(self) -> str:
        """SHA-256, in hex, of the number and lengths of documents (int64) and the tokens (int32), little endian."""
        digest = hashlib.sha256(np.int64(self.n_documents).astype("<i8").tobytes())
        digest.update(self.lengths.astype("<i8").tobytes())
        digest.update(np.ascontiguousarray(self.tokens, dtype="<i4").data)
        return digest.hexdigest()


def tokenize(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int = 512,
    overflow: str = "truncate",
    add_special_tokens: bool | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    progress: bool = True,
    choices: Choices | None = None,
) -> Corpus:
    """Tokenise documents with the tokenizer's default settings, and conversations with its chat template.

    Memory: 4 bytes a token (8 while the arrays are joined), and some 200 bytes a character of the longest document
    while it is tokenised.

    >>> from tokenizers import Tokenizer, models, pre_tokenizers
    >>> from transformers import PreTrainedTokenizerFast
    >>> words = Tokenizer(models.WordLevel({"?": 0, "a": 1, "rose": 2, "is": 3}, unk_token="?"))
    >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
    >>> roses = [Document(content="a rose is a rose", columns={"by": "Stein"})]
    >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    >>> corpus = tokenize(roses, tokenizer, max_length=3, overflow="split", progress=False)
    >>> [corpus.document(i).tolist() for i in range(corpus.n_documents)]
    [[1, 2, 3], [1, 2]]
    >>> corpus.columns["by"].ids.tolist(), corpus.columns["by"].names
    ([0, 0], ['Stein'])

    Args:
        documents: documents with the same label columns. Empty ones are counted and left out.
        tokenizer: the model's tokenizer.
        max_length: tokens of a document.
        overflow: for a longer document: "truncate", by the tokenizer's own truncation, or "split", into successive
            windows of `max_length` tokens, each of which is a document with the same labels.
        add_special_tokens: add the tokenizer's special tokens to each text; None is the tokenizer's default. The
            template of a conversation writes its special tokens itself; adding more would double them.
        chat_template_kwargs: variables of the chat template by name.
        progress: show a progress bar.
        choices: what was chosen while the documents were read; goes into the corpus with what is chosen here.

    Raises:
        InputError: no document has text or tokens, `max_length` leaves no room for text, `overflow` is unknown, or the
            tokenizer has no chat template that takes a conversation and reads these variables.
    """
    if overflow not in OVERFLOW:
        raise InputError(f"overflow: {overflow!r} is not one of {', '.join(OVERFLOW)}")
    special = add_special_tokens is not False
    shortest = max(2, n_special_tokens(tokenizer, special) + 1)
    if max_length < shortest:
        raise InputError(f"max_length: {max_length} tokens leave no room for text, give {shortest} or more")
    check_template_kwargs(tokenizer, chat_template_kwargs or {})
    choices = Choices() if choices is None else choices
    corpus = _CorpusBuilder(unknown_ids(tokenizer))
    total = len(documents) if isinstance(documents, Sized) else None
    with tqdm(desc="tokenize", unit=" documents", total=total, disable=not progress) as bar:
        for chunk in _chunks(documents):
            if corpus.n_read == 0:
                tell_dropped(tokenizer, [encodable_content(document.content) for document in chunk], choices)
            windows, n_long = encode(
                tokenizer,
                [document.content for document in chunk],
                max_length=max_length,
                overflow=overflow,
                add_special_tokens=special,
                chat_template_kwargs=chat_template_kwargs,
                first_number=corpus.n_read + 1,
            )
            corpus.add(chunk, windows, n_long)
            bar.update(len(chunk))
            bar.set_postfix(tokens=f"{corpus.n_tokens:,}")
    corpus.check()
    if chat_template_kwargs and not corpus.n_conversations:
        raise InputError("chat_template_kwargs: no document is a conversation; leave them out, or name a text_column")
    tell_special_tokens(tokenizer, add_special_tokens, bool(corpus.n_conversations), choices)
    tell_unknown(tokenizer, corpus.n_unknown, corpus.n_tokens, choices)
    tell_left_out(corpus.n_without_tokens, corpus.n_read - corpus.n_empty, choices)
    return corpus.finish(token_name=tokenizer.convert_ids_to_tokens, choices=tuple(choices))


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


class _CorpusBuilder:
    """Builder of a corpus: collects chunks of tokens and joins them at the end.

    Args:
        unknown: the tokens that stand for text that the tokenizer does not know.
    """

    def __init__(self, unknown: Sequence[int]) -> None:
        self.unknown = unknown
        self.texts = TextsDigest()
        self.chunks: list[np.ndarray] = []
        self.lengths: list[int] = []
        self.source: list[int] = []
        self.labels: dict[str, _LabelsBuilder] = {}
        self.n_read = self.n_empty = self.n_truncated = self.n_tokens = 0
        self.n_without_tokens = self.n_unknown = self.n_conversations = 0

    def add(self, documents: Sequence[Document], windows: Sequence[Windows], n_long: int) -> None:
        if self.n_read == 0:
            self.labels = {name: _LabelsBuilder() for name in documents[0].columns}
        for document, of_document in zip(documents, windows, strict=True):
            self.n_read += 1
            self.texts.add(document.content)
            self.n_conversations += isinstance(document.content, list)
            self.n_empty += not of_document
            self.n_without_tokens += has_text(document.content) and not of_document
            if document.columns.keys() != self.labels.keys():
                raise InputError(f"documents: number {self.n_read} has other label columns than the first")
            self.source += [self.n_read - 1] * len(of_document)
            for name, value in document.columns.items():
                self.labels[name].add(value, times=len(of_document))
        flat = [ids for of_document in windows for ids in of_document]
        lengths = [len(ids) for ids in flat]
        self.chunks.append(np.fromiter(itertools.chain.from_iterable(flat), np.int32, count=sum(lengths)))
        self.lengths += lengths
        self.n_tokens += len(self.chunks[-1])
        self.n_unknown += int(np.isin(self.chunks[-1], self.unknown).sum()) if self.unknown else 0
        self.n_truncated += n_long

    def check(self) -> None:
        """Check that there are tokens.

        Raises:
            InputError: no document has text, or the tokenizer has no token for any of them.
        """
        if self.lengths:
            return
        if not self.n_without_tokens:
            raise InputError(f"data: none of {self.n_read} documents has any text; check data and text_column")
        raise InputError(
            f"tokenizer: it gives no tokens for any of the {self.n_without_tokens} documents with text (of "
            f"{self.n_read} read); it is damaged, or of another model: name the right one by --tokenizer"
        )

    def finish(self, token_name: Callable[[int], Any], choices: Sequence[Choice]) -> Corpus:
        return Corpus(
            tokens=np.concatenate(self.chunks),
            offsets=np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)]),
            source=np.array(self.source, dtype=np.int32),
            columns={name: labels.finish() for name, labels in self.labels.items()},
            n_read=self.n_read,
            n_empty=self.n_empty,
            n_truncated=self.n_truncated,
            n_without_tokens=self.n_without_tokens,
            n_unknown=self.n_unknown,
            texts_sha256=self.texts.hexdigest(),
            token_name=token_name,
            choices=choices,
        )


class _LabelsBuilder:
    """Builder of a label column."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.names: dict[str, int] = {}

    def add(self, value: Any, times: int) -> None:
        if value is None or value != value:  # NaN
            self.ids += [NO_LABEL] * times
        elif times:
            self.ids += [self.names.setdefault(str(value), len(self.names))] * times

    def finish(self) -> LabelColumn:
        return LabelColumn(ids=np.array(self.ids, dtype=np.int32), names=list(self.names))


def _chunks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Group documents into chunks: large enough to keep the tokenizer busy, small enough to bound its memory."""
    chunk: list[Document] = []
    characters = 0
    for document in documents:
        chunk.append(document)
        characters += len(document.content) if isinstance(document.content, str) else 0
        if len(chunk) >= _CHUNK_DOCUMENTS or characters >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk
