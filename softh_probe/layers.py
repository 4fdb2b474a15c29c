"""Where the hooks go: the blocks of a transformers model, found by structure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from softh_probe.errors import InputError, ProbeError

EMBEDDINGS, FINAL_NORM = "embeddings", "final_norm"


@dataclass(frozen=True, kw_only=True)
class Layers:
    """What to hook.

    Attributes:
        entry: the module whose call is one forward pass: the backbone, without a language-model head.
        blocks: the transformer blocks, in order.
        norms: normalisations beside the blocks; the one that is called after the last block is the final norm.
        path: name of the block list inside the model given.
    """

    entry: nn.Module
    blocks: tuple[nn.Module, ...]
    norms: tuple[nn.Module, ...]
    path: str


def find_backbone(model: nn.Module) -> nn.Module:
    """The part of a transformers model that holds the blocks, without its head."""
    decoder = getattr(model, "get_decoder", lambda: None)()
    if isinstance(decoder, nn.Module) and _block_lists(decoder):
        return decoder
    base = getattr(model, "base_model", model)
    return base if isinstance(base, nn.Module) else model


def find_layers(model: nn.Module) -> Layers:
    """The backbone and its blocks.

    Raises:
        InputError: no list of blocks, or several of which none has as many as the config says.
    """
    backbone = find_backbone(model)
    prefix = next((name for name, module in model.named_modules() if module is backbone), "")
    candidates = _block_lists(backbone)
    n_layers = getattr(getattr(backbone, "config", None), "num_hidden_layers", None)
    fitting = [path for path, blocks in candidates.items() if len(blocks) == n_layers]
    chosen = fitting if len(fitting) == 1 else list(candidates)
    if len(chosen) != 1:
        listed = ", ".join(f"{path} ({len(blocks)})" for path, blocks in candidates.items()) or "none"
        raise InputError(
            f"model: cannot tell which modules of {type(model).__name__} are its transformer blocks; lists of "
            f"modules found: {listed}; name the modules to probe with modules={{name: module}}"
        )
    path = chosen[0]
    parent = backbone.get_submodule(path.rpartition(".")[0])
    return Layers(
        entry=backbone,
        blocks=tuple(candidates[path]),
        norms=tuple(child for child in parent.children() if _is_norm(child)),
        path=f"{prefix}.{path}".lstrip("."),
    )


def block_row(index: int) -> str:
    """Name of the row of the i-th block call, counted from 1.

    >>> block_row(1)
    'layer.1'
    """
    return f"layer.{index}"


def select_rows(names: Iterable[str | int] | None, available: list[str]) -> list[str]:
    """The rows asked for, by name or by index (negative ones from the end), in the model's order.

    >>> select_rows([-1, "layer.1"], ["embeddings", "layer.1", "final_norm"])
    ['layer.1', 'final_norm']
    """
    if names is None:
        return available
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise InputError("layers: expected at least one, got none; None measures all")
    chosen = set()
    for name in names:
        if isinstance(name, int) and -len(available) <= name < len(available):
            chosen.add(available[name])
        elif name in available:
            chosen.add(str(name))
        else:
            raise InputError(f"layers: no layer {name!r}; expected any of {', '.join(available)}, or their indices")
    return [row for row in available if row in chosen]


def hidden_state(value: object, row: str) -> Tensor:
    """The hidden state among what a module took or gave: the first floating point tensor."""
    if isinstance(value, Tensor):
        return value
    values = value.values() if isinstance(value, Mapping) else value
    for item in values if isinstance(values, Iterable) else ():
        if isinstance(item, Tensor) and item.is_floating_point():
            return item
    raise ProbeError(f"{row}: expected a tensor of hidden states, got {type(value).__name__}")


def _block_lists(backbone: nn.Module) -> dict[str, nn.ModuleList]:
    """ModuleLists that are not inside another one's elements, by their path."""
    found: dict[str, nn.ModuleList] = {}
    for path, module in backbone.named_modules():
        inside = any(path.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and len(module) and not inside:
            found[path] = module
    return found


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()
