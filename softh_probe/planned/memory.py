"""The memory that a run's sums will take: its size, its place, and whether it fits, before the model runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import psutil
import torch

from softh_probe.accumulators.label_sampling import ALL
from softh_probe.accumulators.label_tables import N_SQUARES, columns
from softh_probe.accumulators.sampling import N_REPLICATES, SAMPLE_SIZE
from softh_probe.errors import InputError
from softh_probe.layer_places import RESIDUAL, is_centered
from softh_probe.planned.plan import Plan
from softh_probe.planned.row_allocation import KEPT_LABELS
from softh_probe.planned.streamed import StreamedRows
from softh_probe.planned.sums_memory import GIB, SetSampling, SumsMemory

#: Share of the free memory that sums may take; the rest is for the model's own tensors.
SHARE_OF_FREE = 0.8

#: Name for the sums that do not depend on labels: totals, bootstrap replicates and samples.
ALL_POSITIONS = "all positions"

#: Name for the sums of all bins of positions.
BINS = "by position"

#: Name for the rows that the n-grams of all sets share in a streamed run.
NGRAMS = "n-grams, at most"

_CGROUP = Path("/sys/fs/cgroup")


_UNKNOWN = SetSampling(followed=None, threshold=None, expected_se=None)


def place_sums(
    plan: Plan,
    devices: Mapping[str, torch.device],
    *,
    n_anchors: Sequence[int],
    anchor_sets: int,
    sums_memory_gb: float | None = None,
    n_processes: int = 1,
    needed: Mapping[str, int] | None = None,
    widths: Mapping[str, int | None] | None = None,
) -> SumsMemory:
    """Decide for each layer whether its tables go to its device or to host memory.

    Args:
        plan: the rows of all labels.
        devices: the device of each layer.
        n_anchors, anchor_sets: M, of all that are measured, and S.
        sums_memory_gb: GiB that sums may take on each device; None is `SHARE_OF_FREE` of what is free.
        n_processes: on this machine, which share its free host memory.
        needed: bytes that weights will take on each device, where they are not loaded.
        widths: of each layer, that of its hidden states, as far as it is known; anchors of each width take memory, and
            so does the sum of each layer's unit vectors.

    Raises:
        InputError: there is not as much memory as they take; the message says how many label
            rows would fit, and which label sets to leave out.
    """
    of_bins = [_bytes_by_set(of_bin, n_anchors[:1], anchor_sets) for of_bin in plan.bins.values()]
    sizes = _bytes_by_set(plan, n_anchors, anchor_sets)
    memory = _placed(
        sizes | ({BINS: sum(size for of_bin in of_bins for size in of_bin.values())} if of_bins else {}),
        _by_set(plan, lambda one: one.labels_by_set),
        _by_set(plan, lambda one: one.rows_by_set),
        _sampling(plan),
        devices,
        sums_memory_gb,
        n_processes,
        needed or {},
        _bytes_of_anchors(devices, widths, n_anchors, anchor_sets),
        _bytes_of_directions(devices, widths),
    )
    n_columns, n_layers, n = _columns(anchor_sets, n_anchors), len(devices), plan.allocation
    squares = len(n_anchors) * n_layers * 8 * N_SQUARES * len(n.bucket_sets) * (not n.is_sampled)
    _check(memory, 0 if plan.bins else plan.rows_of_ngrams, n_columns, squares)
    return memory


def place_streamed_sums(
    rows: StreamedRows,
    devices: Mapping[str, torch.device],
    *,
    n_anchors: Sequence[int],
    anchor_sets: int,
    sums_memory_gb: float | None = None,
    n_processes: int = 1,
    needed: Mapping[str, int] | None = None,
    widths: Mapping[str, int | None] | None = None,
) -> SumsMemory:
    """Decide as `place_sums` does for a streamed run, by the rows that its labels take at most.

    Args:
        rows: the rows of the labels; where all n-grams are followed, theirs grow with the corpus and are left out.
        devices, n_anchors, anchor_sets, sums_memory_gb, n_processes, needed, widths: as `place_sums` takes them.

    Raises:
        InputError: there is not as much memory as they take.
    """
    n_columns = _columns(anchor_sets, n_anchors)
    n_live, n_documents = rows.table_sizes().n_live, rows.table_sizes().n_documents
    at_most = {NGRAMS: n_live} if n_live else {}
    at_most |= {s.name: KEPT_LABELS for s in rows.label_sets if s.direction == "column"}
    sizes = {name: n_columns * n * (4 if name == NGRAMS else 8) for name, n in at_most.items()}
    exact = SetSampling(followed=None, threshold=ALL, expected_se=0.0)
    memory = _placed(
        {ALL_POSITIONS: _bytes_of_positions(n_anchors, anchor_sets, SAMPLE_SIZE, n_documents), **sizes},
        {ALL_POSITIONS: 0, **dict.fromkeys(at_most)},
        {ALL_POSITIONS: 0, **at_most},
        {name: _UNKNOWN if name == NGRAMS else exact for name in at_most},
        devices,
        sums_memory_gb,
        n_processes,
        needed or {},
        _bytes_of_anchors(devices, widths, n_anchors, anchor_sets),
        _bytes_of_directions(devices, widths),
    )
    _check(memory, n_live, n_columns)
    return memory


def _placed(
    bytes_by_set: dict[str, int],
    labels_by_set: Mapping[str, int | None],
    rows_by_set: dict[str, int],
    sampling: dict[str, SetSampling],
    devices: Mapping[str, torch.device],
    sums_memory_gb: float | None,
    n_processes: int,
    needed: Mapping[str, int],
    anchors: dict[str, int],
    directions: dict[str, int],
) -> SumsMemory:
    budgets = {}
    for place in dict.fromkeys([*map(str, devices.values()), "cpu"]):
        limited = sums_memory_gb is not None and (place != "cpu" or set(map(str, devices.values())) == {"cpu"})
        if limited and sums_memory_gb:
            budgets[place] = int(sums_memory_gb * GIB)
        else:
            free = free_bytes(place) // (n_processes if place == "cpu" else 1)
            budgets[place] = max(0, free - int(SHARE_OF_FREE * needed.get(place, 0)))
    size = sum(bytes_by_set.values())
    on_host = set()
    for place in budgets:
        layers = [layer for layer, device in devices.items() if str(device) == place]
        if place != "cpu":
            left = max(0, budgets[place] - anchors.get(place, 0) - directions.get(place, 0))
            on_host |= set(layers[left // max(size, 1) :])
    return SumsMemory(
        bytes_by_set=bytes_by_set,
        labels_by_set=dict(labels_by_set),
        rows_by_set=rows_by_set,
        sampling=sampling,
        devices=dict(devices),
        on_host=frozenset(on_host),
        budgets=budgets,
        anchors=anchors,
        directions=directions,
    )


def _bytes_of_anchors(
    devices: Mapping[str, torch.device],
    widths: Mapping[str, int | None] | None,
    n_anchors: Sequence[int],
    anchor_sets: int,
) -> dict[str, int]:
    """Compute the bytes of the anchors on each device; accelerators hold their halves of 16 bits, too."""
    there = {(str(device), (widths or {}).get(layer) or 0) for layer, device in devices.items()}
    sizes: Counter[str] = Counter()
    for place, width in there:
        sizes[place] += (4 if place == "cpu" else 8) * anchor_sets * sum(n_anchors) * width
    return {place: size for place, size in sizes.items() if size}


def _bytes_of_directions(
    devices: Mapping[str, torch.device], widths: Mapping[str, int | None] | None
) -> dict[str, int]:
    """Compute the bytes of the sums of unit vectors of all layers of each device, where label tables may not be.

    Rows of centered states have their mean, too.
    """
    sizes: Counter[str] = Counter()
    for layer, device in devices.items():
        sizes[str(device)] += (12 if is_centered(layer) else 8) * ((widths or {}).get(layer) or 0)
    return {place: size for place, size in sizes.items() if size}


def _check(memory: SumsMemory, n_rows: int, n_columns: int, further: int = 0) -> None:
    """Check that there is as much memory as sums take.

    Args:
        memory: their size and place.
        n_rows, n_columns: of the tables of n-grams.
        further: bytes that a sample of labels would take beside its rows.

    Raises:
        InputError: there is not.
    """
    if memory.bytes_by_place.get("cpu", 0) > memory.budgets["cpu"]:
        raise InputError(_too_much(memory, _fewer_rows(memory, n_rows, n_columns, further)))


def free_bytes(place: str) -> int:
    """Compute the bytes that sums may take by default on a device, or in host memory as "cpu"."""
    if place != "cpu":
        device = torch.device(place)
        module = getattr(torch, device.type)
        module.empty_cache()
        return int(SHARE_OF_FREE * module.mem_get_info(device)[0])
    free = psutil.virtual_memory().available
    with_limit = _CGROUP / "memory.max", _CGROUP / "memory.current"
    if all(path.is_file() for path in with_limit):  # a container's or a job's own limit
        limit, used = (path.read_text().strip() for path in with_limit)
        if limit.isdigit():
            free = min(free, int(limit) - int(used))
    return max(0, int(SHARE_OF_FREE * free))


def _bytes_by_set(plan: Plan, n_anchors: Sequence[int], anchor_sets: int) -> dict[str, int]:
    n = plan.allocation
    n_columns = _columns(anchor_sets, n_anchors)
    kept, buckets, single = (
        np.bincount(sets, minlength=len(n.peak_rows)) for sets in (n.kept_sets, n.bucket_sets, n.singleton_sets)
    )
    n_sums = len(n_anchors) * (2 * anchor_sets + N_SQUARES * n.is_sampled)
    sizes = n_columns * (8 * kept + 4 * n.peak_rows + 8 * single) + 8 * n_sums * buckets
    of_positions = _bytes_of_positions(n_anchors, anchor_sets, plan.n_sample, plan.n_documents)
    return {ALL_POSITIONS: of_positions, **dict(zip(plan.set_names, map(int, sizes), strict=True))}


def _columns(anchor_sets: int, n_anchors: Sequence[int]) -> int:
    """Count the columns of a label's rows with each number of anchors."""
    return sum(columns(anchor_sets, n) for n in n_anchors)


