"""The influence of documents on entropies and informations, and the standard errors that follow from it.

The formulas are those of `softh_probe.influence`. Each holds for one set of anchors; the influence on the mean over
sets is the mean of the influences.

Shape suffixes: R rows (layers), B sequences, X label sets, A = 1 + X references, S anchor sets.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from softh_probe.estimators.soft_entropy import entropy
from softh_probe.labels import DIRECTIONS, ORDERS

if TYPE_CHECKING:
    from softh_probe.accumulators.influence_sums import DocumentSums
    from softh_probe.influence import DocumentInfluence, Name
    from softh_probe.result import ProbeResult


@dataclass(frozen=True, kw_only=True)
class MeasuredValues:
    """The values of a result that documents have an influence on.

    Attributes:
        label_sets: names of the label sets.
        n_positions: positions that count.
        positions: [R], those with a direction; labelled_positions: [R, X], those of them that have a label.
        entropy: [R, S], labelled_entropy: [R, X, S], information: [R, X, S], in nats.
    """

    label_sets: Sequence[str]
    n_positions: int
    positions: Tensor
    labelled_positions: Tensor
    entropy: Tensor
    labelled_entropy: Tensor
    information: Tensor

    @classmethod
    def of(cls, result: ProbeResult) -> MeasuredValues:
        """Take the values of a result."""
        given = result.tensors
        return cls(
            label_sets=result.label_sets,
            n_positions=result.info["positions"],
            positions=given["positions"],
            labelled_positions=given["labelled_positions"],
            entropy=entropy(given["mass"]),
            labelled_entropy=given["labelled_entropy"],
            information=given["labelled_entropy"] - given["conditional_entropy"],
        )


def influence_names(label_sets: Sequence[str], measured: Collection[str]) -> list[Name]:
    """List the label sets and metrics whose influences `influences` gives, in its order.

    >>> influence_names(["input_unigram", "output_unigram"], ["input_unigram"])
    [('', 'entropy'), ('input_unigram', 'mutual_information'), ('input_unigram', 'regularity')]
    """
    known = [name for name in label_sets if name in measured]
    names = [("", "entropy"), *((name, m) for name in known for m in ("mutual_information", "regularity"))]
    return [*names, *((order, "optimality") for order, *_ in _orders(known))]


def influences(
    sums: DocumentSums, labelled_BX: Tensor, values: MeasuredValues, measured: Collection[str]
) -> dict[Name, Tensor]:
    """Compute the influence of sequences on each value, averaged over anchor sets.

    The influence on a value of the labelled positions alone is scaled to all positions, so that a value's error is
    Σ ψ / `n_positions` for each metric and layer.

    Args:
        sums: of the sequences, stacked over layers: [R, B], [R, B, A, S] and [R, B, X, S].
        labelled_BX: whether the positions of each sequence have a label of each set; all of them or none do.
        values: those of all positions.
        measured: names of the label sets whose sums are known.

    Returns:
        ψ [R, B] by `influence_names`, float64; NaN where a ratio is not defined.
    """
    n_RB1 = sums.positions.unsqueeze(-1)
    found: dict[Name, Tensor] = {}
    on_entropy = -sums.reference[:, :, 0] - n_RB1 * values.entropy.unsqueeze(1)
    found["", "entropy"] = _scaled(on_entropy, values.positions, values.n_positions)
    on_information: dict[str, Tensor] = {}
    for x, name in enumerate(values.label_sets):
        if name not in measured:
            continue
        h_R1S, i_R1S = values.labelled_entropy[:, None, x], values.information[:, None, x]
        labelled_B1 = labelled_BX[:, x : x + 1]
        reference = sums.reference[:, :, 1 + x]
        on_entropy = labelled_B1 * (-reference - n_RB1 * h_R1S)
        on_information[name] = labelled_B1 * (sums.label[:, :, x] - reference - n_RB1 * i_R1S)
        on_regularity = _of_ratio(on_information[name], i_R1S, on_entropy, h_R1S)
        n_R = values.labelled_positions[:, x]
        found[name, "mutual_information"] = _scaled(on_information[name], n_R, values.n_positions)
        found[name, "regularity"] = _scaled(on_regularity, n_R, values.n_positions)
    for order, output, given in _orders(list(on_information)):
        x_out, x_in = values.label_sets.index(output), values.label_sets.index(given)
        i_out, i_in = values.information[:, None, x_out], values.information[:, None, x_in]
        psi = _of_ratio(on_information[output], i_out, on_information[given], i_in)
        found[order, "optimality"] = _scaled(psi, values.labelled_positions[:, x_out], values.n_positions)
    return found


def standard_errors(influence: DocumentInfluence, label_sets: Sequence[str]) -> dict[str, Tensor]:
    """Compute the tensors of a result that are standard errors over documents; NaN where they are not known.

    With a single unit there is none.

    Args:
        influence: that of the documents.
        label_sets: names of the result's label sets.
    """
    n_rows = len(influence.rows)
    missing = torch.full((n_rows, len(label_sets)), torch.nan, dtype=torch.float64)
    found = {"se_entropy": torch.full((n_rows,), torch.nan, dtype=torch.float64)}
    found |= {name: missing.clone() for name in ("se_information", "se_regularity", "se_optimality")}
    if influence.n_units < 2:
        return found
    tensors = {"mutual_information": "se_information", "regularity": "se_regularity", "optimality": "se_optimality"}
    for label_set, metric in influence.values:
        se_R = torch.from_numpy(influence.standard_error((label_set, metric)))
        if metric == "entropy":
            found["se_entropy"] = se_R
        else:
            of_set = f"output_{label_set}" if metric == "optimality" else label_set
            found[tensors[metric]][:, label_sets.index(of_set)] = se_R
    return found


def _orders(names: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Yield the n-gram orders of which both directions are named, with the names of output and input."""
    for order in ORDERS:
        given, output = (f"{direction}_{order}" for direction in DIRECTIONS)
        if given in names and output in names:
            yield order, output, given


def _of_ratio(numerator: Tensor, a: Tensor, denominator: Tensor, b: Tensor) -> Tensor:
    """Compute the influence on a/b from those on a and on b."""
    found = (numerator - a / b * denominator) / b
    return found.masked_fill(~found.isfinite(), torch.nan)


def _scaled(psi_RBS: Tensor, of_positions_R: Tensor, n_positions: int) -> Tensor:
    """Average over anchor sets, and scale from the positions that a value is of to all positions."""
    return psi_RBS.mean(dim=-1) * (n_positions / of_positions_R).unsqueeze(1)
