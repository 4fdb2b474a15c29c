"""Coverage of intervals over documents, on real hidden states: for which label sets do they hold?

    python scripts/study_intervals.py                      # some 5 minutes on 2 cores
    python scripts/study_intervals.py --draws 50           # a short one

SmolLM2 reads short texts in seven languages once (`scripts/material.py .cache --fortunes`). From these documents small
corpora are drawn, whose plug-in values and standard errors (se) are computed. Their mean over corpora is the truth of
a corpus of that size. Printed are, by label set and metric, over layers: the standard deviation of values over corpora;
se over it, and that of a bootstrap of documents over it; the share of 95% intervals that hold the truth; and the bias
of a corpus against all documents, over se, which an interval says nothing of. The figures go to a .csv file.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from softh_probe import sample_anchors, temperature
from softh_probe.accumulators.influence_sums import DocumentSums
from softh_probe.analysis.intervals import MeasuredValues, influences
from softh_probe.config import RunConfig
from softh_probe.data.corpus import Corpus, pad_batch
from softh_probe.data.prepared import read_corpus
from softh_probe.estimators.soft_entropy import log_assignments
from softh_probe.influence import Name, standard_error
from softh_probe.labels import LabelSet, parse_label_sets
from softh_probe.models.checkpoint import load_checkpoint
from softh_probe.models.source import resolve_model
from softh_probe.models.tokenizer import load_tokenizer
from softh_probe.planned.population import Population
from softh_probe.planned.prepared import batch_documents
from softh_probe.planned.row_allocation import label_ids, ngram_ids

LAYERS = (0, 12, 24, 30)
ORDERS = ("unigram", "bigram", "trigram")
LABELS = (*(f"{direction}_{order}" for order in ORDERS for direction in ("input", "output")), "column:language")
N_ANCHORS = 100


class Pool:
    """All documents: soft assignments of their counted positions, and the labels of these.

    Attributes:
        q: by layer, [N, M]; labels: by set, int64 [N]; starts: of each document among the N positions.
    """

    def __init__(self, config: RunConfig, corpus: Corpus) -> None:
        sets = parse_label_sets(LABELS)
        population = Population(corpus, sets)
        counts = population.counts()
        self.starts = np.concatenate([[0], np.cumsum(counts)])
        ngrams = ngram_ids(corpus.tokens, corpus.offsets, len(ORDERS))
        every = np.flatnonzero(counts)
        self.labels = {s.name: self._labels(corpus, population, ngrams, s, every) for s in sets}
        self.documents = every
        self.q = {f"layer {layer}": torch.zeros(int(self.starts[-1]), N_ANCHORS) for layer in LAYERS}
        before = len(ORDERS) - 1
        with load_checkpoint(resolve_model(config.model), dtype="float32", device_map="cpu") as checkpoint:
            for batch in tqdm(batch_documents(config, corpus), desc="states", unit="batch"):
                ids_BT, mask_BT = pad_batch(corpus, batch)
                with torch.inference_mode():
                    found = checkpoint.model(input_ids=ids_BT, attention_mask=mask_BT, output_hidden_states=True)
                for layer, q_NM in zip(LAYERS, self.q.values(), strict=True):
                    for document, state in zip(batch, found.hidden_states[layer], strict=True):
                        start, n = self.starts[document], counts[document]
                        q_NM[start : start + n] = _assign(state[before : before + n])

    @staticmethod
    def _labels(
        corpus: Corpus, population: Population, ngrams: list[np.ndarray], one: LabelSet, documents: np.ndarray
    ) -> Tensor:
        return torch.from_numpy(label_ids(corpus, population, ngrams, one, documents).astype(np.int64))


def _assign(state_ND: Tensor) -> Tensor:
    anchors = sample_anchors(N_ANCHORS, state_ND.shape[-1]).unsqueeze(0)
    return log_assignments(state_ND, anchors, temperature(N_ANCHORS, state_ND.shape[-1]))[:, 0].exp()


def shares(q_NM: Tensor, label_N: Tensor) -> tuple[Tensor, Tensor]:
    """Give log p̂_x of each position's label [N, M], and H(Z|X)."""
    _, label_N = label_N.unique(return_inverse=True)
    mass_LM = q_NM.new_zeros(int(label_N.max()) + 1, q_NM.shape[1]).index_add_(0, label_N, q_NM)
    log_LM = (mass_LM / mass_LM.sum(dim=1, keepdim=True)).clamp_min(1e-30).log()
    return log_LM[label_N], -(mass_LM.double() * log_LM).sum() / len(q_NM)


