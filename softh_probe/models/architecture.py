"""Choose the class that loads a checkpoint, and the part of it that reads text.

`architectures` in config.json names the class whose weights the files hold: perhaps one half of an encoder-decoder.
"""

from __future__ import annotations

import inspect
from contextlib import suppress
from importlib import import_module
from typing import Any

import torch
import transformers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PretrainedConfig,
    PreTrainedModel,
)

from softh_probe.choices import Choices
from softh_probe.errors import short_repr
from softh_probe.models.fingerprint import is_pooler
from softh_probe.models.loading_errors import model_error

#: What a model reads, by the beginning of the name of its first input.
_READS = {
    "pixel": "images",
    "input_values": "audio",
    "input_features": "audio",
    "audio": "audio",
    "past": "time series",
}


def model_class(name: str, config: PretrainedConfig, choices: Choices | None = None) -> Any:
    """Choose the class that loads a checkpoint: AutoModel where the files hold what it needs, else the named class.

    Args:
        name: the model's name, for errors.
        config: the model's configuration.
        choices: records a class that config.json names and transformers does not have.

    Returns:
        An auto class, or the class that `architectures` names: one with a head if weights are packed, since they are
        only found under the names that they were saved with; or a half of what AutoModel makes, such as
        T5EncoderModel or BartForCausalLM.

    Raises:
        InputError: neither transformers nor the repository's code has a language model of this type.
    """
    chosen, named = _auto_class(config), _named_class(config)
    if chosen is None and named is None:
        raise model_error(name, f"transformers has no language model of type {config.model_type!r}; give another model")
    if chosen is None:
        return named
    if chosen is not AutoModel or type(config) not in transformers.MODEL_MAPPING:
        return chosen
    whole = _first(transformers.MODEL_MAPPING[type(config)])
    if named is None:
        _record_unknown(config, whole, choices)
        return chosen
    if getattr(config, "quantization_config", None):
        return named
    return chosen if _holds(named, whole, config) else named


def model_class_with_head(name: str, config: PretrainedConfig) -> Any:
    """Choose the auto class that loads a checkpoint with the head that predicts the next token.

    Args:
        name: the model's name, for errors.
        config: the model's configuration.

    Returns:
        AutoModelForCausalLM, or AutoModelForSeq2SeqLM for an encoder-decoder.

    Raises:
        InputError: the model type has no such head, or the files are those of a class without one.
    """
    code, named = getattr(config, "auto_map", None) or {}, _named_class(config)
    for auto_class, mapping in (
        (AutoModelForCausalLM, transformers.MODEL_FOR_CAUSAL_LM_MAPPING),
        (AutoModelForSeq2SeqLM, transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING),
    ):
        if type(config) in mapping:
            classes = mapping[type(config)]
            if named is None or named in (classes if isinstance(classes, tuple | list) else (classes,)):
                return auto_class
        elif auto_class.__name__ in code:
            return auto_class
    kind = f"a {named.__name__}" if named else f"a model of type {config.model_type!r}"
    raise model_error(name, f"{kind} has no head that predicts the next token, so it cannot be evaluated on tasks")


def build_skeleton(kind: Any, config: PretrainedConfig, **options: Any) -> PreTrainedModel:
    """Build a model from its config without weights, on the meta device.

    Args:
        kind: an auto class or a class of transformers.
        options: of `from_config`; the classes of transformers take none.
    """
    with torch.device("meta"):
        if issubclass(kind, PreTrainedModel):
            model: PreTrainedModel = kind._from_config(config)  # noqa: SLF001 - what AutoModel.from_config calls
        else:
            model = kind.from_config(config, **options)
        model.eval()
    return model


def body_of(name: str, loaded: PreTrainedModel) -> PreTrainedModel:
    """Take the part of a loaded model that is measured: without its head; of an encoder-decoder, its encoder.

    Raises:
        InputError: the encoder cannot be run by itself.
    """
    body = loaded.get_encoder() if loaded.config.is_encoder_decoder else without_head(loaded)
    if not isinstance(body, PreTrainedModel):
        raise model_error(name, f"the encoder of a {type(loaded).__name__} cannot be run by itself; attach to it")
    return body


def without_head(model: PreTrainedModel) -> PreTrainedModel:
    """Take the transformer out of a model with a head; an encoder-decoder stays whole."""
    has_head = model.get_output_embeddings() is not None or "For" in type(model).__name__  # their names: XForTask
    if not has_head or model.config.is_encoder_decoder:
        return model
    body = model.base_model
    if body is model and model.get_output_embeddings() is not None:
        body = model.get_decoder()
    return body if isinstance(body, PreTrainedModel) else model


