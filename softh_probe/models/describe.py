"""A table of the layers that a probe would measure, made without weights and data.

skeleton = load_skeleton(resolve_model("EleutherAI/pythia-160m"))
describe_layers(skeleton)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from accelerate import infer_auto_device_map
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from softh_probe.hooks.block_parts import widths
from softh_probe.hooks.hook_points import HookPoints, dry_run, find_hook_points, stacks
from softh_probe.hooks.named_modules import find_modules
from softh_probe.layer_places import (
    EMBEDDINGS,
    FINAL_NORM,
    RESIDUAL,
    block_index,
    block_name,
    parse_sites,
    site_of,
)
from softh_probe.models.architecture import body_of, build_skeleton, check_reads_text, model_class, without_head
from softh_probe.models.loading_errors import RELOAD_HINT, as_input_error, quiet_transformers
from softh_probe.models.placement import SPREAD, check_placement
from softh_probe.models.source import ModelSource, fetch, small_files


def load_skeleton(source: ModelSource, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Build the transformer of a checkpoint without head and weights: from its config, on the meta device.

        load_skeleton(resolve_model("./checkpoint-500"))

    Args:
        source: the checkpoint, as `resolve_model` finds it.
        trust_remote_code: allow Python code that comes with the checkpoint.

    Raises:
        InputError: the checkpoint's config is missing or damaged, or needs code that is not allowed; the model reads
            no text.
    """
    whole = load_whole_skeleton(source, trust_remote_code=trust_remote_code)
    skeleton = without_head(whole)
    if not skeleton.config.is_encoder_decoder:  # its stacks are described one by one
        check_reads_text(source.name, skeleton, whole)
    return skeleton


def load_body_skeleton(source: ModelSource, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Build the part of a checkpoint that a run measures, without weights on the meta device.

    Raises:
        InputError: as `load_skeleton` does; or the encoder cannot be run by itself.
    """
    whole = load_whole_skeleton(source, trust_remote_code=trust_remote_code)
    body = body_of(source.name, whole)
    check_reads_text(source.name, body, whole)
    return body


def load_whole_skeleton(source: ModelSource, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Build the model that a checkpoint would be loaded as, perhaps with a head, without weights on the meta device.

    Raises:
        InputError: as `load_skeleton` does.
    """
    folder = source.folder or fetch(source, small_files(trust_remote_code))
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    config_file = folder / (source.gguf_file or "config.json")
    gguf = {"gguf_file": source.gguf_file} if source.gguf_file else {}
    with quiet_transformers(), as_input_error(f"model {source.name!r}: {config_file}", RELOAD_HINT):
        config = AutoConfig.from_pretrained(folder, **options, **gguf)
        return build_skeleton(model_class(source.name, config), config, **options)


def describe_layers(
    skeleton: PreTrainedModel,
    device_map: str | None = None,
    *,
    sites: Sequence[str] = (RESIDUAL,),
    modules: Sequence[str] | None = None,
) -> pd.DataFrame:
    """List the layers that a probe would measure, or their rows where they have several.

    Calls and widths come from a forward pass of four tokens on the meta device. Where a model cannot be run on it,
    each block counts as called once, and widths come from the config.

    Args:
        skeleton: the model, as `load_skeleton` builds it.
        device_map: placement of the model, as in `load_checkpoint`.
        sites: what is measured of each block.
        modules: patterns of paths of modules that are measured instead.

    Returns:
        A line for each row, in the order of calls: `name`, `module` (path), `class`, `width` (or None), `device`;
        for an encoder-decoder also `stack`.

    Raises:
        InputError: the model's blocks, sites or modules cannot be found, or there is no such device.
    """
    device_of = _devices(skeleton, check_placement("auto", device_map))
    paths = {id(module): path for path, module in skeleton.named_modules()}
    rows = []
    for name, stack in stacks(skeleton).items():
        found = find_modules(stack, modules) if modules else {}
        for row, module, width in _calls(find_hook_points(stack, found, parse_sites(sites))):
            path = paths[id(module)]
            takes = row == EMBEDDINGS or site_of(row) == "attention_heads"
            kind = f"input of {type(module).__name__}" if takes else type(module).__name__
            line = {"name": row, "module": path, "class": kind, "width": width, "device": device_of(path)}
            rows.append({"stack": name, **line} if name else line)
    table = pd.DataFrame(rows)
    return table.astype({"width": "Int64"})


def weights_by_device(
    skeleton: PreTrainedModel, device_map: str | None, dtype: torch.dtype, parts: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Compute the bytes that a model's weights will take on each device; packed weights take less.

    Args:
        skeleton: the model, as `load_skeleton` builds it.
        device_map: placement of the model, as in `load_checkpoint`.
        dtype: number format of the weights.
        parts: into how many parts a weight is split, of which the device holds one, by its path; others are whole.
    """
    device_of = _devices(skeleton, check_placement("auto", device_map))
    found: dict[str, int] = {}
    for path, parameter in skeleton.named_parameters():
        device = device_of(path)
        n_parts = (parts or {}).get(path, 1)
        found[device] = found.get(device, 0) + -(-parameter.numel() // n_parts) * dtype.itemsize
    return found


def _devices(skeleton: PreTrainedModel, placement: str) -> Callable[[str], str]:
    """Map the path of a module to the device it would be on."""
    if placement not in SPREAD:
        return lambda _: placement
    whole = list(getattr(skeleton, "_no_split_modules", None) or [])
    spread = infer_auto_device_map(skeleton, no_split_module_classes=whole, dtype=skeleton.dtype)

    def device_of(path: str) -> str:
        parts = path.split(".")
        outer = (".".join(parts[:n]) for n in range(len(parts), -1, -1))
        return str(next((spread[name] for name in outer if name in spread), placement))

    return device_of


def _calls(found: HookPoints) -> list[tuple[str, nn.Module, int | None]]:
    """List the rows in the order of calls, each with its module and width."""
    if found.modules:
        return [(name, module, widths(module)[1] or None) for name, module in found.modules.items()]
    layers = {row: (row, module, width) for row, module, width in _layer_calls(found)}
    n_calls = sum(block_index(row) is not None for row in layers)
    for call in range(n_calls):
        for site in found.sites_of(call):
            layers |= {row: (row, site.module, site.width) for row in site.rows(block_name(call + 1))}
    return [layers[row] for row in found.layer_names(n_calls) if row in layers]


def _layer_calls(found: HookPoints) -> list[tuple[str, nn.Module, int | None]]:
    width = getattr(getattr(found.entry, "config", None), "hidden_size", None)
    return dry_run(found) or [
        (EMBEDDINGS, found.blocks[0], width),
        *((block_name(i), block, width) for i, block in enumerate(found.blocks, start=1)),
        *((FINAL_NORM, norm, width) for norm in found.norms[-1:]),
    ]
