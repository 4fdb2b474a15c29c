"""Merge the probes of several processes, each of which measures its share of the documents.

In a script that `torchrun --nproc-per-node 8 evaluate.py` starts:

    with probe:
        evaluate(model, documents[rank::world_size])
    everything = gather(probe)
    if rank == 0:
        everything.result().save("out")
"""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed as dist

from softh_probe.errors import ProbeError
from softh_probe.probe import SoftEntropyProbe


def gather(probe: SoftEntropyProbe, group: dist.ProcessGroup | None = None) -> SoftEntropyProbe:
    """Merge the probes of all processes into a new probe, which is the same in every process.

    Every process of the group has to call this, even without documents. The states are broadcast one after the other,
    so that each process holds the labels of at most one other process at a time. Without process groups, the new probe
    is a copy of this one.

    Args:
        probe: the probe of this process; it is not changed and can continue to measure.
        group: the process group; None for all processes.

    Returns:
        A probe with the sums of all processes.

    Raises:
        ProbeError: a measurement failed in any process; raised in all of them.
        InputError: the probes have different settings, or belong to planned runs.
    """
    everything = probe.new_like()
    world = dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1
    problems = []
    for rank in range(world):
        sent: list[Any] = [None]
        if world == 1 or dist.get_rank(group) == rank:
            sent = [_sendable(probe)]
        if world > 1:
            dist.broadcast_object_list(sent, group=group, group_src=rank)
        problem, state = sent[0]
        if problem:
            problems.append(problem if world == 1 else f"process {rank}: {problem}")
            continue
        part = probe.new_like()
        part.load_state_dict(state)
        everything.merge(part)
    if problems:
        raise ProbeError("; ".join(problems))
    return everything


def _sendable(probe: SoftEntropyProbe) -> tuple[str | None, Any]:
    """Return an error message and None, or None and the probe's state in host memory."""
    try:
        probe.check()
    except ProbeError as problem:
        return str(problem), None
    return None, _on_host(probe.state_dict())


def _on_host(state: Any) -> Any:
    """Copy all tensors of a nested state to host memory."""
    if isinstance(state, torch.Tensor):
        return state.cpu()
    if isinstance(state, dict):
        return {name: _on_host(value) for name, value in state.items()}
    return [_on_host(value) for value in state] if isinstance(state, list) else state
