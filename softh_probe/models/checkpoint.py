"""Load a checkpoint without its language-model head, check that it is complete, and free it.

    source = resolve_model("EleutherAI/pythia-160m", revision="step1000")
    with load_checkpoint(source) as checkpoint:
        checkpoint.model(**batch).last_hidden_state  # logits are never computed

Weights that the checkpoint lacks are an error, as a probe must not measure random weights. So is everything that would
run code from a checkpoint, unless it is allowed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
)

from softh_probe.choices import Choices
from softh_probe.errors import InputError, abbreviated
from softh_probe.models.fingerprint import is_pooler, weights_fingerprint
from softh_probe.models.gguf import check_gguf_sizes
from softh_probe.models.loading_errors import RELOAD_HINT, as_input_error, model_error, quiet_transformers
from softh_probe.models.placement import accelerator, check_device, check_dtype
from softh_probe.models.source import ModelSource, check_weights, fetch_weights


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A loaded model and its identity. A context manager that frees the model.

    Attributes:
        model: the model in eval mode, without head, gradients and KV cache.
        info: JSON values: `model` (as given), `revision`, `commit` (of the hub), `gguf_file`, `model_type`, `class`,
            `stack` ("encoder" of an encoder-decoder, else None), `dtype`, `quantization` (the config's entry for
            packed weights, or None), `devices`, `n_parameters`, `weights_sha256` (or None, with the reason in
            `weights_note`), `trust_remote_code`, `allow_pickle`.
        choices: what was chosen for the user while it was loaded.
    """

    model: PreTrainedModel
    info: dict[str, Any]
    choices: Choices = field(default_factory=Choices)

    def free(self) -> None:
        """Free the memory of the weights, even if the model is still referenced; `info` stays."""
        for module in self.model.modules():  # packed weights cannot always be moved by `to("meta")`
            for name in ("_parameters", "_buffers"):
                setattr(module, name, {key: _without_values(value) for key, value in getattr(module, name).items()})
        if kind := accelerator():
            getattr(torch, kind).empty_cache()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.free()


