"""What runs in vLLM's workers, on the replayed steps of an engine; vllm itself is not needed."""

import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from softh_probe import ProbeResult, SoftEntropyProbe
from softh_probe.errors import InputError
from tests.helpers.engine_steps import ReplayingRunner, scheduled
from tests.helpers.fed_states import documents
from tests.helpers.models import tiny_llama
from tests.helpers.probes import NAMES, values_by_key

SCRIPTS = Path(__file__).parents[2] / "scripts"
SETTINGS = {"labels": NAMES, "n_anchors": 12, "anchor_sets": 2}


@pytest.fixture
def parts(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import vllm_meter

    return vllm_meter


def config(**changes):
    """What vLLM's config says of an engine that is started as the script does."""
    said = {
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "async_scheduling": False,
        "pipeline_parallel_size": 1,
        "data_parallel_size": 1,
        "speculative_config": None,
        **changes,
    }
    part = SimpleNamespace(**said)
    return SimpleNamespace(
        parallel_config=part,
        cache_config=part,
        scheduler_config=part,
        model_config=part,
        speculative_config=part.speculative_config,
    )


def worker(parts, runner, rank=0):
    """A worker, extended as vLLM does."""
    made = type("Worker", (parts.MeterWorker,), {})()
    made.rank, made.model_runner, made.vllm_config = rank, runner, config()
    return made


def requests():
    docs = dict(zip("abcdefg", documents(23, 9, 41, 5, 18, 30, 12), strict=True))
    prompts = {"a": 20, "b": 8, "c": 33, "d": 1, "e": 17, "f": 29, "g": 4}
    return docs, prompts


@pytest.mark.filterwarnings("ignore:.*standard error|.*corrected information")
@pytest.mark.parametrize("kind", ["V1", "V2"])
@pytest.mark.parametrize("preempted_at", [(), (3, 6, 11)])
def test_the_steps_of_an_engine_give_the_sums_of_an_attached_probe(parts, tmp_path, kind, preempted_at):
    model, (docs, prompts) = tiny_llama(), requests()
    runner = ReplayingRunner(model, docs, kind=kind)
    engine = worker(parts, runner)
    engine.softh_attach(SETTINGS)
    steps = list(scheduled(docs, prompts, random.Random(2), preempted_at=preempted_at))
    for i, step in enumerate(steps):
        if i == 5:  # what is run to warm up is not of any request
            dummy = SimpleNamespace(num_scheduled_tokens={"a": 2}, finished_req_ids=set(), preempted=())
            runner.execute_model(dummy, dummy_run=True)
        assert runner.execute_model(step) == (None if step.num_scheduled_tokens else "nothing to do")
    assert sum(len(step.preempted) for step in steps) == len(preempted_at)
    assert max(len(step.num_scheduled_tokens) for step in steps) > 2
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in runner.model.modules())

    probe = SoftEntropyProbe(model, **SETTINGS)
    with probe, torch.no_grad():
        for doc in docs.values():
            model(torch.tensor([doc[:-1]]), use_cache=False)  # the last token that is written is not computed
    meter = runner.execute_model.meter
    assert meter.layers == probe.layers == ["embeddings", "layer.1", "layer.2", "layer.3", "final_norm"]
    assert meter.positions == probe.positions == sum(max(0, len(doc) - 8) for doc in docs.values())
    np.testing.assert_allclose(meter.sums.numpy(), probe.sums.numpy(), rtol=1e-6)
    counted = [
        [
            Counter(dict(zip(map(tuple, ngrams.tolist()), counts.tolist(), strict=True)))
            for ngrams, counts in zip(rows["ngrams"], rows["counts"], strict=True)
        ]
        for rows in (meter.state_dict()["rows"], probe.state_dict()["rows"])
    ]
    assert counted[0] == counted[1]

    assert engine.softh_save(str(tmp_path / "out"), "replayed") == meter.positions
    result = ProbeResult.load(tmp_path / "out")
    assert result.info["n_blocks"] == 3
    exact = ("entropy", "conditional_entropy", "mutual_information", "label_entropy")
    ours, theirs = values_by_key(result), values_by_key(probe.result())
    for metric in exact:
        of = [values.xs(metric, level="metric") for values in (ours, theirs)]
        np.testing.assert_allclose(of[0], of[1], atol=1e-6)


def test_only_the_first_rank_records(parts):
    docs, _ = requests()
    runner = ReplayingRunner(tiny_llama(), docs)
    engine = worker(parts, runner, rank=1)
    engine.softh_attach(SETTINGS)
    assert runner.execute_model.__func__ is ReplayingRunner.execute_model
    assert engine.softh_save("nowhere", "nothing") == 0


