"""The meaning of the rows of the label tables, and how large the tables are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from softh_probe.accumulators.document_labels import DocumentSet


def _none() -> np.ndarray:
    return np.zeros(0, dtype=np.int64)


def _nothing() -> np.ndarray:
    return np.zeros(0, dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class TableSizes:
    """Sizes of the sums of one layer; see `softh_probe.accumulators.layer_sums.LayerSums`.

    Attributes:
        n_kept: rows of labels that are kept to the end.
        n_live: rows of labels that have occurred and will, or may, occur again.
        most_live: live rows at most, where that is known; tables take no memory ahead beyond them.
        n_buckets: pools of labels that have occurred for the last time.
        n_singleton_sets: label sets that sum the positions whose label occurs once.
        n_sample: positions whose soft assignment is kept.
        n_documents: documents whose sums are kept.
        with_squares: whether buckets hold the squares too from which the error of a sample of labels is computed.
        bins: sizes of the sums of each bin of positions, where these are measured too.
    """

    n_kept: int = 0
    n_live: int = 0
    most_live: int | None = None
    n_buckets: int = 0
    n_singleton_sets: int = 0
    n_sample: int = 0
    n_documents: int = 0
    with_squares: bool = False
    bins: tuple[TableSizes, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RowLabels:
    """The label that each row of the sums belongs to. Label sets are numbered in the order of their names.

    `softh_probe.planned.plan.Plan` and `softh_probe.attached.online_rows.OnlineRows` each build one; statistics and
    results read it and do not ask which of them did.

    Attributes:
        set_names: names of the label sets.
        keeps_labels: of each set, whether all its labels have kept rows.
        kept_sets, kept_names: of each kept row its set and its label; None for positions without a label.
        live_sets: of each live row its set; −1 where labels of several sets may share it, and where it does not count.
        shared_rows: of each set, the live rows of its labels that occurred once and may share a row.
        singleton_sets: sets whose labels come and go.
        singleton_labels: of each of these, how many labels occur once and have no bucket.
        bucket_sets, bucket_counts, bucket_labels: of each bucket its set, its labels' count, and how many there are.
        bucket_followed: of each bucket, how many of these are followed and pooled in it.
        bucket_probability: of each bucket, the probability π that a label of it is followed.
        thresholds: of each set, the threshold τ of its sample of labels (`label_sampling`); 1 where all are followed.
        live_probability: of each live row that belongs to one label, the probability π that it is followed.
        live_scale: of each live row, the label's positions over those in its sums; more than 1 where it entered late.
        shared_probability: of each set, the π of its labels that occurred once, in the order of `shared_rows`.
        bucket_names: of each bucket its label, where it holds a single one by choice; else None.
        sample_order: slots of the sample in the order of their positions' keys.
        document_sets: of each set of labels of whole documents, by its number, those of the sampled documents.
        retired_rows, retired_buckets: live rows that are retired when the shares of several processes are merged.
        bins: the rows of each bin of positions by its name, where these are measured too.
    """

    set_names: list[str] = field(default_factory=list)
    keeps_labels: list[bool] = field(default_factory=list)
    kept_sets: np.ndarray = field(default_factory=_none)
    kept_names: list[str | None] = field(default_factory=list)
    live_sets: np.ndarray = field(default_factory=_none)
    shared_rows: list[np.ndarray] = field(default_factory=list)
    singleton_sets: np.ndarray = field(default_factory=_none)
    singleton_labels: np.ndarray = field(default_factory=_none)
    bucket_sets: np.ndarray = field(default_factory=_none)
    bucket_counts: np.ndarray = field(default_factory=_none)
    bucket_labels: np.ndarray = field(default_factory=_none)
    bucket_followed: np.ndarray = field(default_factory=_none)
    bucket_probability: np.ndarray = field(default_factory=_nothing)
    thresholds: np.ndarray = field(default_factory=_nothing)
    live_probability: np.ndarray = field(default_factory=_nothing)
    live_scale: np.ndarray = field(default_factory=_nothing)
    shared_probability: list[np.ndarray] = field(default_factory=list)
    bucket_names: list[str | None] = field(default_factory=list)
    sample_order: np.ndarray = field(default_factory=_none)
    document_sets: dict[int, DocumentSet] = field(default_factory=dict)
    retired_rows: np.ndarray = field(default_factory=_none)
    retired_buckets: np.ndarray = field(default_factory=_none)
    bins: dict[str, RowLabels] = field(default_factory=dict)

    def sampling(self) -> dict[str, dict[str, Any]]:
        """Describe the labels of each set by name: how many there are, how many are followed, and the threshold.

        Where counts are known of the followed labels alone, the number of all is an estimate.
        """
        found = {}
        probability = self.live_probability if len(self.live_probability) else np.ones(len(self.live_sets))
        kept = np.array([name is not None for name in self.kept_names], dtype=bool)
        for x, name in enumerate(self.set_names):
            threshold = float(self.thresholds[x]) if len(self.thresholds) else 1.0
            rows = [probability[self.live_sets == x]]
            if len(self.shared_probability) > x:
                rows.append(self.shared_probability[x])
            elif len(self.shared_rows) > x:
                rows.append(np.ones(len(self.shared_rows[x])))
            with_rows = np.concatenate(rows)
            certain = int((kept & (self.kept_sets == x)).sum() + self.singleton_labels[self.singleton_sets == x].sum())
            of_set = self.bucket_sets == x
            found[name] = {
                "labels": certain + int(self.bucket_labels[of_set].sum()) + round((1 / with_rows).sum()),
                "followed": certain + int(self.bucket_followed[of_set].sum()) + len(with_rows),
                "threshold": threshold,
                "estimated": threshold > 1 and len(self.shared_probability) > 0,
            }
        return found

    def document_labels(self) -> dict[str, dict[str, Any]]:
        """Describe the sets of labels of whole documents by name; see `DocumentSet.describe`."""
        return {self.set_names[x]: of_set.describe() for x, of_set in self.document_sets.items()}

    def named_labels(self) -> list[tuple[str, str]]:
        """List the set and name of each label that results show one by one, in the order of their statistics."""
        sets = [*self.kept_sets.tolist(), *self.bucket_sets.tolist()]
        names = [*self.kept_names, *self.bucket_names]
        return [(self.set_names[i], name) for i, name in zip(sets, names, strict=True) if name is not None]
