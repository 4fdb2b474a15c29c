"""Provenance of a result, warnings for its readers, and checks of the model before a run."""

from __future__ import annotations

import platform
import resource
import sys
from importlib.metadata import version
from typing import Any

import torch

from softh_probe.choices import Choices
from softh_probe.config import RunConfig, plain_config
from softh_probe.data.corpus import Corpus
from softh_probe.errors import InputError
from softh_probe.labels import shortest_document
from softh_probe.models.checkpoint import Checkpoint
from softh_probe.models.lengths import longest_document
from softh_probe.planned.plan import Plan
from softh_probe.result import ProbeResult
from softh_probe.run.forward import input_embeddings

VERSIONS_OF = ("softh-probe", "torch", "transformers", "tokenizers", "datasets", "safetensors", "numpy")


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


def provenance(config: RunConfig, checkpoint: Checkpoint, corpus: Corpus, plan: Plan) -> dict[str, Any]:
    """Describe a result's configuration, checkpoint, corpus, versions and peak memory (JSON values)."""
    return {
        "config": plain_config(config),
        "model": checkpoint.info,
        "corpus": {
            "data": config.data,
            "data_revision": config.data_revision,
            "data_commit": corpus.data_commit,
            "sha256": corpus.sha256,
            "texts_sha256": corpus.texts_sha256,
            "documents_read": corpus.n_read,
            "documents_empty": corpus.n_empty - corpus.n_without_tokens,
            "documents_without_tokens": corpus.n_without_tokens,
            "documents_longer_than_max_length": corpus.n_truncated,
            "documents": corpus.n_documents,
            "documents_too_short": plan.n_too_short,
            "tokens": corpus.n_tokens,
            "tokens_unknown": corpus.n_unknown,
        },
        "versions": {name: version(name) for name in VERSIONS_OF} | {"python": platform.python_version()},
        "peak_memory_gib": _peak_memory_gib(),
    }


def choices(result: ProbeResult, settings: Choices, checkpoint: Checkpoint, corpus: Corpus) -> Choices:
    """Gather what was chosen for the user: in the settings, for the corpus, the checkpoint and the measurement."""
    gathered = Choices((*settings, *corpus.choices))
    gathered.update(checkpoint.choices)
    gathered.update(Choices.from_json(result.info["choices"]))
    return gathered


def warnings(result: ProbeResult, plan: Plan) -> list[str]:
    """List what limits a result: uncertain choices, positions and documents left out, code of the checkpoint."""
    found = Choices.from_json(result.info["choices"]).warnings()
    found += too_short(plan)
    if result.info["model"]["trust_remote_code"]:
        found.append("Python code that comes with the checkpoint was allowed to run (trust_remote_code)")
    return found


def too_short(plan: Plan) -> list[str]:
    """Say how many documents are too short for a position to count; nothing where none is."""
    if not plan.n_too_short:
        return []
    return [
        f"{plan.n_too_short:,} of {plan.corpus.n_documents:,} documents are shorter than the "
        f"{shortest_document(plan.label_sets)} tokens that one position needs, and were left out"
    ]


def _peak_memory_gib() -> dict[str, float]:
    """Read the peak memory of this process and of each accelerator, in GiB."""
    unit = 2**30 if sys.platform == "darwin" else 2**20  # getrusage counts bytes there, KiB elsewhere
    peak = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}
    for index in range(torch.cuda.device_count()):
        peak[f"cuda:{index}"] = torch.cuda.max_memory_allocated(index) / 2**30
    return peak