def test_a_model_whose_pairs_do_not_sum_to_the_stream_is_refused(parts):
    docs, prompts = requests()
    runner = ReplayingRunner(tiny_llama(), docs, holds_residual=True)
    worker(parts, runner).softh_attach(SETTINGS)
    with pytest.raises(InputError, match=r"final_norm: expected it to add .* whose sum is not the residual stream"):
        for step in scheduled(docs, prompts, random.Random(0)):
            runner.execute_model(step)
    assert runner.execute_model.meter.positions == 0


def test_tokens_that_were_found_in_a_cache_are_a_gap(parts):
    docs, _ = requests()
    runner = ReplayingRunner(tiny_llama(), docs)
    worker(parts, runner).softh_attach(SETTINGS)
    runner.n_computed["a"] = 16
    step = SimpleNamespace(num_scheduled_tokens={"a": 4}, finished_req_ids=set(), preempted=())
    with pytest.raises(InputError, match="position: expected 0 in sequence 'a', got 16, a gap"):
        runner.execute_model(step)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"enforce_eager": False}, "enforce_eager=True"),
        ({"enable_prefix_caching": True, "async_scheduling": True}, "enable_prefix_caching=False, async_scheduling=F"),
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size=1"),
        ({"data_parallel_size": 2}, "data_parallel_size=1"),
        ({"prefill_context_parallel_size": 2}, "prefill_context_parallel_size=1"),
        ({"speculative_config": "ngram"}, "speculative_config=None"),
    ],
)
def test_an_engine_whose_states_are_not_all_seen_is_refused(parts, changes, message):
    parts.check_engine(config())
    with pytest.raises(InputError, match=f"vllm: expected an LLM with {message}"):
        parts.check_engine(config(**changes))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (torch.ones(3, 2), 1.0),
        ((torch.tensor([0, 1, 2]), torch.ones(3, 2), None), 1.0),
        ({"positions": torch.tensor([0, 1, 2]), "hidden_states": torch.ones(3, 2), "residual": torch.ones(3, 2)}, 2.0),
        ((torch.ones(3, 2), torch.ones(3, 2), torch.ones(3, 1)), 2.0),
    ],
)
def test_the_residual_stream_is_the_sum_in_memory_of_its_own(parts, value, expected):
    found = parts.summed(parts.stream_parts("layer.1", value), 2)
    tensors = [value] if isinstance(value, torch.Tensor) else list(value.values() if isinstance(value, dict) else value)
    for tensor in tensors:
        if tensor is not None:
            tensor.zero_()
    assert found.shape == (2, 2)
    assert (found == expected).all()


@pytest.mark.parametrize("value", [(), (torch.ones(3, 2),) * 3, torch.ones(1, 3, 2), (torch.arange(3), None)])
def test_other_values_of_a_block_are_refused(parts, value):
    with pytest.raises(InputError, match=r"layer\.2: expected hidden states \[N, D\]"):
        parts.stream_parts("layer.2", value)


def test_a_norm_without_a_sum_is_taken_where_blocks_give_one_tensor(parts):
    h, stream = torch.ones(3, 2), torch.zeros(2, 2)
    for value in (h, (h, None)):
        found = parts.normed(value, stream, is_sum=False)
        assert torch.equal(found, h[:2])
        assert found.data_ptr() != h.data_ptr()
    with pytest.raises(InputError, match="final_norm"):
        parts.normed(h, stream, is_sum=True)
    with pytest.raises(InputError, match="final_norm"):
        parts.normed((h, torch.ones(3, 2)), torch.ones(2, 2) * 1.1, is_sum=True)


def test_rows_that_are_not_those_of_the_requests_are_refused(parts):
    for positions in (np.arange(2), np.zeros((3, 9), dtype=int)):
        with pytest.raises(InputError, match="positions: expected those of 3 scheduled tokens, got"):
            parts.rows_of_step(["a"], {"a": 3}, positions, {})
    with pytest.raises(InputError, match="vllm: SimpleNamespace has no input_batch"):
        parts.row_order(SimpleNamespace())


def test_without_vllm_one_line_says_what_to_install():
    program = (
        "import importlib.util, runpy, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name == 'vllm' else find(name, *a)\n"
        "sys.argv = ['attach_vllm.py', 'model', 'prompts.txt']\n"
        "try:\n"
        f"    runpy.run_path({str(SCRIPTS / 'attach_vllm.py')!r}, run_name='__main__')\n"
        "finally:\n"
        "    assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install vllm" in done.stderr
    assert not done.stdout
