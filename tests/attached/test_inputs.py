"""Tokens of a forward pass: masks of every form, packed texts, padding without a mask."""

import warnings

import pytest
import torch

from softh_probe import SoftEntropyProbe
from tests.helpers.generation import LABEL_SETS, PAD, alone, assert_same, left_padded, prompts


@pytest.mark.parametrize("labels", LABEL_SETS)
def test_packed_texts_are_texts_of_their_own(model, labels):
    texts = prompts(7, 9, 5)
    positions = torch.cat([torch.arange(len(t)) for t in texts])[None]
    probe = SoftEntropyProbe(model, labels=labels, anchor_sets=1)
    with probe, torch.no_grad():
        model(input_ids=torch.cat(texts)[None], position_ids=positions, use_cache=False)
    expected = alone(model, texts, labels)
    assert probe.positions == expected.positions
    torch.testing.assert_close(probe.sums, expected.sums, rtol=1e-4, atol=1e-4)
    flash = SoftEntropyProbe(model, labels=labels, anchor_sets=1)  # whose packed rows say it in another way
    with flash, torch.no_grad():
        model(input_ids=torch.cat(texts)[None], cu_seq_lens_q=torch.tensor([0, 7, 16, 21]), use_cache=False)
    assert flash.positions == expected.positions


def test_masks_of_one_s_own_and_pauses(model):
    texts = prompts(7, 4)
    ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(t)) for t in texts], batch_first=True)
    probe = SoftEntropyProbe(model, anchor_sets=1)
    with probe, torch.no_grad():
        with probe.paused():
            model(input_ids=torch.ones(64, 32, dtype=torch.long))
        with probe.masked(mask):
            model(input_ids=ids)
    assert_same(probe, alone(model, texts, ["input_unigram", "output_unigram"]))


def test_padding_that_nobody_tells_of_is_counted_with_a_warning(model):
    ids = torch.stack(prompts(7, 7))
    probe = SoftEntropyProbe(model, labels=(), anchor_sets=1)
    with warnings.catch_warnings(), probe, torch.no_grad():
        warnings.simplefilter("error")
        model(input_ids=ids)
    ids[1, 4:] = PAD
    with warnings.catch_warnings(), probe, torch.no_grad():
        warnings.simplefilter("error")
        model(input_ids=ids, attention_mask=(ids != PAD).long())
    assert probe.positions == 14 + 11
    with pytest.warns(UserWarning, match=r"probe\.masked\(mask\)"), probe, torch.no_grad():
        model(input_ids=ids)
    assert probe.positions == 14 + 11 + 14


def test_a_mask_of_four_dimensions_is_read_on_its_diagonal(model):
    inputs = left_padded(prompts(9, 4))
    real = inputs["attention_mask"].bool()
    causal = torch.ones(9, 9, dtype=torch.bool).tril()
    allowed = (causal & real[:, None, :])[:, None]
    added = torch.where(allowed, 0.0, torch.finfo(torch.float32).min)
    expected = alone(model, prompts(9, 4), ["input_unigram", "output_unigram"])
    for mask in (allowed, added):
        probe = SoftEntropyProbe(model, anchor_sets=1)
        with probe, torch.no_grad():
            model(input_ids=inputs["input_ids"], attention_mask=mask)
        assert probe.positions == expected.positions
