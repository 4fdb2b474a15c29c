"""Measure the hidden states of a folder: from a configuration to a folder of results."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from softh_probe.choices import Choices
from softh_probe.config import config_yaml, plain_config
from softh_probe.data.tokenizing import tokenizer_fingerprint
from softh_probe.estimators.variants import several
from softh_probe.files import write_text
from softh_probe.ingest.config import IngestConfig
from softh_probe.ingest.files import digest
from softh_probe.ingest.prepared import Prepared, prepare
from softh_probe.ingest.reading import FileReading, choices_told_later
from softh_probe.ingest.resume import load_unfinished, measurement_fingerprint, resume_meter
from softh_probe.labels import parse_label_sets
from softh_probe.meter import SoftEntropyMeter
from softh_probe.models.origin import describe_tokenizer
from softh_probe.redaction import log_to_stderr
from softh_probe.result import ProbeResult
from softh_probe.run.output_folder import check_folder, output_folder
from softh_probe.run.peak_memory import peak_memory_gib
from softh_probe.run.pipeline import CONFIG_YAML
from softh_probe.run.signals import StopRequests
from softh_probe.run.snapshots import Snapshots, SnapshotTimer
from softh_probe.run.stopwatch import Stopwatch
from softh_probe.run.written_report import write_report

logger = logging.getLogger(__name__)


def ingest(config: IngestConfig, *, progress: bool = True) -> ProbeResult:
    """Measure the hidden states in the files of a folder and write the output folder.

        ingest(IngestConfig(folder="states", tokenizer="Qwen/Qwen3-8B", layout="vllm", layers="0-36", out="out"))

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


def dry_run(config: IngestConfig) -> Prepared:
    """Find what would be read, and the memory that it takes; nothing is written.

    Raises:
        InputError: as `ingest` raises it.
    """
    check_folder(config.out, overwrite=config.overwrite)
    return prepare(config)


def _ingest(config: IngestConfig, folder: Path, stop: StopRequests, progress: bool) -> ProbeResult:
    seconds = Stopwatch()
    with seconds("list"):
        snapshots = Snapshots(folder)
        unfinished = load_unfinished(config, snapshots)
        found = prepare(config)
    logger.info("%s", found.describe())
    meter = new_meter(config, found)
    fingerprint = tokenizer_fingerprint(found.tokenizer)
    start = resume_meter(
        unfinished, meter, measurement_fingerprint(config, found.spec, digest(found.files), fingerprint)
    )
    reading = FileReading(config, found, meter)
    reading.restore(start.feed)
    stop.defer()
    timer = SnapshotTimer(
        snapshots,
        meter,
        start,
        stop,
        n_batches=len(found.files),
        minutes=config.snapshot_minutes,
        feed_state=reading.state,
        unit="files",
    )
    reading.run(start.batches, timer, progress=progress)
    seconds.spent["read"] = timer.seconds
    reading.require_some()
    with seconds("finish"), choices_told_later():
        result = meter.result(name=config.name or Path(config.folder).expanduser().resolve().name, notes=config.notes)
        made = Choices(found.choices)
        made.update(Choices.from_json(result.info["choices"]))
        result.info.update(_provenance(config, found, fingerprint), **found.mean_rows)
        result.info["corpus"] |= reading.corpus_info()
        result.info.update(ingest={**found.spec.to_json(), **reading.skipped.to_json()})
        result.info.update(interruptions=start.interruptions, choices=made.to_json())
        result.info["warnings"] = [*reading.warnings(), *made.warnings()]
        for text in result.info["warnings"]:
            logger.warning("%s", text)
        write_text(folder / CONFIG_YAML, config_yaml(config))
    result.info["seconds"] = seconds.spent
    result.info["tokens_per_second"] = result.info["tokens"] / seconds.spent["read"]
    if config.report:
        write_report(result, folder)
    return result


def new_meter(config: IngestConfig, found: Prepared) -> SoftEntropyMeter:
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
            skip_special_tokens=found.tokenizer if config.skip_special_tokens else (),
            widths=found.spec.widths,
            n_blocks=config.n_blocks,
        )


def _provenance(config: IngestConfig, found: Prepared, fingerprint: str | None) -> dict[str, Any]:
    described = describe_tokenizer(found.tokenizer) or {}
    return {
        "config": plain_config(config),
        "tokenizer": {**described, "tokenizer": config.tokenizer, "sha256": fingerprint},
        "sums_memory": found.memory.info(),
        "peak_memory_gib": peak_memory_gib(),
    }
