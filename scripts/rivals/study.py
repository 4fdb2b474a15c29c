"""What every estimator is asked: data whose information is known, or known to lie between two bounds.

A case is one data set. All estimators get the same states and labels of it, each in a process of its own, and a table
has a row for every estimate, failed ones too.

Shape suffixes: N positions, D width of a hidden state.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from rivals.lineup import Rival
from rivals.measuring import Measured, measure, save
from rivals.ours import SoftEntropy, soft_sums
from rivals.real_states import RealStates, flip, flipped_bounds, held_out
from rivals.truths import clusters, independent, noisy_channel
from softh_probe.estimators.anchors import Anchors
from softh_probe.estimators.soft_entropy import entropy

#: Width of what tables show where nothing else is said.
DIM = 576
#: Separation of clusters whose information is told for every width, size and setting: 0.6 of log k.
SEPARATION = 2.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is measured.

    Attributes:
        k: labels of synthetic data.
        n: positions of what tables show where nothing else is said.
        dims: widths, from small to large.
        flips: probabilities of a changed label, in units of the one that leaves nothing, (k − 1)/k.
        separations: concentrations κ of clusters, in units of √d: their information hardly depends on d then.
        sizes: numbers of positions at DIM, n among them.
        largest: positions and width of one more case.
        factors: what each estimator's knob is multiplied by.
        depths: of the model's layers, from 0, the first, to 1, the last.
        texts: in several languages, at most.
        documents: of the corpus with parts of speech.
        seed: of all data.
    """

    k: int = 8
    n: int = 4096
    dims: tuple[int, ...] = (64, DIM, 4096)
    flips: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    separations: tuple[float, ...] = (0.5, 1.0, 1.5, SEPARATION, 3.0, 4.0)
    sizes: tuple[int, ...] = (1024, 4096, 16_384, 65_536)
    largest: tuple[int, int] = (16_384, 4096)
    factors: tuple[float, ...] = (0.5, 1.0, 2.0)
    depths: tuple[float, ...] = (0.0, 0.5, 1.0)
    texts: int = 256
    documents: int = 60
    seed: int = 0


#: Gives states [N, D], float32, and labels [N].
Draw = Callable[[], tuple[np.ndarray, np.ndarray]]

