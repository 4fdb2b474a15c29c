"""`generate` runs the model: tokens that were fed count once, against each sequence alone, unpadded and uncached."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, Qwen3Config, T5Config, T5ForConditionalGeneration

from softh_probe import SoftEntropyProbe
from softh_probe.errors import ProbeError
from softh_probe.patching import replaced
from tests.helpers.generation import (
    EOS,
    LABEL_SETS,
    PAD,
    alone,
    assert_same,
    fed_back,
    left_padded,
    make_model,
    position_sums,
    prompts,
)


@pytest.mark.parametrize("labels", LABEL_SETS)
@pytest.mark.parametrize(
    "how",
    [
        {"do_sample": False},
        {"do_sample": True},
        {"do_sample": False, "cache_implementation": "static"},
        {"do_sample": False, "prefill_chunk_size": 3},
        {"do_sample": False, "cache_implementation": "sliding_window"},
        {"do_sample": True, "num_return_sequences": 3, "return_dict_in_generate": True, "output_hidden_states": True},
        {"do_sample": True, "stopping_criteria": "ends_at_seven"},
    ],
    ids=str,
)
def test_generate_counts_what_is_fed_back(model, labels, how):
    inputs = left_padded(prompts(9, 4, 7))
    probe = SoftEntropyProbe(model, labels=labels, anchor_sets=1)
    torch.manual_seed(1)
    criteria = [ends_at_seven] if "stopping_criteria" in how else []
    with probe:
        output = model.generate(**inputs, max_new_tokens=12, **{**how, "stopping_criteria": criteria})
    output = output if torch.is_tensor(output) else output.sequences
    repeats = how.get("num_return_sequences", 1)
    inputs["attention_mask"] = inputs["attention_mask"].repeat_interleave(repeats, dim=0)
    sequences = fed_back(output, inputs, ends=(EOS, 7) if criteria else (EOS,))
    assert_same(probe, alone(model, sequences, labels))


def ends_at_seven(input_ids, scores, **_):
    return input_ids[:, -1] == 7


def test_some_sequences_end_before_others(model):
    """The test above is worth something: rows of the batch end at different times."""
    torch.manual_seed(1)
    inputs = left_padded(prompts(9, 4, 7, 5, 6, 8))
    probe = SoftEntropyProbe(model, anchor_sets=1)
    with probe:
        output = model.generate(**inputs, max_new_tokens=40, do_sample=True, temperature=3.0)
    sequences = fed_back(output, inputs)
    assert len({len(s) - n for s, n in zip(sequences, (9, 4, 7, 5, 6, 8), strict=True)}) > 2
    assert_same(probe, alone(model, sequences, ["input_unigram", "output_unigram"]))


@pytest.mark.parametrize("labels", LABEL_SETS)
def test_generate_without_a_cache_feeds_everything_again(model, labels):
    inputs = left_padded(prompts(9, 4))
    probe = SoftEntropyProbe(model, labels=labels, anchor_sets=1)
    with probe:
        output = model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False, use_cache=False)
    n = inputs["input_ids"].shape[1]
    starts = (~inputs["attention_mask"].bool()).sum(dim=1).tolist()
    sequences = [row[start : n + k] for row, start in zip(output, starts, strict=True) for k in range(5)]
    assert_same(probe, alone(model, sequences, labels))


@pytest.mark.parametrize("labels", LABEL_SETS)
def test_rejected_drafts_do_not_count(model, labels):
    assistant = copy.deepcopy(model)
    with torch.no_grad():
        assistant.lm_head.weight += 0.7 * torch.randn(assistant.lm_head.weight.shape)
    (prompt,) = prompts(9)
    inputs = {"input_ids": prompt[None], "attention_mask": torch.ones(1, 9, dtype=torch.long)}
    fed = []
    probe = SoftEntropyProbe(model, labels=labels, anchor_sets=1)
    with probe:
        watch = model.model.embed_tokens.register_forward_pre_hook(lambda m, a: fed.append(a[0].numel()))
        output = model.generate(**inputs, max_new_tokens=20, do_sample=False, assistant_model=assistant)
        watch.remove()
    (sequence,) = fed_back(output, inputs)
    assert sum(fed) > len(sequence)  # some drafts were rejected
    assert_same(probe, alone(model, [sequence], labels))
    assert probe.state_dict()["tokens"] == len(sequence)


@pytest.mark.parametrize("labels", LABEL_SETS)
def test_drafts_of_the_model_s_own_first_layers_do_not_count(model, labels):
    (prompt,) = prompts(9)
    inputs = {"input_ids": prompt[None], "attention_mask": torch.ones(1, 9, dtype=torch.long)}
    probe = SoftEntropyProbe(model, labels=labels, anchor_sets=1)
    with probe:
        output = model.generate(
            **inputs, max_new_tokens=20, do_sample=False, suppress_tokens=[EOS], assistant_early_exit=1
        )
    assert output.shape[1] == 29
    assert_same(probe, alone(model, fed_back(output, inputs), labels))


def test_continuous_batching_is_refused(model):
    """generate_batch takes half a minute to start, so only what it gives to the model is given here."""
    with (
        pytest.raises(ProbeError, match=r"use model\.generate"),
        SoftEntropyProbe(model, labels=(), anchor_sets=1),
        torch.no_grad(),
    ):
        model(torch.stack(prompts(9)), use_cache=False, read_index=[torch.zeros(0, dtype=torch.long)])


def test_a_prompt_of_embeddings(model):
    inputs = left_padded(prompts(9, 4, 7))
    embeds = model.get_input_embeddings()(inputs["input_ids"]).detach()
    probe = SoftEntropyProbe(model, labels=(), anchor_sets=1)
    with probe:
        output = model.generate(inputs_embeds=embeds, attention_mask=inputs["attention_mask"], max_new_tokens=6)
    output = torch.cat([inputs["input_ids"], output], dim=1)
    assert_same(probe, alone(model, fed_back(output, inputs), ()))
    with pytest.raises(ProbeError, match=r"fed no input_ids.*probe\.labelled"), SoftEntropyProbe(model, anchor_sets=1):
        model.generate(inputs_embeds=embeds, attention_mask=inputs["attention_mask"], max_new_tokens=6)


def test_prompt_lookup(model):
    text = prompts(6)[0].repeat(4)
    inputs = {"input_ids": text[None], "attention_mask": torch.ones(1, 24, dtype=torch.long)}
    probe = SoftEntropyProbe(model, anchor_sets=1)
    with probe:
        output = model.generate(**inputs, max_new_tokens=20, do_sample=False, prompt_lookup_num_tokens=4)
    assert_same(probe, alone(model, fed_back(output, inputs), ["input_unigram", "output_unigram"]))


@pytest.mark.parametrize("do_sample", [False, True])
def test_beams(model, do_sample):
    """Each beam's tokens are fed as they stood when they were fed, whatever became of the beam."""
    inputs = left_padded(prompts(9, 4, 7))
    histories = []

    def note(original, input_ids, *args, **kwargs):
        histories.append((input_ids.clone(), kwargs["attention_mask"].clone()))
        return original(input_ids, *args, **kwargs)

    probe = SoftEntropyProbe(model, labels=["input_bigram"], anchor_sets=1)
    every = SoftEntropyProbe(model, labels=(), anchor_sets=1)
    once = SoftEntropyProbe(model, labels=["input_bigram"], count="unique_prefix", anchor_sets=1)
    with probe, every, once, replaced(model, "prepare_inputs_for_generation", note):
        model.generate(**inputs, max_new_tokens=8, num_beams=3, do_sample=do_sample, early_stopping=True)
    first, mask = histories[0]
    sequences = [row[m.bool()] for row, m in zip(first, mask, strict=True)]
    expected, prefixes = alone(model, sequences, ["input_bigram"]), set()
    ends = []
    for ids, mask in histories:
        for row, m in zip(ids, mask, strict=True):
            ends.append(tuple(row[m.bool()].tolist()))
    n_steps = len(histories) - 1
    assert probe.positions == expected.positions + 9 * n_steps
    assert every.positions == sum(map(len, sequences)) + 9 * n_steps
    for end in ends:
        prefixes |= {end[:k] for k in range(2, len(end) + 1)}
    assert once.positions == len(prefixes)
    total = sum(position_sums(model, prefix) for prefix in prefixes)
    torch.testing.assert_close(once.sums, total, rtol=1e-4, atol=1e-4)
    steps = sum(position_sums(model, end) for end in ends[9:])
    torch.testing.assert_close(probe.sums, expected.sums + steps, rtol=1e-4, atol=1e-4)


