"""Prefixes that several sequences share, counted once."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
)

from softh_probe import SoftEntropyProbe
from softh_probe.errors import InputError
from tests.helpers.generation import left_padded, position_sums, prompts


def test_unique_prefixes(model):
    shared, *answers = prompts(8, 3, 4, 3, 5)
    sequences = [torch.cat([shared, answer]) for answer in answers]
    ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(s)) for s in sequences], batch_first=True)
    probe = SoftEntropyProbe(model, labels=(), count="unique_prefix", anchor_sets=1)
    with probe, torch.no_grad():
        for _ in range(2):
            model(input_ids=ids, attention_mask=mask)
        model(**left_padded(sequences))
    prefixes = {tuple(s[: k + 1].tolist()) for s in sequences for k in range(len(s))}
    assert probe.positions == len(prefixes) < sum(map(len, sequences))
    expected = sum(position_sums(model, prefix) for prefix in sorted(prefixes))
    torch.testing.assert_close(probe.sums, expected, rtol=1e-4, atol=1e-4)

    again = SoftEntropyProbe(model, labels=(), count="unique_prefix", anchor_sets=1)
    again.load_state_dict(probe.state_dict())
    with again, torch.no_grad():
        model(input_ids=ids, attention_mask=mask)
    assert again.positions == probe.positions
    with pytest.warns(UserWarning, match=f"{probe.positions} prefixes were counted by both"):
        again.merge(probe)


def test_unique_prefixes_need_a_causal_model():
    config = BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    with pytest.raises(InputError, match="causal"):
        SoftEntropyProbe(BertModel(config), labels=(), count="unique_prefix", anchor_sets=1)
