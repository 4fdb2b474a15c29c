"""`gather` in four processes that share data, a model or both: sums are those of one process that is fed everything."""

import os
import warnings
from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM
from transformers.distributed.configuration_utils import DistributedConfig

from softh_probe import SoftEntropyMeter, SoftEntropyProbe
from softh_probe.distributed import gather
from softh_probe.errors import InputError, ProbeError
from tests.helpers.models import tiny_llama

LABELS = ["input_unigram", "output_unigram"]
WORLD = 4
TEXTS = torch.randint(3, 40, (8, 12), generator=torch.Generator().manual_seed(0))


def tiny_mixtral():
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "num_local_experts": 4}
    return MixtralForCausalLM(MixtralConfig(**sizes, **heads, initializer_range=0.5)).eval()


def measured(model, texts, labels=LABELS, **settings):
    probe = SoftEntropyProbe(model, labels=labels, anchor_sets=1, **settings)
    with probe, torch.no_grad():
        if len(texts):
            model(input_ids=texts)
    return probe


def split_tensors(mesh):
    plan = {}
    for i in range(3):
        plan |= {f"model.layers.{i}.mlp.{name}": ColwiseParallel() for name in ("gate_proj", "up_proj")}
        plan[f"model.layers.{i}.mlp.down_proj"] = RowwiseParallel()
    return parallelize_module(tiny_llama(), mesh, plan)


