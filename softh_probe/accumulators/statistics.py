"""Entropies of one layer, from its running sums.

Shape suffixes: X label sets, S anchor sets, M anchors, L labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from softh_probe.accumulators.document_statistics import document_statistics
from softh_probe.accumulators.label_pools import CountTables, LabelPools, chunks, sum_rows
from softh_probe.accumulators.label_tables import mass, position_entropy, weighted_entropy
from softh_probe.accumulators.label_weights import BucketWeights, LiveWeights, bucket_weights, live_weights
from softh_probe.accumulators.layer_sums import LayerSums
from softh_probe.accumulators.position_labels import bins_as_labels, position_labels
from softh_probe.accumulators.row_labels import RowLabels
from softh_probe.accumulators.sampling_error import (
    SamplingErrors,
    correction_bias,
    labels_of_buckets,
    labels_of_rows,
    sampling_errors,
)
from softh_probe.estimators.bias_correction import (
    bias_curves,
    corrected_conditional,
    corrected_information,
    null_information,
)
from softh_probe.estimators.soft_entropy import entropy
from softh_probe.position_bins import ALL_BINS


@dataclass(frozen=True, kw_only=True)
class LayerStatistics:
    """Entropies of one layer in nats, float64 on the CPU.

    Attributes:
        mass: [S, M], the running sums of soft assignments over all counted positions.
        positions: [], the positions they were summed over.
        entropy_document_sd: [S], standard deviation of H(Z) over bootstrap replicates of the documents.
        anisotropy: [], the norm of the mean unit vector of the positions, ‖Σ h/‖h‖‖ / n; NaN where it is not known.
        position_entropy: [S], mean entropy of the positions' own assignments.
        labelled_positions: [X], positions that have a label of the set.
        covered_positions: [X], those whose label occurs at least twice.
        labelled_entropy: [X, S], H(Z) of the positions that have a label.
        labelled_position_entropy: [X, S], mean entropy of their own assignments.
        conditional_entropy: [X, S], H(Z|X).
        null_information: [X, S], expected I(X;Z) of labels of the same counts assigned at random: to positions, or to
            documents where labels are of whole documents.
        corrected_information: [X, S], I(X;Z) of the covered positions, corrected for small counts; NaN without any. Of
            labels of whole documents, that of labels of several documents, corrected for few documents.
        null_information_sd: [X], standard deviation over relabelings of the documents of the information, averaged over
            anchor sets; NaN where labels are not of whole documents.
        p_value: [X], share of the relabelings that have as much information; NaN likewise.
        entropy_of_labels: [X], H(X) of the labels of the positions that have one.
        conditional_entropy_sampling_sd, null_information_sampling_sd, corrected_information_sampling_sd,
            covered_positions_sampling_sd, entropy_of_labels_sampling_sd: [X], standard errors of these, as means over
            anchor sets, by the sampling of labels; 0 where all labels are followed, or their counts are known.
        label_positions: [L] and label_entropy: [L, S], H(Z|X=x), of each label of the sets that show every label.
    """

    mass: Tensor
    positions: Tensor
    entropy_document_sd: Tensor
    anisotropy: Tensor
    position_entropy: Tensor
    labelled_positions: Tensor
    covered_positions: Tensor
    labelled_entropy: Tensor
    labelled_position_entropy: Tensor
    conditional_entropy: Tensor
    null_information: Tensor
    corrected_information: Tensor
    null_information_sd: Tensor
    p_value: Tensor
    entropy_of_labels: Tensor
    conditional_entropy_sampling_sd: Tensor
    null_information_sampling_sd: Tensor
    corrected_information_sampling_sd: Tensor
    covered_positions_sampling_sd: Tensor
    entropy_of_labels_sampling_sd: Tensor
    label_positions: Tensor
    label_entropy: Tensor


@dataclass(frozen=True, kw_only=True)
class BinnedStatistics(LayerStatistics):
    """Those of a layer of which bins of positions are measured too.

    Attributes:
        bins: the statistics of each bin by its name, and, as `ALL_BINS`, those of the bins as labels of all positions.
    """

    bins: dict[str, LayerStatistics]


def layer_statistics(sums: LayerSums, rows: RowLabels) -> LayerStatistics:
    """Compute a layer's plug-in entropies, null and corrected information from its accumulators.

    Args:
        sums: the layer's running sums.
        rows: the label of each of their rows.
    """
    found = _statistics(sums, rows)
    if not rows.bins or not sums.bins:
        return found
    named = zip(rows.bins.items(), sums.bins, strict=True)
    bins = {name: _statistics(of_bin, labels) for (name, labels), of_bin in named}
    of_all = _statistics(bins_as_labels(sums), position_labels(rows))
    own = {one.name: getattr(found, one.name) for one in fields(found)}
    return BinnedStatistics(**own, bins={**bins, ALL_BINS: of_all})


def _statistics(sums: LayerSums, rows: RowLabels) -> LayerStatistics:
    layer = _Layer.read(sums, rows)
    n_sets, n_anchors = layer.shape
    total, positions = layer.total, layer.total[-1]
    labelled = layer.labelled_positions()
    of_buckets, of_live = bucket_weights(rows), live_weights(rows, layer.live[:, -1], labelled[:, -1])
    tables, covered = layer.pool(labelled, of_buckets, of_live)
    all_mass, covered_mass = mass(total, n_sets, n_anchors), mass(covered, n_sets, n_anchors)
    sample = sums.sample.cpu()[torch.from_numpy(rows.sample_order)].unflatten(1, (n_sets, n_anchors))
    curves = bias_curves(
        sample[sample.sum(dim=(1, 2)) > 0], all_mass, position_entropy(total, n_sets) / positions, int(positions)
    )
    covered_entropy = entropy(covered_mass)
    errors = [SamplingErrors()] * len(rows.keeps_labels)
    corrected_bias = torch.zeros_like(covered_entropy)
    for x in np.flatnonzero(rows.thresholds > 1).tolist():
        if of_live is None:
            followed = labels_of_buckets(rows, of_buckets, layer.retired, x, n_sets)
        elif x in of_live.complete:
            continue
        else:
            followed = labels_of_rows(rows, of_live, layer.live, x, covered_mass[x])
        conditional_of_set = corrected_conditional(curves, *tables.of_set(x).of_followed)
        covered_entropy[x] += followed.entropy_bias_S
        corrected_bias[x] = correction_bias(followed, curves, conditional_of_set)
        errors[x] = sampling_errors(followed, curves, conditional_of_set, covered_mass[x], labelled[x, -1])
    labelled_entropy = entropy(mass(labelled, n_sets, n_anchors))
    conditional = tables.weighted_XCS.sum(dim=1) / labelled[:, -1:]
    null = null_information(curves, tables.counts_C, tables.labels_XC)
    corrected = corrected_information(curves, *tables.of_followed, covered_entropy) + corrected_bias
    null_sd, p_value = torch.full((2, len(rows.keeps_labels)), torch.nan, dtype=torch.float64)
    documents = sums.documents.cpu() if rows.document_sets else sums.documents
    for x, of_set in rows.document_sets.items():
        information_S = labelled_entropy[x] - conditional[x]
        found = document_statistics(documents, of_set, layer.kept, information_S, layer.shape)
        null[x], null_sd[x], p_value[x], corrected[x] = found
    errors_X5 = torch.tensor(errors, dtype=torch.float64).reshape(-1, len(SamplingErrors._fields))
    label_positions, label_weighted = layer.labels_one_by_one()
    return LayerStatistics(
        mass=all_mass,
        positions=positions,
        position_entropy=position_entropy(total, n_sets) / positions,
        entropy_document_sd=entropy(sums.replicates.cpu().unflatten(1, (n_sets, n_anchors))).std(dim=0),
        anisotropy=_anisotropy(sums, positions),
        labelled_positions=labelled[:, -1],
        covered_positions=covered[:, -1],
        labelled_entropy=labelled_entropy,
        labelled_position_entropy=position_entropy(labelled, n_sets) / labelled[:, -1:],
        conditional_entropy=conditional,
        null_information=null,
        corrected_information=corrected,
        null_information_sd=null_sd,
        p_value=p_value,
        entropy_of_labels=tables.entropy_of_labels - layer.entropy_of_late(of_live, labelled[:, -1]),
        conditional_entropy_sampling_sd=errors_X5[:, 0],
        null_information_sampling_sd=errors_X5[:, 1],
        corrected_information_sampling_sd=errors_X5[:, 2],
        covered_positions_sampling_sd=errors_X5[:, 3],
        entropy_of_labels_sampling_sd=errors_X5[:, 4],
        label_positions=label_positions,
        label_entropy=label_weighted / label_positions.unsqueeze(1),
    )


def _anisotropy(sums: LayerSums, positions: Tensor) -> Tensor:
    if sums.direction is None:
        return torch.full_like(positions, torch.nan)
    norm: Tensor = torch.linalg.vector_norm(sums.direction.cpu())
    return (norm / positions).clamp(max=1.0)  # float32 rounds


def labelled_sums(sums: LayerSums, rows: RowLabels) -> Tensor:
    """Sum the positions that have a label of each set [X, K], float64, on the CPU."""
    return _Layer.read(sums, rows).labelled_positions()


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """One layer's sums in host memory, and the meaning of their rows."""

    shape: tuple[int, int]
    rows: RowLabels
    total: Tensor
    single: Tensor
    kept: Tensor
    live: Tensor
    retired: Tensor

    @classmethod
    def read(cls, sums: LayerSums, rows: RowLabels) -> _Layer:
        tables = sums.tables
        return cls(
            shape=(sums.n_sets, sums.n_anchors),
            rows=rows,
            total=sums.total.cpu(),
            single=sums.singleton.cpu(),
            kept=tables.kept[: len(rows.kept_names)].cpu(),
            live=tables.live[: len(rows.live_sets)].cpu(),
            retired=tables.retired.cpu(),
        )

    @property
    def has_label(self) -> Tensor:
        """Kept rows that belong to a label: the others are of positions without one."""
        return torch.tensor([name is not None for name in self.rows.kept_names], dtype=torch.bool)

    def labelled_positions(self) -> Tensor:
        """Sum the positions that have a label of each set [X, K]."""
        keeps_labels = torch.tensor(self.rows.keeps_labels, dtype=torch.bool)
        kept_sets = torch.from_numpy(self.rows.kept_sets)
        labelled = self.total.repeat(len(keeps_labels), 1)
        # Positions without a label have a row of their own; a set that keeps all its labels' rows is their sum.
        labelled[keeps_labels] = 0.0
        sign = torch.where(keeps_labels[kept_sets], self.has_label.double(), -(~self.has_label).double())
        return labelled.index_add_(0, kept_sets, sign.unsqueeze(1) * self.kept)

    def pool(
        self, labelled: Tensor, of_buckets: BucketWeights, of_live: LiveWeights | None
    ) -> tuple[CountTables, Tensor]:
        """Pool labels by their counts, and sum the positions whose label is not the only one of its kind [X, K]."""
        rows, (n_sets, n_anchors) = self.rows, self.shape
        singleton_sets = torch.from_numpy(rows.singleton_sets)
        covered = labelled.clone().index_add_(0, singleton_sets, -self.single)
        pools = LabelPools(len(rows.keeps_labels), n_sets)
        for part_sets, part, weights in self._rows_of_one_label(of_live):
            entropies = weighted_entropy(mass(part, n_sets, n_anchors)), position_entropy(part, n_sets)
            pools.add(part_sets, part[:, -1].long(), weights, *(weights.unsqueeze(1) * value for value in entropies))
            alone = part[:, -1] == 1
            covered.index_add_(0, part_sets[alone], -part[alone])
        for x, shared in enumerate(rows.shared_rows):
            once = sum_rows(self.live, shared, None if of_live is None else of_live.shared[x])
            covered[x] -= once
            if of_live is not None and rows.thresholds[x] > 1:  # what is left of the total may be negative
                repeated = np.flatnonzero((rows.live_sets == x) & (self.live[:, -1].numpy() > 1))
                covered[x] = sum_rows(self.live, repeated, of_live.own_L[repeated])
            if of_live is not None and x in of_live.unknown:
                once, covered[x] = once * torch.nan, torch.nan
            own = position_entropy(once, n_sets).unsqueeze(0)
            pools.add(torch.tensor([x]), torch.tensor([1]), once[-1:], own, own)
        sets, counts, n_labels, followed = map(
            torch.from_numpy, (rows.bucket_sets, rows.bucket_counts, rows.bucket_labels, rows.bucket_followed)
        )
        weights_I = torch.from_numpy(of_buckets.weights_I)
        sums = (weights_I.unsqueeze(1) * self.retired[:, : 2 * n_sets]).split(n_sets, dim=1)
        pools.add(sets, counts, n_labels, *sums, followed_L=weights_I * followed)
        n_single = torch.from_numpy(rows.singleton_labels)
        pooled, own = n_single > 0, position_entropy(self.single, n_sets)
        pools.add(*(t[pooled] for t in (singleton_sets, torch.ones_like(n_single), n_single, own, own)))
        return pools.by_count(), covered

    def entropy_of_late(self, of_live: LiveWeights | None, positions_X: Tensor) -> Tensor:
        """Compute by how much H(X) is lower, since labels that entered late are larger than their rows say: [X]."""
        if of_live is None:
            return torch.zeros_like(positions_X)
        is_late = torch.from_numpy(self.rows.live_scale > 1)
        scale_L, n_L = torch.from_numpy(self.rows.live_scale)[is_late], self.live[is_late, -1].double()
        of_set = torch.zeros_like(positions_X)
        of_set.index_add_(
            0, torch.from_numpy(self.rows.live_sets)[is_late], of_live.own_L[is_late] * n_L * scale_L.log()
        )
        return of_set / positions_X

    def labels_one_by_one(self) -> tuple[Tensor, Tensor]:
        """Give n [L] and n·H(p̂_x) [L, S] of the labels that results show one by one."""
        one_by_one = torch.tensor([name is not None for name in self.rows.bucket_names], dtype=torch.bool)
        kept = self.kept[self.has_label]
        positions = [kept[:, -1], torch.from_numpy(self.rows.bucket_counts)[one_by_one].double()]
        weighted = [weighted_entropy(mass(kept, *self.shape)), self.retired[one_by_one, : self.shape[0]]]
        return torch.cat(positions), torch.cat(weighted)

    def _rows_of_one_label(self, of_live: LiveWeights | None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield sets, rows and weights of the labels that have a row of their own, in chunks, in float64."""
        sets, kept = torch.from_numpy(self.rows.kept_sets)[self.has_label], self.kept[self.has_label]
        yield sets, kept, torch.ones(len(kept), dtype=torch.float64)
        weights = torch.ones(len(self.live), dtype=torch.float64) if of_live is None else of_live.own_L
        for rows, part_sets, part in chunks(self.live, torch.from_numpy(self.rows.live_sets), weights):
            own = part_sets >= 0
            yield part_sets[own], rows[own].double(), part[own]
