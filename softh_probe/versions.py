"""Versions of the packages on which numbers depend."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

VERSIONS_OF = ("softh-probe", "torch", "transformers", "tokenizers", "datasets", "safetensors", "numpy")


@cache
def version_of(name: str) -> str:
    """Read the version of an installed package from its files.

    Raises:
        PackageNotFoundError: it is not installed.
    """
    return version(name)


def versions() -> dict[str, str]:
    """List the versions of Python and of these packages, as far as they are installed."""
    found = {}
    for name in VERSIONS_OF:
        try:
            found[name] = version_of(name)
        except PackageNotFoundError:  # attached probes need few of them
            continue
    return found | {"python": platform.python_version()}
