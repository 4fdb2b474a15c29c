"""One checkpoint: found, loaded without its language-model head or refused, fingerprinted, freed again.

    source = resolve_model("EleutherAI/pythia-160m", revision="step1000")
    tokenizer = load_tokenizer(source)
    with load_checkpoint(source) as checkpoint:
        checkpoint.model(**batch).last_hidden_state  # logits are never computed

A probe that silently measures random weights is worse than none: weights the checkpoint does not hold are an
error here. So is everything that would run code out of a checkpoint, unless it is asked for.
"""

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from softh_probe.errors import InputError, abbreviated, first_sentence, short_repr
from softh_probe.models.fingerprint import is_pooler, weights_fingerprint
from softh_probe.models.loading_errors import RELOAD_HINT, as_input_error, model_error, quiet_transformers
from softh_probe.models.source import ModelSource, check_weights, fetch, fetch_weights, small_files

if TYPE_CHECKING:
    from softh_probe.run.processes import Processes

DTYPES = ("auto", "float32", "bfloat16", "float16")
SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")  # accelerate's words for several devices


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A loaded model and what identifies it.

    `model`: in eval mode; without head, gradients and cache. `info`: plain JSON with `model` (as given),
    `revision`, `commit` (of the hub), `gguf_file`, `model_type`, `class`, `stack` ("encoder" of an encoder-decoder,
    else None), `dtype`, `quantization` (what the config says of packed weights, or None), `devices`, `n_parameters`,
    `weights_sha256` (or None, and the reason in `weights_note`), `trust_remote_code`, `allow_pickle`.
    """

    model: PreTrainedModel
    info: dict[str, Any]

    def free(self) -> None:
        """Give the weights' memory back, whoever still holds the model; `info` stays."""
        for module in self.model.modules():  # not all of whose weights know how to be moved, if they are packed
            for name in ("_parameters", "_buffers"):
                setattr(module, name, {key: _without_values(value) for key, value in getattr(module, name).items()})
        if kind := _accelerator():
            getattr(torch, kind).empty_cache()

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *_: object) -> None:
        self.free()


