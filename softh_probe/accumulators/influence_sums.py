"""Sums of each document, from which its influence on entropies and informations follows: a second forward pass.

The first pass gives p̂, the mean assignment of all positions, and p̂_x, that of the positions with label x. The second
one finds for each sequence of a batch, and each anchor set,

    reference   Σ_i Σ_j q_ij log p̂_j      also with p̂ of the positions that have a label of a set
    label       Σ_i Σ_j q_ij log p̂_xj     x the label of position i in a set

A label that occurs once has p̂_x = q, so its term is the negative entropy of its position's assignment. Positions whose
hidden state has no direction add nothing.

Shape suffixes: G layers, N positions, E positions whose label occurs once, L bags, B sequences, X label sets, A = 1 + X
references, S anchor sets, M anchors, K columns of a row of sums (see `softh_probe.accumulators.label_tables`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from softh_probe.accumulators.assigned_layers import PositionRows
from softh_probe.accumulators.batch import BatchAccumulator, DeviceAccumulator
from softh_probe.accumulators.directions import NormedStates
from softh_probe.accumulators.dispatch import Dispatch
from softh_probe.accumulators.label_tables import mass, position_entropy
from softh_probe.accumulators.layer_sums import LayerSums
from softh_probe.accumulators.row_labels import RowLabels
from softh_probe.accumulators.statistics import labelled_sums

#: Bags of labels whose rows are looked up at a time.
_BAGS_AT_ONCE = 16_384


@dataclass(frozen=True, kw_only=True)
class DocumentDispatch(Dispatch):
    """Dispatch of a batch of the second pass: each bag is of one sequence.

    The bags of sequences come first, then those of labels that have kept rows, then of those that have live rows, in
    pieces. A bag of a label has the positions of one sequence with this label, and the row of the label.

    Attributes:
        n_label_sets: X.
        bag_sequences: int64, the sequence of each bag of sequences.
        bag_slots: int64, for each bag of labels, the place of its sequence and label set in [B · X].
        single_positions: int64 [E], computed positions whose label in a set occurs once.
        single_slots: int64 [E], the place of the sequence and label set of each in [B · X].
    """

    n_label_sets: int
    bag_sequences: Tensor
    bag_slots: Tensor
    single_positions: Tensor
    single_slots: Tensor


class DocumentSums(NamedTuple):
    """Sums of the sequences of one batch, float64; with a first dimension R for several layers.

    Attributes:
        positions: [B], positions whose hidden state has a direction.
        reference: [B, A, S], Σ_i Σ_j q_ij log p̂_j, with p̂ of all positions, then of those labelled by each set.
        label: [B, X, S], Σ_i Σ_j q_ij log p̂_xj; without meaning for sets whose labels have no rows at the end.
    """

    positions: Tensor
    reference: Tensor
    label: Tensor


class InfluenceSums:
    """Take the sums of documents in a second forward pass, batch by batch.

    Args:
        layers: the sums of the first pass, which are not changed.
        rows: the label of each of their rows.
    """

    def __init__(self, layers: Sequence[LayerSums], rows: RowLabels) -> None:
        self._layers = layers
        self._log_shares = {sums: _log_shares(sums, rows) for sums in layers}
        self._found: dict[LayerSums, DocumentSums] = {}

    def accumulator(self, dispatch: Dispatch) -> BatchAccumulator:
        """Make the accumulator of a batch, for the recorder."""
        assert isinstance(dispatch, DocumentDispatch)
        return _InfluenceAccumulator(dispatch, self._log_shares, self._found)

    def take(self) -> DocumentSums:
        """Give the sums of the batch that was fed last, stacked over layers, in host memory; waits for the devices."""
        found = [self._found.pop(sums) for sums in self._layers]
        return DocumentSums(*(torch.stack([tensor.cpu() for tensor in parts]) for parts in zip(*found, strict=True)))


def _log_shares(sums: LayerSums, rows: RowLabels) -> Tensor:
    """Compute log p̂ of all positions, and of those that have a label of each set: [A, S, M], float64."""
    total = torch.cat([sums.total.cpu().unsqueeze(0), labelled_sums(sums, rows)])
    return _log_share(mass(total, sums.n_sets, sums.n_anchors)).to(sums.device)


def _log_share(mass_LSM: Tensor) -> Tensor:
    """Compute the logarithm of each anchor's share of the mass, [..., M]; finite where an anchor has none."""
    total_LS = mass_LSM.sum(dim=-1, keepdim=True)
    tiny = torch.finfo(mass_LSM.dtype).tiny
    return mass_LSM.clamp_min(tiny).log() - total_LS.clamp_min(tiny).log()


