"""The meter: hidden states that come from elsewhere, in whole sequences and in pieces."""

import copy
import random
import re
import tracemalloc
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from softh_probe import ProbeResult, SoftEntropyMeter, SoftEntropyProbe, sample_anchors, temperature
from softh_probe.analysis.comparable import check_comparable
from softh_probe.distributed import gather
from softh_probe.errors import InputError, ProbeError
from tests.helpers import references
from tests.helpers.fed_states import caught, documents, random_states
from tests.helpers.probes import NAMES, NGRAMS, batches, value, values_by_key

FEW = {"n_anchors": 12, "anchor_sets": 2}
#: Sums that the keys of sequences draw: a piece does not tell its sequence, so those of a meter have their number, too.
DRAWN = ("replicates", "sample")


def assert_same_sums(one, other, but=()):
    """All sums and rows of labels are equal bit for bit."""
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours["positions"] == theirs["positions"] > 0
    assert ours["tokens"] == theirs["tokens"]
    assert list(ours["layers"]) == list(theirs["layers"])
    for layer, state in ours["layers"].items():
        for key, tensor in state.items():
            if key not in but:
                assert torch.equal(torch.as_tensor(tensor), torch.as_tensor(theirs["layers"][layer][key])), (layer, key)
    assert torch.equal(one.sums, other.sums)
    for key in ("ngrams", "rows", "counts"):
        assert all(map(torch.equal, ours["rows"][key], theirs["rows"][key])), key


def feed_pieces(meter, docs, states, rng, most=9, first=0, counted=None):
    """Feed documents in pieces of random sizes, several in an update: interleaved, with padding, or row by row."""
    at = [0] * len(docs)
    while left := [d for d in range(len(docs)) if at[d] < len(docs[d])]:
        chosen = rng.sample(left, rng.randint(1, len(left)))
        ends = {d: min(len(docs[d]), at[d] + rng.choice([1, 1, 2, most])) for d in chosen}
        taken = [(d, t) for d in chosen for t in range(at[d], ends[d])]
        form = rng.choice(["in order", "interleaved", "padded", "rows"])
        if form == "interleaved":
            taken.sort(key=lambda dt: (dt[1], chosen.index(dt[0])))
        if form == "padded":
            taken.insert(rng.randrange(len(taken)), None)
        if form == "rows":
            n_tokens = max(ends[d] - at[d] for d in chosen) + 1
            taken = [(d, t) if t < ends[d] else None for d in chosen for t in range(at[d], at[d] + n_tokens)]
        real = [dt if dt else (chosen[0], 0) for dt in taken]  # what stands at padding is not looked at
        shape = (len(chosen), n_tokens) if form == "rows" else (len(taken),)
        arguments = {
            "input_ids": [docs[d][t] for d, t in real],
            "position": [t for _, t in real],
            "mask": [dt is not None for dt in taken],
            "counted": [counted is None or counted[d][t] for d, t in real],
        }
        arguments = {name: np.array(values).reshape(shape) for name, values in arguments.items()}
        if counted is None:
            del arguments["counted"]
        of_row = chosen if form == "rows" else [d for d, _ in real]
        meter.update(
            {row: torch.stack([states[d][row][t] for d, t in real]).view(*shape, -1) for row in states[0]},
            sequence=[f"doc {first + d}" for d in of_row],
            language=["de" if (first + d) % 2 else "en" for d in of_row],
            **arguments,
        )
        for d in chosen:
            at[d] = ends[d]
            if at[d] == len(docs[d]):
                meter.end(f"doc {first + d}")


# --- equal to a probe -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whole_sequences_give_a_probes_sums_bit_for_bit(model, side, dtype):
    model = model.to(dtype)
    probe, meter = SoftEntropyProbe(model, labels=NAMES, **FEW), SoftEntropyMeter(labels=NAMES, **FEW)
    languages = np.array(["de", "en", "it", "de", "en", "en", "de", "it"], dtype=object)
    with probe, torch.no_grad(), caught(model) as states:
        for i, batch in enumerate(batches(documents(23, 7, 41, 5, 18, 30, 9, 12), 3, side)):
            some = languages[3 * i : 3 * i + len(batch["input_ids"])]
            with probe.labelled(language=some):
                model(**batch, use_cache=False)
            ids, mask = batch["input_ids"], batch["attention_mask"]
            meter.update(dict(states), input_ids=ids, mask=mask, language=some.tolist())
    assert_same_sums(probe, meter)
    ours, theirs = probe.result(), meter.result()
    assert ours.to_pandas().equals(theirs.to_pandas())
    assert ours.info["corpus"] == theirs.info["corpus"]
    assert ours.info["settings"] == theirs.info["settings"]


