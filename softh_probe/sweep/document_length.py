"""One length of documents for all checkpoints of a sweep."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from softh_probe.choices import Choices
from softh_probe.errors import SofthProbeError
from softh_probe.run.document_length import record_max_length, with_max_length
from softh_probe.sweep.config import SweepConfig
from softh_probe.sweep.folder import SweepFolder
from softh_probe.sweep.grid import GridPoint

logger = logging.getLogger(__name__)


def with_shared_length(config: SweepConfig, points: Sequence[GridPoint]) -> tuple[SweepConfig, list[str]]:
    """Set `max_length` where it is null: the default, or what every checkpoint takes.

    A sweep that goes on keeps its length. Checkpoints share one length, so that they are measured on the same tokens. A
    checkpoint whose config cannot be read is left out; its measurement says why.

    Args:
        config: the sweep.
        points: its checkpoints.

    Returns:
        The configuration, and a line for readers of the table where the length is shorter than the default.
    """
    if config.max_length is not None:
        return config, []
    from softh_probe.models.lengths import length_limit  # imports transformers
    from softh_probe.models.source import resolve_model

    folder = SweepFolder(config.out)
    if folder.is_sweep():
        with contextlib.suppress(OSError, ValueError, yaml.YAMLError):
            before = yaml.safe_load((folder.path / "config.yaml").read_text(encoding="utf-8"))
            if isinstance(before, dict) and before.get("max_length"):
                return with_max_length(config, None, before=before), []
    limits = []
    for point in _of_different_configs(points):
        with contextlib.suppress(SofthProbeError):
            source = resolve_model(point.source, revision=point.revision, need_weights=False)
            limits.append(length_limit(source, trust_remote_code=config.trust_remote_code))
    choices = Choices()
    least = min((limit for limit in limits if limit is not None), default=None)
    used = with_max_length(config, least)
    record_max_length(config, used, choices)
    for line in choices.warnings():
        logger.warning("%s", line)
    return used, choices.warnings()


def _of_different_configs(points: Iterable[GridPoint]) -> list[GridPoint]:
    """Keep one checkpoint of each hub model, and of local ones with equal config.json."""
    kept: dict[str, GridPoint] = {}
    for point in points:
        file = Path(point.source).expanduser() / "config.json"
        key = file.read_text(encoding="utf-8", errors="replace") if point.local and file.is_file() else point.model
        kept.setdefault(key, point)
    return list(kept.values())
