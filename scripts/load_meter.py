"""5 million positions through a meter, in pieces: does its memory stay flat?

    python scripts/load_meter.py                                            # the full one, some minutes
    python scripts/load_meter.py --positions 400000 --label-rows 4096       # a short one

Made-up documents, as those of scripts/load.py, come as an engine runs them: 64 at a time, in pieces of a prompt or a
token each, with two rows of states. One in sixteen never ends and is evicted. Exit code 1 if the process is larger
after all positions than after a quarter of them, by more than a tenth.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Generator, Iterator
from itertools import count

import numpy as np
import torch
from load import MOST_GROWTH, N_ANCHORS, stays_small
from made_up_texts import VOCABULARY, made_up_documents

from softh_probe.labels import DEFAULT_LABEL_ROWS, NGRAM_SETS
from softh_probe.meter import SoftEntropyMeter

WIDTH, TOGETHER, MOST_SEQUENCES, LONGEST_PIECE, PROMPT = 64, 64, 256, 48, 0.75
#: One sequence in so many never ends.
_FORGOTTEN = 16


def texts() -> Iterator[np.ndarray]:
    """Yield tokens of documents without end."""
    for block in count():
        tokens, lengths = made_up_documents(block)
        yield from np.split(tokens, np.cumsum(lengths)[:-1])


def metered(label_rows: int) -> Generator[SoftEntropyMeter]:
    """Yield a meter after each step of an engine that feeds it."""
    meter = SoftEntropyMeter(
        labels=NGRAM_SETS,
        n_anchors=N_ANCHORS,
        anchor_sets=1,
        label_rows=label_rows,
        n_blocks=1,
        most_sequences=MOST_SEQUENCES,
    )
    chance, states_VD = np.random.default_rng(0), torch.randn(VOCABULARY, WIDTH)
    waiting = enumerate(texts())
    running: dict[int, np.ndarray] = {}
    fed: dict[int, int] = {}
    while True:
        while len(running) < TOGETHER:
            name, tokens = next(waiting)
            running[name], fed[name] = tokens, 0
        pieces = {}
        for name, tokens in running.items():
            begin = fed[name]
            is_prompt = begin < PROMPT * len(tokens)
            length = int(chance.integers(1, LONGEST_PIECE)) if is_prompt else 1
            pieces[name] = np.arange(begin, min(begin + length, len(tokens)))
        ids_N = torch.from_numpy(np.concatenate([running[name][at] for name, at in pieces.items()]).astype(np.int64))
        h_ND = states_VD[ids_N]
        meter.update(
            {"embeddings": h_ND, "layer.1": h_ND + 0.1 * torch.randn_like(h_ND)},
            input_ids=ids_N,
            sequence=[name for name, at in pieces.items() for _ in at],
            position=np.concatenate(list(pieces.values())),
        )
        for name, at in pieces.items():
            fed[name] += len(at)
            if fed[name] == len(running[name]):
                del running[name], fed[name]
                if name % _FORGOTTEN:
                    meter.end(name)
        yield meter


def main() -> int:
    """Feed the meter, print its size, and give the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=5_000_000, help="that count, at least")
    parser.add_argument("--label-rows", type=int, default=DEFAULT_LABEL_ROWS, help="rows of n-gram labels")
    given = parser.parse_args()
    if stays_small(metered(given.label_rows), given.positions):
        return 0
    print(f"memory grew by more than a factor of {MOST_GROWTH}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
