"""A model on any device, in any mode, is measured as in one plain process, or refused with the reason."""

import accelerate
import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing

from softh_probe import ProbeResult, SoftEntropyProbe
from softh_probe.attached.inputs import require_tokens
from softh_probe.distributed import gather
from softh_probe.errors import ProbeError
from tests.helpers.models import tiny_llama

LABELS = ["input_unigram", "output_bigram"]


def batches(n: int = 3) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(n):
        ids = torch.randint(1, 12, (4, 15), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, 9:] = 0
        found.append({"input_ids": ids, "attention_mask": mask})
    return found


def measured(model, attach_to=None, parts=None) -> SoftEntropyProbe:
    probe = SoftEntropyProbe(attach_to or model, labels=LABELS, n_anchors=20)
    with probe, torch.no_grad():
        for batch in batches() if parts is None else parts:
            model(**batch)
    return probe


def assert_same(probe, plain, rtol=1e-6):
    assert probe.positions == plain.positions > 0
    assert probe.layers == plain.layers
    np.testing.assert_allclose(probe.sums, plain.sums, rtol=rtol)


# --- torch.compile ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used before"])
@pytest.mark.parametrize("how", ["whole", "in place", "blocks"])
def test_compiled_models_are_measured_uncompiled_inside_the_block(how, used):
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    model = tiny_llama()
    compiled = torch.compile(model, backend=backend) if how == "whole" else model
    for module in {"whole": [], "in place": [model], "blocks": model.model.layers}[how]:
        module.compile(backend=backend)
    with torch.no_grad():
        if used:
            compiled(**batches()[0])
        n_graphs = len(graphs)
        plain = measured(tiny_llama())
        assert_same(measured(compiled), plain)
        assert_same(measured(compiled, attach_to=model), plain)
        assert len(graphs) == n_graphs
        compiled(**batches()[0])
    assert (len(graphs) > n_graphs) != used  # outside the block it is compiled again, or still


def test_compiled_code_is_compiled_again_after_a_block_that_fails(model):
    with pytest.raises(ZeroDivisionError), SoftEntropyProbe(model):
        raise ZeroDivisionError
    graphs = []
    double = torch.compile(lambda x: 2 * x, backend=lambda graph, _: graphs.append(graph) or graph.forward)
    double(torch.ones(3))
    assert graphs


# --- where weights are --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cpu", "disk", "mixed"])
def test_offloaded_models(how, tmp_path):
    plain, model = measured(tiny_llama()), tiny_llama()
    if how == "cpu":
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    elif how == "disk":
        accelerate.disk_offload(model, tmp_path, execution_device=torch.device("cpu"))
    else:
        where = {"model.embed_tokens": "cpu", "model.layers.0": "disk", "model.layers.1": "cpu"}
        where |= {"model.layers.2": "disk", "model.norm": "disk", "model.rotary_emb": "cpu", "lm_head": "disk"}
        accelerate.dispatch_model(model, where, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
    assert any(p.is_meta for p in model.parameters())
    assert_same(measured(model), plain)


def test_layers_on_several_devices_keep_their_sums_there(model):
    # The meta device stands for a second one: sums are made where the hidden states are.
    probe = SoftEntropyProbe(model, labels=())
    for device in ("cpu", "meta"):
        sums = probe._sums.of(f"layer.{device}", torch.ones(1, 2, 24, device=device))
        assert sums.total.device.type == device


# --- training -----------------------------------------------------------------------------------------------


def test_passes_in_training_mode_do_not_count_checkpointed_or_not():
    plain, model = measured(tiny_llama()), tiny_llama()
    model.gradient_checkpointing_enable()
    probe = SoftEntropyProbe(model, labels=LABELS, n_anchors=20)
    with probe:
        model.train()
        model(**batches()[0], labels=batches()[0]["input_ids"]).loss.backward()
        model.eval()
        model.zero_grad()
        for batch in batches():
            model(**batch).logits.sum().backward()
    assert_same(probe, plain)
    assert model.model.layers[0].mlp.up_proj.weight.grad is not None


def test_a_model_that_only_trained_says_so(model):
    probe = SoftEntropyProbe(model.train())
    with probe:
        model(**batches()[0])
    with pytest.raises(ProbeError, match="1 in training mode did not count"):
        probe.result()


# --- PEFT ---------------------------------------------------------------------------------------------------


def adapted(kind: str):
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    config = {
        "lora": lambda: peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
        "ia3": lambda: peft.IA3Config(
            target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], init_ia3_weights=False
        ),
        "prompt": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    }[kind]()
    return peft.get_peft_model(tiny_llama(), config).eval()


