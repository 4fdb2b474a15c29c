"""ProbeResult: what a measurement found, as tables and as files."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from softh_probe.accumulators.row_labels import RowLabels
from softh_probe.accumulators.statistics import LayerStatistics
from softh_probe.errors import InputError
from softh_probe.estimators.soft_entropy import entropy
from softh_probe.files import replacing
from softh_probe.hashing import file_sha256
from softh_probe.labels import COLUMN_PREFIX, ORDERS
from softh_probe.result_files import checked, damaged, sealed, unsealed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULT_JSON, SUMS, LAYERS_CSV, LAYERS_PARQUET = (
    "result.json",
    "sums.safetensors",
    "layers.csv",
    "layers.parquet",
)

#: The metrics that carry a unit; the others are ratios.
ENTROPIES = (
    "entropy",
    "entropy_document_sd",
    "conditional_entropy",
    "mutual_information",
    "mutual_information_max",
    "mutual_information_null",
    "mutual_information_corrected",
)
#: Corrected optimality is missing where the information with the input is below this, in units of log m: the ratio
#: would be one of errors.
LEAST_CORRECTED = 0.01
UNITS = ("efficiency", "nats", "bits")


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """Entropies and information of every layer; R rows, X label sets, S anchor sets, M anchors, L labels one by one.

    Attributes:
        rows: names of the rows: "embeddings", "layer.1", …, "final_norm".
        label_sets: names of the label sets.
        tensors: everything measured, float64, by name; R leads each. Entropies are in nats:
            mass [R, S, M], positions [R], position_entropy [R, S], entropy_document_sd [R, S],
            labelled_positions [R, X], covered_positions [R, X], labelled_entropy [R, X, S],
            labelled_position_entropy [R, X, S],
            conditional_entropy [R, X, S], null_information [R, X, S],
            corrected_information [R, X, S], label_entropy [R, L, S], label_positions [R, L].
        labels: of each label that is shown one by one, its set and its name.
        info: what was run: settings, anchors, positions, how many of them each label set labels, and whatever the
            caller adds (JSON values).
    """

    rows: list[str]
    label_sets: list[str]
    tensors: dict[str, Tensor]
    labels: list[tuple[str, str]] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_layers(
        cls, layers: Mapping[str, LayerStatistics], labels: RowLabels, *, settings: Mapping[str, Any], **info: Any
    ) -> ProbeResult:
        """Gather the layers' statistics; `labels` says what their label sets and kept labels are called."""
        sets = labels.set_names
        fields = LayerStatistics.__dataclass_fields__
        tensors = {name: torch.stack([getattr(s, name) for s in layers.values()]) for name in fields}
        labelled = dict(zip(sets, tensors["labelled_positions"].amax(dim=0).long().tolist(), strict=True))
        return cls(
            rows=list(layers),
            label_sets=sets,
            tensors=tensors,
            labels=labels.named_labels(),
            info={"settings": dict(settings), **info, "labelled_positions": labelled},
        )

    @property
    def n_anchors(self) -> int:
        return self.tensors["mass"].shape[-1]

    def invalid_positions(self) -> dict[str, int]:
        """Counted positions that a row left out because its hidden state was zero or not finite; rows with any."""
        counted = int(self.info["positions"])
        left_out = {r: counted - int(n) for r, n in zip(self.rows, self.tensors["positions"], strict=True)}
        return {row: n for row, n in left_out.items() if n}

    def metrics(self) -> list[tuple[str, str, Tensor]]:
        """(label set, metric, values [R, S]) of everything there is, entropies in nats."""
        t = self.tensors
        found = [("", "entropy", entropy(t["mass"])), ("", "entropy_document_sd", t["entropy_document_sd"])]
        information, corrected = {}, {}
        for x, name in enumerate(self.label_sets):
            h = t["labelled_entropy"][:, x]
            conditional = t["conditional_entropy"][:, x]
            information[name] = h - conditional
            corrected[name] = t["corrected_information"][:, x]
            coverage = (t["covered_positions"][:, x] / t["labelled_positions"][:, x]).unsqueeze(1).expand_as(h)
            found += [
                (name, "conditional_entropy", conditional),
                (name, "mutual_information", information[name]),
                (name, "mutual_information_max", h - t["labelled_position_entropy"][:, x]),
                (name, "mutual_information_null", t["null_information"][:, x]),
                (name, "mutual_information_corrected", corrected[name]),
                (name, "coverage", coverage),
                (name, "regularity", information[name] / h),
            ]
        for order in ORDERS:
            if f"input_{order}" in information and f"output_{order}" in information:
                found.append((order, "optimality", information[f"output_{order}"] / information[f"input_{order}"]))
                output, given = corrected[f"output_{order}"], corrected[f"input_{order}"]
                enough = given > LEAST_CORRECTED * math.log(self.n_anchors)
                found.append((order, "optimality_corrected", torch.where(enough, output / given, math.nan)))
        return found

    def to_pandas(self, unit: str = "efficiency") -> pd.DataFrame:
        """The tidy table: one line a row, label set and metric.

        Args:
            unit: of the entropies and informations: "efficiency" (of log m, the most there can be), "nats" or
                "bits". coverage, regularity and optimality are ratios in any unit.

        Returns:
            Columns layer (0, 1, …), name, label_set (empty for entropy), metric, value (mean over anchor sets)
            and sd (their standard deviation; missing with a single set).
        """
        scale = self._scale(unit)
        parts = []
        for label_set, metric, values_RS in self.metrics():
            values_RS = values_RS * (scale if metric in ENTROPIES else 1.0)
            parts.append(self._table(values_RS, label_set=label_set, metric=metric))
        table = pd.concat(parts, ignore_index=True)
        return table[["layer", "name", "label_set", "metric", "value", "sd"]].sort_values(
            "layer", kind="stable", ignore_index=True
        )

    def conditional_entropy(self, label_set: str, unit: str = "efficiency") -> pd.DataFrame:
        """H(Z|X=x) of each label of a set that shows them one by one.

        These are columns of few values, labels of one's own, and the label sets that a run lists in `per_label`.

        Args:
            label_set: its name; the `column:` of a column may be left out.
            unit: as in `to_pandas`.

        Returns:
            Columns layer, name, label, count (positions), value (mean over anchor sets), sd.

        Raises:
            InputError: the set does not show its labels one by one.
        """
        sets = {label_set, COLUMN_PREFIX + label_set}
        chosen = [i for i, (in_set, _) in enumerate(self.labels) if in_set in sets]
        if not chosen:
            shown = ", ".join(dict.fromkeys(s for s, _ in self.labels)) or "none"
            raise InputError(f"label_set: {label_set!r} does not show its labels one by one; those that do: {shown}")
        values_RLS = self.tensors["label_entropy"][:, chosen] * self._scale(unit)
        counts_RL = self.tensors["label_positions"][:, chosen].long()
        n_rows, n_labels = counts_RL.shape
        table = pd.DataFrame(
            {
                "layer": np.repeat(np.arange(n_rows), n_labels),
                "name": np.repeat(self.rows, n_labels),
                "label": [self.labels[i][1] for i in chosen] * n_rows,
                "count": counts_RL.flatten().numpy(),
                "value": values_RLS.mean(dim=2).flatten().numpy(),
            }
        )
        sd_RL = values_RLS.std(dim=2) if values_RLS.shape[2] > 1 else torch.full_like(values_RLS[..., 0], math.nan)
        return table.assign(sd=sd_RL.flatten().numpy())

    def _scale(self, unit: str) -> float:
        scales = {"efficiency": 1.0 / math.log(self.n_anchors), "nats": 1.0, "bits": 1.0 / math.log(2.0)}
        if unit not in scales:
            raise InputError(f"unit: expected one of {', '.join(UNITS)}, got {unit!r}")
        return scales[unit]

    def _table(self, values_RS: Tensor, **constants: str) -> pd.DataFrame:
        return pd.DataFrame(
            {
                "layer": range(len(self.rows)),
                "name": self.rows,
                **constants,
                "value": values_RS.mean(dim=1).numpy(),
                "sd": values_RS.std(dim=1).numpy() if values_RS.shape[1] > 1 else math.nan,
            }
        )

    # --- to look at ----------------------------------------------------------------------------------------

    def plot(self, figure: str = "overview", unit: str = "efficiency") -> Figure:
        """A matplotlib figure, which notebooks show: result.plot("plane").savefig("plane.svg").

        Args:
            figure: "overview", "entropy", "information", "chance", "optimality", "plane", or a label set that shows
                its labels one by one ("column:language"), for the entropy of each.
            unit: as in `to_pandas`.

        Raises:
            InputError: no such figure, label set or unit.
        """
        from softh_probe.report.figures import FIGURES, entropy_by_label  # figures are made of results

        self._scale(unit)
        if figure in FIGURES:
            return FIGURES[figure](self, unit)
        sets = list(dict.fromkeys(name for name, _ in self.labels))
        if {figure, COLUMN_PREFIX + figure} & set(sets):
            return entropy_by_label(self, figure, unit)
        raise InputError(f"figure: expected one of {', '.join([*FIGURES, *sets])}, got {figure!r}")

    def _repr_html_(self) -> str:
        from softh_probe.report.notebook import to_html

        return to_html(self)

    # --- files ---------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write layers.csv, layers.parquet, sums.safetensors and, last, result.json.

        Each file appears whole or not at all; a folder with a result.json holds a whole result.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        table = self.to_pandas()
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        files = {
            LAYERS_CSV: _write(folder / LAYERS_CSV, lambda path: table.to_csv(path, index=False)),
            LAYERS_PARQUET: _write(folder / LAYERS_PARQUET, lambda path: table.to_parquet(path, index=False)),
            # save_file would keep others from reading it
            SUMS: _write(folder / SUMS, lambda path: path.write_bytes(save(tensors))),
        }
        head = {"files": files, "rows": self.rows, "label_sets": self.label_sets, "labels": self.labels}
        text = json.dumps(sealed({**head, **self.info, **head}), indent=2, ensure_ascii=False)
        # A path that is no UTF-8 is told in lone surrogates, which only escaped can be written.
        _write(folder / RESULT_JSON, lambda path: path.write_bytes(f"{text}\n".encode("utf-8", "backslashreplace")))

    @classmethod
    def load(cls, folder: str | Path) -> ProbeResult:
        """Read back what `save` wrote, in this version or an earlier one.

        Raises:
            InputError: the folder holds no result, one that was damaged or changed, or one of a later format.
        """
        folder = Path(folder)
        info = read_info(folder)
        try:
            content = (folder / SUMS).read_bytes()
            _require_same(folder, SUMS, content, info)
            tensors = checked(info, load(content), str(folder))
        except FileNotFoundError as error:
            raise _none_here(folder, SUMS) from error
        except (OSError, SafetensorError) as error:
            raise damaged(str(folder), f"{SUMS} cannot be read ({error})") from error
        info.pop("files", None)
        head = {name: info.pop(name) for name in ("rows", "label_sets", "labels")}
        head["labels"] = [(label_set, name) for label_set, name in head["labels"]]
        return cls(tensors=tensors, info=info, **head)