def check_reads_text(name: str, body: PreTrainedModel, whole: PreTrainedModel) -> None:
    """Check that a model can be run on token ids alone.

    Args:
        name: the model's name, for errors.
        body: the part that is measured; its weights are not needed.
        whole: the model that it is a part of, or itself.

    Raises:
        InputError: it reads something else, or something else beside text; the text tower is named if it has one.
    """
    inputs = inspect.signature(body.forward).parameters
    needed = [key for key, value in inputs.items() if _is_needed(value)]
    pairs = hasattr(whole, "get_text_features")  # models that compare texts with images or sounds
    passes_on = any(value.kind is value.VAR_POSITIONAL for value in inputs.values())
    if passes_on or ("input_ids" in inputs and set(needed) <= {"input_ids"} and not pairs):
        return
    kind = type(whole).__name__
    if "input_ids" in inputs:
        first = next((key for key in needed if key != "input_ids"), None) or _other_input(inputs) or "another input"
        what = f"a {kind} reads text only together with {_described(first)}"
    else:
        first = str(body.main_input_name)
        what = f"a {kind} reads {_described(first if first in inputs else next(iter(inputs)))}, no text"
    raise model_error(name, f"{what}; {_remedy(name, whole)}")


def _remedy(name: str, whole: PreTrainedModel) -> str:
    for path, module in whole.named_children():
        if "text" in path and isinstance(module, PreTrainedModel) and _reads_only_text(module):
            snippet = f"AutoModel.from_pretrained({name!r}).{path}.save_pretrained('text_tower')"
            return f"its text tower can be measured alone: {snippet}, with the tokenizer's files beside it"
    return "give a model that reads token ids, or attach SoftEntropyProbe(model, modules={name: module}) to this one"


def _reads_only_text(model: PreTrainedModel) -> bool:
    inputs = inspect.signature(model.forward).parameters
    needed = {key for key, value in inputs.items() if _is_needed(value)}
    return "input_ids" in inputs and needed <= {"input_ids"} and model.config.model_type in transformers.CONFIG_MAPPING


def _is_needed(value: inspect.Parameter) -> bool:
    return value.default is value.empty and value.kind is value.POSITIONAL_OR_KEYWORD


def _other_input(inputs: Any) -> str | None:
    return next((key for key in inputs if key.startswith(tuple(_READS))), None)


def _described(key: str) -> str:
    kind = next((kind for start, kind in _READS.items() if key.startswith(start)), None)
    return f"{kind} ({key})" if kind else f"the input {key!r}"


def _auto_class(config: PretrainedConfig) -> Any:
    """Choose AutoModel, else an auto class with a head, or None. Runs no code."""
    code = getattr(config, "auto_map", None) or {}
    mappings = (
        (AutoModel, transformers.MODEL_MAPPING),
        (AutoModelForCausalLM, transformers.MODEL_FOR_CAUSAL_LM_MAPPING),
        (AutoModelForSeq2SeqLM, transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING),
    )
    for auto_class, mapping in mappings:
        if type(config) in mapping or auto_class.__name__ in code:
            return auto_class
    return None


def _first(classes: Any) -> Any:
    return classes[0] if isinstance(classes, tuple | list) else classes


def _named_class(config: PretrainedConfig) -> Any:
    """Find the class that `architectures` names, among transformers' own; None if there is none for this config."""
    names = config.architectures or []
    module = None
    with suppress(ImportError):  # parts such as BartEncoder are known there only
        module = import_module(type(config).__module__.replace(".configuration_", ".modeling_"))
    for name in names if isinstance(names, list | tuple) else ():
        found = getattr(transformers, str(name), None) or getattr(module, str(name), None)
        if inspect.isclass(found) and issubclass(found, PreTrainedModel) and _fits(found, config):
            return found
    return None


def _fits(model: Any, config: PretrainedConfig) -> bool:
    """Test whether a class is one for a config: of its type, or among those that transformers lists for that type."""
    if model.config_class is not None and isinstance(config, model.config_class):
        return True
    return any(
        type(config) in mapping and model.__module__ == _first(mapping[type(config)]).__module__
        for mapping in (transformers.MODEL_MAPPING, transformers.MODEL_FOR_CAUSAL_LM_MAPPING)
    )


def _record_unknown(config: PretrainedConfig, whole: Any, choices: Choices | None) -> None:
    if choices is None or not config.architectures or getattr(config, "auto_map", None):
        return
    reason = (
        f"the class for model type {config.model_type!r}; config.json names {short_repr(config.architectures)}, which "
        f"transformers {transformers.__version__} does not have for this type"
    )
    choices.add("class", whole.__name__, reason)


def _holds(named: Any, whole: Any, config: PretrainedConfig) -> bool:
    """Test whether the weights of a class include those of the class that AutoModel would make."""
    if named is whole:
        return True
    try:
        there, wanted = (set(build_skeleton(kind, config).state_dict()) for kind in (named, whole))
    except Exception:  # one of them cannot be built from its config alone; what is missing shows when it is loaded
        return True
    prefix = f"{named.base_model_prefix}."
    return all(name in there or f"{prefix}{name}" in there for name in wanted if not is_pooler(name))
