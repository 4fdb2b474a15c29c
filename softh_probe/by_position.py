"""The metrics of bins of positions, and what the position itself tells: one table of all.

Each bin B = b is a population of its own, so its metrics are those of any result. Over all bins there are three more
label sets: `position`, I(B;Z); `X|position`, I(X;Z|B) = Σ_b P(b) I_b(X;Z); and `X,position`, I(X,B;Z), which is
H(Z) − H(Z|X,B). The chain rule holds for label sets that label all positions: I(X,B;Z) = I(B;Z) + I(X;Z|B).
Entropies of labels are those of the positions with a label X: H(B), H(X|B), and H(X,B) = H(B) + H(X|B).

Shape suffixes: B bins, R rows (layers), X label sets, S anchor sets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from softh_probe.accumulators.position_labels import position_labels
from softh_probe.accumulators.row_labels import RowLabels
from softh_probe.accumulators.statistics import BinnedStatistics, LayerStatistics
from softh_probe.errors import InputError
from softh_probe.metrics import SAMPLING_SD
from softh_probe.position_bins import ALL_BINS, POSITION_SET

if TYPE_CHECKING:
    from softh_probe.result import ProbeResult

#: Tensors of a label set that are means over positions with a label.
_MEANS = ("labelled_entropy", "labelled_position_entropy", "conditional_entropy", "null_information")
#: H(X) of the labels of the positions that have one.
_OF_LABELS = "entropy_of_labels"
#: Metrics that joint labels have: neither chance nor correction is known of them.
_OF_JOINT = (
    "label_entropy",
    "conditional_entropy",
    "mutual_information",
    "mutual_information_max",
    "coverage",
    "regularity",
)


def bins_of_layers(
    make: Callable[..., ProbeResult],
    layers: Mapping[str, LayerStatistics],
    labels: RowLabels,
    settings: Mapping[str, Any],
    info: Mapping[str, Any],
) -> dict[str, ProbeResult]:
    """Make the result of each bin of positions by its name, and, as `ALL_BINS`, that of the bins as labels.

    Args:
        make: `ProbeResult.from_layers`.
        layers, labels, settings, info: as it takes them, of all positions.
    """
    if not any(isinstance(s, BinnedStatistics) for s in layers.values()):
        return {}
    shared = {name: info[name] for name in ("anchors", "n_blocks") if name in info}
    found = {}
    for name, of_bin in {**labels.bins, ALL_BINS: position_labels(labels)}.items():
        of_layers = {layer: s.bins[name] for layer, s in layers.items() if isinstance(s, BinnedStatistics)}
        n_positions = max(int(statistics.positions) for statistics in of_layers.values())
        found[name] = make(of_layers, of_bin, settings=settings, positions=n_positions, **shared)
    return found


def by_position_table(result: ProbeResult, unit: str) -> pd.DataFrame:
    """Build the table of `ProbeResult.by_position`.

    Raises:
        InputError: the result has no bins, or the unit is unknown.
    """
    if not result.bins:
        raise InputError("by_position: the result has no bins of positions; measure again with --by-position")
    parts = [part.assign(position=name) for name, part in _parts(result, unit)]
    table = pd.concat(parts, ignore_index=True)
    if "sampling_sd" in table:  # of bins of which no label was sampled, values are exact
        table["sampling_sd"] = table.sampling_sd.fillna(0.0).where(table.value.notna())
    first = ["layer", "name", "position"]
    table = table[[*first, *(column for column in table if column not in first)]]
    return table.sort_values("layer", kind="stable", ignore_index=True)


def _parts(result: ProbeResult, unit: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the tables of the bins, of the position as a label, and of the other label sets given it or with it."""
    for name, of_bin in result.bins.items():
        table = of_bin.to_pandas(unit, means=False)
        yield name, table if name != ALL_BINS else table[table.label_set == POSITION_SET]
    if result.label_sets:
        table = given_and_with_position(result).to_pandas(unit, means=False)
        is_joint = table.label_set.str.endswith(f",{POSITION_SET}")
        yield ALL_BINS, table[(table.label_set != "") & (~is_joint | table.metric.isin(_OF_JOINT))]


def given_and_with_position(result: ProbeResult) -> ProbeResult:
    """Make the result of the label sets `X|position` and `X,position`; its entropy is that of all positions."""
    of_sets: dict[str, dict[str, Tensor]] = {}
    sampling: dict[str, dict[str, Any]] = {}
    for label_set in result.label_sets:
        given = _given_position(result, label_set)
        of_sets[f"{label_set}|{POSITION_SET}"] = given
        of_sets[f"{label_set},{POSITION_SET}"] = {**given, **_of_joint(result, label_set, given)}
        samples = [b.info["label_sampling"][label_set] for b in _bins_with(result, label_set)]
        whole = {key: sum(sample[key] for sample in samples) for key in ("labels", "followed")}
        whole |= {"threshold": max(sample["threshold"] for sample in samples), "estimated": False}
        sampling |= dict.fromkeys([f"{label_set}|{POSITION_SET}", f"{label_set},{POSITION_SET}"], whole)
    names = dict.fromkeys(name for of_set in of_sets.values() for name in of_set)
    tensors = {name: torch.stack([of_set[name] for of_set in of_sets.values()], dim=1) for name in names}
    kept = {name: result.tensors[name] for name in ("mass", "positions", "position_entropy", "entropy_document_sd")}
    info = {**result.info, "label_sampling": sampling}
    return replace(
        result, label_sets=[*of_sets], tensors={**kept, **tensors}, labels=[], info=info, influence=None, bins={}
    )


