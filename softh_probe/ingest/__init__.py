"""Hidden states that others stored: layouts of files, their listing, and the measurement from a folder to results."""

from typing import TYPE_CHECKING

from softh_probe.lazy_names import lazy_getattr

if TYPE_CHECKING:
    from softh_probe.ingest.config import IngestConfig
    from softh_probe.ingest.pipeline import ingest

__all__ = ["IngestConfig", "ingest"]

_MODULES = {"IngestConfig": "softh_probe.ingest.config", "ingest": "softh_probe.ingest.pipeline"}

if not TYPE_CHECKING:  # a type checker would take any name to exist
    __getattr__ = lazy_getattr(__name__, _MODULES)  # `--help` needs no torch


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
