"""The second forward pass of a planned run: the documents whose influence is measured, and the rows of their labels.

Shape suffixes: D documents of the second pass, N positions, L bags, B sequences, X label sets.
"""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import torch

from softh_probe.accumulators.dispatch import Dispatch, build_dispatch, in_pieces, sort_into_bags
from softh_probe.accumulators.influence_sums import DocumentDispatch
from softh_probe.accumulators.sampling import bottom_k
from softh_probe.planned.plan import Plan

_NONE = np.zeros(0, dtype=np.int64)


class SecondPass:
    """Choose the documents of a second pass, and build the dispatch of its batches.

    A document is what was read, with all its windows where it was split. Documents of one row of the data are a unit.
    Units are chosen whole, those of the smallest keys: a uniform sample.

    Args:
        plan: the plan of the first pass.
        n_documents: documents to choose at most, but two units at least; None chooses all.

    Attributes:
        documents, units: int64 [D], number of each document in the data, and of its row.
        keys: uint64 [D], hash of its first window; positions: int64 [D], positions that count.
        n_documents, n_units: of all the data that counts.
        document_of: int64, for each document (window) of the corpus, its place in [D]; −1 where it is not measured.
        measured: names of the label sets whose labels all have rows, so that the influence on them is known.
    """

    def __init__(self, plan: Plan, n_documents: int | None = None) -> None:
        corpus = plan.corpus
        self._plan = plan
        windows = np.sort(np.concatenate(plan.batches))
        documents, first, document_of = np.unique(corpus.source[windows], return_index=True, return_inverse=True)
        keys, units = plan.source_keys[windows[first]], corpus.rows[windows[first]]
        is_chosen = _choose(plan.document_keys[windows[first]], units, n_documents)
        self.n_documents, self.n_units = len(documents), len(np.unique(units))
        positions = np.bincount(document_of, weights=plan.population.counts(windows)).astype(np.int64)
        chosen = np.flatnonzero(is_chosen)
        self.documents, self.units = documents[chosen].astype(np.int64), units[chosen].astype(np.int64)
        self.keys, self.positions = keys[chosen], positions[chosen]
        place = np.where(is_chosen, np.cumsum(is_chosen) - 1, -1)
        self.document_of = np.full(corpus.n_documents, -1, dtype=np.int64)
        self.document_of[windows] = place[document_of]
        has_rows = plan.allocation.has_rows_at_end
        self.measured = [name for name, rows in zip(plan.set_names, has_rows, strict=True) if rows]

    @property
    def is_measured(self) -> np.ndarray:
        """For each document (window) of the corpus, whether it is part of the second pass."""
        found: np.ndarray = self.document_of >= 0
        return found

    def labelled(self, windows: np.ndarray) -> np.ndarray:
        """For each of a batch's windows and each label set, whether its positions have a label: bool [B, X]."""
        found = np.ones((len(windows), len(self._plan.label_sets)), dtype=bool)
        for x, label_set in enumerate(self._plan.label_sets):
            if label_set.direction == "column":
                found[:, x] = self._plan.corpus.columns[label_set.column].ids[windows] >= 0
        return found

    def batch(self, windows: np.ndarray) -> DocumentDispatch:
        """Build the dispatch of a batch of windows, which are right-padded to the longest."""
        plan, n = self._plan, self._plan.allocation
        lengths, n_sets, n_windows = plan.corpus.lengths[windows], len(plan.label_sets), len(windows)
        longest = int(lengths.max())
        positions_N = plan.population.padded(windows)
        sequence_N = positions_N // longest
        measured = np.flatnonzero(n.has_rows_at_end)
        numbers_XN = plan.label_numbers(windows, len(positions_N))[measured].astype(np.int64)
        n_with_rows = n.n_kept + len(n.live_rows)
        has_row_XN = (numbers_XN < n_with_rows) & ~_is_unlabelled(n.kept_ids, numbers_XN)
        # The bags of one label are those of its sequences.
        groups_XN = np.where(has_row_XN, numbers_XN * n_windows + sequence_N, n_with_rows * n_windows)
        bags = sort_into_bags(groups_XN, positions_N, n_with_rows * n_windows, n_pieced=n_with_rows * n_windows)
        number_L, sequence_L = np.divmod(bags.groups_L, n_windows)
        n_kept = int(np.searchsorted(number_L, n.n_kept))
        live_L = number_L[n_kept:] - n.n_kept
        set_L = np.concatenate([n.kept_sets[number_L[:n_kept]], n.bucket_sets[n.bucket_of[live_L]]])
        sequences = in_pieces(sequence_N, positions_N)
        made = build_dispatch(
            shape=(n_windows, longest),
            n_tokens=int(lengths.sum()),
            n_counted=len(positions_N),
            sequences=sequences,
            weights_WB=np.zeros((0, n_windows)),
            labels=bags,
            kept_rows=number_L[:n_kept],
            live_rows=n.live_rows[live_L],
            retiring_rows=_NONE,
            retired_buckets=_NONE,
            sampled=_NONE,
            sample_slots=_NONE,
            n_kept=n.n_kept,
            n_live=n.n_live,
        )
        set_E, single_E = np.nonzero(n.occurs_once[numbers_XN])
        singles = positions_N[single_E]
        if made.computed is not None:
            singles = np.searchsorted(made.computed.numpy(), singles)
        return DocumentDispatch(
            **{field.name: getattr(made, field.name) for field in fields(Dispatch)},
            n_label_sets=n_sets,
            bag_sequences=torch.from_numpy(sequences.groups_L),
            bag_slots=torch.from_numpy(sequence_L * n_sets + set_L),
            single_positions=torch.from_numpy(singles),
            single_slots=torch.from_numpy(sequence_N[single_E] * n_sets + measured[set_E]),
        )


def _choose(keys_D: np.ndarray, units_D: np.ndarray, n_documents: int | None) -> np.ndarray:
    """Choose documents, in whole units, by the key of each unit's first document: bool [D].

    >>> _choose(np.array([5, 5, 1, 7], dtype=np.uint64), np.array([0, 0, 1, 2]), n_documents=3)
    array([ True,  True,  True, False])
    """
    _, first, unit_D, sizes = np.unique(units_D, return_index=True, return_inverse=True, return_counts=True)
    in_order = bottom_k(keys_D[first], len(first))
    n_units = len(first) if n_documents is None else int((np.cumsum(sizes[in_order]) <= n_documents).sum())
    chosen = np.zeros(len(first), dtype=bool)
    chosen[in_order[: max(n_units, 2)]] = True
    found: np.ndarray = chosen[unit_D]
    return found


def _is_unlabelled(kept_ids: np.ndarray, numbers_XN: np.ndarray) -> np.ndarray:
    """Tell which numbers are those of positions without a label."""
    beyond = np.append(kept_ids, 0)  # labels without a kept row
    found: np.ndarray = beyond[np.minimum(numbers_XN, len(kept_ids))] < 0
    return found
