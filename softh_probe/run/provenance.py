"""Provenance of a result, warnings for its readers, and checks of the model before a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from softh_probe.choices import Choice, Choices
from softh_probe.config import RunConfig, plain_config
from softh_probe.data.corpus import Corpus
from softh_probe.data.token_stream import Counts
from softh_probe.errors import InputError
from softh_probe.labels import parse_label_sets, shortest_document
from softh_probe.models.checkpoint import Checkpoint
from softh_probe.models.lengths import longest_document
from softh_probe.positions import ALL, describe_policy
from softh_probe.presets import LIMITS, PRESETS, describe_preset
from softh_probe.result import ProbeResult
from softh_probe.run.forward import input_embeddings
from softh_probe.run.peak_memory import peak_memory_gib
from softh_probe.versions import versions


def check_model(checkpoint: Checkpoint, corpus: Corpus) -> None:
    """Check that a model has embeddings and positions for every document of a corpus.

    Raises:
        InputError: it has not; the forward pass would fail with an error that is hard to read.
    """
    config = checkpoint.model.config
    embeddings = getattr(input_embeddings(checkpoint.model), "weight", None)
    n_embeddings = len(embeddings) if isinstance(embeddings, torch.Tensor) else getattr(config, "vocab_size", None)
    if n_embeddings is not None and int(corpus.tokens.max()) >= n_embeddings:
        raise InputError(
            f"model: the tokenizer gives token {corpus.tokens.max()}, the model has embeddings for {n_embeddings}; "
            "tokenizer and weights have to be of one checkpoint; name the right tokenizer by --tokenizer"
        )
    longest = longest_document(checkpoint.model)
    if longest is not None and longest < int(corpus.lengths.max()):
        raise InputError(
            f"max_length: the model takes documents of up to {longest} tokens, the longest here has "
            f"{corpus.lengths.max()}; set --max-length {longest}"
        )


def provenance(config: RunConfig, checkpoint: Checkpoint, corpus: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a result's configuration, checkpoint, corpus, versions and peak memory (JSON values)."""
    return {
        "config": plain_config(config),
        "model": checkpoint.info,
        "corpus": dict(corpus),
        "versions": versions(),
        "peak_memory_gib": peak_memory_gib(),
    }


def record_preset(config: RunConfig, choices: Choices) -> None:
    """Record the settings that a preset stands for: a default that is given looks like one that is not."""
    if config.like is not None:
        values = {name: getattr(config, name) for name in PRESETS[config.like]}
        choices.add(
            "like", f"{config.like}: {describe_preset(config.like, values)}", "in place of defaults", certain=True
        )


def corpus_info(
    config: RunConfig,
    commit: str | None,
    digests: Mapping[str, str | None],
    counts: Corpus | Counts,
    *,
    n_too_short: int,
    n_left_out: int = 0,
) -> dict[str, Any]:
    """Describe a corpus for a result (JSON values).

    Args:
        config: the run.
        commit: of the data set on the hub; None where it is unknown.
        digests: `sha256`, `chained_sha256` and `texts_sha256`; None where it is unknown.
        counts: of what was read.
        n_too_short: documents without a position at which all n-grams are defined.
        n_left_out: others without a position at which the policies of positions hold.
    """
    return {
        "data": config.data,
        "data_revision": config.data_revision,
        "data_commit": commit,
        **digests,
        "documents_read": counts.n_read,
        "documents_empty": counts.n_empty - counts.n_without_tokens,
        "documents_without_tokens": counts.n_without_tokens,
        "documents_longer_than_max_length": counts.n_truncated,
        "documents": counts.n_documents,
        "documents_too_short": n_too_short,
        "documents_left_out": n_left_out,
        "tokens": counts.n_tokens,
        "tokens_unknown": counts.n_unknown,
    }


def policy_info(config: RunConfig, left: int | None, of: int | None) -> dict[str, Any]:
    """Describe the policy of positions for a result (JSON values); nothing where none was asked for.

    Args:
        config: the run.
        left: positions that count; None where nobody knows yet.
        of: positions that would count without the policy.
    """
    if config.positions == ALL and not config.skip_special_tokens:
        return {}
    asked = {"positions": config.positions, "skip_special_tokens": config.skip_special_tokens}
    return {"positions_policy": {**asked, "left": left, "of": of}}


def choices(result: ProbeResult, settings: Choices, checkpoint: Checkpoint, of_data: Iterable[Choice]) -> Choices:
    """Gather what was chosen for the user: in the settings, for the corpus, the checkpoint and the measurement."""
    gathered = Choices((*settings, *of_data))
    gathered.update(checkpoint.choices)
    gathered.update(Choices.from_json(result.info["choices"]))
    return gathered


def warnings(result: ProbeResult, of_data: Iterable[str]) -> list[str]:
    """List what limits a result: uncertain choices, positions and documents left out, code of the checkpoint."""
    found = Choices.from_json(result.info["choices"]).warnings()
    found += of_data
    if result.info["model"]["trust_remote_code"]:
        found.append("Python code that comes with the checkpoint was allowed to run (trust_remote_code)")
    if like := result.info["config"].get("like"):
        found.append(LIMITS[like])
    return found


def too_short(config: RunConfig, n_too_short: int, n_left_out: int, n_documents: int) -> list[str]:
    """Say how many documents have no position that counts; nothing where all have."""
    found = []
    if n_left_out:
        found.append(
            f"{n_left_out:,} of {n_documents:,} documents have no position that counts (positions "
            f"{describe_policy(dataclasses.asdict(config))}), and were left out"
        )
    if not n_too_short:
        return found
    return [
        *found,
        f"{n_too_short:,} of {n_documents:,} documents are shorter than the "
        f"{shortest_document(parse_label_sets(config.labels))} tokens that one position needs, and were left out",
    ]
