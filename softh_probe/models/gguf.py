"""Checks of a .gguf file before memory is allocated for its weights."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from softh_probe.errors import first_sentence, short_repr
from softh_probe.models.loading_errors import RELOAD_HINT, model_error


def check_gguf_sizes(name: str, file: Path, model_class: Any, config: PretrainedConfig) -> None:
    """Check that the tensors of a .gguf file are as many and as large as its header says.

    For sizes that a header lacks, transformers takes defaults, which are those of another model.

    Args:
        name: the model's name, for errors.
        file: the .gguf file.
        model_class: class that the model will have.
        config: configuration that transformers read from the header.

    Raises:
        InputError: the header declares more blocks or weights than the file holds, or tensors overlap.
    """
    from gguf import GGUFReader  # an optional package

    tensors = sorted(GGUFReader(file).tensors, key=lambda tensor: int(tensor.data_offset))
    for one, following in pairwise(tensors):
        if int(one.data_offset) + int(one.n_bytes) > int(following.data_offset):
            raise model_error(name, f"its tensors {one.name!r} and {following.name!r} overlap; {RELOAD_HINT}")
    n_blocks = len({t.name.split(".")[1] for t in tensors if t.name.startswith("blk.")}) or len(tensors)
    declared = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if not isinstance(declared, int) or declared > n_blocks:
        raise model_error(
            name, f"its header declares {short_repr(declared)} blocks, the file holds {n_blocks}; {RELOAD_HINT}"
        )
    try:
        with torch.device("meta"):
            n_declared = sum(parameter.numel() for parameter in model_class.from_config(config).parameters())
    except RuntimeError as error:  # sizes that no tensor can have
        raise model_error(
            name, f"its header declares impossible sizes ({first_sentence(error)}); {RELOAD_HINT}"
        ) from error
    n_held = sum(int(t.n_elements) for t in tensors)
    if n_declared > 2 * n_held:
        raise model_error(name, f"its header declares {n_declared:,} weights, the file holds {n_held:,}; {RELOAD_HINT}")
