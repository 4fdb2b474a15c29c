"""Processes that measure one run together, as torchrun and accelerate launch start them.

    torchrun --nproc-per-node 8 --no-python softh-probe run --config run.yaml
    accelerate launch --multi_gpu --num_processes 8 -m softh_probe.cli run --config run.yaml

Each process loads the model on the accelerator of its local rank and measures every eighth batch. The first process
tokenises before the others begin, adds up the sums of all, and alone writes results and log lines. Each process writes
its own snapshots, from which the same command resumes. From Python:

    with launched() as processes:
        result = run(config, processes=processes)  # the same in every process

A process that fails reports why and ends; the launcher then stops the others, and those that wait for it end by
themselves.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed as dist

from softh_probe.errors import InputError, Interrupted, LostProcessError, SofthProbeError
from softh_probe.models.placement import SPREAD, accelerator
from softh_probe.probe import SoftEntropyProbe
from softh_probe.redaction import LOGGER

#: Environment variables that the launchers set in each process.
LAUNCHER_VARS = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
#: Longer than any wait for the first process to tokenise, or for the last one to finish its share.
BARRIER_TIMEOUT = timedelta(days=30)


@dataclass(frozen=True, kw_only=True)
class Processes:
    """The processes of one run, seen from one of them.

    Attributes:
        rank, count: number of this process, from 0, and number of all.
        local_rank, local_count: the same among the processes of this machine.
        group: their gloo process group; None where this process is alone.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1
    group: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this process tokenises first and writes the results."""
        return self.rank == 0

    def describe_sharing(self) -> str:
        """Phrase, for a log line, among how many processes the work is shared; empty for one."""
        return f", shared among {self.count} processes" if self.count > 1 else ""

    @contextmanager
    def first_ahead(self) -> Iterator[None]:
        """Let the first process pass the block alone, and the others after it."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()

    def wait(self) -> None:
        """Wait until all processes have called this."""
        if self.count > 1:
            with _as_lost_process():
                dist.barrier(group=self.group)

    def from_first(self, value: Any) -> Any:
        """Send the first process's value to every process."""
        if self.count > 1:
            found = [value]
            with _as_lost_process():
                dist.broadcast_object_list(found, group=self.group, group_src=0)
            (value,) = found
        return value

    def agree(self, what: Mapping[str, Any]) -> None:
        """Check that all processes have the same values.

        Raises:
            InputError: in each process whose values differ from the first one's.
        """
        first = self.from_first(dict(what))
        if differing := [name for name in first if what.get(name) != first[name]]:
            raise InputError(
                f"{', '.join(differing)}: not the same as in the first process; give all processes the same "
                "configuration, data and weights"
            )
        self.wait()

    def add_others(self, tensor: torch.Tensor) -> None:
        """Add up a tensor in host memory over all processes, in place in the first one; undefined in the others."""
        if self.count > 1:
            with _as_lost_process():
                dist.reduce(tensor, group=self.group, group_dst=0)

    def add_all(self, tensor: torch.Tensor) -> None:
        """Add up a tensor in host memory over all processes, in place in each of them."""
        if self.count > 1:
            with _as_lost_process():
                dist.all_reduce(tensor, group=self.group)

    def send_to_first(self, value: Any) -> None:
        """Send a value to the first process, which has to `receive` it."""
        with _as_lost_process():
            dist.send_object_list([value], group=self.group, group_dst=0)

    def receive(self, rank: int) -> Any:
        """Receive, in the first process, the next value that a process of this number sends."""
        found = [None]
        with _as_lost_process():
            dist.recv_object_list(found, group=self.group, group_src=rank)
        return found[0]


ALONE = Processes()


def merge_into_first(probe: SoftEntropyProbe, processes: Processes) -> None:
    """Merge the probes of all processes into that of the first, in the order of their numbers.

    A process is sent layer by layer, so that the first one holds the sums of at most one other process at a time.
    """
    for rank in range(1, processes.count):
        if processes.rank == rank:
            head, layers = probe.state_parts()
            processes.send_to_first(head)
            for layer, state in layers:
                on_host = {name: v.cpu() if isinstance(v, torch.Tensor) else v for name, v in state.items()}
                processes.send_to_first((layer, on_host))
            processes.send_to_first(None)
        elif processes.is_first:
            state, received = {**processes.receive(rank), "layers": {}}, processes.receive(rank)
            while received is not None:
                layer, sums = received
                state["layers"][layer] = sums
                received = processes.receive(rank)
            part = probe.new_like()
            part.load_state_dict(state)
            probe.merge(part)


def own_device(device_map: str | None, processes: Processes) -> str | None:
    """Choose the device of one of several processes: by default the accelerator of its local rank.

    Raises:
        InputError: the model would be spread over devices by each process, or there are too few accelerators.
    """
    if processes.count == 1:
        return device_map
    if device_map in SPREAD:
        raise InputError(
            f"device_map {device_map!r}: each of {processes.count} processes loads the whole model; leave it out, or "
            "run a single process"
        )
    kind = accelerator()
    if device_map not in (None, kind) or kind in (None, "mps"):
        return device_map
    if processes.local_count > (n := torch.accelerator.device_count()):
        raise InputError(
            f"device_map: {processes.local_count} processes on this machine, and {n} accelerators; start as many as "
            "there are, or add --device-map cpu"
        )
    return f"{kind}:{processes.local_rank}"


@contextmanager
def launched() -> Iterator[Processes]:
    """Join the processes that torchrun or accelerate launch started with this one; this one alone if neither did.

    In a process that is not the first, errors name the process, log lines below ERROR are dropped, and `Interrupted`
    and `LostProcessError` end the process silently: the first one reports them.
    """
    variables = {name: os.environ.get(name) for name in LAUNCHER_VARS}
    if not all(variables.values()) or variables["WORLD_SIZE"] == "1":
        yield ALONE
        return
    if not dist.is_available() or not dist.is_gloo_available():
        raise InputError("several processes need a torch that was built with gloo; run a single one")
    created = not dist.is_initialized()
    if created:
        dist.init_process_group("gloo", timeout=BARRIER_TIMEOUT)
    rank, count = dist.get_rank(), dist.get_world_size()
    processes = Processes(
        rank=rank,
        count=count,
        local_rank=int(os.environ.get("LOCAL_RANK", rank)),
        local_count=int(os.environ.get("LOCAL_WORLD_SIZE", count)),
        group=dist.new_group(backend="gloo", timeout=BARRIER_TIMEOUT),
    )
    log_level = LOGGER.level
    if rank:
        LOGGER.setLevel(logging.ERROR)
    try:
        yield processes
    except (Interrupted, LostProcessError) as error:
        if processes.is_first:
            raise
        raise SystemExit(128 + error.signal if isinstance(error, Interrupted) else 1) from error
    except SofthProbeError as error:
        raise type(error)(f"process {rank} of {count}: {error}" if rank else str(error)) from error
    finally:
        LOGGER.setLevel(log_level)
        if created:
            dist.destroy_process_group()


@contextmanager
def _as_lost_process() -> Iterator[None]:
    """Turn gloo's errors, which speak of sockets, into `LostProcessError`."""
    try:
        yield
    except RuntimeError as error:
        raise LostProcessError("another process of this run has ended; its own error line says why") from error
