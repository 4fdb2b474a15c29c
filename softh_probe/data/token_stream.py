"""Tokenise documents chunk by chunk, and count them: into one corpus, or window by window."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from softh_probe.choices import Choices
from softh_probe.data.chat_template import check_template_kwargs
from softh_probe.data.corpus import NO_LABEL, Corpus, LabelColumn
from softh_probe.data.counting import Counting
from softh_probe.data.documents import Document
from softh_probe.data.row_numbers import RowNumbers
from softh_probe.data.texts_digest import TextsDigest, has_text
from softh_probe.data.tokenizing import Windows, encodable_content, encode, n_special_tokens, tell_special_tokens
from softh_probe.data.unknown_tokens import tell_dropped, tell_left_out, tell_unknown, unknown_ids
from softh_probe.errors import InputError
from softh_probe.positions import ALL

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OVERFLOW = ("truncate", "split")

_CHUNK_DOCUMENTS = 256
_CHUNK_CHARACTERS = 1 << 20  # a tokenizer uses some 200 bytes for each


@dataclass(kw_only=True)
class Counts:
    """Counts of what was read and tokenised so far; those of `Corpus`, and of conversations."""

    n_read: int = 0
    n_empty: int = 0
    n_truncated: int = 0
    n_without_tokens: int = 0
    n_unknown: int = 0
    n_conversations: int = 0
    n_documents: int = 0
    n_tokens: int = 0


class Chunk(NamedTuple):
    """Tokens of some documents that were read one after the other; windows of split documents are documents."""

    tokens: np.ndarray
    lengths: list[int]
    source: list[int]
    rows: list[int]
    columns: dict[str, list[int]]
    counted: np.ndarray | None
    """bool [n_tokens], where the policies of positions hold; None where there are none."""


class TokenStream:
    """Tokenise documents as they come, with the tokenizer's default settings, and conversations with its chat template.

    Memory: that of a chunk, some 200 bytes a character of the longest document while it is tokenised, and the names of
    labels.

    Args:
        documents: documents with the same label columns. Empty ones are counted and left out.
        tokenizer: the model's tokenizer.
        max_length, overflow, add_special_tokens, chat_template_kwargs, max_tokens, positions, skip_special_tokens,
            choices: as `tokenize` takes them.

    Attributes:
        counts: of what was read so far.
        names: of each label column, its labels in order of first appearance.

    Raises:
        InputError: `max_length` leaves no room for text, `overflow` is unknown, or the tokenizer has no chat template
            that reads these variables.
    """

    def __init__(
        self,
        documents: Iterable[Document],
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int = 512,
        overflow: str = "truncate",
        add_special_tokens: bool | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
        positions: str = ALL,
        skip_special_tokens: bool = False,
        choices: Choices | None = None,
    ) -> None:
        if overflow not in OVERFLOW:
            raise InputError(f"overflow: {overflow!r} is not one of {', '.join(OVERFLOW)}")
        special = add_special_tokens is not False
        shortest = max(2, n_special_tokens(tokenizer, special) + 1)
        if max_length < shortest:
            raise InputError(f"max_length: {max_length} tokens leave no room for text, give {shortest} or more")
        check_template_kwargs(tokenizer, chat_template_kwargs or {})
        self.counts = Counts()
        self.names: dict[str, dict[str, int]] = {}
        self.choices = Choices() if choices is None else choices
        self._documents, self._tokenizer, self._max_tokens = iter(documents), tokenizer, max_tokens
        self._texts, self._unknown, self._rows = TextsDigest(), unknown_ids(tokenizer), RowNumbers()
        self._special, self._template = add_special_tokens, chat_template_kwargs
        self._cutting: dict[str, Any] = {
            "max_length": max_length,
            "overflow": overflow,
            "add_special_tokens": special,
            "chat_template_kwargs": chat_template_kwargs,
        }
        self._counting = Counting(
            positions,
            skip_special_tokens,
            tokenizer,
            add_special_tokens=special,
            chat_template_kwargs=chat_template_kwargs or {},
            choices=self.choices,
        )

    @property
    def texts_sha256(self) -> str:
        """SHA-256 of the texts so far; see `TextsDigest`."""
        return self._texts.hexdigest()

    def chunks(self) -> Iterator[Chunk]:
        """Read and tokenise the documents, up to the one that reaches `max_tokens`."""
        if not self._is_full:
            for documents in _chunks(self._documents, self._counting.keeps_rows):
                if self.counts.n_read == 0:
                    self._tell_dropped(documents)
                yield self._chunk(documents)
                if self._is_full:
                    break
        if close := getattr(self._documents, "close", None):
            close()  # what was found while reading is told at its end

    def corpus(self, chunks: Sequence[Chunk]) -> Corpus:
        """Join chunks; counts and names are those of all that was read so far."""
        counts = {field.name: getattr(self.counts, field.name) for field in dataclasses.fields(Counts)}
        for name in ("n_conversations", "n_documents", "n_tokens"):
            counts.pop(name)
        lengths, source, rows = (
            [n for chunk in chunks for n in getattr(chunk, name)] for name in ("lengths", "source", "rows")
        )
        columns = {
            name: LabelColumn(
                ids=np.array([i for chunk in chunks for i in chunk.columns[name]], dtype=np.int32), names=list(names)
            )
            for name, names in self.names.items()
        }
        counted = [chunk.counted for chunk in chunks if chunk.counted is not None]
        return Corpus(
            tokens=np.concatenate([chunk.tokens for chunk in chunks]),
            counted=np.concatenate(counted) if counted else None,
            offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
            source=np.array(source, dtype=np.int64 if source and source[-1] >= 2**31 else np.int32),
            rows=np.array(rows, dtype=np.int64),
            columns=columns,
            texts_sha256=self.texts_sha256,
            token_name=self._tokenizer.convert_ids_to_tokens,
            choices=tuple(self.choices),
            **counts,
        )

    def state(self) -> dict[str, Any]:
        """Give what is needed to go on from here with the documents read anew (JSON values)."""
        names = {name: list(labels) for name, labels in self.names.items()}
        return {"counts": dataclasses.asdict(self.counts), "names": names, "texts_sha256": self.texts_sha256}

    def skip_to(self, state: Mapping[str, Any]) -> None:
        """Read the documents up to a state, without tokenising them.

        Raises:
            InputError: they are others than they were then.
        """
        n_read = state["counts"]["n_read"]
        n_skipped = 0
        for documents in _chunks(itertools.islice(self._documents, n_read), keep_rows=False):
            if not n_skipped:
                self._tell_dropped(documents)
            n_skipped += len(documents)
            for document in documents:
                self._texts.add(document.content)
                self._rows.of_next(document.row)
        if n_skipped < n_read or self.texts_sha256 != state["texts_sha256"]:
            raise InputError(
                f"data: the first {n_read:,} documents are others than when the unfinished run read them; name another "
                "folder, or add --no-resume to start it anew"
            )
        self.counts = Counts(**state["counts"])
        self.names = {name: {label: i for i, label in enumerate(names)} for name, names in state["names"].items()}

    def finish(self) -> None:
        """Check that there were tokens, and record what was found in all documents.

        Raises:
            InputError: no document has text, the tokenizer has no token for any of them, or variables of a chat
                template were given and no document is a conversation.
        """
        n = self.counts
        if not n.n_documents and not n.n_without_tokens:
            raise InputError(f"data: none of {n.n_read} documents has any text; check data and text_column")
        if not n.n_documents:
            raise InputError(
                f"tokenizer: it gives no tokens for any of the {n.n_without_tokens} documents with text (of "
                f"{n.n_read} read); it is damaged, or of another model: name the right one by --tokenizer"
            )
        if self._template and not n.n_conversations:
            raise InputError(
                "chat_template_kwargs: no document is a conversation; leave them out, or name a text_column"
            )
        tell_special_tokens(self._tokenizer, self._special, bool(n.n_conversations), self.choices)
        tell_unknown(self._tokenizer, n.n_unknown, n.n_tokens, self.choices)
        tell_left_out(n.n_without_tokens, n.n_read - n.n_empty, self.choices)

    @property
    def _is_full(self) -> bool:
        return self._max_tokens is not None and self.counts.n_tokens >= self._max_tokens

    def _tell_dropped(self, documents: Sequence[Document]) -> None:
        tell_dropped(self._tokenizer, [encodable_content(document.content) for document in documents], self.choices)

    def _chunk(self, documents: Sequence[Document]) -> Chunk:
        """Tokenise documents that were read one after the other, and count them."""
        windows, n_long = self._encode(documents)
        n_wanted = len(documents)
        if self._max_tokens is not None:
            ends = self.counts.n_tokens + np.cumsum([sum(map(len, of_document)) for of_document in windows])
            n_wanted = min(n_wanted, int(np.searchsorted(ends, self._max_tokens)) + 1)
        counted = self._count(documents, windows, n_wanted)
        if n_wanted < len(documents):
            documents = documents[:n_wanted]
            windows, n_long = self._encode(documents)
        chunk = self._joined(documents, windows, counted)
        self.counts.n_documents += len(chunk.lengths)
        self.counts.n_tokens += len(chunk.tokens)
        self.counts.n_unknown += int(np.isin(chunk.tokens, self._unknown).sum()) if self._unknown else 0
        self.counts.n_truncated += n_long
        return chunk

    def _encode(self, documents: Sequence[Document]) -> tuple[list[Windows], int]:
        contents, first = [document.content for document in documents], self.counts.n_read + 1
        return encode(self._tokenizer, contents, first_number=first, **self._cutting)

    def _count(
        self, documents: Sequence[Document], windows: Sequence[Windows], n_wanted: int
    ) -> list[np.ndarray] | None:
        """Tell at which tokens of the first documents policies hold; where they need it, by all documents of a row."""
        if not self._counting.is_asked:
            return None
        n, row = n_wanted, documents[n_wanted - 1].row
        while self._counting.keeps_rows and row is not None and n < len(documents) and documents[n].row == row:
            n += 1
        return self._counting.counted(documents[:n], windows[:n], self.counts.n_read + 1)[:n_wanted]

    def _joined(
        self, documents: Sequence[Document], windows: Sequence[Windows], counted: Sequence[np.ndarray] | None
    ) -> Chunk:
        """Count the documents and number their labels."""
        n = self.counts
        if n.n_read == 0:
            self.names = {name: {} for name in documents[0].columns}
        source: list[int] = []
        rows: list[int] = []
        columns: dict[str, list[int]] = {name: [] for name in self.names}
        for document, of_document in zip(documents, windows, strict=True):
            n.n_read += 1
            self._texts.add(document.content)
            n.n_conversations += isinstance(document.content, list)
            n.n_empty += not of_document
            n.n_without_tokens += has_text(document.content) and not of_document
            if document.columns.keys() != self.names.keys():
                raise InputError(f"documents: number {n.n_read} has other label columns than the first")
            source += [n.n_read - 1] * len(of_document)
            rows += [self._rows.of_next(document.row)] * len(of_document)
            for name, value in document.columns.items():
                if of_document:
                    columns[name] += [_label_id(self.names[name], value)] * len(of_document)
        flat = [ids for of_document in windows for ids in of_document]
        lengths = [len(ids) for ids in flat]
        tokens = np.fromiter(itertools.chain.from_iterable(flat), np.int32, count=sum(lengths))
        of_tokens = None if counted is None else np.concatenate(counted)
        return Chunk(tokens, lengths, source, rows, columns, of_tokens)


def tokenize(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int = 512,
    overflow: str = "truncate",
    add_special_tokens: bool | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    max_tokens: int | None = None,
    positions: str = ALL,
    skip_special_tokens: bool = False,
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
        max_tokens: tokens of the corpus: it ends with the document that reaches them; None tokenises all documents.
        positions: policies of positions (`softh_probe.positions`): where a position counts. Places are those in a
            window.
        skip_special_tokens: leave out positions whose token is special.
        progress: show a progress bar.
        choices: what was chosen while the documents were read; goes into the corpus with what is chosen here.

    Raises:
        InputError: no document has text or tokens, `max_length` leaves no room for text, `overflow` is unknown, or the
            tokenizer has no chat template that takes a conversation and reads these variables, or a document does not
            say where the policies hold.
    """
    stream = TokenStream(
        documents,
        tokenizer,
        max_length=max_length,
        overflow=overflow,
        add_special_tokens=add_special_tokens,
        chat_template_kwargs=chat_template_kwargs,
        max_tokens=max_tokens,
        positions=positions,
        skip_special_tokens=skip_special_tokens,
        choices=choices,
    )
    total = len(documents) if isinstance(documents, Sized) else None
    chunks = []
    with tqdm(desc="tokenize", unit=" documents", total=total, disable=not progress) as bar:
        for chunk in stream.chunks():
            chunks.append(chunk)
            bar.update(stream.counts.n_read - bar.n)
            bar.set_postfix(tokens=f"{stream.counts.n_tokens:,}")
    stream.finish()
    return stream.corpus(chunks)


def _label_id(names: dict[str, int], value: Any) -> int:
    """Number a label; a new one takes the next number."""
    if value is None or value != value:  # NaN
        return NO_LABEL
    return names.setdefault(str(value), len(names))


def _chunks(documents: Iterable[Document], keep_rows: bool) -> Iterator[list[Document]]:
    """Group documents into chunks: large enough to keep the tokenizer busy, small enough to bound its memory.

    With `keep_rows`, documents of one row are of one chunk; then a document of the next row is read first.
    """
    chunk: list[Document] = []
    characters = 0
    for document in documents:
        if _is_large(chunk, characters) and (document.row is None or document.row != chunk[-1].row):
            yield chunk
            chunk, characters = [], 0
        chunk.append(document)
        characters += len(document.content) if isinstance(document.content, str) else 0
        if _is_large(chunk, characters) and not keep_rows:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _is_large(chunk: Sequence[Document], characters: int) -> bool:
    return len(chunk) >= _CHUNK_DOCUMENTS or characters >= _CHUNK_CHARACTERS
