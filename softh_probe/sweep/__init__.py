"""Many checkpoints x one corpus: the grid, the launcher, the workers, the table of all."""

from softh_probe.sweep.collection import collect
from softh_probe.sweep.config import SweepConfig
from softh_probe.sweep.launcher import sweep

__all__ = ["SweepConfig", "collect", "sweep"]
