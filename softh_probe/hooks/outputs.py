"""The outputs of named modules: which tensor is measured, and where its positions are.

What is not certain is asked for: `modules={"pool": (module, "sentence_embedding")}`, or with a layout,
`modules={"conv": (module, None, "BCHW")}`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence, pad_sequence

from softh_probe.choices import Choices
from softh_probe.errors import InputError, ProbeError, abbreviated, short_repr
from softh_probe.hooks.layouts import (
    arranged,
    check_layout,
    has_width_last,
    is_sequence_module,
    known_layout,
    puts_channels_second,
    puts_time_first,
    remedy,
)
from softh_probe.layer_places import refuse_centered

#: Entries of a mapping that hold the hidden state by convention.
_BY_NAME = ("hidden_states", "last_hidden_state")


@dataclass(frozen=True, kw_only=True)
class ModuleOutput:
    """What of a named module is measured.

    Attributes:
        module: the module.
        name: key, attribute or index of the tensor in its output, "1.0" for one inside another; None for the only one.
        layout: see `softh_probe.hooks.layouts`; None where it is found.
    """

    module: nn.Module
    name: str | int | None = None
    layout: str | None = None


class HiddenStates(NamedTuple):
    """Hidden states [B, T, D] or [B, D]; real_BT is False at padding, where the module itself knows."""

    states: Tensor
    real_BT: np.ndarray | None = None


def parse_modules(modules: Mapping[str, Any]) -> dict[str, ModuleOutput]:
    """Read the argument `modules` of a probe.

    >>> lstm = nn.LSTM(8, 8)
    >>> parsed = parse_modules({"out": lstm, "states": (lstm, "1.0", "TBD")})
    >>> [(output.name, output.layout) for output in parsed.values()]
    [(None, None), ('1.0', 'TBD')]

    Raises:
        InputError: an entry is neither a module nor (module, name of its output, layout), or has a name that is taken.
    """
    if not isinstance(modules, Mapping):
        raise InputError(f"modules: expected name -> module, got {type(modules).__name__}")
    refuse_centered("modules", map(str, modules))
    return {str(layer): _parse(f"modules: {layer}", entry) for layer, entry in modules.items()}


def _parse(where: str, entry: object) -> ModuleOutput:
    module, name, layout, *more = (
        (*entry, None, None, None)[:4] if isinstance(entry, tuple) else (entry, None, None, None)
    )
    if not isinstance(module, nn.Module) or more != [None] or not (name is None or isinstance(name, str | int)):
        raise InputError(
            f"{where}: expected a module, (module, name of its output) or (module, name or None, layout), got "
            f"{short_repr(entry if not isinstance(entry, tuple) else tuple(type(part).__name__ for part in entry))}"
        )
    return ModuleOutput(module=module, name=name, layout=None if layout is None else check_layout(where, layout))


class OutputReader:
    """Read the hidden states from the output of one named module.

    Args:
        layer: its name.
        output: what of it is measured.
        model: the model that it is a part of.
        choices: where it is recorded what was chosen.
    """

    def __init__(self, layer: str, output: ModuleOutput, model: nn.Module, choices: Choices) -> None:
        self._layer, self._output, self._model, self._choices = layer, output, model, choices
        self._is_confirmed = False
        self._known: dict[int, tuple[str, str] | None] = {}

    def read(self, value: object, shape: tuple[int, ...] | None = None) -> HiddenStates:
        """Find the tensor and arrange it as [B, T, D] or [B, D].

        Args:
            value: what the module gave.
            shape: (B, T) of the forward pass, where that is known.

        Raises:
            ProbeError: it is not certain which tensor is meant, or what its dimensions are.
        """
        path, tensor, reason = self._find(value)
        if isinstance(tensor, PackedSequence) or tensor.is_nested:
            return self._padded(path, tensor, shape)
        layout = self._output.layout
        if layout is not None:
            reason = "as modules= says"
        elif path in ("", "0") and (known := self._known_layout(tensor.ndim)):
            layout, reason = known[0], f"{reason}, {known[1]}" if path else known[1]
            self._is_confirmed = True
        else:
            layout = self._usual_layout(path, tensor)
        if path or layout not in ("BD", "BTD"):
            self._record(path, layout, reason)
        self._is_confirmed |= self._output.layout is not None
        return HiddenStates(arranged(tensor, layout, self._layer))

    def confirm(self, shape: tuple[int, ...]) -> None:
        """Note that something else, labels, masks or tokens, fits these hidden states of B sequences of T tokens.

        Args:
            shape: (B, T), or (B,).

        Raises:
            ProbeError: B equals T, so that it would also fit [T, B, D], which parts of the model give.
        """
        if self._is_confirmed or len(shape) < 2 or shape[0] != shape[1] or shape[0] == 1:
            self._is_confirmed |= len(shape) == 2 and shape[0] != shape[1]
            return
        if puts_time_first(self._model):
            raise ProbeError(
                f"{self._layer}: as many sequences as tokens ({shape[0]}), and parts of the model put time first, so "
                f"[B, T, D] and [T, B, D] look the same; declare the layout: {remedy(self._layer)}, or 'BTD'"
            )
        self._choices.add(
            self._layer,
            "layout [B, T, D]",
            f"the usual one; where sequences are as many as tokens, [T, B, D] looks the same, so declare that: "
            f"{remedy(self._layer)}",
        )

    def _find(self, value: object) -> tuple[str, Tensor | PackedSequence, str]:
        """Find the tensor, its path in the value, and the reason why it is this one."""
        name = self._output.name
        if name is not None:
            value = _entry(value, name)
        found = dict(_tensors(value))
        distinct = {id(tensor): path for path, tensor in found.items()}
        prefix = "" if name is None else str(name)
        if isinstance(value, Tensor | PackedSequence) and found:
            return prefix, value, "as modules= says"
        if name is None and len(distinct) == 1:
            path, tensor = next(iter(found.items()))
            return path, tensor, f"the only tensor that {type(self._output.module).__name__} gives"
        if name is None and (conventional := self._conventional(value, found)) is not None:
            return conventional, found[conventional], "by convention"
        raise self._not_found(prefix, found, value)

    def _conventional(self, value: object, found: Mapping[str, Tensor | PackedSequence]) -> str | None:
        """Find the hidden state by a convention of its module: its name, or the first of a tuple."""
        named = [path for path in _BY_NAME if path in found]
        if len(named) == 1:
            return named[0]
        is_ours = is_sequence_module(self._output.module) or self._is_of_transformers
        return "0" if is_ours and isinstance(value, tuple) and "0" in found else None

    def _not_found(self, prefix: str, found: Mapping[str, Tensor | PackedSequence], value: object) -> ProbeError:
        kind = type(self._output.module).__name__
        if not found and not prefix:
            return ProbeError(f"{self._layer}: expected a tensor of hidden states, got {_described(value)}")
        paths = [f"{prefix}.{path}" if prefix and path else prefix + path for path in found]
        names = [int(path) if path.isdigit() else path for path in paths]
        listed = abbreviated(
            [f"{name!r} {_described(tensor)}" for name, tensor in zip(names, found.values(), strict=True)], 8
        )
        if not found:
            return ProbeError(
                f"{self._layer}: expected a tensor of hidden states as output {self._output.name!r} of {kind}, got "
                f"{_described(value)}; leave the name out to see which there are"
            )
        return ProbeError(
            f"{self._layer}: {kind} gives several tensors, {listed}; name the one to measure: "
            f"modules={{{self._layer!r}: (module, {names[-1]!r})}}"
        )

    def _usual_layout(self, path: str, tensor: Tensor) -> str:
        """Give [B, D] or [B, T, D], unless something speaks against it.

        Raises:
            ProbeError: the layout has to be declared.
        """
        module, shape = self._output.module, list(tensor.shape)
        if tensor.ndim == 2:
            return "BD"
        if tensor.ndim != 3:
            raise ProbeError(
                f"{self._layer}: expected hidden states [B, T, D] or [B, D], got {shape}; say what the dimensions are: "
                f"{remedy(self._layer, 'BCHW' if tensor.ndim == 4 else 'BTD')}"
            )
        if is_sequence_module(module) and path not in ("", "0"):
            raise ProbeError(
                f"{self._layer}: output {path} of {type(module).__name__}, {shape}, has no sequence in it; declare "
                f"what the dimensions are: modules={{{self._layer!r}: (module, {self._output.name!r}, 'TBD')}} counts "
                "a state for each layer as a position"
            )
        if not self._has_width_last and not (path == "last_hidden_state" and self._is_of_transformers):
            self._choices.add(
                self._layer,
                "layout [B, T, D]",
                f"the usual one; parts of the model put channels second, so declare it if this is [B, C, T]: "
                f"{remedy(self._layer, 'BCT')}",
            )
        return "BTD"

    def _known_layout(self, n_dims: int) -> tuple[str, str] | None:
        if n_dims not in self._known:
            self._known[n_dims] = known_layout(self._output.module, self._model, n_dims)
        return self._known[n_dims]

    @cached_property
    def _is_of_transformers(self) -> bool:
        return type(self._output.module).__module__.partition(".")[0] in ("transformers", "transformers_modules")

    @cached_property
    def _has_width_last(self) -> bool:
        return has_width_last(self._output.module) or not puts_channels_second(self._model)

    def _padded(self, path: str, value: Tensor | PackedSequence, shape: tuple[int, ...] | None) -> HiddenStates:
        """Pad packed sequences or a nested tensor, to the T of the forward pass where that is known."""
        if isinstance(value, PackedSequence):
            states, lengths = pad_packed_sequence(value, batch_first=True)
        else:
            parts = value.unbind()
            states, lengths = pad_sequence(list(parts), batch_first=True), torch.tensor([len(part) for part in parts])
        n_tokens = states.shape[1] if shape is None or len(shape) < 2 else max(states.shape[1], shape[1])
        states = nn.functional.pad(states, (0, 0, 0, n_tokens - states.shape[1]))
        self._record(path, "BTD", "sequences without padding")
        self._is_confirmed = True
        return HiddenStates(states, np.arange(n_tokens) < lengths.numpy()[:, None])

    def _record(self, path: str, layout: str, reason: str) -> None:
        output = f"output {path}, " if path else ""
        self._choices.add(self._layer, f"{output}layout {layout}", reason, certain=True)


def _tensors(value: object, path: str = "") -> Iterator[tuple[str, Tensor | PackedSequence]]:
    """Give the tensors of hidden states in a module's output, with their paths: of floats, with a batch and a width."""
    if isinstance(value, PackedSequence):
        yield path, value
    elif isinstance(value, Tensor):
        if value.is_floating_point() and value.ndim >= 2:
            yield path, value
    else:
        for name, item in _items(value):
            yield from _tensors(item, f"{path}.{name}" if path else name)


def _items(value: object) -> list[tuple[str, object]]:
    if isinstance(value, Mapping):
        return [(str(name), item) for name, item in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return list(value._asdict().items())
    if isinstance(value, tuple | list):
        return [(str(i), item) for i, item in enumerate(value)]
    if is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in fields(value)]
    return []


def _entry(value: object, name: str | int) -> object:
    """Find an entry of a module's output by its name, index or path; None where there is none."""
    items = dict(_items(value))
    if (whole := str(name)) in items:
        return items[whole]
    if isinstance(value, tuple | list) and whole.lstrip("-").isdigit():
        index = int(whole)
        return value[index] if -len(value) <= index < len(value) else None
    head, _, rest = whole.partition(".")
    return _entry(items[head], rest) if rest and head in items else None


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        kind = "" if value.is_floating_point() else f"{str(value.dtype).removeprefix('torch.')} "
        return f"{kind}{list(value.shape)}"
    return type(value).__name__
