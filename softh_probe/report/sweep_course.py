"""What each metric of a sweep does through training, in words: rises, falls, and changes beyond noise over documents.

The value is the mean over layers. The standard error of its change between two checkpoints is that of documents in
pairs, where both have documents.parquet. Few of these files are read: those of turning points. Without them, the
checkpoints' own standard errors stand in; they overstate the noise, since what documents do to both cancels.

Shape suffixes: L layers, C checkpoints, D documents.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from softh_probe.analysis.course import course
from softh_probe.analysis.paired import COMPARED
from softh_probe.analysis.pairing import Pairing
from softh_probe.analysis.sites import HEADS
from softh_probe.errors import InputError
from softh_probe.influence import DocumentInfluence, Name
from softh_probe.metrics import ENTROPIES
from softh_probe.report.sweep_data import SE, Sweep
from softh_probe.result_files import read_influence

#: Most files of influences that are read.
MOST_FILES = 32


@dataclass(frozen=True, kw_only=True)
class LayerMean:
    """A metric of one model, averaged over its layers.

    Attributes:
        name: label set and metric.
        layers: names of the layers that every checkpoint measured.
        value_C, se_C: in units of log m; the mean over layers of the standard errors, which is at least that of the
            mean; NaN where it was not measured.
    """

    name: Name
    layers: tuple[str, ...]
    value_C: np.ndarray
    se_C: np.ndarray


def courses(sweep: Sweep, folder: Path) -> dict[str, list[str]]:
    """Describe the course of every compared metric of each model.

    Args:
        sweep: its table.
        folder: of the sweep; the results of its checkpoints lie there.

    Returns:
        Sentences by "metric|label set", a line for each model of two checkpoints or more.
    """
    found: dict[str, list[str]] = {}
    models = list(dict.fromkeys(str(c["model"]) for c in sweep.done))
    for model in models:
        checkpoints = [c for c in sweep.done if str(c["model"]) == model]
        if len(checkpoints) < 2:
            continue
        means = list(layer_means(sweep.table, [c["checkpoint"] for c in checkpoints]))
        influences = _Influences(checkpoints, folder, {mean.name: mean.layers for mean in means}, sweep.n_anchors)
        has_steps = all(c.get("step") is not None for c in checkpoints)
        steps = [f"{c['step']:,}" if has_steps else str(c["checkpoint"]) for c in checkpoints]
        rows = "heads" if sweep.site == HEADS else "layers"
        of = f"{Path(model).name}: the" if len(models) > 1 else "The"
        for mean in means:
            noise = _Noise(mean, influences)
            said = course(
                steps,
                mean.value_C.tolist(),
                noise.of_change,
                units_of_change=influences.units_of_change,
                what="step" if has_steps else "checkpoint",
            )
            if said:
                overstated = " (unpaired, which overstates noise)" * noise.is_unpaired
                line = f"{of} mean over {len(mean.layers)} {rows} {said}{overstated}."
                found.setdefault(f"{mean.name[1]}|{mean.name[0]}", []).append(line)
    return found


def layer_means(table: pd.DataFrame, checkpoints: list[str]) -> Iterator[LayerMean]:
    """Average each compared metric over the layers that all checkpoints of a model measured."""
    place_of = pd.Index(checkpoints).get_indexer(table.checkpoint.cat.categories)
    places = place_of[table.checkpoint.cat.codes]
    own = table.assign(place=places)[table.metric.isin(COMPARED) & (places >= 0)]
    names = own.name.cat.categories.astype(str)
    for (metric, label_set), part in own.groupby(["metric", "label_set"], sort=False, observed=True):
        rows, columns = part.name.cat.codes, part.place
        value_LC, se_LC = np.full((2, len(names), len(checkpoints)), np.nan)
        value_LC[rows, columns] = part.value.to_numpy(float)
        if SE in part:
            se_LC[rows, columns] = part[SE].to_numpy(float)
        is_there_C = np.isfinite(value_LC).any(axis=0)
        whole_L = np.isfinite(value_LC[:, is_there_C]).all(axis=1)
        if whole_L.any() and is_there_C.any():
            layers = tuple(names[whole_L])
            yield LayerMean(
                name=(str(label_set), str(metric)),
                layers=layers,
                value_C=value_LC[whole_L].mean(axis=0),
                se_C=se_LC[whole_L].mean(axis=0),
            )


class _Noise:
    """The standard errors of the changes of one metric."""

    def __init__(self, mean: LayerMean, influences: _Influences) -> None:
        self._mean = mean
        self._influences = influences
        self.is_unpaired = False

    def of_change(self, i: int, j: int) -> float:
        """Give the standard error of the change between two checkpoints, by their numbers."""
        unpaired = math.hypot(self._mean.se_C[i], self._mean.se_C[j])
        if math.isnan(unpaired):
            return unpaired
        paired = self._influences.error_of_change(self._mean.name, i, j)
        self.is_unpaired |= paired is None
        return unpaired if paired is None else paired


class _Influences:
    """The influences of documents on means over layers, read where they are asked for.

    Args:
        checkpoints: of one model, as sweep.json describes them.
        folder: of the sweep.
        layers: over which each metric is averaged.
        n_anchors: anchors a set.
    """

    def __init__(
        self,
        checkpoints: list[dict[str, Any]],
        folder: Path,
        layers: Mapping[Name, tuple[str, ...]],
        n_anchors: int,
    ) -> None:
        self._checkpoints = checkpoints
        self._folder = folder
        self._layers = layers
        self._log_m = math.log(n_anchors)
        self._known: dict[int, DocumentInfluence | None] = {}
        self._pairings: dict[tuple[int, int], Pairing] = {}

    def error_of_change(self, name: Name, i: int, j: int) -> float | None:
        """Compute the paired standard error of a change in units of log m; None where a file is missing."""
        one, other = self._read(i), self._read(j)
        if one is None or other is None or name not in one.values or name not in other.values:
            return None
        if (i, j) not in self._pairings:
            self._pairings[i, j] = self._pair(i, j, one, other)
        error = float(self._pairings[i, j].standard_error(one.values[name], other.values[name])[0])
        return None if math.isnan(error) else error / (self._log_m if name[1] in ENTROPIES else 1.0)

    def units_of_change(self, i: int, j: int) -> float:
        """Give the units that a paired standard error comes from; infinite where there is none."""
        pairing = self._pairings.get((i, j))
        return math.inf if pairing is None else pairing.n_units

    def _pair(self, i: int, j: int, one: DocumentInfluence, other: DocumentInfluence) -> Pairing:
        texts, tokens = ([self._checkpoints[n].get(key) for n in (i, j)] for key in ("texts_sha256", "corpus_sha256"))
        same_texts = bool(texts[0]) and texts[0] == texts[1]
        return Pairing(one, other, same_data=same_texts, same_tokens=not same_texts or tokens[0] == tokens[1])

    def _read(self, i: int) -> DocumentInfluence | None:
        """Read the influences of a checkpoint, averaged over layers: [1, D] for each metric."""
        if i not in self._known and len(self._known) < MOST_FILES:
            try:
                whole = read_influence(self._folder / str(self._checkpoints[i].get("folder")))
            except InputError:
                whole = None  # damaged since it was collected
            self._known[i] = whole and self._averaged(whole)
        return self._known.get(i)

    def _averaged(self, whole: DocumentInfluence) -> DocumentInfluence:
        row_of = {row: n for n, row in enumerate(whole.rows)}
        values = {
            name: whole.values[name][[row_of[layer] for layer in layers]].mean(axis=0, keepdims=True)
            for name, layers in self._layers.items()
            if name in whole.values and row_of.keys() >= {*layers}
        }
        return replace(whole, rows=["mean"], values=values)
