"""Runs in which several processes hold one model between them: the numbers of one process that holds it alone."""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM

import softh_probe.run.pipeline
import tests.run.test_processes
from softh_probe import ProbeResult
from softh_probe.cli import main
from softh_probe.errors import InputError
from softh_probe.models.describe import load_body_skeleton, weights_by_device
from softh_probe.models.source import resolve_model
from softh_probe.models.tensor_parallel import split_parameters
from softh_probe.run import run
from softh_probe.run.dry_run import dry_run
from softh_probe.run.processes import Processes
from softh_probe.sweep import SweepConfig
from tests.helpers.comparisons import assert_same_values
from tests.helpers.sweeps import small_tokenizer
from tests.run.test_processes import SETTINGS, stop_at, together

pytestmark = pytest.mark.skipif(
    not dist.is_gloo_available() or sys.platform != "linux", reason="needs gloo, and processes that fork"
)

#: Settings of tiny models of three families: rotary heads in groups, norms of queries and keys, and parallel blocks.
FAMILIES = {
    "llama": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "gpt_neox": {},
}


def save_model(folder: Path, kind: str, **changes) -> str:
    """Write a tiny checkpoint with its tokenizer."""
    tokenizer = small_tokenizer()
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "initializer_range": 0.5,
    }
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings, **changes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def note_weights(folder: Path):
    """Let each process write how many weights it holds."""

    def before(rank: int) -> None:
        original = softh_probe.run.pipeline.load_model

        def load_model(*args):
            checkpoint = original(*args)
            held = [p.to_local() if isinstance(p, DTensor) else p for p in checkpoint.model.parameters()]
            (folder / f"held.{rank}").write_text(str(sum(part.numel() for part in held)))
            return checkpoint

        softh_probe.run.pipeline.load_model = load_model

    return before


