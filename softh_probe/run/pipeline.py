"""One checkpoint x one corpus: from a configuration to a folder of results."""

from __future__ import annotations

import dataclasses
import platform
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from softh_probe.config import RunConfig, config_yaml, plain_config, tokens_per_batch_on
from softh_probe.data.corpus import Corpus
from softh_probe.data.prepared import read_corpus
from softh_probe.errors import InputError
from softh_probe.labels import shortest_document
from softh_probe.models.checkpoint import Checkpoint, load_checkpoint, load_tokenizer
from softh_probe.models.placement import check_placement
from softh_probe.models.source import resolve_model
from softh_probe.planned.memory import place_sums
from softh_probe.planned.plan import Plan
from softh_probe.planned.prepared import plan_run
from softh_probe.probe import SoftEntropyProbe
from softh_probe.report.page import write_run_report
from softh_probe.result import ProbeResult
from softh_probe.run.forward import SnapshotTimer, forward
from softh_probe.run.output_folder import output_folder, shared_folder
from softh_probe.run.processes import ALONE, Processes, own_device
from softh_probe.run.resume import load_snapshot, resume, run_fingerprint
from softh_probe.run.signals import StopRequests
from softh_probe.run.snapshots import Snapshots

CONFIG_YAML = "config.yaml"
VERSIONS_OF = ("softh-probe", "torch", "transformers", "tokenizers", "datasets", "safetensors", "numpy")


def run(config: RunConfig, *, progress: bool = True, processes: Processes = ALONE) -> ProbeResult:
    """Probe one checkpoint on one corpus and write the output folder.

    Args:
        config: what to run.
        progress: show progress and a summary of each stage on standard error.
        processes: those that measure this run together (see `softh_probe.run.processes`); all have to call this.

    Returns:
        The result, as `ProbeResult.load(config.out)` reads it back; in every process.

    Raises:
        SofthProbeError: the configuration, the checkpoint or the corpus is not what it has to be; nothing is then
            left behind in the output folder.
        Interrupted: asked to stop by SIGTERM, SIGUSR1 or Ctrl-C; the same call goes on from where it was.
    """
    progress = progress and processes.is_first
    with StopRequests() as stop:
        if processes.is_first:
            with output_folder(config.out, overwrite=config.overwrite) as folder:
                result = _run(config, folder, stop, processes, progress)
                assert result is not None
                result.save(folder)
            return processes.from_first(result)
        with shared_folder(config.out) as folder:
            _run(config, folder, stop, processes, progress)
            result = processes.from_first(None)
            Snapshots(folder, processes).clear()
            return result


def _run(
    config: RunConfig, folder: Path, stop: StopRequests, processes: Processes, progress: bool
) -> ProbeResult | None:
    """Measure this process's share; the result of all, with its page drawn, in the first one."""
    say = _Teller(progress)
    seconds = _Stopwatch()
    snapshots = Snapshots(folder, processes)
    device_map = own_device(config.device_map, processes)
    with processes.first_ahead():  # what it leaves in the cache need not be done again
        with seconds("tokenise"):
            device = check_placement(config.dtype, device_map)
            if config.tokens_per_batch is None:
                config = dataclasses.replace(config, tokens_per_batch=tokens_per_batch_on(device))
            unfinished = load_snapshot(config, snapshots, say)
            source = resolve_model(config.model, revision=config.revision)
            tokenizer = load_tokenizer(source, trust_remote_code=config.trust_remote_code)
            corpus = read_corpus(config, tokenizer, progress=progress)
        say(f"corpus: {corpus.n_documents:,} documents, {corpus.n_tokens:,} tokens")
        with seconds("plan"):
            plan = plan_run(config, corpus, processes.count)
        n_batches = f"{len(plan.batches):,} batches of up to {config.tokens_per_batch:,} tokens"
        say(f"plan: {plan.n_positions:,} positions in {n_batches}{processes.describe_sharing()}")
    with seconds("load"):
        checkpoint = load_checkpoint(
            source,
            dtype=config.dtype,
            device_map=device_map,
            trust_remote_code=config.trust_remote_code,
            allow_pickle=config.allow_pickle,
        )
    with checkpoint:
        _check_model(checkpoint, corpus)
        probe = new_probe(config, checkpoint.model, plan)
        info = checkpoint.info
        if info["stack"]:
            say("model: an encoder-decoder, whose encoder reads the documents; to measure its decoder, attach to that")
        say(f"model: {info['class']}, {info['dtype']} on {', '.join(info['devices'])}; {_measuring(config, probe)}")
        memory = place_sums(
            plan,
            probe.layer_devices(),
            n_anchors=config.n_anchors,
            anchor_sets=config.anchor_sets,
            sums_memory_gb=config.sums_memory_gb,
            n_processes=processes.local_count,
        )
        say(f"sums:\n{memory.describe()}")
        measured = run_fingerprint(config, checkpoint, plan)
        processes.agree(measured)
        probe.reserve(memory.on_host)
        start = resume(unfinished, probe, measured, say)
        stop.defer()
        share = plan.shares[processes.rank]
        timer = SnapshotTimer(
            snapshots, probe, start, stop, n_batches=len(share), minutes=config.snapshot_minutes, say=say
        )
        forward(probe, checkpoint.model, plan, share=share, first=start.batches, after_batch=timer, progress=progress)
        timer.wait(processes)
        seconds.spent["forward"] = timer.seconds
    with seconds("finish"):
        if processes.count > 1:
            probe.merge_shares(processes.add_others)
        if not processes.is_first:
            return None
        result = probe.result()
        result.info.update(_provenance(config, checkpoint, corpus, plan), sums_memory=memory.info())
        result.info.update(interruptions=start.interruptions, processes=processes.count)
        result.info["warnings"] = _warnings(result, plan)
        for text in result.info["warnings"]:
            say(f"warning: {text}")
        (folder / CONFIG_YAML).write_text(config_yaml(config), encoding="utf-8")
    result.info["seconds"] = seconds.spent
    result.info["tokens_per_second"] = result.info["tokens"] / seconds.spent["forward"]
    if config.report:
        _draw(result, folder, say)
    return result


