"""The dry run of one checkpoint: what a run would measure, and the memory and place it would take, without weights.

The corpus is tokenised and planned, and kept in the cache for the run. Of the model, only config and tokenizer are
read; weights are loaded only to time a few batches. The output folder is left as it is.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import PreTrainedModel

from softh_probe.choices import Choices
from softh_probe.config import RunConfig, plain_config, tokens_per_batch_on
from softh_probe.durations import duration
from softh_probe.errors import InputError
from softh_probe.hooks.hook_points import find_hook_points, select_layers
from softh_probe.hooks.named_modules import find_modules
from softh_probe.layer_means import select_mean_rows
from softh_probe.layer_places import block_index, parse_sites
from softh_probe.models.checkpoint import Checkpoint
from softh_probe.models.describe import describe_layers, load_body_skeleton, weights_by_device
from softh_probe.models.lengths import longest_document
from softh_probe.models.placement import check_placement
from softh_probe.models.source import ModelSource, check_weights, resolve_model
from softh_probe.models.tensor_parallel import split_parameters
from softh_probe.planned.memory import ALL_POSITIONS, BINS
from softh_probe.planned.prepared import PADDED
from softh_probe.planned.sums_memory import GIB, SumsMemory
from softh_probe.positions import describe_policy
from softh_probe.run.document_length import record_max_length, with_max_length
from softh_probe.run.feed import Feed
from softh_probe.run.output_folder import UNFINISHED, check_folder
from softh_probe.run.pipeline import check_splitting, open_feed
from softh_probe.run.processes import ALONE, Processes, own_device
from softh_probe.run.provenance import check_model, policy_info
from softh_probe.run.resume import check_sample, load_snapshot
from softh_probe.run.snapshots import Snapshots
from softh_probe.run.timing import Timing, time_run

_LEFT_OUT = ("documents_empty", "documents_too_short", "documents_left_out", "documents_longer_than_max_length")


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What a run would do.

    Attributes:
        config: the run's configuration, with `tokens_per_batch`.
        model: class, model type, weights, number format, GiB by device of one process, and the number of processes
            that hold the model (JSON values).
        corpus: counts and checksum, as a result has them (JSON values).
        feed: documents, batches and label rows, as long as no padding reaches real tokens.
        layers: the device of each layer.
        memory: the sums of all layers.
        done: batches that an unfinished run in the output folder has done.
        choices: what was chosen for the user.
        timing: how long it takes, or why that is not known; None where nobody asked.
        warnings: what would limit the result or stop the run, as far as it is known.
    """

    config: RunConfig
    model: dict[str, Any]
    corpus: dict[str, Any]
    feed: Feed
    layers: dict[str, torch.device]
    memory: SumsMemory
    done: int
    choices: Choices
    timing: Timing | str | None
    warnings: list[str]

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        memory = self.memory
        n = len(self.layers)
        return {
            "config": plain_config(self.config),
            "model": self.model,
            "corpus": self.corpus,
            **self.feed.sizes(),
            **self.policy(),
            "label_sets": {
                name: {
                    "labels": memory.labels_by_set[name],
                    "rows": memory.rows_by_set[name],
                    "memory_gib": n * memory.bytes_by_set[name] / GIB,
                    **dataclasses.asdict(memory.sampling[name]),
                }
                for name in memory.labels_by_set
                if name not in (ALL_POSITIONS, BINS)
            },
            "sums_memory": {**memory.info(), "total_gib": sum(memory.bytes_by_place.values()) / GIB},
            "layers": {layer: str(device) for layer, device in self.layers.items()},
            "out": {"folder": str(Path(self.config.out).expanduser().resolve()), "batches_done": self.done},
            "timing": self.timing._asdict() if isinstance(self.timing, Timing) else self.timing,
            "choices": self.choices.to_json(),
            "warnings": self.warnings,
        }

    def policy(self) -> dict[str, Any]:
        """Describe the policy of positions (JSON values); nothing where none was asked for."""
        return policy_info(self.config, self.feed.sizes()["positions"], self.feed.n_defined)

    def describe(self) -> str:
        """Format as text."""
        model, corpus = self.model, self.corpus
        weights = ", ".join(f"{size:.2f} GiB on {device}" for device, size in model["weights_gib"].items())
        if model["processes"] > 1:
            weights += f" of each of {model['processes']} processes"
        left_out = [
            f"{corpus[name]:,} {name.removeprefix('documents_').replace('_', ' ')}"
            for name in _LEFT_OUT
            if corpus[name]
        ]
        devices = ", ".join(dict.fromkeys(map(str, self.layers.values())))
        resumes = f", which holds {self.done:,} batches of this run" if self.done else ""
        lines = [
            f"model: {model['class']}, {model['n_parameters']:,} weights in {model['dtype']}: {weights}",
            self.feed.describe_corpus() + f" ({', '.join(left_out)})" * bool(left_out),
            self.feed.describe_batches(),
            *(f"positions: {describe_policy(policy)}" for policy in self.policy().values()),
            f"layers: {len(self.layers)}, {next(iter(self.layers))} to {list(self.layers)[-1]}, on {devices}",
            f"sums:\n{self.memory.describe()}",
            *([] if self.timing is None else [f"time: {_describe_timing(self.timing, self.config)}"]),
            f"results: {Path(self.config.out).expanduser().resolve()}{resumes}",
        ]
        certain = [f"choice: {choice}" for choice in self.choices if choice.certain]
        return "\n".join([*lines, *certain, *(f"warning: {text}" for text in self.warnings)])


