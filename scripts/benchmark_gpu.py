"""Cost of the probe on a GPU: the backbone alone against the same with the probe, 1 and 8 anchor sets.

    scripts/benchmark --device cuda --shape olmo-2-7b [--sequences 16] [--tokens 512] [--batches 24] [--out FILE.json]

Weights are random bfloat16, made on the device; tokens are random. It needs no hub, no data and no package beside
torch, transformers, numpy, scipy, pandas and safetensors. Conditions take turns batch by batch. Told of each are the
median time of a batch by CUDA events, its ratio to the backbone alone, the time of the work that hooks put into the
device's queue, the time that the host spends in hooks, the kernels they launch, and peak memory. There are 8 n-gram
label sets.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from random_models import LONGEST_NGRAM_SPAN, SHAPES, model_config, random_corpus
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from softh_probe import SoftEntropyProbe
from softh_probe.accumulators.batch import BatchAccumulator
from softh_probe.accumulators.dispatch import Dispatch
from softh_probe.data.corpus import length_batches, pad_batch
from softh_probe.labels import DEFAULT_LABEL_ROWS, NGRAM_SETS, parse_label_sets
from softh_probe.planned.plan import Plan

CONDITIONS = ("backbone", "probe, 1 set", "probe, 8 sets")
#: Columns of the table: title, figure and format.
COLUMNS = (
    ("batch ms", "batch_ms", ".1f"),
    ("ratio", "ratio", ".3f"),
    ("hooks µs", "hooks_device_us_per_layer", ".1f"),
    ("host µs", "hooks_host_us_per_layer", ".1f"),
    ("kernels", "kernels_per_layer", ".1f"),
    ("peak GiB", "peak_gib", ".2f"),
)


class Clock:
    """Times of the device, by events in its queue; on a CPU, of the host."""

    def __init__(self, device: torch.device) -> None:
        self.is_cuda = device.type == "cuda"

    def now(self) -> Any:
        """Note the time at this place of the device's queue."""
        if not self.is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: Any, end: Any) -> float:
        """Give the time between two notes, both of which have passed."""
        return float(start.elapsed_time(end) / 1e3) if self.is_cuda else end - start

    def wait(self) -> None:
        """Wait until the device has done everything."""
        if self.is_cuda:
            torch.cuda.synchronize()


class Hooks:
    """The time spent adding to sums: of the device, and of the host."""

    def __init__(self, clock: Clock) -> None:
        self.notes: list[tuple[Any, Any]] = []
        self.host_seconds = 0.0
        self._clock = clock

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Time the hooks inside the block."""
        names = ("add", "finish")
        own = {name: getattr(BatchAccumulator, name) for name in names}
        for name in names:
            setattr(BatchAccumulator, name, self._timed(own[name]))
        try:
            yield
        finally:
            for name in names:
                setattr(BatchAccumulator, name, own[name])

    def device_seconds(self) -> float:
        """Give the time of the device so far, once it has done everything."""
        return sum(self._clock.seconds(*note) for note in self.notes)

    def _timed(self, work: Callable[..., None]) -> Callable[..., None]:
        def timed_work(*args: Any, **kwargs: Any) -> None:
            start, began = self._clock.now(), time.perf_counter()
            work(*args, **kwargs)
            self.host_seconds += time.perf_counter() - began
            self.notes.append((start, self._clock.now()))

        return timed_work


class Benchmark:
    """A model of random weights and its batches."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device = torch.device(options.device)
        self.clock = Clock(self.device)
        self.options = options
        config = model_config(options.shape, options.blocks)
        dtype = getattr(torch, options.dtype)
        with torch.device(self.device):
            self.model: PreTrainedModel = AutoModel.from_config(config, dtype=dtype).eval()
        n_documents = options.batches * options.sequences
        self.corpus = random_corpus(n_documents, options.tokens, config.vocab_size)
        self.batches = length_batches(self.corpus.lengths, options.sequences * options.tokens)
        sets = parse_label_sets(NGRAM_SETS)
        self.plan = Plan(self.corpus, sets, self.batches, label_rows=DEFAULT_LABEL_ROWS)
        self.n_blocks = config.num_hidden_layers

    def probe(self, anchor_sets: int) -> SoftEntropyProbe:
        """Make a probe; with --on_host, its label tables lie in host memory."""
        probe = SoftEntropyProbe(self.model, plan=self.plan, anchor_sets=anchor_sets)
        probe.reserve(probe.layers if self.options.on_host and self.clock.is_cuda else ())
        return probe

    def steps(self, condition: str) -> Iterator[Callable[[], None]]:
        """Give the batches of a condition, to be run one by one."""
        probe = None if condition == "backbone" else self.probe(1 if "1 set" in condition else 8)
        for index in range(len(self.batches)):
            ids = pad_batch(self.corpus, self.batches[index])[0].to(self.device)
            yield partial(self._run, ids, probe, None if probe is None else self.plan.batch(index))
        if probe is not None:
            probe.result()

    def _run(self, ids: Tensor, probe: SoftEntropyProbe | None, dispatch: Dispatch | None) -> None:
        if probe is None or dispatch is None:
            self.model(input_ids=ids, use_cache=False)
            return
        with probe, probe.batch(dispatch):
            self.model(input_ids=ids, use_cache=False)


