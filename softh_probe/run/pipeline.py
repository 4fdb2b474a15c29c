"""Run one checkpoint on one corpus: from a configuration to a folder of results."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from softh_probe.choices import Choices
from softh_probe.config import RunConfig, config_yaml, tokens_per_batch_on
from softh_probe.data.corpus import Corpus
from softh_probe.data.documents import Document
from softh_probe.errors import InputError
from softh_probe.estimators.variants import name_of, several
from softh_probe.files import write_text
from softh_probe.hooks.named_modules import find_modules
from softh_probe.kept import Kept
from softh_probe.layer_places import RESIDUAL
from softh_probe.models.checkpoint import Checkpoint, load_checkpoint
from softh_probe.models.lengths import length_limit
from softh_probe.models.placement import check_placement
from softh_probe.models.source import ModelSource, resolve_model
from softh_probe.models.tensor_parallel import check_can_be_split, model_mesh
from softh_probe.models.tokenizer import load_tokenizer
from softh_probe.planned.announced import AnnouncedRows
from softh_probe.planned.plan import Plan
from softh_probe.planned.prepared import PADDED
from softh_probe.planned.sums_memory import SumsMemory
from softh_probe.probe import SoftEntropyProbe
from softh_probe.redaction import log_to_stderr
from softh_probe.result import ProbeResult
from softh_probe.run.as_soft_entropy import SOFT_ENTROPY_JSON, soft_entropy_json
from softh_probe.run.centers import find_centers
from softh_probe.run.document_length import record_max_length, with_max_length
from softh_probe.run.feed import Feed
from softh_probe.run.forward import measurer, run_batches
from softh_probe.run.intervals import with_intervals
from softh_probe.run.output_folder import output_folder, shared_folder
from softh_probe.run.padding import batches_as, choose_batching, padding_choice
from softh_probe.run.planned_feed import PlannedFeed
from softh_probe.run.processes import ALONE, Processes, own_device, running_together
from softh_probe.run.provenance import check_model, choices, policy_info, provenance, record_preset, warnings
from softh_probe.run.resume import Unfinished, load_snapshot, resume, run_fingerprint
from softh_probe.run.signals import StopRequests
from softh_probe.run.snapshots import Progress, Snapshots, SnapshotTimer
from softh_probe.run.stopwatch import Stopwatch
from softh_probe.run.streamed_feed import StreamedFeed
from softh_probe.run.whole_states import check_whole_states
from softh_probe.run.written_report import write_report

CONFIG_YAML = "config.yaml"

logger = logging.getLogger(__name__)


def run(
    config: RunConfig,
    *,
    progress: bool = True,
    processes: Processes = ALONE,
    documents: Iterable[Document] | None = None,
    kept: Kept | None = None,
) -> ProbeResult:
    """Probe one checkpoint on one corpus and write the output folder.

    Args:
        config: what to run.
        progress: show progress and a summary of each stage on standard error. The lines are those of the logger
            `softh_probe`; they go to its own handlers instead where it has any.
        processes: those that measure this run together (see `softh_probe.run.processes`); all have to call this.
        documents: what a streamed run reads in place of `config.data`, which then only names it. An unfinished run goes
            on where it was, so they have to begin with the first one each time.
        kept: keeps tokenizer, tokens and plan in memory for the runs of this process that follow; None reads them anew.

    Returns:
        The result, as `ProbeResult.load(config.out)` reads it back; in every process.

    Raises:
        SofthProbeError: the configuration, the checkpoint or the corpus cannot be used; the output folder is then
            left as it was.
        Interrupted: asked to stop by SIGTERM, SIGUSR1 or Ctrl-C; the same call resumes the run.
    """
    if documents is not None and not config.stream:
        raise InputError("documents: they are read as they come, by a streamed run alone; set stream=True")
    processes = processes.with_models_of(config.tensor_parallel)
    progress = progress and processes.is_first
    with StopRequests() as stop, log_to_stderr() if progress else nullcontext():
        if processes.is_first:
            with output_folder(config.out, overwrite=config.overwrite) as folder:
                result = _run(config, folder, stop, processes, progress, documents, kept)
                assert result is not None
                result.save(folder)
            processes.from_first(result)
            return result
        with shared_folder(config.out) as folder:
            _run(config, folder, stop, processes, progress, documents, kept)
            received: ProbeResult = processes.from_first(None)
            Snapshots(folder, processes).clear()
            return received


def _run(
    config: RunConfig,
    folder: Path,
    stop: StopRequests,
    processes: Processes,
    progress: bool,
    documents: Iterable[Document] | None,
    kept: Kept | None,
) -> ProbeResult | None:
    """Measure this process's share of the batches; the first process returns the result of all and writes its page."""
    seconds = Stopwatch()
    snapshots = Snapshots(folder, processes)
    device_map = own_device(config.device_map, processes)
    with processes.first_ahead():  # the others find its corpus and plan in the cache
        with seconds("tokenise"):
            device = check_placement(config.dtype, device_map)
            if config.tokens_per_batch is None:
                config = dataclasses.replace(config, tokens_per_batch=tokens_per_batch_on(device))
            source = resolve_model(config.model, revision=config.revision)
            check_splitting(config, source)
            given, limit = config, length_limit(source, trust_remote_code=config.trust_remote_code, kept=kept)
            unfinished = load_snapshot(config, snapshots)
            config = with_max_length(config, limit, before=unfinished and unfinished[0].run["config"])
            feed = open_feed(config, source, processes, unfinished, documents=documents, progress=progress, kept=kept)
        known = Choices()
        record_preset(config, known)
        record_max_length(given, config, known, n_longer=feed.n_longer)
        for choice in (*known, *feed.choices):
            logger.info("%s", choice)
        logger.info("%s", feed.describe_corpus())
        with seconds("plan"):
            feed.group(PADDED)
        logger.info("%s", feed.describe_batches())
    with seconds("load"), running_together(processes):
        checkpoint = load_model(config, source, device_map)
    for choice in checkpoint.choices:
        logger.info("%s", choice)
    with checkpoint:
        check_model(checkpoint, feed.trial)
        check_whole_states(config, checkpoint.model, feed.trial, processes)
        with seconds("plan"):
            padding = _padding(config, checkpoint, feed.trial, unfinished, processes)
        if batches_as(padding) != PADDED:
            with seconds("plan"), processes.first_ahead():
                feed.group(batches_as(padding))
            logger.info("%s", feed.describe_batches())
        centers = find_centers(config, checkpoint.model, feed.trial, processes)
        probe = new_probe(config, checkpoint.model, feed.rows, centers.means)
        averaged = probe.check_mean_over(config.mean_over)
        info = checkpoint.info
        if info["stack"]:
            logger.info(
                "model: an encoder-decoder, whose encoder reads the documents; to measure its decoder, attach to that"
            )
        devices = ", ".join(info["devices"])
        logger.info("model: %s, %s on %s; %s", info["class"], info["dtype"], devices, _measuring(config, probe))
        memory = _place_sums(feed, probe, processes)
        fingerprint = run_fingerprint(config, checkpoint, feed.fingerprint(), padding)
        processes.agree(fingerprint)
        start = _start(unfinished, probe, fingerprint, feed, memory)
        processes.agree_on_progress(start.batches)
        stop.defer()
        timer = SnapshotTimer(
            snapshots,
            probe,
            start,
            stop,
            n_batches=feed.n_batches,
            minutes=config.snapshot_minutes,
            feed_state=feed.state,
            processes=processes,
        )
        run_batches(
            measurer(probe, processes),
            checkpoint.model,
            feed.batches(start.batches, partial(check_model, checkpoint)),
            first=start.batches,
            n_tokens_before=unfinished[1]["tokens"] if unfinished else 0,
            n_tokens=lambda: feed.n_tokens,
            reading=timer.keeping,
            after_batch=timer,
            progress=progress,
            processes=processes,
        )
        timer.wait(processes, keep=config.intervals)
        seconds.spent["forward"] = timer.seconds
        with seconds("finish"):
            feed.join(probe)
            result = probe.result() if processes.is_first else None
        if config.intervals:
            assert isinstance(feed.rows, Plan)
            with seconds("intervals"):
                result = with_intervals(
                    result,
                    config,
                    feed.rows,
                    probe,
                    checkpoint.model,
                    batching=batches_as(padding),
                    processes=processes,
                    stop=stop,
                    progress=progress,
                )
    if result is None:
        return None
    assert memory is not None
    with seconds("finish"):
        settings = Choices()
        record_preset(config, settings)
        record_max_length(given, config, settings, n_longer=feed.n_longer)
        result.info.update(provenance(config, checkpoint, feed.corpus_info()), sums_memory=memory.info())
        result.info.update(policy_info(config, result.info["positions"], feed.n_defined))
        centers.record(result)
        result.info.update(averaged, interruptions=start.interruptions, processes=processes.count)
        result.info["choices"] = choices(result, settings, checkpoint, feed.choices).to_json()
        result.info["warnings"] = warnings(result, feed.warnings())
        for text in result.info["warnings"]:
            logger.warning("%s", text)
        _write_settings(config, result, folder)
    result.info["seconds"] = seconds.spent
    result.info["tokens_per_second"] = result.info["tokens"] / seconds.spent["forward"]
    if config.report:
        write_report(result, folder)
    return result