def assert_same_sums(ours: ProbeResult, theirs: ProbeResult) -> None:
    """To a millionth of the number of positions, since parts of each product are summed in another order."""
    assert ours.info["positions"] == theirs.info["positions"]
    assert ours.info["tokens"] == theirs.info["tokens"]
    assert ours.labels == theirs.labels
    assert_same_values(ours.to_pandas("nats"), theirs.to_pandas("nats"))
    n = theirs.info["positions"]
    np.testing.assert_allclose(ours.tensors["mass"] / n, theirs.tensors["mass"] / n, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", FAMILIES)
def test_two_processes_hold_one_model(config, tmp_path, kind):
    settings = SETTINGS | {"model": save_model(tmp_path / "model", kind, **FAMILIES[kind])}
    one = run(config(**settings, out=str(tmp_path / "one")), progress=False)
    shared = config(**settings, out=str(tmp_path / "shared"), cache="none", tensor_parallel=2)
    ended = together(shared, tmp_path, note_weights(tmp_path))
    assert [code for code, _ in ended] == [0, 0], ended
    assert "10 batches of up to 60 tokens, on one model of 2 processes" in ended[0][1]
    assert ended[1][1] == ""
    found = ProbeResult.load(shared.out)
    assert_same_sums(found, one)
    for name in ("weights_sha256", "n_parameters", "class", "dtype"):
        assert found.info["model"][name] == one.info["model"][name]
    assert found.info["processes"] == 2
    skeleton = load_body_skeleton(resolve_model(shared.model))
    expected = weights_by_device(skeleton, "cpu", torch.int8, dict.fromkeys(split_parameters(skeleton), 2))["cpu"]
    assert expected < 0.6 * one.info["model"]["n_parameters"]
    assert [int((tmp_path / f"held.{rank}").read_text()) for rank in range(2)] == [expected, expected]
    assert {path.name for path in Path(shared.out).iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}


@pytest.mark.slow
def test_two_models_of_two_processes_share_the_batches_and_go_on_where_they_were_stopped(config, tmp_path):
    """One process alone is asked to stop; its model stops after the same batch, with one snapshot."""
    settings = SETTINGS | {"intervals": True}
    one = run(config(**settings, out=str(tmp_path / "one")), progress=False)
    shared = config(**settings, out=str(tmp_path / "shared"), cache="none", tensor_parallel=2)
    asked = stop_at({1: 1, 2: 2}, lambda: os.kill(os.getpid(), signal.SIGTERM))
    ended = together(shared, tmp_path, asked, count=4)
    assert [code for code, _ in ended] == [143] * 4, ended
    unfinished = Path(shared.out) / "unfinished"
    found = {str(path.relative_to(unfinished)) for path in unfinished.glob("*/*")}
    assert found == {"snapshots-0-of-2/00000002", "snapshots-1-of-2/00000003"}
    ended = together(shared, tmp_path, count=4)
    assert [code for code, _ in ended] == [0] * 4, ended
    assert "10 batches of up to 60 tokens, shared among 2 models of 2 processes each" in ended[0][1]
    assert "resuming after 2 batches" in ended[0][1]
    assert not unfinished.exists()
    found = ProbeResult.load(shared.out)
    assert_same_sums(found, one)
    errors = [result.to_pandas("nats").se.to_numpy() for result in (found, one)]
    assert np.isfinite(errors[0]).any()
    np.testing.assert_allclose(*errors, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_documents_are_streamed_to_models_in_parts(config, tmp_path):
    settings = SETTINGS | {"per_label": [], "stream": True}
    one = run(config(**settings, out=str(tmp_path / "one")), progress=False)
    shared = config(**settings, out=str(tmp_path / "shared"), tensor_parallel=2)
    ended = together(shared, tmp_path, count=4)
    assert [code for code, _ in ended] == [0] * 4, ended
    assert_same_sums(ProbeResult.load(shared.out), one)


@pytest.mark.slow
def test_experts_routers_parts_of_blocks_and_means_are_whole(config, tmp_path):
    model = save_model(tmp_path / "model", "mixtral", num_key_value_heads=2, num_local_experts=4)
    settings = SETTINGS | {"model": model, "sites": ["residual", "attention", "mlp", "router"], "center": True}
    one = run(config(**settings, out=str(tmp_path / "one")), progress=False)
    shared = config(**settings, out=str(tmp_path / "shared"), tensor_parallel=2)
    ended = together(shared, tmp_path)
    assert [code for code, _ in ended] == [0, 0], ended
    assert_same_sums(ProbeResult.load(shared.out), one)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_model_of_which_a_process_is_lost_ends(config, tmp_path, rank):
    def fail():
        raise MemoryError("no more")

    config = config(**SETTINGS, tensor_parallel=2)
    ended = together(config, tmp_path, stop_at({rank: 2}, fail))
    assert all(code for code, _ in ended)
    assert "MemoryError: no more" in ended[rank][1]
    lost = "softh-probe: another process of this run has ended; its own error line says why"
    assert (lost in ended[0][1]) == (rank == 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tensor_parallel": 3}, "tensor_parallel: 3 processes hold a model between them, and this is a run of 2"),
        ({"sites": "residual,attention_heads"}, "tensor_parallel: each process of a model holds some of its heads"),
        (
            {"modules": ["layers.*.mlp.act_fn", "layers.*.mlp.down_proj"]},
            "tensor_parallel: the processes of a model hold parts of layers.0.mlp.act_fn, layers.1.mlp.act_fn",
        ),
    ],
)
def test_what_is_not_whole_is_refused(config, tmp_path, changes, message):
    ended = together(config(**SETTINGS | {"tensor_parallel": 2} | changes), tmp_path)
    assert all(code for code, _ in ended)
    (shown,) = [line for line in ended[0][1].splitlines() if line.startswith("softh-probe: ")]
    assert message in shown
    assert "down_proj" not in shown
    assert not (tmp_path / "out").exists()


def test_a_plan_is_missed_before_anything_is_read(config, tmp_path):
    ended = together(config(model=save_model(tmp_path / "model", "gpt2"), tensor_parallel=2), tmp_path)
    assert all(code for code, _ in ended)
    assert ended[0][1].count("\n") == 1
    assert "has no plan to split a GPT2Model; leave --tensor-parallel out" in ended[0][1]


def test_a_single_process_is_told_to_start_others(config):
    for start in (run, dry_run):
        with pytest.raises(InputError, match=r"a run of a single process; start a multiple of 2 \(torchrun --np"):
            start(config(tensor_parallel=2), progress=False)


def test_a_dry_run_tells_what_each_process_holds(config, tmp_path, capfd):
    config = config(tensor_parallel=2)

    def before(rank):
        tests.run.test_processes.main = lambda words: main([*words, "--dry-run", "--json"])

    ended = together(config, tmp_path, before)
    assert [code for code, _ in ended] == [0, 0], ended
    found = json.loads(capfd.readouterr().out)
    skeleton = load_body_skeleton(resolve_model(config.model))
    parts = weights_by_device(skeleton, "cpu", torch.float32, dict.fromkeys(split_parameters(skeleton), 2))
    assert found["model"]["weights_gib"]["cpu"] == parts["cpu"] / 2**30
    assert found["model"]["processes"] == 2
    assert "a dry run times those of one" in found["timing"]


def test_workers_of_a_sweep_hold_whole_models(config):
    with pytest.raises(InputError, match="tensor_parallel: each worker of a sweep holds a whole model"):
        SweepConfig(model="m", data="d", out="o", tensor_parallel=2)


def test_processes_of_one_model_that_find_other_snapshots_are_told(monkeypatch):
    monkeypatch.setattr(Processes, "gather_in_model", lambda self, batches: [batches, 4])
    processes = Processes(count=2, per_model=2)
    processes.agree_on_progress(4)
    with pytest.raises(InputError, match="out: processes of one model found snapshots of 0 and 4 batches"):
        processes.agree_on_progress(0)
