"""Resume an unfinished measurement of a folder, if its settings and files are those of before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from softh_probe.config import EXECUTION_FIELDS, plain_config
from softh_probe.ingest.config import IngestConfig
from softh_probe.ingest.spec import Spec
from softh_probe.meter import SoftEntropyMeter
from softh_probe.run.resume import Unfinished, find_unfinished, go_on
from softh_probe.run.snapshots import Progress, Snapshots

#: Fields that decide nothing that is measured; the folder may have moved, and its files count.
_NOT_MEASURED = EXECUTION_FIELDS | {"folder", "manifest", "tokenizer", "name", "notes"}


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
    return go_on(unfinished, meter, run, unfinished[0].run, what="measurement", unit="files")


def _config_of(config: IngestConfig) -> dict[str, Any]:
    return {name: value for name, value in plain_config(config).items() if name not in _NOT_MEASURED}
