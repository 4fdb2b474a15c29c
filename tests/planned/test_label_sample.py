"""Which labels take part in a planned run, against plain sets of every label's positions."""

import dataclasses
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch

from softh_probe.accumulators.label_sampling import uniform_numbers
from softh_probe.data.corpus import length_batches
from softh_probe.planned import row_allocation
from softh_probe.planned.plan import Plan
from tests.helpers import references
from tests.helpers.corpora import COLUMNS, corpus_of, values_of
from tests.helpers.probes import NAMES, NGRAMS, planned, run_planned

SEED = 3
PER_LABEL = ["output_bigram"]
#: Sets whose labels are sampled where rows are few.
SAMPLED = [name for name in NAMES if name not in PER_LABEL]
BEFORE, AFTER = 3, 4


def documents(n=60, seed=0):
    """Token sequences in which some tokens are frequent."""
    generator = np.random.default_rng(seed)
    return [np.minimum(generator.zipf(1.4, size=length), 39).tolist() for length in generator.integers(2, 40, size=n)]


@pytest.fixture
def corpus(monkeypatch):
    monkeypatch.setattr(row_allocation, "KEPT_LABELS", 4)  # language keeps its rows, topic does not
    docs = documents()
    language, topic = values_of(len(docs))
    return corpus_of(docs, language=language, topic=topic)


def plan_of(corpus, label_rows, n_shares=1, batches=None, seed=SEED, names=(*NAMES, *COLUMNS)):
    exact = planned(corpus, names, 100, PER_LABEL)
    return Plan(
        corpus,
        exact.label_sets,
        batches or exact.batches,
        PER_LABEL,
        n_shares=n_shares,
        label_rows=label_rows,
        seed=seed,
    )


def labels_of(corpus):
    """The positions (document, token) of each label of each set."""
    found = {name: defaultdict(set) for name in [*NAMES, *COLUMNS]}
    for d in range(corpus.n_documents):
        tokens = corpus.document(d).tolist()
        for t in references.ngram_positions(len(tokens), BEFORE + 1, AFTER):
            for name, direction, order in NGRAMS:
                found[name][references.ngram_label(tokens, t, direction, order)].add((d, t))
            for name in COLUMNS:
                if (label := corpus.columns[name.removeprefix("column:")].ids[d]) >= 0:
                    found[name][label].add((d, t))
    return found


def takes_part(name, label, count, threshold):
    if count == 1 or name in (*PER_LABEL, *COLUMNS):
        return True
    return bool(uniform_numbers(np.array([label]), name, SEED)[0] < count / threshold)


