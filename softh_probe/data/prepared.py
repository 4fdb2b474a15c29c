"""The corpus of a run: tokenised, or from the cache, or opened to be tokenised as it comes."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from softh_probe.cache import Cache, cache_folder, key_of
from softh_probe.choices import Choice, Choices
from softh_probe.config import DEFAULT_MAX_LENGTH, RunConfig
from softh_probe.data.corpus import Corpus
from softh_probe.data.documents import Document, read_documents
from softh_probe.data.sources import data_identity
from softh_probe.data.token_stream import TokenStream, tokenize
from softh_probe.data.tokenizing import tokenizer_fingerprint
from softh_probe.errors import InputError
from softh_probe.kept import Kept
from softh_probe.labels import parse_label_sets
from softh_probe.positions import parse_positions, roles_of
from softh_probe.versions import version_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def read_corpus(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    choices: Iterable[Choice] = (),
    progress: bool = True,
    kept: Kept | None = None,
) -> Corpus:
    """Tokenise the corpus of a configuration, or load it from the cache.

    Args:
        config: the run's configuration: data, label columns, length of documents, cache.
        tokenizer: the model's tokenizer.
        choices: what was chosen while the tokenizer was loaded; comes first among the choices of the corpus.
        progress: show a progress bar.
        kept: keeps the tokens in memory, for the runs that follow.

    Raises:
        InputError: the data cannot be read, or the tokenizer does not fit it.
    """
    source, cutting = _source(config), _cutting(config)
    cache = Cache(cache_folder(config.cache), kept)
    identity, fingerprint = data_identity(config.data, config.data_revision), tokenizer_fingerprint(tokenizer, kept)
    commit = identity if isinstance(identity, str) else None
    versions = {name: version_of(name) for name in ("datasets", "tokenizers", "transformers")}
    known = identity is not None and fingerprint is not None
    key = key_of(data=identity, tokenizer=fingerprint, versions=versions, **source, **cutting) if known else None
    if stored := cache.load("corpus", key):
        corpus = Corpus.from_arrays(*stored, token_name=tokenizer.convert_ids_to_tokens)
    else:
        of_data = Choices()
        # The commit, so that a branch that moves meanwhile gives what the cache's key says.
        documents = read_documents(config.data, revision=commit or config.data_revision, choices=of_data, **source)
        corpus = tokenize(documents, tokenizer, progress=progress, choices=of_data, **cutting)
        corpus = dataclasses.replace(corpus, data_commit=commit)
        cache.store("corpus", key, *corpus.arrays())
    check_groups(config.permute_within, {name: column.names for name, column in corpus.columns.items()})
    return dataclasses.replace(corpus, choices=tuple(Choices([*choices, *corpus.choices])))


def open_stream(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, documents: Iterable[Document] | None = None
) -> tuple[TokenStream, Any]:
    """Open the documents of a configuration, to be tokenised as they come.

    Args:
        config: the run's configuration: data, label columns, length of documents.
        tokenizer: the model's tokenizer.
        documents: what to read in place of the configuration's data; None reads that.

    Returns:
        The stream, and what identifies the version of its data (JSON values); None where that is unknown. A hub's
        commit is text.

    Raises:
        InputError: the data cannot be read, or the tokenizer does not fit it.
    """
    source, of_data = _source(config), Choices()
    if documents is not None:
        identity, documents = None, _with_columns(documents, _column_names(config), config.max_documents)
    else:
        identity = data_identity(config.data, config.data_revision)
        commit = identity if isinstance(identity, str) else None
        documents = read_documents(config.data, revision=commit or config.data_revision, choices=of_data, **source)
    return TokenStream(documents, tokenizer, choices=of_data, **_cutting(config)), identity


def check_groups(permute_within: str | None, names: Mapping[str, Collection[str]]) -> None:
    """Check that the column within whose values labels are exchanged has any.

    Args:
        permute_within: the column; None for none.
        names: values of each column that was read.

    Raises:
        InputError: it is null in every document.
    """
    if permute_within is not None and not names[permute_within]:
        raise InputError(f"permute_within: {permute_within!r} is null in every document; leave it out")


def _source(config: RunConfig) -> dict[str, Any]:
    """Select what decides which documents are read; arguments of `read_documents`."""
    names = ("split", "subset", "text_column", "sample_by", "max_documents", "shuffle_seed", "permute_within")
    with_prompts = "completion" in roles_of(parse_positions(config.positions))
    found = {name: getattr(config, name) for name in names}
    return {**found, "label_columns": label_columns(config), "with_prompts": with_prompts}


def label_columns(config: RunConfig) -> list[str]:
    """List the columns that label documents."""
    return [s.column for s in parse_label_sets(config.labels) if s.direction == "column"]


def _column_names(config: RunConfig) -> list[str]:
    """List the columns that documents need."""
    within = [] if config.permute_within is None else [config.permute_within]
    return list(dict.fromkeys([*label_columns(config), *within]))


def _cutting(config: RunConfig) -> dict[str, Any]:
    """Select what decides how documents are cut into tokens; arguments of `tokenize`."""
    names = (
        *("overflow", "add_special_tokens", "chat_template_kwargs", "max_tokens"),
        *("positions", "skip_special_tokens"),
    )
    return {"max_length": config.max_length or DEFAULT_MAX_LENGTH, **{name: getattr(config, name) for name in names}}


def _with_columns(documents: Iterable[Document], names: Sequence[str], most: int | None) -> Iterator[Document]:
    """Give documents with these columns alone, and so many at most."""
    for number, document in enumerate(itertools.islice(documents, most), start=1):
        if missing := [name for name in names if name not in document.columns]:
            raise InputError(
                f"documents: number {number} has no label column {missing[0]!r}; give each Document the columns that "
                "labels and permute_within name, None where it has no label"
            )
        yield dataclasses.replace(document, columns={name: document.columns[name] for name in names})
