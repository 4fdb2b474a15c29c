"""The status of a sweep as text: how many checkpoints are done, running, failed and waiting, which and why."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from softh_probe.durations import duration
from softh_probe.errors import InputError
from softh_probe.sweep.folder import DONE, FAILED, RUNNING, WAITING, CheckpointStatus, SweepFolder
from softh_probe.sweep.grid import GridPoint

#: Names of a list that are shown.
MOST_NAMES = 20


def status(out: str | Path) -> str:
    """Describe the checkpoints of a sweep.

    Raises:
        InputError: the folder holds no sweep.
    """
    folder = SweepFolder(out)
    if not folder.is_sweep():
        raise InputError(f"{folder.path}: holds no sweep; expected the output folder of `softh-probe sweep`")
    states = folder.states(folder.known_points())
    scores = folder.scores.describe(point.folder for point in states)
    return "\n".join([count_states(states), *filter(None, [scores]), *describe_states(states)])


def count_states(states: Mapping[GridPoint, CheckpointStatus]) -> str:
    """Count the checkpoints of each status."""
    counts = {s: sum(state.status == s for state in states.values()) for s in (DONE, RUNNING, FAILED, WAITING)}
    return ", ".join(f"{n} {status}" for status, n in counts.items())


def describe_states(states: Mapping[GridPoint, CheckpointStatus]) -> list[str]:
    """List the running checkpoints with their workers, the failed ones with their reasons, and the waiting ones."""
    lines = []
    for point, state in states.items():
        if state.status == RUNNING and state.owner:
            job = f", Slurm job {state.owner['task']}" if state.owner.get("task") else ""
            where = f"process {state.owner['processes'][0][0]} on {state.owner['host']}{job}"
            lines.append(f"running  {point.checkpoint}: for {duration(time.time() - state.owner['since'])}, {where}")
    for point, state in states.items():
        if state.status == FAILED and state.failure:
            lines.append(f"failed   {point.checkpoint}: {state.failure.reason} (log: {state.failure.log})")
    waiting = [(point, state.failure) for point, state in states.items() if state.status == WAITING]
    for point, failure in waiting:
        if failure:
            lines.append(f"waiting  {point.checkpoint}: to be tried again after: {failure.reason} (log: {failure.log})")
    if fresh := [point.checkpoint for point, failure in waiting if not failure]:
        more = f" and {len(fresh) - MOST_NAMES} more" if len(fresh) > MOST_NAMES else ""
        lines.append(f"waiting  {', '.join(fresh[:MOST_NAMES])}{more}")
    return lines
