"""Cost of planning: rows live at most, time and memory, on 6.0M tokens of short texts in seven languages.

    python scripts/material.py .cache --fortunes && python scripts/measure_plan.py

Eight n-gram label sets; documents sorted by length within windows of neighbours, and all of them together; all labels,
and the sample of the default number of rows; and what the second run on the same text takes, from the cache.
"""

import tempfile
import time

import numpy as np

from softh_probe.config import RunConfig
from softh_probe.data.corpus import SORT_WINDOW, length_batches
from softh_probe.data.prepared import read_corpus
from softh_probe.labels import DEFAULT_LABEL_ROWS, NGRAM_SETS, parse_label_sets, shortest_document
from softh_probe.models.source import resolve_model
from softh_probe.models.tokenizer import load_tokenizer
from softh_probe.planned.plan import Plan
from softh_probe.planned.prepared import plan_run
from softh_probe.run.peak_memory import peak_memory_gib

TOKENS_PER_BATCH = 4096

with tempfile.TemporaryDirectory() as cache:
    config = RunConfig(
        model=".cache/SmolLM2-135M-Instruct.Q4_1.gguf",
        data=".cache/fortunes.jsonl",
        labels=NGRAM_SETS,
        tokens_per_batch=TOKENS_PER_BATCH,
        cache=cache,
        out="-",
    )
    tokenizer = load_tokenizer(resolve_model(config.model))
    for run in ("first", "second"):
        start = time.perf_counter()
        corpus = read_corpus(config, tokenizer, progress=False)
        read = time.perf_counter()
        plan_run(config, corpus)
        print(f"{run} run: corpus {read - start:.1f} s, plan {time.perf_counter() - read:.1f} s")
label_sets = parse_label_sets(NGRAM_SETS)
keep = corpus.lengths >= shortest_document(label_sets)
print(f"{corpus.n_documents:,} documents, {corpus.n_tokens:,} tokens")
for window in (SORT_WINDOW, corpus.n_documents):
    batches = length_batches(corpus.lengths, TOKENS_PER_BATCH, keep=keep, window=window)
    padded = sum(len(b) * corpus.lengths[b].max() for b in batches)
    padding = padded / corpus.lengths[np.concatenate(batches)].sum() - 1
    print(f"sorted within {window:,} documents: padding {padding:.1%}")
    for label_rows in ("all", DEFAULT_LABEL_ROWS):
        start = time.perf_counter()
        plan = Plan(corpus, label_sets, batches, label_rows=label_rows)
        seconds = time.perf_counter() - start
        peak = peak_memory_gib()["host"]
        rows, error = plan.allocation.n_live, plan.expected_errors.max()
        print(
            f"  label_rows {label_rows}: {plan.followed_by_set.sum():,} of {plan.labels_by_set.sum():,} labels take "
            f"part, {rows:,} rows live at most, expected error at most {error:.5f} log m; "
            f"planned in {seconds:.1f} s, process peak {peak:.1f} GiB"
        )
