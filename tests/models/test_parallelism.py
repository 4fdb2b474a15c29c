"""Processes that hold one model, as device meshes tell; in one process, which plays one of eight."""

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.testing._internal.distributed.fake_pg import FakeStore

from softh_probe import SoftEntropyProbe
from softh_probe.errors import ProbeError
from softh_probe.models.identity import MeasuredWeights
from softh_probe.models.parallelism import Parallelism, find_parallelism
from tests.helpers.models import tiny_llama

NAMES = ("dp_replicate", "dp_shard", "tp")


@pytest.fixture(autouse=True)
def world():
    dist.init_process_group("fake", store=FakeStore(), rank=5, world_size=8)
    yield
    dist.destroy_process_group()


def split_tensors(model, mesh):
    plan = {}
    for i in range(3):
        plan |= {f"model.layers.{i}.mlp.{name}": ColwiseParallel() for name in ("gate_proj", "up_proj")}
        plan[f"model.layers.{i}.mlp.down_proj"] = RowwiseParallel()
    return parallelize_module(model, mesh, plan)


def shard(model, mesh):
    for block in model.model.layers:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def one_model(model):
    return sorted(find_parallelism(model).one_model)


@pytest.mark.parametrize("names", [("tp",), ("whatever",), None], ids=str)
def test_tensor_parallel(names):
    mesh = init_device_mesh("cpu", (8,), mesh_dim_names=names)
    assert one_model(split_tensors(tiny_llama(), mesh)) == list(range(8))


@pytest.mark.parametrize("names", [("dp",), ("model",), None], ids=str)
def test_fully_sharded(names):
    """Each process is fed documents of its own, whatever the mesh is called."""
    mesh = init_device_mesh("cpu", (8,), mesh_dim_names=names)
    assert find_parallelism(shard(tiny_llama(), mesh)) == Parallelism()


@pytest.mark.parametrize("names", [("replicate", "shard"), ("a", "b")], ids=str)
def test_hybrid_sharded(names):
    mesh = init_device_mesh("cpu", (2, 4), mesh_dim_names=names)
    assert find_parallelism(shard(tiny_llama(), mesh)) == Parallelism()


@pytest.mark.parametrize("names", [("dp", "tp"), ("a", "b")], ids=str)
def test_tensor_parallel_and_fully_sharded(names):
    mesh = init_device_mesh("cpu", (4, 2), mesh_dim_names=names)
    model = shard(split_tensors(tiny_llama(), mesh[names[1]]), mesh[names[0]])
    assert one_model(model) == [4, 5]


def test_three_dimensions():
    mesh = init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=NAMES)
    model = shard(split_tensors(tiny_llama(), mesh["tp"]), mesh["dp_replicate", "dp_shard"])
    assert one_model(model) == [4, 5]


def test_a_submesh_that_is_strided():
    mesh = init_device_mesh("cpu", (2, 4), mesh_dim_names=("tp", "dp"))
    assert one_model(split_tensors(tiny_llama(), mesh["tp"])) == [1, 5]


@pytest.mark.parametrize(("placement", "expected"), [(Shard(0), [4, 5, 6, 7]), (Replicate(), [])], ids=str)
def test_weights_that_are_split_by_hand(placement, expected):
    """Replicated weights may be data parallel, or the rest of a model that is split elsewhere."""
    mesh = init_device_mesh("cpu", (2, 4))
    layer = nn.Linear(8, 8)
    layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), mesh, [Replicate(), placement]))
    assert one_model(layer) == expected


@pytest.mark.parametrize(("shape", "names", "expected"), [((8,), None, list(range(8))), ((4, 2), ("dp", "tp"), [4, 5])])
def test_the_mesh_that_transformers_keeps(shape, names, expected):
    """Weights that are no DTensors show nothing."""

    class Model(nn.Module):
        tp_size = shape[-1]
        _device_mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)

    assert one_model(nn.Sequential(Model())) == expected


def test_split_sequences_and_layers():
    mesh = init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=("pp", "dp", "cp"))
    found = find_parallelism(shard(tiny_llama(), mesh["dp", "cp"]._flatten("dp_cp")))
    assert found == Parallelism(split_sequences=("cp",), split_layers=("pp",))
    assert "splits sequences between processes (cp)" in found.refusal
    mesh = init_device_mesh("cpu", (1, 8, 1), mesh_dim_names=("pp", "fsdp", "cp"))
    assert find_parallelism(shard(tiny_llama(), mesh["fsdp"])) == Parallelism()


def test_a_process_that_holds_some_layers_alone_measures_none():
    """It would measure the hidden states that pass by the layers of the others."""
    mesh = init_device_mesh("cpu", (2, 4), mesh_dim_names=("pp", "dp"))
    probe = SoftEntropyProbe(shard(tiny_llama(), mesh["dp"]), anchor_sets=1)
    with pytest.raises(ProbeError, match=r"splits layers between processes \(pp\)"):
        probe.result()


def test_weights_in_parts_have_no_fingerprint_of_one_part():
    mesh = init_device_mesh("cpu", (8,), mesh_dim_names=("tp",))
    weights = MeasuredWeights(split_tensors(tiny_llama(), mesh))
    weights.note_use()
    found = weights.describe()
    assert (found["weights_sha256"], found["weights_note"]) == (None, "the weights are spread over several processes")


def test_no_mesh_tells_nothing():
    assert find_parallelism(tiny_llama()) == Parallelism()
    assert find_parallelism(nn.parallel.DistributedDataParallel(tiny_llama())) == Parallelism()


def test_meshes_of_others_tell_nothing():
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))  # of processes 0 to 3
    layer = nn.Linear(8, 8)
    with torch.no_grad():
        layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), mesh, [Replicate(), Shard(0)]))
    assert one_model(layer) == []
