"""Policies of positions: what counts, against each text alone in float64, and against masks made by hand."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import DynamicCache

from softh_probe import SoftEntropyProbe
from softh_probe.errors import InputError, ProbeError
from softh_probe.positions import same_policy
from tests.helpers.generation import VOCABULARY, alone, assert_same, left_padded, prompts, tokenizer
from tests.helpers.policies import assert_counts

TEXTS = prompts(9, 4, 12, 2, 7)
SPECIAL = [5, 6, 7]
#: Policies, and at which of the positions t of n tokens they hold.
BY_PLACE = {
    "all": lambda t, n: True,
    "skip:2": lambda t, n: t >= 2,
    "first:3": lambda t, n: t < 3,
    "first:6,skip:1": lambda t, n: 1 <= t < 6,
    "last": lambda t, n: t == n - 1,
    "skip:3,last": lambda t, n: t == n - 1 >= 3,
}
LABELS = [(), ("input_unigram",), ("input_bigram", "output_unigram")]


def holds(policy, texts=TEXTS, special=()):
    """The positions of each text at which a policy holds."""
    rule = BY_PLACE[policy]
    return [[t for t in range(len(x)) if rule(t, len(x)) and int(x[t]) not in special] for x in texts]


def hand_made(policy, batch):
    """The mask [B, T] of the positions of a batch at which a policy holds."""
    mask = torch.zeros_like(batch["attention_mask"])
    for row, real, text in zip(mask, batch["attention_mask"].bool(), batch["input_ids"], strict=True):
        where = torch.nonzero(real).flatten()
        (positions,) = holds(policy, [text[where]])
        row[where[positions]] = 1
    return mask


def cases(labels):
    return [p for p in BY_PLACE if "last" not in p or not any(name.startswith("output") for name in labels)]


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("special", [(), SPECIAL], ids=["all tokens", "no special ones"])
def test_positions_of_padded_batches(model, labels, special):
    for policy in cases(labels):
        probe = SoftEntropyProbe(model, labels=labels, positions=policy, skip_special_tokens=special, anchor_sets=1)
        with probe, torch.no_grad():
            model(**left_padded(TEXTS))
        assert_counts(probe, model, TEXTS, holds(policy, special=special))


@pytest.mark.parametrize("labels", LABELS)
def test_positions_of_packed_rows(model, labels):
    """Places begin anew with each text."""
    places = torch.cat([torch.arange(len(text)) for text in TEXTS])[None]
    for policy in cases(labels):
        probe = SoftEntropyProbe(model, labels=labels, positions=policy, anchor_sets=1)
        with probe, torch.no_grad():
            model(input_ids=torch.cat(TEXTS)[None], position_ids=places, use_cache=False)
        assert_counts(probe, model, TEXTS, holds(policy))


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("pieces", [[3, 9], [1] * 12, [6, 1, 1, 4]])
def test_places_go_on_with_a_cache(model, labels, pieces):
    batch = left_padded(TEXTS)
    for policy in ("skip:2", "first:3", "first:6,skip:1"):
        probe = SoftEntropyProbe(model, labels=labels, positions=policy, anchor_sets=1)
        with probe, torch.no_grad():
            feed_in_pieces(model, batch, pieces)
        assert_counts(probe, model, TEXTS, holds(policy))
        policies = probe.result().info["positions_policy"]
        assert policies["of"] == alone(model, TEXTS, labels).positions


def feed_in_pieces(model, batch, pieces):
    cache, end = DynamicCache(), 0
    for n in pieces:
        end += n
        ids = batch["input_ids"][:, end - n : end]
        model(input_ids=ids, attention_mask=batch["attention_mask"][:, :end], past_key_values=cache)


def test_long_sequences(model):
    """More tokens than sequences remember."""
    texts = [torch.randint(3, VOCABULARY, (n,)) for n in (600, 500)]
    batch = left_padded(texts)
    probe = SoftEntropyProbe(
        model, labels=["input_unigram", "output_unigram"], positions="skip:450,first:520", anchor_sets=1
    )
    with probe, torch.no_grad():
        feed_in_pieces(model, batch, [200, 1, 1, 198, 150, *[1] * 50])
    assert_counts(probe, model, texts, [range(450, 520), range(450, 500)])


@pytest.mark.parametrize("policy", ["skip:2", "first:3", "last", "first:6,skip:1"])
@pytest.mark.parametrize("count", ["forwarded", "unique_prefix"])
def test_a_mask_made_by_hand_gives_the_same_bit_for_bit(model, policy, count):
    batches = [left_padded(TEXTS), left_padded(TEXTS[1:4])]
    labels = ["input_unigram"] + ["output_unigram"] * (policy != "last")
    probe = SoftEntropyProbe(model, labels=labels, anchor_sets=2, positions=policy, count=count)
    counted = SoftEntropyProbe(model, labels=labels, anchor_sets=2, count=count)
    masked = SoftEntropyProbe(model, labels=(), anchor_sets=2)
    unlabelled = SoftEntropyProbe(model, labels=(), anchor_sets=2, positions=policy)
    with probe, counted, masked, unlabelled, torch.no_grad():
        for batch in batches:
            mask = hand_made(policy, batch)
            with counted.counted(mask), masked.masked(mask):
                model(**batch)
    assert probe.positions == counted.positions > 0
    assert torch.equal(probe.sums, counted.sums)
    assert unlabelled.positions == masked.positions
    assert torch.equal(unlabelled.sums, masked.sums)
    tables = [p.result().to_pandas() for p in (probe, counted)]
    assert tables[0].equals(tables[1])


def test_labels_see_the_positions_that_do_not_count(model):
    """Unlike the padding of `masked`."""
    (text,) = prompts(8)
    mask = (torch.arange(8) >= 4)[None]
    probe, masked = (SoftEntropyProbe(model, labels=["input_trigram"], anchor_sets=1) for _ in range(2))
    with probe, masked, probe.counted(mask), masked.masked(mask), torch.no_grad():
        model(input_ids=text[None])
    assert (probe.positions, masked.positions) == (4, 2)
    assert_counts(probe, model, [text], [range(4, 8)])


def test_counted_takes_what_masked_takes(model):
    batch = left_padded(TEXTS)
    probe = SoftEntropyProbe(model, labels=(), anchor_sets=1)
    for mask in (torch.ones(5, 11), torch.ones(4, 12), torch.ones(5)):
        with pytest.raises(ProbeError, match=r"mask: expected \[B, T\].*probe\.counted"), probe, probe.counted(mask):
            model(**batch)
        probe = SoftEntropyProbe(model, labels=(), anchor_sets=1)
    for mask in ([1], torch.ones(1, 2, 3), torch.full((5, 12), -1.0)):
        with pytest.raises(InputError, match="mask: expected"), probe.counted(mask):
            pass
    wider = torch.cat([torch.ones(5, 3), hand_made("skip:2", batch)], dim=1)
    with probe, probe.counted(wider), torch.no_grad():
        model(**batch)
    assert_counts(probe, model, TEXTS, holds("skip:2"))


def test_counted_positions_of_a_cache(model):
    """The mask may be of past and new tokens, or of the new ones."""
    batch = left_padded(TEXTS)
    mask = hand_made("skip:2", batch)
    probe = SoftEntropyProbe(model, labels=["output_unigram"], anchor_sets=1)
    cache, end = DynamicCache(), 0
    with probe, torch.no_grad():
        for n, start in ((5, 0), (3, 0), (1, 8), (3, 9)):
            end += n
            with probe.counted(mask[:, start:end]):
                ids, real = batch["input_ids"][:, end - n : end], batch["attention_mask"][:, :end]
                model(input_ids=ids, attention_mask=real, past_key_values=cache)
    assert_counts(probe, model, TEXTS, holds("skip:2"))


def test_the_result_says_how_many_of_how_many(model):
    probe = SoftEntropyProbe(model, positions="skip:2", skip_special_tokens=[5, 3, 5], anchor_sets=1)
    with probe, torch.no_grad():
        model(**left_padded(TEXTS))
    assert probe.result().info["positions_policy"] == {
        "positions": "skip:2",
        "skip_special_tokens": [3, 5],
        "left": probe.positions,
        "of": sum(len(text) - 1 for text in TEXTS),
    }
    settings = probe.result().info["settings"]
    assert (settings["positions"], settings["skip_special_tokens"]) == ("skip:2", [3, 5])
    assert "positions_policy" not in alone(model, TEXTS, ()).result().info


def test_the_result_says_what_a_mask_left(model):
    """It is not that of all positions, which comparisons have to know."""
    batch, probe = left_padded(TEXTS), SoftEntropyProbe(model, labels=(), anchor_sets=1)
    with probe, probe.counted(hand_made("skip:2", batch)), torch.no_grad():
        model(**batch)
    policy = probe.result().info["positions_policy"]
    left = {"left": probe.positions, "of": sum(map(len, TEXTS))}
    assert policy == {"positions": "counted", "skip_special_tokens": [], **left}
    assert not same_policy(policy, None)


def test_the_order_of_policies_does_not_matter(model):
    one, other = (
        SoftEntropyProbe(model, positions=names, anchor_sets=1) for names in ("first:6,skip:1", ["skip:1", "first:6"])
    )
    for probe in (one, other):
        with probe, torch.no_grad():
            model(**left_padded(TEXTS))
    n = one.positions
    one.merge(other)
    assert one.positions == 2 * n


def test_distinct_prefixes_are_counted_of_all(model):
    """Prefixes that do not count are distinct, too, and those that count later are not among them."""
    probe = SoftEntropyProbe(model, labels=(), positions="last", count="unique_prefix", anchor_sets=1)
    text = TEXTS[0]
    with probe, torch.no_grad():
        for n in (9, 9, 5, 9):
            model(input_ids=text[None, :n], use_cache=False)
    policy = probe.result().info["positions_policy"]
    assert (policy["left"], policy["of"]) == (2, 9)
    again = SoftEntropyProbe(model, labels=(), positions="last", count="unique_prefix", anchor_sets=1)
    again.load_state_dict(probe.state_dict())
    with again, torch.no_grad():
        model(input_ids=text[None, :7], use_cache=False)
    policy = again.result().info["positions_policy"]
    assert (policy["left"], policy["of"]) == (3, 9)


def test_states_and_merges(model):
    how = {"labels": ["input_unigram"], "positions": "skip:2", "skip_special_tokens": SPECIAL}
    parts = [SoftEntropyProbe(model, anchor_sets=1, **how) for _ in range(2)]
    for probe, texts in zip(parts, (TEXTS[:2], TEXTS[2:]), strict=True):
        with probe, torch.no_grad():
            model(**left_padded(texts))
    whole = parts[0].new_like()
    whole.load_state_dict(parts[0].state_dict())
    whole.merge(parts[1])
    assert_counts(whole, model, TEXTS, holds("skip:2", special=SPECIAL))
    assert whole.result().info["positions_policy"]["of"] == sum(map(len, TEXTS))
    for other, message in (
        ({**how, "positions": "skip:3"}, "merge: expected positions='skip:3', got 'skip:2'$"),
        ({**how, "skip_special_tokens": ()}, r"merge: expected skip_special_tokens=\[\], got \[5, 6, 7\]$"),
    ):
        with pytest.raises(InputError, match=message):
            SoftEntropyProbe(model, anchor_sets=1, **other).merge(whole)
        with pytest.raises(InputError, match="state: expected"):
            SoftEntropyProbe(model, anchor_sets=1, **other).load_state_dict(whole.state_dict())


def test_states_of_before_are_of_all_positions(model):
    probe = alone(model, TEXTS, ["input_unigram"])
    state = probe.state_dict()
    before = {name: v for name, v in state["settings"].items() if name not in ("positions", "skip_special_tokens")}
    again = probe.new_like()
    again.load_state_dict({**state, "settings": before})
    assert torch.equal(again.sums, probe.sums)
    with pytest.raises(InputError, match="state: expected positions='last', got 'all'"):
        SoftEntropyProbe(model, labels=["input_unigram"], positions="last", anchor_sets=1).load_state_dict(
            {**state, "settings": before}
        )


@pytest.mark.parametrize("policy", ["skip:2", "first:3", "last"])
def test_several_threads(model, policy):
    probe = SoftEntropyProbe(model, labels=["input_unigram"], positions=policy, anchor_sets=1)
    with probe, ThreadPoolExecutor(4) as pool:
        list(pool.map(torch.no_grad()(lambda text: model(text[None])), TEXTS))
    assert_counts(probe, model, TEXTS, holds(policy))


def test_counted_holds_in_the_thread_that_sets_it(model):
    def feed(text):
        with probe.counted(torch.arange(len(text))[None] >= 2), torch.no_grad():
            model(text[None])

    probe = SoftEntropyProbe(model, labels=["input_unigram"], anchor_sets=1)
    with probe, ThreadPoolExecutor(4) as pool:
        list(pool.map(feed, TEXTS))
    assert_counts(probe, model, TEXTS, holds("skip:2"))


def test_a_tokenizer_s_special_tokens(model):
    words = tokenizer()
    probe = SoftEntropyProbe(model, labels=(), skip_special_tokens=words, anchor_sets=1)
    assert probe.state_dict()["settings"]["skip_special_tokens"] == sorted(words.all_special_ids) == [0, 1]
    text = torch.tensor([0, 4, 1, 5, 0])
    with probe, torch.no_grad():
        model(input_ids=text[None])
    assert_counts(probe, model, [text], [[1, 3]])


# --- what is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"positions": "assistant"}, r"positions: assistant is known of data only; .* probe\.counted\(mask\)$"),
        ({"positions": "skip:1,completion"}, r"positions: completion is known of data only"),
        ({"positions": "middle"}, "positions: expected all, generated, last, first:N or skip:N, .*got 'middle'"),
        ({"positions": "first:1", "labels": ["input_bigram"]}, "none of the first 1 tokens has 1 before it"),
        ({"positions": "last"}, r"positions: no token follows the last one, and output_unigram needs one"),
        ({"skip_special_tokens": True}, "skip_special_tokens: expected a tokenizer or a list of token ids, got True"),
        ({"skip_special_tokens": ["<s>"]}, r"skip_special_tokens: expected .*got \['<s>'\]"),
        ({"skip_special_tokens": [-1]}, r"skip_special_tokens: expected .*got \[-1\]"),
    ],
)
def test_what_nobody_can_tell_is_refused(model, how, message):
    with pytest.raises(InputError, match=message) as error:
        SoftEntropyProbe(model, anchor_sets=1, **how)
    assert "\n" not in str(error.value)


def test_the_last_token_of_a_sequence_that_goes_on_is_refused(model):
    batch = left_padded(TEXTS)
    for pieces in ([12], [6, 6], [11, 1], [1] * 12):
        probe = SoftEntropyProbe(model, labels=(), positions="last", anchor_sets=1)
        if len(pieces) == 1:
            with probe, torch.no_grad():
                feed_in_pieces(model, batch, pieces)
            continue
        with pytest.raises(ProbeError, match=r"positions: last needs sequences that are fed whole"), probe:
            feed_in_pieces(model, batch, pieces)
    with (
        pytest.raises(ProbeError, match=r"positions: last needs"),
        SoftEntropyProbe(model, labels=(), positions="last", anchor_sets=1),
    ):
        model.generate(**batch, max_new_tokens=4)


@pytest.mark.parametrize("policy", ["last", "skip:2", "first:3"])
def test_a_past_that_is_unknown(model, policy):
    (text,), cache = prompts(9), DynamicCache()
    with torch.no_grad():
        model(input_ids=text[None, :4], past_key_values=cache)
    probe = SoftEntropyProbe(model, labels=(), positions=policy, anchor_sets=1)
    with pytest.raises(ProbeError, match=rf"positions: {policy} needs the place of each token"), probe:
        for t in range(4, 9):
            model(input_ids=text[None, t : t + 1], past_key_values=cache)
    special = SoftEntropyProbe(model, labels=(), skip_special_tokens=[int(text[5])], anchor_sets=1)
    with special, torch.no_grad():
        model(input_ids=text[None, 4:], past_key_values=cache)
    assert special.positions == int((text[4:] != text[5]).sum())


def test_special_tokens_of_embeddings(model):
    embeds = model.get_input_embeddings()(TEXTS[0][None]).detach()
    with pytest.raises(ProbeError, match="skip_special_tokens: the model was fed no input_ids"):
        with SoftEntropyProbe(model, labels=(), skip_special_tokens=[1], anchor_sets=1):
            model(inputs_embeds=embeds)
    probe = SoftEntropyProbe(model, labels=(), positions="skip:2", anchor_sets=1)
    with probe, torch.no_grad():
        model(inputs_embeds=embeds)
    assert_counts(probe, model, TEXTS[:1], [range(2, 9)])


def test_nothing_that_counts_says_why(model):
    for how, message in (
        ({"positions": "generated"}, "'generated' hold at none of 34; generated are the tokens that model.generate"),
        ({"positions": "skip:40"}, "; positions='skip:40' hold at none of 34$"),
        ({"skip_special_tokens": range(30)}, "; positions='all' and skip_special_tokens hold at none of 34$"),
    ):
        probe = SoftEntropyProbe(model, labels=(), anchor_sets=1, **how)
        with probe, torch.no_grad():
            model(**left_padded(TEXTS))
        with pytest.raises(ProbeError, match=message):
            probe.result()


# --- modules that are no language models ----------------------------------------------------------------------


class Pooled(torch.nn.Module):
    """Reads vectors [B, T, D], and gives one for each sequence, too."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.each = torch.nn.Linear(6, 8)
        self.pool = torch.nn.Identity()

    def forward(self, x_BTD, attention_mask=None):
        return self.pool(self.each(x_BTD).mean(dim=1))


