"""Checkpoints saved as folders of safetensors, for tools that read nothing else."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import transformers

from softh_probe.models.loading_errors import quiet_transformers
from softh_probe.models.source import resolve_model
from softh_probe.models.tokenizer import load_tokenizer


def load(path: str) -> tuple[Any, Any]:
    """Load a model in float32, and its tokenizer, from a folder or a .gguf file."""
    source = resolve_model(path)
    gguf = {"gguf_file": source.gguf_file} if source.gguf_file else {}
    with quiet_transformers():
        model = transformers.AutoModelForCausalLM.from_pretrained(source.folder, dtype=torch.float32, **gguf)
    return model.eval(), load_tokenizer(source)


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Save a model and its tokenizer; what came from GGUF is not saved unless it is made anew."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    made = type(model)(config)
    made.load_state_dict(model.state_dict())
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