def sharded(mesh, model=None):
    model = model or tiny_llama()
    for block in model.model.layers:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def two_dimensional():
    """Two models of two processes each, and the number of this process's model."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    return mesh, sharded(mesh["dp"], split_tensors(mesh["tp"])), mesh["dp"].get_local_rank()


# --- each returns the gathered probe, in each process ------------------------------------------------------------


def tensor_parallel(rank, folder):
    return gather(measured(split_tensors(init_device_mesh("cpu", (WORLD,))), TEXTS))


def tensor_parallel_of_transformers(rank, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32, tp_plan="auto")
    return gather(measured(model.eval(), TEXTS))


def loaded(folder, name="model", **parallel):
    """A model that transformers splits among the processes."""
    config = DistributedConfig(**parallel)
    return AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32, distributed_config=config).eval()


def fully_sharded_by_transformers(rank, folder):
    return gather(measured(loaded(folder, fsdp_size=WORLD), TEXTS[rank::WORLD]))


def both_by_transformers(rank, folder):
    return gather(measured(loaded(folder, fsdp_size=2, tp_size=2), TEXTS[rank // 2 :: 2]))


def fully_sharded(rank, folder):
    return gather(measured(sharded(init_device_mesh("cpu", (WORLD,))), TEXTS[rank::WORLD]))


def hybrid_sharded(rank, folder):
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    return gather(measured(sharded(mesh), TEXTS[rank::WORLD]))


def both(rank, folder):
    _, model, share = two_dimensional()
    return gather(measured(model, TEXTS[share::2]))


def both_in_the_group_of_the_data(rank, folder):
    mesh, model, share = two_dimensional()
    return gather(measured(model, TEXTS[share::2]), mesh["dp"].get_group())


def both_measured_by_one_process_of_each_model(rank, folder):
    mesh, model, share = two_dimensional()
    probe = SoftEntropyProbe(model, labels=LABELS, anchor_sets=1)
    with torch.no_grad():
        if mesh["tp"].get_local_rank():
            with probe:
                model(input_ids=TEXTS[share::2])
        else:
            model(input_ids=TEXTS[share::2])
    return gather(probe)


def fully_sharded_by_its_first_version(rank, folder):
    return gather(measured(FullyShardedDataParallel(tiny_llama(), device_id="cpu").eval(), TEXTS[rank::WORLD]))


def data_parallel(rank, folder):
    return gather(measured(DistributedDataParallel(tiny_llama()).eval(), TEXTS[rank::WORLD]))


def shares_of_different_size(rank, folder):
    parts = [TEXTS[:5], TEXTS[:0], TEXTS[5:], TEXTS[:0]]
    return gather(measured(tiny_llama(), parts[rank]))


def the_same_counted_once(rank, folder):
    return gather(measured(tiny_llama(), TEXTS), repeated="once")


def the_same_counted_once_in_pairs(rank, folder):
    return gather(measured(tiny_llama(), TEXTS[rank // 2 :: 2]), repeated="once")


RIGHT = [
    tensor_parallel,
    tensor_parallel_of_transformers,
    fully_sharded_by_transformers,
    both_by_transformers,
    fully_sharded,
    hybrid_sharded,
    both,
    both_in_the_group_of_the_data,
    both_measured_by_one_process_of_each_model,
    fully_sharded_by_its_first_version,
    data_parallel,
    shares_of_different_size,
    the_same_counted_once,
    the_same_counted_once_in_pairs,
]


def the_same(rank, folder):
    return gather(measured(tiny_llama(), TEXTS))


def the_same_in_two_of_them(rank, folder):
    return gather(measured(tiny_llama(), TEXTS[[0, 2, 4, 2][rank] :][:2]))


def the_same_without_tokens(rank, folder):
    return gather(measured(tiny_llama(), TEXTS, labels=()))


def one_model_and_other_texts(rank, folder):
    return gather(measured(split_tensors(init_device_mesh("cpu", (WORLD,))), TEXTS[rank::WORLD]))


def split_sequences(rank, folder):
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "cp"))
    model = sharded(mesh["dp", "cp"]._flatten("dp_cp"))
    return gather(measured(model, TEXTS[rank::WORLD]))


def split_layers(rank, folder):
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pp", "dp"))
    return gather(measured(sharded(mesh["dp"]), TEXTS[rank::WORLD]))


def split_layers_by_transformers(rank, folder):
    """Alone and without a merge, too."""
    return measured(loaded(folder, "experts", pp_size=WORLD), TEXTS).result()


def other_rows(rank, folder):
    """The first process alone can merge all of them."""
    return gather(measured(tiny_llama(), TEXTS[rank::WORLD], label_rows=20 if rank == 0 else "all"))


REFUSED = {
    the_same: r"processes 0 and 1 were fed the same tokens, .* repeated='once'",
    the_same_in_two_of_them: "processes 1 and 3 were fed the same tokens",
    the_same_without_tokens: "processes 0 and 1 were fed the same tokens",
    one_model_and_other_texts: "processes 0 and 1 hold one model between them, but were fed different tokens",
    split_sequences: r"splits sequences between processes \(cp\)",
    split_layers: r"splits layers between processes \(pp\)",
    split_layers_by_transformers: r"splits layers between processes \(pp\)",
    other_rows: "process 0 has label_rows=20, that of process 1 label_rows='all'; give all processes the same",
}


def counted_each(rank, folder):
    return gather(measured(tiny_llama(), TEXTS), repeated="count")


def split_experts(rank, folder):
    return gather(measured(loaded(folder, "experts", ep_size=WORLD, tp_size=WORLD), TEXTS))


def split_experts_and_data(rank, folder):
    """Each process is fed texts of its own, and sends tokens to the experts of the others."""
    return gather(measured(loaded(folder, "experts", ep_size=WORLD, fsdp_size=WORLD), TEXTS[rank::WORLD]))


def samples_of_labels(rank, folder):
    return gather(measured(tiny_llama(), TEXTS[rank::WORLD], label_rows=20))


def metered(numbers):
    """A meter that is fed the first 7 tokens of texts, then their others."""
    states = torch.randn(*TEXTS.shape, 8, generator=torch.Generator().manual_seed(1))
    meter = SoftEntropyMeter(labels=LABELS, anchor_sets=1)
    for part in (slice(0, 7), slice(7, 12)):
        for i in numbers:
            h, ids = states[i, part], TEXTS[i, part]
            meter.update({"fc": h}, input_ids=ids, sequence=i, position=part.start, parity=i % 2)
    return meter


def meters(rank, folder):
    return gather(metered(range(rank, len(TEXTS), WORLD)))


def worker(rank: int, folder: str) -> None:
    """Run one of the processes."""
    torch.set_num_threads(1)
    at = Path(folder)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD)}  # transformers asks for them
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    found = {}
    for run in (*RIGHT, *REFUSED, split_experts, split_experts_and_data, counted_each, samples_of_labels, meters):
        try:
            everything = run(rank, at)
        except (ProbeError, InputError) as error:
            found[run.__name__] = str(error)
        else:
            found[run.__name__] = everything.state_dict()
        dist.barrier()
    torch.save(found, at / f"found.{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each process found, by the name of the function."""
    folder = tmp_path_factory.mktemp("processes")
    tiny_llama(vocab_size=40).save_pretrained(folder / "model")
    tiny_mixtral().save_pretrained(folder / "experts")
    multiprocessing.spawn(worker, (str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"found.{rank}", weights_only=False) for rank in range(WORLD)]


needs_gloo = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")


