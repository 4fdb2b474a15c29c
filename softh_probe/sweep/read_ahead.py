"""Read the weights of the checkpoint that is next while another one is measured, so that they lie in memory then.

The system keeps what was read of files as long as nobody else needs the memory. Nothing of it is in a result.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Sequence
from pathlib import Path

import psutil

from softh_probe.errors import SofthProbeError
from softh_probe.models.source import resolve_model, weight_paths
from softh_probe.sweep.config import SweepConfig
from softh_probe.sweep.grid import GridPoint

#: Free memory that has to be there, in sizes of the weights: they are in it twice while they are loaded.
ROOM = 2
_BLOCK = 1 << 20

logger = logging.getLogger(__name__)


def read_ahead(config: SweepConfig, point: GridPoint) -> int:
    """Read a checkpoint's weight files, if there is room for them in memory.

    Args:
        config: the sweep.
        point: a checkpoint that is on this machine's disk; of one that is not, nothing is read.

    Returns:
        The bytes that were read.
    """
    try:
        source = resolve_model(point.source, revision=point.revision)
        files = weight_paths(source, variant=(config.model_kwargs or {}).get("variant"))
        return _read(files)
    except (OSError, SofthProbeError):  # its measurement says why
        return 0


def read_ahead_in_thread(config: SweepConfig, point: GridPoint) -> None:
    """Do so beside what this process does; the thread ends with it."""
    threading.Thread(target=read_ahead, args=(config, point), daemon=True, name="read ahead").start()


def has_room(n_bytes: int) -> bool:
    """Test whether weights of so many bytes may be read into memory that nobody needs."""
    return bool(psutil.virtual_memory().available >= ROOM * n_bytes)


def _read(files: Sequence[Path]) -> int:
    left = sum(file.stat().st_size for file in files)
    block, total = bytearray(_BLOCK), 0
    for file in files:
        with contextlib.suppress(FileNotFoundError), file.open("rb", buffering=0) as stream:
            while has_room(left) and (n := stream.readinto(block)):
                total, left = total + n, left - n
    return total
