"""Policies of positions inside `generate`: tokens that the model wrote, places, and masks of prompts."""

import copy

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from transformers import DynamicCache, T5Config, T5ForConditionalGeneration

from softh_probe import SoftEntropyProbe
from softh_probe.errors import ProbeError
from softh_probe.patching import replaced
from tests.helpers.generation import EOS, PAD, alone, assert_same, fed_back, left_padded, make_model, prompts
from tests.helpers.policies import assert_counts

LENGTHS = (9, 4, 7)
LABELS = [(), ("input_bigram", "output_unigram")]
#: Policies, and at which of the tokens t they hold, of which those from `start` on are generated.
POLICIES = {
    "skip:2": lambda t, start: t >= 2,
    "first:6": lambda t, start: t < 6,
    "generated": lambda t, start: t >= start,
    "generated,skip:10": lambda t, start: t >= max(start, 10),
}


@pytest.fixture
def model():
    """A model in which the pad token, which it may write, has a direction."""
    model = make_model()
    with torch.no_grad():
        model.get_input_embeddings().weight[PAD] = torch.randn(32)
    return model


def holds(policy, sequences, starts):
    rule = POLICIES[policy]
    return [[t for t in range(len(s)) if rule(t, start)] for s, start in zip(sequences, starts, strict=True)]


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize(
    "how",
    [
        {"do_sample": False},
        {"do_sample": True, "num_return_sequences": 3},
        {"do_sample": False, "cache_implementation": "static"},
        {"do_sample": False, "prefill_chunk_size": 4},
    ],
    ids=str,
)
def test_with_a_cache(model, labels, how):
    inputs, repeats = left_padded(prompts(*LENGTHS)), how.get("num_return_sequences", 1)
    for policy in POLICIES:
        probe = SoftEntropyProbe(model, labels=labels, positions=policy, anchor_sets=1)
        torch.manual_seed(1)
        with probe:
            output = model.generate(**inputs, max_new_tokens=12, **how)
        mask = inputs["attention_mask"].repeat_interleave(repeats, dim=0)
        sequences = fed_back(output, {"attention_mask": mask})
        starts = [n for n in LENGTHS for _ in range(repeats)]
        assert_counts(probe, model, sequences, holds(policy, sequences, starts))
        assert probe.result().info["positions_policy"]["of"] == alone(model, sequences, labels).positions


@pytest.mark.parametrize("labels", LABELS)
def test_without_a_cache_sequences_are_fed_again_and_again(model, labels):
    inputs = left_padded(prompts(*LENGTHS))
    for policy in POLICIES:
        probe = SoftEntropyProbe(model, labels=labels, positions=policy, anchor_sets=1)
        with probe:
            output = model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False, use_cache=False)
        rows = [row[9 - n :] for row, n in zip(output, LENGTHS, strict=True)]
        sequences = [row[: n + k] for k in range(5) for row, n in zip(rows, LENGTHS, strict=True)]
        assert_counts(probe, model, sequences, holds(policy, sequences, LENGTHS * 5))


def test_a_cache_and_none_give_the_same_where_each_prefix_counts_once(model):
    inputs = left_padded(prompts(*LENGTHS))
    for policy in POLICIES:
        probes = [
            SoftEntropyProbe(model, labels=(), positions=policy, count="unique_prefix", anchor_sets=1) for _ in range(2)
        ]
        for probe, use_cache in zip(probes, (True, False), strict=True):
            with probe:
                model.generate(**inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False, use_cache=use_cache)
        assert_same(*probes)
        policies = [probe.result().info["positions_policy"] for probe in probes]
        assert policies[0] == policies[1]
        assert policies[0]["of"] == sum(n + 7 for n in LENGTHS)


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("policy", POLICIES)
def test_drafts(model, labels, policy):
    assistant = copy.deepcopy(model)
    with torch.no_grad():
        assistant.lm_head.weight += 0.7 * torch.randn(assistant.lm_head.weight.shape)
    inputs = left_padded(prompts(9))
    probe = SoftEntropyProbe(model, labels=labels, positions=policy, anchor_sets=1)
    with probe:
        output = model.generate(**inputs, max_new_tokens=20, suppress_tokens=[EOS], assistant_model=assistant)
    sequences = fed_back(output, inputs)
    assert len(sequences[0]) == 28
    assert_counts(probe, model, sequences, holds(policy, sequences, [9]))
    assert probe.result().info["positions_policy"]["of"] == alone(model, sequences, labels).positions


