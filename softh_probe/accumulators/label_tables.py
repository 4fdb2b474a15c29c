"""The label tables of one layer: rows of sums, one a label, and what remains of labels that are over.

Shape suffixes: G layers, S anchor sets, M anchors, L labels, K = S·M + S + 1 columns of a row of sums:

    [ mass of each anchor (S·M) | sum of the positions' own assignment entropies (S) | number of positions (1) ]
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from softh_probe.accumulators.dispatch import Dispatch, MergeMap

_ROWS_AT_ONCE = 65536
_SMALL = 2**28  # bytes of a table


class LabelTables:
    """Rows of sums of one layer's labels, on one device.

        kept    [n_kept, K]     float64  labels whose rows are wanted at the end
        open    [n_live, K]     float32  labels that occurred and will, or may, occur again
        folded  [n_buckets, 2S] float64  of labels that are over, pooled: Σ n·H(p̂_x), Σ of assignment entropies

    Args:
        shape: (S, M).
        n_kept, n_live, n_buckets: rows to begin with; kept and open ones grow as batches ask for more.
    """

    STATE = ("kept", "open", "folded")

    def __init__(
        self, shape: tuple[int, int], device: torch.device, *, n_kept: int = 0, n_live: int = 0, n_buckets: int = 0
    ) -> None:
        self.n_sets, self.n_anchors = shape
        self.device = device
        n_columns = columns(*shape)
        # Tensors made in inference mode could not be updated outside of it later.
        with torch.inference_mode(False):
            self.kept = torch.zeros(n_kept, n_columns, dtype=torch.float64, device=device)
            self.open = torch.zeros(n_live, n_columns, dtype=torch.float32, device=device)
            self.folded = torch.zeros(n_buckets, 2 * self.n_sets, dtype=torch.float64, device=device)
        self._longer: dict[str, Tensor] = {}  # what tables that grew are the first rows of

    @torch.no_grad()
    def retire(self, rows: Tensor, buckets: Tensor) -> None:
        """Fold the open rows of labels that are over into their buckets, and empty them."""
        remains = _remains(self.take(rows), self.n_sets, self.n_anchors)
        self.folded.index_add_(0, buckets, remains)

    def take(self, rows: Tensor) -> Tensor:
        """Open rows, which are given back: they are zero from now on."""
        taken_LK = self.open.index_select(0, rows)
        self.open.index_fill_(0, rows, 0.0)
        return taken_LK

    def merge(self, other: LabelTables, rows: MergeMap) -> None:
        """Add another part's tables."""
        self.folded += other.folded.to(self.folded)
        self.grow("kept", _end(rows.kept_rows))
        self.grow("open", max(_end(rows.to_rows), _end(rows.taken_rows)))
        _add_rows(self.kept, rows.kept_rows, other.kept, torch.arange(len(rows.kept_rows)))
        _add_rows(self.open, rows.taken_rows, self.open, rows.left_rows)
        _add_rows(self.open, rows.to_rows, other.open, rows.from_rows)

    def grow(self, name: str, n_rows: int) -> None:
        """Give a table so many rows, if it has fewer; new ones are zero.

        They are the next ones of a longer table made before, else of a new one. On a CPU that is a far longer one as
        long as the table is small, for memory that nobody has touched costs nothing there.
        """
        table = getattr(self, name)
        n_old, n_columns = table.shape
        if n_rows <= n_old:
            return
        with torch.inference_mode(False):
            longer = self._longer.get(name)
            if longer is None or longer.data_ptr() != table.data_ptr() or len(longer) < n_rows:
                times = 8 if table.device.type == "cpu" and table.nbytes < _SMALL else 2
                longer = table.new_empty(max(n_rows, times * n_old), n_columns)
                longer[:n_old] = table
                self._longer[name] = longer
            longer[n_old:n_rows] = 0.0
            setattr(self, name, longer[:n_rows])


