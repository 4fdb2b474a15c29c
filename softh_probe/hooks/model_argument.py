"""What is given in place of a model, and what to give instead."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from softh_probe.errors import InputError, short_repr


def require_module(model: object) -> None:
    """Check that a model is a torch module.

    >>> require_module("gpt2")
    Traceback (most recent call last):
        ...
    softh_probe.errors.InputError: model: expected a torch module, got 'gpt2'; load it first: \
AutoModelForCausalLM.from_pretrained('gpt2').eval()

    Raises:
        InputError: it is something else; the error says what to give.
    """
    if not isinstance(model, nn.Module):
        given = short_repr(model) if isinstance(model, str | Path) else _kind(model)
        raise InputError(f"model: expected a torch module, got {given}; {_remedy(model)}")


def _kind(model: object) -> str:
    if isinstance(model, type):
        return f"the class {model.__name__}"
    return "None" if model is None else f"an object of class {type(model).__name__}"


def _remedy(model: object) -> str:
    """Say how to come from what was given to a model."""
    if isinstance(model, str | Path):
        return f"load it first: AutoModelForCausalLM.from_pretrained({short_repr(str(model))}).eval()"
    if isinstance(model, type):
        return "give a model of this class, with weights"
    if isinstance(getattr(model, "model", None), nn.Module):
        return "give the model in it, its attribute .model"
    if isinstance(model, PreTrainedTokenizerBase) or hasattr(model, "tokenizer"):  # of processors
        return "a tokenizer has no layers; give the model that it is for"
    if isinstance(model, PretrainedConfig):
        return "a config has no weights; make its model: AutoModelForCausalLM.from_config(config).eval()"
    if isinstance(model, Mapping):
        return "weights alone do not run; load them into a model: model.load_state_dict(…)"
    return "load a model with AutoModelForCausalLM.from_pretrained(…).eval()"