def test_output_labels_of_beams_come_from_a_beam_that_goes_on(model):
    inputs = left_padded(prompts(9, 4))
    probe = SoftEntropyProbe(model, labels=["output_unigram"], anchor_sets=1)
    with probe:
        output = model.generate(**inputs, max_new_tokens=8, num_beams=3, do_sample=False)
    assert output.shape[1] > 9
    result = probe.result().to_pandas()
    assert result.value.notna().any()
    # What was fed and has no successor does not count: at least the last tokens of the beams.
    assert 3 * (8 + 3) <= probe.positions <= 3 * (13 + 2 * 7) - 6


def test_lora_generates(model):
    peft_model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])).eval()
    inputs = left_padded(prompts(9, 4, 7))
    probe = SoftEntropyProbe(peft_model, anchor_sets=1)
    with probe:
        output = peft_model.generate(**inputs, max_new_tokens=9, do_sample=False)
    assert_same(probe, alone(peft_model, fed_back(output, inputs), ["input_unigram", "output_unigram"]))


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(vocab_size=30, n_embd=32, n_layer=2, n_head=4, pad_token_id=0, eos_token_id=1, bos_token_id=2),
        Qwen3Config(
            vocab_size=30,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            use_sliding_window=True,
            sliding_window=4,
            max_window_layers=1,
            layer_types=["sliding_attention", "full_attention"],
            pad_token_id=0,
            eos_token_id=1,
        ),
    ],
    ids=lambda c: c.model_type,
)
def test_other_models_generate(config):
    model = make_model(config)
    inputs = left_padded(prompts(9, 4, 7))
    probe = SoftEntropyProbe(model, anchor_sets=1)
    with probe:
        output = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert_same(probe, alone(model, fed_back(output, inputs), ["input_unigram", "output_unigram"]))


