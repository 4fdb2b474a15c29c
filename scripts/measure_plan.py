"""What planning the rows of 8 n-gram label sets costs, and how many rows are alive at once.

    python scripts/material.py .cache --fortunes && python scripts/measure_plan.py

on the multilingual fortunes with SmolLM2's tokenizer: seconds, peak memory of the process, distinct labels, rows
alive at once, with documents sorted by length within windows (as runs do) and all together.
"""

import resource
import time

import numpy as np

from softh_probe.checkpoint import load_tokenizer
from softh_probe.corpus import SORT_WINDOW, length_batches, tokenize
from softh_probe.documents import read_documents
from softh_probe.labels import NGRAM_SETS, parse_label_sets, shortest_document
from softh_probe.model_source import resolve_model
from softh_probe.plan import Plan

TOKENS_PER_BATCH = 4096

tokenizer = load_tokenizer(resolve_model(".cache/SmolLM2-135M-Instruct.Q4_1.gguf"))
corpus = tokenize(read_documents(".cache/fortunes.jsonl"), tokenizer, max_length=512)
label_sets = parse_label_sets(NGRAM_SETS)
keep = corpus.lengths >= shortest_document(label_sets)
print(f"{corpus.n_documents:,} documents, {corpus.n_tokens:,} tokens")
for window in (SORT_WINDOW, corpus.n_documents):
    start = time.perf_counter()
    plan = Plan(corpus, label_sets, length_batches(corpus.lengths, TOKENS_PER_BATCH, keep=keep, window=window))
    seconds = time.perf_counter() - start
    padded = sum(len(b) * corpus.lengths[b].max() for b in plan.batches)
    padding = padded / corpus.lengths[np.concatenate(plan.batches)].sum() - 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"sorted within {window:,} documents: {plan.labels_by_set.sum():,} labels, {plan.n_open:,} rows alive at most; "
        f"padding {padding:.1%}; planned in {seconds:.1f} s, process peak {peak:.1f} GiB"
    )