@pytest.mark.parametrize("policy", ["generated", "skip:2", "first:6"])
def test_beams(model, policy):
    """Each beam's tokens are fed as they stood when they were fed; every prefix that was is counted once."""
    inputs, histories = left_padded(prompts(*LENGTHS)), []

    def note(original, input_ids, *args, **kwargs):
        histories.append(torch.cat([input_ids, kwargs["attention_mask"]]).clone())
        return original(input_ids, *args, **kwargs)

    every = SoftEntropyProbe(model, labels=(), positions=policy, anchor_sets=1)
    once = SoftEntropyProbe(model, labels=(), positions=policy, count="unique_prefix", anchor_sets=1)
    with every, once, replaced(model, "prepare_inputs_for_generation", note):
        model.generate(**inputs, max_new_tokens=8, num_beams=3, do_sample=False, early_stopping=True)
    starts, ends = [n for n in LENGTHS for _ in range(3)], []
    for k, history in enumerate(histories):
        rows = [(ids[mask.bool()].tolist(), start) for ids, mask, start in zip(*history.chunk(2), starts, strict=True)]
        lengths = [range(1, len(ids) + 1) if k == 0 else [len(ids)] for ids, _ in rows]
        ends += [(tuple(ids[:n]), start) for (ids, start), fed in zip(rows, lengths, strict=True) for n in fed]
    counted = [end for end, start in ends if POLICIES[policy](len(end) - 1, start)]
    assert every.positions == len(counted)
    assert_counts(every, model, counted, [[len(end) - 1] for end in counted])
    assert_counts(once, model, sorted(set(counted)), [[len(end) - 1] for end in sorted(set(counted))])
    assert every.result().info["positions_policy"]["of"] == len(ends)
    assert once.result().info["positions_policy"]["of"] == len({end for end, _ in ends})


def test_prompts_of_embeddings(model):
    inputs = left_padded(prompts(*LENGTHS))
    embeds = model.get_input_embeddings()(inputs["input_ids"]).detach()
    for policy in POLICIES:
        probe = SoftEntropyProbe(model, labels=(), positions=policy, anchor_sets=1)
        with probe:
            output = model.generate(inputs_embeds=embeds, attention_mask=inputs["attention_mask"], max_new_tokens=6)
        sequences = fed_back(torch.cat([inputs["input_ids"], output], dim=1), inputs)
        assert_counts(probe, model, sequences, holds(policy, sequences, LENGTHS))


@pytest.mark.parametrize("labels", LABELS)
def test_a_conversation_goes_on_with_its_cache(model, labels):
    """Of the second turn, what it wrote itself is generated; the end of the first one is a part of its prompt."""
    (first, second) = prompts(9, 3)
    for policy in POLICIES:
        probe, cache = SoftEntropyProbe(model, labels=labels, positions=policy, anchor_sets=1), DynamicCache()
        how = {"do_sample": False, "suppress_tokens": [EOS], "past_key_values": cache}
        with probe:
            text = model.generate(first[None], max_new_tokens=4, **how)
            text = model.generate(torch.cat([text, second[None]], dim=1), max_new_tokens=5, **how)
        sequence = text[0, :-1]
        (counted,) = holds(policy, [sequence], [9])
        if policy.startswith("generated"):
            counted = [t for t in counted if t < 12 or t >= 16]
        assert_counts(probe, model, [sequence], [counted])


