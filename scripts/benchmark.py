"""Cost of the probe: its run against the same model without it, and against soft-entropy, in one process.

    python scripts/benchmark.py [--repeats 3] [--out benchmark.json]

Run by scripts/benchmark, which fetches the real model and text and installs soft-entropy. Conditions take turns,
batch by batch, so that a noisy machine is noisy for all of them alike (soft-entropy, whose loop is its own, takes its
turn when they are through); reported are sums of each batch's median over the repeats, and their ratios. On a GPU, if
there is one; there `--shape olmo-2-7b --max_length 512 --overflow split --tokens_per_batch 8192` measures a model of
that shape with random bfloat16 weights, made on the device.

    plain    model(**batch) with its head, batches of 8 documents in data order, padded; nothing else
    limit    the backbone alone over the probe's own batches; no probe
    probe    plan, probe, forward passes and result: all layers, 8 n-gram label sets; with 1 and with 8 anchor sets
    padded   the backbone alone over plain's batches; attached: the same inside a probe's block, 8 n-gram label sets
    generate 32 tokens for 8 prompts of 16, 8 times; generate attached: the same, each inside a probe's block
    rival    soft-entropy's LLMInferrer with its three n-gram orders, where it is installed
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from jsonargparse import auto_cli
from saved_model import load, save

from softh_probe.accumulators.batch import BatchAccumulator
from softh_probe.config import RunConfig
from softh_probe.data.corpus import Corpus, pad_batch
from softh_probe.data.prepared import read_corpus
from softh_probe.labels import DEFAULT_LABEL_ROWS, NGRAM_SETS
from softh_probe.models.loading_errors import quiet_transformers
from softh_probe.models.source import resolve_model
from softh_probe.models.tokenizer import load_tokenizer
from softh_probe.planned.prepared import plan_run
from softh_probe.probe import SoftEntropyProbe
from softh_probe.run.forward import forward
from softh_probe.run.pipeline import new_probe

SHAPES = {"olmo-2-7b": lambda: transformers.Olmo2Config(), "tiny": lambda: transformers.Olmo2Config(**TINY)}
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
ATTACHED = ("padded", "attached", "generate", "generate attached")
GENERATED = 8
CONDITIONS = ("plain", "limit", "probe, 1 set", "by position", "probe, 8 sets", *ATTACHED, "rival")


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Conditions and data of a comparison."""

    model: str = ".cache/SmolLM2-135M-Instruct.Q4_1.gguf"
    """Checkpoint: a .gguf file or a local folder."""
    data: str = ".cache/fortunes.jsonl"
    """Corpus with a `text` column."""
    documents: int | None = 512
    """Documents taken from it, at even distances; null takes all."""
    shape: str | None = None
    """Instead of the checkpoint's, random weights of this shape (its tokenizer stays)."""
    max_length: int = 128
    """Tokens a document has at most."""
    overflow: str = "truncate"
    """Treatment of longer documents: truncate, or split into successive windows."""
    tokens_per_batch: int = 1024
    """Tokens a batch of the probe has at most, padding included."""
    label_rows: int | Literal["all"] = DEFAULT_LABEL_ROWS
    """Rows of n-gram labels that a layer holds at most; fewer than the corpus needs follow a sample of labels."""
    repeats: int = 3
    """Times that every condition is measured."""
    out: str = "out/benchmark.json"
    """File for the figures, as JSON."""
    memory_of: str | None = None
    """Run this one condition once and print its peak memory; what the benchmark calls itself with."""


