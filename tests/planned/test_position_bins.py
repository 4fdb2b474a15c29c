"""Bins of positions: each equals a run of its positions alone, and together they obey the chain rule."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from softh_probe import SoftEntropyProbe
from softh_probe.errors import InputError
from softh_probe.labels import parse_label_sets
from softh_probe.planned import row_allocation
from softh_probe.planned.plan import Plan
from softh_probe.planned.position_bins import bins_of
from softh_probe.position_bins import bin_name, first_place
from softh_probe.result_files import OF_DIRECTIONS
from softh_probe.run.forward import forward
from tests.helpers import references
from tests.helpers.corpora import COLUMNS, corpus_of, documents, values_of
from tests.helpers.position_bins import Planted, bin_of, measured, planned_in_bins, tokens_of_lengths
from tests.helpers.probes import planned, reference, run_planned

N_DOCUMENTS = 30
DOCUMENTS = documents(N_DOCUMENTS)
LANGUAGE, TOPIC = values_of(N_DOCUMENTS)
#: With unigrams ahead and bigrams behind, the first and the last position of a document are none.
LABELS = ["input_unigram", "output_unigram", "input_bigram", *COLUMNS]
SETS = [("input_unigram", "input", 1), ("output_unigram", "output", 1), ("input_bigram", "input", 2)]


@pytest.fixture
def corpus():
    return corpus_of(DOCUMENTS, language=LANGUAGE, topic=TOPIC)


@pytest.fixture
def dense(model):
    """The reference: of each position its assignments, its labels and its bin."""
    found = reference(model, DOCUMENTS, SETS, dict(zip(COLUMNS, (LANGUAGE, TOPIC), strict=True)))
    bins = np.array([bin_of(t) for tokens in DOCUMENTS for t in references.ngram_positions(len(tokens), 2, 1)])
    assert len(bins) == len(found.labels["input_unigram"])
    return found, bins


def result_of(model, corpus, *, tokens_per_batch=70, **settings):
    plan = planned_in_bins(corpus, LABELS, tokens_per_batch, **settings)
    probe = run_planned(model, corpus, LABELS, tokens_per_batch, plan=plan)
    probe.retire()
    return probe.result()


def values_in_bins(result):
    """Values by position, metric, label set and layer, in nats."""
    return result.by_position("nats").set_index(["position", "metric", "label_set", "name"]).value.to_dict()


def test_bins_double_in_width():
    places = np.array([*range(70), 2**20 - 1, 2**20, 2**40])
    names = [bin_name(number) for number in bins_of(places)]
    assert names == [bin_of(place) for place in places.tolist()]
    assert [first_place(name) for name in dict.fromkeys(names)][:8] == [0, 1, 2, 4, 8, 16, 32, 64]
    for wrong in ("3", "2-4", "x", "", "all", "-1"):
        with pytest.raises(ValueError, match=r"bin|invalid"):
            first_place(wrong)


@pytest.mark.parametrize("kept_labels", [1000, 1])
@pytest.mark.parametrize("tokens_per_batch", [1, 70, 10_000])
def test_every_bin_equals_a_count_of_its_positions(model, corpus, dense, tokens_per_batch, kept_labels, monkeypatch):
    monkeypatch.setattr(row_allocation, "KEPT_LABELS", kept_labels)
    result = result_of(model, corpus, tokens_per_batch=tokens_per_batch)
    found = values_in_bins(result)
    expected, bins = dense
    names = [*dict.fromkeys(sorted(bins, key=first_place))]
    assert list(result.bins) == [*names, "all"]
    assert "0" not in names  # no bigram ends there
    for name in names:
        of_bin = result.bins[name]
        there = bins == name
        assert of_bin.info["positions"] == there.sum()
        for r, row in enumerate(result.rows):
            q = expected.q[row][there]
            np.testing.assert_allclose(of_bin.tensors["mass"][r, 0], q.sum(axis=0), rtol=1e-5)
            assert found[name, "entropy", "", row] == pytest.approx(references.entropy(q.mean(axis=0)), abs=1e-6)
            for label_set in of_bin.label_sets:
                labels = [x for x, is_there in zip(expected.labels[label_set], there, strict=True) if is_there]
                has = np.array([x is not None for x in labels])
                known = [x for x in labels if x is not None]
                information = references.mutual_information(q[has], known)
                highest = references.entropy(q[has].mean(axis=0)) - np.mean([references.entropy(p) for p in q[has]])
                coverage = np.mean([known.count(x) > 1 for x in known])
                for metric, value in (
                    ("mutual_information", information),
                    ("mutual_information_max", highest),
                    ("coverage", coverage),
                ):
                    here = name, metric, label_set, row
                    assert found[here] == pytest.approx(value, abs=1e-6), here


@pytest.mark.parametrize("label_rows", ["all", 12])
def test_every_bin_equals_a_run_in_which_its_positions_alone_count(model, corpus, label_rows):
    """Null, correction, p-values, spread over documents, samples of labels: the library's own, bin by bin."""
    result = result_of(model, corpus, label_rows=label_rows)
    place = np.arange(corpus.n_tokens) - np.repeat(corpus.offsets[:-1], corpus.lengths)
    for name in [*result.bins][:-1]:
        counted = np.array([bin_of(t) == name for t in place.tolist()])
        alone = replace(corpus, counted=counted)
        batches = planned(corpus, LABELS, 70).batches
        plan = Plan(alone, parse_label_sets(LABELS), batches, label_rows=label_rows)
        expected = run_planned(model, alone, LABELS, 70, plan=plan).result()
        found = result.bins[name]
        assert found.label_sets == expected.label_sets
        assert found.labels == expected.labels
        assert found.info["label_sampling"] == expected.info["label_sampling"]
        assert found.tensors.keys() == expected.tensors.keys() - OF_DIRECTIONS.keys()  # bins have no directions
        for key in found.tensors:
            tolerance = {"atol": 1e-4 if "corrected" in key else 1e-6, "rtol": 1e-3 if "sampling" in key else 1e-5}
            torch.testing.assert_close(
                found.tensors[key], expected.tensors[key], **tolerance, equal_nan=True, msg=f"{name} {key}"
            )