@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_peft_adapters(kind):
    model = adapted(kind)
    probe = measured(model)
    assert probe.layers == ["embeddings", "layer.1", "layer.2", "layer.3", "final_norm"]
    assert_same(probe, measured(model, attach_to=model.get_base_model()))
    plain = measured(tiny_llama())
    torch.testing.assert_close(probe.sums[0], plain.sums[0])
    assert not torch.allclose(probe.sums[-1], plain.sums[-1], rtol=1e-3)  # the adapter is in what was measured
    if kind == "lora":
        assert_same(measured(model.merge_and_unload()), probe, rtol=1e-3)


def test_positions_that_are_not_the_model_s_tokens_are_refused():
    outer = {"input_ids": torch.zeros(4, 15, dtype=torch.long)}
    with pytest.raises(ProbeError, match=r"the model takes \[4, 15\] tokens but feeds \[4, 18\] positions"):
        require_tokens({"inputs_embeds": torch.zeros(4, 18, 8)}, outer)
    require_tokens({"inputs_embeds": torch.zeros(4, 18, 8)}, outer, n_virtual=3)


# --- several processes --------------------------------------------------------------------------------------


def worker(rank: int, world: int, folder: str, fail: bool) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    try:
        probe = measured(tiny_llama(), parts=batches()[rank::world])
        if fail and rank == 1:
            probe._recorder.problems.append("layer.2: something")
        try:
            everything = gather(probe)
        except ProbeError as error:
            torch.save(str(error), f"{folder}/error.{rank}")
            return
        torch.save({"positions": everything.positions, "sums": everything.sums}, f"{folder}/sums.{rank}")
        if rank == 0:
            everything.result().save(f"{folder}/result")
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
def test_two_processes_equal_one(tmp_path):
    multiprocessing.spawn(worker, (2, str(tmp_path), False), nprocs=2)
    plain = measured(tiny_llama())
    for rank in range(2):
        gathered = torch.load(tmp_path / f"sums.{rank}")
        assert gathered["positions"] == plain.positions
        np.testing.assert_allclose(gathered["sums"], plain.sums, rtol=1e-6)
    ours = ProbeResult.load(tmp_path / "result").to_pandas("nats").set_index(["name", "label_set", "metric"]).value
    theirs = plain.result().to_pandas("nats").set_index(["name", "label_set", "metric"]).value
    for metric in ("entropy", "mutual_information"):
        keys = [key for key in theirs.index if key[2] == metric]
        np.testing.assert_allclose(ours[keys], theirs[keys], atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
def test_what_goes_wrong_in_one_process_is_raised_in_all(tmp_path):
    multiprocessing.spawn(worker, (2, str(tmp_path), True), nprocs=2)
    assert [torch.load(tmp_path / f"error.{rank}") for rank in range(2)] == ["process 1: layer.2: something"] * 2


def test_without_process_groups_all_is_this_process(model):
    probe = measured(model)
    everything = gather(probe)
    assert everything is not probe
    assert_same(everything, probe)
    with pytest.raises(ProbeError, match=r"layer\.1: something"):
        probe._recorder.problems.append("layer.1: something")
        gather(probe)