def read_info(folder: Path, *, whole: Sequence[str] = ()) -> dict[str, Any]:
    """What a result's result.json holds; today's ones cannot have changed since they were written.

    Args:
        whole: files beside it that have to be as they were written, too; results of formats 1 and 2 do not tell.

    Raises:
        InputError: there is none, it was damaged or changed, or is of a later format.
    """
    try:
        text = (folder / RESULT_JSON).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _none_here(folder, RESULT_JSON) from error
    except (OSError, ValueError) as error:
        raise damaged(str(folder), f"{RESULT_JSON} cannot be read ({error})") from error
    info = unsealed(text, str(folder))
    for name in whole:
        try:
            _require_same(folder, name, (folder / name).read_bytes(), info)
        except OSError as error:
            raise damaged(str(folder), f"{name} cannot be read ({error})") from error
    return info


def _require_same(folder: Path, name: str, content: bytes, info: Mapping[str, Any]) -> None:
    files = info.get("files", {})
    if name in files and hashlib.sha256(content).hexdigest() != files[name]:
        raise damaged(str(folder), f"{name} was changed after it was written")


def _none_here(folder: Path, name: str) -> InputError:
    return InputError(f"{folder}: holds no result: {name} is missing")


def _write(path: Path, write: Callable[[Path], Any]) -> str:
    """Write a file at once or not at all; return its SHA-256."""
    with replacing(path) as part:
        write(part)
        return file_sha256(part)


def is_result(folder: Path) -> bool:
    """Whether a folder holds a whole result."""
    return (folder / RESULT_JSON).is_file()


def wide_table(result: ProbeResult, metrics: Sequence[str] = ("entropy", "mutual_information")) -> pd.DataFrame:
    """One line a row, for reading: the entropy, and each label set's information."""
    table = result.to_pandas()
    table = table[table.metric.isin(metrics)]
    column = table.label_set.where(table.label_set != "", "entropy").where(
        table.metric != "mutual_information", "I(" + table.label_set + ")"
    )
    wide = table.assign(column=column).pivot_table(
        index=["layer", "name"], columns="column", values="value", sort=False
    )
    return wide.reset_index().rename_axis(columns=None)
