"""The influence of each document on a result's values, from which standard errors over documents follow.

Plug-in entropies and informations are smooth functions of sums over documents. To first order the error of such a value
is the mean over positions of its documents' influences ψ_d (the delta method; Huber 1981, chapter 1):

    entropy        ψ_d = −Σ_{i in d} Σ_j q_ij log p̂_j − n_d H
    information    ψ_d = Σ_{i in d} Σ_j q_ij log(p̂_xj / p̂_j) − n_d I
    ratio A/B      ψ_d = (ψ_d(A) − A/B ψ_d(B)) / B

    SE = sqrt(Σ_d ψ_d²) / N

Documents of one row of the data, such as a chosen and a rejected answer, share a prompt: they are one unit, whose
influences are summed first. Where a share of the units was measured, the sum of squares is scaled to all.

Shape suffixes: R rows (layers), D documents, U units.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

#: Label set and metric.
Name = tuple[str, str]

_COUNTS = ("n_documents", "n_units", "n_positions")


@dataclass(frozen=True, kw_only=True)
class DocumentInfluence:
    """Influences ψ_d of documents on the values of a result.

    >>> psi_RD = np.array([[3.0, -1.0, -2.0]])
    >>> influence = DocumentInfluence(
    ...     rows=["layer.1"], documents=np.arange(3), keys=np.arange(3, dtype=np.uint64), units=np.array([0, 1, 1]),
    ...     positions=np.array([5, 2, 3]), n_documents=3, n_units=2, n_positions=10, values={("", "entropy"): psi_RD})
    >>> influence.standard_error(("", "entropy")).round(3).tolist()  # the units' sums are 3 and -3
    [0.424]

    Attributes:
        rows: names of the layers.
        documents: [D], int64, number of each document in the data.
        keys: [D], uint64, hash of its tokens.
        units: [D], int64, number of its row in the data.
        positions: [D], int64, its positions that count.
        n_documents, n_units, n_positions: of all the data that counted, measured here or not.
        values: by label set ("" for entropy, the order for optimality) and metric, ψ [R, D]: nats times positions where
            the metric has a unit, else positions.
    """

    rows: list[str]
    documents: np.ndarray
    keys: np.ndarray
    units: np.ndarray
    positions: np.ndarray
    n_documents: int
    n_units: int
    n_positions: int
    values: Mapping[Name, np.ndarray]

    def standard_error(self, name: Name) -> np.ndarray:
        """Compute the standard error of a metric over documents: [R], in nats where it has a unit."""
        return standard_error(self.values[name] / self.n_positions, self.units, self.n_units)

    def error_of(self, psi_D: np.ndarray) -> float:
        """Compute the standard error of a value on which the documents have the influences ψ [D]."""
        return float(standard_error(psi_D[None] / self.n_positions, self.units, self.n_units)[0])

    def write(self, path: Path, layers: Sequence[int]) -> None:
        """Write a parquet file: a line for each value, document and layer; the counts are metadata of its schema.

        Args:
            path: the file.
            layers: index of each row in the model.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        n_rows, n_documents = len(self.rows), len(self.documents)
        of_documents = {
            "document": self.documents,
            "key": np.array([f"{key:016x}" for key in self.keys.tolist()], dtype=object),
            "unit": self.units,
            "positions": self.positions,
        }
        parts = [
            pd.DataFrame(
                {
                    **{name: np.tile(values, n_rows) for name, values in of_documents.items()},
                    "layer": np.repeat(np.array(layers, dtype=np.int64), n_documents),
                    "name": np.repeat(self.rows, n_documents),
                    "label_set": label_set,
                    "metric": metric,
                    "value": psi_RD.reshape(-1),
                }
            )
            for (label_set, metric), psi_RD in self.values.items()
        ]
        table = pa.Table.from_pandas(pd.concat(parts, ignore_index=True), preserve_index=False)
        counts = {name: getattr(self, name) for name in _COUNTS}
        described = {"softh_probe": json.dumps({**counts, "rows": self.rows}), **_text(table.schema.metadata)}
        pq.write_table(table.replace_schema_metadata(described), path)

    @classmethod
    def read(cls, path: Path) -> DocumentInfluence:
        """Read what `write` wrote.

        Raises:
            OSError, ValueError, KeyError: the file is none of these.
        """
        import pyarrow.parquet as pq

        table = pq.read_table(path)
        head: dict[str, Any] = json.loads(_text(table.schema.metadata)["softh_probe"])
        frame = table.to_pandas()
        rows, n_lines = head["rows"], len(frame)
        names = frame[["label_set", "metric"]].drop_duplicates().itertuples(index=False, name=None)
        of_names = {name: i for i, name in enumerate(names)}
        shape = (len(of_names), len(rows), n_lines // max(1, len(of_names) * len(rows)))
        values_NRD = frame["value"].to_numpy().reshape(shape)
        first = frame.iloc[: shape[2]]
        return cls(
            rows=rows,
            documents=first["document"].to_numpy(),
            keys=np.array([int(key, 16) for key in first["key"]], dtype=np.uint64),
            units=first["unit"].to_numpy(),
            positions=first["positions"].to_numpy(),
            values={name: values_NRD[i] for name, i in of_names.items()},
            **{name: head[name] for name in _COUNTS},
        )


def standard_error(psi_RD: np.ndarray, units_D: np.ndarray, n_units: int) -> np.ndarray:
    """Compute the standard error [R] of values from the influences of documents.

    >>> standard_error(np.array([[0.3, -0.4]]), np.array([0, 1]), n_units=8)
    array([1.])

    Args:
        psi_RD: influences, divided by the number of all positions.
        units_D: unit of each document; those of one unit are summed.
        n_units: units of the whole data, of which the units here are a uniform sample.
    """
    units_U, unit_D = np.unique(units_D, return_inverse=True)
    if len(units_U) < len(units_D):
        summed_RU = np.zeros((len(psi_RD), len(units_U)))
        np.add.at(summed_RU.T, unit_D, psi_RD.T)
    else:
        summed_RU = psi_RD
    squares_R: np.ndarray = np.square(summed_RU).sum(axis=1)
    return np.sqrt(squares_R * n_units / max(1, len(units_U)))


def _text(metadata: Mapping[bytes, bytes] | None) -> dict[str, str]:
    return {key.decode(): value.decode() for key, value in (metadata or {}).items()}
