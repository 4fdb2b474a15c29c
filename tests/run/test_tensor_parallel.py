"""Runs in which several processes hold one model between them: the numbers of one process that holds it alone."""

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from torch import distributed as dist
from transformers import AutoConfig, AutoModelForCausalLM

from softh_probe import ProbeResult
from softh_probe.errors import InputError
from softh_probe.run import run
from softh_probe.run.dry_run import dry_run
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
    ended = together(shared, tmp_path)
    assert [code for code, _ in ended] == [0, 0], ended
    assert "10 batches of up to 60 tokens, on one model of 2 processes" in ended[0][1]
    assert ended[1][1] == ""
    found = ProbeResult.load(shared.out)
    assert_same_sums(found, one)
    for name in ("weights_sha256", "n_parameters", "class", "dtype"):
        assert found.info["model"][name] == one.info["model"][name]
    assert found.info["processes"] == 2
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
