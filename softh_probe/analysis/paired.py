"""Differences of two results beyond noise: paired by document, and corrected for the number of layers.

Shape suffixes: R rows (layers of the first result), S anchor sets, D documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from softh_probe.analysis.alignment import equally_deep, interpolated
from softh_probe.analysis.comparable import (
    check_anchors,
    check_sites,
    corpus_differences,
    is_same_text,
    notes_on,
    population_differences,
    tokens_differ,
)
from softh_probe.analysis.holm import ALPHA, holm, p_values
from softh_probe.analysis.pairing import Pairing
from softh_probe.influence import DocumentInfluence, Name
from softh_probe.layer_places import RESIDUAL
from softh_probe.metrics import ENTROPIES, unit_scale
from softh_probe.result import ProbeResult

#: The metrics that are compared.
COMPARED = ("entropy", "mutual_information", "regularity", "optimality")
#: Numbers of positions that differ by more than this share are told.
_UNEQUAL = 0.05


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One metric of two results in all layers of the first, and the difference second minus first.

    Attributes:
        label_set, metric: as in the table of a result.
        a_R, b_R: values, in nats where the metric has a unit; NaN where the layer has none.
        se_R: standard error of the difference over documents; NaN where it was not measured.
        p_R, p_holm_R: p-value of the difference, and after Holm's correction for the number of layers of its site.
    """

    label_set: str
    metric: str
    a_R: np.ndarray
    b_R: np.ndarray
    se_R: np.ndarray
    p_R: np.ndarray
    p_holm_R: np.ndarray

    @property
    def difference(self) -> np.ndarray:
        """The second minus the first [R]."""
        change_R: np.ndarray = self.b_R - self.a_R
        return change_R


def compare_results(
    a: ProbeResult, b: ProbeResult, unit: str = "efficiency", titles: Sequence[str] = ("a", "b")
) -> pd.DataFrame:
    """Compare two results layer by layer: differences, their standard errors over documents, and p-values.

    Layers are matched by name, and those of models of unequal depth by relative depth; see
    `softh_probe.analysis.alignment`. Documents are matched by number and tokens; see `softh_probe.analysis.pairing`.

    Args:
        a, b: the results; differences are b minus a.
        unit: of entropies and informations, as in `ProbeResult.to_pandas`.
        titles: names of the results, for an error.

    Returns:
        Columns layer and name (of a), label_set (empty for entropy), metric (of `COMPARED`), a, b, difference, se,
        p_value (two-sided, Student's t), p_holm (corrected for the number of layers) and significant (p_holm < 0.05);
        where a measured sites, also site, and p_holm is corrected for the layers of each site by itself.
        se and the p-values are missing where a result has no intervals (`softh-probe run --intervals`).

    Raises:
        InputError: the results have different kinds of anchors, or the unit is unknown.
    """
    check_anchors(a, b, titles)
    check_sites(a, b, titles)
    scale = unit_scale(unit, a.n_anchors)
    parts = []
    for found in paired_differences(a, b):
        factor = scale if found.metric in ENTROPIES else 1.0
        part = pd.DataFrame(
            {
                "layer": np.array(a.places.indices, dtype=np.int64),
                "name": a.rows,
                "label_set": found.label_set,
                "metric": found.metric,
                "a": found.a_R * factor,
                "b": found.b_R * factor,
                "difference": found.difference * factor,
                "se": found.se_R * factor,
                "p_value": found.p_R,
                "p_holm": found.p_holm_R,
                "significant": found.p_holm_R < ALPHA,
                **({"site": a.places.sites} if a.sites != [RESIDUAL] else {}),
            }
        )
        parts.append(part.dropna(subset="difference"))
    return pd.concat(parts, ignore_index=True)


