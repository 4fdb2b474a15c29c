"""H(X) of every label set against a count of its labels: planned, attached, streamed, merged, in bins, and sampled."""

import json
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from softh_probe import ProbeResult, SoftEntropyProbe
from softh_probe.data.corpus import length_batches
from softh_probe.labels import parse_label_sets
from softh_probe.planned import row_allocation
from softh_probe.planned.plan import Plan
from softh_probe.run import run as run_config
from softh_probe.run.forward import forward
from tests.helpers.corpora import COLUMNS, LANGUAGES, TEXTS, corpus_of, documents, values_of
from tests.helpers.position_bins import bin_of, planned_in_bins
from tests.helpers.probes import NAMES, NGRAMS, feed, planned, run, run_planned
from tests.helpers.references import ngram_label, ngram_positions
from tests.test_label_sampling import Contextual, zipf_phrases

DOCUMENTS = documents(24)
LANGUAGE, TOPIC = values_of(24)
SAMPLED = ("input_unigram", "input_bigram", "output_trigram")


def entropy_of(labels) -> float:
    """−Σ P(x) log P(x) in nats, label by label."""
    n = len(labels)
    return sum(count / n * math.log(n / count) for count in Counter(labels).values())


def labels_of(docs, names, columns=None) -> dict[str, list]:
    """The label of every counted position by set, and its place in the document."""
    sets = [(name, direction, order) for name, direction, order in NGRAMS if name in names]
    before = max((n for _, direction, n in sets if direction == "input"), default=0)
    after = max((n for _, direction, n in sets if direction == "output"), default=0)
    found = {name: [] for name in (*names, "place")}
    for d, tokens in enumerate(docs):
        for t in ngram_positions(len(tokens), before, after):
            for name, direction, order in sets:
                found[name].append(ngram_label(tokens, t, direction, order))
            for name, values in (columns or {}).items():
                found[name].append(values[d])
            found["place"].append(bin_of(t))
    return found


def expected_of(docs, names, columns=None) -> dict[str, float]:
    found = labels_of(docs, names, columns)
    return {name: entropy_of([x for x in found[name] if x is not None]) for name in names}


def found_in(result: ProbeResult) -> dict[str, float]:
    """The value of each label set in nats; that of all layers is the same."""
    table = result.to_pandas("nats", means=False)
    table = table[table.metric == "label_entropy"]
    of_sets = table.groupby("label_set", sort=False).value
    assert (of_sets.max() - of_sets.min()).max() == 0
    assert (table.groupby("label_set").size() == len(result.rows)).all()
    return of_sets.first().to_dict()