@torch.inference_mode()  # the bags may come from such, and are changed in place
def add_bags(tables: Sequence[LabelTables], bags_GLK: Tensor, labels: Dispatch) -> None:
    """Add one batch to the tables of several layers of one device.

    Args:
        bags_GLK: of each layer the sums of each bag of the batch, in the order of its labels; they are used up.
    """
    n_kept, n_live, n_ending = len(labels.kept_rows), len(labels.live_rows), len(labels.ending_rows)
    ended_GLK = bags_GLK[:, n_kept + n_live :]
    for table, bags_LK, ended_LK in zip(tables, bags_GLK, ended_GLK, strict=True):
        if n_kept:
            table.grow("kept", labels.n_kept)
            table.kept.index_add_(0, labels.kept_rows, bags_LK[:n_kept].double())
        if n_live:
            table.grow("open", labels.n_live)
            if labels.left_rows is not None and labels.taken_rows is not None:
                table.open.index_add_(0, labels.taken_rows, table.open[labels.left_rows])
            table.open.index_add_(0, labels.live_rows, bags_LK[n_kept : n_kept + n_live])
        if n_ending:
            ended_LK[:n_ending] += table.take(labels.ending_rows)
    if ended_GLK.shape[1]:
        remains_GL2S = _remains(ended_GLK, tables[0].n_sets, tables[0].n_anchors)
        for table, remains in zip(tables, remains_GL2S, strict=True):
            table.folded.index_add_(0, labels.ended_buckets, remains)


def _remains(ended_LK: Tensor, n_sets: int, n_anchors: int) -> Tensor:
    """What remains of labels that are over, n·H(p̂_x) and the sum of assignment entropies: [..., K] -> [..., 2S]."""
    weighted_LS = weighted_entropy(mass(ended_LK, n_sets, n_anchors))
    return torch.cat([weighted_LS, position_entropy(ended_LK, n_sets)], dim=-1)


class HostWorker:
    """Adds batches to tables in host memory while the accelerator goes on: one thread, first in, first out.

    Args:
        most_bytes: of sums that may wait to be added; when there are more, the caller waits too.
    """

    def __init__(self, most_bytes: int = 2**30) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="softh_probe-host")
        self._waiting: deque[tuple[Future[None], int]] = deque()
        self._most_bytes = most_bytes
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def add(self, tables: LabelTables, bags_LK: Tensor, labels: Dispatch) -> None:
        """Have a batch added to tables in host memory; its sums are copied there without waiting for them."""
        while sum(size for _, size in self._waiting) + bags_LK.nbytes > self._most_bytes and self._waiting:
            self._waiting.popleft()[0].result()
        bags, copied = self._copy(bags_LK)

        def work() -> None:
            if copied is not None:
                copied.synchronize()
            add_bags([tables], bags.unsqueeze(0), labels)

        self._waiting.append((self._thread.submit(work), bags_LK.nbytes))

    def finish(self) -> None:
        """Wait until everything is added; raises what went wrong."""
        while self._waiting:
            self._waiting.popleft()[0].result()

    def _copy(self, bags: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
        """Sums in host memory, and what tells when they have arrived."""
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


def columns(n_sets: int, n_anchors: int) -> int:
    """K, the columns of a row of sums."""
    return n_sets * n_anchors + n_sets + 1


def mass(rows: Tensor, n_sets: int, n_anchors: int) -> Tensor:
    """The running sums of soft assignments: [..., K] -> [..., S, M]."""
    return rows[..., : n_sets * n_anchors].unflatten(-1, (n_sets, n_anchors))


def position_entropy(rows: Tensor, n_sets: int) -> Tensor:
    """Sum over positions of the entropy of their own assignment, in nats: [..., K] -> [..., S]."""
    return rows[..., -n_sets - 1 : -1]


def weighted_entropy(mass_LSM: Tensor) -> Tensor:
    """Positions times the entropy of their mean assignment, n·H(p̂), in nats: mass [..., M] -> [...], float64.

    With s the mass and n its total, n·H = n·log n − Σ_j s_j·log s_j. No mass gives 0: a label all of whose
    positions were invalid has no distribution, and no weight either.
    """
    n = mass_LSM.sum(dim=-1).double()
    tiny = torch.finfo(mass_LSM.dtype).tiny
    return torch.xlogy(n, n) - mass_LSM.clamp_min(tiny).log_().mul_(mass_LSM).sum(dim=-1)


def _add_rows(table: Tensor, to_rows: Tensor, other: Tensor, from_rows: Tensor) -> None:
    """Add rows of another table, or of the same, some thousands at a time; rows beyond its end are zero."""
    for to, rows in zip(to_rows.split(_ROWS_AT_ONCE), from_rows.split(_ROWS_AT_ONCE), strict=True):
        there = rows < len(other)
        table.index_add_(0, to[there].to(table.device), other[rows[there].to(other.device)].to(table))


def _end(rows: Tensor) -> int:
    return int(rows.max()) + 1 if len(rows) else 0
