"""Run one checkpoint on one corpus: from a configuration to a folder of results."""

from softh_probe.run.pipeline import run

__all__ = ["run"]
