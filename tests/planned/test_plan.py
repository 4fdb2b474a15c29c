"""Planned runs: rows taken and given back, against the dictionary of every label and every position."""

import dataclasses

import numpy as np
import pytest
import torch

from softh_probe import SoftEntropyProbe, sample_anchors, temperature
from softh_probe.data.corpus import length_batches, pad_batch
from softh_probe.errors import InputError
from softh_probe.labels import parse_label_sets
from softh_probe.planned import row_allocation
from softh_probe.planned.plan import Plan
from softh_probe.planned.row_allocation import RowAllocation, ngram_ids
from softh_probe.run.forward import forward
from tests.helpers import references
from tests.helpers.comparisons import assert_same_values
from tests.helpers.corpora import COLUMNS, corpus_of, documents, values_of
from tests.helpers.probes import NAMES, NGRAMS, planned, run_planned, values_by_key


@pytest.mark.parametrize("kept_labels", [1000, 1])
@pytest.mark.parametrize(
    "tokens_per_batch", [pytest.param(1, marks=pytest.mark.slow), 70, pytest.param(10_000, marks=pytest.mark.slow)]
)
def test_every_label_set_equals_the_dictionary(model, tokens_per_batch, kept_labels, monkeypatch):
    """One document a batch, several, all in one: what is open, closed or single changes, the results do not."""
    monkeypatch.setattr(row_allocation, "KEPT_LABELS", kept_labels)
    docs = documents(24)
    language, topic = values_of(24)
    corpus = corpus_of(docs, language=language, topic=topic)
    anchors, epsilon = sample_anchors(20, 24).numpy(), temperature(20, 24)
    columns = {"column:language": language, "column:topic": topic}
    expected = references.measure(model, docs, NGRAMS, anchors, epsilon, columns)
    probe = run_planned(model, corpus, [*NAMES, *COLUMNS], tokens_per_batch)
    values = values_by_key(probe.result())
    assert probe.positions == len(expected.labels["input_unigram"])
    for row, sums_SM in zip(probe.layers, probe.sums, strict=True):
        q = expected.q[row]
        np.testing.assert_allclose(sums_SM[0], q.sum(axis=0), rtol=1e-5)
        for name in [*NAMES, *COLUMNS]:
            labels = expected.labels[name]
            has = np.array([label is not None for label in labels])
            information = references.mutual_information(q[has], [x for x in labels if x is not None])
            assert values[row, "mutual_information", name] == pytest.approx(information, abs=1e-6)
            highest = references.entropy(q[has].mean(0)) - np.mean([references.entropy(p) for p in q[has]])
            assert values[row, "mutual_information_max", name] == pytest.approx(highest, abs=1e-6)
            counts = [labels.count(x) for x in labels if x is not None]
            coverage = np.mean(np.array(counts) > 1)
            assert values[row, "coverage", name] == pytest.approx(coverage)


def test_kept_columns_come_label_by_label(model):
    docs = documents(24)
    language, topic = values_of(24)
    corpus = corpus_of(docs, language=language, topic=topic)
    columns = {"column:topic": topic}
    expected = references.measure(model, docs, [], sample_anchors(20, 24).numpy(), temperature(20, 24), columns)
    result = run_planned(model, corpus, COLUMNS, 70).result()
    table = result.conditional_entropy("column:topic", unit="nats").query("name == 'layer.2'").set_index("label")
    assert sorted(table.index) == [f"topic {i}" for i in range(5)]
    for name in table.index:
        rows = np.array([label == name for label in expected.labels["column:topic"]])
        assert table.loc[name, "count"] == rows.sum()
        assert table.loc[name, "value"] == pytest.approx(references.entropy(expected.q["layer.2"][rows].mean(0)))
    assert result.conditional_entropy("topic").equals(result.conditional_entropy("column:topic"))
    with pytest.raises(InputError, match="those that do: column:language, column:topic"):
        result.conditional_entropy("input_unigram")


@pytest.mark.parametrize("tokens_per_batch", [1, 70, 10_000])
def test_label_sets_come_label_by_label_where_that_is_wanted(model, tokens_per_batch):
    """Those that occur once too; and all other results stay what they were."""
    corpus = corpus_of(documents(24))
    wanted = ["input_unigram", "output_bigram"]
    plan = planned(corpus, NAMES, tokens_per_batch, per_label=wanted)
    probe = run_planned(model, corpus, NAMES, tokens_per_batch, plan=plan, anchor_sets=2)
    result = probe.result()
    expected = references.measure(
        model, documents(24), NGRAMS, sample_anchors(20, 24, seed=1).numpy(), temperature(20, 24)
    )
    for name in wanted:
        table = result.conditional_entropy(name, unit="nats").query("name == 'layer.1'").set_index("label")
        labels = [" ".join(map(str, label)) for label in expected.labels[name]]
        assert sorted(table.index) == sorted(set(labels))
        assert table["count"].to_dict() == {x: labels.count(x) for x in labels}
        index = [result.labels.index((name, x)) for x in table.index]
        entropies = result.tensors["label_entropy"][result.rows.index("layer.1"), index, 1]
        for x, h in zip(table.index, entropies, strict=True):
            of_x = expected.q["layer.1"][[label == x for label in labels]]
            assert h == pytest.approx(references.entropy(of_x.mean(axis=0)), abs=1e-6)
    plain = run_planned(model, corpus, NAMES, tokens_per_batch, anchor_sets=2).result().to_pandas()
    np.testing.assert_allclose(result.to_pandas().value, plain.value, atol=1e-7)