class Bench:
    """The model and the documents, loaded once."""

    def __init__(self, options: Benchmark, folder: Path) -> None:
        self.options = options
        self.data = _sample(Path(options.data), options.documents, folder / "documents.jsonl")
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if options.shape:
            self.tokenizer = load_tokenizer(resolve_model(options.model))
            with torch.device(self.device):
                config = SHAPES[options.shape]()
                self.model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        else:
            self.model, self.tokenizer = load(options.model)
        self.model.to(self.device).eval()
        self.config = RunConfig(
            model=options.model,
            data=str(self.data),
            max_length=options.max_length,
            overflow=options.overflow,
            cache="none",
            tokens_per_batch=options.tokens_per_batch,
            labels=NGRAM_SETS,
            label_rows=options.label_rows,
            out="-",
        )
        self.corpus: Corpus = read_corpus(self.config, self.tokenizer, progress=False)

    def take_turns(self, conditions: tuple[str, ...]) -> dict[str, list[float]]:
        """Seconds that each condition takes, batch by batch; who goes first changes from turn to turn."""
        running = {name: self.steps(name) for name in conditions}
        spent: dict[str, list[float]] = {name: [] for name in conditions}
        while running:
            for name in list(running):
                step = running.pop(name)
                start = time.perf_counter()
                goes_on = self._step(step)
                spent[name].append(time.perf_counter() - start)
                if goes_on:
                    running[name] = step
            running = dict([*list(running.items())[1:], *list(running.items())[:1]])
        return spent

    def run(self, condition: str) -> None:
        step = self.steps(condition)
        while self._step(step):
            pass

    def _step(self, step: Iterator[None]) -> bool:
        with torch.inference_mode():
            goes_on = next(step, self) is not self
        if self.device == "cuda":
            torch.cuda.synchronize()
        return goes_on

    def steps(self, condition: str) -> Iterator[None]:
        """A condition, batch by batch."""
        if condition.startswith("probe") or condition == "by position":
            return self.probe(8 if "8 sets" in condition else 1, by_position=condition == "by position")
        if condition.startswith("generate"):
            return self.generate(attached=condition.endswith("attached"))
        if condition == "limit":
            return self.limit()
        return self.padded(self.model if condition == "plain" else self.model.get_decoder(), condition == "attached")

    def padded(self, module: torch.nn.Module, attached: bool) -> Iterator[None]:
        probe = self.attached() if attached else nullcontext()
        for start in range(0, self.corpus.n_documents, 8):
            documents = torch.arange(start, min(start + 8, self.corpus.n_documents)).numpy()
            ids, mask = pad_batch(self.corpus, documents)
            with probe:
                module(input_ids=ids.to(self.device), attention_mask=mask.to(self.device), use_cache=False)
            yield

    def attached(self) -> SoftEntropyProbe:
        return SoftEntropyProbe(self.model, NGRAM_SETS, label_rows=self.options.label_rows)

    def generate(self, attached: bool) -> Iterator[None]:
        documents = (self.corpus.lengths >= 16).nonzero()[0][:8]
        ids = torch.stack([torch.from_numpy(self.corpus.document(d)[:16].astype("int64")) for d in documents])
        for _ in range(GENERATED):
            with self.attached() if attached else nullcontext():
                self.model.generate(
                    ids.to(self.device),
                    attention_mask=torch.ones_like(ids).to(self.device),
                    use_cache=True,
                    do_sample=False,
                    max_new_tokens=32,
                    min_new_tokens=32,
                )
            yield

    def n_tokens(self, condition: str) -> int:
        """Tokens that are fed; of what is generated all but the last of each text."""
        return GENERATED * 8 * (16 + 31) if condition.startswith("generate") else self.corpus.n_tokens

    def limit(self) -> Iterator[None]:
        backbone = self.model.get_decoder()
        for documents in plan_run(self.config, self.corpus).batches:
            ids, mask = pad_batch(self.corpus, documents)
            backbone(input_ids=ids.to(self.device), attention_mask=mask.to(self.device), use_cache=False)
            yield

    def probe(self, anchor_sets: int, *, by_position: bool = False) -> Iterator[None]:
        config = RunConfig(**{**asdict(self.config), "anchor_sets": anchor_sets, "by_position": by_position})
        backbone = self.model.get_decoder()
        backbone.config.use_cache = False
        plan = plan_run(config, self.corpus)
        probe = new_probe(config, backbone, plan)
        probe.reserve()
        for index in range(len(plan.batches)):
            forward(probe, backbone, plan, share=range(index, index + 1), progress=False)
            yield
        probe.result()

    def kernels_per_hook(self) -> float | None:
        """Kernels that the probe launches for a layer and batch, on a GPU."""
        if self.device != "cuda":
            return None
        from torch.profiler import ProfilerActivity, profile

        def kernels(condition: str) -> int:
            with profile(activities=[ProfilerActivity.CUDA]) as trace:
                self.run(condition)
            return sum(event.count for event in trace.key_averages() if "Memcpy" not in event.key)

        plan = plan_run(self.config, self.corpus)
        calls = len(plan.batches) * len(new_probe(self.config, self.model.get_decoder(), plan).layers)
        return (kernels("probe, 1 set") - kernels("limit")) / calls

    def share_inside_hooks(self) -> float:
        """Measure the share of a run with one anchor set that is spent adding to sums (on a CPU)."""
        spent, add, finish = 0.0, BatchAccumulator.add, BatchAccumulator.finish

        def timed(work: Callable[..., None]) -> Callable[..., None]:
            def timed_work(*arguments: Any) -> None:
                nonlocal spent
                spent += seconds(lambda: work(*arguments))

            return timed_work

        BatchAccumulator.add, BatchAccumulator.finish = timed(add), timed(finish)  # type: ignore[method-assign]
        try:
            total = seconds(lambda: self.run("probe, 1 set"))
        finally:
            BatchAccumulator.add, BatchAccumulator.finish = add, finish  # type: ignore[method-assign]
        return spent / total


