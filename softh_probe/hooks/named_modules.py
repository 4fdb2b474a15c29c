"""The modules of a model whose paths match patterns: `model.layers.*.mlp`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from torch import nn

from softh_probe.errors import InputError


def find_modules(model: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Module]:
    """Find modules by patterns of their paths, in the model's order.

    Paths may begin with the name of the model's backbone, as in the whole model with its head, or without it. `*`
    stands for one name or a part of it, `**` for any number of names.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
    >>> list(find_modules(net, ["*.0", "0"]))
    ['0', '1.0']

    Args:
        model: the model.
        patterns: of paths.

    Returns:
        The modules by their paths, as a pattern writes them.

    Raises:
        InputError: a pattern matches nothing.
    """
    prefix = getattr(model, "base_model_prefix", "")
    has_prefix = bool(prefix) and hasattr(model, prefix)
    found: dict[str, nn.Module] = {}
    matched: set[str] = set()
    paths = {}
    for path, module in model.named_modules():
        if not path or isinstance(module, nn.ModuleList | nn.ModuleDict):
            continue
        names = [path] if has_prefix or not prefix else [path, f"{prefix}.{path}"]
        paths.update(dict.fromkeys(names))
        hits = [(pattern, name) for pattern in patterns for name in names if _regex(pattern).fullmatch(name)]
        if hits:
            found[hits[0][1]] = module
            matched.update(pattern for pattern, _ in hits)
    if missing := [pattern for pattern in patterns if pattern not in matched]:
        near = difflib.get_close_matches(missing[0].replace("*", "0"), paths, n=3, cutoff=0)
        raise InputError(
            f"modules: {missing[0]!r} matches no module of {type(model).__name__}; paths are such as {', '.join(near)}"
        )
    return found


def _regex(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*|\*|\?)", pattern)
    words = {"**": ".*", "*": r"[^.]*", "?": r"[^.]"}
    return re.compile("".join(words.get(part, re.escape(part)) for part in parts))