@pytest.mark.parametrize("n_shares", [2, 3])
@pytest.mark.parametrize("kept_labels", [1000, 1])
def test_shares_put_together_are_the_whole(model, n_shares, kept_labels, monkeypatch):
    monkeypatch.setattr(row_allocation, "KEPT_LABELS", kept_labels)
    language, topic = values_of(24)
    corpus = corpus_of(documents(24), language=language, topic=topic)
    names, wanted = [*NAMES, *COLUMNS], ["input_unigram", "output_bigram"]
    one = planned(corpus, names, 70, per_label=wanted)
    shared = Plan(corpus, one.label_sets, one.batches, wanted, n_shares=n_shares)
    assert [len(share) for share in shared.shares] == [len(one.batches[i::n_shares]) for i in range(n_shares)]
    parts = [SoftEntropyProbe(model, n_anchors=20, plan=shared, anchor_sets=1) for _ in shared.shares]
    for probe, share in zip(parts, shared.shares, strict=True):
        forward(probe, model.model, shared, share=share, progress=False)
    sent = [[] for _ in parts[1:]]
    for probe, tensors in zip(parts[1:], sent, strict=True):
        probe.merge_shares(lambda tensor, tensors=tensors: tensors.append(tensor.clone()))
    parts[0].merge_shares(lambda tensor: tensor.add_(sum(tensors.pop(0) for tensors in sent)))
    parts[0].retire()
    whole = run_planned(model, corpus, names, 70, plan=one)
    assert parts[0].positions == whole.positions
    np.testing.assert_allclose(parts[0].sums, whole.sums, rtol=1e-12)
    ours, theirs = parts[0].result(), whole.result()
    assert_same_values(ours.to_pandas("nats"), theirs.to_pandas("nats"))
    assert ours.labels == theirs.labels
    np.testing.assert_allclose(ours.tensors["label_entropy"], theirs.tensors["label_entropy"], atol=1e-6)


def test_a_numbering_reads_back_from_plain_arrays():
    language, topic = values_of(24)
    corpus = corpus_of(documents(24), language=language, topic=topic)
    plan = planned(corpus, [*NAMES, *COLUMNS], 70, per_label=["input_unigram"])
    arrays = {name: array.copy() for name, array in plan.allocation.arrays().items()}
    again = Plan(corpus, plan.label_sets, plan.batches, allocation=RowAllocation.from_arrays(arrays))
    assert again.row_labels().kept_names == plan.row_labels().kept_names
    assert again.row_labels().bucket_names == plan.row_labels().bucket_names
    for i in range(len(plan.batches)):
        ours, theirs = plan.batch(i), again.batch(i)
        for field in dataclasses.fields(ours):
            a, b = getattr(ours, field.name), getattr(theirs, field.name)
            assert torch.equal(a, b) if torch.is_tensor(a) else a == b, field.name


def test_rows_are_given_back(model):
    corpus = corpus_of(documents(60, seed=3))
    plan = planned(corpus, NAMES, 60)
    distinct = sum(len(np.unique(_labels(corpus, name))) for name in NAMES)
    assert plan.labels_by_set.sum() == distinct
    assert 0 < plan.allocation.n_live < distinct / 2
    assert plan.allocation.retired_starts[-1] == len(plan.allocation.live_rows)


@pytest.mark.parametrize("n_shares", [1, 2])
def test_rows_that_other_labels_take_are_written_anew_or_were_emptied(n_shares):
    corpus = corpus_of(documents(60, seed=3))
    batches = length_batches(corpus.lengths, 60)
    plan = Plan(corpus, parse_label_sets(NAMES), batches, n_shares=n_shares)
    for share in plan.shares:
        used: set[int] = set()
        left: set[int] = set()
        for i in share:
            labels = plan.batch(i)
            rows, n_new = labels.live_rows.tolist(), labels.n_new
            assert (n_new is None) == (n_shares > 1)
            if n_new is not None:
                added, new = rows[: len(rows) - n_new], rows[len(rows) - n_new :]
                assert set(added) <= used - left
                assert set(new) <= left | (set(range(plan.allocation.n_live)) - used)
                assert set(labels.retiring_rows.tolist()) <= used - left
            used |= set(rows)
            left = (left - set(rows)) | set(labels.retiring_rows.tolist())


