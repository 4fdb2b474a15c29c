"""The documents of a known corpus whose sums are kept, for the null and correction of labels of whole documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from softh_probe.accumulators.document_labels import DocumentSet, SampledDocuments
from softh_probe.accumulators.sampling import MAX_DOCUMENTS
from softh_probe.labels import COLUMN_PREFIX, PREFERENCE_LABEL, LabelSet
from softh_probe.planned.row_allocation import RowAllocation

if TYPE_CHECKING:
    from softh_probe.data.corpus import Corpus

#: The label set that tells the documents of a row of the data apart: they come from several text columns.
PAIRED = COLUMN_PREFIX + PREFERENCE_LABEL


@dataclass(frozen=True, kw_only=True)
class PlannedDocuments:
    """The documents of a corpus that count, and the sample of those that have a label.

    Attributes:
        first_D: the first window of each document that counts.
        sampled: the sample; its slots are its order.
        sampled_D: the documents of the sample, among those that count.
        slots: slot of each window of the corpus; −1 where its document is not in the sample.
    """

    first_D: np.ndarray
    sampled: SampledDocuments
    sampled_D: np.ndarray
    slots: np.ndarray

    def sets(self, corpus: Corpus, label_sets: Sequence[LabelSet], allocation: RowAllocation) -> dict[int, DocumentSet]:
        """Give the labels of the sampled documents in each set of labels of whole documents, by number of the set."""
        found = {}
        _, first_of_unit = np.unique(corpus.rows[self.first_D], return_index=True)
        for x, label_set in enumerate(label_sets):
            if label_set.direction != "column":
                continue
            is_paired = label_set.name == PAIRED
            column = corpus.columns[label_set.column]
            label_D = column.ids[self.first_D].astype(np.int64)
            labels = label_D if is_paired else label_D[first_of_unit]
            kept = np.flatnonzero((allocation.kept_sets == x) & (allocation.kept_ids >= 0))
            chosen = self.sampled.labelled(
                label_D[self.sampled_D],
                np.bincount(labels[labels >= 0], minlength=len(column.names)),
                _rows_of(allocation.kept_ids[kept], kept, len(column.names)),
                is_paired=is_paired,
            )
            if chosen is not None:
                found[x] = chosen
        return found


def sample_documents(
    corpus: Corpus,
    counted: np.ndarray,
    document_keys: np.ndarray,
    label_sets: Sequence[LabelSet],
    within: str | None = None,
) -> PlannedDocuments:
    """Draw whole rows of the data whose documents have a label, those of the smallest keys; all if they fit.

    Args:
        corpus: the tokenised corpus.
        counted: its windows that have a position that counts.
        document_keys: uint64, for each window of the corpus the key of its document.
        label_sets: the label sets.
        within: the column within whose values labels are exchanged; None for none.
    """
    columns = [corpus.columns[s.column].ids for s in label_sets if s.direction == "column"]
    counted = np.sort(counted) if columns else counted[:0]
    _, first = np.unique(corpus.source[counted], return_index=True)
    first_D = counted[first]
    has_label_D = np.zeros(len(first_D), dtype=bool)
    for ids in columns:
        has_label_D |= ids[first_D] >= 0
    key_D = document_keys[first_D]
    labelled_D = np.flatnonzero(has_label_D)
    sampled_D = labelled_D[np.lexsort((first_D[labelled_D], key_D[labelled_D]))][:MAX_DOCUMENTS]
    slots_D = np.full(len(first_D), -1, dtype=np.int64)
    slots_D[sampled_D] = np.arange(len(sampled_D))
    windows = first_D[sampled_D]
    groups_D = None if within is None else corpus.columns[within].ids[windows].astype(np.int64)
    slots = np.full(corpus.n_documents, -1, dtype=np.int64)
    document = np.searchsorted(corpus.source[first_D], corpus.source[counted])
    slots[counted] = slots_D[document]
    return PlannedDocuments(
        first_D=first_D,
        sampled=SampledDocuments(
            slots_D=np.arange(len(sampled_D)), units_D=corpus.rows[windows].astype(np.int64), groups_D=groups_D
        ),
        sampled_D=sampled_D,
        slots=slots,
    )


def _rows_of(ids: np.ndarray, rows: np.ndarray, n_labels: int) -> np.ndarray:
    """Give the row of each label; none where labels keep no rows."""
    if not len(ids):
        return rows
    found = np.full(n_labels, -1, dtype=np.int64)
    found[ids] = rows
    return found