class Rival:
    """soft-entropy's own loop over the same documents."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        self.bench, self.folder = bench, folder
        (folder / "data").mkdir()
        (folder / "data" / "train.jsonl").write_bytes(bench.data.read_bytes())
        save(bench.model, bench.tokenizer, folder / "model")

    def seconds(self) -> float:
        """Time of its run; loading is left out."""
        from soft_entropy import LLMInferrer

        with quiet_transformers():
            inferrer = LLMInferrer(
                str(self.folder / "model"),
                str(self.folder / "data"),
                label_types=["unigram", "bigram", "trigram"],
                max_length=self.bench.options.max_length,
                text_column="text",
            )
        return seconds(lambda: inferrer.run(self.bench.corpus.n_documents, batch_size=8))


def _sample(data: Path, n: int | None, to: Path) -> Path:
    """A file of n documents at even distances, so of all kinds there are; or the data itself."""
    lines = data.read_text(encoding="utf-8").splitlines()
    if n is None or n >= len(lines):
        return data
    to.write_text("\n".join(lines[i * len(lines) // n] for i in range(n)) + "\n", encoding="utf-8")
    return to


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak_gib(options: Benchmark, condition: str) -> float:
    """Peak memory of one condition, in a process of its own, in GiB."""
    options = replace(options, memory_of=condition)
    words = [sys.executable, __file__]
    values = {name: "null" if value is None else value for name, value in asdict(options).items()}
    words += [f"--{name}={value}" for name, value in values.items()]
    return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[-1])


def memory_of(options: Benchmark, condition: str) -> float:
    """Peak memory since the model was loaded, in GiB."""
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(options, Path(scratch))
    if bench.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        bench.run(condition)
        return torch.cuda.max_memory_allocated() / 2**30
    Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak of loading
    bench.run(condition)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(status["VmHWM"].split()[0]) / 2**20


def main(options: Benchmark) -> None:
    if options.memory_of:
        print(memory_of(options, options.memory_of))
        return
    times: dict[str, list[list[float]]] = {name: [] for name in CONDITIONS}
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(options, Path(scratch))
        installed = importlib.util.find_spec("soft_entropy") and not options.shape
        rival = Rival(bench, Path(scratch)) if installed else None
        bench.run("limit")  # warm up
        for _ in range(options.repeats):
            for name, took in bench.take_turns(CONDITIONS[:-1]).items():
                times[name].append(took)
            if rival:
                times["rival"].append([rival.seconds()])
            print({name: round(sum(t[-1]), 2) for name, t in times.items() if t}, file=sys.stderr, flush=True)
    median = {name: sum(map(statistics.median, zip(*t, strict=True))) for name, t in times.items() if t}
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if bench.device == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "documents": bench.corpus.n_documents,
        "tokens": bench.corpus.n_tokens,
        "options": asdict(options),
        "seconds": median,
        "all_seconds": {name: [sum(steps) for steps in t] for name, t in times.items()},
        "tokens_per_second": {name: bench.n_tokens(name) / t for name, t in median.items()},
        "ratios": {
            f"{one} / {other}": median[one] / median[other]
            for one, other in (
                ("probe, 1 set", "limit"),
                ("by position", "probe, 1 set"),
                ("probe, 8 sets", "limit"),
                ("probe, 1 set", "plain"),
                ("probe, 8 sets", "plain"),
                ("attached", "padded"),
                ("generate attached", "generate"),
                ("rival", "probe, 1 set"),
            )
            if one in median and other in median
        },
        "kernels_per_hook": bench.kernels_per_hook(),
        "share_inside_hooks": bench.share_inside_hooks(),
        "peak_gib": {name: peak_gib(options, name) for name in CONDITIONS[:-1]},
    }
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    Path(options.out).write_text(json.dumps(report, indent=2))
    print(f"{'condition':<18}{'seconds':>10}{'tokens/s':>10}{'peak GiB':>10}")
    for name, t in median.items():
        peak = report["peak_gib"].get(name)
        print(f"{name:<18}{t:>10.2f}{bench.n_tokens(name) / t:>10.0f}" + (f"{peak:>10.2f}" if peak else ""))
    for name, ratio in report["ratios"].items():
        print(f"{name:<28}{ratio:>6.2f}")
    print(f"share of time inside hooks: {report['share_inside_hooks']:.1%}; figures in {options.out}")


if __name__ == "__main__":
    main(auto_cli(Benchmark, as_positional=False))