def new_probe(config: RunConfig, model: torch.nn.Module, plan: Plan) -> SoftEntropyProbe:
    """The probe a configuration asks for."""
    return SoftEntropyProbe(
        model,
        labels=config.labels,
        n_anchors=config.n_anchors,
        anchor_sets=config.anchor_sets,
        seed=config.seed,
        anchors=config.anchors,
        calibration=config.calibration,
        layers=config.layers,
        plan=plan,
    )


def _draw(result: ProbeResult, folder: Path, say: _Teller) -> None:
    """Write the page and the figures; what was measured is kept, whatever goes wrong with them."""
    try:
        write_run_report(result, folder)
    except Exception as error:
        text = f"the report could not be written ({type(error).__name__}: {error}); try `softh-probe report` later"
        result.info["warnings"].append(text)
        say(f"warning: {text}")


def _check_model(checkpoint: Checkpoint, corpus: Corpus) -> None:
    """Refuse what the loop cannot feed, before it fails in ways that are hard to read."""
    config = checkpoint.model.config
    embeddings = checkpoint.model.get_input_embeddings().weight
    n_embeddings = len(embeddings) if isinstance(embeddings, torch.Tensor) else config.vocab_size
    if int(corpus.tokens.max()) >= n_embeddings:
        raise InputError(
            f"model: the tokenizer gives token {corpus.tokens.max()}, the model has embeddings for {n_embeddings}; "
            "tokenizer and weights have to be of one checkpoint"
        )
    longest = getattr(config, "max_position_embeddings", None)
    if isinstance(longest, int) and 0 < longest < int(corpus.lengths.max()):
        raise InputError(
            f"max_length: the model takes documents of up to {longest} tokens, the longest here has "
            f"{corpus.lengths.max()}; set --max-length {longest}"
        )


def _measuring(config: RunConfig, probe: SoftEntropyProbe) -> str:
    sets = f"{config.anchor_sets} set{'s' * (config.anchor_sets > 1)} of {config.n_anchors} anchors"
    return f"measuring {len(probe.layers)} rows with {sets}, labels: {', '.join(config.labels) or 'none'}"


def _provenance(config: RunConfig, checkpoint: Checkpoint, corpus: Corpus, plan: Plan) -> dict[str, Any]:
    """What a result says of where it comes from (JSON values)."""
    return {
        "config": plain_config(config),
        "model": checkpoint.info,
        "corpus": {
            "data": config.data,
            "sha256": corpus.sha256,
            "documents_read": corpus.n_read,
            "documents_empty": corpus.n_empty,
            "documents_longer_than_max_length": corpus.n_truncated,
            "documents": corpus.n_documents,
            "documents_too_short": plan.n_too_short,
            "tokens": corpus.n_tokens,
        },
        "versions": {name: version(name) for name in VERSIONS_OF} | {"python": platform.python_version()},
        "peak_memory_gib": _peak_memory_gib(),
    }


def _warnings(result: ProbeResult, plan: Plan) -> list[str]:
    found = [
        f"{row}: {n:,} of {result.info['positions']:,} positions were left out, their hidden states being zero or "
        "not finite"
        for row, n in result.invalid_positions().items()
    ]
    if plan.n_too_short:
        found.append(
            f"{plan.n_too_short:,} of {plan.corpus.n_documents:,} documents are shorter than the "
            f"{shortest_document(plan.label_sets)} tokens that one position needs, and were left out"
        )
    if result.info["model"]["trust_remote_code"]:
        found.append("Python code that comes with the checkpoint was allowed to run (trust_remote_code)")
    return found


def _peak_memory_gib() -> dict[str, float]:
    """The most memory held so far, by the process and on each accelerator, in GiB."""
    unit = 2**30 if sys.platform == "darwin" else 2**20  # getrusage counts bytes there, KiB elsewhere
    peak = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}
    for index in range(torch.cuda.device_count()):
        peak[f"cuda:{index}"] = torch.cuda.max_memory_allocated(index) / 2**30
    return peak


class _Stopwatch:
    """Wall time by stage, in seconds."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.spent[stage] = self.spent.get(stage, 0.0) + time.perf_counter() - start


class _Teller:
    """Lines for whoever is watching, on standard error."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled

    def __call__(self, text: str) -> None:
        if self._enabled:
            print(text, file=sys.stderr, flush=True)
