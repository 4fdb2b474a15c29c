"""What results say of a model: what it was loaded from, its class, its size and a fingerprint of its weights.

describe_model(model)                         # of a run, whose checkpoint knows the rest
weights = MeasuredWeights(model)              # of a model that other code runs
weights.note_use()                            # after each block in which it was measured
weights.describe()
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from softh_probe.models.fingerprint import is_distributed, parts_of, weights_fingerprint

#: Values of each tensor by which a change of weights is noticed.
_SAMPLED = 8
#: Entries that only the code that loads a checkpoint knows.
_OF_LOADING = ("revision", "commit", "gguf_file", "stack", "trust_remote_code", "allow_pickle", "model_kwargs")

_CHANGED = (
    "the weights were changed or moved since they were measured first, so it is unknown which ones were; call result() "
    "before training goes on, and use a new probe after it"
)
_SPREAD = "the weights are spread over several processes"
_OFFLOADED = "some weights are offloaded where they cannot be read back"


def describe_model(model: nn.Module, *, fingerprint: bool = True, gathered: bool = False) -> dict[str, Any]:
    """Describe a model in memory (JSON values).

    >>> describe_model(nn.Linear(2, 2))["n_parameters"]
    6

    Args:
        model: the part of a model that is measured.
        fingerprint: read the weights, which takes seconds where there are billions.
        gathered: gather weights that processes hold between them, each of which has to call this.

    Returns:
        `model_type` (of the config, or None), `class`, `dtype`, `quantization` (the config's entry for packed weights,
        or None), `devices`, `n_parameters`, `weights_sha256` (or None, with the reason in `weights_note`).
    """
    config = getattr(model, "config", None)
    parameters = list(model.parameters())
    dtype = getattr(model, "dtype", None) or next((p.dtype for p in parameters if p.is_floating_point()), None)
    digest, note = _fingerprint(model, gathered=gathered) if fingerprint else (None, None)
    return {
        "model_type": getattr(config, "model_type", None),
        "class": type(model).__name__,
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        "quantization": json.loads(json.dumps(getattr(config, "quantization_config", None), default=str)),
        "devices": sorted({"offloaded" if p.is_meta else str(p.device) for p in parameters}),
        "n_parameters": sum(_n_weights(parameter) for parameter in parameters),
        "weights_sha256": digest,
        "weights_note": note,
    }


class MeasuredWeights:
    """The identity of a model that other code runs, and whether its weights are those that were measured.

    Args:
        model: the part of the model that is measured.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._first: _Mark | None = None
        self._changed: Tensor | bool = False
        self._unreadable: str | None = None

    def note_use(self) -> None:
        """Note that the weights were measured as they are now. Never waits for an accelerator."""
        try:
            now = _mark(self._model)
        except Exception as error:  # an evaluation of hours is not lost for a kind of tensor that nobody knows yet
            self._unreadable = _unreadable(error)
            return
        if self._first is None:
            self._first = now
        elif self._changed is not True:
            self._changed = _differ(self._first, now) | self._changed

    def describe(self) -> dict[str, Any]:
        """Describe the model as `describe_model` does, and what it was loaded from, as far as transformers knows.

        The fingerprint is that of the weights as they are now. It is None where they were seen to change since they
        were measured: torch's counts and some values of each tensor are compared, so a part of a tensor that is written
        through `.data` may stay unseen between the measurement and this call.
        """
        config = getattr(self._model, "config", None)
        loaded_from = getattr(config, "_name_or_path", None) or None
        from_hub = type(self._model).__module__.partition(".")[0] == "transformers_modules"
        found = {"model": loaded_from, **dict.fromkeys(_OF_LOADING), **describe_model(self._model, fingerprint=False)}
        found["commit"] = getattr(config, "_commit_hash", None)
        found["trust_remote_code"] = from_hub or None
        self.note_use()
        if self._unreadable or bool(self._changed):
            return {**found, "weights_note": self._unreadable or _CHANGED}
        found["weights_sha256"], found["weights_note"] = _current_fingerprint(self._model)
        return found


class _Mark(NamedTuple):
    """What changes where weights do: counts of changes, and some values by device and type, as bytes there.

    Fused optimizers change values and no count, and single values change with a count.
    """

    versions: tuple[int, ...]
    values: dict[tuple[str, str], Tensor]


def _current_fingerprint(model: nn.Module) -> tuple[str | None, str | None]:
    """Compute the fingerprint of a model as it is now; a kind of weights that nobody can read has none, and a note."""
    try:
        return _fingerprint(model)
    except Exception as error:  # as above
        return None, _unreadable(error)


def _unreadable(error: Exception) -> str:
    return f"the weights could not be read ({type(error).__name__}: {error})"


def _fingerprint(model: nn.Module, *, gathered: bool = False) -> tuple[str | None, str | None]:
    """Compute the fingerprint, or say why there is none."""
    if _is_spread(model) or (not gathered and any(map(is_distributed, _tensors(model)))):
        return None, _SPREAD
    digest = weights_fingerprint(model)
    return digest, None if digest else _OFFLOADED


def _is_spread(model: nn.Module) -> bool:
    """Test whether processes hold parts of each tensor, which would have to be gathered by all of them."""
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        return True
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())  # DeepSpeed's stage 3


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """List parameters and persistent buffers, without those that are offloaded."""
    for module in model.modules():
        passing = getattr(module, "_non_persistent_buffers_set", ())
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        yield from (tensor for name, tensor in own if name not in passing and not tensor.is_meta)


def _mark(model: nn.Module) -> _Mark:
    """Mark weights as they are now, without waiting for a device."""
    tensors = [] if _is_spread(model) else list(_tensors(model))
    # torch counts the changes of a tensor in this attribute only.
    versions = tuple(0 if tensor.is_inference() else tensor._version for tensor in tensors)  # noqa: SLF001
    values: dict[tuple[str, str], list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        for _, part in parts_of("", tensor.detach()):
            if part.numel():
                few = part.flatten()[:: max(1, part.numel() // _SAMPLED)]
                values[str(part.device), str(part.dtype)].append(few.contiguous().view(torch.uint8))
    return _Mark(versions, {key: torch.cat(few) for key, few in values.items()})


def _differ(one: _Mark, other: _Mark) -> Tensor | bool:
    """Compare two marks; the answer is on a device where values have to be compared."""
    if one.versions != other.versions or one.values.keys() != other.values.keys():
        return True
    pairs = [(values, other.values[key]) for key, values in one.values.items()]
    if any(ours.shape != theirs.shape for ours, theirs in pairs):
        return True
    found = [(ours != theirs).any() for ours, theirs in pairs]
    return torch.stack([each.to(found[0].device, non_blocking=True) for each in found]).any() if found else False


def _n_weights(parameter: nn.Parameter) -> int:
    """Count the weights that a parameter holds: bitsandbytes packs two of 4 bits into a byte."""
    packed = getattr(parameter, "quant_state", None)
    return parameter.numel() if packed is None else packed.shape.numel()
