"""Peak memory of this process, on the host and on each accelerator."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

import torch


def peak_memory_gib() -> dict[str, float]:
    """Read the peak memory of this process since its start, or since `reset_peak_memory`, in GiB.

    Returns:
        `host`, and `cuda:0` etc. for memory that torch has allocated.
    """
    peak = {"host": _host_bytes() / 2**30}
    for index in range(torch.cuda.device_count()):
        peak[f"cuda:{index}"] = torch.cuda.max_memory_allocated(index) / 2**30
    return peak


def reset_peak_memory() -> None:
    """Let peaks begin anew; that of the host only where the system can (Linux, mostly)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    for index in range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0):
        torch.cuda.reset_peak_memory_stats(index)


def _host_bytes() -> int:
    # On Linux, what getrusage tells includes the peak of the process that started this one.
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