def dry_run(config: RunConfig, *, progress: bool = True, processes: Processes = ALONE, timed: bool = False) -> DryRun:
    """Plan a run without weights, and check what can be checked without them.

    Args:
        config: the run.
        progress: show a progress bar on standard error while the corpus is tokenised.
        processes: those that would measure the run together.
        timed: load the weights all the same, where they are on this machine, and time a few batches.

    Raises:
        InputError: an error that the run would raise before it loads the weights, or a lack of memory for its sums.
    """
    processes = processes.with_models_of(config.tensor_parallel)
    check_folder(config.out, overwrite=config.overwrite)
    device_map = own_device(config.device_map, processes)
    device = check_placement(config.dtype, device_map)
    if config.tokens_per_batch is None:
        config = dataclasses.replace(config, tokens_per_batch=tokens_per_batch_on(device))
    work = Path(config.out).expanduser().resolve() / UNFINISHED
    source = resolve_model(config.model, revision=config.revision, need_weights=False)
    check_splitting(config, source)
    skeleton = load_body_skeleton(source, trust_remote_code=config.trust_remote_code)
    given, limit = config, longest_document(skeleton)
    unfinished = load_snapshot(config, _Untouched(work, processes))
    config = with_max_length(config, limit, before=unfinished and unfinished[0].run["config"])
    feed = open_feed(config, source, processes, unfinished, progress=progress)
    choices = Choices()
    record_max_length(given, config, choices, n_longer=feed.n_longer)
    feed.group(PADDED)
    choices.update(feed.choices)
    check_sample(unfinished, feed.rows)
    checkpoint = Checkpoint(model=skeleton, info={})
    check_model(checkpoint, feed.trial)
    dtype = _dtype(config, skeleton, device)
    parts = dict.fromkeys(split_parameters(skeleton), processes.per_model) if processes.per_model > 1 else None
    weights = weights_by_device(skeleton, device_map, dtype, parts)
    layers, widths = _layers(config, skeleton, device_map)
    memory = feed.place_sums(layers, needed=weights, widths=widths)
    model = {
        "model": source.name,
        "class": type(skeleton).__name__,
        "model_type": skeleton.config.model_type,
        "dtype": str(dtype).removeprefix("torch."),
        "n_parameters": skeleton.num_parameters(),
        "weights_gib": {place: size / GIB for place, size in weights.items()},
        "processes": processes.per_model,
    }
    return DryRun(
        config=config,
        model=model,
        corpus=feed.corpus_info(),
        feed=feed,
        layers=layers,
        memory=memory,
        done=unfinished[0].batches if unfinished else 0,
        choices=choices,
        timing=_timing(config, source, feed, device_map, processes) if timed and processes.is_first else None,
        warnings=[*choices.warnings(), *feed.warnings(), *_missing_weights(config, source)],
    )


def _timing(
    config: RunConfig, source: ModelSource, feed: Feed, device_map: str | None, processes: Processes
) -> Timing | str:
    """Time a few batches in this process alone."""
    if processes.per_model > 1:
        return f"{processes.per_model} processes hold the model, and a dry run times those of one"
    return time_run(config, source, feed, device_map)


def _describe_timing(timing: Timing | str, config: RunConfig) -> str:
    """Say how long forward passes will take."""
    if isinstance(timing, str):
        return f"not known: {timing}"
    expected = "" if timing.seconds is None else f"{duration(timing.seconds)} of forward passes, "
    passes = "; intervals take a second pass" if config.intervals else ""
    rate = f"{timing.tokens_per_second:,.0f} tokens/s on {timing.device} with the probe"
    batches = f"{timing.batches} batch{'es were' if timing.batches > 1 else ' was'} timed"
    return f"{expected}{rate} ({batches}), {duration(timing.load_seconds)} to load the weights{passes}"


class _Untouched(Snapshots):
    """Snapshots of which none is removed."""

    def clear(self) -> None:
        """Remove nothing."""

    def clear_others(self) -> None:
        """Remove nothing."""


def _missing_weights(config: RunConfig, source: ModelSource) -> list[str]:
    """Say why the weights of a local checkpoint could not be loaded; they may come later."""
    if source.folder is None or source.gguf_file:
        return []
    try:
        check_weights(source.name, source.folder, config.allow_pickle)
    except InputError as error:
        return [str(error)]
    return []


def _dtype(config: RunConfig, skeleton: PreTrainedModel, device: str) -> torch.dtype:
    if config.dtype == "auto" and device == "cpu":
        return torch.float32
    found: torch.dtype = skeleton.dtype if config.dtype == "auto" else getattr(torch, config.dtype)
    return found


def _layers(
    config: RunConfig, skeleton: PreTrainedModel, device_map: str | None
) -> tuple[dict[str, torch.device], dict[str, int | None]]:
    """Find the rows to measure, the device of the sums of each, and the width of its hidden states."""
    table = describe_layers(skeleton, device_map, sites=config.sites, modules=config.modules)
    devices: dict[str, str] = dict(zip(table["name"], table["device"], strict=True))
    widths = {
        name: None if pd.isna(width) else int(width) for name, width in zip(table["name"], table["width"], strict=True)
    }
    found = find_modules(skeleton, config.modules) if config.modules else {}
    points = find_hook_points(skeleton, found, parse_sites(config.sites), centers=config.center)
    for row in [*devices]:
        for own in points.rows_of(row):
            devices[own], widths[own] = devices[row], widths[row]
    n_calls = max([block_index(name) or 0 for name in devices], default=0)
    places = [[row for row in rows if row in devices] for rows in points.measured_places(n_calls)]
    on_host = ("disk", "mps")  # offloaded weights come and go, and Apple's GPUs have no float64
    placed = {
        layer: torch.device("cpu" if devices[layer] in on_host else devices[layer])
        for layer in select_layers(config.layers, places)
    }
    if config.mean_over is not None:
        select_mean_rows(config.mean_over, list(placed), {"n_blocks": n_calls or None})
    return placed, widths