def load_tokenizer(source: ModelSource, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The checkpoint's own tokenizer; InputError where it is missing, damaged, or needs code of its own.

    load_tokenizer(resolve_model("EleutherAI/pythia-160m"))("a b").input_ids
    """
    what = f"model {source.name!r}: its tokenizer"
    remedy = "put the tokenizer's files (tokenizer.json, tokenizer_config.json) beside config.json"
    if source.gguf_file:  # which carries its tokenizer
        remedy = RELOAD_HINT
    folder = source.folder or fetch(source, small_files(trust_remote_code))
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if source.gguf_file:
        options["gguf_file"] = source.gguf_file
    with quiet_transformers(), as_input_error(what, remedy, TypeError):
        if source.folder is None:  # transformers knows the tokenizers of some repositories by their names
            options["config"] = AutoConfig.from_pretrained(folder, **options)
            options["config"].name_or_path = source.name
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        except Exception as error:
            if type(error) is Exception:  # what the tokenizers library (Rust) raises for a damaged file
                raise ValueError(str(error)) from error
            raise
    # Without files many classes come up with no vocabulary (two word boundaries at most) and no error.
    if tokenizer.vocab_files_names and len(tokenizer) - len(tokenizer.added_tokens_decoder) <= 2:
        raise InputError(f"{what} has no vocabulary; {remedy}")
    return tokenizer


def check_placement(dtype: str, device_map: str | None) -> str:
    """The device or placement a model will have; costs nothing, so that it can be asked first.

    Raises:
        InputError: a dtype or a device that there is not.
    """
    _check_dtype(dtype)
    return _check_device(device_map)


def own_device(device_map: str | None, processes: "Processes") -> str | None:
    """The device of one of several processes: where nothing else is said, the accelerator of its number.

    Raises:
        InputError: one model cannot be spread by each of several processes, or there are not as many accelerators.
    """
    if processes.count == 1:
        return device_map
    if device_map in SPREAD:
        raise InputError(
            f"device_map {device_map!r}: each of {processes.count} processes loads the whole model; leave it out, or "
            "run a single process"
        )
    kind = _accelerator()
    if device_map not in (None, kind) or kind in (None, "mps"):
        return device_map
    if processes.local_count > (n := torch.accelerator.device_count()):
        raise InputError(
            f"device_map: {processes.local_count} processes on this machine, and {n} accelerators; start as many as "
            "there are, or add --device-map cpu"
        )
    return f"{kind}:{processes.local_rank}"


def load_checkpoint(
    source: ModelSource,
    *,
    dtype: str = "auto",
    device_map: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> Checkpoint:
    """Load the transformer without its head; of an encoder-decoder the encoder, which reads a text by itself.

        with load_checkpoint(resolve_model("./checkpoint-500")) as checkpoint:
            checkpoint.info["weights_sha256"]

    dtype: "auto" is the checkpoint's own on an accelerator, float32 on a CPU (slow and inexact in bfloat16).
    device_map: None is one accelerator, else the CPU; or what accelerate takes ("auto", "cpu", "cuda:1").
    Raises InputError, naming file and remedy, for what is wrong with the checkpoint or the arguments.
    """
    placement, torch_dtype = _check_device(device_map), _check_dtype(dtype)
    if dtype == "auto" and (placement == "cpu" or not _accelerator()):
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
        for prepare in list(loaded._forward_pre_hooks.values()):  # compressed-tensors unpacks weights at the first pass
            prepare(loaded, ())
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
    """How many weights a parameter stands for: bitsandbytes packs two of 4 bits into a byte."""
    packed = getattr(parameter, "quant_state", None)
    return parameter.numel() if packed is None else packed.shape.numel()


def _load(
    source: ModelSource, folder: Path, *, trust_remote_code: bool, allow_pickle: bool, **placement: Any
) -> tuple[PreTrainedModel, dict[str, Any], dict[str, Any] | None]:
    """The model as transformers gives it, perhaps with a head, its report of missing and misfit weights, and what
    the config says of packed weights, which may be unpacked by then.

    placement: the `dtype` and `device_map` that from_pretrained takes.
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
        # Packed weights are found under the very names they were saved with, those of the class with a head.
        model_class = getattr(transformers, (config.architectures or [""])[0], model_class)
    if not source.gguf_file:
        options["use_safetensors"] = files[0].endswith(".safetensors")
    else:
        with as_input_error(f"model {source.name!r}: {config_file}", RELOAD_HINT, TypeError):
            _check_gguf_sizes(source.name, config_file, model_class, config)
    if source.gguf_file and hasattr(
        transformers, "GgufConfig"
    ):  # left packed, they would be multiplied by kernels from the hub
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    # Misfits are let pass here for their names: _check_complete refuses them.
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with as_input_error(f"model {source.name!r}: {abbreviated(files)} in {folder}", RELOAD_HINT):
        return *model_class.from_pretrained(folder, config=config, **placement, **options), quantization


def _check_gguf_sizes(name: str, file: Path, model_class: Any, config: transformers.PretrainedConfig) -> None:
    """Refuse a file whose header tells of more than it holds, before memory is taken for it.

    What a header lacks is transformers' default: the sizes of some other model.
    """
    from gguf import GGUFReader  # an optional package

    tensors = sorted(GGUFReader(file).tensors, key=lambda tensor: int(tensor.data_offset))
    for one, following in pairwise(tensors):
        if int(one.data_offset) + int(one.n_bytes) > int(following.data_offset):
            raise model_error(name, f"its tensors {one.name!r} and {following.name!r} overlap; {RELOAD_HINT}")
    n_blocks = len({t.name.split(".")[1] for t in tensors if t.name.startswith("blk.")}) or len(tensors)
    told = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if not isinstance(told, int) or told > n_blocks:
        raise model_error(
            name, f"its header tells of {short_repr(told)} blocks, the file holds {n_blocks}; {RELOAD_HINT}"
        )
    try:
        with torch.device("meta"):
            n_told = sum(parameter.numel() for parameter in model_class.from_config(config).parameters())
    except RuntimeError as error:  # sizes that no tensor can have
        raise model_error(
            name, f"its header tells of impossible sizes ({first_sentence(error)}); {RELOAD_HINT}"
        ) from error
    n_held = sum(int(t.n_elements) for t in tensors)
    if n_told > 2 * n_held:
        raise model_error(name, f"its header tells of {n_told:,} weights, the file holds {n_held:,}; {RELOAD_HINT}")


def auto_class(name: str, config: transformers.PretrainedConfig) -> Any:
    """AutoModel where it or the repository's code has the type, else one with a head. Runs no code."""
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
    """The transformer inside a model that came with an output layer; an encoder-decoder stays whole."""
    if model.get_output_embeddings() is None or model.config.is_encoder_decoder:
        return model
    body = model.base_model if model.base_model is not model else model.get_decoder()
    return body if isinstance(body, PreTrainedModel) else model


def _check_complete(name: str, loaded: nn.Module, model: nn.Module, report: dict[str, Any]) -> None:
    """Refuse a model (`loaded` or a part of it) with weights that its checkpoint does not hold."""
    prefix = next(path for path, module in loaded.named_modules() if module is model)
    tensors = {**dict(loaded.named_parameters(remove_duplicate=False)), **dict(loaded.named_buffers())}
    # By identity, for tied weights have several names.
    inside = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    # Made anew by the model, as some declare under the names that they have behind a head.
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


def _check_dtype(dtype: str) -> Any:
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r}: unknown; expected one of {', '.join(DTYPES)}")
    return dtype if dtype == "auto" else getattr(torch, dtype)


def _check_device(device_map: str | None) -> str:
    kind = _accelerator()
    here = ["cpu", *SPREAD]
    if kind:
        here += [kind, *(f"{kind}:{index}" for index in range(torch.accelerator.device_count()))]
    if device_map is not None and device_map not in here:
        raise InputError(f"device_map {device_map!r}: no such device here; expected one of {', '.join(here)}")
    return device_map or kind or "cpu"


def _accelerator() -> str | None:
    """The kind of accelerator at hand ("cuda", "mps"), or None."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return device.type if device else None
