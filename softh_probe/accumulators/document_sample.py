"""The sample of documents of an attached or a streamed measurement, whose documents come one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch

from softh_probe.accumulators.document_labels import SampledDocuments
from softh_probe.accumulators.sampling import MAX_DOCUMENTS, BottomKSample


class Documents(NamedTuple):
    """Some documents, or sequences of them.

    Attributes:
        numbers_Q, units_Q, groups_Q: number of each document, of its unit and of its group.
        keys_Q: uint64, key of each document; those of a unit are equal or follow each other.
        is_new_Q, is_new_unit_Q: whether the document, or its unit, is to be counted.
        labels: by set of labels of whole documents, the label of each; negative where it has none.
    """

    numbers_Q: np.ndarray
    units_Q: np.ndarray
    groups_Q: np.ndarray
    keys_Q: np.ndarray
    is_new_Q: np.ndarray
    is_new_unit_Q: np.ndarray
    labels: Mapping[str, np.ndarray]


class TakenOver(NamedTuple):
    """Documents of another sample: their slots there, their slots here, and the slots that are emptied first."""

    theirs: np.ndarray
    slots: np.ndarray
    emptied: np.ndarray


class DocumentSample:
    """Bottom-k sample of the documents that have a label, and counts of all of them by label.

    Args:
        size: documents at most; None is `MAX_DOCUMENTS`.

    Attributes:
        labels: by set, the label of each slot's document.
        counts: by set, how many documents and how many units have each label.
    """

    def __init__(self, size: int | None = None) -> None:
        self._keys = BottomKSample(MAX_DOCUMENTS if size is None else size)
        self._numbers, self._units, self._groups = np.zeros((3, 0), dtype=np.int64)
        self._slots: dict[int, int] = {}
        self.labels: dict[str, np.ndarray] = {}
        self.counts: dict[str, dict[int, list[int]]] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def slots_of(self, numbers_Q: np.ndarray) -> np.ndarray:
        """Find the slot of each document [Q]; −1 where it is not in the sample."""
        return np.array([self._slots.get(number, -1) for number in numbers_Q.tolist()], dtype=np.int64)

    def add(self, documents: Documents) -> np.ndarray:
        """Count documents, and take those into the sample that have the smallest keys; return the emptied slots."""
        labelled_Q = np.zeros(len(documents.numbers_Q), dtype=bool)
        for name, label_Q in documents.labels.items():
            labelled_Q |= label_Q >= 0
            self._count(name, documents, label_Q)
        offered = np.flatnonzero(labelled_Q & (self.slots_of(documents.numbers_Q) < 0))
        _, first = np.unique(documents.numbers_Q[offered], return_index=True)
        offered = offered[np.sort(first)]
        return self._offer(
            documents.numbers_Q[offered],
            documents.units_Q[offered],
            documents.groups_Q[offered],
            documents.keys_Q[offered],
            {name: label_Q[offered] for name, label_Q in documents.labels.items()},
        )[1]

    def forget(self, name: str) -> None:
        """Forget a set: its labels are not of whole documents."""
        self.labels.pop(name, None)
        self.counts.pop(name, None)

    def sampled(self) -> SampledDocuments:
        """Give the documents in the order of their keys."""
        order = np.lexsort((self._numbers, self._keys.keys))
        groups_D = self._groups[order]
        return SampledDocuments(
            slots_D=order, units_D=self._units[order], groups_D=groups_D if (groups_D >= 0).any() else None
        )

    def merge(
        self, other: DocumentSample, shift: int, renumbered: Mapping[str, np.ndarray] = MappingProxyType({})
    ) -> TakenOver:
        """Take over the documents of another part of the data.

        Args:
            other: their sample.
            shift: what is added to the numbers of their documents and units, so that they are none of ours.
            renumbered: by set whose labels have other numbers there, the number here of each; −1 at the end for none.
        """
        for name, counts in other.counts.items():
            ours, numbers = self.counts.setdefault(name, {}), renumbered.get(name)
            for label, (n_documents, n_units) in counts.items():
                count = ours.setdefault(label if numbers is None else int(numbers[label]), [0, 0])
                count[0] += n_documents
                count[1] += n_units
        numbers = other._numbers + shift
        there = self.slots_of(numbers)
        fresh = np.flatnonzero(there < 0)
        labels = {
            name: renumbered[name][label_D[fresh]] if name in renumbered else label_D[fresh]
            for name, label_D in other.labels.items()
        }
        taken, emptied = self._offer(
            numbers[fresh], other._units[fresh] + shift, other._groups[fresh], other._keys.keys[fresh], labels
        )
        theirs = np.concatenate([np.flatnonzero(there >= 0), fresh[taken]])
        slots = self.slots_of(numbers[theirs])
        left = slots >= 0  # a document of both may have left the sample
        return TakenOver(theirs[left], slots[left], emptied)

    def state_dict(self) -> dict[str, Any]:
        """Copy keys, numbers, labels and counts."""
        counts = {
            name: torch.tensor([[label, *n] for label, n in of_set.items()], dtype=torch.int64).reshape(-1, 3)
            for name, of_set in self.counts.items()
        }
        arrays = np.stack([self._keys.keys.view(np.int64), self._numbers, self._units, self._groups])
        labels = {name: torch.from_numpy(label_D.copy()) for name, label_D in self.labels.items()}
        return {"documents": torch.from_numpy(arrays), "labels": labels, "counts": counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace everything by a state."""
        keys, self._numbers, self._units, self._groups = state["documents"].numpy().copy()
        self._keys.keys = keys.view(np.uint64)
        self._slots = {number: slot for slot, number in enumerate(self._numbers.tolist())}
        self.labels = {name: label_D.numpy().copy() for name, label_D in state["labels"].items()}
        self.counts = {name: {label: n for label, *n in counts.tolist()} for name, counts in state["counts"].items()}

    def _count(self, name: str, documents: Documents, label_Q: np.ndarray) -> None:
        counts = self.counts.setdefault(name, {})
        for i, is_new_Q in enumerate((documents.is_new_Q, documents.is_new_unit_Q)):
            labels, n = np.unique(label_Q[is_new_Q & (label_Q >= 0)], return_counts=True)
            for label, n_label in zip(labels.tolist(), n.tolist(), strict=True):
                counts.setdefault(label, [0, 0])[i] += n_label

    def _offer(
        self,
        numbers_Q: np.ndarray,
        units_Q: np.ndarray,
        groups_Q: np.ndarray,
        keys_Q: np.ndarray,
        labels: Mapping[str, np.ndarray],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Take the documents of the smallest keys; return which of the new ones, and the emptied slots."""
        n_old = len(self)
        taken, slots = self._keys.offer(keys_Q)
        n_all = len(self._keys.keys)
        emptied = slots[slots < n_old]
        for slot in emptied.tolist():
            del self._slots[int(self._numbers[slot])]
        self._numbers, self._units, self._groups = (
            _with(old, n_all, slots, new[taken])
            for old, new in ((self._numbers, numbers_Q), (self._units, units_Q), (self._groups, groups_Q))
        )
        for name in dict.fromkeys([*self.labels, *labels]):
            label_Q = labels.get(name, np.full(len(numbers_Q), -1))
            self.labels[name] = _with(self.labels.get(name, np.full(n_old, -1)), n_all, slots, label_Q[taken])
        self._slots.update(zip(numbers_Q[taken].tolist(), slots.tolist(), strict=True))
        return taken, emptied


def _with(old_D: np.ndarray, n_all: int, slots: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Lengthen an array to n_all entries, and set some of them."""
    found = np.concatenate([old_D, np.full(n_all - len(old_D), -1, dtype=np.int64)])
    found[slots] = new
    return found
