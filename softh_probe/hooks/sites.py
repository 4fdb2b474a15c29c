"""Find the sites of a block by structure: attention, its heads, the router of a mixture, the MLP.

- "attention": what the output projection of the attention gives.
- "attention_heads": what that projection takes, split into heads.
- "mlp": what the last projection of the MLP gives, the one that leads from another width back to that of the hidden
  states; of a mixture of experts, what it gives for each token, all experts combined.
- "router": the logits that a mixture chooses experts by.

All of these are as they were before a norm, a gate or the residual stream is applied to them outside of these modules.
What is not certain is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from softh_probe.errors import InputError, ProbeError
from softh_probe.hooks.block_parts import (
    UnclearError,
    hidden_width,
    holders,
    is_projection,
    last_of_mlp,
    listed,
    mixture,
    number_of,
    output_projection,
    widths,
)
from softh_probe.layer_places import head_name, site_name

_ROUTER = re.compile(r"router|gate|gating", re.IGNORECASE)
#: What a module that counts heads, or their widths, may call these.
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
_HEAD_WIDTHS = ("v_head_dim", "head_dim", "attention_head_size", "head_size", "dim_per_head", "key_value_proj_dim")


@dataclass(frozen=True, kw_only=True)
class Site:
    """A place in a block where hidden states are read.

    Attributes:
        name: "attention", "attention_heads", "router" or "mlp".
        module: the module that gives them; "attention_heads" are what it takes.
        around: the modules of the block that hold this module, the innermost first.
        index: place of the tensor, where the module gives a tuple.
        width: of a row's states.
        n_heads: of attention heads, each a row of its own; else 0.
    """

    name: str
    module: nn.Module
    around: tuple[nn.Module, ...] = ()
    index: int | None = None
    width: int
    n_heads: int = 0

    def rows(self, block: str) -> list[str]:
        """Name the rows of this site in a block."""
        if self.n_heads:
            return [head_name(block, head) for head in range(self.n_heads)]
        return [site_name(block, self.name)]

    def states(self, block: str, value: Tensor, shape: Sequence[int]) -> Iterator[tuple[str, Tensor]]:
        """Give each row with its hidden states.

        Args:
            block: the name of the block.
            value: [B, T, D] or [B·T, D].
            shape: (B, T) of the forward pass.

        Raises:
            ProbeError: the value is of another shape.
        """
        n_sequences, n_tokens = shape
        width = self.width * max(self.n_heads, 1)
        if value.shape[-1] != width or value.ndim not in (2, 3):
            raise ProbeError(
                f"{self.rows(block)[0]}: expected states [{n_sequences}, {n_tokens}, {width}], got {list(value.shape)}"
            )
        if value.ndim == 2 and len(value) == n_sequences * n_tokens:  # modules that have no use for sequences
            value = value.unflatten(0, (n_sequences, n_tokens))
        parts = value.unflatten(-1, (self.n_heads, self.width)).unbind(-2) if self.n_heads else [value]
        yield from zip(self.rows(block), parts, strict=True)


def find_sites(
    blocks: Sequence[nn.Module], sites: Sequence[str], *, entry: nn.Module, path: str
) -> tuple[tuple[Site, ...], ...]:
    """Find the sites of each block; a block that has none of a kind, in a model of several kinds, has no row of it.

    Args:
        blocks: the transformer blocks.
        sites: names, in the order of rows; "residual" is no module's.
        entry: the model that holds the blocks; its config may tell of heads, and its class of routers.
        path: name of the list of blocks in that model, for errors.

    Raises:
        InputError: it is not certain which module gives a site, or no block has it.
    """
    found: dict[int, tuple[Site, ...]] = {}
    wanted = [site for site in sites if site != "residual"]
    for number, block in enumerate(blocks):
        if id(block) not in found:
            where = f"{path}.{number}"
            found[id(block)] = tuple(
                one for site in wanted if (one := _found(_FINDERS[site], block, entry, site, where)) is not None
            )
    for site in wanted:
        if not any(one.name == site for ones in found.values() for one in ones):
            kind = type(blocks[0]).__name__
            raise InputError(
                f"sites: no block of {type(entry).__name__} has {_DESCRIBED[site]} (blocks are {kind}); leave {site!r} "
                "out, or name the modules to probe with modules={name: module}"
            )
    return tuple(found[id(block)] for block in blocks)


def _found(
    find: Callable[[nn.Module, nn.Module], Site | None], block: nn.Module, entry: nn.Module, site: str, where: str
) -> Site | None:
    try:
        return find(block, entry)
    except UnclearError as why:
        raise InputError(
            f"sites: cannot tell which module gives {site!r} of {where} ({type(block).__name__}): {why}; name the "
            "modules to probe with modules={name: module}"
        ) from None


# --- the sites of one block ------------------------------------------------------------------------------------


def _attention(block: nn.Module, entry: nn.Module) -> Site | None:
    if (path := output_projection(block)) is None:
        return None
    projection = block.get_submodule(path)
    return Site(name="attention", module=projection, around=_around(block, path), width=widths(projection)[1])


def _attention_heads(block: nn.Module, entry: nn.Module) -> Site | None:
    if (path := output_projection(block)) is None:
        return None
    width, _ = widths(block.get_submodule(path))
    attention = _around(block, path)[-1:]
    parts = [part for holder in attention for part in holder.modules()]
    if any(name.startswith("lambda") for part in parts for name, _ in part.named_parameters(recurse=False)):
        raise UnclearError("its heads are differences of others")
    found = [n for part in parts if (n := number_of(part, _HEADS))]
    n_heads = found[0] if found else number_of(getattr(entry, "config", None), ("num_attention_heads",))
    if not n_heads or width % n_heads:
        raise UnclearError(
            f"{path} takes {width} values, which are not those of {n_heads or 'a known number of'} heads"
        )
    known = {n for part in parts for name in _HEAD_WIDTHS if (n := number_of(part, [name]))}
    if known and width // n_heads not in known:
        raise UnclearError(f"{path} takes {width} values, but {n_heads} heads have widths {sorted(known)}")
    return Site(name="attention_heads", module=block.get_submodule(path), width=width // n_heads, n_heads=n_heads)


def _mlp(block: nn.Module, entry: nn.Module) -> Site | None:
    width = hidden_width(block, getattr(entry, "config", None))
    if (path := last_of_mlp(block, width)) is None:
        return None
    return Site(name="mlp", module=block.get_submodule(path), around=_around(block, path), width=width)


def _router(block: nn.Module, entry: nn.Module) -> Site | None:
    if (path := mixture(block)) is None:
        return None
    children = block.get_submodule(path).named_children()
    routers = {name: part for name, part in children if _ROUTER.search(name) and "shared" not in name}
    if len(routers) != 1:
        raise UnclearError(f"expected one router in {path}, found {listed(routers)}")
    ((name, router),) = routers.items()
    inside = [part for part in router.modules() if is_projection(part) and _gives_what_it_projects(part)]
    if len(inside) == 1:
        return _of_router(inside[0], widths(inside[0])[1])
    weights = [parameter for parameter in router.parameters(recurse=False) if parameter.ndim == 2]
    known: Any = (getattr(entry, "_can_record_outputs", None) or {}).get("router_logits")
    if len(weights) != 1 or list(router.children()) or type(router) is not getattr(known, "target_class", None):
        raise UnclearError(f"{path}.{name} ({type(router).__name__}) does not say which of its tensors are logits")
    return _of_router(router, len(weights[0]), known.index)


def _of_router(module: nn.Module, n_experts: int, index: int | None = None) -> Site:
    if n_experts < 2:
        raise UnclearError("there is one expert to choose from")
    return Site(name="router", module=module, index=index, width=n_experts)


def _gives_what_it_projects(module: nn.Module) -> bool:
    return not isinstance(module, nn.Linear) or type(module).forward is nn.Linear.forward


def _around(block: nn.Module, path: str) -> tuple[nn.Module, ...]:
    """Give the modules of a block that hold one of its modules, the innermost first; lists are never called."""
    return tuple(module for _, module in holders(block, path)[::-1] if not isinstance(module, nn.ModuleList))


_FINDERS: dict[str, Callable[[nn.Module, nn.Module], Site | None]] = {
    "attention": _attention,
    "attention_heads": _attention_heads,
    "router": _router,
    "mlp": _mlp,
}
_DESCRIBED = {
    "attention": "an attention",
    "attention_heads": "an attention",
    "router": "a mixture of experts",
    "mlp": "an MLP",
}
