"""5 million positions fed to a meter: does its memory stay flat?

    python scripts/load_meter.py                        # the full one, some minutes on 2 cores
    python scripts/load_meter.py --positions 100000     # a short one

Random states of two rows, and made-up documents with the eight n-gram label sets, come in interleaved pieces. Half of
the sequences are ended; the others are left open, and are evicted. Exit code 1 if the process is larger in the end than
after half of the positions, by more than a tenth.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Iterator
from itertools import count

import numpy as np
import psutil
import torch
from load import made_up_documents

from softh_probe import SoftEntropyMeter
from softh_probe.labels import NGRAM_SETS

WIDTH, N_ANCHORS, LABEL_ROWS = 64, 100, 8192
AT_ONCE, LONGEST_PIECE, MOST_OPEN = 32, 96, 64
MOST_GROWTH = 1.1


def documents() -> Iterator[np.ndarray]:
    """Make documents up, for ever."""
    for block in count():
        tokens, lengths = made_up_documents(block)
        yield from np.split(tokens, np.cumsum(lengths)[:-1])


def main() -> int:
    """Feed the meter, print the process's size at ten points, and give the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--positions", type=int, default=5_000_000, help="that are fed, at least")
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # that sequences are evicted is what is asked for
    meter = SoftEntropyMeter(
        labels=NGRAM_SETS,
        n_anchors=N_ANCHORS,
        anchor_sets=1,
        label_rows=LABEL_ROWS,
        n_blocks=2,
        most_sequences=MOST_OPEN,
    )
    chance, torch_chance = np.random.default_rng(0), torch.Generator().manual_seed(0)
    source, names = documents(), count()
    open_ones: dict[int, tuple[np.ndarray, int]] = {}
    sizes: list[float] = []
    n_fed, n_left, began = 0, 0, time.perf_counter()
    print(f"{'fed':>11} {'MiB':>8} {'left open':>10} {'a second':>9}")
    while len(sizes) < 10:
        while len(open_ones) < AT_ONCE:
            open_ones[next(names)] = (next(source), 0)
        pieces = {
            name: (document, at, min(len(document), at + int(chance.integers(1, LONGEST_PIECE))))
            for name, (document, at) in open_ones.items()
        }
        sequence = np.concatenate([np.full(end - at, name) for name, (_, at, end) in pieces.items()])
        position = np.concatenate([np.arange(at, end) for _, at, end in pieces.values()])
        ids = np.concatenate([document[at:end] for document, at, end in pieces.values()])
        mixed = np.argsort(position, kind="stable")
        states = torch.randn(2, len(ids), WIDTH, generator=torch_chance)
        meter.update(
            {"layer.1": states[0], "layer.2": states[1]},
            input_ids=ids[mixed],
            sequence=sequence[mixed],
            position=position[mixed],
        )
        for name, (document, _, end) in pieces.items():
            open_ones[name] = (document, end)
            if end == len(document):
                del open_ones[name]
                if name % 2:
                    meter.end(name)
                else:
                    n_left += 1
        n_fed += len(ids)
        if n_fed >= given.positions * (len(sizes) + 1) // 10:
            sizes.append(psutil.Process().memory_info().rss / 2**20)
            rate = n_fed / (time.perf_counter() - began)
            print(f"{n_fed:>11,} {sizes[-1]:>8,.0f} {n_left:>10,} {rate:>9,.0f}", flush=True)
    evicted = [choice["chosen"] for choice in meter.result().info["choices"] if choice["about"] == "most_sequences"]
    print(f"{meter.positions:,} positions counted of {n_fed:,}; {', '.join(evicted) or 'none was evicted'}")
    return int(sizes[-1] > MOST_GROWTH * sizes[4])


if __name__ == "__main__":
    sys.exit(main())
