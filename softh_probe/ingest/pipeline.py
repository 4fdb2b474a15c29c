"""Measure the hidden states of a folder: from a configuration to a folder of results."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from softh_probe.choices import Choices
from softh_probe.config import config_yaml, plain_config
from softh_probe.data.tokenizing import tokenizer_fingerprint
from softh_probe.errors import InputError
from softh_probe.estimators.variants import several
from softh_probe.files import write_text
from softh_probe.ingest.config import IngestConfig
from softh_probe.ingest.files import digest, list_files
from softh_probe.ingest.reading import FileReading, choices_told_later
from softh_probe.ingest.resume import load_unfinished, measurement_fingerprint, resume_meter
from softh_probe.ingest.spec import Spec, settle
from softh_probe.labels import parse_label_sets
from softh_probe.layer_means import MEAN_OVER, select_mean_rows
from softh_probe.meter import SoftEntropyMeter
from softh_probe.models.origin import describe_tokenizer
from softh_probe.models.placement import SPREAD, check_device
from softh_probe.models.tokenizer import load_named_tokenizer
from softh_probe.planned.memory import place_streamed_sums
from softh_probe.planned.streamed import StreamedRows
from softh_probe.planned.sums_memory import SumsMemory
from softh_probe.redaction import log_to_stderr
from softh_probe.result import ProbeResult
from softh_probe.run.output_folder import output_folder
from softh_probe.run.peak_memory import peak_memory_gib
from softh_probe.run.pipeline import CONFIG_YAML
from softh_probe.run.signals import StopRequests
from softh_probe.run.snapshots import Snapshots, SnapshotTimer
from softh_probe.run.stopwatch import Stopwatch
from softh_probe.run.written_report import write_report

logger = logging.getLogger(__name__)


def ingest(config: IngestConfig, *, progress: bool = True) -> ProbeResult:
    """Measure the hidden states in the files of a folder and write the output folder.

    Args:
        config: what to measure.
        progress: show progress and a summary of each stage on standard error, as `softh_probe.run.run` does.

    Returns:
        The result, as `ProbeResult.load(config.out)` reads it back.

    Raises:
        SofthProbeError: the configuration, the tokenizer or the files cannot be used; the output folder is then left as
            it was.
        Interrupted: asked to stop by SIGTERM, SIGUSR1 or Ctrl-C; the same call resumes after the last file.
    """
    with (
        StopRequests() as stop,
        log_to_stderr() if progress else nullcontext(),
        output_folder(config.out, overwrite=config.overwrite) as folder,
    ):
        result = _ingest(config, folder, stop, progress)
        result.save(folder)
        return result


def _ingest(config: IngestConfig, folder: Path, stop: StopRequests, progress: bool) -> ProbeResult:
    seconds = Stopwatch()
    with seconds("list"):
        device = _device(config)
        made = Choices()
        files = list_files(config)
        unfinished = load_unfinished(config, snapshots := Snapshots(folder))
        tokenizer = load_named_tokenizer(config.tokenizer, choices=made)
        spec = settle(config, files, made)
    for choice in made:
        logger.info("%s", choice)
    n_bytes = sum(max(0, file.size) for file in files)
    logger.info("files: %s, %.2f GiB; %s", f"{len(files):,}", n_bytes / 2**30, _described(spec))
    memory = _memory(config, spec, device)
    logger.info("sums:\n%s", memory.describe())
    meter = new_meter(config, spec, tokenizer)
    averaged = _mean_rows(config, spec)
    fingerprint = measurement_fingerprint(config, spec, digest(files), tokenizer_fingerprint(tokenizer))
    start = resume_meter(unfinished, meter, fingerprint)
    reading = FileReading(config, spec, files, meter, n_vocabulary=_n_vocabulary(tokenizer), device=device)
    reading.restore(start.feed)
    stop.defer()
    timer = SnapshotTimer(
        snapshots,
        meter,
        start,
        stop,
        n_batches=len(files),
        minutes=config.snapshot_minutes,
        feed_state=reading.state,
        unit="files",
    )
    reading.run(start, timer, n_bytes, progress=progress)
    seconds.spent["read"] = timer.seconds
    reading.require_some()
    with seconds("finish"), choices_told_later():
        result = meter.result(name=config.name or Path(config.folder).expanduser().resolve().name, notes=config.notes)
        made.update(Choices.from_json(result.info["choices"]))
        result.info.update(_provenance(config, spec, tokenizer), sums_memory=memory.info(), **averaged)
        result.info["corpus"] |= reading.corpus_info()
        result.info.update(ingest={**spec.to_json(), **reading.skipped.to_json()}, interruptions=start.interruptions)
        result.info["choices"] = made.to_json()
        result.info["warnings"] = [*reading.warnings(), *made.warnings()]
        for text in result.info["warnings"]:
            logger.warning("%s", text)
        write_text(folder / CONFIG_YAML, config_yaml(config))
    result.info["seconds"] = seconds.spent
    result.info["tokens_per_second"] = result.info["tokens"] / seconds.spent["read"]
    if config.report:
        write_report(result, folder)
    return result


def new_meter(config: IngestConfig, spec: Spec, tokenizer: PreTrainedTokenizerBase) -> SoftEntropyMeter:
    """Make the meter that a configuration describes."""
    with choices_told_later():
        return SoftEntropyMeter(
            labels=[s.name for s in parse_label_sets(config.labels) if s.direction != "column"],
            n_anchors=several("n_anchors", config.n_anchors),
            anchor_sets=config.anchor_sets,
            seed=config.seed,
            calibration=several("calibration", config.calibration),
            label_rows=config.label_rows,
            anchors=config.anchors,
            positions=config.positions,
            skip_special_tokens=tokenizer if config.skip_special_tokens else (),
            widths=spec.widths,
            n_blocks=config.n_blocks,
        )


def _device(config: IngestConfig) -> str:
    if config.device_map in SPREAD:
        raise InputError(f"device_map {config.device_map!r}: there is no model to spread; expected a device, as cuda:0")
    return check_device(config.device_map)


def _n_vocabulary(tokenizer: PreTrainedTokenizerBase) -> int:
    return max(tokenizer.get_vocab().values()) + 1


def _memory(config: IngestConfig, spec: Spec, device: str) -> SumsMemory:
    """Compute the memory of the sums by the rows that labels take at most, and check that it is there.

    Raises:
        InputError: it is not.
    """
    rows = StreamedRows(parse_label_sets(config.labels), label_rows=config.label_rows, seed=config.seed)
    memory = place_streamed_sums(
        rows,
        dict.fromkeys(spec.widths, torch.device(device)),
        n_anchors=[variant.n_anchors for variant in config.variants],
        anchor_sets=config.anchor_sets,
        sums_memory_gb=config.sums_memory_gb,
        widths=spec.widths,
    )
    if memory.on_host:
        raise InputError(
            f"device_map: the sums of {len(memory.on_host)} rows do not fit on {device}; measure on the CPU "
            "(--device-map cpu), or lower label_rows"
        )
    return memory


def _mean_rows(config: IngestConfig, spec: Spec) -> dict[str, list[str]]:
    if config.mean_over is None:
        return {}
    return {MEAN_OVER: select_mean_rows(config.mean_over, list(spec.widths), {"n_blocks": config.n_blocks})}


def _described(spec: Spec) -> str:
    widths = ", ".join(map(str, dict.fromkeys(spec.widths.values())))
    return f"layout {spec.layout}; {len(spec.rows)} rows of width {widths}"


def _provenance(config: IngestConfig, spec: Spec, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    described = describe_tokenizer(tokenizer) or {}
    return {
        "config": plain_config(config),
        "tokenizer": {**described, "tokenizer": config.tokenizer, "sha256": tokenizer_fingerprint(tokenizer)},
        "peak_memory_gib": peak_memory_gib(),
    }