def assert_close(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert abs(found[name] - value) < 1e-9, name


@pytest.fixture(scope="module")
def corpus():
    return corpus_of(DOCUMENTS, language=LANGUAGE, topic=TOPIC)


@pytest.fixture(scope="module")
def expected():
    return expected_of(DOCUMENTS, [*NAMES, *COLUMNS], {"column:language": LANGUAGE, "column:topic": TOPIC})


@pytest.mark.parametrize("kept_labels", [1000, 1])
def test_planned(model, corpus, expected, kept_labels, monkeypatch):
    """Labels that are kept, retired and single ones; a column without a value in some documents."""
    monkeypatch.setattr(row_allocation, "KEPT_LABELS", kept_labels)
    result = run_planned(model, corpus, [*NAMES, *COLUMNS], 70).result()
    assert_close(found_in(result), expected)
    table = result.to_pandas("bits")
    of_topic = table[(table.metric == "label_entropy") & (table.label_set == "column:topic")]
    assert of_topic.value.iloc[0] == pytest.approx(expected["column:topic"] / math.log(2))
    assert list(result.tensors["entropy_of_labels"].shape) == [len(result.rows), len(result.label_sets)]


def test_shares_of_several_processes(model, corpus, expected):
    names = [*NAMES, *COLUMNS]
    one = planned(corpus, names, 70)
    plan = Plan(corpus, one.label_sets, one.batches, (), n_shares=2)
    first, second = (SoftEntropyProbe(model, n_anchors=20, plan=plan) for _ in plan.shares)
    for probe, share in zip((first, second), plan.shares, strict=True):
        forward(probe, model.model, plan, share=share, progress=False)
    sent = []
    second.merge_shares(lambda tensor: sent.append(tensor.clone()))
    first.merge_shares(lambda tensor: tensor.add_(sent.pop(0)))
    first.retire()
    assert_close(found_in(first.result()), expected)


def test_attached_and_merged(model, expected):
    names = [name for name in NAMES if "quadgram" not in name]
    value = expected_of(DOCUMENTS, names)
    probe = run(SoftEntropyProbe(model, labels=names, n_anchors=20), model, DOCUMENTS)
    assert_close(found_in(probe.result()), value)
    parts = [SoftEntropyProbe(model, labels=names, n_anchors=20) for _ in range(2)]
    for part, docs in zip(parts, (DOCUMENTS[:11], DOCUMENTS[11:]), strict=True):
        run(part, model, docs)
    parts[0].merge(parts[1])
    assert_close(found_in(parts[0].result()), value)


def test_labels_of_ones_own(model):
    tokens = torch.randint(3, 30, (6, 9), generator=torch.Generator().manual_seed(0))
    ids = torch.randint(-1, 4, (6, 9), generator=torch.Generator().manual_seed(1))
    probe = SoftEntropyProbe(model, labels=(), n_anchors=20)
    with probe, probe.labelled(kind=ids), torch.no_grad():
        model(input_ids=tokens)
    assert_close(found_in(probe.result()), {"kind": entropy_of([x for x in ids.flatten().tolist() if x >= 0])})


def test_one_value_has_no_entropy(model):
    probe = SoftEntropyProbe(model, labels=(), n_anchors=20)
    with probe, probe.labelled(kind=torch.zeros(3, dtype=torch.long)), torch.no_grad():
        model(input_ids=torch.randint(3, 30, (3, 9)))
    assert found_in(probe.result()) == {"kind": 0.0}


def test_streamed_and_planned_runs_agree(config, tmp_path):
    rows = [{"text": text, "language": LANGUAGES[i % len(LANGUAGES)]} for i, text in enumerate(TEXTS)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    settings = {"data": str(path), "labels": ["column:language", "input_unigram", "output_bigram"], "anchor_sets": 1}
    results = [
        run_config(config(**settings, stream=stream, out=str(tmp_path / str(stream))), progress=False)
        for stream in (False, True)
    ]
    assert_close(*map(found_in, results))


def test_in_bins_of_positions(model, corpus):
    """H(X) in each bin, H(B) of the bins, H(X|B), and H(X,B) = H(B) + H(X|B), of the positions with a label."""
    names = ["input_unigram", "output_unigram", "input_bigram", *COLUMNS]
    labels = labels_of(DOCUMENTS, names, {"column:language": LANGUAGE, "column:topic": TOPIC})
    result = run_planned(model, corpus, names, 70, plan=planned_in_bins(corpus, names, 70)).result()
    table = result.by_position("nats")
    table = table[(table.metric == "label_entropy") & (table.name == "layer.2")]
    found = table.set_index(["position", "label_set"]).value
    bins = np.array(labels["place"])
    assert abs(found["all", "position"] - entropy_of(bins.tolist())) < 1e-9
    for name in names:
        has = np.array([x is not None for x in labels[name]])
        pairs = [(b, x) for b, x, there in zip(bins.tolist(), labels[name], has, strict=True) if there]
        joint, of_bins = entropy_of(pairs), entropy_of([b for b, _ in pairs])
        assert abs(found["all", f"{name},position"] - joint) < 1e-9
        assert abs(found["all", f"{name}|position"] - (joint - of_bins)) < 1e-9
        for b in {*bins[has]}:
            assert abs(found[b, name] - entropy_of([x for place, x in pairs if place == b])) < 1e-9


def test_a_result_without_it_lacks_it_and_nothing_else(model, corpus, tmp_path):
    """As results of earlier versions do."""
    names = ["input_unigram", "output_unigram"]
    result = run_planned(model, corpus, names, 70, plan=planned_in_bins(corpus, names, 70)).result()

    def without(one):
        tensors = {name: tensor for name, tensor in one.tensors.items() if name != "entropy_of_labels"}
        return replace(one, tensors=tensors, bins={name: without(of_bin) for name, of_bin in one.bins.items()})

    without(result).save(tmp_path / "earlier")
    result.save(tmp_path / "today")
    earlier, today = (ProbeResult.load(tmp_path / name) for name in ("earlier", "today"))
    for method in ("to_pandas", "by_position"):
        table, lacking = getattr(today, method)(), getattr(earlier, method)()
        assert "label_entropy" not in set(lacking.metric)
        left = table[table.metric != "label_entropy"].reset_index(drop=True)
        assert lacking.equals(left)


# --- samples of labels -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text():
    return [tokens.tolist() for tokens in zipf_phrases(np.random.default_rng(0), n=120)]


def sampled(docs, label_rows, *, plans=False, seed=0) -> ProbeResult:
    net, corpus = Contextual(1200, 8).eval(), corpus_of(docs)
    batches = length_batches(corpus.lengths, 1024)
    plan = Plan(corpus, parse_label_sets(SAMPLED), batches, label_rows=label_rows, seed=seed) if plans else None
    probe = SoftEntropyProbe(
        net, labels=SAMPLED, modules={"layer": net.layer}, plan=plan, label_rows=label_rows, seed=seed, n_anchors=4
    )
    return feed(probe, net, corpus, batches, plan).result()


def test_a_plan_knows_all_counts_so_that_a_sample_is_exact(text):
    result = sampled(text, 100, plans=True)
    assert result.sampled_sets
    assert_close(found_in(result), expected_of(text, SAMPLED))
    table = result.to_pandas()
    assert (table[table.metric == "label_entropy"].sampling_sd == 0).all()


def errors_of(docs, label_rows, seeds):
    """Errors of attached probes and the standard errors that they tell, [seeds, label sets]."""
    exact = expected_of(docs, SAMPLED)
    errors, told = [], []
    for seed in range(seeds):
        result = sampled(docs, label_rows, seed=seed)
        found, sds = found_in(result), result.sampling_sds()
        errors.append([found[name] - exact[name] for name in SAMPLED])
        told.append([sds[name, "label_entropy"][0].item() for name in SAMPLED])
    return np.array(errors), np.array(told)


@pytest.mark.parametrize("label_rows", [100, 400])
def test_attached_the_error_of_a_sample_is_as_large_as_told_and_has_no_direction(text, label_rows):
    seeds = 16
    errors, told = errors_of(text, label_rows, seeds)
    assert (told > 0).all()
    ratio = np.sqrt((errors**2).mean() / (told**2).mean())
    t = errors.mean(axis=0) / (errors.std(axis=0, ddof=1) / np.sqrt(seeds))
    assert 0.6 <= ratio <= 1.5, ratio
    assert (np.abs(t) < 4).all(), t


def test_attached_labels_that_enter_late_count_in_full():
    """Texts one after the other, each with words of its own, so that some are followed from their middle on."""
    random = np.random.default_rng(0)
    parts = [zipf_phrases(random, n=60, first=first, steep=1.3) for first in (0, 400, 800)]
    docs = [tokens.tolist() for part in parts for tokens in part]
    errors, told = errors_of(docs, 60, 12)
    ratio = np.sqrt((errors**2).mean() / (told**2).mean())
    assert 0.5 <= ratio <= 2.0, ratio
