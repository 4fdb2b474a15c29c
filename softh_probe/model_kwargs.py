"""Arguments of transformers' `from_pretrained` that a configuration may give, and those that it sets otherwise."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from softh_probe.errors import InputError, short_repr

_EXAMPLE = '{"attn_implementation": "eager"}'
#: Arguments that are set otherwise -> how.
_OURS = {
    "pretrained_model_name_or_path": "give it as --model",
    "gguf_file": "give the .gguf file as --model",
    "revision": "use --revision",
    "device_map": "use --device-map",
    "dtype": "use --dtype",
    "torch_dtype": "use --dtype",
    "trust_remote_code": "use --trust-remote-code",
    "use_safetensors": "safetensors take precedence; --allow-pickle allows pickles",
    "from_tf": "convert the weights to safetensors",
    "from_flax": "convert the weights to safetensors",
    "subfolder": "download that folder and give its path as --model",
    "token": "log in with 'hf auth login'",
    "use_auth_token": "log in with 'hf auth login'",
    "cache_dir": "set HF_HOME",
    "local_files_only": "set HF_HUB_OFFLINE=1",
    "force_download": "remove the model from the hub's cache ('hf cache')",
    "proxies": "set HTTPS_PROXY",
    "tp_plan": "start as many processes as there are GPUs (torchrun); each takes a share of the documents",
    "load_in_4bit": 'use {"quantization_config": {"load_in_4bit": true}}',
    "load_in_8bit": 'use {"quantization_config": {"load_in_8bit": true}}',
    "use_flash_attention_2": 'use {"attn_implementation": "flash_attention_2"}',
}
_OURS |= dict.fromkeys(("tp_size", "device_mesh", "distributed_config"), _OURS["tp_plan"])
_OURS |= dict.fromkeys(
    ("config", "state_dict", "key_mapping"), "edit config.json and weights in a copy of the checkpoint"
)
_OURS |= dict.fromkeys(
    ("output_loading_info", "ignore_mismatched_sizes", "weights_only", "return_unused_kwargs"),
    "leave it out; checkpoints are checked whole",
)
_OURS |= dict.fromkeys(
    ("adapter_kwargs", "adapter_name"), "merge the adapter (PEFT's merge_and_unload) and save the model"
)
_OURS |= dict.fromkeys(
    ("mirror", "low_cpu_mem_usage", "offload_state_dict", "_fast_init", "resume_download", "generation_config"),
    "leave it out; it has no effect",
)
_OURS |= dict.fromkeys(
    ("output_hidden_states", "output_attentions", "return_dict", "use_cache"), "leave it out; hooks see every layer"
)


def check_model_kwargs(given: Mapping[str, Any] | None) -> None:
    """Check arguments of `from_pretrained` before anything is loaded.

    >>> check_model_kwargs({"attn_implementation": "eager"})

    Raises:
        InputError: an argument is set by another field, has no effect here, or is no JSON value.
    """
    for key, value in (given or {}).items():
        if key in _OURS:
            raise InputError(f"model_kwargs: {key!r} is not to be set here; {_OURS[key]}")
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(
                f"model_kwargs: {key!r}: expected a value of JSON, such as {_EXAMPLE}, got {short_repr(value)}"
            ) from error