#: For trying out.
QUICK = Plan(
    n=1024,
    dims=(64, DIM),
    flips=(0.0, 0.5, 1.0),
    separations=(0.5, 1.0, SEPARATION),
    sizes=(1024, 2048),
    largest=(2048, 1024),
    depths=(1.0,),
    texts=40,
    documents=8,
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A data set that every estimator gets.

    Attributes:
        part: channel, clusters, independent, languages or tags.
        layer: of a model; empty for synthetic states.
        dim: width D.
        n: positions.
        x: what the part varies: the probability of a changed label, or the separation κ/√d.
        low: bound of I(X;Z) from below, in nats.
        high: from above; of synthetic data both are the truth.
        draw: gives states [N, D], float32, and labels [N].
        factors: what knobs are multiplied by.
    """

    part: str
    layer: str = ""
    dim: int
    n: int
    x: float
    low: float
    high: float
    draw: Draw
    factors: tuple[float, ...] = (1.0,)

    def jobs(self, rivals: Sequence[Rival]) -> list[tuple[Rival, float]]:
        """List whom to ask with which knob."""
        return [(rival, factor) for rival in rivals for factor in self.factors if factor == 1 or rival.knob]

    def work(self, rivals: Sequence[Rival]) -> float:
        """Guess how long it takes, in seconds, for the time that is left."""
        return len(self.jobs(rivals)) * (0.3 + self.n * self.dim / 6e6)


#: Columns that are the case's.
CASE_COLUMNS = [one.name for one in fields(Case) if one.name not in ("draw", "factors")]


def synthetic_cases(plan: Plan) -> Iterator[Case]:
    """List the cases with a known truth."""
    seeds = iter(range(plan.seed, plan.seed + 10_000))
    for dim in plan.dims:
        for flips in plan.flips if dim == DIM else plan.flips[::2]:
            p = flips * (plan.k - 1) / plan.k
            truth = noisy_channel(plan.k, dim, p)
            draw = partial(truth.draw, plan.n, next(seeds))
            yield _known("channel", dim, plan.n, p, truth.information, draw)
    shapes = [(plan.n, DIM, separation) for separation in plan.separations]
    shapes += [(plan.n, dim, SEPARATION) for dim in plan.dims if dim != DIM]
    shapes += [(n, DIM, SEPARATION) for n in plan.sizes if n != plan.n] + [(*plan.largest, SEPARATION)]
    for n, dim, separation in shapes:
        truth = clusters(plan.k, dim, separation * math.sqrt(dim))
        draw = partial(truth.draw, n, next(seeds))
        varied = plan.factors if (n, dim, separation) == (plan.n, DIM, SEPARATION) else (1.0,)
        yield _known("clusters", dim, n, separation, truth.information, draw, varied)
    for n, dim in [*((n, DIM) for n in plan.sizes[:-1]), *((plan.n, dim) for dim in plan.dims if dim != DIM)]:
        truth = independent(clusters(plan.k, dim, SEPARATION * math.sqrt(dim)), plan.k)
        yield _known("independent", dim, n, SEPARATION, 0.0, partial(truth.draw, n, next(seeds)))


def _known(
    part: str, dim: int, n: int, x: float, truth: float, draw: Draw, factors: tuple[float, ...] = (1.0,)
) -> Case:
    exact = max(0.0, round(truth, 12))  # rounding leaves 1e-16 at p = (k − 1)/k
    return Case(part=part, dim=dim, n=n, x=x, low=exact, high=exact, draw=draw, factors=factors)


def language_cases(read: RealStates, plan: Plan) -> Iterator[Case]:
    """List the cases of states of texts in several languages, whose labels are changed with probability p."""
    k = len(read.label_names)
    for layer, states_ND in read.states.items():
        accuracy = held_out(states_ND, read.labels_N, read.document_N, plan.seed).accuracy
        for i, flips in enumerate(plan.flips):
            p = flips * (k - 1) / k
            low, high = flipped_bounds(read.labels_N, k, p, accuracy)
            yield _real_case("languages", read, layer, p, low, high, plan.seed + i)


def tag_cases(read: RealStates, plan: Plan) -> Iterator[Case]:
    """List the cases of states of words with their parts of speech; in the layer that knows most they are changed."""
    k = len(read.label_names)
    probes = {
        layer: held_out(states_ND, read.labels_N, read.document_N, plan.seed)
        for layer, states_ND in read.states.items()
    }
    best = max(probes, key=lambda layer: probes[layer].bounds()[0])
    for layer, probe in probes.items():
        for i, flips in enumerate(plan.flips if layer == best else plan.flips[:1]):
            p = flips * (k - 1) / k
            yield _real_case("tags", read, layer, p, *probe.bounds(p), plan.seed + i)


def _real_case(part: str, read: RealStates, layer: str, p: float, low: float, high: float, seed: int) -> Case:
    states_ND = read.states[layer]

    def draw() -> tuple[np.ndarray, np.ndarray]:
        return states_ND, flip(read.labels_N, len(read.label_names), p, seed)

    n, dim = states_ND.shape
    high = max(0.0, round(high, 12))
    return Case(part=part, layer=layer, dim=dim, n=n, x=p, low=min(low, high), high=high, draw=draw)


def ask_all(
    cases: Sequence[Case],
    rivals: Sequence[Rival],
    *,
    workers: int = 2,
    ask: Callable[..., Measured] = measure,
    progress: bool = True,
) -> pd.DataFrame:
    """Give all cases to all estimators, `workers` cases at a time.

    Returns:
        A row for each estimate: the case's columns, ceiling (the most that soft entropy can be of these states),
        estimator, knob (its value), factor, then those of `Measured`.
    """
    cases = sorted(cases, key=lambda case: -case.n * case.dim)  # no worker waits for a large one at the end
    total = sum(case.work(rivals) for case in cases)
    with (
        tqdm(
            total=total,
            disable=not progress,
            smoothing=0,
            mininterval=1,
            bar_format="{l_bar}{bar}| {elapsed}, about {remaining} left",
        ) as bar,
        ThreadPoolExecutor(workers) as pool,
    ):
        run = partial(_ask, rivals=rivals, ask=ask, bar=bar)
        rows = [row for found in pool.map(run, cases) for row in found]
    return pd.DataFrame(rows)


def _ask(case: Case, *, rivals: Sequence[Rival], ask: Callable[..., Measured], bar: tqdm) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    of_case = {name: getattr(case, name) for name in CASE_COLUMNS}
    jobs = case.jobs(rivals)
    with tempfile.TemporaryDirectory() as scratch:
        states_ND, labels_N = case.draw()
        save(states_ND, labels_N, Path(scratch))
        of_case["ceiling"] = soft_ceiling(states_ND)
        del states_ND
        for rival, factor in jobs:
            estimator = rival.turned(factor) if factor != 1 else rival.estimator
            knob = getattr(estimator, rival.knob) if rival.knob else math.nan
            found = ask(estimator, Path(scratch))
            rows.append({**of_case, "estimator": rival.name, "knob": knob, "factor": factor, **asdict(found)})
            bar.update(case.work(rivals) / len(jobs))
    return rows


def soft_ceiling(states_ND: np.ndarray, seed: int = 0) -> float:
    """Compute mutual_information_max of soft entropy: H(Z) − mean H(q), in nats, a mean over anchor sets."""
    ours = SoftEntropy(seed=seed)
    anchors = Anchors.sample(n_anchors=ours.anchors, dim=states_ND.shape[1], n_sets=ours.anchor_sets, seed=seed)
    sums = soft_sums(states_ND, np.zeros(len(states_ND), dtype=np.int64), anchors, seed)
    return float((entropy(sums.mass_LSM[0]) - sums.own_LS[0] / len(states_ND)).mean())
