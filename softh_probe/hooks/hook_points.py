"""Find the modules to hook: the blocks of a transformers model, by structure.

`softh_probe.hooks.chain` confirms them when the model runs: the output of each block is the input of the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from softh_probe.errors import InputError, ProbeError, abbreviated
from softh_probe.hooks.layouts import is_sequence_module
from softh_probe.hooks.model_argument import require_module
from softh_probe.hooks.outputs import ModuleOutput, parse_modules
from softh_probe.hooks.sites import Site, find_sites
from softh_probe.layer_places import EMBEDDINGS, FINAL_NORM, RESIDUAL, block_name, is_centered, site_of, with_centered

#: Model types that have a causal language model.
CAUSAL = frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


@dataclass(frozen=True, kw_only=True)
class HookPoints:
    """The modules to hook.

    Attributes:
        entry: the module whose call is one forward pass: the backbone, without a language-model head.
        blocks: the transformer blocks, in order; empty where modules are named.
        norms: normalisations beside the blocks or further out; the one called after the last block is the final norm.
        path: name of the block list inside the model given.
        modules: name -> module whose output is measured, where the user names them.
        outputs: name -> what of that output is measured; of layers, where blocks are torch's own, which may put time
            first or leave padding out.
        sites: names of the sites that are measured, in the order of rows.
        block_sites: for each block, the sites in it; none for the residual stream, which the block itself gives.
        centers: whether states minus their mean are measured, too: rows before those of the residual stream.
    """

    entry: nn.Module
    blocks: tuple[nn.Module, ...] = ()
    norms: tuple[nn.Module, ...] = ()
    path: str = ""
    modules: Mapping[str, nn.Module] = field(default_factory=dict)
    outputs: Mapping[str, ModuleOutput] = field(default_factory=dict)
    sites: tuple[str, ...] = (RESIDUAL,)
    block_sites: tuple[tuple[Site, ...], ...] = ()
    centers: bool = False

    @property
    def hidden_size(self) -> int | None:
        """Width of the hidden states, as far as the config says."""
        width = getattr(getattr(self.entry, "config", None), "hidden_size", None)
        return width if isinstance(width, int) else None

    @property
    def site_modules(self) -> list[nn.Module]:
        """The modules that give the states of sites, and those around them."""
        found = [module for sites in self.block_sites for site in sites for module in (site.module, *site.around)]
        return list(dict.fromkeys(found))

    def sites_of(self, call: int) -> tuple[Site, ...]:
        """Give the sites of a block call, counted from 0."""
        return self.block_sites[call % len(self.block_sites)] if self.block_sites else ()

    def places(self, n_calls: int) -> list[list[str]]:
        """Name the rows of each layer, in the order of calls, for a forward pass of `n_calls` block calls.

        The rows of a block's sites stand before that of the residual stream, all of them whether measured or not.
        """
        if self.modules:
            return [self.rows_of(name) for name in self.modules]
        blocks = [
            [
                *(row for site in self.sites_of(call) for row in site.rows(block_name(call + 1))),
                *self.rows_of(block_name(call + 1)),
            ]
            for call in range(n_calls)
        ]
        ends = [self.rows_of(name) for name in (EMBEDDINGS, FINAL_NORM)]
        return [ends[0], *blocks, *[ends[1]] * bool(self.norms)]

    def rows_of(self, layer: str) -> list[str]:
        """Name the rows that a layer's states are added to: minus their mean, if that is measured, and as they are."""
        return with_centered(layer, centers=self.centers)

    def measured_places(self, n_calls: int) -> list[list[str]]:
        """Name the rows of each layer that are measured; a layer may have none."""
        return [[row for row in rows if self.measures(row)] for rows in self.places(n_calls)]

    def measures(self, row: str) -> bool:
        """Whether a row belongs to a site that is measured."""
        return RESIDUAL in self.sites or site_of(row) != RESIDUAL

    def block_layers(self, n_calls: int) -> list[str]:
        """Name the rows that every forward pass calls, for a pass of `n_calls` block calls."""
        optional = set(self.rows_of(FINAL_NORM)) - self.modules.keys()
        return [row for rows in self.places(n_calls) for row in rows if row not in optional]

    def layer_names(self, n_calls: int) -> list[str]:
        """Name all rows that are measured in the order of calls, for a forward pass of `n_calls` block calls."""
        return [row for rows in self.measured_places(n_calls) for row in rows]

    def layer_widths(self, n_calls: int) -> dict[str, int | None]:
        """Find the width of each row that is measured, as far as it is known beforehand."""
        hidden = None if self.modules else self.hidden_size
        widths: dict[str, int | None] = dict.fromkeys(self.layer_names(n_calls), hidden)
        for call in range(n_calls):
            widths.update((row, site.width) for site in self.sites_of(call) for row in site.rows(block_name(call + 1)))
        return widths

    def layer_devices(self, n_calls: int) -> dict[str, torch.device]:
        """Find the device of the sums of each row: that of its block's weights, which must be loaded.

        Apple's GPUs have no float64, and offloaded weights come and go: the sums of these layers are in host memory.
        Of a named module without weights, the device is that of the model.
        """
        if self.modules:
            return {name: _device_of(module, self.entry) for name, module in self.modules.items()}
        devices = [_device_of(self.blocks[i % len(self.blocks)]) for i in range(n_calls)]
        places = zip(self.measured_places(n_calls), [*devices[:1], *devices, *devices[-1:]], strict=False)
        return {row: device for rows, device in places for row in rows}