@pytest.mark.filterwarnings("ignore:.*standard error|.*corrected information")
@pytest.mark.parametrize(
    ("seed", "settings"),
    [(0, {}), (1, {}), (0, {"positions": "skip:3"}), (0, {"skip_special_tokens": [2, 4]}), (0, {"label_rows": 60})],
)
def test_pieces_give_the_sums_of_a_probe_that_was_fed_them_bit_for_bit(model, seed, settings):
    docs, rng = documents(23, 7, 41, 5, 18, 30), random.Random(seed)
    probe, meter = (
        make(labels=NAMES, **FEW, **settings) for make in (lambda **s: SoftEntropyProbe(model, **s), SoftEntropyMeter)
    )
    batched = [[0, 1], [2], [3, 4, 5]]  # rows of one cache
    at, caches = [0] * len(batched), [None] * len(batched)
    lengths = [min(len(docs[d]) for d in rows) for rows in batched]
    with probe, torch.no_grad(), caught(model) as states:
        while left := [g for g in range(len(batched)) if at[g] < lengths[g]]:
            g = rng.choice(left)
            end = min(lengths[g], at[g] + rng.choice([1, 1, 1, 2, 5]))
            ids = torch.tensor([docs[d][at[g] : end] for d in batched[g]])
            caches[g] = model(ids, past_key_values=caches[g], use_cache=True).past_key_values
            meter.update(dict(states), input_ids=ids, sequence=batched[g], position=[at[g]] * len(ids))
            at[g] = end
    assert_same_sums(probe, meter, but=DRAWN)
    assert probe.result().info["corpus"] == meter.result().info["corpus"]
    assert probe.result().info.get("positions_policy") == meter.result().info.get("positions_policy")


def test_masks_of_counted_positions_are_those_of_a_probe(model):
    probe, meter = SoftEntropyProbe(model, labels=NAMES[:4], **FEW), SoftEntropyMeter(labels=NAMES[:4], **FEW)
    ids = torch.tensor(documents(12, 12))
    counted = torch.arange(12).expand(2, 12) % 3 != 0
    with probe, torch.no_grad(), probe.counted(counted), caught(model) as states:
        model(ids, use_cache=False)
    meter.update(dict(states), input_ids=ids, counted=counted)
    assert_same_sums(probe, meter)
    policy = meter.result().info["positions_policy"]
    assert policy == probe.result().info["positions_policy"]
    assert policy["positions"] == "counted"


def test_the_example_in_the_readme_runs():
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    example = next(part for part in text.split("```python\n")[1:] if "SoftEntropyMeter" in part).partition("```")[0]
    found: dict = {}
    exec(example, found)
    assert found["meter"].positions == 98
    assert {"input_unigram", "output_bigram"} < set(found["table"].label_set)


# --- right, in whatever pieces ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
def test_interleaved_pieces_of_any_size_give_the_float64_reference(seed):
    docs = documents(23, 7, 41, 5, 18, 30, 1, 2)
    states = random_states(docs, width=16, seed=seed)
    meter = SoftEntropyMeter(labels=NAMES, n_anchors=20, anchor_sets=1, n_blocks=2)
    feed_pieces(meter, docs, states, random.Random(seed))
    anchors, eps = sample_anchors(20, 16).numpy(), temperature(20, 16)
    counted = {d: range(3, len(doc) - 4) for d, doc in enumerate(docs) if len(doc) >= 8}
    at = [(d, t) for d, places in counted.items() for t in places]
    assert meter.positions == len(at)
    labels = {name: [references.ngram_label(docs[d], t, direction, n) for d, t in at] for name, direction, n in NGRAMS}
    labels["language"] = [d % 2 for d, _ in at]
    result = meter.result()
    found = values_by_key(result)
    for g, row in enumerate(meter.layers):
        q = references.assignments(np.stack([states[d][row][t].numpy() for d, t in at]), anchors, eps)
        assert meter.sums[g, 0].numpy() == pytest.approx(q.sum(axis=0), rel=1e-6)
        assert found[row, "entropy", ""] == pytest.approx(references.entropy(q.sum(axis=0)), abs=1e-6)
        for name, of_positions in labels.items():
            expected = references.mutual_information(q, of_positions)
            assert found[row, "mutual_information", name] == pytest.approx(expected, abs=2e-6)
    rows = meter.state_dict()["rows"]
    for (name, _, _), ngrams, counts in zip(NGRAMS, rows["ngrams"], rows["counts"], strict=True):
        found = dict(zip(map(tuple, ngrams.tolist()), counts.tolist(), strict=True))
        assert found == Counter(labels[name])
    shown = result.conditional_entropy("language").set_index("label")["count"].to_dict()
    assert shown == {"en": labels["language"].count(0), "de": labels["language"].count(1)}


