"""Run one checkpoint on one corpus: from a configuration to a folder of results."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from softh_probe.run.pipeline import run

__all__ = ["run"]

if not TYPE_CHECKING:  # a type checker would take any name to exist

    def __getattr__(name: str) -> Any:
        """Import `run` on first use (PEP 562): the launcher of a sweep needs modules of this room alone."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from softh_probe.run.pipeline import run

        globals()[name] = run
        return run


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