def test_trained_prompts_have_no_places(model):
    peft_model = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    inputs = left_padded(prompts(9))
    for policy in POLICIES:
        probe, by_hand = (SoftEntropyProbe(peft_model, labels=(), positions=p, anchor_sets=1) for p in (policy, "all"))
        with probe:
            output = peft_model.generate(**inputs, max_new_tokens=6, do_sample=False, suppress_tokens=[EOS])
        (sequence,) = fed_back(output, inputs)
        (counted,) = holds(policy, [sequence], [9])
        mask = torch.zeros(1, len(sequence))
        mask[0, counted] = 1
        with by_hand, by_hand.counted(mask), torch.no_grad():
            peft_model(input_ids=sequence[None])
        assert_same(probe, by_hand)


def test_both_stacks_of_an_encoder_decoder():
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    ids = {"pad_token_id": PAD, "eos_token_id": EOS, "decoder_start_token_id": PAD}
    model = T5ForConditionalGeneration(T5Config(vocab_size=30, **sizes, **ids)).eval()
    question, start = prompts(9)[0][None], torch.tensor([[PAD, 5, 6]])
    for policy in POLICIES:
        encoder, decoder = (
            SoftEntropyProbe(stack, labels=(), positions=policy, anchor_sets=1)
            for stack in (model.get_encoder(), model.get_decoder())
        )
        with encoder, decoder:
            output = model.generate(
                input_ids=question, decoder_input_ids=start, max_new_tokens=12, suppress_tokens=[EOS], do_sample=False
            )
        written = output[:, :-1]
        assert written.shape[1] == 14
        assert encoder.positions == sum(POLICIES[policy](t, 9) for t in range(9))
        (counted,) = holds(policy, written, [3])
        by_hand, mask = SoftEntropyProbe(model.get_decoder(), labels=(), anchor_sets=1), torch.zeros(1, 14)
        mask[0, counted] = 1
        with by_hand, by_hand.counted(mask), torch.no_grad():
            model(input_ids=question, decoder_input_ids=written, use_cache=False)
        assert_same(decoder, by_hand)


@pytest.mark.parametrize("chunk", [None, 3, 4, 5])
@pytest.mark.parametrize("repeats", [1, 2])
def test_masks_of_prompts(model, chunk, repeats):
    """What follows a prompt counts, however the prompt is fed."""
    inputs = left_padded(prompts(*LENGTHS))
    chosen = torch.arange(9) % 3 == 0
    how = {"do_sample": repeats > 1, "num_return_sequences": repeats, "prefill_chunk_size": chunk}
    probe, masked = (SoftEntropyProbe(model, labels=(), anchor_sets=1) for _ in range(2))
    torch.manual_seed(1)
    with probe, probe.counted(chosen.expand(3, 9)):
        output = model.generate(**inputs, max_new_tokens=8, **how)
    mask = inputs["attention_mask"].repeat_interleave(repeats, dim=0)
    sequences = fed_back(output, {"attention_mask": mask})
    starts = [n for n in LENGTHS for _ in range(repeats)]
    counted = [
        [t for t in range(len(s)) if t >= n or (t + 9 - n) % 3 == 0] for s, n in zip(sequences, starts, strict=True)
    ]
    assert_counts(probe, model, sequences, counted)
    torch.manual_seed(1)
    inputs.pop("attention_mask")
    with masked, masked.masked((torch.arange(9) >= 9 - torch.tensor(LENGTHS)[:, None]).long()):
        model.generate(**inputs, attention_mask=mask[::repeats], max_new_tokens=8, **how)
    assert_same(masked, alone(model, sequences, ()))


def test_other_models_in_generate_do_not_write(model):
    """Only what the measured model's own `generate` wrote is generated."""
    other = make_model()
    probe = SoftEntropyProbe(model, labels=(), positions="generated", anchor_sets=1)
    with probe, torch.no_grad():
        model(other.generate(prompts(5)[0][None], max_new_tokens=4, do_sample=False))
    with pytest.raises(ProbeError, match=r"generated are the tokens that model\.generate writes"):
        probe.result()
