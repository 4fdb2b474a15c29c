"""Find the modules whose code is running, to tell a model's own forward passes from those of others."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator

from torch import nn

_METHODS = ("_call_impl", "forward", "generate")


def modules_that_run() -> Iterator[nn.Module]:
    """Give the modules whose methods called this function, the innermost first."""
    frame = inspect.currentframe()
    while frame is not None:
        code = frame.f_code
        if code.co_name in _METHODS and code.co_argcount and code.co_varnames[0] == "self":
            module = frame.f_locals.get("self")
            if isinstance(module, nn.Module):
                yield module
        frame = frame.f_back


def is_run_by_another(model: nn.Module, parts: Collection[int], entry: nn.Module) -> bool:
    """Whether a module is run for another model, which shares it.

    Args:
        model: the model that the module is a part of.
        parts: ids of the model's modules.
        entry: the module.
    """
    for module in modules_that_run():
        if id(module) not in parts:
            inside = {id(part) for part in module.modules()}
            if id(entry) in inside and id(model) not in inside:
                return True
    return False
