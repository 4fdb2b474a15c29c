"""Data of a sweep's page."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from softh_probe.analysis.alignment import Alignment, align
from softh_probe.analysis.comparable import corpus_notes
from softh_probe.analysis.sites import HEADS
from softh_probe.errors import abbreviated
from softh_probe.layer_places import RESIDUAL, LayerPlaces
from softh_probe.metrics import METRICS
from softh_probe.report.figure_style import DEPTH_AXIS, HEAD_AXIS, layer_axis
from softh_probe.report.label_samples import TOLD, Samples, sample_notes, sentences
from softh_probe.report.packed import packed

#: Columns of standard errors by the sampling of labels and over documents, which are there where they were measured.
SAMPLING_SD, SE = "sampling_sd", "se"
#: Most values (and as many sd) in a page: it stays below 8 MB, and a browser draws it in seconds.
MOST_VALUES = 450_000
#: Shares of the ceiling and what they leave, and H(X), which is the same in all layers: a page would hold fewer
#: checkpoints for them.
NOT_SHOWN = ("label_entropy", *(metric.name for metric in METRICS if metric.scope in ("level", "direction")))
#: Most names that a list shows, and most samples of labels that are described.
_MAX_NAMES, _MAX_SAMPLES = 20, 5


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The results of a sweep.

    Attributes:
        table: one line for each checkpoint, layer, label set and metric, as in sweep.parquet, in units of log m,
            sorted by checkpoint; the categories of that column are in the order of `done`. `layer` is the index in the
            checkpoint's model. It has the column sampling_sd only where labels were sampled, and se only where
            intervals were measured.
        checkpoints: the entries of sweep.json: checkpoint, model, revision, step, tokens, status, reason, …
        places: of the layers of each checkpoint in `table`.
        duplicates: names of checkpoints whose weights are the same.
        not_monotone: names of checkpoints whose order of steps is not that of their names or dates.
        label_samples: the different samples of labels; a checkpoint that followed one has its number (`label_sample`).
        n_anchors: anchors a set.
        settings: (name, value) of the sweep's configuration.
        name: of the folder.
        courses: what each metric does through training, by "metric|label set", a line a model.
        sites: of all rows of the sweep, the one that stands for it first; `site` is that of this table.
        means: the lines of the means over layers, of all sites, likewise; empty in sweeps that an earlier version
            collected. They are in no other table.
    """

    table: pd.DataFrame
    checkpoints: list[dict[str, Any]]
    places: dict[str, LayerPlaces]
    duplicates: list[list[str]]
    not_monotone: list[list[str]]
    label_samples: list[Samples]
    n_anchors: int
    settings: list[tuple[str, str]]
    name: str
    courses: dict[str, list[str]] = field(default_factory=dict)
    sites: tuple[str, ...] = (RESIDUAL,)
    site: str = RESIDUAL
    means: pd.DataFrame = field(default_factory=pd.DataFrame)

    def of_site(self, site: str) -> Sweep:
        """Select the rows of one site. Heads, of which a layer has several, stand in the order of rows."""
        places = {name: _of_site(one, site) for name, one in self.places.items()}
        names = {name for one in places.values() for name in one.names}
        table = self.table[self.table.name.isin(names)].reset_index(drop=True)
        table["name"] = table.name.cat.remove_unused_categories()
        for kind in set(places.values()) if site == HEADS else ():
            is_of_kind = table.checkpoint.isin([name for name, one in places.items() if one == kind])
            row_of = dict(zip(kind.names, kind.indices, strict=True))
            table.loc[is_of_kind, "layer"] = table.name[is_of_kind].map(row_of).astype(np.int64)
        return replace(self, table=table, places=places, site=site)

    @cached_property
    def on_page(self) -> pd.DataFrame:
        """The table without metrics that pages of sweeps do not show."""
        return self.table[~self.table.metric.isin(NOT_SHOWN)]

    @cached_property
    def done(self) -> list[dict[str, Any]]:
        """Checkpoints with values, by model and step; those without a step keep their order."""
        of_name = {c["checkpoint"]: c for c in self.checkpoints}
        return [of_name[name] for name in self.table.checkpoint.cat.categories]

    @cached_property
    def drawn(self) -> np.ndarray:
        """Indices into `done` of the checkpoints that the page draws: all, or evenly chosen ones of each model."""
        n_series = len(self.on_page[["metric", "label_set"]].drop_duplicates())
        n_values = MOST_VALUES * 2 // (2 + self.is_sampled + self.has_intervals)  # numbers of each value
        share = n_values / (len(self.alignment.rows) * n_series * len(self.done))
        if share >= 1:
            return np.arange(len(self.done))
        model = np.array([str(c["model"]) for c in self.done])
        chosen = []
        for name in dict.fromkeys(model):
            of_model = np.flatnonzero(model == name)
            n = max(2, int(share * len(of_model)))
            chosen.append(of_model[np.linspace(0, len(of_model) - 1, n).round().astype(int)])
        return np.unique(np.concatenate(chosen))

    @property
    def is_sampled(self) -> bool:
        """Whether a sample of labels was followed in some checkpoint."""
        return SAMPLING_SD in self.table

    @cached_property
    def has_anchor_spread(self) -> bool:
        """Whether values have a spread over anchor sets."""
        return bool(self.table.sd.notna().any())

    @property
    def has_intervals(self) -> bool:
        """Whether some checkpoint has standard errors over documents."""
        return SE in self.table

    @property
    def sample_sentences(self) -> list[tuple[str, list[str]]]:
        """Say of each sample of labels, by title, how many labels were followed and how large the error of that is."""
        found = []
        is_one = len({c.get("label_sample") for c in self.done}) == 1
        part = self.table[self.table.metric.isin(TOLD)]
        for number, samples in enumerate(self.label_samples[:_MAX_SAMPLES]):
            names = [c["checkpoint"] for c in self.done if c.get("label_sample") == number]
            own = part[part.checkpoint.isin(names)]
            errors = {
                (name, metric): own[SAMPLING_SD][(own.label_set == name) & (own.metric == metric)]
                for name in samples
                for metric in TOLD
            }
            said = sentences(samples, errors)
            if is_one:
                found.append(("", [*said, "All checkpoints followed the same labels."]))
            else:
                found.append((f"{len(names)} checkpoint{'s' * (len(names) > 1)} from {names[0]} on", said))
        if (left_out := len(self.label_samples) - len(found)) > 0:
            found.append((f"and {left_out} more samples, which sweep.json describes", []))
        return found

    @cached_property
    def alignment(self) -> Alignment:
        """The layers of all checkpoints, beside each other."""
        return align(list(self.places.values()))

    def table_of(self, model: str) -> tuple[pd.DataFrame, str]:
        """Select the table of one model, for figures, and say what its column `layer` is.

        Where a model grew in training, layers of equal relative depth get one name.
        """
        names = [c["checkpoint"] for c in self.done if str(c["model"]) == model]
        table = self.table[self.table.checkpoint.isin(names)]
        places = {name: self.places[name] for name in names}
        aligned = align(list(places.values()))
        if aligned.equally_deep:
            if self.site == HEADS:
                return table, HEAD_AXIS
            return table, layer_axis(max(places.values(), key=lambda one: len(layer_axis(one))))
        parts = []
        for one in dict.fromkeys(places.values()):
            of_one = table[table.checkpoint.isin([name for name in names if places[name] == one])]
            for label, place, name in zip(aligned.labels, aligned.places, aligned.beside(one), strict=True):
                parts.append(of_one[of_one.name == name].assign(name=label, layer=place))
        return pd.concat(parts).sort_values("checkpoint", kind="stable", ignore_index=True), DEPTH_AXIS

    @property
    def failed(self) -> list[dict[str, Any]]:
        """Checkpoints that failed for good."""
        return [c for c in self.checkpoints if c["status"] == "failed"]

    @property
    def unfinished(self) -> list[dict[str, Any]]:
        """Checkpoints without a result, failed ones first."""
        order = {"failed": 0, "running": 1, "waiting": 2}
        found = [c for c in self.checkpoints if c["status"] != "done"]
        return sorted(found, key=lambda c: order.get(c["status"], 3))

    @property
    def title(self) -> str:
        """Names of the models."""
        models = list(dict.fromkeys(Path(str(c["model"])).name for c in self.checkpoints))
        return ", ".join(models[:3]) + (f" and {len(models) - 3} more" if len(models) > 3 else "") or self.name

    @property
    def summary(self) -> str:
        """Number of checkpoints by status, in one line."""
        counts = Counter(c["status"] for c in self.checkpoints)
        states = ", ".join(f"{counts[s]} {s}" for s in ("done", "failed", "running", "waiting") if counts[s])
        text = f"{len(self.checkpoints)} checkpoint{'s' * (len(self.checkpoints) != 1)}: {states}"
        n = len(self.drawn)
        return (
            text
            if n == len(self.done)
            else f"{text}; {n} of those done are drawn, evenly chosen; sweep.parquet holds all"
        )

    @property
    def warnings(self) -> list[str]:
        """Notes for the reader: failures, equal weights, steps out of order, different depths and tokens."""
        found = []
        if self.failed:
            found.append(
                f"{len(self.failed)} of {len(self.checkpoints)} checkpoints failed; see the list of them below."
            )
        if ("trust_remote_code", "True") in self.settings:
            found.append("Python code that comes with the checkpoints was allowed to run (trust_remote_code).")
        for names in self.duplicates:
            found.append(f"These checkpoints have the same weights: {abbreviated(names, _MAX_NAMES)}.")
        for names in self.not_monotone:
            found.append(
                f"The order of steps disagrees with the order of these checkpoints: {abbreviated(names, _MAX_NAMES)}."
            )
        notes = corpus_notes(self.checkpoints) or sample_notes(c.get("label_sample") for c in self.done)
        found += [f"{note[0].upper()}{note[1:]}." for note in notes]
        if not self.alignment.equally_deep:
            found.append(
                "The models have different numbers of blocks: their layers are shown beside each other by relative "
                "depth, layer / (L + 1), embeddings beside embeddings and final norms beside final norms."
            )
        if unknown := [name for name, one in self.places.items() if not one.is_certain]:
            found.append(f"{abbreviated(unknown, _MAX_NAMES)}: {self.places[unknown[0]].note}")
        guessed = [f"{c['checkpoint']}: {c['step_note']}" for c in self.checkpoints if c.get("step_note")]
        if guessed:
            found.append(f"Steps inferred from names: {abbreviated(guessed, _MAX_NAMES)}.")
        return found

    @cached_property
    def label_sets(self) -> list[str]:
        """Label sets with informations, in the order of the table."""
        return list(self.table.label_set[self.table.metric == "mutual_information"].unique())

    def data(self) -> dict[str, Any]:
        """Convert the drawn checkpoints to JSON values: value and sd [checkpoint, row] by "metric|label set", packed.

        Where values are estimates from a sample of labels, there is the standard error by that, too (`e`), and with
        intervals that over documents (`se`). `courses` are sentences by "metric|label set", a line a model.

        Rows are the layers of all models by name. `layouts` has, for each kind of model, its rows, where they stand in
        it, and the row that is beside each of the `shown` ones; a checkpoint has the number of its `layout`.
        """
        done = [self.done[i] for i in self.drawn]
        place = np.full(len(self.done), -1)
        place[self.drawn] = np.arange(len(done))
        table = self.on_page.assign(place=place[self.on_page.checkpoint.cat.codes])
        table = table[table.place >= 0]
        aligned = self.alignment
        row_of = {name: row for row, name in enumerate(aligned.rows)}
        rows = np.array([row_of.get(name, -1) for name in table.name.cat.categories])[table.name.cat.codes]
        table = table.assign(row=rows)
        kinds = list(dict.fromkeys(self.places[c["checkpoint"]] for c in done))
        kind_of = {kind: n for n, kind in enumerate(kinds)}
        series: dict[str, dict[str, Any]] = {}
        for (metric, label_set), part in table.groupby(["metric", "label_set"], sort=False, observed=True):
            columns = ["value", "sd", *(name for name in (SAMPLING_SD, SE) if name in part)]
            wide = np.full((len(columns), len(done), len(aligned.rows)), np.nan)
            wide[:, part.place, part.row] = part[columns].to_numpy(float).T
            entry = {"v": packed(wide[0])}
            if part.sd.notna().any():
                entry["s"] = packed(wide[1])
            if self.is_sampled and part[SAMPLING_SD].fillna(0).any():
                entry["e"] = packed(wide[2])
            if self.has_intervals and part[SE].notna().any():
                entry["se"] = packed(wide[-1])
            series[f"{metric}|{label_set}"] = entry
        shown = ("checkpoint", "model", "revision", "step", "tokens")
        return {
            "kind": "sweep",
            "log_m": math.log(self.n_anchors),
            "rows": list(aligned.rows),
            "shown": list(aligned.shown),
            "labels": aligned.labels,
            "places": aligned.places,
            "by_depth": not aligned.equally_deep,
            "layouts": [
                {
                    "rows": [row_of[name] for name in kind.names],
                    "layers": list(kind.indices),
                    "depth": kind.last,
                    "beside": [None if name is None else row_of[name] for name in aligned.beside(kind)],
                }
                for kind in kinds
            ],
            "label_sets": self.label_sets,
            "checkpoints": [
                {**{key: c.get(key) for key in shown}, "layout": kind_of[self.places[c["checkpoint"]]]} for c in done
            ],
            "series": series,
            "courses": self.courses,
        }


def _of_site(places: LayerPlaces, site: str) -> LayerPlaces:
    rows = [row for row, other in enumerate(places.sites) if other == site]
    names, indices = tuple(places.names[row] for row in rows), tuple(places.indices[row] for row in rows)
    if len(set(indices)) < len(indices):
        return LayerPlaces(names=names, indices=tuple(range(len(rows))), n_blocks=0)
    return replace(places, names=names, indices=indices)