def open_feed(
    config: RunConfig,
    source: ModelSource,
    processes: Processes,
    unfinished: Unfinished | None,
    *,
    documents: Iterable[Document] | None = None,
    progress: bool = True,
    kept: Kept | None = None,
) -> Feed:
    """Read the documents of a run, all of them or the first ones, with the checkpoint's tokenizer.

    Args:
        config: the run, with `tokens_per_batch` and `max_length`.
        source: the checkpoint.
        processes: those that share the batches.
        unfinished: the snapshot from which the run goes on.
        documents: what a streamed run reads in place of the configuration's data.
        progress: show a progress bar.
        kept: keeps tokenizer, tokens and plan in memory.

    Raises:
        InputError: the tokenizer or the data cannot be used.
    """
    made = Choices()
    tokenizer = load_tokenizer(
        source, tokenizer=config.tokenizer, trust_remote_code=config.trust_remote_code, choices=made, kept=kept
    )
    if not config.stream:
        return PlannedFeed(config, tokenizer, processes, choices=made, progress=progress, kept=kept)
    state = unfinished and unfinished[0].feed
    return StreamedFeed(config, tokenizer, processes, choices=made, documents=documents, state=state)


def load_model(config: RunConfig, source: ModelSource, device_map: str | None) -> Checkpoint:
    """Load the checkpoint as a configuration asks for it.

    Args:
        config: the run.
        source: the checkpoint.
        device_map: where the weights go.

    Raises:
        InputError: it cannot be loaded.
    """
    size, device = config.tensor_parallel, check_placement(config.dtype, device_map)
    return load_checkpoint(
        source,
        dtype=config.dtype,
        device_map=device_map,
        trust_remote_code=config.trust_remote_code,
        allow_pickle=config.allow_pickle,
        model_kwargs=config.model_kwargs,
        mesh=model_mesh(size, device) if size > 1 else None,
    )


