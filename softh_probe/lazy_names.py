"""Public names of a package that are imported on first use (PEP 562): torch and transformers take seconds to import."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_getattr(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Make the `__getattr__` of a package.

    >>> lazy_getattr("softh_probe.run", {"run": "softh_probe.run.pipeline"})("stop")
    Traceback (most recent call last):
    AttributeError: module 'softh_probe.run' has no attribute 'stop'

    Args:
        package: its name.
        modules: the module of each public name.
    """

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(modules[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return get