def _bins_with(result: ProbeResult, label_set: str) -> list[ProbeResult]:
    return [b for name, b in result.bins.items() if name != ALL_BINS and label_set in b.label_sets]


def _given_position(result: ProbeResult, label_set: str) -> dict[str, Tensor]:
    """Average the tensors of a label set over the bins, weighted by the positions that have a label: [R] or [R, S]."""
    bins = [
        {name: tensor[:, b.label_sets.index(label_set)] for name, tensor in b.tensors.items() if _is_of_set(name)}
        for b in _bins_with(result, label_set)
    ]
    n_BR, covered_BR = (torch.stack([b[name] for b in bins]) for name in ("labelled_positions", "covered_positions"))
    found = {"labelled_positions": n_BR.sum(dim=0), "covered_positions": covered_BR.sum(dim=0)}
    shares = {**dict.fromkeys(_MEANS, _shares(n_BR)), "corrected_information": _shares(covered_BR)}
    for name, share_BR in shares.items():
        values_BRS = torch.stack([b[name] for b in bins])
        weighted = share_BR.unsqueeze(2) * values_BRS
        found[name] = weighted.masked_fill((share_BR == 0).unsqueeze(2), 0.0).sum(dim=0)
        found[name][share_BR.sum(dim=0).isnan()] = torch.nan
        _add_error(found, bins, name, share_BR)
    _add_error(found, bins, "covered_positions", torch.ones_like(n_BR))
    if all(_OF_LABELS in b for b in bins):
        share_BR = _shares(n_BR)
        weighted_BR = share_BR * torch.stack([b[_OF_LABELS] for b in bins])
        found[_OF_LABELS] = weighted_BR.masked_fill(share_BR == 0, 0.0).sum(dim=0)
        _add_error(found, bins, _OF_LABELS, share_BR)
    return found


def _shares(n_BR: Tensor) -> Tensor:
    """Divide the positions of each bin by those of all; NaN where there are none."""
    return n_BR / n_BR.sum(dim=0)


def _add_error(found: dict[str, Tensor], bins: list[dict[str, Tensor]], name: str, share_BR: Tensor) -> None:
    """Add the error by the sampling of labels of a sum over bins, whose samples are taken to be independent."""
    nothing_R = torch.zeros_like(share_BR[0])
    errors_BR = torch.stack([b.get(name + SAMPLING_SD, nothing_R) for b in bins])
    error_R = (share_BR * errors_BR).masked_fill(share_BR == 0, 0.0).square().sum(dim=0).sqrt()
    if name + SAMPLING_SD in _SAMPLED:
        found[name + SAMPLING_SD] = error_R


_SAMPLED = tuple(
    name + SAMPLING_SD
    for name in ("conditional_entropy", "null_information", "corrected_information", "covered_positions", _OF_LABELS)
)
_OF_SET = (*_MEANS, "corrected_information", "labelled_positions", "covered_positions", _OF_LABELS, *_SAMPLED)


def _is_of_set(name: str) -> bool:
    return name in _OF_SET


def _of_joint(result: ProbeResult, label_set: str, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give what joint labels have of all positions that have a label: H(Z), mean entropy of assignments, and H(X,B).

    Where all positions have one, H(Z) is put together from H(Z|B) and I(B;Z). Sums of labels and sums of all positions
    differ by float32 rounding, some 1e-7; so the chain rule holds to the last digits all the same.
    """
    tensors, x = result.bins[ALL_BINS].tensors, result.label_sets.index(label_set)
    of_position = {name: tensors[name][:, 0] for name in (*_MEANS, "labelled_positions")}
    is_all_R1 = (given["labelled_positions"] == of_position["labelled_positions"]).unsqueeze(1)
    information_RS = of_position["labelled_entropy"] - of_position["conditional_entropy"]
    of_all = {
        "labelled_entropy": given["labelled_entropy"] + information_RS,
        "labelled_position_entropy": of_position["labelled_position_entropy"],
    }
    found = {name: torch.where(is_all_R1, value, result.tensors[name][:, x]) for name, value in of_all.items()}
    if _OF_LABELS in given:
        found[_OF_LABELS] = given[_OF_LABELS] + _entropy_of_bins(result, label_set)
    return found


def _entropy_of_bins(result: ProbeResult, label_set: str) -> Tensor:
    """Compute H(B) of the positions that have a label [R]."""
    bins = _bins_with(result, label_set)
    n_BR = torch.stack([b.tensors["labelled_positions"][:, b.label_sets.index(label_set)] for b in bins])
    entropy_R: Tensor = torch.special.entr(_shares(n_BR)).sum(dim=0)
    return entropy_R
