"""Null, p-value and corrected information of labels of whole documents, from one layer's sample of documents.

Shape suffixes: D relabelled documents or units, E documents, C labels, S anchor sets, M anchors, K columns of a row of
sums.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from softh_probe.accumulators.document_labels import DocumentSet
from softh_probe.accumulators.label_tables import mass
from softh_probe.estimators.document_correction import corrected_by_documents


class DocumentStatistics(NamedTuple):
    """Values of one layer and label set in nats, float64.

    Attributes:
        null_S: expected information of relabelled documents.
        null_sd: its standard deviation over relabelings, of the mean over anchor sets.
        p_value: the share of relabelings with at least as much information as the documents' own labels; NaN where the
            sample does not tell.
        corrected_S: the information without its bias by the number of documents; NaN where that is not known.
    """

    null_S: Tensor
    null_sd: float
    p_value: float
    corrected_S: Tensor


def document_statistics(
    documents_EK: Tensor, of_set: DocumentSet, kept_LK: Tensor, information_S: Tensor, shape: tuple[int, int]
) -> DocumentStatistics:
    """Compare the information of a label set with that of relabelled documents, and correct it.

    Args:
        documents_EK: sums of the documents of the layer's sample, by slot, in host memory.
        of_set: their labels.
        kept_LK: kept rows of the layer's label tables.
        information_S: the set's plug-in information, in nats.
        shape: S and M.
    """
    items_DK = torch.zeros(len(of_set.labels.label_D), documents_EK.shape[1], dtype=torch.float64)
    rows_EK = documents_EK[torch.from_numpy(of_set.slots_E)].double()
    items_DK.index_add_(0, torch.from_numpy(of_set.items_E), rows_EK)
    mass_DSM, positions_D = mass(items_DK, *shape), items_DK[:, -1]
    null = of_set.relabelings.null(mass_DSM, positions_D)
    corrected_S = torch.full_like(information_S, torch.nan)
    if (labels_CK := _label_sums(items_DK, of_set, kept_LK)) is not None:
        corrected_S = corrected_by_documents(
            of_set.labels, mass_DSM, positions_D, mass(labels_CK, *shape), labels_CK[:, -1]
        )
    p_value = null.p_value(float(information_S.mean())) if of_set.tells_p_value else math.nan
    return DocumentStatistics(null.mean_S, null.sd, p_value, corrected_S)


def _label_sums(items_DK: Tensor, of_set: DocumentSet, kept_LK: Tensor) -> Tensor | None:
    """Find the sums of each label over all data [C, K]; None where neither rows nor the sample have them."""
    if len(of_set.rows_C):
        return kept_LK[torch.from_numpy(of_set.rows_C)].double()
    if not of_set.is_whole:
        return None
    label_D = torch.from_numpy(of_set.labels.label_D)
    return items_DK.new_zeros(len(of_set.labels.documents_C), items_DK.shape[1]).index_add_(0, label_D, items_DK)
