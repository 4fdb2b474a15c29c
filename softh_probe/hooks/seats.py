"""Places of modules in a model, to see that no other module was put there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, kw_only=True)
class Seat:
    """The place of a module in the module that holds it.

    Attributes:
        name: its name in the model.
        parent: the module that holds it.
        key: its name there.
        module: the module.
    """

    name: str
    parent: nn.Module
    key: str
    module: nn.Module

    @property
    def is_taken(self) -> bool:
        """Whether the module still is there."""
        return getattr(self.parent, self.key, None) is self.module


def seats_of(model: nn.Module, modules: Iterable[nn.Module]) -> list[Seat]:
    """Find the places of modules in a model; those that are not in it have none."""
    wanted = {id(module) for module in modules}
    return [
        Seat(name=f"{path}.{key}".lstrip("."), parent=parent, key=key, module=child)
        for path, parent in model.named_modules()
        for key, child in parent.named_children()
        if id(child) in wanted
    ]
