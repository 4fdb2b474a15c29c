"""Load a checkpoint without its language-model head (or with it), check that it is complete, and free it.

    source = resolve_model("EleutherAI/pythia-160m", revision="step1000")
    tokenizer = load_tokenizer(source)
    with load_checkpoint(source) as checkpoint:
        checkpoint.model(**batch).last_hidden_state  # logits are never computed

Weights that the checkpoint lacks are an error, as a probe must not measure random weights. So is everything that would
run code from a checkpoint, unless it is allowed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import transformers
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from softh_probe.choices import Choices
from softh_probe.config_checks import check_model_kwargs
from softh_probe.errors import InputError, abbreviated, short_repr
from softh_probe.models.architecture import body_of, check_reads_text, model_class, model_class_with_head
from softh_probe.models.completeness import check_nothing_left_out, check_nothing_missing, left_over_names
from softh_probe.models.gguf import check_gguf_sizes, gguf_names_left, gguf_names_read
from softh_probe.models.identity import describe_model
from softh_probe.models.loading_errors import RELOAD_HINT, as_input_error, quiet_transformers
from softh_probe.models.options import load_options
from softh_probe.models.placement import accelerator, check_device, check_dtype
from softh_probe.models.source import ModelSource, check_weights, fetch_weights
from softh_probe.models.stored import StoredTensors, check_names, check_one_name
from softh_probe.models.tensor_parallel import splitting
from softh_probe.models.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["Checkpoint", "load_checkpoint", "load_tokenizer", "load_with_head"]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A loaded model and its identity. A context manager that frees the model.

    Attributes:
        model: the model in eval mode, without head, gradients and KV cache.
        info: JSON values: `model` (as given), `revision`, `commit` (of the hub), `gguf_file`, `model_type`, `class`,
            `stack` ("encoder" of an encoder-decoder, else None), `dtype`, `quantization` (the config's entry for
            packed weights, or None), `devices`, `n_parameters`, `weights_sha256` (or None, with the reason in
            `weights_note`), `trust_remote_code`, `allow_pickle`, `model_kwargs`.
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
    model_kwargs: Mapping[str, Any] | None = None,
    mesh: DeviceMesh | None = None,
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
        model_kwargs: further arguments of `from_pretrained`, of JSON values: `attn_implementation`,
            `quantization_config` (a mapping), `variant`, …
        mesh: the processes that hold the model between them, as `model_mesh` arranges them; each has to call this.
            None loads the whole model.

    Returns:
        The model, with weights that are all the checkpoint's, and its identity.

    Raises:
        InputError: an argument is wrong, or the checkpoint is damaged, incomplete or needs code that is not allowed.
    """
    trust = {"trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle}
    read = _read(source, trust, head=False, dtype=dtype, device_map=device_map, model_kwargs=model_kwargs, mesh=mesh)
    loaded, model, quantization = read.whole, read.model, read.quantization
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
    info = {
        **read.identity,
        "stack": "encoder" if loaded.config.is_encoder_decoder else None,
        **describe_model(model, gathered=mesh is not None),
        "quantization": quantization,  # as it was before weights were unpacked
        **trust,
        "model_kwargs": dict(model_kwargs or {}),
    }
    return Checkpoint(model=model, info=info, choices=read.choices)


def load_with_head(
    source: ModelSource,
    *,
    dtype: str = "auto",
    device_map: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    model_kwargs: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Load a language model with the head that predicts the next token, as code that evaluates it needs it.

        with load_with_head(resolve_model("./checkpoint-500")) as checkpoint:
            checkpoint.model.generate(**batch)

    Args:
        source: the checkpoint, as `resolve_model` finds it.
        dtype, device_map, trust_remote_code, allow_pickle, model_kwargs: as of `load_checkpoint`.

    Returns:
        The whole model in eval mode, with weights that are all the checkpoint's; `info` has `model`, `revision`,
        `commit`, `gguf_file`, `class` and `dtype` alone.

    Raises:
        InputError: as `load_checkpoint` does; or the checkpoint has no such head.
    """
    trust = {"trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle}
    read = _read(source, trust, head=True, dtype=dtype, device_map=device_map, model_kwargs=model_kwargs)
    model = read.model.eval().requires_grad_(False)
    info = {**read.identity, "class": type(model).__name__, "dtype": str(model.dtype).removeprefix("torch.")}
    return Checkpoint(model=model, info=info, choices=read.choices)


class _Read(NamedTuple):
    """A checkpoint as it was loaded.

    Attributes:
        whole: the model as loaded.
        model: the part of it that is wanted.
        quantization: the config's entry for packed weights, which may be unpacked by now.
        identity: where it is from.
        choices: made while it was loaded.
    """

    whole: PreTrainedModel
    model: PreTrainedModel
    quantization: dict[str, Any] | None
    identity: dict[str, Any]
    choices: Choices


def _read(
    source: ModelSource,
    trust: Mapping[str, bool],
    *,
    head: bool,
    dtype: str,
    device_map: str | None,
    model_kwargs: Mapping[str, Any] | None,
    mesh: DeviceMesh | None = None,
) -> _Read:
    """Check the settings, download a checkpoint and load it."""
    placement, torch_dtype = check_device(device_map), check_dtype(dtype)
    if dtype == "auto" and (placement == "cpu" or not accelerator()):
        torch_dtype = torch.float32
    check_model_kwargs(model_kwargs)
    given, choices = dict(model_kwargs or {}), Choices()
    folder = source.folder or fetch_weights(source, variant=given.get("variant"), **trust)
    with quiet_transformers(), splitting(mesh, placement) as placed:
        found = _load(source, folder, choices, head=head, model_kwargs=given, dtype=torch_dtype, **placed, **trust)
    identity = {
        "model": source.name,
        "revision": source.revision,
        "commit": None if source.folder else folder.name,
        "gguf_file": source.gguf_file,
    }
    return _Read(*found, identity, choices)


def _without_values(tensor: torch.Tensor | None) -> torch.Tensor | None:
    if tensor is None:
        return None
    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


def _load(
    source: ModelSource,
    folder: Path,
    choices: Choices,
    *,
    head: bool,
    trust_remote_code: bool,
    allow_pickle: bool,
    model_kwargs: Mapping[str, Any],
    **placement: Any,
) -> tuple[PreTrainedModel, PreTrainedModel, dict[str, Any] | None]:
    """Load a model by transformers, perhaps with a head, and check its body against the files.

    Args:
        head: the whole model is wanted, with its head, and checked.
        placement: of `from_pretrained`: `dtype`, and `device_map` or what splits the model.

    Returns:
        The model as loaded; the part of it that is measured; and the config's entry for packed weights, which may be
        unpacked by now.
    """
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}  # a bool: None would ask on stdin
    config_file = folder / (source.gguf_file or "config.json")
    if source.gguf_file:
        files, options["gguf_file"] = [source.gguf_file], source.gguf_file
    else:
        files = check_weights(source.name, folder, allow_pickle, variant=model_kwargs.get("variant"), choices=choices)
    with as_input_error(f"model {source.name!r}: {config_file}", RELOAD_HINT):
        config = AutoConfig.from_pretrained(folder, **options)
    kind = model_class_with_head(source.name, config) if head else model_class(source.name, config, choices)
    quantization = json.loads(json.dumps(getattr(config, "quantization_config", None), default=str))
    stored = StoredTensors(source.name, folder, files)
    if not source.gguf_file:
        options["use_safetensors"] = files[0].endswith(".safetensors")
        check_names(source.name, stored.files)
    else:
        with as_input_error(f"model {source.name!r}: {config_file}", RELOAD_HINT, TypeError):
            check_gguf_sizes(source.name, config_file, kind, config)
        if hasattr(transformers, "GgufConfig"):  # packed weights would be multiplied by kernels from the hub
            options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    options |= load_options(model_kwargs, config, trust_remote_code=trust_remote_code)
    # Mismatched sizes are ignored here to learn their names: check_nothing_missing raises an error for them.
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    what, remedy = f"model {source.name!r}: {abbreviated(files)} in {folder}", RELOAD_HINT
    also: tuple[type[Exception], ...] = ()
    if model_kwargs:
        what, remedy, also = f"{what}, with model_kwargs {short_repr(dict(model_kwargs))}", "check them", (TypeError,)
    with as_input_error(what, remedy, *also), left_over_names() as left_over, gguf_names_read() as read:
        loaded, report = kind.from_pretrained(folder, config=config, **placement, **options)
    body = loaded if head else body_of(source.name, loaded)
    if not head:
        check_reads_text(source.name, body, loaded)
    check_one_name(source.name, stored.files, loaded.base_model_prefix)
    check_nothing_missing(source.name, loaded, body, report)
    left_over |= set(report["unexpected_keys"]) | gguf_names_left(stored.files, read)
    check_nothing_left_out(source.name, loaded, body, left_over, stored, choices)
    return loaded, body, quantization
