"""Resume an unfinished measurement of a folder, if its settings and files are those of before."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from softh_probe.config import EXECUTION_FIELDS, plain_config
from softh_probe.errors import InputError
from softh_probe.ingest.config import IngestConfig
from softh_probe.ingest.spec import Spec
from softh_probe.meter import SoftEntropyMeter
from softh_probe.run.resume import START_ANEW, Unfinished, find_unfinished
from softh_probe.run.snapshots import Progress, Snapshots

#: Fields that decide nothing that is measured; the folder may have moved, and its files count.
_NOT_MEASURED = EXECUTION_FIELDS | {"folder", "manifest", "tokenizer", "name", "notes"}

logger = logging.getLogger(__name__)


def load_unfinished(config: IngestConfig, snapshots: Snapshots) -> Unfinished | None:
    """Load the newest snapshot of an unfinished measurement with these settings.

    Raises:
        InputError: the folder holds one with other settings, and neither `overwrite` is on nor `resume` off.
    """

    def differing(run: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        theirs, ours = run["config"], _config_of(config)
        return {name: (theirs.get(name), ours[name]) for name in ours if theirs.get(name) != ours[name]}

    return find_unfinished(snapshots, differing, out=config.out, wanted=config.resume, overwrite=config.overwrite)


def measurement_fingerprint(config: IngestConfig, spec: Spec, files: str, tokenizer: str | None) -> dict[str, Any]:
    """Collect everything that determines the numbers (JSON values).

    Args:
        config: the settings.
        spec: layout, rows and widths.
        files: digest of the files.
        tokenizer: digest of the tokenizer.
    """
    return {"config": _config_of(config), "files": files, "tokenizer": tokenizer, **spec.to_json()}


def resume_meter(unfinished: Unfinished | None, meter: SoftEntropyMeter, run: dict[str, Any]) -> Progress:
    """Load the sums of an unfinished measurement into a meter that has measured nothing.

    Returns:
        The progress from which it is to be continued.

    Raises:
        InputError: files, tokenizer or layout have changed.
    """
    if unfinished is None:
        return Progress(run=run, batches=0, seconds=0.0, interruptions=0)
    progress, state = unfinished
    if changed := [name for name in run if progress.run.get(name) != run[name]]:
        raise InputError(
            f"out: since the unfinished measurement in this folder began, {', '.join(changed)} changed though the "
            f"configuration is the same; {START_ANEW}"
        )
    meter.load_state_dict(state)
    logger.info("resuming after %s files, which took %s s", f"{progress.batches:,}", f"{progress.seconds:,.0f}")
    return Progress(
        run=run,
        batches=progress.batches,
        seconds=progress.seconds,
        interruptions=progress.interruptions + 1,
        feed=progress.feed,
    )


def _config_of(config: IngestConfig) -> dict[str, Any]:
    return {name: value for name, value in plain_config(config).items() if name not in _NOT_MEASURED}
