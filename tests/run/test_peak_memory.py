"""Peaks of memory are a process's own, and begin anew."""

import subprocess
import sys
from pathlib import Path

import pytest

from softh_probe.run.peak_memory import peak_memory_gib, reset_peak_memory


def host_peak() -> float:
    return peak_memory_gib()["host"]


def test_memory_that_is_held_counts():
    before = host_peak()
    held = bytearray(b"1") * (int(before * 2**30) + 2**28)
    assert host_peak() > before + 0.2
    del held


def test_the_peak_of_the_process_that_started_this_one_does_not_count():
    held = bytearray(b"1") * 2**31
    code = "from softh_probe.run.peak_memory import peak_memory_gib; print(peak_memory_gib()['host'])"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    del held
    assert 0.1 < float(process.stdout) < 1.5


def test_a_peak_begins_anew():
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        pytest.skip(f"this system cannot reset it: {error}")
    held = bytearray(b"1") * 2**28
    peak = host_peak()
    del held
    reset_peak_memory()
    assert host_peak() < peak - 0.2
