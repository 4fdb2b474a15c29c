"""The main findings of a sweep, in a few plain sentences: from its first checkpoint to its last."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from softh_probe.report.bit_words import LabelBits, bits, percent
from softh_probe.report.findings import ENTROPY_QUESTION, Finding, questions
from softh_probe.report.sweep_course import LayerMean, layer_means
from softh_probe.report.sweep_data import Sweep

#: Most findings, and most models that each tells of.
_MAX_FINDINGS, _MAX_MODELS = 4, 2
#: Entropy of the labels, H(X), which results of earlier versions do not have.
_LABEL_ENTROPY = "label_entropy"
#: Entropies of labels, in nats, that are told as one.
_SAME_LABELS = 0.005


@dataclass(frozen=True)
class _Asked:
    """A question: its metric and label set, what writes values as an answer, and what else there is to say."""

    key: str
    question: str
    write: Callable[[Sequence[float]], str]
    more: Callable[[Sequence[float]], str]


def sweep_findings(sweep: Sweep) -> list[Finding]:
    """Tell entropy and information at the first and the last checkpoint of each model, and their course between.

    Values are means over the layers that every checkpoint of a model measured.
    """
    models = list(dict.fromkeys(str(c["model"]) for c in sweep.done))
    ends: dict[str, dict[str, list[float]]] = {}
    for model in models:
        names = [c["checkpoint"] for c in sweep.done if str(c["model"]) == model]
        for mean in layer_means(sweep.table, names):
            if known := _ends(mean):
                ends.setdefault(f"{mean.name[1]}|{mean.name[0]}", {})[model] = known
    asked = [one for one in _questions(sweep) if one.key in ends][:_MAX_FINDINGS]
    return [_finding(sweep, one, ends[one.key]) for one in asked]


def _questions(sweep: Sweep) -> Iterator[_Asked]:
    def anchors(shares: Sequence[float]) -> str:
        used = ", then ".join(f"{sweep.n_anchors**share:.0f}" for share in shares)
        return f"As many as {used} of {sweep.n_anchors} anchors, evenly used."

    yield _Asked("entropy|", ENTROPY_QUESTION, _percents, anchors)
    for name, question in questions(sweep.label_sets).items():
        yield _Asked(f"mutual_information|{name}", question, _bits(sweep, name), _chance(sweep, name))


def _ends(mean: LayerMean) -> list[float]:
    """Give the values of the first and the last checkpoint that have one; a single one where there are no two."""
    known = mean.value_C[np.isfinite(mean.value_C)].tolist()
    return known if len(known) < 2 else [known[0], known[-1]]


def _finding(sweep: Sweep, asked: _Asked, ends_of: dict[str, list[float]]) -> Finding:
    said = sweep.courses.get(asked.key, [])
    left = len(said) - _MAX_MODELS
    sentences = [*said[:_MAX_MODELS], *([f"{left} more models are below."] if left > 0 else [])]
    if len(ends_of) == 1:
        (ends,) = ends_of.values()
        return Finding(
            asked.question,
            asked.write(ends),
            " ".join([*(said or ["The mean over layers."]), asked.more(ends)]).strip(),
        )
    last = [ends[-1] for ends in ends_of.values()]
    answer = (
        "\n".join(f"{Path(model).name}: {asked.write(ends)}" for model, ends in ends_of.items())
        if len(ends_of) <= _MAX_MODELS
        else asked.write([min(last), max(last)]).replace("→", "to")
    )
    return Finding(asked.question, answer, " ".join(sentences))


def _percents(shares: Sequence[float]) -> str:
    """Write shares of log m in percent: whole, or with a digit more where they would look alike.

    >>> _percents([0.92, 0.84]), _percents([0.961, 0.963])
    ('92% → 84%', '96.1% → 96.3%')
    """
    digits = 0 if len({f"{100 * share:.0f}" for share in shares}) == len(shares) else 1
    return " → ".join(f"{100 * share:.{digits}f}%" for share in shares)


def _bits(sweep: Sweep, name: str) -> Callable[[Sequence[float]], str]:
    """Make what writes information about a label set in bits, of those that its labels hold where that is known."""
    log_m, table = math.log(sweep.n_anchors), sweep.table
    held = table.value[(table.metric == _LABEL_ENTROPY) & (table.label_set == name)].dropna() * log_m
    # Checkpoints that read other tokens have other labels; no one number tells of these.
    is_one = len(held) and held.max() - held.min() < _SAME_LABELS
    labels = LabelBits(float(held.mean()) if is_one else math.nan)

    def write(shares: Sequence[float]) -> str:
        *before, last = (share * log_m for share in shares)
        return " → ".join([*(bits(nats) for nats in before), labels.of(last)])

    return write


def _chance(sweep: Sweep, name: str) -> Callable[[Sequence[float]], str]:
    """Make what says how much of the information of the last checkpoint chance explains, in a typical layer."""
    own = sweep.table[(sweep.table.checkpoint == sweep.done[-1]["checkpoint"]) & (sweep.table.label_set == name)]
    raw, null = (
        own[own.metric == metric].set_index("name").value
        for metric in ("mutual_information", "mutual_information_null")
    )
    share, typical = (null / raw[raw > 0]).median(), bits(null[raw > 0].median() * math.log(sweep.n_anchors))
    said = f"At the end about {typical} bits of it ({percent(min(share, 1.0))}) in a typical layer would come by chance"
    return lambda _: f"{said} alone." if np.isfinite(share) else ""