def test_modules_of_vectors():
    net, x = Pooled().eval(), torch.randn(3, 7, 6)
    mask = torch.arange(7) < torch.tensor([7, 4, 5])[:, None]
    for policy in ("skip:2", "first:3", "last"):
        probe = SoftEntropyProbe(net, modules={"each": net.each}, positions=policy, anchor_sets=1)
        by_hand = SoftEntropyProbe(net, modules={"each": net.each}, anchor_sets=1)
        counted = hand_made(policy, {"attention_mask": mask.long(), "input_ids": torch.zeros(3, 7)})
        with probe, by_hand, by_hand.counted(counted), torch.no_grad():
            net(x, attention_mask=mask)
        assert probe.positions == by_hand.positions == int(counted.sum())
        assert torch.equal(probe.sums, by_hand.sums)


def test_pooled_states_have_no_places():
    net, x = Pooled().eval(), torch.randn(3, 7, 6)
    for how in ({"positions": "skip:2"}, {"positions": "last"}, {"positions": "generated"}):
        with pytest.raises(ProbeError, match=r"positions: hidden states \[B, D\] are of no position"):
            with SoftEntropyProbe(net, modules={"pool": net.pool}, anchor_sets=1, **how):
                net(x)
    probe = SoftEntropyProbe(net, modules={"pool": net.pool}, anchor_sets=1)
    with probe, probe.counted(torch.tensor([1, 0, 1])), torch.no_grad():
        net(x)
    assert probe.positions == 2
    assert_same(probe, probe)


def test_modules_of_a_language_model(model):
    probe = SoftEntropyProbe(model, modules={"mlp": model.model.layers[0].mlp}, positions="skip:2", anchor_sets=1)
    by_hand = SoftEntropyProbe(model, modules={"mlp": model.model.layers[0].mlp}, anchor_sets=1)
    batch = left_padded(TEXTS)
    with probe, by_hand, by_hand.counted(hand_made("skip:2", batch)), torch.no_grad():
        model(**batch)
    assert probe.positions == sum(map(len, holds("skip:2")))
    assert torch.equal(probe.sums, by_hand.sums)