def test_texts_and_their_labels_are_the_same_in_pieces_and_whole():
    docs = documents(300, 7, 600, 5)
    states = random_states(docs)
    pieces, whole = (SoftEntropyMeter(labels=NAMES[:2], n_blocks=2, **FEW) for _ in range(2))
    feed_pieces(pieces, docs, states, random.Random(1), most=40)
    for d, (doc, h) in enumerate(zip(docs, states, strict=True)):
        whole.update(h, input_ids=doc, language=["en", "de"][d % 2])
    of = [m.result().info["corpus"]["sequence_set_sha256"] for m in (pieces, whole)]
    assert of[0] == of[1]
    assert pieces.sums.numpy() == pytest.approx(whole.sums.numpy(), rel=1e-6)
    results = [meter.result() for meter in (pieces, whole)]
    assert results[0].info["document_labels"] == results[1].info["document_labels"] != {}
    nulls = [value(result, "layer.1", "mutual_information_null", "language") for result in results]
    assert nulls[0] == pytest.approx(nulls[1], abs=1e-5)


@pytest.mark.parametrize(
    "settings", [{}, {"positions": "skip:3"}, {"positions": "first:9"}, {"skip_special_tokens": [2]}], ids=str
)
def test_the_same_positions_count_in_pieces_and_whole(settings):
    docs, rng = documents(23, 7, 41, 5, 18), random.Random(5)
    states, counted = random_states(docs), [[rng.random() < 0.7 for _ in doc] for doc in docs]
    pieces, whole = (SoftEntropyMeter(labels=NAMES[:4], n_blocks=2, **settings, **FEW) for _ in range(2))
    feed_pieces(pieces, docs, states, rng, counted=counted)
    for doc, h, some in zip(docs, states, counted, strict=True):
        whole.update(h, input_ids=doc, counted=some)
    assert pieces.positions == whole.positions
    assert pieces.sums.numpy() == pytest.approx(whole.sums.numpy(), rel=1e-6)
    policies = [meter.result().info["positions_policy"] for meter in (pieces, whole)]
    assert policies[0] == policies[1]
    assert policies[0]["left"] < policies[0]["of"]


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_shapes_orders_and_types_do_not_matter(data):
    n_rows, n_tokens = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9))
    ids = torch.tensor(documents(*[n_tokens] * n_rows, seed=data.draw(st.integers(0, 99))))
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
    h = {row: torch.randn(n_rows, n_tokens, 5).to(dtype) for row in ("fc1", "fc2")}
    labels = data.draw(st.sampled_from([(), ("input_unigram",), ("output_bigram", "input_trigram")]))
    first, second = (SoftEntropyMeter(labels=labels, n_anchors=6, anchor_sets=1) for _ in range(2))
    first.update(h, input_ids=ids, tag=list(range(n_rows)))
    cut = data.draw(st.integers(0, n_tokens))
    for begin, end in ((0, cut), (cut, n_tokens)):
        order = data.draw(st.permutations(range(n_rows)))
        at = [(b, t) for b in order for t in range(begin, end)]
        if data.draw(st.booleans()):
            at = [(b, t) for t in range(begin, end) for b in order]
        rows, columns = [b for b, _ in at], [t for _, t in at]
        some = {row: states[rows, columns] for row, states in h.items()}
        if dtype is not torch.bfloat16 and data.draw(st.booleans()):
            some = {row: states.numpy() for row, states in some.items()}
        second.update(some, input_ids=ids[rows, columns], sequence=rows, position=columns, tag=rows)
    assert first.positions == second.positions
    assert second.sums.numpy() == pytest.approx(first.sums.numpy(), rel=1e-5, abs=1e-9)
    ours, theirs = first.state_dict()["rows"], second.state_dict()["rows"]
    for key in ("ngrams", "own"):
        of = [x.values() if isinstance(x, dict) else x for x in (ours[key], theirs[key])]
        assert [sorted(part.tolist()) for part in of[0]] == [sorted(part.tolist()) for part in of[1]]


