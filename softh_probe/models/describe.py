"""What a probe would measure of a model, without running data: a table of its layers.

skeleton = load_skeleton(resolve_model("EleutherAI/pythia-160m"))
describe_layers(skeleton)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from accelerate import infer_auto_device_map
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from softh_probe.hooks.hook_points import (
    EMBEDDINGS,
    FINAL_NORM,
    HookPoints,
    block_name,
    dry_run,
    find_hook_points,
    stacks,
)
from softh_probe.models.checkpoint import SPREAD, auto_class, check_placement, without_head
from softh_probe.models.loading_errors import RELOAD_HINT, as_input_error, quiet_transformers
from softh_probe.models.source import ModelSource, fetch, small_files


def load_skeleton(source: ModelSource, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The transformer without its head and without weights: made from the config alone, on the meta device.

    load_skeleton(resolve_model("./checkpoint-500"))

    Raises InputError, naming file and remedy, for what is wrong with the checkpoint's config.
    """
    folder = source.folder or fetch(source, small_files(trust_remote_code))
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    config_file = folder / (source.gguf_file or "config.json")
    gguf = {"gguf_file": source.gguf_file} if source.gguf_file else {}
    with quiet_transformers(), as_input_error(f"model {source.name!r}: {config_file}", RELOAD_HINT):
        config = AutoConfig.from_pretrained(folder, **options, **gguf)
        with torch.device("meta"):
            model = auto_class(source.name, config).from_config(config, **options)
    return without_head(model).eval()


def describe_layers(skeleton: PreTrainedModel, device_map: str | None = None) -> pd.DataFrame:
    """A line for each row that a probe would measure: `name`, `module`, `class`, `width`, `device`.

    Calls and widths are those of a forward pass over four tokens without values. Where a model does not run so,
    blocks are taken to be called once each, and widths are what the config says.

    Args:
        skeleton: of `load_skeleton`; an encoder-decoder's two stacks are told apart by a column `stack`.
        device_map: where the model would be put, as `load_checkpoint` takes it.

    Raises:
        InputError: the model's blocks cannot be told, or there is no such device.
    """
    device_of = _devices(skeleton, check_placement("auto", device_map))
    paths = {id(module): path for path, module in skeleton.named_modules()}
    rows = []
    for name, stack in stacks(skeleton).items():
        for row, module, width in _calls(find_hook_points(stack)):
            path = paths[id(module)]
            kind = f"input of {type(module).__name__}" if row == EMBEDDINGS else type(module).__name__
            line = {"name": row, "module": path, "class": kind, "width": width, "device": device_of(path)}
            rows.append({"stack": name, **line} if name else line)
    return pd.DataFrame(rows)


def _devices(skeleton: PreTrainedModel, placement: str) -> Callable[[str], str]:
    """The device on which a module of that path would be."""
    if placement not in SPREAD:
        return lambda _: placement
    whole = list(getattr(skeleton, "_no_split_modules", None) or [])
    spread = infer_auto_device_map(skeleton, no_split_module_classes=whole, dtype=skeleton.dtype)

    def device_of(path: str) -> str:
        parts = path.split(".")
        outer = (".".join(parts[:n]) for n in range(len(parts), -1, -1))
        return str(next((spread[name] for name in outer if name in spread), placement))

    return device_of


def _calls(points: HookPoints) -> list[tuple[str, nn.Module, int | None]]:
    """The rows in the order of calls, each with its module and width."""
    width = getattr(getattr(points.entry, "config", None), "hidden_size", None)
    return dry_run(points) or [
        (EMBEDDINGS, points.blocks[0], width),
        *((block_name(i), block, width) for i, block in enumerate(points.blocks, start=1)),
        *((FINAL_NORM, norm, width) for norm in points.norms[-1:]),
    ]
