"""Find how many tokens a document may have: by a model's tables of positions, and by its config."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from softh_probe.errors import SofthProbeError
from softh_probe.hashing import file_sha256
from softh_probe.kept import Kept
from softh_probe.models.describe import load_body_skeleton
from softh_probe.models.source import ModelSource

_POSITIONS = re.compile(
    r"wpe|(embed_|word_)?pos(ition)?s?(_?emb\w*)?|position(al|s)?_(embed\w*|encod\w*)|positions_embed"
)
_LIMIT = "length limit"
_TOWERS = re.compile(r"vision|visual|image|audio|speech|video|patch")


def length_limit(source: ModelSource, *, trust_remote_code: bool = False, kept: Kept | None = None) -> int | None:
    """Find the tokens that a document may have at most, from a checkpoint's config alone.

    Args:
        source: the checkpoint, as `resolve_model` finds it.
        trust_remote_code: allow Python code that comes with the checkpoint.
        kept: keeps the answer for checkpoints with the same config.

    Returns:
        The number of tokens; None if there is no limit, or the model cannot be built without its weights.

    Raises:
        InputError: the config is missing or damaged, needs code that is not allowed, or is of a model that reads no
            text.
    """
    key = None if kept is None or trust_remote_code else _config_key(source)
    if kept is None or key is None:
        return _limit(source, trust_remote_code)
    known: tuple[int | None] | None = kept.find(_LIMIT, key)
    if known is None:
        known = (_limit(source, trust_remote_code),)
        kept.keep(_LIMIT, key, known)
    return known[0]


def _config_key(source: ModelSource) -> str | None:
    """Digest the file that decides the limit of a local checkpoint; None where there is no such file."""
    file = None if source.folder is None or source.gguf_file else source.folder / "config.json"
    return None if file is None or not file.is_file() else file_sha256(file)


def _limit(source: ModelSource, trust_remote_code: bool) -> int | None:
    try:
        return longest_document(load_body_skeleton(source, trust_remote_code=trust_remote_code))
    except SofthProbeError:
        raise
    except Exception:  # code of the checkpoint may need values; the loaded model is checked again
        return None


def longest_document(body: PreTrainedModel) -> int | None:
    """Find the tokens that a document may have at most.

    Args:
        body: the part of a model that reads it; its weights are not needed.

    Returns:
        The least of what its tables of positions hold and what its config declares; None if there is no limit.
    """
    text: Any = body.config.get_text_config()
    declared = [getattr(text, name, None) for name in ("max_position_embeddings", "max_seq_len")]
    limits = [limit for limit in declared if isinstance(limit, int) and not isinstance(limit, bool) and limit > 0]
    for path, module in body.named_modules():
        *outer, name = path.split(".")
        if _POSITIONS.fullmatch(name) and not any(_TOWERS.search(part) for part in outer):
            limits += _table_limit(module, text)
    return min(limits, default=None)


def _table_limit(module: nn.Module, config: Any) -> list[int]:
    """Count the positions that a table of learned or fixed positions has rows for."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.ndim != 2 or "Embedding" not in type(module).__name__:
        return []
    offset, padding = getattr(module, "offset", None), getattr(module, "padding_idx", None)
    if isinstance(offset, int):  # OPT and BART: the first rows are not used
        return [len(weight) - offset]
    if isinstance(padding, int):  # RoBERTa: positions are counted from the row after that of padding
        return [len(weight) - padding - 1 - bool(getattr(config, "ngram", 0))]  # ProphetNet looks one token ahead
    window = getattr(config, "attention_window", None)
    if window:  # LED: documents are padded to whole windows
        size = max(window) if isinstance(window, list | tuple) else window
        return [len(weight) // size * size or len(weight)]
    return [len(weight)]