def _bytes_of_positions(n_anchors: Sequence[int], anchor_sets: int, n_sample: int, n_documents: int) -> int:
    n_columns = _columns(anchor_sets, n_anchors)
    return (
        8 * n_columns * (1 + N_REPLICATES) + 4 * anchor_sets * sum(n_anchors) * n_sample + 4 * n_columns * n_documents
    )


def _by_set(plan: Plan, count: Callable[[Plan], np.ndarray]) -> dict[str, int]:
    """Count something of each label set, and of all bins together."""
    of_bins = {BINS: sum(int(count(of_bin).sum()) for of_bin in plan.bins.values())} if plan.bins else {}
    return {ALL_POSITIONS: 0, **dict(zip(plan.set_names, count(plan).tolist(), strict=True)), **of_bins}


def _sampling(plan: Plan) -> dict[str, SetSampling]:
    values = plan.followed_by_set.tolist(), plan.allocation.thresholds.tolist(), plan.expected_errors.tolist()
    found = {
        name: SetSampling(followed=followed, threshold=threshold, expected_se=error)
        for name, followed, threshold, error in zip(plan.set_names, *values, strict=True)
    }
    if of_bins := [sampling for of_bin in plan.bins.values() for sampling in _sampling(of_bin).values()]:
        found[BINS] = SetSampling.together(of_bins)
    return found