def test_bins_change_nothing_of_all_positions(model, corpus):
    whole = run_planned(model, corpus, LABELS, 70).result()
    result = result_of(model, corpus)
    assert whole.bins == {}
    for key, tensor in whole.tensors.items():
        assert torch.equal(result.tensors[key].nan_to_num(-1), tensor.nan_to_num(-1)), key


def test_the_bins_are_labels_of_the_position(model, corpus, dense):
    result = result_of(model, corpus)
    found = values_in_bins(result)
    expected, bins = dense
    for row in result.rows:
        q = expected.q[row]
        information = found["all", "mutual_information", "position", row]
        assert information == pytest.approx(references.mutual_information(q, bins.tolist()), abs=1e-6)
    of_position = result.bins["all"]
    assert of_position.labels == [("position", name) for name in [*result.bins][:-1]]
    counts = of_position.tensors["label_positions"][0].tolist()
    assert counts == [(bins == name).sum() for name in [*result.bins][:-1]]


def test_the_chain_rule_holds_against_joint_labels(model, corpus, dense):
    result = result_of(model, corpus)
    found = values_in_bins(result)
    expected, bins = dense
    for label_set in LABELS:
        labels = expected.labels[label_set]
        has = np.array([x is not None for x in labels])
        for row in result.rows:
            of_position, given, joint = (
                found["all", "mutual_information", name, row]
                for name in ("position", f"{label_set}|position", f"{label_set},position")
            )
            if has.all():
                assert abs(joint - of_position - given) < 1e-9
            q = expected.q[row]
            pairs = [(x, b) for x, b in zip(labels, bins.tolist(), strict=True) if x is not None]
            assert joint == pytest.approx(references.mutual_information(q[has], pairs), abs=1e-6), (label_set, row)
            parts = []
            for name in dict.fromkeys(bins[has]):
                there = np.flatnonzero(has & (bins == name))
                parts.append(len(there) * references.mutual_information(q[there], [labels[i] for i in there]))
            assert given == pytest.approx(sum(parts) / has.sum(), abs=1e-6), (label_set, row)


def test_means_over_bins_are_weighted_by_their_positions(model, corpus):
    result = result_of(model, corpus)
    found = values_in_bins(result)
    for label_set in LABELS:
        n = {name: b.info["labelled_positions"][label_set] for name, b in result.bins.items() if name != "all"}
        for metric in ("conditional_entropy", "mutual_information_max", "mutual_information_null", "coverage"):
            expected = sum(n[name] * found[name, metric, label_set, "layer.2"] for name in n) / sum(n.values())
            given = found["all", metric, f"{label_set}|position", "layer.2"]
            assert given == pytest.approx(expected, abs=1e-12), (label_set, metric)
    joint = {metric for _, metric, label_set, _ in found if label_set.endswith(",position")}
    of_set = ("mutual_information", "mutual_information_max", "coverage", "regularity")
    assert joint == {"label_entropy", "conditional_entropy", *of_set}


