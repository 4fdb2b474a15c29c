"""Digests of the texts that a model is fed, against a direct computation from their tokens."""

import copy
import hashlib

import numpy as np
import pytest
import torch
from torch import nn

from softh_probe import SoftEntropyProbe
from softh_probe.attached.fed_texts import FedTexts
from softh_probe.distributed import gather
from softh_probe.errors import InputError
from tests.helpers.generation import fed_back, left_padded, prompts
from tests.helpers.probes import batches


def digests(texts, parts=None):
    """Compute both digests from their definition: sums modulo 2^256 of the SHA-256 of each text."""
    ids = [hashlib.sha256(np.array(text, dtype="<i8").tobytes()).digest() for text in texts]
    parts = parts or [(number, 0) for number in range(len(texts))]
    placed = [
        hashlib.sha256(n.to_bytes(8, "little") + p.to_bytes(8, "little") + digest).digest()
        for (n, p), digest in zip(parts, ids, strict=True)
    ]
    return {"sequences": len(texts), "sequences_sha256": joined(placed), "sequence_set_sha256": joined(ids)}


def joined(found):
    total = sum(int.from_bytes(digest, "little") for digest in found) % 2**256
    return hashlib.sha256(len(found).to_bytes(8, "little") + total.to_bytes(32, "little")).hexdigest()


def told(probe):
    found = probe.result().info["corpus"]
    return {name: found[name] for name in ("sequences", "sequences_sha256", "sequence_set_sha256")}


def new_probe(model, labels=(), **settings):
    return SoftEntropyProbe(model, labels=labels, anchor_sets=1, n_anchors=8, **settings)


def lists(texts):
    return [text.tolist() for text in texts]


def feed(probe, model, texts, size=2, side="right", **arguments):
    with probe, torch.no_grad():
        for batch in batches(lists(texts), size, side):
            model(**batch, **arguments)
    return probe


TEXTS = prompts(9, 4, 300, 7, 5, 4)


@pytest.mark.parametrize("labels", [(), ("input_unigram", "output_bigram")])
@pytest.mark.parametrize(("size", "side", "use_cache"), [(1, "right", True), (3, "left", True), (4, "right", False)])
def test_batches_padding_and_caches_make_no_difference(model, labels, size, side, use_cache):
    probe = feed(new_probe(model, labels), model, TEXTS, size, side, use_cache=use_cache)
    assert told(probe) == digests(lists(TEXTS))


def test_another_order_is_the_same_set(model):
    one, other = (told(feed(new_probe(model), model, texts)) for texts in (TEXTS, TEXTS[::-1]))
    assert one["sequence_set_sha256"] == other["sequence_set_sha256"]
    assert one["sequences_sha256"] != other["sequences_sha256"]
    assert other == digests(lists(TEXTS[::-1]))


def test_a_text_counts_as_often_as_it_is_fed_but_once_with_unique_prefixes(model):
    twice = [*TEXTS, TEXTS[1]]
    assert told(feed(new_probe(model), model, twice)) == digests(lists(twice))
    once = told(feed(new_probe(model, count="unique_prefix"), model, twice))
    assert once["sequence_set_sha256"] == digests(lists(TEXTS))["sequence_set_sha256"]


def test_generate_feeds_one_text_a_sequence(model):
    inputs = left_padded(prompts(9, 4, 7))
    probe = new_probe(model, ["input_unigram", "output_unigram"])
    with probe:
        output = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert told(probe) == digests(lists(fed_back(output, inputs)))


def test_more_tokens_than_are_remembered(model):
    inputs = left_padded(prompts(200, 12))
    probe = new_probe(model)
    with probe:
        output = model.generate(**inputs, max_new_tokens=150, do_sample=False, suppress_tokens=[1])
    assert told(probe) == digests(lists(fed_back(output, inputs)))


def test_pieces_of_a_cache_are_one_text_also_before_it_ends(model):
    probe = new_probe(model)
    text = prompts(40)[0]
    with probe, torch.no_grad():
        output = model(text[None, :30])
        for start, stop in ((30, 36), (36, 37), (37, 40)):
            output = model(text[None, start:stop], past_key_values=output.past_key_values)
            assert told(probe) == digests([text[:stop].tolist()])
    assert told(probe) == digests([text.tolist()])


def test_rejected_drafts_are_no_part_of_a_text(model):
    text = prompts(6)[0].repeat(4)
    inputs = {"input_ids": text[None], "attention_mask": torch.ones(1, 24, dtype=torch.long)}
    probe = new_probe(model, ["output_unigram"])
    with probe:
        output = model.generate(**inputs, max_new_tokens=20, do_sample=False, prompt_lookup_num_tokens=4)
    assert told(probe) == digests(lists(fed_back(output, inputs)))


def answer_all(probe, model, prompt, answers):
    """Feed a prompt once, and answers one after the other."""
    with probe, torch.no_grad():
        cache = model(prompt[None]).past_key_values
        for answer in answers:
            model(answer[None], past_key_values=cache)
            cache.crop(-len(answer))


