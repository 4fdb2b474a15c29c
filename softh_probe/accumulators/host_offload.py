"""Label tables in host memory, filled by a background thread while the accelerator computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from softh_probe.accumulators.dispatch import Dispatch
from softh_probe.accumulators.label_tables import LabelTables, add_bags


class HostWorker:
    """Add batches to tables in host memory while the accelerator computes: one thread, first in, first out.

    Args:
        most_bytes: sums that may wait to be added; beyond them `add` blocks.
    """

    def __init__(self, most_bytes: int = 2**30) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="softh_probe-host")
        self._waiting: deque[tuple[Future[None], int]] = deque()
        self._most_bytes = most_bytes
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def add(self, tables: LabelTables, bags: Sequence[Tensor], labels: Dispatch) -> None:
        """Add a batch to tables in host memory; copy its sums there without waiting for the device.

        Args:
            tables: of one layer.
            bags, labels: as `add_bags` takes them, the sums on the device.
        """
        size = sum(block.nbytes for block in bags)
        while sum(waiting for _, waiting in self._waiting) + size > self._most_bytes and self._waiting:
            self._waiting.popleft()[0].result()
        on_host, copied = self._copy(bags)

        def work() -> None:
            if copied is not None:
                copied.synchronize()
            add_bags([tables], on_host, labels)

        self._waiting.append((self._thread.submit(work), size))

    def finish(self) -> None:
        """Wait until everything is added; raise the first error."""
        while self._waiting:
            self._waiting.popleft()[0].result()

    def _copy(self, bags: Sequence[Tensor]) -> tuple[list[Tensor], torch.cuda.Event | None]:
        """Copy sums to host memory; the event fires when they have arrived."""
        device = bags[0].device
        if device.type != "cuda":
            return [block.cpu() for block in bags], None
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        stream = self._streams[device]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            on_host = [block.to("cpu", non_blocking=True) for block in bags]
            for block in bags:
                block.record_stream(stream)  # its memory is not given to others before the copy is done
            copied = torch.cuda.Event()
            copied.record(stream)
        return on_host, copied
