"""Many checkpoints x one corpus: the grid, the launcher, the workers, the table of all checkpoints."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from softh_probe.sweep.collection import collect
    from softh_probe.sweep.config import SweepConfig
    from softh_probe.sweep.launcher import sweep

__all__ = ["SweepConfig", "collect", "sweep"]

_MODULES = {
    "SweepConfig": "softh_probe.sweep.config",
    "collect": "softh_probe.sweep.collection",
    "sweep": "softh_probe.sweep.launcher",
}

if not TYPE_CHECKING:  # a type checker would take any name to exist

    def __getattr__(name: str) -> Any:
        """Import a public name on first use (PEP 562): `status` and `--help` need neither launcher nor workers."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = globals()[name] = getattr(import_module(_MODULES[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
