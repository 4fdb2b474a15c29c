"""What a measurement of a folder will read, and the memory that it takes, before any hidden state is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from softh_probe.choices import Choices
from softh_probe.config import tokens_per_batch_on
from softh_probe.errors import InputError
from softh_probe.ingest.config import IngestConfig
from softh_probe.ingest.files import ListedFile, list_files
from softh_probe.ingest.spec import Spec, settle
from softh_probe.labels import parse_label_sets
from softh_probe.layer_means import MEAN_OVER, select_mean_rows
from softh_probe.models.placement import SPREAD, check_device
from softh_probe.models.tokenizer import load_named_tokenizer
from softh_probe.planned.memory import place_streamed_sums
from softh_probe.planned.streamed import StreamedRows
from softh_probe.planned.sums_memory import GIB, SumsMemory
from softh_probe.positions import parse_positions


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What is known before any hidden state is read.

    Attributes:
        files: the files, in their order.
        spec: what each has to hold.
        tokenizer: of their tokens.
        device: where states are measured.
        piece: tokens that are read at a time; None reads each sequence whole.
        memory: that of the sums.
        mean_rows: the rows whose mean was asked for, as an entry of a result's `info`; none for those of default.
        choices: what was chosen for the user.
    """

    files: list[ListedFile]
    spec: Spec
    tokenizer: PreTrainedTokenizerBase
    device: str
    piece: int | None
    memory: SumsMemory
    mean_rows: dict[str, list[str]]
    choices: Choices

    @property
    def n_bytes(self) -> int:
        """Bytes of all files."""
        return sum(max(0, file.size) for file in self.files)

    @property
    def piece_bytes(self) -> int | None:
        """Bytes of a piece of float32 states of all rows, as it is read and as it is given to the meter."""
        return None if self.piece is None else 2 * 4 * self.piece * sum(self.spec.widths.values())

    def describe(self) -> str:
        """Describe files, rows and memory for readers."""
        spec = self.spec
        widths = ", ".join(map(str, dict.fromkeys(spec.widths.values())))
        piece = "sequences are read whole"
        if self.piece is not None and self.piece_bytes is not None:
            piece = f"read by {self.piece:,} tokens at a time, at most {self.piece_bytes / GIB:.2f} GiB in float32"
        return "\n".join(
            [
                *map(str, self.choices),
                f"files: {len(self.files):,}, {self.n_bytes / GIB:.2f} GiB; layout {spec.layout}; "
                f"{len(spec.rows)} rows of width {widths} on {self.device}; {piece}",
                f"sums:\n{self.memory.describe()}",
            ]
        )

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        piece = None if self.piece_bytes is None else self.piece_bytes / GIB
        return {
            "files": len(self.files),
            "gib": self.n_bytes / GIB,
            **self.spec.to_json(),
            "device": self.device,
            "tokens_at_a_time": self.piece,
            "states_gib": piece,
            "sums_memory": self.memory.info(),
            "choices": self.choices.to_json(),
            "warnings": self.choices.warnings(),
        }


def prepare(config: IngestConfig) -> Prepared:
    """List the files, and find what they hold and what memory their measurement takes.

    Raises:
        InputError: folder, tokenizer or device cannot be used, or there is not as much memory.
    """
    choices = Choices()
    device = _device(config)
    files = list_files(config)
    tokenizer = load_named_tokenizer(config.tokenizer, choices=choices)
    spec = settle(config, files, choices)
    mean_rows = {}
    if config.mean_over is not None:
        n_blocks = {"n_blocks": config.n_blocks}
        mean_rows = {MEAN_OVER: select_mean_rows(config.mean_over, list(spec.widths), n_blocks)}
    is_whole = any(policy.name == "last" for policy in parse_positions(config.positions, roles=()))
    return Prepared(
        files=files,
        spec=spec,
        tokenizer=tokenizer,
        device=device,
        piece=None if is_whole else config.tokens_per_batch or tokens_per_batch_on(device),
        memory=_memory(config, spec, device),
        mean_rows=mean_rows,
        choices=choices,
    )


def _device(config: IngestConfig) -> str:
    if config.device_map in SPREAD:
        raise InputError(f"device_map {config.device_map!r}: there is no model to spread; expected a device, as cuda:0")
    return check_device(config.device_map)


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
