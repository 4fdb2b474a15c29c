"""A model that several processes hold between them, each a part of its weights: transformers' tensor parallelism.

check_can_be_split(source, 2)                  # reads the config alone
mesh = model_mesh(2, "cpu")                    # in every process
load_checkpoint(source, mesh=mesh)             # in every process

The plan is transformers' own for the architecture. Hidden states are whole between blocks, and split inside of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import distributed as dist

from softh_probe.errors import InputError
from softh_probe.models.describe import load_whole_skeleton
from softh_probe.models.source import ModelSource
from softh_probe.patching import replaced

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

#: Dimensions of the mesh that transformers asks for; models of the same weights are along the first one.
_DATA, _OF_TRANSFORMERS = "data", ("pp", "dp_replicate", "fsdp", "tp")
_NUMBER = re.compile(r"\.\d+(?=\.|$)")
_LEAVE_OUT = "leave --tensor-parallel out, so that each process loads the whole model"


def check_can_be_split(
    source: ModelSource, size: int, *, trust_remote_code: bool = False, model_kwargs: Mapping[str, Any] | None = None
) -> None:
    """Check, before weights are loaded, that transformers can split a checkpoint among processes.

    Args:
        source: the checkpoint.
        size: processes that hold one model.
        trust_remote_code: allow Python code that comes with the checkpoint.
        model_kwargs: further arguments of `from_pretrained`.

    Raises:
        InputError: transformers is too old or has no plan for the architecture, the size does not divide its attention
            heads, or the weights are packed or in a .gguf file.
    """
    version = f"transformers {transformers.__version__}"
    if source.gguf_file:
        raise InputError(f"tensor_parallel: {version} splits no .gguf file; give the checkpoint's safetensors")
    if not _splits_in_groups():
        raise InputError(f"tensor_parallel: it needs transformers 5.23, not {version}; update it, or {_LEAVE_OUT}")
    skeleton = load_whole_skeleton(source, trust_remote_code=trust_remote_code)
    kind = type(skeleton).__name__
    if getattr(skeleton.config, "quantization_config", None) or "quantization_config" in (model_kwargs or {}):
        raise InputError(f"tensor_parallel: packed weights (quantization_config) are not split; {_LEAVE_OUT}")
    plan = _plan(skeleton)
    if not plan:
        raise InputError(f"tensor_parallel: {version} has no plan to split a {kind}; {_LEAVE_OUT}")
    if not any("attn" in path or "attention" in path for path, style in plan.items() if style == "colwise"):
        return
    config = skeleton.config.get_text_config()
    for field in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(config, field, None)
        if isinstance(heads, int) and heads % size:
            fitting = ", ".join(str(n) for n in range(2, heads + 1) if heads % n == 0) or "none"
            raise InputError(
                f"tensor_parallel: expected a divisor of the {heads} heads ({field}) of the {kind}, got {size}; take "
                f"one of {fitting}, or {_LEAVE_OUT}"
            )


def split_parameters(model: transformers.PreTrainedModel) -> set[str]:
    """Name the parameters of a model of which each process would hold a part; biases of split inputs are whole."""
    plan = _plan(model)
    found = set()
    for path, _ in model.named_parameters():
        module, _, leaf = path.rpartition(".")
        style = plan.get(_generic(path)) or plan.get(_generic(module))
        if style is None:
            continue
        is_whole = style.startswith(("replicate", "sequence", "all_reduce", "mla", "moe_", "local"))
        if not is_whole and not (leaf == "bias" and style.startswith(("rowwise", "packed_rowwise"))):
            found.add(path)
    return found


def model_mesh(size: int, device: str) -> DeviceMesh:
    """Arrange all processes in models of `size` neighbours; every process has to call this.

    Args:
        size: processes that hold one model; it divides their number.
        device: of this process, such as "cpu" or "cuda:1".

    Returns:
        The mesh of this process's model.
    """
    kind = torch.device(device).type
    backends: dict[str, Any] = {}
    if kind != "cpu":
        torch.accelerator.set_device_index(torch.device(device).index or 0)
        # What processes say to each other goes through host memory; parts of hidden states should not.
        backends["backend_override"] = {"tp": dist.get_default_backend_for_device(kind)}
    shape = (dist.get_world_size() // size, 1, 1, 1, size)
    from torch.distributed.device_mesh import init_device_mesh  # a torch without process groups lacks it

    mesh = init_device_mesh(kind, shape, mesh_dim_names=(_DATA, *_OF_TRANSFORMERS), **backends)
    return mesh[_OF_TRANSFORMERS]


@contextmanager
def splitting(mesh: DeviceMesh | None, device: str) -> Iterator[dict[str, Any]]:
    """Make `from_pretrained` split the model it loads inside the block among the processes of a mesh.

    transformers takes all processes for those of one model, or for shards of the data; here models share the documents.

    Args:
        mesh: as `model_mesh` gives it; None splits nothing.
        device: of this process.

    Yields:
        Arguments of `from_pretrained`: where the weights go.
    """
    if mesh is None:
        yield {"device_map": device}
        return
    from transformers.distributed import mixin
    from transformers.distributed.configuration_utils import DistributedConfig
    from transformers.distributed.utils import TransformersDeviceMesh

    meshes = TransformersDeviceMesh(mesh, mesh)
    placed = (torch.device(device), meshes)
    with replaced(mixin, "initialize_distributed_mesh", lambda original, config: placed):
        yield {"distributed_config": DistributedConfig(tp_size=mesh.size())}


def _splits_in_groups() -> bool:
    """Test whether this transformers makes its meshes where `splitting` expects it."""
    try:
        from transformers.distributed import mixin, utils
        from transformers.distributed.configuration_utils import DistributedConfig
    except ImportError:
        return False
    has_config = "ep_size" in getattr(DistributedConfig, "__dataclass_fields__", {})
    return has_config and hasattr(mixin, "initialize_distributed_mesh") and hasattr(utils, "TransformersDeviceMesh")


def _plan(model: transformers.PreTrainedModel) -> dict[str, str]:
    """Select the rules of a model's plan that name something in it: paths, with `*` for numbers, and styles."""
    paths = [path for path, _ in (*model.named_modules(), *model.named_parameters())]
    plan: Mapping[str, str] = model.tp_plan or {}
    there = set(map(_generic, paths))
    return {rule: style for rule, style in plan.items() if rule in there}


def _generic(path: str) -> str:
    return _NUMBER.sub(".*", path)