def test_shares_sum_to_one_in_every_bin(model, corpus):
    table = result_of(model, corpus).by_position()
    for _, part in table[table.position != "all"].groupby(["name", "position"]):
        shares = part[(part.metric == "information_share") & part.label_set.str.startswith("input_")].value.sum()
        left = part[(part.metric == "residual") & (part.label_set == "input")].value.sum()
        assert shares + left == pytest.approx(1, abs=1e-12)


def test_a_planted_dependence_on_the_position_is_recovered():
    corpus = corpus_of(tokens_of_lengths([64] * 60))
    labels = ["input_unigram"]
    plan = planned_in_bins(corpus, labels, 640)
    grows = measured(Planted([0.2, 0.4, 0.6, 0.8, 1.2, 1.6, 2.4], drift=1.0), plan).result()
    table = grows.by_position().set_index(["position", "label_set", "metric"]).value
    of_bins = [table[name, "input_unigram", "mutual_information_corrected"] for name in [*grows.bins][:-1]]
    assert len(of_bins) == 7
    assert of_bins[1:] == sorted(of_bins[1:])
    information, null = (table["all", "position", f"mutual_information{end}"] for end in ("", "_null"))
    assert information > 10 * null
    flat = measured(Planted([1.0] * 7, drift=0.0), plan).result().by_position()
    table = flat.set_index(["position", "label_set", "metric"]).value
    information, null = (table["all", "position", f"mutual_information{end}"] for end in ("", "_null"))
    assert 0.5 * null < information < 2 * null
    of_bins = [table[name, "input_unigram", "mutual_information"] for name in ("8-15", "16-31", "32-63")]
    assert max(of_bins) < 1.25 * min(of_bins)


def test_a_label_set_without_a_label_in_a_bin_is_left_out_there(model):
    docs = tokens_of_lengths([3, 3, 12, 12], vocabulary=12)
    corpus = corpus_of(docs, language=["en", "de", None, None])
    names = ["input_unigram", "column:language"]
    plan = planned_in_bins(corpus, names, 20)
    result = run_planned(model, corpus, names, 20, plan=plan).result()
    assert {name: b.label_sets for name, b in result.bins.items()} == {
        "0": names,
        "1": names,
        "2-3": names,
        "4-7": names[:1],
        "8-15": names[:1],
        "all": ["position"],
    }
    table = result.by_position()
    assert set(table.label_set[table.position == "4-7"]) == {"", "input_unigram", "input"}
    given = result.bins["0"].tensors["labelled_positions"][0, 1].item()
    assert given == 2


def test_places_are_those_of_windows_and_policies_narrow_bins(model, corpus):
    place = np.arange(corpus.n_tokens) - np.repeat(corpus.offsets[:-1], corpus.lengths)
    some = replace(corpus, counted=place >= 5)
    result = result_of(model, some)
    assert [*result.bins] == ["4-7", "8-15", "16-31", "all"]
    assert result.bins["4-7"].info["positions"] == sum(
        sum(5 <= t < 8 for t in references.ngram_positions(len(tokens), 2, 1)) for tokens in DOCUMENTS
    )
    assert sum(b.info["positions"] for name, b in result.bins.items() if name != "all") == result.info["positions"]


def test_single_documents_and_positions_are_measured(model):
    for docs in ([[3]], [[3, 4, 5]], [[3], [4]]):
        corpus = corpus_of(docs)
        plan = planned_in_bins(corpus, ["input_unigram"], 20)
        result = run_planned(model, corpus, ["input_unigram"], 20, plan=plan).result()
        table = result.by_position()
        assert (table[table.metric == "mutual_information"].value.abs() < 1.1).all()