def test_answers_after_a_prompt_that_is_kept_are_texts_of_their_own(model):
    prompt, *answers, long = prompts(9, 4, 6, 1, 300)
    probe = new_probe(model)
    answer_all(probe, model, prompt, answers)
    texts = [torch.cat([prompt, answer]).tolist() for answer in answers]
    assert told(probe) == digests(texts, [(0, part) for part in range(3)])
    answer_all(probe, model, prompt, [long, answers[0]])  # the crop takes more than is remembered
    found = probe.result().info["corpus"]
    assert (found["sequences"], found["sequence_set_sha256"]) == (5, None)
    assert found["sequences_note"].startswith("tokens of 1 sequences are unknown")


def test_sequences_that_leave_a_cache_ended_and_copies_part(model):
    long, short = prompts(12, 12)
    probe = new_probe(model)
    with probe, torch.no_grad():
        output = model(torch.stack([short, long[:12]]))
        output.past_key_values.batch_select_indices(torch.tensor([1]))
        output.past_key_values.batch_repeat_interleave(2)
        model(torch.tensor([[5, 6], [7, 8]]), past_key_values=output.past_key_values)
    texts = [[*long.tolist(), 5, 6], [*long.tolist(), 7, 8], short.tolist()]
    assert told(probe)["sequence_set_sha256"] == digests(texts)["sequence_set_sha256"]


def test_texts_of_a_packed_row(model):
    model.config.use_cache = False
    texts = lists(prompts(300, 4, 200))
    ids = torch.tensor([[*texts[0], *texts[1], *texts[2]]])
    places = torch.cat([torch.arange(len(text)) for text in texts])[None]
    probe = new_probe(model)
    with probe, torch.no_grad():
        model(input_ids=ids, position_ids=places)
    assert told(probe) == digests(texts, [(0, part) for part in range(3)])


def test_what_is_not_known_is_said(model):
    text = prompts(9)[0]
    embeds = model.get_input_embeddings()(text[None]).detach()
    probe = new_probe(model)
    with probe, torch.no_grad():
        model(text[None])
        model(inputs_embeds=embeds)
    found = probe.result().info["corpus"]
    assert (found["sequences"], found["sequences_sha256"], found["sequence_set_sha256"]) == (2, None, None)
    assert found["sequences_note"].startswith("tokens of 1 sequences are unknown: they were fed without input_ids")
    probe = new_probe(model)
    with torch.no_grad():
        cache = model(text[None]).past_key_values
        with probe:
            model(text[None], past_key_values=copy.deepcopy(cache))
    assert probe.result().info["corpus"]["sequence_set_sha256"] is None


def test_modules_of_rows_that_are_no_tokens():
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
    probe = SoftEntropyProbe(net.eval(), modules={"first": net[0]}, anchor_sets=1, n_anchors=8)
    with probe, torch.no_grad():
        net(torch.randn(3, 4))
    assert probe.result().info["corpus"]["sequence_set_sha256"] is None


@pytest.mark.parametrize("count", ["forwarded", "unique_prefix"])
def test_states_and_merged_parts(model, count):
    whole = told(feed(new_probe(model, count=count), model, TEXTS))
    parts = [feed(new_probe(model, count=count), model, texts) for texts in (TEXTS[:2], TEXTS[2:], TEXTS[:1])]
    again = new_probe(model, count=count)
    again.load_state_dict(parts[0].state_dict())
    assert told(gather(parts[0])) == told(again) == told(parts[0]) == digests(lists(TEXTS[:2]))
    assert told(feed(again, model, TEXTS[2:])) == whole  # it goes on in the same order
    parts[0].merge(parts[1])
    assert told(parts[0]) == {**whole, "sequences_sha256": None}
    assert parts[0].result().info["corpus"]["sequences_note"] == "merged parts have no common order"
    again.load_state_dict(parts[0].state_dict())
    assert told(again) == told(parts[0])
    if count == "unique_prefix":
        with pytest.warns(UserWarning, match="counted by both"):
            parts[0].merge(parts[2])
        assert told(parts[0]) == {**whole, "sequences_sha256": None}


def test_a_state_of_an_earlier_version_has_no_digests(model):
    probe, again = feed(new_probe(model), model, TEXTS), new_probe(model)
    state = probe.state_dict()
    del state["rows"]["texts"]
    again.load_state_dict(state)
    found = again.result().info["corpus"]
    assert (found["sequences"], found["sequence_set_sha256"]) == (len(TEXTS), None)


def test_only_texts_that_are_being_fed_are_remembered(model):
    probe = new_probe(model)
    texts = probe._source.rows.texts
    with probe, torch.no_grad():
        for text in prompts(*[5] * 30):
            model(text[None])
            assert len(texts._open) <= 2
    assert not texts._open
    assert texts.n == 30


def test_nothing_was_digested_of_an_empty_probe(model):
    assert FedTexts().state_dict() == {}
    with pytest.raises(InputError, match="itself"):
        (probe := new_probe(model)).merge(probe)
