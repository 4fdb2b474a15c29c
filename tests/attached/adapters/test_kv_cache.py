"""Forward passes with a cache continue sequences, against each sequence alone, unpadded and uncached."""

import copy
import gc

import pytest
import torch
from transformers import DynamicCache

from softh_probe import SoftEntropyProbe
from softh_probe.errors import ProbeError
from tests.helpers.generation import LABEL_SETS, alone, assert_same, fed_back, prompts


@pytest.mark.parametrize("labels", LABEL_SETS)
def test_a_loop_of_ones_own_with_a_cache(model, labels):
    texts = torch.stack(prompts(12, 12))
    probe = SoftEntropyProbe(model, labels=labels, anchor_sets=1)
    with probe, torch.no_grad():
        cache = None
        for piece in texts.split([5, 1, 1, 3, 2], dim=1):
            cache = model(input_ids=piece, past_key_values=cache, use_cache=True).past_key_values
    assert_same(probe, alone(model, texts, labels))


def test_two_caches_in_turn_and_a_cropped_one(model):
    one, two = prompts(12, 10)
    labels = ["input_bigram", "output_bigram"]
    probe = SoftEntropyProbe(model, labels=labels, anchor_sets=1)
    with probe, torch.no_grad():
        caches = [DynamicCache(config=model.config) for _ in range(2)]
        for a, b in zip(one.split(4), two.split([4, 4, 2]), strict=True):
            for piece, cache in zip((a, b), caches, strict=True):
                model(input_ids=piece[None], past_key_values=cache)
        caches[0].crop(-5)
        model(input_ids=two[None, :5], past_key_values=caches[0])
    together = alone(model, [one, two], labels)
    # Taken back after it was fed: what was counted counts, and then the new tokens do.
    assert probe.positions == together.positions + 3


def test_sequences_of_an_unknown_past_lack_the_labels_that_reach_into_it(model):
    (text,) = prompts(12)
    with torch.no_grad():
        cache = model(input_ids=text[None, :6], use_cache=True).past_key_values
        probe = SoftEntropyProbe(model, labels=["input_trigram"], anchor_sets=1)
        once = SoftEntropyProbe(model, labels=(), count="unique_prefix", anchor_sets=1)
        with probe:
            model(input_ids=text[None, 6:], past_key_values=copy.deepcopy(cache))
        assert probe.positions == 4
        with pytest.raises(ProbeError, match="fed outside"), once:
            model(input_ids=text[None, 6:], past_key_values=copy.deepcopy(cache))


def test_generate_from_a_cache_that_was_filled_before(model):
    (text,) = prompts(12)
    inputs = {"input_ids": text[None], "attention_mask": torch.ones(1, 12, dtype=torch.long)}
    with torch.no_grad():
        cache = model(input_ids=text[None, :6], use_cache=True).past_key_values
    probe = SoftEntropyProbe(model, labels=["input_trigram"], anchor_sets=1)
    with probe:
        output = model.generate(**inputs, past_key_values=cache, max_new_tokens=6, do_sample=False)
    (sequence,) = fed_back(output, inputs)
    assert probe.positions == len(sequence) - 6


def test_what_waits_goes_with_its_cache(model):
    probe = SoftEntropyProbe(model, anchor_sets=1)
    with probe, torch.no_grad():
        output = model(torch.stack(prompts(9)), use_cache=True)
        assert all(len(sums.waiting) == 1 for sums in probe._sums.values())
        del output
        gc.collect()
        model(torch.stack(prompts(9)), use_cache=False)
        assert not any(sums.waiting for sums in probe._sums.values())


def test_a_step_that_fails_is_left_out(model):
    (text,) = prompts(12)
    probe = SoftEntropyProbe(model, anchor_sets=1)

    def fail(*_):
        raise RuntimeError("out of memory")

    with pytest.raises(ProbeError, match=r"failed after layer\.1"):
        with probe, torch.no_grad():
            cache = model(input_ids=text[None, :6], use_cache=True).past_key_values
            for t in range(6, 9):
                model(input_ids=text[None, t : t + 1], past_key_values=cache)
            broken = model.model.layers[1].register_forward_pre_hook(fail)
            with pytest.raises(RuntimeError, match="out of memory"):
                model(input_ids=text[None, 9:10], past_key_values=copy.deepcopy(cache))
            with pytest.raises(RuntimeError, match="out of memory"):
                model(input_ids=text[None, 9:10], past_key_values=cache)
            broken.remove()
    assert not any(probe._recorder._steps.values())
    assert {sums.total[-1].item() for sums in probe._sums.values()} == {8.0}


def test_steps_are_counted_when_asked_for_and_when_their_cache_is_gone(model):
    (text,) = prompts(12)
    expected = [alone(model, [text[:n]], ["input_unigram", "output_unigram"]).positions for n in (8, 12)]
    probe = SoftEntropyProbe(model, anchor_sets=1)
    with probe, torch.no_grad():
        cache = model(input_ids=text[None, :6], use_cache=True).past_key_values
        for t in range(6, 12):
            model(input_ids=text[None, t : t + 1], past_key_values=cache)
            if t == 7:
                assert probe.positions == expected[0]
        del cache
        gc.collect()
        model(input_ids=torch.ones(1, 1, dtype=torch.long), use_cache=False)
        assert probe.positions == expected[1]