@pytest.mark.parametrize("n_shares", [2, 3])
def test_shares_put_together_are_the_whole(model, corpus, n_shares):
    shared = planned_in_bins(corpus, LABELS, 70, n_shares=n_shares)
    parts = [SoftEntropyProbe(model, n_anchors=20, plan=shared, anchor_sets=1) for _ in shared.shares]
    for probe, share in zip(parts, shared.shares, strict=True):
        forward(probe, model.model, shared, share=share, progress=False)
    sent = [[] for _ in parts[1:]]
    for probe, tensors in zip(parts[1:], sent, strict=True):
        probe.merge_shares(lambda tensor, tensors=tensors: tensors.append(tensor.clone()))
    parts[0].merge_shares(lambda tensor: tensor.add_(sum(tensors.pop(0) for tensors in sent)))
    parts[0].retire()
    found, expected = parts[0].result().by_position("nats"), result_of(model, corpus).by_position("nats")
    keys = ["name", "position", "label_set", "metric"]
    assert found[keys].equals(expected[keys])
    exact = ~found.metric.str.contains("corrected")
    np.testing.assert_allclose(found.value[exact], expected.value[exact], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.value[~exact], expected.value[~exact], atol=1e-3)


def test_a_sample_of_labels_is_drawn_in_every_bin(model, corpus):
    exact = result_of(model, corpus)
    sampled = result_of(model, corpus, label_rows=24, seed=0)
    thresholds = {
        name: max(of_set["threshold"] for of_set in b.info["label_sampling"].values())
        for name, b in sampled.bins.items()
    }
    assert max(thresholds.values()) > 1
    table = sampled.by_position("nats")
    assert table.sampling_sd[table.value.notna()].notna().all()
    assert "sampling_sd" not in exact.by_position("nats")
    in_full = [name for name, threshold in thresholds.items() if threshold == 1]
    assert (
        table.sampling_sd[table.position.isin(in_full) & table.value.notna() & (table.position != "all")] == 0
    ).all()
    of = table[(table.metric == "mutual_information") & (table.name == "layer.2")]
    of = of.set_index(["position", "label_set"]).sampling_sd
    n = {b: sampled.bins[b].info["labelled_positions"]["input_bigram"] for b in [*sampled.bins][:-1]}
    parts = [n[b] / sum(n.values()) * of[b, "input_bigram"] for b in n]
    assert of["all", "input_bigram|position"] == pytest.approx(np.sqrt(np.square(parts).sum()), rel=1e-9)
    assert of["all", "input_bigram|position"] > 0


def test_a_result_without_bins_has_no_such_table(model, corpus):
    with pytest.raises(InputError, match=r"^by_position: the result has no bins of positions; measure again with"):
        run_planned(model, corpus, LABELS, 70).result().by_position()


def test_bins_in_host_memory_are_the_same(model, corpus):
    plan = planned_in_bins(corpus, LABELS, 70)
    probe = SoftEntropyProbe(model, labels=LABELS, n_anchors=20, plan=plan, anchor_sets=1)
    probe.reserve(on_host=["layer.1", "layer.2"])
    forward(probe, model.model, plan, progress=False)
    probe.retire()
    found, expected = probe.result().by_position(), result_of(model, corpus).by_position()
    assert found.label_set.equals(expected.label_set)
    exact = ~found.metric.str.contains("corrected")
    np.testing.assert_allclose(found.value[exact], expected.value[exact], rtol=1e-5, atol=1e-6)


def test_the_state_of_a_probe_holds_its_bins(model, corpus):
    plan = planned_in_bins(corpus, LABELS, 70)
    half = len(plan.batches) // 2
    first = SoftEntropyProbe(model, n_anchors=20, plan=plan, anchor_sets=1)
    forward(first, model.model, plan, share=range(half), progress=False)
    second = first.new_like()
    second.load_state_dict(first.state_dict())
    forward(second, model.model, plan, share=range(half, len(plan.batches)), progress=False)
    assert second.result().by_position().equals(result_of(model, corpus).by_position())


def test_states_that_are_all_alike_tell_nothing(model):
    """The first token of all documents is the same, as with a beginning of sequence: rounding is no information."""
    docs = [[7, *tokens] for tokens in tokens_of_lengths([12] * 40, vocabulary=12)]
    corpus = corpus_of(docs, language=[("en", "de")[i % 2] for i in range(40)])
    names = ["input_unigram", "output_unigram", "column:language"]
    result = run_planned(model, corpus, names, 100, plan=planned_in_bins(corpus, names, 100)).result()
    table = result.by_position().set_index(["position", "metric", "label_set"])
    first = table.loc[("0", "mutual_information", "column:language")]
    assert (first.value.abs() < 1e-6).all()
    assert (first.p_value == 1).all()
    for metric, label_set in (("optimality", "unigram"), ("information_share", "input_unigram"), ("residual", "input")):
        assert table.loc[("0", metric, label_set)].value.isna().all()
        assert table.loc[("4-7", metric, label_set)].value.notna().all()