def paired_differences(a: ProbeResult, b: ProbeResult) -> list[Difference]:
    """Compute the differences of `COMPARED` metrics that both results have, in nats; see `compare_results`."""
    pairing = pair(a, b)
    theirs = {(name, metric): values_RS for name, metric, values_RS in b.metrics() if metric in COMPARED}
    found = []
    for label_set, metric, values_RS in a.metrics():
        if (key := (label_set, metric)) not in theirs:
            continue
        a_R = values_RS.numpy().mean(axis=1)
        b_R = interpolated(a.places, b.places, theirs[key].numpy()).mean(axis=1)
        se_R = np.full(len(a.rows), np.nan)
        if pairing is not None and a.influence is not None and b.influence is not None:
            psi_RD, other_RD = _influence(a, a.influence, key), _influence(b, b.influence, key)
            if psi_RD is not None and other_RD is not None:
                se_R = pairing.standard_error(psi_RD, interpolated(a.places, b.places, other_RD))
        p_R = p_values(b_R - a_R, se_R, pairing.n_units if pairing else np.inf)
        found.append(
            Difference(
                label_set=label_set,
                metric=metric,
                a_R=a_R,
                b_R=b_R,
                se_R=se_R,
                p_R=p_R,
                p_holm_R=_holm_by_site(p_R, a.places.sites),
            )
        )
    return found


def _holm_by_site(p_R: np.ndarray, sites: Sequence[str]) -> np.ndarray:
    """Correct p-values for the number of rows, those of each site by themselves: a page shows a site at a time."""
    corrected_R = np.empty(len(p_R))
    for site in set(sites):
        is_here_R = np.array(sites) == site
        corrected_R[is_here_R] = holm(p_R[is_here_R])
    return corrected_R


def pair(a: ProbeResult, b: ProbeResult) -> Pairing | None:
    """Match the documents of two results; None where one of them has no intervals."""
    if a.influence is None or b.influence is None:
        return None
    return Pairing(a.influence, b.influence, same_data=is_same_text(a, b), same_tokens=not tokens_differ(a, b))


def comparison_notes(a: ProbeResult, b: ProbeResult, titles: Sequence[str] = ("a", "b")) -> list[str]:
    """Say what a reader of a comparison should know: different texts, tokens and widths, and missing intervals."""
    names = f"{titles[0]} and {titles[1]}"
    notes = [f"{names} differ in {what}." for what in (*corpus_differences(a, b), *population_differences(a, b))]
    notes += [f"{names}: {what}" for what in notes_on(a, b)]
    if a.places.n_blocks and b.places.n_blocks and not equally_deep([a.places, b.places]):
        notes.append(
            f"{names} have unequal numbers of blocks: values of {titles[1]} are those at the relative depth of "
            f"{titles[0]}'s layers, so the other way round layers are other ones."
        )
    n_positions = [float(result.tensors["positions"].max()) for result in (a, b)]
    if abs(n_positions[0] - n_positions[1]) > _UNEQUAL * max(n_positions):
        notes.append(
            f"{names} are of {n_positions[0]:,.0f} and {n_positions[1]:,.0f} positions: raw information is biased "
            "upwards, the more the fewer positions there are, and the difference holds that of the biases."
        )
    without = [title for result, title in zip((a, b), titles, strict=True) if result.influence is None]
    if without:
        have = f"{' and '.join(without)} {'have' if len(without) > 1 else 'has'} no intervals"
        notes.append(f"{have}, so noise over documents is not known: measure with `softh-probe run --intervals`.")
    elif a.influence is not None and b.influence is not None and (pairing := pair(a, b)) is not None:
        n_a, n_b, n_both = len(a.influence.documents), len(b.influence.documents), pairing.n_shared
        if n_both < max(n_a, n_b):
            others = "are left out" if pairing.is_of_shared else "count as independent"
            notes.append(
                f"{names} have influences of {n_a:,} and {n_b:,} documents, {n_both:,} of which are the same; "
                f"the others {others}."
            )
    return notes


def _influence(result: ProbeResult, influence: DocumentInfluence, name: Name) -> np.ndarray | None:
    """Order the influences [R, D] on a metric as the result's rows are; NaN in rows that have none."""
    if name not in influence.values:
        return None
    row_of = {row: i for i, row in enumerate(influence.rows)}
    values_RD = influence.values[name]
    missing = np.full(len(influence.documents), np.nan)
    return np.stack([values_RD[row_of[row]] if row in row_of else missing for row in result.rows])
