"""The feed of a streamed run: documents are read, tokenised, measured and forgotten, window by window.

A window is some thousands of neighbours. They are sorted by length, so that batches have little padding. Every process
reads all documents, and measures every n-th batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from softh_probe.choices import Choice, Choices
from softh_probe.config import RunConfig
from softh_probe.data.corpus import Corpus, chained_digest
from softh_probe.data.documents import Document
from softh_probe.data.prepared import check_groups, label_columns, open_stream
from softh_probe.data.tokenizing import tokenizer_fingerprint
from softh_probe.errors import InputError
from softh_probe.labels import parse_label_sets, shortest_document
from softh_probe.planned.memory import place_streamed_sums
from softh_probe.planned.population import NO_POSITION, Population
from softh_probe.planned.prepared import PADDED, batch_documents
from softh_probe.planned.streamed import StreamedRows, check_columns
from softh_probe.planned.sums_memory import SumsMemory
from softh_probe.probe import SoftEntropyProbe
from softh_probe.run.feed import evenly_chosen, placing
from softh_probe.run.forward import Batch
from softh_probe.run.processes import Processes, merge_into_first
from softh_probe.run.provenance import corpus_info, too_short

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: A window ends with the chunk that reaches so many documents or tokens. More give less padding, and a longer wait for
#: the first batch; 4 bytes a token are held.
WINDOW_DOCUMENTS, WINDOW_TOKENS = 8192, 1 << 22


class StreamedFeed:
    """Read documents as they come; a `Feed`.

    Args:
        config: the run, with `tokens_per_batch` and `max_length`.
        tokenizer: the model's tokenizer.
        processes: those that share the batches.
        choices: what was chosen while the tokenizer was loaded.
        documents: what to read in place of the configuration's data; None reads that.
        state: where an unfinished run goes on; None starts at the first document.

    Raises:
        InputError: the data cannot be read, has changed since the state, or the tokenizer does not fit it.
    """

    def __init__(
        self,
        config: RunConfig,
        tokenizer: PreTrainedTokenizerBase,
        processes: Processes,
        *,
        choices: Iterable[Choice],
        documents: Iterable[Document] | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self._config, self._processes = config, processes
        self._of_tokenizer, self._tokenizer = tuple(choices), tokenizer_fingerprint(tokenizer)
        self._label_sets = parse_label_sets(config.labels)
        self._needed = shortest_document(self._label_sets)
        self._stream, self._identity = open_stream(config, tokenizer, documents)
        self._batching = PADDED
        self._digest, self._n_too_short, self._n_left_out, self._n_batches = bytes(32), 0, 0, 0
        self._n_defined = 0
        if state:
            self._stream.skip_to(state["stream"])
            self._digest = bytes.fromhex(state["chained_sha256"])
            self._n_too_short, self._n_batches = state["documents_too_short"], state["batches"]
            self._n_left_out = state.get("documents_left_out", 0)
            self._n_defined = state.get("positions_defined", 0)
        self.rows = StreamedRows(
            self._label_sets, label_rows=config.label_rows, seed=config.seed, within=config.permute_within
        )
        self._chunks = self._stream.chunks()
        self._window_start = self._position()
        self._is_read = False
        self._window = self._read_window()
        if self._window is None:
            self._check_end()
        assert self._window is not None
        counts = self._stream.counts
        self._first = counts.n_documents, counts.n_tokens

    @property
    def choices(self) -> Iterable[Choice]:
        """What was chosen for the user so far, for tokenizer and data."""
        return Choices([*self._of_tokenizer, *self._stream.choices])

    @property
    def trial(self) -> Corpus:
        """The first window, before it is fed."""
        assert self._window is not None
        return self._window

    @property
    def n_longer(self) -> int | None:
        """Documents longer than `max_length`; None before the last one is read."""
        return self._stream.counts.n_truncated if self._is_read else None

    @property
    def n_batches(self) -> None:
        """Nobody knows."""
        return

    @property
    def n_tokens(self) -> int | None:
        """Tokens of this process, by `max_tokens`, or as many a document as so far; None where neither is given."""
        counts, most = self._stream.counts, self._config.max_tokens
        if self._config.max_documents is not None and counts.n_read:
            in_all = counts.n_tokens * max(self._config.max_documents, counts.n_read) // counts.n_read
            most = in_all if most is None else min(most, in_all)
        return None if most is None else most // self._processes.n_shares

    @property
    def n_defined(self) -> int | None:
        """Positions that count without policies of positions; None before the last document is read."""
        return self._n_defined if self._is_read else None

    def group(self, batching: str) -> None:
        """Group the documents of each window in one of the `BATCHINGS`."""
        self._batching = batching

    def describe_corpus(self) -> str:
        """Describe the documents that were read."""
        n_documents, n_tokens = self._first
        return f"corpus: read as it comes; {n_documents:,} documents with {n_tokens:,} tokens so far"

    def describe_batches(self) -> str:
        """Describe the batches."""
        tokens = f"{self._config.tokens_per_batch:,} tokens"
        grow = "; rows of n-grams grow with the corpus (label_rows all)" if self._config.label_rows == "all" else ""
        return f"stream: batches of up to {tokens}{self._processes.describe_sharing()}{grow}"

    def sizes(self) -> dict[str, int | None]:
        """Say that nobody knows."""
        return dict.fromkeys(("documents", "tokens", "positions", "batches"))

    def place_sums(
        self,
        devices: Mapping[str, torch.device],
        needed: Mapping[str, int] | None = None,
        widths: Mapping[str, int | None] | None = None,
    ) -> SumsMemory:
        """Decide where the sums of each layer go, by the rows that labels take at most."""
        settings = placing(self._config, self._processes)
        return place_streamed_sums(self.rows, devices, needed=needed, widths=widths, **settings)

    def fingerprint(self) -> dict[str, Any]:
        """Identify the version of the data, and the tokenizer."""
        return {"data": self._identity, "tokenizer": self._tokenizer}

    def batches(self, first: int, check: Callable[[Corpus], None]) -> Iterator[Batch]:
        """Give the batches of this process, each when the one before it was measured."""
        share, n_shares = self._processes.share, self._processes.n_shares
        done = len(range(share, self._n_batches, n_shares))  # batches of this process before the window
        window, self._window = self._window, None
        while window is not None:
            check(window)
            groups = batch_documents(self._config, window, self._batching)
            for number, documents in enumerate(groups, start=self._n_batches):
                if number % n_shares == share:
                    done += 1
                    if done > first:
                        yield Batch(window, documents, self.rows.batch(window, documents))
            self._n_batches += len(groups)
            window = self._read_window()

    def some_batches(self, n: int, check: Callable[[Corpus], None]) -> Iterator[Batch]:
        """Give some batches of the first window, evenly chosen."""
        check(self.trial)
        for documents in evenly_chosen(batch_documents(self._config, self.trial, self._batching), n):
            yield Batch(self.trial, documents, self.rows.batch(self.trial, documents))

    def state(self) -> dict[str, Any]:
        """Give the start of the window of the batch that was given last."""
        return self._window_start

    def join(self, probe: SoftEntropyProbe) -> None:
        """Check what was read, and merge the sums of all processes into those of the first."""
        self._check_end()
        self._processes.agree({"data": self._digest.hex()})
        merge_into_first(probe, self._processes)
        if self._processes.is_first:
            self.rows.check()

    def corpus_info(self) -> dict[str, Any]:
        """Describe the corpus; its counts and digests are None before the last document is read."""
        digests = {"sha256": None, "chained_sha256": self._digest.hex(), "texts_sha256": self._stream.texts_sha256}
        commit = self._identity if isinstance(self._identity, str) else None
        counts = self._stream.counts
        found = corpus_info(
            self._config, commit, digests, counts, n_too_short=self._n_too_short, n_left_out=self._n_left_out
        )
        known = ("data", "data_revision", "data_commit")
        return found if self._is_read else {name: found[name] if name in known else None for name in found}

    def warnings(self) -> list[str]:
        """Say how many documents are too short; nothing before the last one is read."""
        if not self._is_read:
            return []
        return too_short(self._config, self._n_too_short, self._n_left_out, self._stream.counts.n_documents)

    def _position(self) -> dict[str, Any]:
        return {
            "stream": self._stream.state(),
            "chained_sha256": self._digest.hex(),
            "documents_too_short": self._n_too_short,
            "documents_left_out": self._n_left_out,
            "positions_defined": self._n_defined,
            "batches": self._n_batches,
        }

    def _read_window(self) -> Corpus | None:
        """Read the next window that has a document long enough for a position to count; None at the end."""
        while True:
            start, chunks, n_documents, n_tokens = self._position(), [], 0, 0
            for chunk in self._chunks:
                chunks.append(chunk)
                n_documents += len(chunk.lengths)
                n_tokens += len(chunk.tokens)
                if n_documents >= WINDOW_DOCUMENTS or n_tokens >= WINDOW_TOKENS:
                    break
            if not chunks:
                self._is_read = True
                return None
            window = self._stream.corpus(chunks)
            check_columns(window, label_columns(self._config))
            self._digest = chained_digest(window, self._digest)
            is_short = window.lengths < self._needed
            population = Population(window, self._label_sets)
            counts = population.counts() > 0
            self._n_defined += population.n_defined
            self._n_too_short += int(is_short.sum())
            self._n_left_out += int((~counts & ~is_short).sum())
            if counts.any():
                self._window_start = start
                return window

    def _check_end(self) -> None:
        """Record what was found in all documents, and check that some were long enough.

        Raises:
            InputError: none was, or none has a value of `permute_within`.
        """
        self._stream.finish()
        check_groups(self._config.permute_within, self._stream.names)
        if self._n_too_short == self._stream.counts.n_documents:
            raise InputError(
                f"labels: every document is too short: one position needs {self._needed} tokens; ask for lower n-gram "
                "orders or longer documents"
            )
        if self._n_too_short + self._n_left_out == self._stream.counts.n_documents:
            raise InputError(NO_POSITION)
