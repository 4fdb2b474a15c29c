"""Check the arguments of `from_pretrained` that a user gives beside the settings that have fields of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig
from transformers.quantizers.auto import AutoQuantizationConfig

from softh_probe.config_checks import MODEL_KWARGS_EXAMPLE
from softh_probe.errors import InputError, first_sentence, short_repr


def load_options(
    given: Mapping[str, Any] | None, config: PretrainedConfig, *, trust_remote_code: bool
) -> dict[str, Any]:
    """Make arguments of `from_pretrained` from JSON values.

    Args:
        given: the arguments, as `check_model_kwargs` allows them.
        config: the model's configuration.
        trust_remote_code: allow kernels from the hub, which are code.

    Raises:
        InputError: an argument needs code that is not allowed, would have no effect, or is a field of config.json.
    """
    options = dict(given or {})
    kernel = str(options.get("attn_implementation", ""))
    if ("/" in kernel or options.get("use_kernels") or options.get("kernel_config")) and not trust_remote_code:
        raise InputError(
            "model_kwargs: kernels from the hub are code that runs here; read it first, then add --trust-remote-code"
        )
    for key in options:
        if key not in ("attn_implementation", "quantization_config") and hasattr(config, key):
            raise InputError(
                f"model_kwargs: {key!r} is a field of config.json, which describes the weights; expected arguments of "
                f"from_pretrained, such as {MODEL_KWARGS_EXAMPLE}"
            )
    if "quantization_config" in options:
        options["quantization_config"] = _quantization(options["quantization_config"], config)
    return options


def _quantization(given: Any, config: PretrainedConfig) -> Any:
    """Make the configuration of packed weights from a mapping."""
    stored = getattr(config, "quantization_config", None)
    expected = 'a mapping such as {"load_in_8bit": true}'
    if not isinstance(given, Mapping):
        raise InputError(f"model_kwargs: quantization_config: expected {expected}, got {short_repr(given)}")
    kinds = ("quant_method", "load_in_4bit", "load_in_8bit")
    kind = {key: stored[key] for key in kinds if isinstance(stored, dict) and key in stored}
    try:
        made = AutoQuantizationConfig.from_dict({**kind, **given})
    except (ValueError, TypeError, ImportError, AttributeError) as error:
        raise InputError(f"model_kwargs: quantization_config: {first_sentence(error)}; expected {expected}") from error
    unknown = [key for key in given if not hasattr(made, key) and key != "quant_method"]
    if unknown:
        raise InputError(f"model_kwargs: quantization_config: {type(made).__name__} has no {', '.join(unknown)}")
    loading = getattr(made, "get_loading_attributes", dict)() if stored else given
    ignored = [key for key in given if key not in loading and key != "quant_method"]
    if ignored:
        raise InputError(
            f"model_kwargs: quantization_config: the weights are packed already, so {', '.join(ignored)} would have no "
            "effect; leave it out"
        )
    return made