def find_backbone(model: nn.Module) -> nn.Module:
    """Find the part of a transformers model that holds the blocks, without its head."""
    decoder = getattr(model, "get_decoder", lambda: None)()
    if isinstance(decoder, nn.Module) and _block_lists(decoder):
        return decoder
    base = getattr(model, "base_model", model)
    return base if isinstance(base, nn.Module) else model


def unwrapped(model: nn.Module) -> nn.Module:
    """Find the one transformers model inside a wrapper (a sentence embedder, a parallel wrapper)."""
    if isinstance(model, PreTrainedModel) or hasattr(model, "base_model"):
        return model
    inside = _outermost_models(model)
    return inside[0] if len(inside) == 1 else model


def _outermost_models(module: nn.Module) -> list[nn.Module]:
    children = list(module.children())
    return [m for c in children for m in ([c] if isinstance(c, PreTrainedModel) else _outermost_models(c))]


def stacks(model: nn.Module) -> dict[str, nn.Module]:
    """Split a model into parts that are probed one by one: `encoder` and `decoder`, or "" and the model itself."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        found = {name: getattr(model, f"get_{name}", lambda: None)() for name in ("encoder", "decoder")}
        parts = {name: part for name, part in found.items() if isinstance(part, nn.Module) and part is not model}
        if len({id(part) for part in parts.values() if _block_lists(part)}) == 2:
            return parts
    return {"": model}


def find_hook_points(
    model: nn.Module,
    modules: Mapping[str, Any] = MappingProxyType({}),
    sites: tuple[str, ...] = (RESIDUAL,),
    *,
    centers: bool = False,
) -> HookPoints:
    """Find the backbone and its blocks, or take the modules that the user names instead.

    Args:
        model: the model that is run.
        modules: see `softh_probe.hooks.outputs.parse_modules`.
        sites: names of the sites to measure, as `softh_probe.layer_places.parse_sites` gives them.
        centers: whether to measure states minus their mean, too.

    Raises:
        InputError: this is no torch module; it has no list of blocks, or several of which none has as many as the
            config says; or two stacks; or it is not certain which modules give a site.
    """
    require_module(model)
    if outputs := parse_modules(modules):
        if sites != (RESIDUAL,):
            raise InputError("sites: expected none where modules are named, whose outputs are measured instead")
        named = {layer: output.module for layer, output in outputs.items()}
        return HookPoints(entry=model, modules=named, outputs=outputs, centers=centers)
    inner = unwrapped(model)
    if len(stacks(inner)) > 1:
        raise InputError(
            f"model: {type(inner).__name__} is an encoder-decoder, whose stacks read texts of their own; attach to "
            "model.get_encoder() or to model.get_decoder(), and run the whole model as ever"
        )
    backbone = find_backbone(inner)
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
    parts = path.split(".")[:-1]
    parents = [backbone.get_submodule(".".join(parts[:n])) for n in range(len(parts) + 1)]
    points = HookPoints(
        entry=backbone,
        blocks=tuple(candidates[path]),
        norms=tuple(child for parent in parents for child in parent.children() if _is_norm(child)),
        path=f"{prefix}.{path}".lstrip("."),
    )
    if not is_sequence_module(first := points.blocks[0]):
        found = find_sites(points.blocks, sites, entry=backbone, path=points.path)
        return replace(points, sites=sites, block_sites=found, centers=centers)
    if sites != (RESIDUAL,):
        raise InputError(
            f"sites: {type(first).__name__} runs its parts without calling them, so they have no outputs to measure; "
            "leave the argument out"
        )
    layers = points.layer_names(len(points.blocks))
    return replace(points, outputs={layer: ModuleOutput(module=first) for layer in layers}, centers=centers)


def count_calls(points: HookPoints) -> int:
    """Count the block calls of a forward pass, as far as they are known beforehand; 0 where modules are named.

    There are more calls than blocks where the config says so and a run of the model without values does so.
    """
    if not points.blocks:
        return 0
    config: Any = getattr(points.entry, "config", None)
    n_blocks = len(points.blocks)
    n_layers = getattr(config, "num_hidden_layers", None)
    if not isinstance(points.entry, PreTrainedModel) or not isinstance(n_layers, int) or n_layers <= n_blocks:
        return n_blocks
    try:
        with torch.device("meta"):
            skeleton = type(points.entry)(config).eval()
        traced = dry_run(find_hook_points(skeleton))
    except Exception:  # the model cannot be made from its config alone; its first pass shows the calls
        return n_blocks
    return sum(layer not in (EMBEDDINGS, FINAL_NORM) for layer, *_ in traced) or n_blocks


def dry_run(points: HookPoints) -> list[tuple[str, nn.Module, int | None]]:
    """Trace a forward pass of a model on the meta device: layer, module and width of each call.

    Empty where the model reads values, or takes other inputs than token ids.
    """
    calls: list[tuple[str, nn.Module, int | None]] = []

    def see(layer: str, module: nn.Module, value: object) -> None:
        calls.append((layer, module, hidden_state(value, layer).shape[-1]))

    try:
        with watched_layers(points, see), torch.no_grad():
            points.entry(input_ids=torch.zeros(1, 4, dtype=torch.long, device="meta"))
    except (RuntimeError, NotImplementedError, ValueError, TypeError, LookupError, AttributeError, ProbeError):
        return []
    return calls if len(calls) > len(points.blocks) else []


@contextmanager
def watched_layers(points: HookPoints, see: Callable[[str, nn.Module, object], None]) -> Iterator[None]:
    """Call `see(layer, module, value)` for each layer of the forward pass inside the block, in the order of calls.

    The value is what the first block takes, and what each block and the final norm give; `hidden_state` finds the
    hidden state in it.
    """
    n_calls = 0

    def after_named(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        see(name, module, output)

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not n_calls:
            see(EMBEDDINGS, module, args or kwargs)

    def after_block(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        nonlocal n_calls
        n_calls += 1
        see(block_name(n_calls), module, output)

    def after_norm(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if n_calls >= len(points.blocks):
            see(FINAL_NORM, module, output)

    handles = [module.register_forward_hook(partial(after_named, name)) for name, module in points.modules.items()]
    handles += [block.register_forward_pre_hook(before, with_kwargs=True) for block in points.blocks[:1]]
    handles += [block.register_forward_hook(after_block) for block in dict.fromkeys(points.blocks)]
    handles += [norm.register_forward_hook(after_norm) for norm in points.norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def select_layers(names: Iterable[str | int] | None, places: Sequence[Sequence[str]]) -> list[str]:
    """Select rows by their names, or all rows of a layer by its index (negative ones from the end).

    >>> select_layers([-1, "layer.1"], [["embeddings"], ["layer.1.mlp", "layer.1"], ["final_norm"]])
    ['layer.1', 'final_norm']
    >>> select_layers([1], [["embeddings"], ["layer.1.mlp", "layer.1"], ["final_norm"]])
    ['layer.1.mlp', 'layer.1']

    Args:
        names: names or indices; None selects all.
        places: for each layer of the model, the rows that are measured.

    Returns:
        The rows, in the model's order.

    Raises:
        InputError: there is no such row or layer, or a layer of that index has no row.
    """
    available = [row for rows in places for row in rows]
    if names is None:
        return available
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise InputError("layers: expected at least one, got none; None measures all")
    chosen: set[str] = set()
    for name in names:
        if isinstance(name, int) and -len(places) <= name < len(places) and places[name]:
            chosen.update(places[name])
        elif name in available:
            chosen.add(str(name))
        else:
            listed = abbreviated(available, 40)
            hint = "; rows of centered states need --center" if is_centered(str(name)) else ""
            raise InputError(
                f"layers: no layer {name!r}; expected any of {listed}, or indices of layers that have one{hint}"
            )
    return [layer for layer in available if layer in chosen]


def require_causal(points: HookPoints) -> None:
    """Refuse a model whose hidden states depend on later tokens or on other texts.

    Raises:
        InputError: the model is not causal, or it is unknown whether it is.
    """
    attentions = [m.is_causal for b in points.blocks for m in b.modules() if hasattr(m, "is_causal")]
    config = getattr(points.entry, "config", None)
    listed = getattr(config, "model_type", None) in CAUSAL and not getattr(config, "is_encoder_decoder", False)
    if not (points.blocks and listed and all(attentions)):
        raise InputError(
            "count: 'unique_prefix' needs a causal model, in which a hidden state depends on the tokens up to it and "
            "on nothing else; use count='forwarded'"
        )


def hidden_state(value: object, layer: str) -> Tensor:
    """Find the hidden state in a module's input or output: the entry of that name, else the first float tensor.

    Raises:
        ProbeError: there is none.
    """
    if isinstance(value, Tensor):
        return value
    if is_dataclass(value) and not isinstance(value, Mapping):
        value = vars(value)
    elif hasattr(value, "_asdict"):  # a named tuple
        value = value._asdict()
    named = value.get("hidden_states") if isinstance(value, Mapping) else None
    if isinstance(named, Tensor):
        return named
    values = value.values() if isinstance(value, Mapping) else value
    for item in values if isinstance(values, Iterable) else ():
        if isinstance(item, Tensor) and item.is_floating_point():
            return item
    raise ProbeError(f"{layer}: expected a tensor of hidden states, got {type(value).__name__}")


def _block_lists(backbone: nn.Module) -> dict[str, nn.ModuleList]:
    """Find ModuleLists that are not inside another one's elements, by their path.

    Lists of inner models, which read images, count only where there are no others.
    """
    found: dict[str, nn.ModuleList] = {}
    models: list[str] = []
    for path, module in backbone.named_modules():
        inside = any(path.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and len(module) and not inside:
            found[path] = module
        elif path and hasattr(module, "get_input_embeddings"):
            models.append(path)
    own = {path: blocks for path, blocks in found.items() if not any(path.startswith(f"{m}.") for m in models)}
    return own or found


def _device_of(*modules: nn.Module) -> torch.device:
    """Find the device of the sums of a module: that of its first weight, or that of the next module."""
    found = next((weight.device for module in modules for weight in module.parameters()), torch.device("cpu"))
    return torch.device("cpu") if found.type in ("mps", "meta") else found


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and next(module.children(), None) is None
