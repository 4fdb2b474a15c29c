"""Trained adapters (PEFT) that are active when a probe's block begins: passes with others are another model's.

A preference evaluation, say, runs the same modules as its reference, with the adapters off or with others.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from softh_probe.errors import ProbeError

#: PEFT's classes of modules that hold adapters, by module; none is imported unless other code has done so.
_CLASSES = {
    "peft.tuners.tuners_utils": "BaseTunerLayer",
    "peft.utils.other": "AuxiliaryTrainingWrapper",
    "peft.tuners.adaption_prompt.layer": "_BaseAdaptedAttention",
}
_BASE = "__base__"  # PEFT's name for no adapter at all


class ActiveAdapters:
    """The adapters that are active now, to compare with those of later forward passes.

    Merging an adapter into the weights leaves it active: the model computes the same.

    Args:
        root: the module whose adapters count.
        outer: modules around it, of which some may put trained prompts before its tokens.
    """

    def __init__(self, root: nn.Module, outer: Sequence[nn.Module]) -> None:
        self._root = root
        self._prompts = [_Prompt(module) for module in outer if getattr(module, "_is_prompt_learning", False)]
        self._layers = {id(layer): _Layer(layer) for layer in _layers(root)}

    @property
    def prompt_models(self) -> list[nn.Module]:
        """The modules around the root that put trained prompts before its tokens."""
        return [prompt.module for prompt in self._prompts if prompt.active is not None]

    def are_active(self) -> bool:
        """Whether the model computes with the same adapters as then.

        Raises:
            ProbeError: the sequences of one batch run under different adapters.
        """
        if any(prompt.active != _active_prompt(prompt.module) for prompt in self._prompts):
            return False
        layers = list(_layers(self._root))
        if (names := _names_of_rows(layers)) is not None:
            return self._are_those_of(names)
        known = [self._layers.get(id(layer)) for layer in layers]
        if len(layers) == len(self._layers) and all(then is not None and then.is_unchanged() for then in known):
            return True
        now = {id(layer): _effective(layer) for layer in layers}
        for number, then in self._layers.items():
            if number not in now and vars(then.layer).get("merged_adapters"):  # merged, and replaced by its weights
                now[number] = _effective(then.layer)
        return _nonempty(now) == _nonempty({number: then.effective for number, then in self._layers.items()})

    def _are_those_of(self, names: Sequence[str]) -> bool:
        """Whether the adapters that a batch names for each sequence are those that were active."""
        then = {name for layer in self._layers.values() for name, _ in layer.effective} or {_BASE}
        same = {{name} == then for name in names}
        if len(same) > 1:
            active = ", ".join(sorted(then))
            raise ProbeError(
                f"adapter_names: expected the adapters that were active when the block began ({active}) for all "
                "sequences of a batch, or for none, got some of each; run the others in batches of their own"
            )
        return True in same


@dataclass
class _Prompt:
    module: nn.Module

    def __post_init__(self) -> None:
        self.active = _active_prompt(self.module)


@dataclass
class _Layer:
    """A layer's adapters as they were."""

    layer: nn.Module

    def __post_init__(self) -> None:
        self._settings = [_copied(value) for value in _settings(self.layer)]
        self.effective = _effective(self.layer)

    def is_unchanged(self) -> bool:
        return self._settings == _settings(self.layer)


def _layers(root: nn.Module) -> Iterator[nn.Module]:
    """Find the modules that hold adapters. This is done in each forward pass, so it has to be fast."""
    found = [getattr(sys.modules[name], kind, None) for name, kind in _CLASSES.items() if name in sys.modules]
    classes = tuple(kind for kind in found if kind is not None)
    holds: dict[type, bool] = {}
    left = [root] if classes else []
    while left:
        module = left.pop()
        kind = type(module)
        if kind not in holds:
            holds[kind] = issubclass(kind, classes)
        parts = vars(module)["_modules"]
        if holds[kind]:
            yield module
            left += [part for name, part in parts.items() if name == "base_layer"]  # may hold adapters of its own
        else:
            left += [part for part in parts.values() if part is not None]


def _settings(layer: nn.Module) -> list[Any]:
    values = vars(layer)
    return [values.get(name) for name in ("_disable_adapters", "_active_adapter", "merged_adapters", "scaling")]


def _copied(value: Any) -> Any:
    return value.copy() if isinstance(value, list | dict | set) else value


def _effective(layer: nn.Module) -> frozenset[tuple[str, Any]]:
    """Find the adapters that a layer computes with, and their scale."""
    disabled, active, merged, scaling = _settings(layer)
    if disabled:
        return frozenset()
    names = merged or ([active] if isinstance(active, str) else active)
    if names is None:  # a module that is there only while its adapter is active
        return frozenset({(type(layer).__name__, None)})
    available = getattr(layer, "_get_available_adapters", lambda: names)()
    scales = scaling if isinstance(scaling, dict) else {}
    return frozenset((name, scales.get(name)) for name in names if name in available)


def _nonempty(layers: dict[int, frozenset[Any]]) -> dict[int, frozenset[Any]]:
    return {number: adapters for number, adapters in layers.items() if adapters}


def _active_prompt(model: nn.Module) -> Any:
    """Give the name of the trained prompt that a PEFT model uses now; None for none."""
    config = getattr(model, "active_peft_config", None)
    is_used = getattr(config, "is_prompt_learning", False) and not getattr(model, "_adapters_disabled", False)
    return getattr(model, "active_adapter", None) if is_used else None


def _names_of_rows(layers: Sequence[nn.Module]) -> Sequence[str] | None:
    """Find the adapter of each sequence, where the call of the model names them (`adapter_names`)."""
    for hook in vars(layers[0])["_forward_pre_hooks"].values() if layers else ():
        names = getattr(hook, "keywords", {}).get("adapter_names")
        if names is not None:
            return list(names)
    return None