def check_splitting(config: RunConfig, source: ModelSource) -> None:
    """Check that the checkpoint can be held by as many processes as a configuration asks for.

    Raises:
        InputError: it cannot.
    """
    if config.tensor_parallel > 1:
        check_can_be_split(
            source,
            config.tensor_parallel,
            trust_remote_code=config.trust_remote_code,
            model_kwargs=config.model_kwargs,
        )


def new_probe(
    config: RunConfig, model: torch.nn.Module, plan: AnnouncedRows, centers: Mapping[str, torch.Tensor] | None = None
) -> SoftEntropyProbe:
    """Make the probe that a configuration describes; `centers` are the means that it subtracts, where it does."""
    return SoftEntropyProbe(
        model,
        labels=config.labels,
        label_rows=config.label_rows,
        n_anchors=several("n_anchors", config.n_anchors),
        anchor_sets=config.anchor_sets,
        seed=config.seed,
        anchors=config.anchors,
        calibration=several("calibration", config.calibration),
        layers=config.layers,
        sites=config.sites,
        modules=find_modules(model, config.modules) if config.modules else None,
        plan=plan,
        positions=config.positions,
        center=centers or config.center,
        skip_special_tokens=config.skip_special_tokens,
    )


def _place_sums(feed: Feed, probe: SoftEntropyProbe, processes: Processes) -> SumsMemory | None:
    """Decide where sums go; None in a process that has none, since another one of its model measures."""
    if not processes.measures:
        return None
    memory = feed.place_sums(probe.layer_devices(), widths=probe.layer_widths())
    logger.info("sums:\n%s", memory.describe())
    return memory


def _start(
    unfinished: Unfinished | None,
    probe: SoftEntropyProbe,
    fingerprint: dict[str, Any],
    feed: Feed,
    memory: SumsMemory | None,
) -> Progress:
    """Take the memory of the sums, if this process has any, and load those of an unfinished run."""
    if memory is None:
        return resume(unfinished, None, fingerprint, feed.rows)
    probe.reserve(memory.on_host)
    return resume(unfinished, probe, fingerprint, feed.rows)


def _padding(
    config: RunConfig, checkpoint: Checkpoint, corpus: Corpus, unfinished: Unfinished | None, processes: Processes
) -> str:
    """Choose how to group documents into batches, the same in all processes and after an interruption."""
    padding: str | None = unfinished[0].run.get("padding") if unfinished else None
    if padding is None and processes.share == 0:
        with running_together(processes):
            padding = choose_batching(checkpoint.model, config, corpus, processes.agree_in_model)
    padding = processes.from_first(padding)
    checkpoint.choices.update(padding_choice(padding))
    return padding


def _write_settings(config: RunConfig, result: ProbeResult, folder: Path) -> None:
    """Write the configuration, and the values with the keys of another tool, like which they were measured."""
    write_text(folder / CONFIG_YAML, config_yaml(config))
    if config.like:
        write_text(folder / SOFT_ENTROPY_JSON, soft_entropy_json(result))


def _measuring(config: RunConfig, probe: SoftEntropyProbe) -> str:
    first, *others = config.variants
    sets = f"{config.anchor_sets} set{'s' * (config.anchor_sets > 1)} of {first.n_anchors} anchors"
    sets += f" (and {'; '.join(name_of(other, first) for other in others)})" if others else ""
    rows = f"{len(probe.layers)} {'layers' if config.sites == (RESIDUAL,) else 'rows of ' + ', '.join(config.sites)}"
    return f"measuring {rows} with {sets}, labels: {', '.join(config.labels) or 'none'}"
