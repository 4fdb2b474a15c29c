"""Processes that measure one run together, as torchrun and accelerate launch start them.

    torchrun --nproc-per-node 8 --no-python softh-probe run --config run.yaml
    accelerate launch --multi_gpu --num_processes 8 -m softh_probe.cli run --config run.yaml

Each process loads the model on the accelerator of its local rank and measures every eighth batch. With
`tensor_parallel`, neighbours hold one model between them and run it on the same batches; the first of them measures.
The first process tokenises before the others begin, adds up the sums of all, and alone writes results and log lines.
Each process that measures writes its own snapshots, from which the same command resumes. From Python:

    with launched() as processes:
        result = run(config, processes=processes)  # the same in every process

A process that fails reports why and ends; the launcher then stops the others, and those that wait for it end by
themselves.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
_LOST = "another process of this run has ended; its own error line says why"
#: Errors of gloo and of accelerators' collectives.
_OF_SOCKETS = re.compile(r"gloo|Connection (closed|reset)|[NRX]CCL|ProcessGroup")


@dataclass(frozen=True, kw_only=True)
class Processes:
    """The processes of one run, seen from one of them.

    Attributes:
        rank, count: number of this process, from 0, and number of all.
        local_rank, local_count: the same among the processes of this machine.
        group: their gloo process group; None where this process is alone.
        per_model: processes that hold one model between them: neighbours, of whom the first one measures.
        of_model: the gloo process group of those that hold one model with this process; None where it holds one alone.
        measuring: the gloo process group of the first process of each model, as `group` where each process holds one.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1
    group: Any = None
    per_model: int = 1
    of_model: Any = None
    measuring: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this process tokenises first and writes the results."""
        return self.rank == 0

    @property
    def share(self) -> int:
        """Number of this process's share of the batches, from 0: that of its model."""
        return self.rank // self.per_model

    @property
    def n_shares(self) -> int:
        """Number of models, each of which runs on a share of the batches."""
        return self.count // self.per_model

    @property
    def measures(self) -> bool:
        """Whether this process adds up sums, as the first one of its model."""
        return self.rank % self.per_model == 0

    @property
    def n_measuring_here(self) -> int:
        """Number of processes of this machine that add up sums."""
        return max(1, self.local_count // self.per_model)

    def with_models_of(self, size: int) -> Processes:
        """Let neighbours hold one model between them; every process has to call this.

        Args:
            size: processes that hold one model.

        Raises:
            InputError: the number of processes is no multiple of it.
        """
        if size == self.per_model:
            return self
        if self.count % size:
            here = "a single process" if self.count == 1 else f"{self.count} processes"
            raise InputError(
                f"tensor_parallel: {size} processes hold a model between them, and this is a run of {here}; start a "
                f"multiple of {size} (torchrun --nproc-per-node {size} --no-python softh-probe run …), or leave it at 1"
            )
        of_model, _ = dist.new_subgroups(size, backend="gloo", timeout=BARRIER_TIMEOUT)
        first_ones = list(range(0, self.count, size))
        measuring = dist.new_group(first_ones, backend="gloo", timeout=BARRIER_TIMEOUT)
        return replace(self, per_model=size, of_model=of_model, measuring=measuring)

    def describe_sharing(self) -> str:
        """Phrase, for a log line, among how many processes the work is shared; empty for one."""
        if self.per_model > 1:
            models = f"shared among {self.n_shares} models" if self.n_shares > 1 else "on one model"
            return f", {models} of {self.per_model} processes{' each' * (self.n_shares > 1)}"
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
        return _first_of(self.group, value) if self.count > 1 else value

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

    def agree_in_model(self, value: Any) -> Any:
        """Take a value from the first of the processes that hold this one's model; each of them has to call this."""
        return _first_of(self.of_model, value) if self.per_model > 1 else value

    def gather_in_model(self, value: Any) -> list[Any]:
        """Collect the values of the processes that hold this one's model, in their order, in each of them."""
        found = [value] * self.per_model
        if self.per_model > 1:
            with _as_lost_process():
                dist.all_gather_object(found, value, group=self.of_model)
        return found

    def agree_on_progress(self, batches: int) -> None:
        """Check that all processes of this one's model go on after the same batch.

        Raises:
            InputError: they found different snapshots.
        """
        if len(found := set(self.gather_in_model(batches))) > 1:
            raise InputError(
                f"out: processes of one model found snapshots of {' and '.join(map(str, sorted(found)))} batches; "
                "name a folder that all of them see, or add --no-resume to start anew"
            )

    def stop_together(self, signal: int | None) -> int | None:
        """Find whether any process of this one's model was asked to stop; each of them has to call this.

        Args:
            signal: the number of the signal that asked this process.
        """
        if self.per_model == 1:
            return signal
        asked = torch.tensor(signal or 0)
        with _as_lost_process():
            dist.all_reduce(asked, dist.ReduceOp.MAX, group=self.of_model)
        return int(asked) or None

    def add_others(self, tensor: torch.Tensor) -> None:
        """Add up a tensor in host memory over the processes that measure, in place in the first; else undefined."""
        if self.n_shares > 1:
            with _as_lost_process():
                dist.reduce(tensor, group=self.measuring, group_dst=0)

    def add_all(self, tensor: torch.Tensor) -> None:
        """Add up a tensor in host memory over the processes that measure, in place in each of them."""
        if self.n_shares > 1:
            with _as_lost_process():
                dist.all_reduce(tensor, group=self.measuring)

    def send_to_first(self, value: Any) -> None:
        """Send a value from a process that measures to the first one, which has to `receive` it."""
        with _as_lost_process():
            dist.send_object_list([value], group=self.measuring, group_dst=0)

    def receive(self, share: int) -> Any:
        """Receive, in the first process, the next value of the process that measures the share of this number."""
        found = [None]
        with _as_lost_process():
            dist.recv_object_list(found, group=self.measuring, group_src=share)
        return found[0]


ALONE = Processes()


def merge_into_first(probe: SoftEntropyProbe, processes: Processes) -> None:
    """Merge the probes of all processes that measure into that of the first, in the order of their numbers.

    A process is sent layer by layer, so that the first one holds the sums of at most one other process at a time.
    """
    for share in range(1, processes.n_shares):
        if processes.measures and processes.share == share:
            head, layers = probe.state_parts()
            processes.send_to_first(head)
            for layer, state in layers:
                on_host = {name: v.cpu() if isinstance(v, torch.Tensor) else v for name, v in state.items()}
                processes.send_to_first((layer, on_host))
            processes.send_to_first(None)
        elif processes.is_first:
            state, received = {**processes.receive(share), "layers": {}}, processes.receive(share)
            while received is not None:
                layer, sums = received
                state["layers"][layer] = sums
                received = processes.receive(share)
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
        part = "the whole model" if processes.per_model == 1 else "its part of a model"
        raise InputError(
            f"device_map {device_map!r}: each of {processes.count} processes loads {part}; leave it out, or run a "
            "single process"
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
    everyone = dist.new_group(backend="gloo", timeout=BARRIER_TIMEOUT)
    processes = Processes(
        rank=rank,
        count=count,
        local_rank=int(os.environ.get("LOCAL_RANK", rank)),
        local_count=int(os.environ.get("LOCAL_WORLD_SIZE", count)),
        group=everyone,
        measuring=everyone,
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
def running_together(processes: Processes) -> Iterator[None]:
    """Turn errors of a model that waits in vain for another process that holds it into `LostProcessError`."""
    try:
        yield
    except RuntimeError as error:
        if processes.per_model == 1 or not _OF_SOCKETS.search(str(error)):
            raise
        raise LostProcessError(_LOST) from error


def _first_of(group: Any, value: Any) -> Any:
    """Give the value of the first process of a group to all of it; each of them has to call this."""
    found = [value]
    with _as_lost_process():
        dist.broadcast_object_list(found, group=group, group_src=0)
    return found[0]


@contextmanager
def _as_lost_process() -> Iterator[None]:
    """Turn gloo's errors, which speak of sockets, into `LostProcessError`."""
    try:
        yield
    except RuntimeError as error:
        raise LostProcessError(_LOST) from error