class Exported:
    """An array of another library."""

    def __init__(self, tensor):
        self._tensor = tensor

    def __dlpack__(self, **settings):
        return self._tensor.__dlpack__(**settings)

    def __dlpack_device__(self):
        return self._tensor.__dlpack_device__()


@pytest.mark.parametrize(
    "convert",
    [
        Exported,
        lambda h: h.numpy()[:, ::-1].copy()[:, ::-1],
        lambda h: h.numpy().astype(">f4"),
        lambda h: np.frombuffer(h.numpy().tobytes(), dtype=np.float32).reshape(h.shape),
        lambda h: h.numpy().astype(np.longdouble),
        lambda h: h.clone().requires_grad_(),
    ],
    ids=["dlpack", "reversed", "big-endian", "read-only", "long double", "with gradients"],
)
def test_states_come_from_any_library(convert):
    h, ids = torch.randn(20, 5), documents(20)[0]
    one, other = (SoftEntropyMeter(**FEW) for _ in range(2))
    one.update({"fc": h}, input_ids=ids)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.update({"fc": convert(h)}, input_ids=ids)
    assert_same_sums(one, other)


# --- what is refused --------------------------------------------------------------------------------------------

H = torch.ones(2, 8)


def spoilt(where, what):
    h = torch.ones(2, 8)
    h[where] = what
    return h


@pytest.mark.parametrize(
    ("states", "changes", "message"),
    [
        ({"layer.1": H}, {}, "no hidden states of layer.2; each update has those of all 2 rows"),
        ({"layer.1": H, "layer.2": H, "layer.3": H}, {}, "unknown row 'layer.3'"),
        ({"layer.1": H, "layer.2": torch.ones(2, 9)}, {}, "layer.2: expected hidden states of width 8, got [2, 9]"),
        ({"layer.1": H, "layer.2": torch.ones(3, 8)}, {}, "layer.2: expected hidden states [2, 'D'] as of layer.1"),
        ({"layer.1": H, "layer.2": H.long()}, {}, "layer.2: expected hidden states [N, D] or [B, T, D]"),
        ({"layer.1": H, "layer.2": [[1.0]]}, {}, "layer.2: expected hidden states [N, D] or [B, T, D]"),
        (
            {"layer.1": H, "layer.2": spoilt(1, 0.0)},
            {},
            "layer.2: the hidden state is zero at position 4 of sequence 'a'",
        ),
        (
            {"layer.1": spoilt((0, 3), torch.nan), "layer.2": H},
            {},
            "layer.1: the hidden state is not finite at position 3",
        ),
        ({"layer.1": H, "layer.2": spoilt((1, 0), -torch.inf)}, {}, "layer.2: the hidden state is not finite"),
        (None, {"position": [4, 5]}, "position: expected 3 in sequence 'a', got 4, a gap; feed each token once"),
        (None, {"position": [2, 3]}, "position: expected 3 in sequence 'a', got 2, a repeat; feed each token once"),
        (None, {"position": [3, 5]}, "position: expected 4 in sequence 'a', got 5, a gap"),
        (None, {"position": [0, 1]}, "got 0, a repeat; end the sequence of that name before another one begins"),
        (None, {"sequence": "b"}, "position: expected 0 in sequence 'b', got 3, a gap; it has not begun, or has ended"),
        (None, {"position": None}, "position: expected that of each hidden state in its sequence"),
        (None, {"position": [[3, 4]]}, "position: expected [2] or [], as the hidden states are, got [1, 2]"),
        (None, {"sequence": 1.5}, "sequence: expected integers or strings, or a list of these, got 1.5"),
        (None, {"sequence": ["a", None]}, "sequence: expected an integer or a string, got None"),
        (None, {"sequence": ["a"]}, "sequence: expected one name, or 2, got 1"),
        (None, {"input_ids": None}, "input_ids: expected the tokens of the hidden states"),
        (None, {"input_ids": [1, -1]}, "input_ids: expected token ids from 0 to"),
        (None, {"input_ids": [1.0, 2.0]}, "input_ids: expected integers, got float64 [2]"),
        (None, {"input_ids": [1]}, "input_ids: expected [2], as the hidden states are, got [1]"),
        (None, {"language": [1, 2]}, "language: expected strings, as before, got integers"),
        (None, {"language": ["de"] * 3}, "language: expected one label, or labels [2], got [3]"),
        (None, {"input_unigram": [1, 2]}, "input_unigram: this is one of the n-gram label sets"),
        (None, {"sequence": [1, 2, 3]}, "sequence: expected one name, or 2, got 3"),
    ],
)
def test_what_is_refused_adds_nothing(states, changes, message):
    good = {"layer.1": H, "layer.2": H}
    meter, other = (SoftEntropyMeter(labels=NAMES[:4], n_blocks=2, **FEW) for _ in range(2))
    begun = {row: torch.arange(1, 25.0).view(3, 8) for row in good}
    for one in (meter, other):
        one.update(begun, input_ids=[1, 2, 3], sequence="a", position=0, language="de")
    update = {"input_ids": [4, 5], "sequence": "a", "position": [3, 4], **changes}
    with pytest.raises(InputError, match=re.escape(message)):
        meter.update(good if states is None else states, **update)
    for one in (meter, other):
        one.update(good, input_ids=[4, 5], sequence="a", position=3, language="de")
    assert_same_sums(meter, other)