def values_and_errors(q_NM: Tensor, document_N: Tensor, labels: dict[str, Tensor]) -> dict[Name, tuple[float, float]]:
    """Compute plug-in values and standard errors of one corpus, with the functions of the library."""
    n_documents = int(document_N.max()) + 1
    log_total, h = shares(q_NM, torch.zeros_like(document_N))
    given = {name: shares(q_NM, label_N) for name, label_N in labels.items()}

    def by_document(values_N: Tensor) -> Tensor:
        return torch.zeros(n_documents, dtype=torch.float64).index_add_(0, document_N, values_N.double())

    reference = by_document((q_NM * log_total).sum(dim=1))
    label = torch.stack([by_document((q_NM * log_NM).sum(dim=1)) for log_NM, _ in given.values()], dim=1)
    n_sets = len(labels)
    sums = DocumentSums(
        positions=by_document(torch.ones(len(q_NM))).unsqueeze(0),
        reference=reference[None, :, None, None].expand(1, n_documents, 1 + n_sets, 1),
        label=label[None, :, :, None],
    )
    information = torch.stack([h - conditional for _, conditional in given.values()])
    n = torch.tensor(float(len(q_NM)), dtype=torch.float64)
    values = MeasuredValues(
        label_sets=list(labels),
        n_positions=len(q_NM),
        positions=n[None],
        labelled_positions=n.expand(1, n_sets),
        entropy=h[None, None],
        labelled_entropy=h.expand(1, n_sets, 1),
        information=information[None, :, None],
    )
    psi = influences(sums, torch.ones(n_documents, n_sets, dtype=torch.bool), values, labels)
    plug_in = plug_in_values(h.item(), dict(zip(labels, information.tolist(), strict=True)))
    units = np.arange(n_documents)
    return {
        name: (plug_in[name], float(standard_error(psi_RB.numpy() / len(q_NM), units, n_documents)[0]))
        for name, psi_RB in psi.items()
    }


def plug_in_values(h: float, information: dict[str, float]) -> dict[Name, float]:
    """Give the plug-in value of every metric that has an interval."""
    found: dict[Name, float] = {("", "entropy"): h}
    for name, value in information.items():
        found |= {(name, "mutual_information"): value, (name, "regularity"): value / h}
    ratios = {order: information[f"output_{order}"] / information[f"input_{order}"] for order in ORDERS}
    return {**found, **{(order, "optimality"): ratio for order, ratio in ratios.items()}}


def bootstrap(q_NM: Tensor, document_N: Tensor, labels: dict[str, Tensor], draws: int) -> dict[Name, float]:
    """Compute the standard deviation of plug-in values over corpora of documents drawn again from one corpus."""
    n_documents, generator = int(document_N.max()) + 1, np.random.default_rng(0)
    drawn: dict[Name, list[float]] = {}
    for _ in range(draws):
        weights = generator.multinomial(n_documents, np.full(n_documents, 1 / n_documents))
        where = torch.from_numpy(np.repeat(np.arange(len(q_NM)), weights[document_N.numpy()]))
        q = q_NM[where]
        h = shares(q, torch.zeros_like(where))[1].item()
        information = {name: h - shares(q, label_N[where])[1].item() for name, label_N in labels.items()}
        for name, value in plug_in_values(h, information).items():
            drawn.setdefault(name, []).append(value)
    return {name: float(np.std(values, ddof=1)) for name, values in drawn.items()}


