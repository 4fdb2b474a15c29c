"""The main findings of a result, in a few plain sentences."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np

from softh_probe.analysis.layers import Extreme, extreme
from softh_probe.analysis.sites import lead_site, of_site
from softh_probe.labels import COLUMN_PREFIX, DIRECTIONS, NGRAM_SETS, ORDERS
from softh_probe.report.bit_words import anchors, bits, label_bits, percent
from softh_probe.report.document_chance import document_chance
from softh_probe.report.extreme_words import named
from softh_probe.report.page_data import values_by_key
from softh_probe.report.position_words import position_line
from softh_probe.report.share_words import share_words
from softh_probe.result import ProbeResult

ENTROPY_QUESTION = "How spread out are the hidden states?"


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        question: the question that it answers.
        answer: a few words or a number.
        text: one sentence. Information is in bits, of H(X) and in percent of it; entropy in percent of log m.
    """

    question: str
    answer: str
    text: str


def questions(label_sets: Collection[str]) -> dict[str, str]:
    """Ask what layers know of each label set that findings tell of: n-grams of the lowest order, then all others.

    >>> questions(["input_bigram", "column:language", "input_quadgram"])
    {'input_bigram': 'What do layers keep of what was read?', 'column:language': 'What do layers say of language?'}
    """
    order = next((o for o in ORDERS if {f"input_{o}", f"output_{o}"} & {*label_sets}), None)
    asked = {
        f"input_{order}": "What do layers keep of what was read?",
        f"output_{order}": "What do layers say of what comes?",
    }
    others = (name for name in label_sets if name not in NGRAM_SETS)
    asked = {name: question for name, question in asked.items() if name in label_sets}
    return asked | {name: f"What do layers say of {name.removeprefix(COLUMN_PREFIX)}?" for name in others}


def findings(result: ProbeResult) -> list[Finding]:
    """Summarise entropy, information about past and future tokens or labels, and the share due to chance.

    Of several sites, these are of one, and a last finding tells where information is the most.
    """
    lead = of_site(result, lead_site(result))
    return [*_of_one(lead), *_of_sites(result)]


def _of_sites(result: ProbeResult) -> list[Finding]:
    """Name the row with the most in each site, heads among them."""
    if len(result.sites) < 2:
        return []
    name = next(iter(result.label_sets), "")
    metric, what = ("mutual_information", f"information about {name}") if name else ("entropy", "entropy")
    found = extreme(result, name, metric)
    if found is None:
        return []
    say = _in_bits(result, name) if name else percent
    texts = []
    for site in result.sites:
        own = of_site(result, site)
        highest = extreme(own, name, metric)
        if highest is not None:
            value_R = np.asarray(values_by_key(own)[f"{metric}|{name}"].mean(dim=1))
            texts.append(f"{site.replace('_', ' ')}: {_named(own, highest, value_R, say)}")
    site_of = dict(zip(result.rows, result.places.sites, strict=True))
    first = site_of[result.rows[found.row]]
    alike = [site for site in dict.fromkeys(site_of[row] for row, _, _ in found.alike) if site != first]
    value = say(float(values_by_key(result)[f"{metric}|{name}"].mean(dim=1)[found.row]))
    where = " or ".join(site.replace("_", " ") for site in (first, *alike))
    text = (
        f"{what[0].upper()}{what[1:]} by site: {'; '.join(texts)}{_unmeasured(found)}. Widths differ from site to site."
    )
    return [Finding(f"Which site holds the most {what}?", f"{where}, {value}", text)]


def _of_one(result: ProbeResult) -> list[Finding]:
    means = {key: np.asarray(v.mean(dim=1)) for key, v in values_by_key(result).items()}
    layers, entropy = result.rows, means["entropy|"]
    most, least = (extreme(result, "", "entropy", lowest=lowest) for lowest in (False, True))
    m = result.n_anchors

    def as_many(share: float) -> str:
        return f"{percent(share)}: as many as {anchors(share, m)} of {m} anchors, evenly used"

    def likewise(share: float) -> str:
        return f"{percent(share)}: as many as {anchors(share, m)}"

    found = [
        Finding(
            ENTROPY_QUESTION,
            f"{percent(entropy[0])} → {percent(entropy[-1])}",
            f"Entropy from {layers[0]} to {layers[-1]}: {_named(result, most, entropy, as_many)}; "
            f"{_named(result, least, entropy, likewise, lowest=True)}{_unmeasured(most)}.",
        )
    ]
    asked = questions(result.label_sets)
    found += [_information(result, means, name, asked[name], _tokens_of(name)) for name in asked if name in NGRAM_SETS]
    found += [*_context(result), *_positions(result)]
    for name, question in asked.items():
        if name not in NGRAM_SETS and len(found) < 4:
            found.append(_information(result, means, name, question, name.removeprefix(COLUMN_PREFIX)))
    return found