def test_rows_of_a_batch_are_sequences_of_their_own():
    meter = SoftEntropyMeter(labels=(), **FEW)
    h = {"fc": torch.ones(2, 3, 8)}
    for sequence, message in [
        (["a", "a"], "sequence: 'a' stands twice in one update"),
        (["a"], "sequence: expected a name for each of 2 rows, got 1 names"),
        ("a", "sequence: expected a name for each of 2 rows, got one name"),
    ]:
        with pytest.raises(InputError, match=re.escape(message)):
            meter.update(h, sequence=sequence, position=[0, 0])
    meter.update(h, sequence=["a", "b"], position=[[0, 1, 2]] * 2, tag=["x", "y"])
    assert meter.positions == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"positions": "generated"}, "positions: a meter does not see who wrote a token; give update(counted=mask)"),
        ({"positions": "assistant"}, "positions: assistant is known of data only"),
        ({"most_sequences": 0}, "most_sequences: expected a whole number of at least 1, got 0"),
        ({"widths": {"layer.1": 0}}, "widths: layer.1: expected a whole number of at least 1, got 0"),
        ({"widths": {}}, "widths: expected widths by row"),
        ({"widths": {"layer.3": 8}, "n_blocks": 2}, "n_blocks: expected at least 3, of the row layer.3, got 2"),
        ({"labels": ["column:language"]}, "labels"),
        ({"n_anchors": 1}, "n_anchors"),
    ],
)
def test_settings_are_checked(arguments, message):
    with pytest.raises(InputError, match=re.escape(message)):
        SoftEntropyMeter(**arguments)


def test_states_that_do_not_count_may_be_anything():
    meter = SoftEntropyMeter(labels=["output_unigram"], **FEW)
    h = torch.ones(5, 8)
    h[0], h[3] = 0.0, torch.nan
    meter.update({"fc": h}, input_ids=[1, 2, 3, 4, 5], counted=[0, 1, 1, 0, 1])
    assert meter.positions == 2
    meter.update({"fc": h}, input_ids=[1, 2, 3, 4, 5], mask=[0, 1, 1, 0, 1])
    assert meter.positions == 4
    meter.update({"fc": h}, input_ids=[1, 2, 3, 4, 5], mask=[0] * 5)
    assert meter.positions == 4


def test_the_last_token_is_known_of_whole_sequences_alone():
    meter = SoftEntropyMeter(labels=["input_unigram"], positions="last", **FEW)
    with pytest.raises(InputError, match="positions: last needs sequences that come whole"):
        meter.update({"fc": H}, input_ids=[1, 2], sequence=1, position=0)
    meter.update({"fc": torch.randn(3, 4, 8)}, input_ids=torch.ones(3, 4, dtype=int))
    assert meter.positions == 3


def test_nothing_counted_is_no_result():
    meter = SoftEntropyMeter(labels=["output_quadgram"], **FEW)
    meter.update({"fc": H}, input_ids=[1, 2])
    with pytest.raises(ProbeError, match="no position was counted: update the meter with sequences long enough"):
        meter.result()


# --- sequences that end -----------------------------------------------------------------------------------------


def one_token(meter, name, position, token=1):
    meter.update({"fc": torch.randn(1, 8)}, input_ids=[token], sequence=name, position=position)


