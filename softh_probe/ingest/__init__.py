"""Hidden states that others stored: layouts of files, their listing, and the measurement from a folder to results."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from softh_probe.ingest.config import IngestConfig
    from softh_probe.ingest.pipeline import ingest

__all__ = ["IngestConfig", "ingest"]

_MODULES = {"IngestConfig": "softh_probe.ingest.config", "ingest": "softh_probe.ingest.pipeline"}

if not TYPE_CHECKING:  # a type checker would take any name to exist

    def __getattr__(name: str) -> Any:
        """Import a public name on first use (PEP 562): `--help` needs no torch."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = globals()[name] = getattr(import_module(_MODULES[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
