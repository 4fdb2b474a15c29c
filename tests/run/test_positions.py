"""Runs that count some positions: sums of hand-made masks, labels of all tokens, and results that say so."""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import softh_probe.run.forward
import softh_probe.run.streamed_feed
from softh_probe import ProbeResult, SoftEntropyProbe, sample_anchors, temperature
from softh_probe.analysis.comparable import check_comparable, policy_notes
from softh_probe.analysis.paired import comparison_notes
from softh_probe.config import RunConfig
from softh_probe.errors import InputError, Interrupted
from softh_probe.other_names import our_name
from softh_probe.report.facts import facts, summary
from softh_probe.report.terminal import print_table
from softh_probe.run import run
from softh_probe.run.dry_run import dry_run
from softh_probe.sweep.config import SweepConfig
from tests.helpers import references
from tests.helpers.corpora import LANGUAGES, TEXTS
from tests.helpers.interruptions import stop_after_three_batches
from tests.helpers.models import tiny_llama
from tests.helpers.probes import NGRAMS, value
from tests.helpers.sweeps import small_tokenizer
from tests.run.test_processes import assert_same_results, together
from tests.run.test_processes import pytestmark as needs_processes
from tests.run.test_stream import assert_equal_results

TEMPLATE = (
    "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)
LABELS = ["input_unigram", "output_unigram", "input_bigram", "output_trigram", "column:language"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A tiny chat model."""
    folder = tmp_path_factory.mktemp("chat")
    tokenizer = small_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["[user]", "[assistant]", "</s>"]})
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    tiny_llama(vocab_size=len(tokenizer)).save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path) -> Path:
    """Conversations, one of which the assistant takes no part in, and one of few tokens."""
    rows = []
    for i, language in enumerate(LANGUAGES):
        messages = [{"role": ("user", "assistant")[n % 2], "content": TEXTS[(i + 7 * n) % 30]} for n in range(i % 5)]
        rows.append({"messages": messages, "language": language})
    rows.append({"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}], "language": "en"})
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def documents_of(checkpoint, data) -> list[tuple[list[int], list[bool], str | None]]:
    """Give tokens, whether each is the assistant's, and the language of each conversation, by another way."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    opening, closing = (tokenizer.convert_tokens_to_ids(token) for token in ("[assistant]", "</s>"))
    found = []
    for row in map(json.loads, data.read_text().splitlines()):
        if not row["messages"]:
            continue
        ids = tokenizer.apply_chat_template(row["messages"], return_dict=False)
        mask, is_assistant = [], False
        for token in ids:
            mask.append(is_assistant)
            is_assistant = token == opening or (is_assistant and token != closing)
        found.append((ids, mask, row["language"]))
    return found


def masks(documents, positions: str, skip_special: bool, special) -> list[np.ndarray]:
    """Give where policies hold, by loops."""
    found = []
    for ids, assistant, _ in documents:
        holds = np.ones(len(ids), dtype=bool)
        for i, token in enumerate(ids):
            for policy in positions.split(","):
                name, _, n = policy.partition(":")
                holds[i] &= {
                    "all": lambda i, n, ids, assistant: True,
                    "assistant": lambda i, n, ids, assistant: assistant[i],
                    "last": lambda i, n, ids, assistant: i == len(ids) - 1,
                    "first": lambda i, n, ids, assistant: i < int(n),
                    "skip": lambda i, n, ids, assistant: i >= int(n),
                }[name](i, n, ids, assistant)
            holds[i] &= not (skip_special and token in special)
        found.append(holds)
    return found


def special_of(checkpoint) -> set[int]:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    return {*tokenizer.all_special_ids, *tokenizer.convert_tokens_to_ids(["[user]", "[assistant]", "</s>"])}


POLICIES = [
    ("all", True),
    ("assistant", False),
    ("assistant", True),
    ("last", False),
    ("first:1", False),
    ("first:3,assistant", False),
    ("skip:40", False),
    ("skip:1000,first:2000", False),
    ("assistant,skip:4,last", False),
]


@pytest.mark.parametrize(("positions", "skip_special"), POLICIES)
@pytest.mark.parametrize("stream", [False, True])
def test_sums_are_those_of_a_hand_made_mask_bit_for_bit(config, checkpoint, data, positions, skip_special, stream):
    asked = {"positions": positions, "skip_special_tokens": skip_special, "labels": [], "anchor_sets": 2}
    of_run = config(**asked, tokens_per_batch=1, stream=stream)
    documents = documents_of(checkpoint, data)
    mask_of = masks(documents, positions, skip_special, special_of(checkpoint))
    if not any(map(np.any, mask_of)):
        with pytest.raises(InputError, match="positions: no document has a position"):
            run(of_run, progress=False)
        return
    result = run(of_run, progress=False)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    probe = SoftEntropyProbe(model, labels=(), n_anchors=20, anchor_sets=2)
    with probe, torch.inference_mode():
        for b in np.argsort([-len(ids) for ids, _, _ in documents], kind="stable"):  # as a run sorts them
            if mask_of[b].any():
                with probe.masked(torch.from_numpy(mask_of[b])[None]):
                    model(input_ids=torch.tensor(documents[b][0])[None])
    assert result.info["positions"] == probe.positions == sum(map(sum, mask_of))
    assert torch.equal(result.tensors["mass"], probe.result().tensors["mass"])
    n_tokens = sum(len(ids) for ids, _, _ in documents)
    left = {"left": probe.positions, "of": n_tokens}
    assert result.info["positions_policy"] == {
        "positions": of_run.positions,
        "skip_special_tokens": skip_special,
        **left,
    }
    assert result.info["corpus"]["documents_left_out"] == sum(not mask.any() for mask in mask_of)


@pytest.mark.parametrize("positions", ["assistant", "skip:3,first:9", "last,first:40"])
def test_labels_see_the_tokens_around_a_position(config, checkpoint, data, positions):
    """Against loops in float64 over all tokens."""
    labels = ["input_trigram", "output_unigram", "column:language"]
    if "last" in positions:  # no token follows
        labels = ["input_trigram", "column:language"]
    result = run(config(positions=positions, labels=labels, tokens_per_batch=60, label_rows="all"), progress=False)
    documents = documents_of(checkpoint, data)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    anchors = sample_anchors(20, 24, 0).numpy()
    ngrams = [ngram for ngram in NGRAMS if ngram[0] in labels]
    ids = [ids for ids, _, _ in documents]
    columns = {"column:language": [language for _, _, language in documents]}
    dense = references.measure(model, ids, ngrams, anchors, temperature(20, 24), columns)
    after = int("output_unigram" in labels)
    kept = np.concatenate([mask[2 : len(mask) - after] for mask in masks(documents, positions, False, ())])
    assert result.info["positions"] == kept.sum() > 10
    assert result.info["positions_policy"]["of"] == len(kept)
    for row in ("embeddings", "layer.1", "final_norm"):
        q = dense.q[row][kept]
        assert value(result, row, "entropy", unit="nats") == pytest.approx(references.entropy(q.mean(axis=0)), abs=2e-6)
        for name in labels:
            of_set = [label for label, keep in zip(dense.labels[name], kept, strict=True) if keep]
            known = [i for i, label in enumerate(of_set) if label is not None]
            expected = references.mutual_information(q[known], [of_set[i] for i in known])
            assert value(result, row, "mutual_information", name, "nats") == pytest.approx(expected, abs=5e-6)


def test_a_streamed_run_counts_what_a_planned_one_does(config, tmp_path, monkeypatch):
    monkeypatch.setattr(softh_probe.run.streamed_feed, "WINDOW_DOCUMENTS", 5)
    monkeypatch.setattr("softh_probe.data.token_stream._CHUNK_DOCUMENTS", 5)
    settings = {"labels": LABELS, "anchor_sets": 2, "tokens_per_batch": 60, "label_rows": "all"}
    for number, more in enumerate([{}, {"max_length": 9, "overflow": "split"}, {"max_length": 40}]):
        asked = {**settings, **more, "positions": "assistant,skip:1", "skip_special_tokens": True}
        planned, streamed = (
            run(config(**asked, stream=stream, out=str(tmp_path / f"{number}{stream}")), progress=False)
            for stream in (False, True)
        )
        assert_equal_results(planned, streamed)
        assert planned.info["positions_policy"] == streamed.info["positions_policy"]
        assert planned.info["corpus"]["documents_left_out"] == streamed.info["corpus"]["documents_left_out"] > 0


@needs_processes
@pytest.mark.parametrize("stream", [False, True])
def test_two_processes_count_what_one_does(config, tmp_path, stream):
    settings = {"labels": LABELS, "tokens_per_batch": 60, "anchor_sets": 2, "positions": "assistant,skip:1"}
    settings |= {"stream": stream, "skip_special_tokens": True, "snapshot_minutes": 0}
    one = run(config(**settings, out=str(tmp_path / "one")), progress=False)
    both = config(**settings, out=str(tmp_path / "both"), cache=str(tmp_path / "cache"))
    assert [code for code, _ in together(both, tmp_path)] == [0, 0]
    result = ProbeResult.load(both.out)
    assert_same_results(result, one)
    assert result.info["positions_policy"] == one.info["positions_policy"]


def test_intervals_are_of_the_positions_that_count(config, checkpoint, data):
    """Against loops over the positions that the policies leave."""
    labels = ["input_unigram", "output_unigram"]
    asked = {"positions": "assistant", "labels": labels, "intervals": True, "interval_documents": None}
    result = run(config(**asked, tokens_per_batch=60), progress=False)
    documents = documents_of(checkpoint, data)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    ngrams = [ngram for ngram in NGRAMS if ngram[0] in labels]
    ids = [ids for ids, _, _ in documents]
    dense = references.measure(model, ids, ngrams, sample_anchors(20, 24, 0).numpy(), temperature(20, 24))
    kept = np.concatenate([mask[:-1] for mask in masks(documents, "assistant", False, ())])
    document_of = np.concatenate([np.full(len(one) - 1, d) for d, one in enumerate(ids)])[kept]
    row = result.rows.index("layer.2")
    of_set = [label for label, keep in zip(dense.labels["input_unigram"], kept, strict=True) if keep]
    expected = references.influences(dense.q["layer.2"][kept], document_of.tolist(), of_set)["mutual_information"]
    # Numbers are those of the data, among which one row is empty of messages in every five.
    numbers = [n for n, line in enumerate(data.read_text().splitlines()) if json.loads(line)["messages"]]
    want = [expected.get(numbers.index(d), 0.0) for d in result.influence.documents.tolist()]
    found_D = result.influence.values["input_unigram", "mutual_information"][row]
    np.testing.assert_allclose(found_D, want, atol=2e-5 * max(map(abs, want)))
    assert result.influence.n_positions == kept.sum()


def test_documents_without_such_a_position_are_told(config):
    result = run(config(positions="skip:60", labels=[]), progress=False)
    n, n_all = (result.info["corpus"][name] for name in ("documents_left_out", "documents"))
    assert 0 < n < n_all
    expected = f"{n} of {n_all} documents have no position that counts (positions skip:60), and were left out"
    assert expected in result.info["warnings"]
    assert dict(facts(result)["Corpus"])["documents without these positions"] == str(n)


def test_the_policy_stands_in_facts_summary_table_and_dry_run(config):
    asked = config(positions="assistant", skip_special_tokens=True, labels=[])
    planned, streamed = (dry_run(dataclasses.replace(asked, stream=s), progress=False) for s in (False, True))
    result = run(asked, progress=False)
    left, of = (f"{result.info['positions_policy'][name]:,}" for name in ("left", "of"))
    expected = f"assistant, without special tokens: {left} of {of} positions"
    assert dict(facts(result)["Corpus"])["positions"] == expected
    assert f"{left} positions (assistant, without special tokens) of chats.jsonl" in summary(result)
    printed = io.StringIO()
    printed.isatty = lambda: True
    print_table(result, printed)
    assert expected in " ".join(printed.getvalue().split())
    assert f"positions: {expected}" in result._repr_html_()
    assert f"positions: {expected}" in planned.describe().splitlines()
    assert planned.to_json()["positions_policy"] == result.info["positions_policy"]
    assert "positions: assistant, without special tokens" in streamed.describe().splitlines()
    assert "choice: positions of the assistant: conversations rendered turn by turn" in planned.describe()


def test_nothing_is_said_where_nothing_is_asked_for(config):
    planned = dry_run(config(labels=[]), progress=False)
    result = run(config(labels=[]), progress=False)
    assert "positions_policy" not in result.info
    assert "positions" not in dict(facts(result)["Corpus"])
    assert "positions_policy" not in planned.to_json()
    assert not [line for line in planned.describe().splitlines() if line.startswith("positions")]


def test_results_of_other_positions_are_not_compared_without_a_word(config, tmp_path):
    results = {
        positions: run(config(positions=positions, labels=[], out=str(tmp_path / positions)), progress=False)
        for positions in ("all", "assistant", "assistant,skip:1", "skip:1,assistant")
    }
    policies = [result.info.get("positions_policy") or {} for result in results.values()]
    every, answers, later, same = results.values()
    told = "the positions that count (all and assistant)"
    with pytest.raises(InputError) as caught:
        check_comparable([every, answers], ["a", "b"])
    assert f"folders: a and b differ in {told}; add --allow-different" in str(caught.value)
    note, of_counts = check_comparable([every, answers], ["a", "b"], allow_different=True)
    assert note == f"a and b differ in {told}: their values are not comparable."
    counts = [f"{result.info['positions']:,}" for result in (every, answers)]
    assert of_counts == f"a and b: {counts[0]} and {counts[1]} positions were counted: other positions count in each."
    assert f"a and b differ in {told}." in comparison_notes(every, answers, ["a", "b"])
    assert check_comparable([later, same], ["a", "b"]) == []
    assert policy_notes(policies[2:]) == []
    (note,) = policy_notes(policies)
    assert note.startswith("positions that count differ (all; assistant; assistant,skip:1)")


def test_a_stopped_run_goes_on_with_its_own_positions_alone(config, monkeypatch):
    asked = {"labels": ["input_unigram"], "tokens_per_batch": 60, "snapshot_minutes": 0, "stream": True}
    with monkeypatch.context() as patched:
        stop_after_three_batches(patched)
        with pytest.raises(Interrupted):
            run(config(**asked, positions="assistant"), progress=False)
    with pytest.raises(InputError, match="positions: expected 'assistant', got 'all'"):
        run(config(**asked), progress=False)
    with pytest.raises(InputError, match="skip_special_tokens: expected False, got True"):
        run(config(**asked, positions="assistant", skip_special_tokens=True), progress=False)
    resumed = run(config(**asked, positions="assistant"), progress=False)
    whole = run(config(**asked, positions="assistant", out=config().out + "-whole"), progress=False)
    assert resumed.info["interruptions"] == 1
    assert resumed.info["positions_policy"] == whole.info["positions_policy"]
    assert torch.equal(resumed.tensors["mass"], whole.tensors["mass"])


def test_the_cache_tells_policies_apart(config, tmp_path):
    counts = []
    for positions, skip in [("all", False), ("assistant", False), ("all", True), ("skip:3", False), ("all", False)]:
        asked = {"positions": positions, "skip_special_tokens": skip, "labels": [], "cache": str(tmp_path / "kept")}
        counts.append(run(config(**asked, overwrite=True), progress=False).info["positions"])
        counts.append(run(config(**asked, overwrite=True), progress=False).info["positions"])
    assert counts[::2] == counts[1::2]
    assert counts[0] == counts[-1]
    assert len({*counts}) == 4


def test_a_sweep_passes_the_policy_to_its_runs(tmp_path):
    paths = {"model": "a", "data": "b", "out": str(tmp_path)}
    sweep = SweepConfig(**paths, positions="assistant, skip:1", skip_special_tokens=True)
    of_run = sweep.run_config(model="a", revision=None, out=tmp_path)
    assert (of_run.positions, of_run.skip_special_tokens) == ("assistant,skip:1", True)
    assert sweep.measured() != SweepConfig(**paths).measured()
    assert RunConfig(**paths).positions == "all"


def test_other_tools_names_are_known():
    for name in ("assistant_only_loss", "completion_only_loss", "train_on_completions_only", "token_positions"):
        assert our_name(name)[0] == "positions"
    assert our_name("ignore_special_tokens") == ("skip_special_tokens", "")
