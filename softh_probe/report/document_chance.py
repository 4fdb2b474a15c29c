"""Information about labels of whole documents beside that of relabelings, in words.

Shape suffixes: R rows (layers).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from softh_probe.analysis.layers import extreme
from softh_probe.report.bit_words import LabelBits, bits, label_bits
from softh_probe.report.extreme_words import alike_words
from softh_probe.result import ProbeResult

#: Layers of a smaller p-value are counted as beyond chance.
_LEVEL = 0.05


@dataclass(frozen=True, kw_only=True)
class DocumentChance:
    """Information about a label set of whole documents, and that of relabelings of the documents.

    Attributes:
        rows: names of the layers.
        information_R: I(X;Z), in nats.
        null_R, sd_R: mean and sd of I(X;Z) over relabelings, likewise.
        p_R: share of the relabelings with as much information.
        labels: H(X).
    """

    rows: list[str]
    information_R: np.ndarray
    null_R: np.ndarray
    sd_R: np.ndarray
    p_R: np.ndarray
    labels: LabelBits

    @property
    def n_beyond(self) -> int:
        """Number of layers with p < 0.05."""
        return int(np.sum(self.p_R < _LEVEL))

    @property
    def most(self) -> int:
        """The layer whose information is highest."""
        return int(np.nanargmax(self.information_R))

    def describe(self, row: int) -> str:
        """Say how much information a layer has, and how much it would have by chance."""
        return (
            f"{self.labels.of(self.information_R[row])}, by chance {bits(self.null_R[row])} ± {bits(self.sd_R[row])} "
            f"(p = {self.p_R[row]:.2g})"
        )

    def describe_layers(self) -> str:
        """Say in how many layers it is beyond chance."""
        n_layers = len(self.rows)
        by_chance = f", where one of {1 / _LEVEL:.0f} is by chance" if n_layers > 1 else ""
        return f"p is below {_LEVEL} in {self.n_beyond} of {n_layers} layer{'s' * (n_layers != 1)}{by_chance}"


def document_chance(result: ProbeResult, label_set: str) -> DocumentChance | None:
    """Compare the information about a label set of whole documents with chance.

    Returns:
        The comparison; None for other label sets, and where no p-value was measured.
    """
    p_R = result.p_values().get((label_set, "mutual_information"))
    if p_R is None:
        return None
    values = {metric: np.asarray(v.mean(dim=1)) for name, metric, v in result.metrics() if name == label_set}
    return DocumentChance(
        rows=result.rows,
        information_R=values["mutual_information"],
        null_R=values["mutual_information_null"],
        sd_R=values["mutual_information_null_sd"],
        p_R=np.asarray(p_R),
        labels=label_bits(result, label_set),
    )


def chance_lines(result: ProbeResult) -> list[str]:
    """Say of each label set of whole documents how much information the layer with the highest has beside chance."""
    lines = []
    for name in result.label_sets:
        of, found = document_chance(result, name), extreme(result, name, "mutual_information")
        if of is not None and found is not None:
            words = alike_words(found, with_distance=False)
            alike = f"; not distinguishable from {words}" if words else ""
            lines.append(
                f"{name}: highest in {of.rows[of.most]}: {of.describe(of.most)}; {of.describe_layers()}{alike}"
            )
    return lines
