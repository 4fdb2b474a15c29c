"""Words and numbers of what was measured: the table's cells, the claims, and where soft entropy loses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from rivals.study import DIM, SEPARATION, Plan
from rivals.study_statistics import Agreement, Told, headline

#: Rows that the README has no room for; the page has them.
PAGE_ALONE = ("bins of first dimensions", "matrix-based Rényi, linear kernel", "soft entropy, corrected")
OURS = "soft entropy"


@dataclass(frozen=True)
class Study:
    """All that the page tells.

    Attributes:
        table: every estimate.
        told: of each estimator.
        plan: what was measured.
        model: its name.
        languages: names of the labels.
        seconds: that all of it took.
        missing: what could not be measured at all, with the reason.
        n_anchors: of soft entropy.
    """

    table: pd.DataFrame
    told: Sequence[Told]
    plan: Plan
    model: str
    languages: Sequence[str]
    seconds: float
    missing: Sequence[str] = ()
    n_anchors: int = 100

    @property
    def truth(self) -> float:
        """That of the clusters which widths, sizes and settings are compared by, in nats."""
        rows = self.table[(self.table.part == "clusters") & (self.table.x == SEPARATION) & (self.table.dim == DIM)]
        return float(rows.high.iloc[0])

    @property
    def ceiling(self) -> float:
        """The most that soft entropy can be of these clusters, in nats."""
        rows = self.table.query("part == 'clusters' and x == @SEPARATION and dim == @DIM and n == @self.plan.n")
        return float(rows.ceiling.iloc[0])


def columns(study: Study) -> list[str]:
    """Name the columns of the page's table, after that of the estimator."""
    plan = study.plan
    sizes = " / ".join(f"{n:,}" for n in plan.sizes)
    found = [
        "at I = 0: largest",
        "channel: ρ, R², slope",
        "clusters: ρ, R², slope",
        f"languages, {headline(study.table, 'languages') or 'none'}: ρ, R², slope",
        f"parts of speech, {headline(study.table, 'tags') or 'none'}: ρ, R², slope",
        f"d = {' / '.join(f'{dim:,}' for dim in plan.dims)}",
        f"n = {sizes}",
        "setting × ½ / 1 / 2",
        f"seconds, {size_words(study, small=True)}",
        f"seconds, {size_words(study)}",
        f"MiB, {size_words(study, small=True)}",
        f"MiB, {size_words(study)}",
        "passes",
        f"numbers fitted, d = {DIM}",
        "positions",
        "chosen",
    ]
    return found


def cells(one: Told, study: Study) -> list[str]:
    """Write the cells of one estimator."""
    most = one.rival.estimator.most_positions
    knob = f"{one.rival.knob}: {listed(one.by_knob)}" if one.rival.knob else "none"
    return [
        number(one.zero),
        *(agreed(one_of) for one_of in (one.channel, one.clusters, one.languages, one.tags)),
        listed(one.by_dim),
        listed(one.by_size),
        knob,
        seconds(one.small[0]),
        seconds(one.large[0]),
        mib(one.small[1]),
        mib(one.large[1]),
        str(one.rival.estimator.passes),
        f"{one.rival.fitted(DIM, study.plan.k):,}",
        f"sample of {most:,}" if most else "all",
        ", ".join(
            f"{name} {value}" for name, value in one.rival.estimator.chosen.items() if not isinstance(value, bool)
        ),
    ]


def readme_table(study: Study) -> str:
    """Write the README's table in Markdown: ten lines.

    The columns are those a reader compares first; the page has all.
    """
    heads = [
        "estimator",
        "I = 0",
        "ρ, slope: channel",
        "clusters",
        "languages",
        f"d = {' / '.join(f'{dim:,}' for dim in study.plan.dims)}",
        f"n = {' / '.join(short_size(n) for n in study.plan.sizes)}",
        "s, MiB",
        "passes",
        "fitted",
    ]
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---|" * (len(heads) - 1)]
    for one in study.told:
        if one.rival.name in PAGE_ALONE:
            continue
        most = one.rival.estimator.most_positions
        of = [
            one.rival.name + (f" (of {most:,})" if most else ""),
            number(one.zero),
            *(f"{number(a.spearman)}, {number(a.slope)}" for a in (one.channel, one.clusters, one.languages)),
            listed(one.by_dim),
            listed(one.by_size),
            f"{seconds(one.large[0])}, {mib(one.large[1])}",
            str(one.rival.estimator.passes),
            f"{one.rival.fitted(DIM, study.plan.k):,}",
        ]
        lines.append(f"| {' | '.join(of)} |")
    return "\n".join(lines) + "\n"