def _fewer_rows(memory: SumsMemory, n_rows: int, n_columns: int, further: int) -> int:
    """Estimate the largest `label_rows` with which the sums would fit, rounded down; 0 where none would."""
    excess = sum(memory.bytes_by_place.values()) - sum(memory.budgets.values()) + further
    left: int = n_rows - math.ceil(excess / (len(memory.devices) * 4 * n_columns))
    unit = int(10 ** max(len(str(left)) - 2, 0))
    return max(left // unit * unit, 0)


def _too_much(memory: SumsMemory, fewer_rows: int) -> str:
    n = len(memory.devices)
    needed, there = sum(memory.bytes_by_place.values()), sum(memory.budgets.values())
    dropped, excess = [], needed - there
    for name, size in sorted(memory.bytes_by_set.items(), key=lambda item: -item[1]):
        if excess <= 0:
            break
        if name in (ALL_POSITIONS, NGRAMS, BINS):
            continue
        dropped.append(f"{name} ({n * size / GIB:.2f} GiB)")
        excess -= n * size
    places = ", ".join(f"{size / GIB:.2f} on {place}" for place, size in memory.budgets.items())
    remedies = [f"set --label-rows {fewer_rows}, for a sample of labels"] if fewer_rows else []
    remedies += [f"leave out of labels: {', '.join(dropped)}"] if dropped else []
    if BINS in memory.bytes_by_set:
        remedies.insert(0, f"leave out --by-position ({n * memory.bytes_by_set[BINS] / GIB:.2f} GiB)")
    sites = "" if set(memory.rows_by_site) == {RESIDUAL} else ", sites"
    remedies.append(f"use fewer anchor sets{sites} or layers")
    return (
        f"sums_memory_gb: the sums of {n} layers take {needed / GIB:.2f} GiB, there are {there / GIB:.2f} GiB for them "
        f"({places}); {'; or '.join(remedies)}"
    )
