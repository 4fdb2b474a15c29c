"""Errors of the null and the corrected information against the truth, beside other estimators from the same sums.

    python scripts/study_correction.py                                # simulations: a minute
    python scripts/study_correction.py --model MODEL --texts TEXTS    # and real hidden states: some minutes more

Simulated labels are distributions whose information is known; in real text frequent n-grams serve as such: their
occurrences are the distribution, and n of them are drawn, with repetition, or as they follow each other in the
text: there they are not independent, as every estimator takes them to be. Errors are in units of log m.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from softh_probe import sample_anchors, temperature
from softh_probe.config import RunConfig
from softh_probe.data.prepared import read_corpus
from softh_probe.estimators.bias_correction import (
    bias_curves,
    chance_information,
    corrected_information,
    null_information,
)
from softh_probe.estimators.soft_entropy import entropy, log_assignments
from softh_probe.models.checkpoint import load_checkpoint
from softh_probe.models.source import resolve_model
from softh_probe.models.tokenizer import load_tokenizer
from softh_probe.planned.row_allocation import ngram_ids

COUNTS = (2, 4, 8, 16, 64)
SAMPLE = 2048
MANY = 10**8  # positions of a simulated corpus: practically infinite
LAYERS = (0, 6, 18, 28, 30)
FREQUENT = {"input 1-gram": 200, "output 1-gram": 200, "input 2-gram": 60, "output 2-gram": 60}
DRAWN = 2000  # positions drawn for each count, or a few more


@dataclass
class World:
    """Labels of known distribution: draw(label, groups, n) -> q [groups · n, S, M], groups of n positions."""

    name: str
    draw: Callable[[int, int, int], Tensor]
    n_labels: int
    entropy_LS: Tensor
    sample_RSM: Tensor
    mean_SM: Tensor
    position_entropy_S: Tensor

    @property
    def information(self) -> Tensor:
        return entropy(self.mean_SM) - self.entropy_LS.mean(dim=0)


# --- estimators: (curves, n [C], number of labels [C], Σ n·H(p̂) [C, S], Σ H(q) [C, S], H(Z) [S]) -> [S] ------------


def raw(curves, counts, labels, weighted, position, whole):
    return whole - weighted.sum(dim=0) / (counts * labels).sum()


def raw_minus_null(curves, *sums):
    return raw(curves, *sums) - null_information(curves, sums[0], sums[1])


def _less(bias):
    """An estimator that subtracts bias(W [C, S], n [C, 1], c0(n) [C, S], c0(1) [1, S]) of each row."""

    def estimate(curves, counts, labels, weighted, position, whole):
        positions = (counts * labels).double().unsqueeze(1)
        divergence = ((weighted - position) / positions).clamp_min(0)
        c0, c1 = chance_information(curves, counts), chance_information(curves, torch.ones(1))
        subtracted = positions * bias(divergence, counts.double().unsqueeze(1), c0, c1)
        return raw(curves, counts, labels, weighted, position, whole) - subtracted.sum(dim=0) / positions.sum()

    return estimate


def shrunk_theta(divergence, n, c0, c1):
    """B = b(1) / (1 + (n−1)θ), θ = θ0^(b(1)/c0(1)), θ0 that of chance: solved by damped iteration."""
    theta0 = ((c1 / c0 - 1) / (n - 1)).clamp(1e-6, 1)
    theta = theta0
    for _ in range(200):
        first = divergence * (1 + (n - 1) * theta) / ((n - 1) * theta)
        theta = 0.5 * theta + 0.5 * theta0 ** (first / c1).clamp(0, 1)
    return divergence / ((n - 1) * theta)


ESTIMATORS = {
    "raw": raw,
    "raw-null": raw_minus_null,
    "excess": _less(lambda w, n, c0, c1: w * c0 / (c1 - c0)),  # the curve of chance, scaled to the W that is measured
    "1/n": _less(lambda w, n, c0, c1: w / (n - 1)),  # the jackknife's and Miller and Madow's order
    "theta": _less(shrunk_theta),
    "corrected": corrected_information,
}


# --- simulated worlds ----------------------------------------------------------------------------------------------


def simulated(
    name: str, d: int, m: int, shared: float, *, modes: int = 1, pool: int = 0, kind: str = "gauss",
    offset: float = 0.0, unlike: bool = False, n_labels: int = 40, n_sets: int = 1, seed: int = 0,
) -> World:  # fmt: skip
    """Labels whose states are √shared · (one of the label's modes) + √(1 − shared) · noise (+ a common offset).

    kind: "gauss"; "heavy", noise of Student's t with 3 degrees of freedom; "decaying", a spectrum like 1/k;
    "vmf", unit vectors of modes and noise. pool: the modes of all labels are that many. unlike: half of the labels
    share nothing, so that labels of one count are not alike.
    """
    generator = torch.Generator().manual_seed(9_876_543 + seed)
    anchors_SMD = torch.stack([sample_anchors(m, d, s) for s in range(n_sets)])
    epsilon = temperature(m, d)
    scale = torch.arange(1, d + 1) ** -0.5 if kind == "decaying" else torch.ones(d)
    scale = scale / scale.norm() * d**0.5

    def normal(count: int) -> Tensor:
        z = torch.randn(count, d, generator=generator) * scale
        return z / z.norm(dim=1, keepdim=True) * d**0.5 if kind == "vmf" else z

    common = offset * normal(1)
    centres = normal(pool or n_labels * modes)
    chosen = torch.randint(pool, (n_labels, modes), generator=generator) if pool else None
    of_label = chosen if chosen is not None else torch.arange(n_labels * modes).view(n_labels, modes)

    def draw(label: int, groups: int, n: int) -> Tensor:
        count = groups * n
        part = 0.0 if unlike and label % 2 else shared
        noise = normal(count)
        if kind == "heavy":
            noise = noise / (torch.randn(count, 3, generator=generator) ** 2).mean(dim=1, keepdim=True).sqrt()
        which = of_label[label, torch.randint(modes, (count,), generator=generator)]
        h = common + part**0.5 * centres[which] + (1 - part) ** 0.5 * noise
        return log_assignments(h, anchors_SMD, epsilon).exp()

    return _world(name, draw, n_labels)


def _world(name: str, draw: Callable[[int, int, int], Tensor], n_labels: int, n_truth: int = 2000) -> World:
    entropies, means, own, rows = [], [], [], []
    for label in range(n_labels):
        q = draw(label, 1, n_truth).double()
        half = (entropy(q[: n_truth // 2].mean(dim=0)) + entropy(q[n_truth // 2 :].mean(dim=0))) / 2
        entropies.append(2 * entropy(q.mean(dim=0)) - half)  # the bias is ∝ 1/n here
        means.append(q.mean(dim=0))
        own.append(entropy(q).mean(dim=0))
        rows.append(q[: math.ceil(SAMPLE / n_labels)].float())
    return World(
        name=name, draw=draw, n_labels=n_labels, entropy_LS=torch.stack(entropies),
        sample_RSM=torch.cat(rows)[torch.randperm(sum(map(len, rows)))[:SAMPLE]],
        mean_SM=torch.stack(means).mean(dim=0), position_entropy_S=torch.stack(own).mean(dim=0),
    )  # fmt: skip


def simulations() -> Iterator[World]:
    yield simulated("independent d=576 m=100", 576, 100, 0.0)
    yield simulated("independent d=64 m=1000", 64, 1000, 0.0, n_labels=20)
    yield simulated("independent, heavy tails", 256, 100, 0.0, kind="heavy")
    yield simulated("independent, offset, decaying", 576, 100, 0.0, kind="decaying", offset=1.0)
    for d, m, shared in ((64, 100, 0.2), (128, 50, 0.4), (576, 100, 0.3), (576, 100, 0.7), (768, 200, 0.5),
                         (1024, 100, 0.5), (1024, 1000, 0.4), (576, 100, 0.95)):  # fmt: skip
        yield simulated(f"one mode d={d} m={m} rho={shared}", d, m, shared, n_labels=20 if m == 1000 else 40)
    yield simulated("vMF d=128 rho=0.5", 128, 100, 0.5, kind="vmf")
    yield simulated("decaying spectrum rho=0.5", 576, 100, 0.5, kind="decaying")
    yield simulated("decaying, offset rho=0.6", 768, 100, 0.6, kind="decaying", offset=0.7)
    yield simulated("heavy tails rho=0.5", 576, 100, 0.5, kind="heavy")
    yield simulated("heavy tails rho=0.8", 256, 200, 0.8, kind="heavy")
    yield simulated("2 modes rho=0.5", 576, 100, 0.5, modes=2)
    yield simulated("3 modes rho=0.8", 576, 100, 0.8, modes=3)
    yield simulated("4 modes rho=0.9", 576, 100, 0.9, modes=4)
    yield simulated("4 of 15 modes rho=0.8", 256, 100, 0.8, modes=4, pool=15)
    yield simulated("8 modes rho=0.9, offset", 576, 500, 0.9, modes=8, offset=0.7)
    yield simulated("labels unlike, rho=0.8 or 0", 576, 100, 0.8, unlike=True)


# --- real hidden states --------------------------------------------------------------------------------------------


def real_text(model: str, texts: str, n_tokens: int) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
    """Soft assignments [N, 2, 100] of some layers, and labels [N] of all n-gram sets of order 1 to 4."""
    source = resolve_model(model)
    config = RunConfig(model=model, data=texts, out="unused", max_length=512)
    corpus = read_corpus(config, load_tokenizer(source), progress=False)
    order = np.random.default_rng(0).permutation(np.flatnonzero(corpus.lengths > 16))
    documents = order[: int(np.searchsorted(corpus.lengths[order].cumsum(), n_tokens)) + 1]
    grams = ngram_ids(corpus.tokens, corpus.offsets, 4)
    q: dict[str, list[Tensor]] = defaultdict(list)
    labels: dict[str, list[np.ndarray]] = defaultdict(list)
    with load_checkpoint(source, device_map="cpu") as checkpoint, torch.no_grad():
        anchors = torch.stack([sample_anchors(100, checkpoint.model.config.hidden_size, s) for s in range(2)])
        epsilon = temperature(100, anchors.shape[2])
        for document in documents:
            tokens = torch.from_numpy(corpus.document(document).astype(np.int64))
            states = checkpoint.model(input_ids=tokens.unsqueeze(0), output_hidden_states=True).hidden_states
            for layer in LAYERS:
                q[f"layer {layer}"].append(log_assignments(states[layer][0, 3:-4].float(), anchors, epsilon).exp())
            at = corpus.offsets[document] + np.arange(3, len(tokens) - 4)
            for n in range(1, 5):
                labels[f"input {n}-gram"].append(grams[n - 1][at])
                labels[f"output {n}-gram"].append(grams[n - 1][at + n])
    return {k: torch.cat(v) for k, v in q.items()}, {k: np.concatenate(v) for k, v in labels.items()}


def thinned(q: dict[str, Tensor], labels: dict[str, np.ndarray], *, neighbours: bool) -> Iterator[World]:
    """Frequent n-grams as distributions; n occurrences drawn one by one, or n that follow each other in the text."""
    rng = np.random.default_rng(1)
    for layer, q_NSM in q.items():
        for name, at_least in FREQUENT.items():
            _, label_N, counts = np.unique(labels[name], return_inverse=True, return_counts=True)
            members = [np.flatnonzero(label_N == i) for i in np.flatnonzero(counts >= at_least)]

            def draw(label: int, groups: int, n: int, members=members, q_NSM=q_NSM) -> Tensor:
                rows = members[label]
                at = rng.integers(len(rows), size=(groups, 1 if neighbours else n))
                at = (at + np.arange(n)) % len(rows) if neighbours else at
                return q_NSM[torch.from_numpy(rows[at].reshape(-1))]

            means = torch.stack([q_NSM[rows].double().mean(dim=0) for rows in members])
            yield World(
                name=f"{layer}, {name}, {len(members)} labels{', neighbours' * neighbours}", draw=draw,
                n_labels=len(members), entropy_LS=entropy(means), mean_SM=q_NSM.double().mean(dim=0),
                sample_RSM=q_NSM[torch.from_numpy(rng.choice(len(q_NSM), min(SAMPLE, len(q_NSM)), replace=False))],
                position_entropy_S=entropy(q_NSM).double().mean(dim=0),
            )  # fmt: skip


def permutations(q: dict[str, Tensor], labels: dict[str, np.ndarray]) -> None:
    """The null beside labels that are really put in random order."""
    print("\nnull: difference from 3 permutations of the labels, at most over 2 anchor sets")
    rng = np.random.default_rng(2)
    worst = 0.0
    for layer, q_NSM in q.items():
        n = len(q_NSM)
        sample = q_NSM[torch.from_numpy(rng.choice(n, min(SAMPLE, n), replace=False))]
        curves = bias_curves(sample, q_NSM.double().sum(dim=0), entropy(q_NSM).double().mean(dim=0), n)
        line = []
        for ids in labels.values():
            _, label_N, counts = np.unique(ids, return_inverse=True, return_counts=True)
            counts_C = torch.from_numpy(counts)
            null = null_information(curves, counts_C, torch.ones_like(counts_C))
            found = []
            for _ in range(3):
                mass = torch.zeros(len(counts), *q_NSM.shape[1:], dtype=torch.float64)
                mass.index_add_(0, torch.from_numpy(rng.permutation(label_N)), q_NSM.double())
                found.append(entropy(q_NSM.double().mean(dim=0)) - (counts_C.double() / n) @ entropy(mass))
            error = ((null - torch.stack(found).mean(dim=0)) / math.log(q_NSM.shape[2])).abs().max().item()
            worst = max(worst, error)
            line.append(f"{error:.4f}")
        print(f"{layer:12s}", *line, flush=True)
    print(f"worst {worst:.4f} of", ", ".join(labels))


# --- the study -----------------------------------------------------------------------------------------------------


def errors(world: World, counts: tuple[int, ...]) -> dict[str, Tensor]:
    """Estimate − truth [S], in units of log m, of every estimator, where labels have these counts in equal number."""
    curves = bias_curves(world.sample_RSM, world.mean_SM, world.position_entropy_S, MANY)
    rows: list[list[Tensor]] = []
    for n in counts:
        groups = max(1, DRAWN // (world.n_labels * n))
        q = torch.stack([world.draw(label, groups, n) for label in range(world.n_labels)])  # [L, groups·n, S, M]
        means = q.double().unflatten(1, (groups, n)).mean(dim=2)
        n_drawn = world.n_labels * groups
        rows.append([torch.tensor(n), torch.tensor(n_drawn), n * entropy(means).sum(dim=(0, 1)),
                     entropy(q).double().sum(dim=(0, 1))])  # fmt: skip
    counts_C, labels_C, weighted, position = (torch.stack(column) for column in zip(*rows, strict=True))
    # Draws of several counts weigh as positions do; every label occurs in each count, so the truth is the same.
    sums = (counts_C, labels_C, weighted, position, entropy(world.mean_SM))
    scale = math.log(world.mean_SM.shape[1])
    return {name: (f(curves, *sums) - world.information) / scale for name, f in ESTIMATORS.items()}


def study(worlds: Iterator[World]) -> None:
    table: dict[tuple[str, str], list[float]] = defaultdict(list)
    for world in worlds:
        scale = math.log(world.mean_SM.shape[1])
        print(f"{world.name}: I = {world.information.mean().item() / scale:.3f}")
        for counts in (*((n,) for n in COUNTS), COUNTS):
            case = f"n={counts[0]}" if len(counts) == 1 else "mixed"
            found = errors(world, counts)
            print(f"    {case:6s}", "  ".join(f"{k} {v.mean().item():+.3f}" for k, v in found.items()), flush=True)
            for name, error in found.items():
                table[case, name].append(error.abs().mean().item())
    print(f"\nabsolute error, mean / most, over {len(table['mixed', 'raw'])} worlds")
    print("        " + "".join(f"{name:>15s}" for name in ESTIMATORS))
    for case in dict.fromkeys(case for case, _ in table):
        cells = (table[case, name] for name in ESTIMATORS)
        print(f"{case:8s}" + "".join(f"{np.mean(c):8.3f} /{max(c):.3f}" for c in cells))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="real model: hub id, folder or .gguf file, 30 layers or more")
    parser.add_argument("--texts", help="real text: what softh-probe run takes as --data")
    parser.add_argument("--tokens", type=int, default=30_000, help="tokens of real text")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    study(simulations())
    if arguments.model:
        assignments, ids = real_text(arguments.model, arguments.texts, arguments.tokens)
        study(thinned(assignments, ids, neighbours=False))
        study(thinned(assignments, ids, neighbours=True))
        permutations(assignments, ids)
