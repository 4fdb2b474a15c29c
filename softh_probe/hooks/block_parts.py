"""The parts of a transformer block: attention, mixture of experts, MLP, and the projections in them, by structure.

Modules are told apart by what they hold, by the widths of projections, and by the words that models use for these
parts ("attention", "mlp", "experts"), in names or classes. What is not certain raises `UnclearError`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from softh_probe.errors import abbreviated

_ATTENTION = re.compile(r"att(?:entio)?n|MLA$", re.IGNORECASE)
_CROSS = re.compile(r"cross|enc(?:oder)?_?(?:dec|attn)", re.IGNORECASE)
_LAYER = re.compile(r"(?:layer|block|residual)$", re.IGNORECASE)
_MLP = re.compile(r"mlp|ffn|feed_?forward|^ff$|dense\w*act", re.IGNORECASE)
_NO_MLP = re.compile(r"norm|connection|residual|adapter", re.IGNORECASE)
#: What holds the projections of an MLP in models that have no module for all of it.
_PARTS = re.compile(r"intermediate|output", re.IGNORECASE)
#: Words for the last projection of an attention, and of an MLP.
_OUTPUT = re.compile(
    r"(?:attention_)?(?:o|c|out|output|post|linear_out|resid)(?:_?(?:proj|projection|lin|linear))?|wo|w_o|dense|proj",
    re.IGNORECASE,
)
_DOWN = re.compile(r"down|fc_?2|4h_to_h|out|c_proj|(?:lin|linear|layer|dense)_?2|w2|wo", re.IGNORECASE)


class UnclearError(Exception):
    """Why a part of a block is not certain."""


# --- attention ------------------------------------------------------------------------------------------------


def output_projection(block: nn.Module) -> str | None:
    """Find the output projection of a block's attention over its own sequence.

    Returns:
        Its path in the block; None where the block has no attention.

    Raises:
        UnclearError: there are several, or none in an attention.
    """
    attentions = {path: part for path, part in block.named_modules() if path and _is_attention(path, part)}
    outputs = {path: _output_projections(part, path) for path, part in attentions.items()}
    outputs = {path: found for path, found in outputs.items() if found}
    innermost = {path: found for path, found in outputs.items() if not any(is_in(other, path) for other in outputs)}
    if not innermost and not any(weight.ndim > 1 for part in attentions.values() for weight in part.parameters()):
        return None  # what mixes tokens without weights (a Fourier transform) has no projection
    if len(innermost) != 1:
        raise UnclearError(f"expected one attention with an output projection, found {listed(innermost or attentions)}")
    ((path, found),) = innermost.items()
    if len(found) > 1:
        raise UnclearError(f"{path} has several projections that may be the last: {listed(found)}")
    return found[0]


def _is_attention(path: str, module: nn.Module) -> bool:
    """Whether a module is an attention of a block over its own sequence."""
    kind = type(module).__name__
    if _CROSS.search(path) or _CROSS.search(kind):
        return False
    return bool(_ATTENTION.search(kind)) and not _LAYER.search(kind)


def _output_projections(attention: nn.Module, prefix: str) -> list[str]:
    return [path for path in projections(attention, prefix) if _OUTPUT.fullmatch(path.rpartition(".")[2])]


def outside_attention(block: nn.Module) -> dict[str, nn.Module]:
    """List the modules of a block that are not parts of attentions, those over other sequences included, by path."""
    found: dict[str, nn.Module] = {}
    inside: list[str] = []
    for path, part in block.named_modules():
        kind = type(part).__name__
        if not path or any(is_in(path, outer) for outer in inside):
            continue
        is_cross = (_CROSS.search(path.rpartition(".")[2]) or _CROSS.search(kind)) and not _LAYER.search(kind)
        if is_cross or _is_attention(path, part):
            inside.append(path)
        else:
            found[path] = part
    return found


# --- mixtures and MLPs ----------------------------------------------------------------------------------------


def mixture(block: nn.Module) -> str | None:
    """Find the mixture of experts of a block: the module that holds `experts`.

    Raises:
        UnclearError: there are several, or the block itself holds them.
    """
    holders = {path.rpartition(".")[0] for path in outside_attention(block) if path.rpartition(".")[2] == "experts"}
    if "" in holders:
        raise UnclearError("it holds experts itself, beside other parts of its MLP")
    innermost = sorted(path for path in holders if not any(is_in(other, path) for other in holders))
    if len(innermost) > 1:
        raise UnclearError(f"it has several mixtures of experts: {listed(innermost)}")
    return innermost[0] if innermost else None


def last_of_mlp(block: nn.Module, hidden: int) -> str | None:
    """Find the mixture of a block, or the last projection of its MLP.

    Args:
        block: the block.
        hidden: width of its hidden states.

    Returns:
        Its path in the block; None where the block has no MLP.

    Raises:
        UnclearError: the MLP is in several parts, or it is not certain which projection is the last.
    """
    experts = mixture(block)
    outside = outside_attention(block)
    dense = [path for path in projections(block) if path in outside and not (experts and is_in(path, experts))]
    named = [path for path in dense if _is_named_mlp(block, path)]
    if experts:
        if named:
            raise UnclearError(f"its MLP is in several parts: {listed([experts, *named])}")
        return experts
    parts = named or [path for path in dense if _is_part(block, path)]
    return _last_projection({path: widths(outside[path]) for path in parts}, hidden) if parts else None


def _last_projection(parts: Mapping[str, tuple[int, int]], hidden: int) -> str:
    """Find the projection of an MLP that leads back to the width of the hidden states, by widths or else by name."""
    same = [path for path, pair in parts.items() if pair == (hidden, hidden)]
    found = [path for path, (taken, given) in parts.items() if given == hidden != taken]
    if not found and len(same) == len(parts):
        found, same = [path for path in parts if _DOWN.search(path.rpartition(".")[2])], []
    if len(found) != 1:
        raise UnclearError(f"expected one projection of its MLP back to the width {hidden}, found {listed(found)}")
    if same:
        raise UnclearError(f"what {listed(same)} gives may be applied to the output of its MLP")
    return found[0]


def _is_named_mlp(block: nn.Module, path: str) -> bool:
    """Whether a projection is a part of a module whose name or class says that it is an MLP."""
    words = [word for name, module in holders(block, path) for word in (name, type(module).__name__)]
    return any(map(_MLP.search, words)) and not any(map(_NO_MLP.search, words))


def _is_part(block: nn.Module, path: str) -> bool:
    """Whether a block itself holds a projection, or a module does that is a part of an MLP by its name."""
    return all(_PARTS.search(name) or _is_plain_holder(module) for name, module in holders(block, path))


def _is_plain_holder(module: nn.Module) -> bool:
    """Whether this is a list, or a block inside a block that is a group of them."""
    is_list = isinstance(module, nn.ModuleList | nn.Sequential)
    return is_list or any(_is_attention(name, part) for name, part in module.named_children())


# --- modules --------------------------------------------------------------------------------------------------


def projections(module: nn.Module, prefix: str = "") -> list[str]:
    """List the paths of the projections in a module, without those that are parts of others."""
    found: list[str] = []
    for path, part in module.named_modules(prefix=prefix):
        if is_projection(part) and not any(is_in(path, outer) for outer in found):
            found.append(path)
    return found


def is_projection(module: nn.Module) -> bool:
    """Whether a module maps one width to another."""
    return widths(module) != (0, 0)


def widths(module: nn.Module) -> tuple[int, int]:
    """Give the widths that a projection takes and gives; (0, 0) for other modules.

    >>> widths(nn.Linear(8, 32)), widths(nn.LayerNorm(8))
    ((8, 32), (0, 0))
    """
    for names in (("in_features", "out_features"), ("nx", "nf")):
        taken, given = (getattr(module, name, None) for name in names)
        if isinstance(taken, int) and isinstance(given, int) and not isinstance(module, nn.Bilinear):
            return taken, given
    return 0, 0


def hidden_width(block: nn.Module, config: object) -> int:
    """Find the width of a block's hidden states: that of what its attention gives, else the one that a config says.

    Raises:
        UnclearError: neither is known.
    """
    try:
        if path := output_projection(block):
            return widths(block.get_submodule(path))[1]
    except UnclearError:
        pass
    width = number_of(config, ("hidden_size", "d_model"))
    if width is None:
        raise UnclearError("its config does not say how wide hidden states are")
    return width


def number_of(holder: object, names: Sequence[str]) -> int | None:
    """Find the first positive number among attributes."""
    values = [getattr(holder, name, None) for name in names]
    numbers = [value for value in values if isinstance(value, int) and not isinstance(value, bool) and value > 0]
    return numbers[0] if numbers else None


def holders(block: nn.Module, path: str) -> list[tuple[str, nn.Module]]:
    """Give the modules of a block that hold one of its modules, the outermost first, with their names."""
    parts = path.split(".")[:-1]
    return [(name, block.get_submodule(".".join(parts[: n + 1]))) for n, name in enumerate(parts)]


def is_in(path: str, outer: str) -> bool:
    """Whether a module is inside another one, by their paths."""
    return path.startswith(f"{outer}.")


def listed(paths: Iterable[str]) -> str:
    """List some paths for an error."""
    return abbreviated(list(paths), 6) or "none"