def test_what_waits_does_not_count_where_its_sequence_ends():
    meter = SoftEntropyMeter(labels=["output_bigram"], **FEW)
    for t in range(5):
        one_token(meter, "a", t)
    assert meter.positions == 3
    meter.end("a")
    assert not any(sums.waiting or sums.waiting_units for sums in meter._sums.values())
    with pytest.raises(InputError, match="end: no sequence 'a' is open"):
        meter.end("a")
    for t in range(3):  # another one of that name
        one_token(meter, "a", t)
    assert meter.positions == 4
    assert meter.result().info["corpus"]["sequences"] == 2


def test_the_sequence_that_was_fed_least_recently_is_evicted_and_results_say_so(tmp_path):
    meter = SoftEntropyMeter(labels=["output_unigram"], most_sequences=2, **FEW)
    one_token(meter, "a", 0)
    one_token(meter, "b", 0)
    one_token(meter, "a", 1)
    with pytest.warns(UserWarning, match="most_sequences: sequences are evicted"):
        one_token(meter, "c", 0)  # b goes
    one_token(meter, "a", 2)
    with pytest.raises(InputError, match=r"sequence 'b', got 1, a gap; it has not begun, or has ended or been evicted"):
        one_token(meter, "b", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one_token(meter, "d", 0)
    with pytest.raises(InputError, match="this update is of 3 sequences, and at most 2 are open"):
        meter.update({"fc": torch.ones(3, 8)}, input_ids=[1, 1, 1], sequence=[1, 2, 3], position=[0, 0, 0])
    assert meter.positions == 2
    other = meter.new_like()
    other.load_state_dict(meter.state_dict())
    other.merge(meter)
    for one, n in ((meter, 2), (other, 4)):
        one.result().save(tmp_path / str(n))
        choices = ProbeResult.load(tmp_path / str(n)).info["choices"]
        assert [c["chosen"] for c in choices if c["about"] == "most_sequences"] == [f"{n} sequences were evicted"]


def test_sequences_that_begin_alike_are_drawn_one_by_one():
    meter = SoftEntropyMeter(labels=(), **FEW)
    for i in range(40):
        meter.update({"fc": torch.randn(3, 8)}, input_ids=[1, 2, 3], sequence=i, position=0)
    replicates = meter.state_dict()["layers"]["fc"]["replicates"]
    assert len(replicates.sum(dim=1).round().unique()) > 5
    assert meter.state_dict()["rows"]["sample"].unique().numel() == 120


# --- parts, states, results -------------------------------------------------------------------------------------


def halves():
    docs = documents(23, 7, 41, 5, 18, 30)
    states = random_states(docs)
    meters = [SoftEntropyMeter(labels=NAMES, n_blocks=2, **FEW) for _ in range(3)]
    rng = random.Random(0)
    for meter, some in zip(meters, (slice(0, 3), slice(3, 6), slice(0, 6)), strict=True):
        feed_pieces(meter, docs[some], states[some], rng, first=some.start)
    return meters


def test_parts_are_merged_and_gathered():
    first, second, both = halves()
    alone = gather(first)
    assert alone.sums.equal(first.sums)
    alone.merge(second)
    assert alone.positions == both.positions
    assert alone.sums.numpy() == pytest.approx(both.sums.numpy(), rel=1e-6)
    values = [values_by_key(meter.result()) for meter in (alone, both)]
    for metric in ("mutual_information", "mutual_information_max"):
        for name in (*NAMES, "language"):
            one, other = (found["layer.2", metric, name] for found in values)
            assert one == pytest.approx(other, abs=1e-5), (metric, name)
    with pytest.raises(InputError, match="merge: a meter cannot be merged with itself"):
        both.merge(both)
    with pytest.raises(InputError, match="merge: expected n_anchors=12, got 13"):
        both.merge(SoftEntropyMeter(labels=NAMES, n_anchors=13, anchor_sets=2))
    wider = SoftEntropyMeter(labels=NAMES, widths={"layer.1": 8, "layer.2": 16}, n_blocks=2, **FEW)
    with pytest.raises(
        InputError, match=r"merge: expected layer.1 \(8\), layer.2 \(8\), got layer.1 \(8\), layer.2 \(16\)"
    ):
        both.merge(wider)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:most_sequences")
def test_memory_does_not_grow_with_the_positions():
    meter = SoftEntropyMeter(labels=NAMES, n_anchors=8, anchor_sets=1, label_rows=128, n_blocks=1, most_sequences=8)
    rng, h = np.random.default_rng(0), torch.randn(512, 8)
    taken = []
    tracemalloc.start()
    for i in range(120):
        ids = rng.zipf(1.3, 512) % 1000
        name, piece = divmod(i, 3)  # all are left open, and the next ones evict them
        meter.update({"layer.1": h}, input_ids=ids, sequence=name, position=512 * piece)
        if i in (59, 119):
            taken.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert meter.positions > 40_000
    assert taken[1] - taken[0] < 2**18, taken


def test_a_state_is_continued():
    docs = documents(20, 30)
    states = random_states(docs)
    whole, first, second = (SoftEntropyMeter(labels=NAMES, n_blocks=2, **FEW) for _ in range(3))
    for meter, some in ((whole, (0, 1)), (first, (0,))):
        for d in some:
            meter.update(states[d], input_ids=docs[d])
    second.update({"other": H}, input_ids=[1, 2], sequence="a", position=0)
    with pytest.raises(InputError, match=r"state: expected other \(8\), got layer.1 \(8\), layer.2 \(8\)"):
        second.load_state_dict(first.state_dict())
    second = second.new_like()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.layers == ["layer.1", "layer.2"]
    second.update(states[1], input_ids=docs[1])
    assert_same_sums(whole, second)
    assert whole.result().to_pandas().equals(second.result().to_pandas())


def test_a_probes_result_stands_beside_a_meters(model, tmp_path):
    probe = SoftEntropyProbe(model, labels=NAMES[:2], **FEW)
    meter = SoftEntropyMeter(labels=NAMES[:2], **FEW)
    with probe, torch.no_grad(), caught(model) as states:
        for i, doc in enumerate(documents(20, 30, 25)):
            model(torch.tensor([doc]))
            for begin, end in ((0, 11), (11, len(doc))):
                piece = {row: h[0, begin:end] for row, h in states.items()}
                meter.update(piece, input_ids=doc[begin:end], sequence=i, position=begin)
    for name, one in (("probe", probe), ("meter", meter)):
        one.result(name=name).save(tmp_path / name)
    loaded = [ProbeResult.load(tmp_path / name) for name in ("probe", "meter")]
    assert check_comparable(loaded, ["probe", "meter"]) == []
    assert loaded[1].info["model"] is None
    assert loaded[1].places == loaded[0].places
    for metric in ("entropy", "anisotropy"):
        assert value(loaded[0], "layer.2", metric) == pytest.approx(value(loaded[1], "layer.2", metric), abs=1e-6)


def test_rows_stand_in_the_models_order_and_its_depth_is_told():
    rows = ["final_norm", "layer.2", "layer.2.head.10", "layer.2.head.9", "embeddings", "layer.1"]
    meter = SoftEntropyMeter(labels=(), **FEW)
    with pytest.warns(UserWarning, match="n_blocks: 2 .the last block that was fed"):
        meter.update({row: H for row in rows})
    assert meter.layers == ["embeddings", "layer.1", "layer.2.head.9", "layer.2.head.10", "layer.2", "final_norm"]
    assert meter.result().info["n_blocks"] == 2
    few = SoftEntropyMeter(labels=(), **FEW)
    with pytest.warns(UserWarning, match="n_blocks: 5 .the last block that was fed"):
        few.update({"layer.5": H})
    known = SoftEntropyMeter(labels=(), n_blocks=12, widths={"layer.5": 8}, **FEW)
    known.update({"layer.5": H})
    parts = [SoftEntropyMeter(labels=(), **FEW) for _ in range(2)]
    parts[0].load_state_dict(known.state_dict())
    parts[1].merge(known)
    for meter in (known, *parts):
        assert meter.result().places.depths == [5 / 13]


@pytest.mark.filterwarnings("ignore:chance of language")
def test_several_numbers_of_anchors_are_measured_at_once():
    docs, settings = documents(20, 30), {"labels": NAMES[:4], "anchor_sets": 2, "n_blocks": 2}
    states = random_states(docs)
    both, alone = (SoftEntropyMeter(n_anchors=n, **settings) for n in ([12, 6], 6))
    for meter in (both, alone):
        feed_pieces(meter, docs, states, random.Random(2))
    assert both.result().others["n_anchors=6"].tensors["mass"].equal(alone.result().tensors["mass"])


def test_a_meter_shows_itself_in_one_line():
    meter = SoftEntropyMeter(labels=["input_unigram"], **FEW)
    one_token(meter, "a", 0)
    assert repr(meter) == (
        "<SoftEntropyMeter of 1 rows: label sets input_unigram; 2 x 12 anchors; 1 positions counted; 1 open sequences>"
    )


def test_states_minus_a_mean_are_those_that_were_subtracted_beforehand():
    generator = torch.Generator().manual_seed(0)
    states = [{"layer.1": torch.randn(50, 16, generator=generator) + 1.0} for _ in range(3)]
    ids_N = torch.arange(50) % 5
    meter = SoftEntropyMeter(labels=["input_unigram"], anchor_sets=2, n_blocks=1, center=True)
    for of_rows in states:
        meter.update(of_rows, input_ids=ids_N)
    mean_D = states[0]["layer.1"].double().mean(dim=0).float()
    assert meter.layers == ["layer.1.centered", "layer.1"]
    torch.testing.assert_close(meter.centers["layer.1"], mean_D, rtol=0, atol=0)
    by_hand = SoftEntropyMeter(labels=["input_unigram"], anchor_sets=2, n_blocks=1)
    for of_rows in states:
        by_hand.update({"layer.1": of_rows["layer.1"] - mean_D}, input_ids=ids_N)
    assert meter.sums[0].equal(by_hand.sums[0])
    same = SoftEntropyMeter(labels=["input_unigram"], anchor_sets=2, n_blocks=1, center=meter.centers)
    for of_rows in states:
        same.update(of_rows, input_ids=ids_N)
    assert same.sums.equal(meter.sums)
    assert meter.result().info["center"]["positions"] == 50
    continued = meter.new_like()
    continued.load_state_dict(meter.state_dict())
    continued.update(states[0], input_ids=ids_N)
    assert continued.layers == meter.layers
    assert continued.positions == 200


@pytest.mark.parametrize(
    ("arguments", "row", "message"),
    [
        ({"center": {"layer.1": torch.ones(7)}}, "layer.1", "center: layer.1: expected a vector of 8 numbers, got 7"),
        (
            {"center": {"layer.2": torch.ones(8)}},
            "layer.1",
            "center: expected a vector for each measured layer, got none",
        ),
        ({}, "layer.1.centered", "rows: 'layer.1.centered' is a name of the states of 'layer.1' minus their mean"),
    ],
)
def test_means_and_names_that_do_not_fit_are_refused(arguments, row, message):
    meter = SoftEntropyMeter(labels=(), **arguments)
    with pytest.raises(InputError, match=re.escape(message)):
        meter.update({row: torch.ones(3, 8)})
    assert meter.positions == 0


@pytest.mark.parametrize(
    ("arguments", "widths", "message"),
    [
        ({}, {"layer.1": 8, "layer.2": 1}, "layer.2: dim: expected hidden states of width 2 or more, got 1"),
        (
            {"anchors": sample_anchors(4, 6)},
            {"layer.1": 8, "layer.2": 8},
            "layer.1: anchors: they are for hidden states",
        ),
    ],
)
def test_widths_without_anchors_are_refused_and_leave_the_meter_as_it_was(arguments, widths, message):
    meter = SoftEntropyMeter(labels=(), n_blocks=2, **arguments)
    with pytest.raises(InputError, match=re.escape(message)):
        meter.update({name: torch.ones(3, width) for name, width in widths.items()})
    with pytest.raises(InputError, match=re.escape(message)):
        SoftEntropyMeter(labels=(), widths=widths, **arguments)
    right = 6 if arguments else 8
    meter.update({name: torch.ones(3, right) for name in widths})
    assert meter.positions == 3


def test_a_mean_is_of_several_positions():
    meter = SoftEntropyMeter(labels=(), n_blocks=1, center=True)
    with pytest.raises(
        InputError, match="center: the mean would be that of the first update, which is of one position"
    ):
        meter.update({"layer.1": torch.ones(1, 8)})
    meter.update({"layer.1": torch.eye(8)[:2]})
    meter.update({"layer.1": torch.ones(1, 8)})
    assert meter.positions == 3
    same = meter.new_like()
    same.update({"layer.1": torch.ones(3, 8)})
    with pytest.raises(
        ProbeError, match=r"layer\.1\.centered: .*; they are equal to the mean, which may be of too few"
    ):
        same.result()


@pytest.mark.parametrize("name", [torch.tensor(7), np.array(7), np.int64(7), 7])
def test_a_name_may_be_any_integer(name):
    meter = SoftEntropyMeter(labels=(), n_blocks=1)
    meter.update({"layer.1": torch.ones(2, 8)}, sequence=name, position=0)
    meter.update({"layer.1": torch.ones(2, 8)}, sequence=7, position=2)
    meter.end(name)
    assert meter.positions == 4