def _tokens_of(name: str) -> str:
    """Name the tokens that are the labels of a set of n-grams."""
    direction, order = name.split("_")
    if order == "unigram":
        return "token just read" if direction == "input" else "next token"
    return f"{'last' if direction == 'input' else 'next'} {order}"


def _context(result: ProbeResult) -> list[Finding]:
    """Say which share of the ceiling each order of n-grams adds, where several orders were measured."""
    said = [(direction, share_words(result, direction)) for direction in DIRECTIONS]
    known = [(direction, words) for direction, words in said if words is not None]
    if not known:
        return []
    texts = [f"{direction}, {words.where}: {words.shares}" for direction, words in known]
    return [
        Finding(
            "How much do longer contexts add?",
            "; ".join(f"{direction} {words.added}" for direction, words in known),
            f"Shares of the ceiling, where those of longer n-grams are highest: {'; '.join(texts)}.",
        )
    ]


def _positions(result: ProbeResult) -> list[Finding]:
    """Say how information changes with the position, where bins of positions were measured."""
    line = position_line(result)
    if line is None:
        return []
    _, _, text = line.partition(": ")
    return [Finding("Does it grow with the position?", f"{len(result.bins) - 1} bins", f"{text[0].upper()}{text[1:]}.")]


def _information(result: ProbeResult, means: dict[str, np.ndarray], name: str, question: str, of_what: str) -> Finding:
    """Summarise a layer-by-layer mutual information, and the share of it that chance explains."""
    raw, null = means[f"mutual_information|{name}"], means[f"mutual_information_null|{name}"]
    if not np.isfinite(raw).any() and name in result.sampled_sets:
        return Finding(question, "not known", f"Too few labels of {name} were followed; raise --label-rows.")
    if not np.isfinite(raw).any():
        return Finding(question, "nothing", f"No position has a label of {name}.")
    log_m, known = math.log(result.n_anchors), label_bits(result, name)
    ends = f"{bits(raw[0] * log_m)} → {known.of(raw[-1] * log_m)}"
    most = extreme(result, name, "mutual_information")
    highest, unmeasured = _named(result, most, raw, _in_bits(result, name)), _unmeasured(most)
    if of_documents := document_chance(result, name):
        return Finding(
            question,
            ends if of_documents.n_beyond else "no more than chance",
            f"Information about the {of_what}, from {result.rows[0]} to {result.rows[-1]}: {highest}{unmeasured}. In "
            f"{result.rows[of_documents.most]}: {of_documents.describe(of_documents.most)}; "
            f"{of_documents.describe_layers()}.",
        )
    chance = _chance(raw * log_m, null * log_m)
    return Finding(
        question,
        ends,
        f"Information about the {of_what}, from {result.rows[0]} to {result.rows[-1]}: {highest}{unmeasured}{chance}.",
    )


def _chance(raw_R: np.ndarray, null_R: np.ndarray) -> str:
    """Say how much of some information would come by chance in a typical layer; both are in nats."""
    some = raw_R > 0
    typical = float(np.median(null_R[some] if some.any() else null_R))
    if not np.isfinite(typical):
        return ""  # results of early versions have no null
    share = percent(min(float(np.median(null_R[some] / raw_R[some])), 1.0)) if some.any() else "all"
    return f"; in a typical layer about {bits(typical)} bits ({share} of it) would come by chance alone"


def _in_bits(result: ProbeResult, name: str) -> Callable[[float], str]:
    """Give a function that says an information in units of log m in bits, of those of the labels."""
    log_m, known = math.log(result.n_anchors), label_bits(result, name)
    return lambda share: known.of_and_share(share * log_m)


def _named(
    result: ProbeResult,
    found: Extreme | None,
    value_R: np.ndarray,
    say: Callable[[float], str],
    *,
    lowest: bool = False,
) -> str:
    """Name the layer with the most or the least, and those that noise cannot tell from it."""
    if found is None:
        return "no value"
    return named(result.rows, found, lambda row: say(float(value_R[row])), lowest=lowest)


def _unmeasured(found: Extreme | None) -> str:
    """Say which noise layers were not compared by."""
    if found is None or found.noise == "documents":
        return ""
    return f"; {'' if found.is_measured else 'one anchor set: spread unknown, '}noise over documents was not measured"