class Rows:
    """Collects the positions of each label as tables do, with sets of positions for sums."""

    def __init__(self, plan):
        self.plan = plan
        self.kept, self.live, self.retired = defaultdict(set), defaultdict(set), defaultdict(list)
        self.once = defaultdict(set)

    def add(self, index):
        d = self.plan.batch(index)
        documents, length = self.plan.batches[index], d.shape[1]
        computed = np.arange(np.prod(d.shape)) if d.computed is None else d.computed.numpy()
        flat = computed[d.bag_positions.numpy()]
        bags = [
            {(int(documents[i // length]), int(i % length)) for i in flat[start:end]}
            for start, end in zip(d.bag_offsets, d.bag_offsets[1:], strict=False)
        ]
        n_labels = len(d.kept_rows) + len(d.live_rows) + len(d.retired_buckets)
        for bag, in_sets in zip(bags[: len(bags) - n_labels], d.weights_XL.T, strict=True):
            for x, set_index in enumerate(self.plan.allocation.singleton_sets.tolist()):
                if in_sets[1 + x]:
                    self.once[self.plan.set_names[set_index]] |= bag
        of_labels = iter(bags[len(bags) - n_labels :])
        for table, rows in ((self.kept, d.kept_rows), (self.live, d.live_rows)):
            for row in rows.tolist():
                table[row] |= next(of_labels)
        retiring = iter(d.retiring_rows.tolist())
        for bucket in d.retired_buckets.tolist():
            row = next(retiring, None)
            bag = next(of_labels) | (self.live.pop(row) if row is not None else set())
            self.retired[bucket].append(frozenset(bag))


def collected(plan):
    """The positions of each label that took part, by set and count, after all shares."""
    shares = [Rows(plan) for _ in plan.shares]
    for rows, share in zip(shares, plan.shares, strict=True):
        for index in share:
            rows.add(index)
    labels = plan.row_labels()
    found, once = defaultdict(list), defaultdict(set)
    for rows in shares:
        for name, positions in rows.once.items():
            once[name] |= positions
        for bucket, bags in rows.retired.items():
            found[plan.set_names[labels.bucket_sets[bucket]], int(labels.bucket_counts[bucket])] += bags
    for row, bucket in zip(labels.retired_rows.tolist(), labels.retired_buckets.tolist(), strict=True):
        bag = frozenset().union(*(rows.live.pop(row, set()) for rows in shares))
        found[plan.set_names[labels.bucket_sets[bucket]], int(labels.bucket_counts[bucket])].append(bag)
    assert not any(rows.live for rows in shares)
    kept = defaultdict(set)
    for rows in shares:
        for row, positions in rows.kept.items():
            kept[row] |= positions
    return found, once, kept


@pytest.mark.parametrize("n_shares", [1, 2, 3])
@pytest.mark.parametrize("label_rows", [1, 40, 150])
def test_exactly_the_labels_of_the_sample_take_part(corpus, label_rows, n_shares):
    plan = plan_of(corpus, label_rows, n_shares)
    labels = labels_of(corpus)
    threshold = dict(zip(plan.set_names, plan.allocation.thresholds.tolist(), strict=True))
    assert min(threshold[name] for name in SAMPLED) > 1.0
    assert {threshold[name] for name in [*PER_LABEL, *COLUMNS]} == {1.0}
    expected, once, n_followed = defaultdict(list), defaultdict(set), Counter()
    for name in labels:
        for label, positions in labels[name].items():
            follows = takes_part(name, label, len(positions), threshold[name])
            n_followed[name] += follows
            if len(positions) == 1:  # per label, those that occur once are retired as well
                once[name] |= positions
            if follows and name != "column:language" and (len(positions) > 1 or name in PER_LABEL):
                expected[name, len(positions)].append(frozenset(positions))
    found, found_once, kept = collected(plan)
    assert {key: Counter(bags) for key, bags in found.items()} == {key: Counter(bags) for key, bags in expected.items()}
    assert found_once == once
    n_languages = len(labels["column:language"])
    assert {frozenset(kept[row]) for row in range(n_languages)} == set(
        map(frozenset, labels["column:language"].values())
    )
    assert plan.labels_by_set.tolist() == [len(labels[name]) for name in plan.set_names]
    assert plan.followed_by_set.tolist() == [n_followed[name] for name in plan.set_names]
    of_rows = plan.row_labels()
    for x, count, n, followed, probability in zip(
        of_rows.bucket_sets,
        of_rows.bucket_counts,
        of_rows.bucket_labels,
        of_rows.bucket_followed,
        of_rows.bucket_probability,
        strict=True,
    ):
        name = plan.set_names[x]
        if name in SAMPLED:
            assert n == sum(len(positions) == count for positions in labels[name].values())
            assert followed == len(expected[name, count])
        assert probability == min(1.0, count / threshold[name])


def test_rows_fit_and_frequent_labels_always_take_part(corpus):
    exact = plan_of(corpus, "all").allocation
    sampled = np.isin([*NAMES, *COLUMNS], SAMPLED)
    all_rows = exact.peak_rows[sampled].sum()
    for label_rows in (40, 150, int(all_rows) - 1):
        n = plan_of(corpus, label_rows).allocation
        assert 0 < n.peak_rows[sampled].sum() <= label_rows
        certain = n.bucket_counts >= n.thresholds[n.bucket_sets]
        assert certain.any()
        assert (n.bucket_followed == n.bucket_labels)[certain].all()
        assert (n.bucket_followed <= n.bucket_labels).all()


def test_the_sample_is_the_same_for_any_shares_and_any_order_within_batches(corpus):
    plan = plan_of(corpus, 60)
    shuffled = [np.random.default_rng(i).permutation(batch) for i, batch in enumerate(plan.batches)]
    whole = {key: Counter(bags) for key, bags in collected(plan)[0].items()}
    for other in (plan_of(corpus, 60, 2), plan_of(corpus, 60, 3), plan_of(corpus, 60, batches=shuffled)):
        assert other.allocation.thresholds.tolist() == plan.allocation.thresholds.tolist()
        assert {key: Counter(bags) for key, bags in collected(other)[0].items()} == whole
    assert plan_of(corpus, 60, seed=4).allocation.numbers[0].tolist() != plan.allocation.numbers[0].tolist()


def test_where_all_labels_fit_nothing_changes(corpus):
    exact = plan_of(corpus, "all")
    together = Plan(corpus, exact.label_sets, exact.batches, PER_LABEL, label_rows=_peak(corpus, exact))
    arrays = exact.allocation.arrays()
    for name, array in together.allocation.arrays().items():
        assert array.dtype == arrays[name].dtype
        assert np.array_equal(array, arrays[name]), name
    for i in range(len(exact.batches)):
        ours, theirs = together.batch(i), exact.batch(i)
        for field in dataclasses.fields(ours):
            a, b = getattr(ours, field.name), getattr(theirs, field.name)
            assert torch.equal(a, b) if torch.is_tensor(a) else a == b, field.name
    assert not together.table_sizes().with_squares
    fewer = Plan(corpus, exact.label_sets, exact.batches, PER_LABEL, label_rows=_peak(corpus, exact) - 1)
    assert fewer.table_sizes().with_squares


def _peak(corpus, plan):
    """Labels of sampled sets that are alive at a time, counted with sets."""
    labels, batch_of = labels_of(corpus), {int(d): b for b, batch in enumerate(plan.batches) for d in batch}
    alive = [0] * len(plan.batches)
    for name in SAMPLED:
        for positions in labels[name].values():
            batches = [batch_of[d] for d, _ in positions]
            if min(batches) < max(batches):
                for b in range(min(batches), max(batches) + 1):
                    alive[b] += 1
    return max(alive)


def test_a_set_whose_labels_all_happen_to_take_part_is_exact(corpus):
    """Its threshold is 1, whatever the others need."""
    short = corpus_of([*[[1, 2] * 10] * 8, *documents(30)])
    names = ["input_unigram", "input_quadgram"]
    sets = planned(short, names, 100).label_sets
    batches = length_batches(short.lengths, 100, keep=short.lengths > 6)
    peaks = Plan(short, sets, batches).allocation.peak_rows
    for label_rows in range(1, int(peaks.sum())):
        n = Plan(short, sets, batches, label_rows=label_rows).allocation
        for x in range(2):
            of_set = n.bucket_sets == x
            complete = (n.bucket_followed == n.bucket_labels)[of_set].all()
            assert complete == (n.thresholds[x] == 1.0)


def test_a_run_with_few_rows_adds_up(model, corpus):
    """Sums over positions are those of the run with all labels."""
    names = [*NAMES, *COLUMNS]
    few, whole = (
        run_planned(model, corpus, names, 100, plan=plan_of(corpus, label_rows), anchor_sets=2)
        for label_rows in (60, "all")
    )
    assert torch.equal(few.sums, whole.sums)
    n = few._source.rows.allocation
    ours, theirs = few._sums["layer.1"].tables.retired, whole._sums["layer.1"].tables.retired
    complete = torch.from_numpy(n.bucket_followed == n.bucket_labels)
    assert complete.any()
    assert not complete.all()
    np.testing.assert_allclose(ours[complete][:, :4], theirs[complete], rtol=1e-5)
    assert not ours[torch.from_numpy(n.bucket_followed == 0)].any()
    assert torch.equal(few._sums["layer.1"].singleton, whole._sums["layer.1"].singleton)