class _InfluenceAccumulator(BatchAccumulator):
    counts: ClassVar[bool] = False

    def __init__(
        self,
        dispatch: DocumentDispatch,
        log_shares: Mapping[LayerSums, Tensor],
        found: dict[LayerSums, DocumentSums],
    ) -> None:
        super().__init__(dispatch)
        self._log_shares, self._found = log_shares, found

    def _on_new_device(self, labels: Dispatch) -> DeviceAccumulator:
        assert isinstance(labels, DocumentDispatch)
        return _DeviceInfluence(labels, self._log_shares, self._found)


class _DeviceInfluence(DeviceAccumulator):
    def __init__(
        self, labels: DocumentDispatch, log_shares: Mapping[LayerSums, Tensor], found: dict[LayerSums, DocumentSums]
    ) -> None:
        super().__init__(labels)
        self._documents, self._log_shares, self._found = labels, log_shares, found

    def add_directions(self, sums: LayerSums, states: NormedStates) -> None:
        """Leave the directions of the first pass as they are."""

    def add_rows(self, layers: list[LayerSums], rows: PositionRows) -> None:
        rows = rows.emptied()
        own_GNS = position_entropy(rows.blocks[-1], layers[0].n_sets)
        for sums, bags_LK, own_NS in zip(layers, torch.cat(self._sum_bags(rows), dim=-1), own_GNS, strict=True):
            self._found[sums] = self._of_layer(sums, bags_LK, own_NS)

    def _of_layer(self, sums: LayerSums, bags_LK: Tensor, own_NS: Tensor) -> DocumentSums:
        labels, n_sequences = self._documents, self._documents.shape[0]
        of_sequences, of_labels = bags_LK.tensor_split([len(labels.bag_sequences)])
        shares_ASM = self._log_shares[sums]
        masses_LSM = mass(of_sequences, sums.n_sets, sums.n_anchors).double()
        terms_LAS = torch.einsum("lsm,asm->las", masses_LSM, shares_ASM)
        zeros = own_NS.new_zeros(n_sequences, dtype=torch.float64)
        positions_B = zeros.index_add(0, labels.bag_sequences, of_sequences[:, -1].double())
        reference = zeros.new_zeros(n_sequences, *terms_LAS.shape[1:]).index_add_(0, labels.bag_sequences, terms_LAS)
        label = zeros.new_zeros(n_sequences * labels.n_label_sets, sums.n_sets)
        label.index_add_(0, labels.single_slots, -own_NS.index_select(0, labels.single_positions).double())
        start = 0
        for rows, bags in self._with_rows(sums, of_labels):
            terms = _label_terms(rows, bags, sums)
            label.index_add_(0, labels.bag_slots[start : start + len(bags)], terms)
            start += len(bags)
        return DocumentSums(positions_B, reference, label.unflatten(0, (n_sequences, labels.n_label_sets)))

    def _with_rows(self, sums: LayerSums, bags_LK: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the rows of the bags' labels and the bags, some at a time, on the device of the bags."""
        tables, labels = sums.tables, self._documents
        here = labels if tables.device == bags_LK.device else labels.on_host
        of_kept, of_live = bags_LK.tensor_split([len(here.kept_rows)])
        for table, rows, bags in ((tables.kept, here.kept_rows, of_kept), (tables.live, here.live_rows, of_live)):
            for some, of_some in zip(rows.split(_BAGS_AT_ONCE), bags.split(_BAGS_AT_ONCE), strict=True):
                yield table.index_select(0, some).to(bags.device, non_blocking=True), of_some


def _label_terms(rows_LK: Tensor, bags_LK: Tensor, sums: LayerSums) -> Tensor:
    """Compute Σ_j q_j log p̂_xj of each bag, q the sum of its assignments and p̂_x the row of its label: [L, S]."""
    log_shares_LSM = _log_share(mass(rows_LK, sums.n_sets, sums.n_anchors))
    masses_LSM = mass(bags_LK, sums.n_sets, sums.n_anchors)
    return log_shares_LSM.mul_(masses_LSM).sum(dim=-1).double()