def load_checkpoint(
    source: ModelSource,
    *,
    dtype: str = "auto",
    device_map: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> Checkpoint:
    """Load the transformer of a checkpoint without its head; of an encoder-decoder, its encoder.

        with load_checkpoint(resolve_model("./checkpoint-500")) as checkpoint:
            checkpoint.info["weights_sha256"]

    Args:
        source: the checkpoint, as `resolve_model` finds it.
        dtype: "float32", "bfloat16", "float16", or "auto": the checkpoint's own on an accelerator, float32 on a CPU
            (where bfloat16 is slow and inexact).
        device_map: a device ("cpu", "cuda:1"), one of accelerate's placements ("auto"), or None for one accelerator,
            else the CPU.
        trust_remote_code: allow Python code that comes with the checkpoint.
        allow_pickle: allow weights in pickle files, which can hold code.

    Returns:
        The model, with weights that are all the checkpoint's, and its identity.

    Raises:
        InputError: an argument is wrong, or the checkpoint is damaged, incomplete or needs code that is not allowed.
    """
    placement, torch_dtype = check_device(device_map), check_dtype(dtype)
    if dtype == "auto" and (placement == "cpu" or not accelerator()):
        torch_dtype = torch.float32
    trust = {"trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle}
    folder = source.folder or fetch_weights(source, **trust)
    with quiet_transformers():
        loaded, report, quantization = _load(source, folder, dtype=torch_dtype, device_map=placement, **trust)
    is_encoder = bool(loaded.config.is_encoder_decoder)
    model = loaded.get_encoder() if is_encoder else without_head(loaded)
    if not isinstance(model, PreTrainedModel):
        raise model_error(
            source.name, f"the encoder of a {type(loaded).__name__} cannot be run by itself; attach to it"
        )
    _check_complete(source.name, loaded, model, report)
    if model is not loaded:
        # compressed-tensors unpacks weights in a hook of the outer model's first pass, which never comes. torch lists
        # a module's hooks in this attribute only.
        for unpack in list(loaded._forward_pre_hooks.values()):  # noqa: SLF001
            unpack(loaded, ())
    found_dtype = str(model.dtype).removeprefix("torch.")
    if quantization and dtype not in ("auto", found_dtype):
        raise InputError(f"dtype {dtype!r}: transformers loads these weights in {found_dtype} only; leave it out")
    model.eval().requires_grad_(False)
    for config in (model.config, model.config.get_text_config()):
        if hasattr(config, "use_cache"):
            config.use_cache = False
    fingerprint = weights_fingerprint(model)
    info = {
        "model": source.name,
        "revision": source.revision,
        "commit": None if source.folder else folder.name,
        "gguf_file": source.gguf_file,
        "model_type": model.config.model_type,
        "class": type(model).__name__,
        "stack": "encoder" if is_encoder else None,
        "dtype": found_dtype,
        "quantization": quantization,
        "devices": sorted({"offloaded" if p.is_meta else str(p.device) for p in model.parameters()}),
        "n_parameters": sum(_n_weights(parameter) for parameter in model.parameters()),
        "weights_sha256": fingerprint,
        "weights_note": None if fingerprint else "some weights are offloaded where they cannot be read back",
        **trust,
    }
    return Checkpoint(model=model, info=info)


def _without_values(tensor: torch.Tensor | None) -> torch.Tensor | None:
    if tensor is None:
        return None
    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


def _n_weights(parameter: nn.Parameter) -> int:
    """Count the weights that a parameter holds: bitsandbytes packs two of 4 bits into a byte."""
    packed = getattr(parameter, "quant_state", None)
    return parameter.numel() if packed is None else packed.shape.numel()


def _load(
    source: ModelSource, folder: Path, *, trust_remote_code: bool, allow_pickle: bool, **placement: Any
) -> tuple[PreTrainedModel, dict[str, Any], dict[str, Any] | None]:
    """Load a model by transformers.

    Args:
        placement: `dtype` and `device_map` of `from_pretrained`.

    Returns:
        The model, perhaps with a head; transformers' report of missing and misfit weights; and the config's entry for
        packed weights, which may be unpacked by now.
    """
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}  # a bool: None would ask on stdin
    config_file = folder / (source.gguf_file or "config.json")
    if source.gguf_file:
        files, options["gguf_file"] = [source.gguf_file], source.gguf_file
    else:
        files = check_weights(source.name, folder, allow_pickle)
    with as_input_error(f"model {source.name!r}: {config_file}", RELOAD_HINT):
        config = AutoConfig.from_pretrained(folder, **options)
    model_class = auto_class(source.name, config)
    quantization = json.loads(json.dumps(getattr(config, "quantization_config", None), default=str))
    if quantization and model_class is AutoModel:
        # Packed weights are only found under the names they were saved with, those of the class with a head.
        model_class = getattr(transformers, (config.architectures or [""])[0], model_class)
    if not source.gguf_file:
        options["use_safetensors"] = files[0].endswith(".safetensors")
    else:
        with as_input_error(f"model {source.name!r}: {config_file}", RELOAD_HINT, TypeError):
            check_gguf_sizes(source.name, config_file, model_class, config)
        if hasattr(transformers, "GgufConfig"):  # packed weights would be multiplied by kernels from the hub
            options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    # Mismatched sizes are ignored here to learn their names: _check_complete raises an error for them.
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with as_input_error(f"model {source.name!r}: {abbreviated(files)} in {folder}", RELOAD_HINT):
        return *model_class.from_pretrained(folder, config=config, **placement, **options), quantization


def auto_class(name: str, config: transformers.PretrainedConfig) -> Any:
    """Choose the class that loads a configuration: AutoModel, else a class with a head. Runs no code.

    Args:
        name: the model's name, for errors.
        config: the model's configuration.

    Raises:
        InputError: neither transformers nor the repository's code has a language model of this type.
    """
    code = getattr(config, "auto_map", None) or {}
    mappings = (
        (AutoModel, transformers.MODEL_MAPPING),
        (AutoModelForCausalLM, transformers.MODEL_FOR_CAUSAL_LM_MAPPING),
        (AutoModelForSeq2SeqLM, transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING),
    )
    for auto_class, mapping in mappings:
        if type(config) in mapping or auto_class.__name__ in code:
            return auto_class
    raise model_error(name, f"transformers has no language model of type {config.model_type!r}; give another model")


def without_head(model: PreTrainedModel) -> PreTrainedModel:
    """Take the transformer out of a model with an output layer; an encoder-decoder stays whole."""
    if model.get_output_embeddings() is None or model.config.is_encoder_decoder:
        return model
    body = model.base_model if model.base_model is not model else model.get_decoder()
    return body if isinstance(body, PreTrainedModel) else model


def _check_complete(name: str, loaded: nn.Module, model: nn.Module, report: dict[str, Any]) -> None:
    """Check that the checkpoint holds all weights of a model (`loaded` or a part of it)."""
    prefix = next(path for path, module in loaded.named_modules() if module is model)
    tensors = {**dict(loaded.named_parameters(remove_duplicate=False)), **dict(loaded.named_buffers())}
    # By identity: tied weights have several names.
    inside = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    # Tensors that the model computes itself; some classes declare them under the names they have behind a head.
    not_stored = getattr(loaded, "_keys_to_ignore_on_load_missing", None) or ()

    def counts(key: str) -> bool:
        if is_pooler(key) or any(declared.endswith(f".{key}") for declared in not_stored):
            return False
        by_name = key.startswith(f"{prefix}." if prefix else "")
        return id(tensors[key]) in inside if key in tensors else by_name

    missing = sorted(key for key in report["missing_keys"] if counts(key))
    misfits = sorted(
        f"{key} {tuple(stored)} instead of {tuple(expected)}"
        for key, stored, expected in report["mismatched_keys"]
        if counts(key)
    )
    if missing or misfits:
        problem = f"the files lack {abbreviated(missing)}" if missing else f"wrong shapes: {abbreviated(misfits)}"
        remedy = "get config.json and weights from one source, whole"
        raise model_error(name, f"weights do not fit config.json, {problem}; {remedy}")
