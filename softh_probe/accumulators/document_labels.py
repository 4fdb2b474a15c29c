"""The labels of whole documents that the documents of the sample have, as their null and correction need them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from softh_probe.choices import Choices
from softh_probe.estimators.relabeling import MOST_LABELS_OF_SAMPLE, DocumentLabels, Relabelings


@dataclass(frozen=True, kw_only=True)
class DocumentSet:
    """The sampled documents that have a label of one set.

    Documents of one unit (a row of the data, such as a chosen and a rejected answer) are dependent. Where all of them
    have the same label, the unit is what is relabelled; labels that tell them apart are exchanged within it.

    Attributes:
        slots_E: slots of the documents in the sample.
        items_E: for each of them the number of what is relabelled, 0 … D − 1: a document or a unit.
        labels: labels of these D items, and how many items of the whole data have each label.
        rows_C: the kept row of each label; empty where labels keep none.
    """

    slots_E: np.ndarray
    items_E: np.ndarray
    labels: DocumentLabels
    rows_C: np.ndarray

    @cached_property
    def relabelings(self) -> Relabelings:
        """Random relabelings, the same for all layers."""
        return Relabelings(self.labels)

    @property
    def is_whole(self) -> bool:
        """Whether the sample holds all documents that have a label."""
        return int(self.labels.documents_C.sum()) == len(self.labels.label_D)

    @property
    def tells_p_value(self) -> bool:
        """Whether the sample holds all documents, or enough of each label for a p-value."""
        return self.is_whole or len(self.labels.documents_C) <= MOST_LABELS_OF_SAMPLE

    def describe(self) -> dict[str, Any]:
        """Describe the set for a result (JSON values).

        Returns:
            How many `labels` there are; how many `documents` have one (or rows of the data, where all documents of a
            row have the same one); how many of them are `sampled`; how many have a label that is theirs `alone`; and
            how many of the sampled ones are `exchangeable`: another one of their group has another label.
        """
        of_label_C, label_D, group_D = self.labels.documents_C, self.labels.label_D, self.labels.group_D
        groups_D = (
            np.zeros(len(label_D), dtype=np.int64) if group_D is None else np.unique(group_D, return_inverse=True)[1]
        )
        cells = np.unique(np.stack([groups_D, label_D]), axis=1)
        has_several_G = np.bincount(cells[0]) > 1
        return {
            "labels": len(of_label_C),
            "documents": int(of_label_C.sum()),
            "sampled": len(label_D),
            "alone": int((of_label_C == 1).sum()),
            "exchangeable": int(has_several_G[groups_D].sum()),
        }


@dataclass(frozen=True, kw_only=True)
class SampledDocuments:
    """The documents of a sample, in an order that does not depend on their slots, whatever their labels.

    Attributes:
        slots_D: their slots.
        units_D: numbers of their units.
        groups_D: numbers of groups between which no labels are exchanged; None where all documents are one group.
    """

    slots_D: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    units_D: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    groups_D: np.ndarray | None = None

    def labelled(
        self, label_D: np.ndarray, documents_C: np.ndarray, rows_C: np.ndarray, *, is_paired: bool = False
    ) -> DocumentSet | None:
        """Select the documents that have a label of a set; None where none has.

        Args:
            label_D: label of each document; negative where it has none.
            documents_C: how many documents of the whole data have each label; units unless `is_paired`.
            rows_C: the kept row of each label; empty where labels keep none.
            is_paired: whether the labels tell the documents of a unit apart, where units have several.
        """
        has_label = np.flatnonzero(label_D >= 0)
        if not len(has_label):
            return None
        used_C = np.flatnonzero(documents_C)
        number_C = np.zeros(len(documents_C), dtype=np.int64)
        number_C[used_C] = np.arange(len(used_C))
        units_E, label_E = self.units_D[has_label], number_C[label_D[has_label]]
        first, items_E = np.arange(len(has_label)), np.arange(len(has_label))
        group_D: np.ndarray | None = units_E
        _, first_U, unit_E = np.unique(units_E, return_index=True, return_inverse=True)
        if not is_paired or len(first_U) == len(units_E):
            in_order = np.argsort(first_U)  # of the documents, rather than of the units' numbers
            first, items_E = first_U[in_order], np.argsort(in_order)[unit_E]
            group_D = None if self.groups_D is None else self.groups_D[has_label][first]
        return DocumentSet(
            slots_E=self.slots_D[has_label],
            items_E=items_E,
            labels=DocumentLabels(label_D=label_E[first], documents_C=documents_C[used_C], group_D=group_D),
            rows_C=rows_C[used_C] if len(rows_C) else rows_C,
        )


def record_documents(name: str, of_set: Mapping[str, Any], choices: Choices, told: Choices) -> None:
    """Record what limits the null and the correction of a set of labels of whole documents.

    Args:
        name: the label set; of_set: what `DocumentSet.describe` says of it.
        choices: those of a result; told: those that were warned of before.
    """
    n_documents, n_sampled, n_alone = (of_set[key] for key in ("documents", "sampled", "alone"))
    if n_sampled < n_documents:
        taken = f"from a sample of {n_sampled:,} of {n_documents:,} documents"
        choices.add(f"chance and correction of {name}", taken, "a layer holds the sums of so many", certain=True)
    if n_sampled < n_documents and of_set["labels"] > MOST_LABELS_OF_SAMPLE:
        reason = (
            f"a sample of {n_sampled:,} of {n_documents:,} documents says too little of {of_set['labels']:,} labels"
        )
        for record in (told, choices):
            record.add(f"p_value of {name}", "not known", reason)
    if n_alone and n_alone < n_documents:
        others = f"that of the other {n_documents - n_alone:,} of {n_documents:,} documents"
        reason = f"{n_alone:,} have a label of their own, of which nobody can tell how it varies between documents"
        choices.add(f"corrected information of {name}", others, reason, certain=True)
    reason = ""
    if n_alone == n_documents:
        reason = "each document has a label of its own, so exchanging them says nothing, nor is there a corrected value"
    elif not of_set["exchangeable"]:
        reason = "all documents of a group have the same label, so none can be exchanged; see permute_within"
    if reason and of_set["labels"] > 1:
        for record in (told, choices):
            record.add(f"chance of {name}", "all of its information", reason)
