"""Checks of configurations: types, ranges and secrets of their fields, arguments of models, and the YAML files.

A configuration is a dataclass. Its fields have types that `in_words` can name: str, int, float, bool, None, `Literal`
of strings, and sequences, mappings and unions of these.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal

import yaml

from softh_probe.errors import InputError, short_repr
from softh_probe.redaction import holds_secret

_MOST = 1e15  # greatest value of a number that need not be whole
#: Depth and size of a file. Fields hold values, and lists and mappings of values; aliases can make gigabytes of a few
#: lines.
_DEEPEST, _MOST_NODES = 4, 1_000_000
_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "seq", "map", "timestamp")}
_NUMBERS: dict[str, Any] = {"tag:yaml.org,2002:int": lambda text: int(text, 0), "tag:yaml.org,2002:float": float}


# --- fields ------------------------------------------------------------------------------------------------


def check_secrets(config: Any) -> None:
    """Refuse a configuration with a secret in it: results and logs repeat configurations.

    Raises:
        InputError: a field holds an access token, or a password in a URL.
    """
    for field in dataclasses.fields(config):
        if holds_secret(getattr(config, field.name)):
            raise InputError(
                f"{field.name}: holds a secret (an access token, or a password in a URL), which results and logs "
                "would carry on; give it in the environment (HF_TOKEN), or log in with 'hf auth login'"
            )


def check_types(config: Any) -> None:
    """Refuse values that do not have the type of their field, whether from YAML, JSON or Python code.

    Raises:
        InputError: a value of another type, or a name with a NUL character, which no file can have.
    """
    kind: Any = type(config)
    for name, hint in type_hints(kind).items():
        value = getattr(config, name)
        if not _is(value, hint):
            raise InputError(f"{name}: expected {in_words(hint)}, got {short_repr(value)}")
        for text in [value] if isinstance(value, str) else value if isinstance(value, Sequence) else ():
            if "\0" in str(text):
                raise InputError(f"{name}: expected a name, got one that holds a NUL character: {text!r}")


def check_range(name: str, value: int | None, least: int, most: int) -> None:
    """Refuse a whole number that is too small or too large; None is the default."""
    if value is not None and value < least:
        raise InputError(f"{name}: expected at least {least}, got {short_repr(value)}")
    if value is not None and value > most:
        raise InputError(f"{name}: expected at most {most}, got {short_repr(value)}")


def check_positive(name: str, value: float | None) -> None:
    """Refuse a number of 0 or less, or one beyond any memory, time or corpus; None is the default."""
    if value is not None and not 0 < value <= _MOST:
        raise InputError(f"{name}: expected more than 0 and at most {_MOST:g}, or null, got {short_repr(value)}")


def check_not_negative(name: str, value: float) -> None:
    """Refuse a number below 0, or one beyond any time."""
    if not 0 <= value <= _MOST:
        raise InputError(f"{name}: expected 0 or more, got {short_repr(value)}")


@cache
def type_hints(config: Any) -> dict[str, Any]:
    """Resolve the type of each field of a configuration class."""
    return typing.get_type_hints(config)


def in_words(hint: Any) -> str:
    """Name a field's type, for an error message.

    >>> in_words(str | Sequence[str | int] | None)
    'str, a list of str or int, or null'
    >>> in_words(Literal["exact", "leading_order"] | float)
    'exact, leading_order or float'
    """
    words = _alternatives(hint)
    *most, last = words
    lists = any(" " in word for word in most)
    return f"{', '.join(most)}{',' * lists} or {last}" if most else last


def _alternatives(hint: Any) -> list[str]:
    """Name each member of a union, and each choice of a `Literal`."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return ["any value"]
    if origin in (typing.Union, UnionType):
        return [word for part in parts for word in _alternatives(part)]
    if origin is Literal:
        return list(parts)
    if origin is Sequence:
        return [f"a list of {in_words(parts[0])}"]
    if origin is Mapping:
        return [f"a mapping of {' to '.join(map(in_words, parts))}"]
    return [{NoneType: "null", bool: "true or false"}.get(hint, hint.__name__)]