def claims(study: Study) -> list[dict[str, str]]:
    """Set the claims of the post beside what was measured."""
    ours = next(one for one in study.told if one.rival.name == OURS)
    others = [one for one in study.told if not one.rival.name.startswith(OURS)]
    passes = [one.rival.estimator.passes for one in others]
    fitted = {one.rival.name: one.rival.fitted(DIM, study.plan.k) for one in others}
    heaviest = max(fitted, key=lambda name: fitted[name])
    chosen = " and ".join(f"{value} {name.replace('_', ' ')}" for name, value in settings(ours).items())
    slower = [one for one in others if one.large[0] > ours.large[0]]
    sampled = sum(one.rival.estimator.most_positions is not None for one in others)
    alike = ", ".join(name for name, count in fitted.items() if count == 0) or "none"
    return [
        {
            "question": "One pass?",
            "answer": "yes" if ours.rival.estimator.passes == 1 else "no",
            "text": f"{ours.rival.estimator.passes} over the states; the others make {min(passes)} to {max(passes)}.",
        },
        {
            "question": "No fitting?",
            "answer": "yes" if ours.rival.fitted(DIM, study.plan.k) == 0 else "no",
            "text": f"No number is learnt from states; {heaviest} learns {fitted[heaviest]:,} at d = {DIM}. Nor do "
            f"these learn any: {alike}. Still chosen: {chosen}.",
        },
        {
            "question": "Any size?",
            "answer": f"{seconds(ours.small[0])} to {seconds(ours.large[0])} s",
            "text": f"from {size_words(study, small=True)} to {size_words(study)}, and {mib(ours.small[1])} to "
            f"{mib(ours.large[1])} MiB beside the states. {len(slower)} of {len(others)} others take longer there; "
            f"{sampled} take a sample.",
        },
        {
            "question": "The right value?",
            "answer": "no",
            "text": f"A nat of true information is {number(ours.channel.slope)} nats (channel) or "
            f"{number(ours.clusters.slope)} (clusters), by a straight line. Ranks: ρ = {number(ours.channel.spearman)} "
            f"and {number(ours.clusters.spearman)}.",
        },
    ]


def settings(one: Told) -> dict[str, object]:
    """Give the settings that have to be chosen, without those that say which variant it is."""
    return {name: value for name, value in one.rival.estimator.chosen.items() if not isinstance(value, bool)}


def reading(study: Study) -> list[str]:
    """Say how to read the table."""
    return [
        "Values are in nats. ρ is Spearman's rank correlation of estimate and truth, R² and slope are those of a "
        "straight line: a right estimator has 1, 1, 1. Over widths d, positions n and settings the truth is "
        f"{study.truth:.2f} nats. “At I = 0” is the largest absolute estimate of independent labels, over all d and n.",
        "Soft entropy is what an anchor, drawn by a position's soft assignment, tells of the label. But for the bias "
        "of small counts it is at most the true information, as the anchor depends on the label through the state "
        "alone, and at most mutual_information_max, H(Z) minus the mean entropy of a position's own assignment: "
        f"{study.ceiling:.2f} nats of these clusters, where log m is {math.log(study.n_anchors):.2f} and H(X) "
        f"{math.log(study.plan.k):.2f}. It is far below both where labels lie in few of many directions. So absolute "
        "values say little of how much a layer knows: compare them with each other and with their maximum, at the same "
        "anchors and width, and not with H(X).",
    ]


def layer_words(study: Study) -> str:
    """Set soft entropy of the model's layers beside the bounds of the truth, and beside its ceiling."""
    ours = next(one for one in study.told if one.rival.name == OURS)
    found = []
    for part, words, values in (
        ("languages", "Languages", ours.of_layers),
        ("tags", "Parts of speech", ours.tag_values),
    ):
        rows = study.table[(study.table.part == part) & (study.table.x == 0) & (study.table.estimator == OURS)]
        if rows.empty:
            continue
        low, high, ceiling = (listed([*rows[name]]) for name in ("low", "high", "ceiling"))
        found.append(
            f"{words}, {' / '.join(rows.layer)}: soft entropy {listed(values)}, the truth at least {low} and at most "
            f"{high}, mutual_information_max {ceiling}."
        )
    return f"{' '.join(found)} Between layers, geometry moves soft entropy as well as what they know."