def study(pool: Pool, size: int, draws: int) -> Iterator[dict[str, object]]:
    """Draw corpora; yield a line for each corpus, layer, label set and metric."""
    generator = np.random.default_rng(0)
    for draw in tqdm(range(draws), desc="corpora"):
        chosen = generator.choice(pool.documents, size=size, replace=False)
        parts = [np.arange(pool.starts[d], pool.starts[d + 1]) for d in chosen]
        where = torch.from_numpy(np.concatenate(parts))
        document_N = torch.from_numpy(np.repeat(np.arange(size), list(map(len, parts))))
        labels = {name: label_N[where] for name, label_N in pool.labels.items()}
        for layer, q_NM in pool.q.items():
            q = q_NM[where]
            again = bootstrap(q, document_N, labels, 100) if draw < 3 else {}
            for name, (value, se) in values_and_errors(q, document_N, labels).items():
                line = {"layer": layer, "label_set": name[0], "metric": name[1], "value": value, "se": se}
                yield {**line, "bootstrap": again.get(name, np.nan)}


def summary(lines: pd.DataFrame, whole: pd.Series, share: float) -> pd.DataFrame:
    """Compare errors with the truth, by layer, label set and metric; `share` of all documents was drawn each time."""
    keys = ["label_set", "metric", "layer"]
    grouped = lines.groupby(keys, sort=False)
    finite = np.sqrt(1 - share)  # corpora that share documents vary less
    truth = grouped.value.transform("mean")
    held = (lines.value - truth).abs() <= 1.96 * finite * lines.se
    sd, se = grouped.value.std() / finite, grouped.se.mean()
    return pd.DataFrame(
        {
            "sd": sd,
            "se/sd": se / sd,
            "bootstrap/sd": grouped.bootstrap.mean() / sd,
            "coverage": held.groupby([lines[key] for key in keys], sort=False).mean(),
            "bias/se": (grouped.value.mean() - whole) / se,
        }
    )


def main() -> None:
    """Run the study and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=".cache/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--data", default=".cache/fortunes.jsonl")
    parser.add_argument("--documents", type=int, default=2000, help="documents of the pool")
    parser.add_argument("--size", type=int, default=200, help="documents of a corpus")
    parser.add_argument("--draws", type=int, default=200, help="corpora")
    parser.add_argument("--out", type=Path, default=Path("out/study_intervals"))
    args = parser.parse_args()
    config = RunConfig(
        model=args.model,
        data=args.data,
        labels=LABELS,
        max_documents=args.documents,
        shuffle_seed=0,
        max_length=64,
        tokens_per_batch=1024,
        out=str(args.out),
    )
    corpus = read_corpus(config, load_tokenizer(resolve_model(config.model)))
    pool = Pool(config, corpus)
    documents = np.repeat(np.arange(corpus.n_documents), np.diff(pool.starts))
    print(f"{len(pool.documents):,} documents, {len(documents):,} positions; corpora of {args.size} documents")
    every = torch.from_numpy(documents)
    whole = pd.Series(
        {
            (*name, layer): value
            for layer, q_NM in pool.q.items()
            for name, (value, _) in values_and_errors(q_NM, every, pool.labels).items()
        }
    )
    found = summary(pd.DataFrame(study(pool, args.size, args.draws)), whole, args.size / len(pool.documents))
    args.out.mkdir(parents=True, exist_ok=True)
    found.to_csv(args.out / "coverage.csv")
    print(found.round(4).to_string())
    print("\nover layers, least and greatest:")
    print(found.groupby(["label_set", "metric"], sort=False).agg(["min", "max"]).round(3).to_string())


if __name__ == "__main__":
    main()