def _is(value: Any, hint: Any) -> bool:
    """Tell whether a value has the type of a field."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, UnionType):
        return any(_is(value, part) for part in parts)
    if origin is Literal:
        return isinstance(value, str) and value in parts
    if origin is Sequence:
        return isinstance(value, list | tuple) and all(_is(item, parts[0]) for item in value)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(_is(k, parts[0]) and _is(v, parts[1]) for k, v in value.items())
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float) if hint is float else isinstance(value, hint)


# --- arguments of from_pretrained --------------------------------------------------------------------------

MODEL_KWARGS_EXAMPLE = '{"attn_implementation": "eager"}'
#: Arguments of transformers' `from_pretrained` that are set otherwise -> how.
_SET_OTHERWISE = {
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
    "tp_plan": "use --tensor-parallel, and start as many processes as there are GPUs (torchrun)",
    "load_in_4bit": 'use {"quantization_config": {"load_in_4bit": true}}',
    "load_in_8bit": 'use {"quantization_config": {"load_in_8bit": true}}',
    "use_flash_attention_2": 'use {"attn_implementation": "flash_attention_2"}',
}
_SET_OTHERWISE |= dict.fromkeys(("tp_size", "device_mesh", "distributed_config"), _SET_OTHERWISE["tp_plan"])
_SET_OTHERWISE |= dict.fromkeys(
    ("config", "state_dict", "key_mapping"), "edit config.json and weights in a copy of the checkpoint"
)
_SET_OTHERWISE |= dict.fromkeys(
    ("output_loading_info", "ignore_mismatched_sizes", "weights_only", "return_unused_kwargs"),
    "leave it out; checkpoints are checked whole",
)
_SET_OTHERWISE |= dict.fromkeys(
    ("adapter_kwargs", "adapter_name"), "merge the adapter (PEFT's merge_and_unload) and save the model"
)
_SET_OTHERWISE |= dict.fromkeys(
    ("mirror", "low_cpu_mem_usage", "offload_state_dict", "_fast_init", "resume_download", "generation_config"),
    "leave it out; it has no effect",
)
_SET_OTHERWISE |= dict.fromkeys(
    ("output_hidden_states", "output_attentions", "return_dict", "use_cache"), "leave it out; hooks see every layer"
)


def check_model_kwargs(given: Mapping[str, Any] | None) -> None:
    """Check arguments of `from_pretrained` before anything is loaded.

    >>> check_model_kwargs({"attn_implementation": "eager"})

    Raises:
        InputError: an argument is set by another field, has no effect here, or is no JSON value.
    """
    for key, value in (given or {}).items():
        if key in _SET_OTHERWISE:
            raise InputError(f"model_kwargs: {key!r} is not to be set here; {_SET_OTHERWISE[key]}")
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(
                f"model_kwargs: {key!r}: expected a value of JSON, such as {MODEL_KWARGS_EXAMPLE}, "
                f"got {short_repr(value)}"
            ) from error


# --- files -------------------------------------------------------------------------------------------------


def check_config_file(path: Path) -> None:
    """Refuse a file that is no flat YAML, or whose values YAML would silently read as other values.

    Raises:
        InputError: it cannot be read, is no mapping of fields to values, gives a field twice, nests endlessly, or
            holds a number in a notation of old YAML (010 is 8 in it, 1:30 is 90).
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if not isinstance(root, yaml.MappingNode):
            raise InputError(f"config: {path}: expected a line `field: value` for each field, got none")
        _check_nodes(root, path)
        yaml.safe_load(text)
    except InputError:
        raise
    except RecursionError as error:
        raise InputError(f"config: {path}: values nest too deeply; expected fields, and lists of values") from error
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        # ValueError and its like: what constructors of numbers and dates raise.
        raise InputError(f"config: {path} cannot be read as YAML: {error}; quote values that are text") from error


def _check_nodes(root: yaml.MappingNode, path: Path) -> None:
    count = 0
    waiting: list[tuple[yaml.Node, int]] = [(root, 1)]
    while waiting:
        node, depth = waiting.pop()
        count += 1
        where = f"config: {path}, line {node.start_mark.line + 1}"
        if depth > _DEEPEST or count > _MOST_NODES:
            raise InputError(f"{where}: values nest too deeply or are too many; expected fields, and lists of values")
        if node.tag not in _TAGS:
            raise InputError(f"{where}: expected values and lists of them, got one tagged {node.tag!r}")
        waiting += [(child, depth + 1) for child in _children(node, path, where)]


def _children(node: yaml.Node, path: Path, where: str) -> list[yaml.Node]:
    """List the values in a mapping or a sequence, and check its keys; check a scalar, which has none."""
    if isinstance(node, yaml.MappingNode):
        counts = Counter(_key(key, path) for key, _ in node.value)
        if twice := [key for key, n in counts.items() if n > 1]:
            raise InputError(f"{where}: {', '.join(twice)} stands twice; give each field once")
        return [value for _, value in node.value]
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    if node.tag in _NUMBERS and not node.value.lower().endswith((".inf", ".nan")):
        try:
            _NUMBERS[node.tag](node.value)
        except ValueError as error:
            raise InputError(
                f"{where}: {node.value} is another number, or none, to YAML; write it in decimals, or quote it"
            ) from error
    return []


def _key(node: yaml.Node, path: Path) -> str:
    if not isinstance(node, yaml.ScalarNode) or not node.tag.endswith((":str", ":merge")):
        what = repr(node.value) if isinstance(node, yaml.ScalarNode) else "a list or a mapping"
        raise InputError(f"config: {path}, line {node.start_mark.line + 1}: expected the name of a field, got {what}")
    return str(node.value)