def _labels(corpus, name):
    direction, _, order = name.partition("_")
    n = {"unigram": 1, "bigram": 2, "trigram": 3, "quadgram": 4}[order]
    found = []
    for d in range(corpus.n_documents):
        tokens = corpus.document(d).tolist()
        found += [
            references.ngram_label(tokens, t, direction, n) for t in references.ngram_positions(len(tokens), 4, 4)
        ]
    _, ids = np.unique(np.array(found), axis=0, return_inverse=True)
    return ids


def test_a_row_is_never_shared_by_two_labels_alive():
    corpus = corpus_of(documents(80, seed=5))
    plan = planned(corpus, NAMES, 90)
    in_use: set[int] = set()
    for i in range(len(plan.batches)):
        labels = plan.batch(i)
        going_on, ending = labels.live_rows.tolist(), set(labels.retiring_rows.tolist())
        assert len(going_on) + len(labels.retiring_rows) == len(set(going_on) | ending)
        assert ending <= in_use
        in_use |= set(going_on)
        assert len(in_use) <= plan.allocation.n_live
        in_use -= ending
    assert not in_use


def test_positions_and_too_short_documents_are_told():
    docs = [[1] * 9, [2] * 8, [3] * 7, [4]]
    plan = planned(corpus_of(docs), NAMES, 100)
    assert (plan.n_positions, plan.n_too_short) == (2 + 1, 2)
    assert sorted(np.concatenate(plan.batches)) == [0, 1]
    with pytest.raises(InputError, match="one position needs 8 tokens, the longest document has 7; ask for lower"):
        planned(corpus_of(docs[2:]), NAMES, 100)


@pytest.mark.parametrize(
    ("names", "length", "expected"),
    [
        (["input_quadgram"], 6, 3),
        (["output_quadgram"], 6, 2),
        (["input_bigram", "output_unigram"], 6, 4),
        ([], 6, 6),
    ],
)
def test_the_population_is_where_every_label_is_defined(names, length, expected):
    assert planned(corpus_of([[1, 2] * (length // 2)]), names, 100).n_positions == expected


def test_ngram_ids_are_exact():
    generator = np.random.default_rng(0)
    docs = [generator.integers(0, 4, size=n) for n in generator.integers(1, 40, size=30)]
    corpus = corpus_of(docs)
    for order, ids in enumerate(ngram_ids(corpus.tokens, corpus.offsets, 4), 1):
        seen: dict[tuple[int, ...], int] = {}
        for d, doc in enumerate(docs):
            got = ids[corpus.offsets[d] : corpus.offsets[d + 1]]
            assert (got[: order - 1] == -1).all()
            for t in range(order - 1, len(doc)):
                assert seen.setdefault(tuple(doc[t - order + 1 : t + 1]), got[t]) == got[t]
        assert sorted(seen.values()) == list(range(len(seen)))


def test_order_of_documents_does_not_matter(model):
    docs = documents(20)
    results = []
    for order in (range(20), np.random.default_rng(1).permutation(20)):
        results.append(run_planned(model, corpus_of([docs[i] for i in order]), NAMES, 80).result().to_pandas("nats"))
    assert_same_values(*results)


def test_planned_and_attached_agree(model):
    docs = [d for d in documents(20) if len(d) >= 8]
    corpus = corpus_of(docs)
    run = run_planned(model, corpus, NAMES, 80)
    attached = SoftEntropyProbe(model, labels=NAMES, n_anchors=20, anchor_sets=1)
    with attached, torch.no_grad():
        for chunk in length_batches(corpus.lengths, 80):
            ids, mask = pad_batch(corpus, chunk)
            model(input_ids=ids, attention_mask=mask)
    torch.testing.assert_close(run.sums, attached.sums, rtol=1e-6, atol=0)
    a, b = run.result().to_pandas("nats"), attached.result().to_pandas("nats")
    assert_same_values(a, b)


def test_state_of_a_planned_run_goes_on_where_it_stopped(model):
    corpus = corpus_of(documents(30))
    plan = planned(corpus, NAMES, 60)
    whole = run_planned(model, corpus, NAMES, 60)
    state = None
    for part in (range(3), range(3, len(plan.batches))):
        probe = SoftEntropyProbe(model, n_anchors=20, plan=plan, anchor_sets=1)
        if state:
            probe.load_state_dict(state)
        with probe, torch.inference_mode():
            for i in part:
                ids, mask = pad_batch(corpus, plan.batches[i])
                with probe.batch(plan.batch(i)):
                    model(input_ids=ids, attention_mask=mask)
        state = probe.state_dict()
    assert torch.equal(probe.sums, whole.sums)
    assert probe.result().to_pandas().equals(whole.result().to_pandas())
    with pytest.raises(InputError, match="planned run cannot be merged"):
        probe.merge(whole)
