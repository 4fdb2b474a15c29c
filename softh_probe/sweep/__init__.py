"""Many checkpoints x one corpus: the grid, the launcher, the workers, the table of all checkpoints."""

from typing import TYPE_CHECKING

from softh_probe.lazy_names import lazy_getattr

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
    __getattr__ = lazy_getattr(__name__, _MODULES)  # `status` and `--help` need neither launcher nor workers


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
