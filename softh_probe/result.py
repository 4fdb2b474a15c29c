"""ProbeResult: the entropies and informations of a measurement, as tables, figures and files."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
import torch
from torch import Tensor

from softh_probe.accumulators.label_sampling import samples_of
from softh_probe.accumulators.row_labels import RowLabels
from softh_probe.accumulators.statistics import LayerStatistics
from softh_probe.by_anchors import ANCHOR_FILES, by_anchors_table, variants_of
from softh_probe.by_label import by_label_table
from softh_probe.by_position import bins_of_layers, by_position_table
from softh_probe.by_position_files import BIN_FILES
from softh_probe.choices import Choices
from softh_probe.errors import abbreviated, one_line
from softh_probe.influence import DocumentInfluence
from softh_probe.labels import ORDERS
from softh_probe.layer_means import MEAN_OVER, mean_rows, select_mean_rows
from softh_probe.layer_places import SITES, LayerPlaces, parse_layers, place_layers
from softh_probe.limits import record_limits
from softh_probe.metrics import compute_metrics
from softh_probe.result_files import OF_DIRECTIONS, OF_DOCUMENTS, OF_SAMPLE, read_result, write_result
from softh_probe.tidy_table import tidy_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Tensors of a label set that a sample of its labels gives.
_ESTIMATED = ("conditional_entropy", "corrected_information")


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """Entropies and informations of every layer.

    `probe.result()` computes one, `ProbeResult.load(folder)` reads one, and `to_pandas()` gives its table.

    Shapes: R rows (layers), X label sets, S anchor sets, M anchors, L labels that are shown one by one.

    Attributes:
        rows: names of the layers, in the model's order: "embeddings", "layer.1", …, "final_norm".
        label_sets: names of the label sets.
        tensors: all measured values, float64, by name; see `LayerStatistics`. Entropies are in nats:
            mass [R, S, M], positions [R], position_entropy [R, S], entropy_document_sd [R, S],
            anisotropy [R] (NaN, or missing, where it is not known),
            labelled_positions [R, X], covered_positions [R, X], labelled_entropy [R, X, S],
            labelled_position_entropy [R, X, S],
            conditional_entropy [R, X, S], null_information [R, X, S],
            corrected_information [R, X, S], entropy_of_labels [R, X] (earlier versions have none),
            label_entropy [R, L, S], label_positions [R, L];
            and where a sample of labels was followed, the standard error by that of five of these, averaged over anchor
            sets, under their names with `_sampling_sd` [R, X]; where there are labels of whole documents,
            null_information_sd and p_value [R, X]; and with intervals, standard errors over documents: se_entropy [R],
            se_information, se_regularity and se_optimality [R, X] (that of an order at the set of its output).
        labels: label set and name of each label that is shown one by one.
        info: settings, anchors, number of blocks of the model (`n_blocks`; None where modules are named), number of
            positions, number of labelled positions by label set, the sample of labels by label set (`label_sampling`:
            how many `labels` there are, whether that is `estimated`, how many are `followed`, and the `threshold` of
            the count from which all are), labels of whole documents by label set (`document_labels`: see
            `DocumentSet.describe`), and any entries that the caller adds (JSON values).
        influence: that of each document on the values, where intervals were measured; see `softh_probe.influence`.
        bins: the result of each bin of positions by its name, and, as "all", that of the bins as labels of all
            positions, where these were measured; see `softh_probe.by_position`.
        others: the results of the same measurement with other numbers of anchors or calibrations, by what differs
            ("n_anchors=50"), where several were asked for; see `softh_probe.by_anchors`.
    """

    rows: list[str]
    label_sets: list[str]
    tensors: dict[str, Tensor]
    labels: list[tuple[str, str]] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)
    influence: DocumentInfluence | None = None
    bins: dict[str, ProbeResult] = field(default_factory=dict)
    others: dict[str, ProbeResult] = field(default_factory=dict)

    @classmethod
    def from_layers(
        cls, layers: Mapping[str, LayerStatistics], labels: RowLabels, *, settings: Mapping[str, Any], **info: Any
    ) -> ProbeResult:
        """Stack the statistics of all layers.

        Args:
            layers: statistics by name of the layer.
            labels: names of the label sets and of the labels that are shown one by one.
            settings: the probe's settings (JSON values).
            info: further entries of `info` (JSON values).
        """
        sets = labels.set_names
        fields = LayerStatistics.__dataclass_fields__
        tensors = {name: torch.stack([getattr(s, name) for s in layers.values()]) for name in fields}
        for name in OF_SAMPLE:
            if not tensors[name].any():
                del tensors[name]
        for name in (*OF_DOCUMENTS, *OF_DIRECTIONS):
            if tensors[name].isnan().all():
                del tensors[name]
        labelled = dict(zip(sets, tensors["labelled_positions"].amax(dim=0).long().tolist(), strict=True))
        return cls(
            rows=list(layers),
            label_sets=sets,
            tensors=tensors,
            labels=labels.named_labels(),
            bins=bins_of_layers(cls.from_layers, layers, labels, settings, info),
            info={
                "settings": dict(settings),
                **info,
                "labelled_positions": labelled,
                "label_sampling": labels.sampling(),
                **({"document_labels": of_documents} if (of_documents := labels.document_labels()) else {}),
            },
        )

    def __repr__(self) -> str:
        sets, (n_sets, n_anchors) = abbreviated(self.label_sets, 8) or "none", self.tensors["mass"].shape[1:]
        return one_line(
            f"<ProbeResult: {len(self.rows)} rows {self.rows[0]} … {self.rows[-1]}; label sets {sets}; "
            f"{n_sets} x {n_anchors} anchors; {self.info['positions']:,} positions>"
        )

    @property
    def n_anchors(self) -> int:
        """Number of anchors m of a set."""
        return self.tensors["mass"].shape[-1]

    @property
    def places(self) -> LayerPlaces:
        """Where the rows stand in the model: the index of each layer, and the number of blocks."""
        return place_layers(self.rows, self.info)

    @property
    def sites(self) -> list[str]:
        """Sites that the rows are of: "residual" alone unless others were asked for."""
        return [site for site in SITES if site in self.places.sites]

    @property
    def mean_rows(self) -> dict[str, list[str]]:
        """Layers of the row `mean`, and, where sites were asked for, of `mean.mlp` and the like, by its name.

        By default those of layer.1 … layer.L that were measured; none where modules are named.
        """
        return mean_rows(self.rows, self.info)

    def averaged_over(self, layers: str | Sequence[str | int] | None) -> ProbeResult:
        """Choose the layers of the row `mean`, as in `result.averaged_over(["layer.1", "layer.2"]).to_pandas()`.

        Args:
            layers: names of rows, or indices in the model, which stand for all sites of a layer, as a list or a text
                with commas; −1 is the last layer that was measured. None takes the blocks.

        Raises:
            InputError: one of them was not measured.
        """
        if layers is None:
            return replace(self, info={name: value for name, value in self.info.items() if name != MEAN_OVER})
        chosen = select_mean_rows(parse_layers(MEAN_OVER, layers), self.rows, self.info)
        return replace(self, info={**self.info, MEAN_OVER: chosen})

    def single_values(self) -> dict[str, str]:
        """Find the label sets of which all labelled positions have one value, and that value.

        Only sets that show their labels one by one are looked at.
        """
        counts_L = self.tensors["label_positions"].amax(dim=0)
        values: dict[str, list[str]] = {}
        for (label_set, label), count in zip(self.labels, counts_L.tolist(), strict=True):
            if count:
                values.setdefault(label_set, []).append(label)
        return {label_set: labels[0] for label_set, labels in values.items() if len(labels) == 1}

    def invalid_positions(self) -> dict[str, int]:
        """Count, by layer, the positions left out because their hidden state was zero or not finite.

        Layers that left none out are not listed.
        """
        counted = int(self.info["positions"])
        left_out = {r: counted - int(n) for r, n in zip(self.rows, self.tensors["positions"], strict=True)}
        return {row: n for row, n in left_out.items() if n}

    def unknown_by_sampling(self) -> dict[str, str]:
        """Find the sampled label sets of which too few labels were followed, and what is not known of them."""
        found = {}
        for name in self.sampled_sets:
            x = self.label_sets.index(name)
            of_set = {key: self.tensors[key][:, x] for key in (*OF_SAMPLE, *_ESTIMATED) if key in self.tensors}
            labelled = self.tensors["labelled_positions"][:, x] > 0
            is_unknown = {key: bool(value[labelled].isnan().any()) for key, value in of_set.items()}
            errors = [key for key in OF_SAMPLE if is_unknown.get(key)]
            if is_unknown["conditional_entropy"]:
                found[name] = "its information"
            elif is_unknown["corrected_information"] and "corrected_information_sampling_sd" in errors:
                found[name] = "its corrected information"
            elif errors:
                found[name] = "the standard error of its information"
        return found

    def record_limits(self, choices: Choices, told: Choices) -> None:
        """Record what limits this result; see `softh_probe.limits`."""
        record_limits(self, choices, told)

    def metrics(self) -> list[tuple[str, str, Tensor]]:
        """Compute every metric, in the order of the table: label set, metric, and values [R, S].

        Entropies and informations are in nats. The formulas are in `softh_probe.metrics`.
        """
        computed = compute_metrics(self.tensors, self.label_sets)
        return [(value.label_set, value.metric, value.values_RS) for value in computed]

    def sampling_sds(self) -> dict[tuple[str, str], Tensor]:
        """Compute the standard error of each metric by the sampling of labels.

        Returns:
            By label set and metric, the error of the mean over anchor sets [R], in nats where the metric has a unit; 0
            where a metric is exact, missing where its value is.
        """
        return {
            (value.label_set, value.metric): value.sampling_sd_R.masked_fill(
                value.values_RS.isnan().any(dim=1), math.nan
            )
            for value in compute_metrics(self.tensors, self.label_sets)
        }

    def p_values(self) -> dict[tuple[str, str], Tensor]:
        """Give the p-value [R] of the information of each label set of whole documents, by label set and metric.

        It is the share of relabelings of the documents that have as much information; see
        `softh_probe.estimators.relabeling`.
        """
        found = self.tensors.get("p_value")
        if found is None:
            return {}
        of_sets = zip(self.label_sets, found.unbind(dim=1), strict=True)
        return {(name, "mutual_information"): p_R for name, p_R in of_sets if not p_R.isnan().all()}

    def standard_errors(self) -> dict[tuple[str, str], Tensor]:
        """Give the standard error [R] of values over documents, by label set and metric, where it was measured.

        In nats where the metric has a unit.
        """
        if "se_entropy" not in self.tensors:
            return {}
        found = {("", "entropy"): self.tensors["se_entropy"]}
        for x, name in enumerate(self.label_sets):
            for metric, key in (("mutual_information", "se_information"), ("regularity", "se_regularity")):
                found[name, metric] = self.tensors[key][:, x]
            direction, _, order = name.partition("_")
            if direction == "output" and order in ORDERS:
                found[order, "optimality"] = self.tensors["se_optimality"][:, x]
        return {name: se_R for name, se_R in found.items() if not se_R.isnan().all()}

    @property
    def sampled_sets(self) -> list[str]:
        """Names of the label sets of which a sample of labels was followed."""
        return list(samples_of(self.info))

    def to_pandas(self, unit: str = "efficiency", *, means: bool = True) -> pd.DataFrame:
        """Build the tidy table: one line for each layer, label set and metric, then those of the mean over layers.

        Args:
            unit: unit of the entropies and informations: "efficiency" (the share of log m, their upper bound), "nats"
                or "bits". coverage, regularity, optimality, shares and what they leave are ratios in any
                unit.
            means: whether to add the lines of the row `mean` (of sites also `mean.mlp`, …), which `mean_rows` has the
                layers of; see `softh_probe.layer_means`.

        Returns:
            Columns layer, name, label_set (empty for entropy), metric, value (mean over anchor sets) and sd (their
            standard deviation; missing with a single set); with intervals, se, the standard error of value over
            documents; where a sample of labels was followed, sampling_sd, the standard error of value by that, 0 where
            it is exact; where labels are of whole documents, p_value, the share of relabelings of the documents with as
            much information. `layer` is the index in the model, whichever layers
            were measured: 0 the embeddings, i the i-th block call, L + 1 the final norm of a model of L blocks. Modules
            that a probe was given by name have no such index; theirs is the number of the row, in the order given. It
            is of pandas' Int64, and <NA> in the row `mean`; of int64 where `means` are left out.
            Last, where sites were asked for, `site`: "residual", "attention", …

        Raises:
            InputError: the unit is none of these.
        """
        return tidy_table(self, unit, means=means)

    def by_position(self, unit: str = "efficiency") -> pd.DataFrame:
        """Build the tidy table of the bins of positions, where these were measured; see `softh_probe.by_position`.

        Returns:
            The columns of `to_pandas`, and position, the bin ("0", "1", "2-3", …); "all" is of all bins together, with
            the label sets position, X|position and X,position for each label set X.

        Raises:
            InputError: the result has no bins, or the unit is unknown.
        """
        return by_position_table(self, unit)

    @property
    def variants(self) -> dict[str, ProbeResult]:
        """The results with every number of anchors and calibration, this one first; empty where there is one of each.

        Each is that of a run with these settings alone, as in `result.variants["n_anchors=50"].to_pandas()`; standard
        errors over documents and bins of positions are of this one alone.
        """
        return variants_of(self)

    def by_anchors(self, unit: str = "efficiency") -> pd.DataFrame:
        """Build the tidy table of all numbers of anchors and calibrations, where these are several.

        Returns:
            The columns of `to_pandas`, and n_anchors and calibration. The unit "efficiency" is the share of the log of
            each number of anchors.

        Raises:
            InputError: the result has one of each, or the unit is unknown.
        """
        return by_anchors_table(self, unit)

    def conditional_entropy(self, label_set: str, unit: str = "efficiency") -> pd.DataFrame:
        """Build the table of H(Z|X=x), one line for each layer and label of a set that shows its labels one by one.

        These sets are columns of few values, labels of one's own, and the label sets that a run lists in `per_label`.

        Args:
            label_set: name of the set; the prefix `column:` may be omitted.
            unit: as in `to_pandas`.

        Returns:
            Columns layer (as in `to_pandas`), name, label, count (positions), value (mean over anchor sets), sd.

        Raises:
            InputError: the set does not show its labels one by one, or the unit is unknown.
        """
        return by_label_table(self, label_set, unit)

    # --- figures -------------------------------------------------------------------------------------------

    def plot(
        self,
        figure: str = "overview",
        unit: str = "efficiency",
        *,
        label_set: str | None = None,
        metric: str | None = None,
        ax: Axes | None = None,
        error: Literal["sd", "se", "both"] | None = None,
        site: str | None = None,
        **line: Any,
    ) -> Figure:
        """Draw a matplotlib figure, as in `result.plot("plane").savefig("plane.svg")`, or one curve over the layers.

        `result.plot("information", label_set="column:lang", metric="corrected", unit="bits", ax=ax)` draws one curve on
        axes of one's own. Any of the arguments after `unit` asks for a curve; axis labels that are there stay.

        Args:
            figure: "overview", "entropy", "information", "chance", "optimality", "plane", "shares", "by_position" (with
                bins of positions), "sites", "heads", or a label set that shows its labels one by one
                ("column:language"), for the entropy of each. All but "sites" and "heads" are of the residual stream,
                where that was measured; see `softh_probe.analysis.sites.of_site`. Or the name of a metric: its curve.
            unit: as in `to_pandas`.
            label_set: that of the curve; the prefix `column:` may be omitted, and the name where there is one set.
            metric: that of the curve, as in `to_pandas` or short ("corrected", "null", "max").
            ax: axes to draw on; None makes a figure.
            error: "sd" draws the standard deviation over anchor sets as a band, "se" the standard error over documents
                as bars, "both" both.
            site: that of the rows: "residual", "mlp", …, or "head.3".
            line: properties of matplotlib's lines: color, label, linestyle, …

        Raises:
            InputError: one of these is unknown, or the result lacks it; the message names what there is.
        """
        from softh_probe.report.curves import plot  # report imports result

        curve: dict[str, Any] = {"label_set": label_set, "metric": metric, "ax": ax, "error": error, "site": site}
        return plot(self, figure, unit, **curve, **line)

    def _repr_html_(self) -> str:
        from softh_probe.report.notebook import to_html

        return to_html(self)

    # --- files ---------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write layers.csv, layers.parquet, sums.safetensors and, last, result.json.

        Where they were measured, there are documents.parquet, and by_position and by_anchors as .csv, .parquet and
        .safetensors.
        Each file appears whole or not at all; a folder with a result.json holds a whole result.
        """
        names = {"rows": self.rows, "label_sets": self.label_sets, "labels": self.labels}
        layers = self.places.indices
        further: dict[str, str] = {}
        for kind, parts, table in (
            (BIN_FILES, self.bins, self.by_position),
            (ANCHOR_FILES, self.others, self.by_anchors),
        ):
            files, entries = kind.write(Path(folder), parts, table)
            further |= files
            names |= entries
        write_result(Path(folder), names, self.info, self.tensors, self.to_pandas(), self.influence, layers, further)

    @classmethod
    def load(cls, folder: str | Path) -> ProbeResult:
        """Read a result that `save` wrote, in this version or an earlier one.

        Warns of a result of an earlier version that measured some layers and does not record how many there are.

        Raises:
            InputError: the folder holds no result, one that was damaged or changed, or one of a later format.
        """
        info, tensors, influence = read_result(Path(folder))
        names = {name: info.pop(name) for name in ("rows", "label_sets", "labels")}
        bins, others = (kind.read(cls, Path(folder), info, names["rows"]) for kind in (BIN_FILES, ANCHOR_FILES))
        result = cls(**names, tensors=tensors, info=info, influence=influence, bins=bins, others=others)
        if note := result.places.note:
            warnings.warn(f"{folder}: {note}", stacklevel=2)
        return result
