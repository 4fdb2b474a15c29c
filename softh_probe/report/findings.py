"""The main findings of a result, in a few plain sentences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from softh_probe.labels import COLUMN_PREFIX, NGRAM_SETS, ORDERS
from softh_probe.report.document_chance import document_chance
from softh_probe.report.page_data import values_by_key
from softh_probe.result import ProbeResult


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        question: the question that it answers.
        answer: a few words or a number.
        text: one sentence. Percentages are of log m, the maximum, unless it names another base.
    """

    question: str
    answer: str
    text: str


def findings(result: ProbeResult) -> list[Finding]:
    """Summarise entropy, information about past and future tokens or labels, and the share due to chance."""
    means = {key: np.asarray(v.mean(dim=1)) for key, v in values_by_key(result).items()}
    layers, entropy = result.rows, means["entropy|"]
    low, high = int(np.nanargmin(entropy)), int(np.nanargmax(entropy))
    found = [
        Finding(
            "How spread out are the hidden states?",
            f"{_percent(entropy[0])} → {_percent(entropy[-1])}",
            f"Entropy from {layers[0]} to {layers[-1]}: most in {layers[high]} ({_percent(entropy[high])}), least in "
            f"{layers[low]} ({_percent(entropy[low])}).",
        )
    ]
    order = next((o for o in ORDERS if {f"input_{o}", f"output_{o}"} & set(result.label_sets)), None)
    for direction, question, tokens in (
        (
            "input",
            "What do layers keep of what was read?",
            "token just read" if order == "unigram" else f"last {order}",
        ),
        ("output", "What do layers say of what comes?", "next token" if order == "unigram" else f"next {order}"),
    ):
        name = f"{direction}_{order}"
        if name in result.label_sets:
            found.append(_information(result, means, name, question, tokens))
    for name in result.label_sets:
        if name not in NGRAM_SETS and len(found) < 4:
            column = name.removeprefix(COLUMN_PREFIX)
            found.append(_information(result, means, name, f"What do layers say of {column}?", column))
    return found


def _information(result: ProbeResult, means: dict[str, np.ndarray], name: str, question: str, of_what: str) -> Finding:
    """Summarise a layer-by-layer mutual information, and the share of it that chance explains."""
    raw, null = means[f"mutual_information|{name}"], means[f"mutual_information_null|{name}"]
    if not np.isfinite(raw).any() and name in result.sampled_sets:
        return Finding(question, "not known", f"Too few labels of {name} were followed; raise --label-rows.")
    if not np.isfinite(raw).any():
        return Finding(question, "nothing", f"No position has a label of {name}.")
    best = int(np.nanargmax(raw))
    ends = f"{_percent(raw[0])} → {_percent(raw[-1])}"
    if of_documents := document_chance(result, name):
        return Finding(
            question,
            ends if of_documents.n_beyond else "no more than chance",
            f"Information about the {of_what}, from {result.rows[0]} to {result.rows[-1]}: most in "
            f"{result.rows[best]}, {of_documents.describe(best)}; {of_documents.describe_layers()}.",
        )
    shares = (null / np.where(raw > 0, raw, np.nan))[raw > 0]
    share = np.median(shares) if len(shares) else 1.0
    chance = f"; in a typical layer about {_percent(min(share, 1.0))} of it would come by chance alone"
    known = np.isfinite(share)  # results of early versions have no null
    return Finding(
        question,
        ends,
        f"Information about the {of_what}, from {result.rows[0]} to {result.rows[-1]}: most in {result.rows[best]} "
        f"({_percent(raw[best])}){chance if known else ''}.",
    )


def _percent(share: float) -> str:
    """Write a share in percent: whole, and below 1% with one digit that counts.

    >>> _percent(0.427), _percent(0.0043), _percent(0.0)
    ('43%', '0.4%', '0%')
    """
    if not np.isfinite(share):
        return "–"
    return f"{100 * share:.0f}%" if share > 0.0095 or share <= 0 else f"{100 * share:.1g}%"