def test_both_stacks_of_an_encoder_decoder_generate():
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=30, **sizes, pad_token_id=PAD, eos_token_id=EOS, decoder_start_token_id=PAD)
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.ndim == 2 else 1)
    texts = prompts(9, 4, 7, 6)
    ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(t), dtype=torch.long) for t in texts], batch_first=True)
    labels = ["input_unigram", "output_unigram"]
    probes = [
        SoftEntropyProbe(stack, labels=labels, anchor_sets=1) for stack in (model.get_encoder(), model.get_decoder())
    ]
    torch.manual_seed(8)
    with probes[0], probes[1]:
        output = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=30, do_sample=True, temperature=3.0)
    rows = [row.tolist() for row in output]
    written = [row[: row.index(EOS)] if EOS in row else row[:-1] for row in rows]
    assert len({len(row) for row in written}) > 1
    expected = [
        SoftEntropyProbe(stack, labels=labels, anchor_sets=1) for stack in (model.get_encoder(), model.get_decoder())
    ]
    with expected[0], expected[1], torch.no_grad():
        for text, row in zip(texts, written, strict=True):
            model(input_ids=text[None], decoder_input_ids=torch.tensor([row]), use_cache=False)
    for probe, alone_probe in zip(probes, expected, strict=True):
        assert_same(probe, alone_probe)
