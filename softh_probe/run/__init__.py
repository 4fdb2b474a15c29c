"""Run one checkpoint on one corpus: from a configuration to a folder of results."""

from typing import TYPE_CHECKING

from softh_probe.lazy_names import lazy_getattr

if TYPE_CHECKING:
    from softh_probe.run.pipeline import run

__all__ = ["run"]

if not TYPE_CHECKING:  # a type checker would take any name to exist
    # The launcher of a sweep needs modules of this room alone.
    __getattr__ = lazy_getattr(__name__, {"run": "softh_probe.run.pipeline"})


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
