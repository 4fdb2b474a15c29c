"""Which processes hold one model between them, by the model's own device meshes.

Such processes are fed the same tokens, of which each counts once. Dimensions of a mesh that split the data are those of
`fully_shard`, or named so; other dimensions along which weights are split hold one model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import distributed as dist
from torch import nn

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

#: Names of dimensions, as torch, transformers and accelerate give them. Groups of experts may be fed several batches.
_DATA = {"dp", "ddp", "fsdp", "hsdp", "efsdp", "ep", "data", "batch", "replicate", "shard", "dp_replicate", "dp_shard"}
_TENSOR = {"tp", "mp", "tensor", "model", "tensor_parallel", "model_parallel"}
_SEQUENCE = {"cp", "sp", "context", "sequence", "context_parallel", "sequence_parallel"}
_STAGES = {"pp", "pipeline", "stage", "pipeline_parallel"}


@dataclass(frozen=True, kw_only=True)
class Parallelism:
    """What a process shares with others, by their ranks in the world.

    Attributes:
        one_model: processes that hold one model with this one, itself among them where there are others.
        split_sequences: names of dimensions along which each process is fed other tokens of the same texts.
        split_layers: names of dimensions along which each process holds other layers.
    """

    one_model: frozenset[int] = frozenset()
    split_sequences: tuple[str, ...] = ()
    split_layers: tuple[str, ...] = ()

    @property
    def refusal(self) -> str | None:
        """Say why no process can measure the model; None where the first of those that hold it can."""
        if self.split_sequences:
            return (
                f"the model's device mesh splits sequences between processes ({', '.join(self.split_sequences)}), so "
                "that none knows the tokens around its own; evaluate without context and sequence parallelism"
            )
        if self.split_layers:
            return (
                f"the model's device mesh splits layers between processes ({', '.join(self.split_layers)}), so that "
                "each would measure those of the others as well, which it does not run; evaluate without pipeline "
                "parallelism"
            )
        return None


def find_parallelism(model: nn.Module) -> Parallelism:
    """Find the processes that hold one model with this one, as far as its device meshes tell."""
    if not (dist.is_available() and dist.is_initialized()):
        return Parallelism()
    modules = list(model.modules())
    data = list(_data_groups(modules))
    one_model: set[int] = set()
    named: dict[str, None] = {}
    for mesh, split in _meshes(model, modules).values():
        named |= dict.fromkeys(_long_dimensions(mesh))
        for dim in range(mesh.ndim):
            ranks = _group(mesh, {dim})
            if len(ranks) > 1 and _holds_one_model(mesh, dim, split) and not any(ranks <= group for group in data):
                one_model |= ranks
    return Parallelism(
        one_model=frozenset(one_model),
        split_sequences=tuple(name for name in named if name in _SEQUENCE),
        split_layers=tuple(name for name in named if name in _STAGES),
    )


def _holds_one_model(mesh: DeviceMesh, dim: int, split: Collection[int]) -> bool:
    name = mesh.mesh_dim_names[dim] if mesh.mesh_dim_names else ""
    if name in _TENSOR:
        return True
    return dim in split and name not in _DATA | _SEQUENCE | _STAGES


def _meshes(model: nn.Module, modules: Collection[nn.Module]) -> dict[int, tuple[DeviceMesh, set[int]]]:
    """Find the meshes of the weights, and those that transformers keeps, with the dimensions that split weights."""
    from torch.distributed.device_mesh import DeviceMesh  # a torch without process groups lacks both
    from torch.distributed.tensor import DTensor

    found: dict[int, tuple[DeviceMesh, set[int]]] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if isinstance(tensor, DTensor):
            _, split = found.setdefault(id(tensor.device_mesh), (tensor.device_mesh, set()))
            split |= {dim for dim, placement in enumerate(tensor.placements) if not placement.is_replicate()}
    for module in modules:
        mesh = getattr(module, "_device_mesh", None)
        if isinstance(mesh, DeviceMesh):
            of_one = mesh.ndim == 1 and (getattr(module, "tp_size", None) or 1) > 1
            found.setdefault(id(mesh), (mesh, {0} if of_one else set()))
    return found


def _data_groups(modules: Collection[nn.Module]) -> Iterator[frozenset[int]]:
    """Find the groups of processes that `fully_shard` and `replicate` feed different batches."""
    for module in modules:
        state = getattr(module, "_get_fsdp_state", lambda: None)()
        for group in getattr(state, "_fsdp_param_groups", ()):
            info: Any = group.mesh_info
            dims = {info.shard_mesh_dim, info.replicate_mesh_dim} - {None}
            yield _group(info.mesh, dims)


def _group(mesh: DeviceMesh, dims: Collection[int]) -> frozenset[int]:
    """Find the ranks that differ from this one in some dimensions of a mesh alone; none where it is not in the mesh."""
    place = mesh.get_coordinate()
    if place is None:
        return frozenset()
    ranks = mesh.mesh[tuple(slice(None) if dim in dims else at for dim, at in enumerate(place))]
    return frozenset(ranks.flatten().tolist())


def _long_dimensions(mesh: DeviceMesh) -> Iterator[str]:
    """Name the dimensions of more than one process, also those of the mesh that this one is a part of."""
    whole: DeviceMesh = getattr(mesh, "_get_root_mesh", lambda: mesh)()
    for part in (mesh, whole):
        for name, size in zip(part.mesh_dim_names or (), part.shape, strict=False):
            if size > 1:
                yield name
