"""Label sets, and runs of a probe over token sequences and planned corpora."""

from contextlib import nullcontext

import torch

from softh_probe import SoftEntropyProbe, sample_anchors, temperature
from softh_probe.accumulators.batch import BatchAccumulator
from softh_probe.data.corpus import length_batches, pad_batch
from softh_probe.labels import parse_label_sets, shortest_document
from softh_probe.planned.plan import Plan
from tests.helpers import references

NGRAMS = [
    (f"{direction}_{name}", direction, n)
    for n, name in enumerate(["unigram", "bigram", "trigram", "quadgram"], 1)
    for direction in ("input", "output")
]
NAMES = [name for name, _, _ in NGRAMS]


def batches(docs, size, side="right"):
    """Yield padded batches of token sequences."""
    for start in range(0, len(docs), size):
        chunk = docs[start : start + size]
        longest = max(map(len, chunk))
        ids, mask = torch.zeros(len(chunk), longest, dtype=torch.long), torch.zeros(len(chunk), longest)
        for row, doc in enumerate(chunk):
            where = slice(0, len(doc)) if side == "right" else slice(longest - len(doc), longest)
            ids[row, where], mask[row, where] = torch.tensor(doc), 1
        yield {"input_ids": ids, "attention_mask": mask.long()}


def run(probe, model, docs, size=4, side="right"):
    """Run a model on token sequences with the probe attached."""
    with probe, torch.no_grad():
        for batch in batches(docs, size, side):
            model(**batch)
    return probe


def reference(model, docs, label_sets=NGRAMS, columns=None, n_anchors=20, seed=0):
    """Measure each document alone with the float64 reference."""
    dim = model.config.hidden_size
    anchors = sample_anchors(n_anchors, dim, seed).numpy()
    return references.measure(model, docs, label_sets, anchors, temperature(n_anchors, dim), columns)


def values_by_key(result, unit="nats"):
    """Return a result's values by (row, metric, label set)."""
    return result.to_pandas(unit=unit).set_index(["name", "metric", "label_set"]).value


def value(result, row, metric, label_set="", unit="nats"):
    """Read one value from a result's table."""
    table = result.to_pandas(unit=unit)
    return table[(table.name == row) & (table.metric == metric) & (table.label_set == label_set)].value.item()


def planned(corpus, names, tokens_per_batch, per_label=()):
    """Plan batches and rows for a corpus."""
    sets = parse_label_sets(names)
    keep = corpus.lengths >= shortest_document(sets)
    return Plan(corpus, sets, length_batches(corpus.lengths, tokens_per_batch, keep=keep), per_label)


def run_planned(model, corpus, names, tokens_per_batch, plan=None, anchor_sets=1, **settings):
    """Run a planned probe over a corpus."""
    plan = plan or planned(corpus, names, tokens_per_batch)
    probe = SoftEntropyProbe(model, labels=names, n_anchors=20, anchor_sets=anchor_sets, plan=plan, **settings)
    return feed(probe, model, corpus, plan.batches, plan)


def feed(probe, model, corpus, batches, plan=None):
    """Run a model over the batches of a corpus under a probe, whose labels a plan may know."""
    with probe, torch.inference_mode():
        for i, docs in enumerate(batches):
            ids, mask = pad_batch(corpus, docs)
            with nullcontext() if plan is None else probe.batch(plan.batch(i)):
                model(input_ids=ids, attention_mask=mask)
    return probe


def around_accumulation(monkeypatch, context):
    """Run every addition to sums in a context (a `contextmanager`)."""
    for name in ("add", "finish"):
        monkeypatch.setattr(BatchAccumulator, name, context()(getattr(BatchAccumulator, name)))
