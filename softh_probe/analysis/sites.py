"""Results of several sites, one site at a time."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from softh_probe.errors import InputError
from softh_probe.influence import DocumentInfluence
from softh_probe.layer_places import RESIDUAL, SITES
from softh_probe.result import ProbeResult

#: The site whose rows are heads, of which a layer has many.
HEADS = "attention_heads"


def of_site(result: ProbeResult, site: str) -> ProbeResult:
    """Give the rows of one site as a result of their own: one row a layer, but for attention heads.

    Raises:
        InputError: the site was not measured.
    """
    if result.sites == [site]:
        return result
    if site not in result.sites:
        raise InputError(f"site: expected any of {', '.join(result.sites)}, got {site!r}")
    kept = [row for row, other in enumerate(result.places.sites) if other == site]
    names = [result.rows[row] for row in kept]
    tensors = {name: value[kept] for name, value in result.tensors.items()}
    influence = None if result.influence is None else _of_rows(result.influence, names)
    bins = {name: of_site(of_bin, site) for name, of_bin in result.bins.items()}
    info = {**result.info, "anchors": anchors_of(result, site)}
    return replace(result, rows=names, tensors=tensors, influence=influence, info=info, bins=bins)


def anchors_of(result: ProbeResult, site: str) -> list[dict[str, Any]]:
    """List the anchors of the widths of a site, as the result describes them."""
    described = result.info.get("anchors") or []
    return [one for one in described if site in one.get("sites", result.sites)]


def ordered_sites(sites: Collection[str]) -> list[str]:
    """Order sites for readers: the residual stream, those with one row a layer, heads.

    >>> ordered_sites({"mlp", "attention_heads", "residual"})
    ['residual', 'mlp', 'attention_heads']
    """
    rank = {RESIDUAL: 0, HEADS: 2}
    return sorted((site for site in SITES if site in sites), key=lambda site: rank.get(site, 1))


def lead_site(result: ProbeResult) -> str:
    """Choose the site that stands for a result where one is shown."""
    return ordered_sites(result.sites)[0]


def lines_of(result: ProbeResult) -> list[str]:
    """List the sites with one row a layer, the one that stands for the result first; heads if there is no other."""
    ordered = ordered_sites(result.sites)
    return [site for site in ordered if site != HEADS] or ordered


def common_lines(results: Sequence[ProbeResult]) -> list[str]:
    """List the sites with one row a layer that all results have; heads if there is no other."""
    common = {site for site in results[0].sites if all(site in result.sites for result in results)}
    ordered = ordered_sites(common)
    return [site for site in ordered if site != HEADS] or ordered


def _of_rows(influence: DocumentInfluence, names: Sequence[str]) -> DocumentInfluence:
    kept = [row for row, name in enumerate(influence.rows) if name in set(names)]
    values = {name: psi_RD[kept] for name, psi_RD in influence.values.items()}
    return replace(influence, rows=[influence.rows[row] for row in kept], values=values)
