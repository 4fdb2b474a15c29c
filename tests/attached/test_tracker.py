"""The block of an attached probe: calls that it sees, and the model and its classes as they were after it."""

import gc
import weakref

import pytest
import torch
from transformers import (
    GenerationMixin,
)
from transformers.cache_utils import Cache

from softh_probe import SoftEntropyProbe
from tests.helpers.generation import left_padded, prompts


def test_callers_that_go_past_the_outer_module(model):
    ids = torch.stack(prompts(9))
    probe = SoftEntropyProbe(model, anchor_sets=1)
    with probe, torch.no_grad():
        model.model.forward(input_ids=ids)
        model.forward(input_ids=ids)
        model.model(ids)
    assert probe.positions == 3 * 8


def untouched(model):
    """Attributes of a model, and of the classes that run it, that a block may change."""
    seams = [GenerationMixin.generate, torch._dynamo.eval_frame._stance.stance, dict(vars(Cache))]
    for module in model.modules():
        seams.append({k: v for k, v in vars(module).items() if not k.startswith("_")})
        seams.append((len(module._forward_hooks), len(module._forward_pre_hooks)))
    return seams


def test_the_block_leaves_everything_as_it_was(model):
    before = untouched(model)
    probe = SoftEntropyProbe(model, anchor_sets=1)
    with probe:
        cache = model(torch.stack(prompts(9)), use_cache=True).past_key_values
        assert any(sums.waiting for sums in probe._sums.values())
        assert untouched(model) != before
    assert untouched(model) == before
    assert not any(sums.waiting for sums in probe._sums.values())
    del cache


def test_blocks_may_end_in_any_order(model):
    before = untouched(model)
    one, two = (SoftEntropyProbe(model, labels=(), anchor_sets=1) for _ in range(2))
    with torch.no_grad():
        one.__enter__()
        two.__enter__()
        model(torch.stack(prompts(9)))
        one.__exit__(None, None, None)
        model(torch.stack(prompts(9)))
        two.__exit__(None, None, None)
    assert (one.positions, two.positions) == (9, 18)
    assert untouched(model) == before


def test_generate_that_fails_leaves_everything_as_it_was(model):
    before = untouched(model)

    def fail(input_ids, scores, **_):
        if input_ids.shape[1] == 13:
            raise RuntimeError("stopped")
        return torch.zeros(len(input_ids), dtype=torch.bool)

    inputs = left_padded(prompts(9, 4))
    probe = SoftEntropyProbe(model, labels=(), anchor_sets=1)
    with pytest.raises(RuntimeError, match="stopped"), probe:
        model.generate(**inputs, max_new_tokens=9, min_new_tokens=9, stopping_criteria=[fail])
    assert untouched(model) == before
    assert probe.positions == 13 + 2 * 3
    with probe:
        model.generate(**inputs, max_new_tokens=3, min_new_tokens=3)
    assert probe.positions == 13 + 2 * 3 + 13 + 2 * 2


def test_nothing_holds_a_probe_but_its_owner(model):
    inputs = left_padded(prompts(9, 4))
    gc.collect()
    gc.disable()  # a probe's tables are large: they go at once, not when cycles are looked for
    try:
        probe = SoftEntropyProbe(model, anchor_sets=1)
        with probe:
            model.generate(**inputs, max_new_tokens=5)
        parts = [weakref.ref(part) for part in (probe, probe._recorder, probe._source, probe._sums["layer.1"].tables)]
        del probe
        assert [part() for part in parts] == [None] * 4
    finally:
        gc.enable()
