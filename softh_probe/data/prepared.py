"""The corpus of a run, tokenised or from the cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from softh_probe.cache import Cache, cache_folder, key_of
from softh_probe.choices import Choice, Choices
from softh_probe.config import DEFAULT_MAX_LENGTH, RunConfig
from softh_probe.data.corpus import Corpus, tokenize
from softh_probe.data.documents import read_documents
from softh_probe.data.sources import data_identity
from softh_probe.data.tokenizing import tokenizer_fingerprint
from softh_probe.labels import parse_label_sets

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def read_corpus(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    choices: Iterable[Choice] = (),
    progress: bool = True,
) -> Corpus:
    """Tokenise the corpus of a configuration, or load it from the cache.

    Args:
        config: the run's configuration: data, label columns, length of documents, cache.
        tokenizer: the model's tokenizer.
        choices: what was chosen while the tokenizer was loaded; comes first among the choices of the corpus.
        progress: show a progress bar.

    Raises:
        InputError: the data cannot be read, or the tokenizer does not fit it.
    """
    label_columns = [s.column for s in parse_label_sets(config.labels) if s.direction == "column"]
    source: dict[str, Any] = {
        "split": config.split,
        "subset": config.subset,
        "text_column": config.text_column,
        "sample_by": config.sample_by,
        "max_documents": config.max_documents,
        "shuffle_seed": config.shuffle_seed,
        "label_columns": label_columns,
    }
    cutting: dict[str, Any] = {
        "max_length": config.max_length or DEFAULT_MAX_LENGTH,
        "overflow": config.overflow,
        "add_special_tokens": config.add_special_tokens,
        "chat_template_kwargs": config.chat_template_kwargs,
    }
    cache = Cache(cache_folder(config.cache))
    identity, fingerprint = data_identity(config.data, config.data_revision), tokenizer_fingerprint(tokenizer)
    commit = identity if isinstance(identity, str) else None
    versions = {name: version(name) for name in ("datasets", "tokenizers", "transformers")}
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
    return dataclasses.replace(corpus, choices=tuple(Choices([*choices, *corpus.choices])))