@pytest.mark.slow
@needs_gloo
@pytest.mark.parametrize("run", RIGHT, ids=lambda run: run.__name__)
def test_gathered_sums_are_those_of_one_process(found, run):
    model = tiny_llama()
    expected = measured(model, TEXTS)
    for rank in range(WORLD):
        ours = SoftEntropyProbe(model, labels=LABELS, anchor_sets=1)
        assert isinstance(found[rank][run.__name__], dict), found[rank][run.__name__]
        ours.load_state_dict(found[rank][run.__name__])
        assert ours.positions == expected.positions == 8 * 11
        torch.testing.assert_close(ours.sums, expected.sums, rtol=1e-4, atol=1e-4)
        values = [
            p.result().to_pandas().set_index(["name", "label_set", "metric"]).value.rename("x")
            for p in (ours, expected)
        ]
        for metric in ("coverage", "mutual_information", "mutual_information_corrected"):
            one, other = (value.xs(metric, level="metric") for value in values)
            torch.testing.assert_close(torch.tensor(one.values), torch.tensor(other.values), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@needs_gloo
@pytest.mark.parametrize("name", ["split_experts", "split_experts_and_data"])
def test_experts_in_several_processes_are_one_model(found, name):
    expected = measured(tiny_mixtral(), TEXTS)
    for rank in range(WORLD):
        ours = SoftEntropyProbe(tiny_mixtral(), labels=LABELS, anchor_sets=1)
        assert isinstance(found[rank][name], dict), found[rank][name]
        ours.load_state_dict(found[rank][name])
        assert ours.positions == expected.positions
        torch.testing.assert_close(ours.sums, expected.sums, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@needs_gloo
@pytest.mark.parametrize(("run", "message"), REFUSED.items(), ids=[run.__name__ for run in REFUSED])
def test_what_nobody_can_tell_is_refused_in_all_processes(found, run, message):
    for rank in range(WORLD):
        assert isinstance(found[rank][run.__name__], str), run.__name__
        with pytest.raises(ProbeError, match=message):
            raise ProbeError(found[rank][run.__name__])


@pytest.mark.slow
@needs_gloo
def test_texts_that_are_meant_to_count_several_times(found):
    assert {found[rank]["counted_each"]["positions"] for rank in range(WORLD)} == {WORLD * 8 * 11}


@pytest.mark.slow
@needs_gloo
def test_samples_of_labels_are_gathered_to_one(found):
    """In every process the same; a label that may have been left out somewhere has gone, or is a frequent one."""
    expected = measured(tiny_llama(), TEXTS, label_rows="all").state_dict()
    states = [found[rank]["samples_of_labels"] for rank in range(WORLD)]
    for state in states[1:]:
        torch.testing.assert_close(state["rows"], states[0]["rows"], rtol=0, atol=0)
        torch.testing.assert_close(state["layers"], states[0]["layers"], rtol=0, atol=0)
    rows, every = states[0]["rows"], expected["rows"]
    assert 0 < len(torch.cat(rows["rows"]).unique()) <= 20
    assert (torch.cat(rows["probability"]) < 1).any()
    for x in range(len(LABELS)):
        index = {tuple(ngram): i for i, ngram in enumerate(every["ngrams"][x].tolist())}
        sampled = (rows["probability"][x] < 1).tolist()
        there = [index[tuple(ngram)] for ngram in rows["ngrams"][x].tolist()]
        assert torch.equal(rows["counts"][x][sampled], every["counts"][x][there][sampled])
        for layer, state in states[0]["layers"].items():
            ours = state["open"][rows["rows"][x][sampled]]
            theirs = expected["layers"][layer]["open"][every["rows"][x][there][sampled]]
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@needs_gloo
def test_meters_are_gathered_as_probes_are(found):
    expected = metered(range(len(TEXTS)))
    for rank in range(WORLD):
        ours = SoftEntropyMeter(labels=LABELS, anchor_sets=1)
        ours.load_state_dict(found[rank]["meters"])
        assert ours.positions == expected.positions == 8 * 11
        torch.testing.assert_close(ours.sums, expected.sums)
        one, other = (m.result().conditional_entropy("parity") for m in (ours, expected))
        assert one["count"].tolist() == other["count"].tolist() == [44, 44]


def test_an_unknown_choice_is_named(model):
    with pytest.raises(InputError, match=r"repeated: expected one of refuse, once, count, got 'twice'"):
        gather(SoftEntropyProbe(model, anchor_sets=1), repeated="twice")
