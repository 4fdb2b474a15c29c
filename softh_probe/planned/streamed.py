"""The rows of a streamed run: labels take them as documents come, batch by batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from softh_probe.accumulators.dispatch import Dispatch, MergeMap
from softh_probe.accumulators.row_labels import RowLabels, TableSizes
from softh_probe.accumulators.sampling import MAX_DOCUMENTS, document_keys, sequence_key
from softh_probe.attached.inputs import TokenBatch
from softh_probe.attached.online_documents import first_of_each
from softh_probe.attached.online_rows import OnlineRows
from softh_probe.attached.sequences import CachedSequences
from softh_probe.data.corpus import Corpus, pad_batch
from softh_probe.errors import InputError
from softh_probe.labels import LabelRows, LabelSet
from softh_probe.planned.document_sample import PAIRED
from softh_probe.planned.population import Population
from softh_probe.planned.row_allocation import KEPT_LABELS


class StreamedRows:
    """Assign rows to the labels of documents that are fed as they come; a `LabelRows`.

    n-grams are those of an attached probe (`OnlineRows`), at most `label_rows` at a time. Labels of columns keep their
    rows and have the names of their values. Samples of positions and bootstrap weights are those of a `Plan`: windows
    of a split document share the weights of the first one.

    Args:
        label_sets: the label sets, whose order numbers them.
        label_rows: rows of n-gram labels at most, or "all".
        seed: of the sample of labels that is followed where not all fit.
        within: the column within whose values labels of documents are exchanged for their null; None for none.
    """

    def __init__(
        self, label_sets: Sequence[LabelSet], *, label_rows: LabelRows, seed: int, within: str | None = None
    ) -> None:
        self._within = within
        self._window: Corpus | None = None
        self._is_first: tuple[np.ndarray, np.ndarray]  # that counts, of each document, and row
        self.label_sets: Sequence[LabelSet] = tuple(label_sets)
        self.label_rows = label_rows
        self._seed = seed
        self._ngrams = [s for s in label_sets if s.direction != "column"]
        self._columns = [s for s in label_sets if s.direction == "column"]
        self._rows = OnlineRows(self._ngrams, label_rows=label_rows, seed=seed)
        self._names: dict[str, list[str]] = {s.name: [] for s in self._columns}

    @property
    def set_names(self) -> list[str]:
        """Names of the label sets."""
        return [s.name for s in self.label_sets]

    def fresh(self) -> StreamedRows:
        """Make rows of the same settings that no label has taken."""
        return StreamedRows(self.label_sets, label_rows=self.label_rows, seed=self._seed, within=self._within)

    def batch(self, window: Corpus, documents: np.ndarray) -> Dispatch:
        """Build the dispatch of a batch, whose documents are right-padded to the longest, and take rows for its labels.

        Args:
            window: documents that were read together; all windows of a split document are among them.
            documents: the documents of the batch, by their index there.
        """
        ids_BT, mask_BT = (tensor.numpy() for tensor in pad_batch(window, documents))
        counted_BT = None if window.counted is None else window.counted_rows(documents, ids_BT.shape[1])
        fed = TokenBatch(real_BT=mask_BT != 0, ids_BT=ids_BT, counted_BT=counted_BT)
        own = {}
        for s in self._columns:
            column = window.columns[s.column]
            self._names[s.name] = column.names
            own[s.name] = np.broadcast_to(column.ids[documents].astype(np.int64)[:, None], ids_BT.shape)
        sequences = self._rows.new_sequences(fed)
        sequences.drawn_keys_B = _first_keys(window, window.source, documents, sequences.keys_B)
        first_keys_B = _first_keys(window, window.rows, documents, sequences.keys_B)
        first_of_row_B = np.searchsorted(window.rows, window.rows[documents])
        place_B = window.source[documents] - window.source[first_of_row_B]
        sequences.document_keys_B = document_keys(first_keys_B, window.rows[documents], place_B)
        self._tell_documents(sequences, window, documents)
        return self._rows.batch(fed, own, sequences)

    def _tell_documents(self, sequences: CachedSequences, window: Corpus, documents: np.ndarray) -> None:
        """Set the documents, units and groups that sequences are of; the first with a counted position counts."""
        sequences.documents_B, sequences.units_B = window.source[documents], window.rows[documents]
        if self._window is not window:
            counts = Population(window, self.label_sets).counts() > 0
            self._window = window
            self._is_first = first_of_each(window.source, counts), first_of_each(window.rows, counts)
        is_first_document, is_first_of_unit = self._is_first
        sequences.is_new_B, sequences.is_new_unit_B = is_first_document[documents], is_first_of_unit[documents]
        if self._within is not None:
            sequences.groups_B = window.columns[self._within].ids[documents].astype(np.int64)

    def row_labels(self) -> RowLabels:
        """Describe the rows of the sums as they are now, with the sets in their order."""
        rows = self._rows.row_labels(paired=(PAIRED,))
        found = [rows.set_names.index(s.name) for s in self.label_sets if s.name in rows.set_names]
        place = np.zeros(len(found) + 1, dtype=np.int64)
        place[found] = np.arange(len(found))
        place[-1] = -1  # of live rows that labels share
        names = [rows.set_names[i] for i in found]
        n_ngrams = len(self._ngrams)
        kept = zip(rows.kept_sets.tolist(), rows.kept_names, strict=True)
        none = np.zeros(0, dtype=np.int64)
        return dataclasses.replace(
            rows,
            set_names=names,
            keeps_labels=[rows.keeps_labels[i] for i in found],
            kept_sets=place[rows.kept_sets],
            kept_names=[None if name is None else self._names[rows.set_names[i]][int(name)] for i, name in kept],
            live_sets=place[rows.live_sets],
            shared_rows=[rows.shared_rows[i] if i < n_ngrams else none for i in found],
            thresholds=rows.thresholds[found],
            shared_probability=[rows.shared_probability[i] if i < n_ngrams else np.zeros(0) for i in found],
            document_sets={int(place[i]): of_set for i, of_set in rows.document_sets.items()},
        )

    def table_sizes(self) -> TableSizes:
        """Give the sizes of a layer's sums: all rows that n-grams may take, where their number is bounded."""
        sizes = self._rows.table_sizes()
        most = self.label_rows if self._ngrams and self.label_rows != "all" else 0
        n_documents = MAX_DOCUMENTS if self._columns else 0
        return dataclasses.replace(sizes, n_live=max(sizes.n_live, most), n_documents=n_documents)

    def check(self) -> None:
        """Check that each column has a label.

        Raises:
            InputError: it has none in the documents that were fed.
        """
        counts = self._rows.row_labels(paired=(PAIRED,))
        for s in self._columns:
            if s.name not in counts.set_names or counts.set_names.index(s.name) not in counts.kept_sets:
                raise InputError(f"labels: {s.name} is null in every document that is long enough; leave it out")

    def state_dict(self) -> dict[str, Any]:
        """Copy the keys of all labels, as `OnlineRows` does, and the names of columns' values."""
        return {**self._rows.state_dict(), "columns": {name: list(names) for name, names in self._names.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> np.ndarray | None:
        """Replace all rows by those of a state; see `LabelRows.load_state_dict`."""
        self._names = {name: list(names) for name, names in state["columns"].items()}
        return self._rows.load_state_dict(state)

    def merge(self, other: object) -> MergeMap:
        """Take over the labels and the sample of another part of the same stream, whose columns name values alike.

        Raises:
            InputError: the other is no part of this stream.
        """
        if not isinstance(other, StreamedRows):
            raise InputError("merge: a streamed run is merged with parts of the same stream alone")
        return self._merge(other)

    def _merge(self, other: StreamedRows) -> MergeMap:
        for name, theirs in other._names.items():
            ours = self._names[name]
            shorter, longer = sorted((ours, theirs), key=len)
            if longer[: len(shorter)] != shorter:
                raise InputError(f"merge: {name} has other values, or in another order; merge parts of one stream")
            self._names[name] = longer
        return self._rows.merge_part(other._rows, first_number=0)  # documents have the numbers of the data


def check_columns(window: Corpus, label_columns: Sequence[str]) -> None:
    """Refuse columns of too many values, each of which is kept to the end.

    Args:
        window: documents that were read together.
        label_columns: the columns that label documents, whose values keep rows; another is that of `permute_within`.

    Raises:
        InputError: there are more than `KEPT_LABELS`.
    """
    for name, column in window.columns.items():
        if len(column.names) > KEPT_LABELS:
            is_label = name in label_columns
            what, remedy = (f"labels: column:{name}", " of labels") if is_label else (f"permute_within: {name!r}", "")
            raise InputError(
                f"{what} has more than {KEPT_LABELS:,} values, and a stream keeps each to the end; leave it out"
                f"{remedy}, or leave out --stream"
            )


def _first_keys(window: Corpus, numbers: np.ndarray, documents: np.ndarray, keys_B: np.ndarray) -> np.ndarray:
    """Find the key of the first window of each document, or row, which draws its weights and places it in samples."""
    first_B = np.searchsorted(numbers, numbers[documents])
    found = keys_B.copy()
    for b in np.flatnonzero(first_B != documents):
        found[b] = sequence_key(window.document(int(first_B[b])))
    return found
