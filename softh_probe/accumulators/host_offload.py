"""Label tables in host memory, filled by a background thread while the accelerator computes."""

from __future__ import annotations

from collections import deque
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

    def add(self, tables: LabelTables, bags_LK: Tensor, labels: Dispatch) -> None:
        """Add a batch to tables in host memory; copy its sums there without waiting for the device."""
        while sum(size for _, size in self._waiting) + bags_LK.nbytes > self._most_bytes and self._waiting:
            self._waiting.popleft()[0].result()
        bags, copied = self._copy(bags_LK)

        def work() -> None:
            if copied is not None:
                copied.synchronize()
            add_bags([tables], bags.unsqueeze(0), labels)

        self._waiting.append((self._thread.submit(work), bags_LK.nbytes))

    def finish(self) -> None:
        """Wait until everything is added; raise the first error."""
        while self._waiting:
            self._waiting.popleft()[0].result()

    def _copy(self, bags: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
        """Copy sums to host memory; the event fires when they have arrived."""
        if bags.device.type != "cuda":
            return bags.cpu(), None
        if bags.device not in self._streams:
            self._streams[bags.device] = torch.cuda.Stream(bags.device)
        stream = self._streams[bags.device]
        stream.wait_stream(torch.cuda.current_stream(bags.device))
        with torch.cuda.stream(stream):
            on_host = bags.to("cpu", non_blocking=True)
            bags.record_stream(stream)  # its memory is not given to others before the copy is done
            copied = torch.cuda.Event()
            copied.record(stream)
        return on_host, copied
