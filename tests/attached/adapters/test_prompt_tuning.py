"""Trained prompts of PEFT count as no tokens."""

import pytest
import torch
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model

from softh_probe import SoftEntropyProbe
from tests.helpers.generation import alone, assert_same, fed_back, prompts


@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig])
def test_trained_prompts_are_no_tokens(model, kind):
    peft_model = get_peft_model(model, kind(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    texts = prompts(9, 9)
    ids = torch.stack(texts)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    labels = ["input_unigram", "output_unigram"]
    probe = SoftEntropyProbe(peft_model, labels=labels, anchor_sets=1)
    with probe, torch.no_grad():
        peft_model(**inputs)
    assert_same(probe, alone(peft_model, texts, labels))
    assert probe.positions == 16
    probe = SoftEntropyProbe(peft_model, labels=labels, anchor_sets=1)
    with probe:
        output = peft_model.generate(**inputs, max_new_tokens=6, do_sample=False)
    assert_same(probe, alone(peft_model, fed_back(output, inputs), labels))