def losses(told: Sequence[Told]) -> list[str]:
    """List who does better than soft entropy, as it was published, by each measure of the table."""
    measures: dict[str, Callable[[Told], float]] = {
        "nearer 0 for independent labels": lambda one: one.zero,
        "a slope nearer 1, noisy channel": lambda one: abs(one.channel.slope - 1),
        "a slope nearer 1, clusters": lambda one: abs(one.clusters.slope - 1),
        "a slope nearer 1, languages": lambda one: abs(one.languages.slope - 1),
        "a slope nearer 1, parts of speech": lambda one: abs(one.tags.slope - 1),
        "a higher ρ, clusters": lambda one: -one.clusters.spearman,
        "a higher ρ, languages": lambda one: -one.languages.spearman,
        "a straighter line (R²), clusters": lambda one: -one.clusters.r2,
        "moves less with d, as a share of its mean": lambda one: spread(one.by_dim),
        "moves less with n, as a share of its mean": lambda one: spread(one.by_size),
        "moves less with its setting, as a share of its mean": lambda one: spread(one.by_knob),
        "less time, the largest case": lambda one: one.large[0],
        "less memory, the largest case": lambda one: one.large[1],
    }
    ours = next(one for one in told if one.rival.name == OURS)
    found = []
    for words, measured in measures.items():
        better = [one.rival.name for one in told if measured(one) < measured(ours)]
        found.append(f"{words}: {'; '.join(better) or 'none'}")
    return found


def spread(values: Sequence[float]) -> float:
    """Compute the range of values over the size of their mean; NaN where one is missing.

    >>> spread([1.0, 2.0, 3.0])
    1.0
    """
    mean = abs(sum(values) / len(values))
    return (max(values) - min(values)) / mean if mean else math.nan


def methods(study: Study) -> list[str]:
    """Say how it was measured."""
    plan = study.plan
    return [
        f"Synthetic data have {plan.k} equally frequent labels. Noisy channel: the state is a mean direction of "
        "length 0.5 and noise, and determines a label, which is changed with probability p; I = log k − H_b(p) − "
        "p log(k − 1). Clusters: von Mises–Fisher distributions of orthogonal mean directions; I by numerical "
        "integration.",
        f"Languages: {', '.join(study.languages)}. The label of each position is changed with probability p. The "
        "truth is at most that of the channel, and by Fano's inequality and a linear probe at least a little less; "
        "table and figures take the upper bound. Parts of speech: twelve classes of the Brown corpus. States do not "
        "determine them, so the truth is between what a linear probe shows and the channel's. estimates.csv has both "
        "bounds.",
        "Each estimate runs in a process of its own, with one thread. Seconds are CPU time. Memory is the growth of "
        "the process beyond libraries and the states, which all are given whole, to about 10 MiB; methods that do not "
        "need all states at once could read them piece by piece. Soft entropy and nearest anchor take eight anchor "
        "sets at once. An estimator with a sample draws it uniformly.",
    ]


def problems(study: Study) -> list[str]:
    """List what is missing and what failed, with its reason."""
    failed = [(one.rival.name, *problem) for one in study.told for problem in one.problems.items()]
    return [*study.missing, *(f"{name}: {why} ({count})" for name, why, count in failed)]


def size_words(study: Study, *, small: bool = False) -> str:
    """Name the size of the case whose costs are told."""
    n, dim = (study.plan.n, DIM) if small else study.plan.largest
    return f"{n:,} × {dim:,}"


def agreed(found: Agreement) -> str:
    """Write ρ, R² and slope."""
    return ", ".join(number(value) for value in (found.spearman, found.r2, found.slope))


def listed(values: Sequence[float]) -> str:
    """Write several values.

    >>> listed([0.5, float("nan"), -0.004])
    '0.50 / – / 0.00'
    """
    return " / ".join(number(value) for value in values)


def number(value: float) -> str:
    """Write a number with two digits, or a dash."""
    if not math.isfinite(value):
        return "–"
    text = f"{value:.2f}".replace("-0.00", "0.00")
    return text.replace("-", "−")


def seconds(value: float) -> str:
    """Write seconds.

    >>> [seconds(value) for value in (0.004, 0.12, 3.21, 45.6)]
    ['<0.01', '0.12', '3.2', '46']
    """
    if not math.isfinite(value):
        return "–"
    if value < 0.01:
        return "<0.01"
    return f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 10 else f"{value:.0f}"


def mib(value: float) -> str:
    """Write mebibytes."""
    return f"{value:,.0f}" if math.isfinite(value) else "–"


def short_size(n: int) -> str:
    """Write a number of positions or dimensions.

    >>> short_size(16_384), short_size(512)
    ('16k', '512')
    """
    return f"{n / 1000:.0f}k" if n >= 1000 else str(n)