def take_turns(benchmark: Benchmark) -> dict[str, dict[str, float]]:
    """Measure all conditions, batch by batch; who goes first changes from turn to turn."""
    clock, n_warm = benchmark.clock, min(3, benchmark.options.batches // 2)
    running = {name: benchmark.steps(name) for name in CONDITIONS}
    hooks = {name: Hooks(clock) for name in CONDITIONS}
    times: dict[str, list[float]] = {name: [] for name in CONDITIONS}
    peaks = dict.fromkeys(CONDITIONS, 0.0)
    for turn in range(benchmark.options.batches):
        for name in CONDITIONS[turn % 3 :] + CONDITIONS[: turn % 3]:
            work = next(running[name])
            if clock.is_cuda:
                torch.cuda.reset_peak_memory_stats()
            clock.wait()
            timing = hooks[name] if turn >= n_warm else Hooks(clock)
            with torch.inference_mode(), timing.timed():
                start = clock.now()
                work()
                end = clock.now()
            clock.wait()
            times[name].append(clock.seconds(start, end))
            if clock.is_cuda:
                peaks[name] = max(peaks[name], torch.cuda.max_memory_allocated() / 2**30)
        print(f"batch {turn + 1} of {benchmark.options.batches}", end="\r", file=sys.stderr)
    for steps in running.values():
        next(steps, None)  # results are computed
    n, n_layers = benchmark.options.batches - n_warm, benchmark.n_blocks + 2
    return {
        name: {
            "batch_ms": 1e3 * statistics.median(times[name][n_warm:]),
            "hooks_device_us_per_layer": 1e6 * hooks[name].device_seconds() / n / n_layers,
            "hooks_host_us_per_layer": 1e6 * hooks[name].host_seconds / n / n_layers,
            "peak_gib": peaks[name],
        }
        for name in CONDITIONS
    }


def kernels(benchmark: Benchmark, condition: str) -> int:
    """Count the kernels of one batch in the middle."""
    from torch.profiler import ProfilerActivity, profile

    steps = benchmark.steps(condition)
    with torch.inference_mode():
        for _ in range(2):
            next(steps)()
        work = next(steps)
        with profile(activities=[ProfilerActivity.CUDA]) as trace:
            work()
            torch.cuda.synchronize()
    return sum(event.count for event in trace.key_averages() if "Mem" not in event.key)


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, …, or cpu to try the script")
    parser.add_argument("--shape", default="olmo-2-7b", choices=SHAPES)
    parser.add_argument("--blocks", type=int, help="blocks at most; all without it")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--sequences", type=int, default=16, help="sequences of a batch")
    parser.add_argument("--tokens", type=int, default=512, help="tokens of a sequence")
    parser.add_argument("--batches", type=int, default=24)
    parser.add_argument("--on_host", action="store_true", help="keep label tables in host memory")
    parser.add_argument("--out", default="out/benchmark_gpu.json", help="file for the figures, as JSON")
    found = parser.parse_args()
    least = {"batches": 4, "blocks": 1, "sequences": 1, "tokens": LONGEST_NGRAM_SPAN}
    for name, bound in least.items():
        if (value := getattr(found, name)) is not None and value < bound:
            parser.error(f"--{name}: expected {bound} or more, got {value}")
    kind, _, number = found.device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        parser.exit(2, f"--device: expected cpu, cuda or cuda:N, got {found.device}\n")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        parser.exit(2, f"--device: torch finds no {found.device} here\n")
    return found


def main() -> None:
    given = options()
    benchmark = Benchmark(given)
    found = take_turns(benchmark)
    is_cuda = benchmark.device.type == "cuda"
    name = torch.cuda.get_device_name(benchmark.device) if is_cuda else f"cpu, {torch.get_num_threads()} threads"
    if is_cuda:
        of_backbone = kernels(benchmark, CONDITIONS[0])
        for condition in CONDITIONS[1:]:
            launched = kernels(benchmark, condition) - of_backbone
            found[condition]["kernels_per_layer"] = launched / (benchmark.n_blocks + 2)
    for condition in CONDITIONS[1:]:
        found[condition]["ratio"] = found[condition]["batch_ms"] / found[CONDITIONS[0]]["batch_ms"]
    report = {"device": name, "torch": torch.__version__, "options": vars(given), "conditions": found}
    Path(given.out).parent.mkdir(parents=True, exist_ok=True)
    Path(given.out).write_text(json.dumps(report, indent=2))
    print(f"{name}, torch {torch.__version__}, {given.shape}, {given.sequences} x {given.tokens}, {given.dtype}")
    print(f"{'':<16}" + "".join(f"{title:>{len(title) + 3}}" for title, _, _ in COLUMNS))
    for condition, of in found.items():
        cells = [format(of[key], form) if key in of else "" for _, key, form in COLUMNS]
        print(f"{condition:<16}" + "".join(f"{c:>{len(t) + 3}}" for c, (t, _, _) in zip(cells, COLUMNS, strict=True)))
    print(f"hooks, host and kernels are of a layer; figures in {given.out}")


if __name__ == "__main__":
    main()
