"""20 million tokens from an endless generator: does the memory of a streamed run stay flat?

    python scripts/load_stream.py                       # the full one, some minutes on 2 cores
    python scripts/load_stream.py --tokens 200000       # a short one

A tiny model with random weights reads made-up documents, whose words are as unevenly frequent as those of texts and
repeat in phrases, through `run(…, documents=…)` with `stream` on: twice, each time in a process of its own, with a
quarter of the tokens and with all. Exit code 1 if the larger one takes more than 1.1 times the memory.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from softh_probe.config import RunConfig
from softh_probe.data.documents import Document
from softh_probe.labels import NGRAM_SETS
from softh_probe.run import run
from softh_probe.run.peak_memory import peak_memory_gib

VOCABULARY, WIDTH, N_ANCHORS = 2**15, 8, 16
MOST_GROWTH = 1.1
_LONGEST, _SHARE, _STEEP = 256, 0.9, 2.0


def main() -> int:
    """Measure both, print what was found, and give the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=20_000_000, help="tokens of the larger run")
    parser.add_argument("--label-rows", type=int, default=65_536, help="rows of n-gram labels")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure, given.tokens, given.label_rows)))
        return 0
    found = []
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder) / "checkpoint")
        for n_tokens in (given.tokens // 4, given.tokens):
            words = [sys.executable, __file__, "--measure", folder, "--tokens", str(n_tokens)]
            words += ["--label-rows", str(given.label_rows)]
            found.append(json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout))
            print(
                "{tokens:,} tokens in {seconds:.0f} s: at most {gib:.3f} GiB, {followed:,} labels".format(**found[-1])
            )
    growth = found[1]["gib"] / found[0]["gib"]
    print(f"four times as many tokens take {growth:.3f} times the memory, at most {MOST_GROWTH} is right")
    return int(growth > MOST_GROWTH)


def save_checkpoint(folder: Path) -> None:
    """Save a tiny model, and a tokenizer whose words are numbers."""
    words = Tokenizer(models.WordLevel({str(i): i for i in range(VOCABULARY)}, unk_token="0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="0").save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=_LONGEST,
        initializer_range=0.5,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def documents() -> Iterator[Document]:
    """Make documents up, for ever."""
    names = np.array([str(i) for i in range(VOCABULARY)])
    for block in itertools.count():
        generator = np.random.default_rng(block)
        phrases = (VOCABULARY * generator.random((4096, 8)) ** 8).astype(np.int64)
        for _ in range(256):
            n = int(generator.integers(8, _LONGEST))
            chosen = phrases[(4096 * generator.random(n // 8 + 1) ** _STEEP).astype(np.int64)].reshape(-1)[:n]
            other = (VOCABULARY * generator.random(n) ** 3).astype(np.int64)
            ids = np.where(generator.random(n) < _SHARE, chosen, other)
            yield Document(content=" ".join(names[ids]))


def measure(folder: Path, n_tokens: int, label_rows: int) -> dict[str, float]:
    """Run the stream; give its tokens, time, peak memory in GiB and the labels that were followed."""
    config = RunConfig(
        model=str(folder / "checkpoint"),
        data="made-up documents",
        out=str(folder / f"out-{n_tokens}"),
        labels=NGRAM_SETS,
        label_rows=label_rows,
        layers=["layer.1"],
        n_anchors=N_ANCHORS,
        anchor_sets=1,
        max_length=_LONGEST,
        max_tokens=n_tokens,
        tokens_per_batch=8192,
        stream=True,
        report=False,
    )
    began = time.perf_counter()
    result = run(config, documents=documents(), progress=False)
    return {
        "tokens": result.info["tokens"],
        "seconds": time.perf_counter() - began,
        "gib": peak_memory_gib()["host"],
        "followed": sum(s["followed"] for s in result.info.get("label_sampling", {}).values()),
    }


if __name__ == "__main__":
    sys.exit(main())
