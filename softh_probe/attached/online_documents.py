"""The documents of an attached or a streamed measurement: labels of one's own are often those of whole sequences."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from softh_probe.accumulators.document_labels import DocumentSet
from softh_probe.accumulators.document_sample import Documents, DocumentSample, TakenOver
from softh_probe.attached.sequences import NOT_YET, CachedSequences

_NONE = np.zeros(0, dtype=np.int64)


class OnlineDocuments:
    """Sample documents whose labels are given one for each sequence, and tell them from labels of positions.

    A set labels positions where its labels are given [B, T], or differ within a sequence; its documents are forgotten.
    """

    def __init__(self) -> None:
        self._sample = DocumentSample()
        self._position_sets: set[str] = set()

    def __len__(self) -> int:
        return len(self._sample)

    def label_positions(self, names: Iterable[str]) -> None:
        """Note label sets that label positions, not whole documents."""
        for name in names:
            self._position_sets.add(name)
            self._sample.forget(name)

    def take(
        self, sequences: CachedSequences, row_N: np.ndarray, own: Mapping[str, np.ndarray]
    ) -> tuple[np.ndarray | None, np.ndarray]:
        """Count and sample the documents of counted positions.

        Args:
            sequences: the sequences.
            row_N: the sequence of each counted position.
            own: by set, the label of each of these positions.

        Returns:
            The slot of each sequence's document, and the slots that are emptied.
        """
        if not (own.keys() - self._position_sets and len(row_N)):
            return None, _NONE
        found, of_positions = find_documents(sequences, row_N, own)
        self.label_positions(of_positions)
        labels = {name: label_Q for name, label_Q in found.labels.items() if name not in self._position_sets}
        emptied = self._sample.add(found._replace(labels=labels))
        return self._sample.slots_of(sequences.documents_B), emptied

    def sets(
        self, kept: Mapping[str, Mapping[int, int]], first_set: int, paired: Collection[str]
    ) -> dict[int, DocumentSet]:
        """Give the labels of the sampled documents in each set of labels of whole documents, by number of the set.

        Args:
            kept: the kept row of each label, by set.
            first_set: number of the first of these sets.
            paired: names of sets whose labels tell the documents of a unit apart.
        """
        sampled, found = self._sample.sampled(), {}
        for x, (name, rows) in enumerate(kept.items(), start=first_set):
            if name not in self._sample.labels:
                continue
            counts, number = self._sample.counts[name], {label: c for c, label in enumerate(rows)}
            label_D = self._sample.labels[name][sampled.slots_D]
            chosen = sampled.labelled(
                np.array([number.get(label, -1) for label in label_D.tolist()], dtype=np.int64),
                np.array([counts.get(label, (0, 0))[name not in paired] for label in rows], dtype=np.int64),
                np.array(list(rows.values()), dtype=np.int64),
                is_paired=name in paired,
            )
            if chosen is not None:
                found[x] = chosen
        return found

    def merge(self, other: OnlineDocuments, first_number: int, renumbered: Mapping[str, np.ndarray]) -> TakenOver:
        """Take over another part, the numbers of whose documents are raised by `first_number`.

        Args:
            other: the other part.
            first_number: what is added to the numbers of its documents.
            renumbered: by set, the number here of each label there, where these differ; see `DocumentSample.merge`.
        """
        taken = self._sample.merge(other._sample, first_number, renumbered)
        self.label_positions({*self._position_sets, *other._position_sets})
        return taken

    def state_dict(self) -> dict[str, Any]:
        """Copy the sample, and the names of sets that label positions."""
        return {"documents": self._sample.state_dict(), "position_sets": sorted(self._position_sets)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace everything by what `state_dict` gave."""
        self._sample, self._position_sets = DocumentSample(), set(state["position_sets"])
        self._sample.load_state_dict(state["documents"])


def find_documents(
    sequences: CachedSequences, row_N: np.ndarray, own: Mapping[str, np.ndarray]
) -> tuple[Documents, list[str]]:
    """Find the documents of counted positions, and note in their sequences that they are counted.

    Args:
        sequences: the sequences.
        row_N: the sequence of each counted position.
        own: by set, the label of each of these positions.

    Returns:
        The documents, and the sets whose labels differ within one.
    """
    rows_Q, first_Q, number_N = np.unique(row_N, return_index=True, return_inverse=True)
    labels, of_positions = {}, []
    was_seen_B = np.zeros(len(sequences.keys_B), dtype=bool)
    for before_B in sequences.labels_B.values():
        was_seen_B |= before_B != NOT_YET
    for name, values_N in own.items():
        before_B = sequences.labels_B.setdefault(name, np.where(was_seen_B, -1, NOT_YET))
        label_Q = labels[name] = values_N[first_Q]
        before_Q = before_B[rows_Q]
        if (values_N != label_Q[number_N]).any() or ((before_Q != NOT_YET) & (before_Q != label_Q)).any():
            of_positions.append(name)
        before_B[rows_Q] = label_Q
    documents = Documents(
        numbers_Q=sequences.documents_B[rows_Q],
        units_Q=sequences.units_B[rows_Q],
        groups_Q=sequences.groups_B[rows_Q],
        keys_Q=sequences.document_keys_B[rows_Q],
        is_new_Q=first_of_each(sequences.documents_B[rows_Q], sequences.is_new_B[rows_Q]),
        is_new_unit_Q=first_of_each(sequences.units_B[rows_Q], sequences.is_new_unit_B[rows_Q]),
        labels=labels,
    )
    sequences.is_new_B &= ~np.isin(sequences.documents_B, documents.numbers_Q)
    sequences.is_new_unit_B &= ~np.isin(sequences.units_B, documents.units_Q)
    return documents, of_positions


def first_of_each(numbers_Q: np.ndarray, is_new_Q: np.ndarray) -> np.ndarray:
    """Choose the first of equal numbers, of those that are new."""
    found = np.zeros(len(numbers_Q), dtype=bool)
    new = np.flatnonzero(is_new_Q)
    _, first = np.unique(numbers_Q[new], return_index=True)
    found[new[first]] = True
    return found
