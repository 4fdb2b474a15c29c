"""A sample of labels against all labels: the error is as large as the standard error told, and has no direction."""

import numpy as np
import pytest
import torch
from torch import nn

from softh_probe.data.corpus import length_batches, pad_batch
from softh_probe.labels import NGRAM_SETS, parse_label_sets
from softh_probe.planned.plan import Plan
from softh_probe.probe import SoftEntropyProbe
from tests.helpers.corpora import corpus_of
from tests.helpers.probes import feed

SEEDS = 20
SHARES = (1 / 2, 1 / 8, 1 / 32)
METRICS = ("mutual_information", "mutual_information_corrected")
SETS = tuple(name for name in NGRAM_SETS if "quadgram" not in name)


class Contextual(nn.Module):
    """A layer whose states depend on a token, on the one before and on those to come, as a language model's do."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embedding = nn.Embedding(vocabulary, width, _weight=torch.randn(vocabulary, width, generator=generator))
        self.layer = nn.Identity()

    def forward(self, input_ids, attention_mask=None):
        h = self.embedding(input_ids)
        h = h + 0.7 * h.roll(1, dims=1) + 0.4 * h.roll(2, dims=1) + 0.3 * h.roll(-1, dims=1)
        return self.layer(h)


@pytest.fixture(scope="module")
def text():
    """Documents whose tokens follow Zipf's law and repeat in phrases."""
    return corpus_of(zipf_phrases(np.random.default_rng(0), n=250))


def zipf_phrases(random, n, first=0, steep=1.0):
    """Documents of phrases of the tokens `first` … `first` + 399."""
    chance, often = 1 / np.arange(1, 401) ** 1.1, 1 / np.arange(1, 301) ** steep
    phrases = [first + random.choice(400, size=6, p=chance / chance.sum()) for _ in range(300)]
    drawn = (random.choice(300, size=random.integers(2, 9), p=often / often.sum()) for _ in range(n))
    return [np.concatenate([phrases[i] for i in chosen]) for chosen in drawn]


@pytest.fixture(scope="module")
def measure(text):
    """Give a function that measures with a seed and a number of rows, planned or attached: its table and its rows."""
    net = Contextual(400, 24).eval()
    batches = length_batches(text.lengths, 1024)
    label_sets = parse_label_sets(SETS)

    def measured(way, seed, label_rows):
        plan = Plan(text, label_sets, batches, label_rows=label_rows, seed=seed) if way == "planned" else None
        probe = SoftEntropyProbe(
            net,
            labels=SETS,
            modules={"layer": net.layer},
            plan=plan,
            label_rows=label_rows,
            seed=seed,
            n_anchors=20,
            anchor_sets=1,
        )
        table = feed(probe, net, text, batches, plan).result().to_pandas()
        sizes = probe._source.rows.table_sizes()
        return table[table.metric.isin(METRICS)].set_index(["metric", "label_set"]), sizes.n_live

    return measured


@pytest.fixture(scope="module")
def exact(measure):
    return [measure("planned", seed, "all")[0] for seed in range(SEEDS)]


@pytest.mark.slow
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("way", ["planned", "attached"])
def test_the_error_is_as_large_as_told_and_has_no_direction(measure, exact, way, share):
    _, all_rows = measure(way, 0, "all")
    label_rows = int(all_rows * share)
    errors, told = [], []
    for seed in range(SEEDS):
        table, rows = measure(way, seed, label_rows)
        assert rows <= label_rows
        errors.append(table.value - exact[seed].value)
        told.append(table.sampling_sd)
    errors, told = np.array(errors), np.array(told)  # [seeds, metrics and label sets]
    ratio = np.sqrt((errors**2).mean(axis=0) / (told**2).mean(axis=0))
    t = errors.mean(axis=0) / (errors.std(axis=0, ddof=1) / np.sqrt(SEEDS))
    assert 0.7 <= np.sqrt((errors**2).mean() / (told**2).mean()) <= 1.4
    assert ((ratio > 0.5) & (ratio < 2.0)).all(), ratio  # of 20 seeds, each within its own chance
    assert (np.abs(t) < 4).all(), t
    assert abs(t.mean()) < 1.5, t


@pytest.mark.parametrize("way", ["planned", "attached"])
def test_where_all_labels_fit_nothing_is_sampled(measure, way):
    whole, rows = measure(way, 0, "all")
    fits, _ = measure(way, 0, rows)
    assert "sampling_sd" not in fits
    assert fits.equals(whole)


@pytest.mark.slow
def test_labels_that_become_frequent_late_are_not_lost():
    """Three texts one after the other, each with words of its own: what is frequent in the last is followed, too."""
    random = np.random.default_rng(0)
    parts = [zipf_phrases(random, n=200, first=first, steep=1.3) for first in (0, 400, 800)]
    corpus = corpus_of([document for part in parts for document in part])
    net, sets = Contextual(1200, 24).eval(), ("input_unigram", "input_bigram", "input_trigram")

    def measured(seed, label_rows):
        probe = SoftEntropyProbe(
            net,
            labels=sets,
            modules={"layer": net.layer},
            label_rows=label_rows,
            seed=seed,
            n_anchors=20,
            anchor_sets=1,
        )
        with probe, torch.inference_mode():
            for start in range(0, corpus.n_documents, 10):
                ids, mask = pad_batch(corpus, np.arange(start, start + 10))
                net(input_ids=ids, attention_mask=mask)
        return probe.result().to_pandas().query("metric == 'mutual_information'")

    found = [measured(seed, 800) for seed in range(SEEDS)]
    errors = np.array([found[seed].value - measured(seed, "all").value for seed in range(SEEDS)])
    told = np.array([table.sampling_sd for table in found])
    assert 0.7 <= np.sqrt((errors**2).mean() / (told**2).mean()) <= 1.4
    assert np.sqrt((errors**2).mean(axis=0)).max() < 0.02  # 0.045 where they are lost
