"""Online rows: rows of labels that are seen as other code feeds the model.

A label keeps its row, since it may occur again; labels that have occurred once share rows (`shared_rows`). Where not
all n-grams fit, a sample of them is followed (`live_labels`). The user's own labels are in `kept_labels`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from softh_probe.accumulators.dispatch import Bags, Dispatch, MergeMap, build_dispatch, in_pieces
from softh_probe.accumulators.label_sampling import ALL
from softh_probe.accumulators.row_labels import RowLabels, TableSizes
from softh_probe.accumulators.sampling import SAMPLE_SIZE, BottomKSample, poisson_weights, position_keys, sequence_key
from softh_probe.attached.fed_texts import FedTexts
from softh_probe.attached.inputs import TokenBatch
from softh_probe.attached.kept_labels import KeptLabels
from softh_probe.attached.label_bags import label_bags, ngrams
from softh_probe.attached.live_labels import LiveLabels
from softh_probe.attached.online_documents import OnlineDocuments
from softh_probe.attached.passed_over import PassedOver, packed, unpacked
from softh_probe.attached.position_rules import PositionRules
from softh_probe.attached.sequences import RESERVED_COLUMNS, CachedSequences, empty_sequences
from softh_probe.errors import InputError, ProbeError
from softh_probe.labels import LabelRows, LabelSet, context

_NONE = np.zeros(0, dtype=np.int64)


class OnlineRows:
    """Assign rows to labels as they are seen, and build the dispatch of each batch from its tokens.

    n-grams take live rows. The user's own labels (`SoftEntropyProbe.labelled`) take kept rows; their sets appear with
    their first batch.

    Args:
        label_sets: the n-gram label sets.
        unique_prefixes: count each distinct prefix once, not each time that it is fed.
        label_rows: live rows at most, or "all".
        seed: of the sample of labels that is followed where not all fit.
        rules: the policies of positions; None: all count.

    Attributes:
        rules: the same.
        kept: the user's own labels.
        texts: digests of the texts that are followed.
    """

    def __init__(
        self,
        label_sets: Sequence[LabelSet],
        *,
        unique_prefixes: bool = False,
        label_rows: LabelRows = "all",
        seed: int = 0,
        rules: PositionRules | None = None,
    ) -> None:
        self.rules = rules or PositionRules()
        self._passed_over = PassedOver()
        self.label_sets: Sequence[LabelSet] = tuple(label_sets)
        self.unique_prefixes = unique_prefixes
        self._seen: set[bytes] = set()
        self._before, self._after = context(label_sets)
        self._live = LiveLabels(self.label_sets, label_rows, seed)
        self.kept = KeptLabels()
        self._sample = BottomKSample()
        self.documents = OnlineDocuments()
        self.texts = FedTexts(distinct=unique_prefixes)
        self._n_sequences = 0

    @property
    def set_names(self) -> list[str]:
        """Names of the n-gram sets, then of the user's own sets."""
        return [s.name for s in self.label_sets] + list(self.kept.tables)

    @property
    def n_passed_over(self) -> int:
        """Positions that would count, but for the policies."""
        return self._passed_over.n - len(self._passed_over.prefixes & self._seen)

    @property
    def n_live(self) -> int:
        """Rows of n-grams."""
        return self._live.rows.n_rows

    @property
    def n_kept(self) -> int:
        """Rows of labels of the user's own sets."""
        return len(self.kept)

    def row_labels(self, paired: Collection[str] = ()) -> RowLabels:
        """Describe the rows of the sums as they are now.

        Args:
            paired: names of sets whose labels tell the documents of a unit apart.
        """
        live_sets, live_probability = np.full(self.n_live, -1), np.ones(self.n_live)
        live_scale, shared_rows, shared_probability = np.ones(self.n_live), [], []
        for i in range(len(self.label_sets)):
            of_set = self._live.of_set(i)
            shared = of_set.is_shared
            own = of_set.rows[~shared]
            live_sets[own] = i
            live_probability[own], live_scale[own] = of_set.probability[~shared], of_set.scale[~shared]
            shared_rows.append(of_set.rows[shared])
            shared_probability.append(of_set.probability[shared])
        n_ngrams, n_own = len(self.label_sets), len(self.kept.tables)
        kept_sets, kept_names = self.kept.describe(first_set=n_ngrams)
        return RowLabels(
            set_names=self.set_names,
            keeps_labels=[False] * n_ngrams + [True] * n_own,
            kept_sets=kept_sets,
            kept_names=kept_names,
            live_sets=live_sets,
            shared_rows=shared_rows,
            thresholds=np.array([self._live.threshold] * n_ngrams + [ALL] * n_own),
            live_probability=live_probability,
            live_scale=live_scale,
            shared_probability=shared_probability,
            sample_order=np.argsort(self._sample.keys, kind="stable"),
            document_sets=self.documents.sets(self.kept.tables, n_ngrams, paired),
        )

    def table_sizes(self) -> TableSizes:
        """Give the sizes of a layer's sums as they are now; tables grow as batches need it."""
        return TableSizes(
            n_kept=self.n_kept,
            n_live=self.n_live,
            most_live=self._live.most_rows,
            n_sample=SAMPLE_SIZE,
            n_documents=len(self.documents),
        )

    def new_sequences(self, fed: TokenBatch, *, past_known: bool = True) -> CachedSequences:
        """Make the sequences of a first forward pass, before its tokens are added."""
        first_number = self._n_sequences
        return empty_sequences(self._sequence_keys(fed), first_number, past_known=past_known)

    def batch(
        self,
        fed: TokenBatch,
        own: Mapping[str, np.ndarray],
        sequences: CachedSequences,
        *,
        waits: bool = False,
        tentative: bool = False,
    ) -> Dispatch:
        """Build the dispatch of a forward pass and append its tokens to their sequences.

        Args:
            fed: its tokens; the ids may be unknown where there are no n-gram label sets.
            own: the user's own labels by set, [B, T]; negative where a position has none.
            sequences: the sequences, with the tokens of earlier passes.
            waits: whether positions may wait for labels that later passes complete.
            tentative: whether all positions wait, since their tokens may be taken back.
        """
        past = sequences.extend(fed, own, self.unique_prefixes)
        self.rules.mark(sequences, past)
        fed_column_BL = sequences.pack() - past
        if not tentative:
            self._pass_over(sequences)
        defined_BL, may_be_BL = sequences.defined(self._before, self._after)
        row_N, column_N = np.nonzero((defined_BL | may_be_BL if waits else defined_BL) & (fed_column_BL >= 0))
        n_fed = math.prod(fed.shape)
        row_N, column_N, place_N = (
            np.concatenate(parts)
            for parts in (
                (row_N, sequences.waiting_rows),
                (column_N, sequences.waiting_columns),
                (fed.places(row_N, fed_column_BL[row_N, column_N]), n_fed + sequences.waiting_places),
            )
        )
        counts_N = defined_BL[row_N, column_N]
        held_N = ~counts_N & may_be_BL[row_N, column_N]
        if tentative:  # also what was fed before waits, for its labels may be taken back
            held_N |= counts_N
            counts_N[:] = False
        return self._build_dispatch(sequences, row_N, column_N, place_N, counts_N, held_N, fed)

    def complete(self, sequences: CachedSequences) -> Dispatch:
        """Build the dispatch of waiting positions whose labels are complete, without a forward pass."""
        none = np.zeros((len(sequences.keys_B), 0), dtype=bool)
        self._pass_over(sequences)
        defined_BL, may_be_BL = sequences.defined(self._before, self._after)
        rows, columns = sequences.waiting_rows, sequences.waiting_columns
        counts, held = defined_BL[rows, columns], may_be_BL[rows, columns]
        return self._build_dispatch(
            sequences,
            rows,
            columns,
            sequences.waiting_places,
            counts,
            held & ~counts,
            TokenBatch(real_BT=none, ids_BT=None),
        )

    def _build_dispatch(
        self,
        sequences: CachedSequences,
        row_N: np.ndarray,
        column_N: np.ndarray,
        place_N: np.ndarray,
        counts_N: np.ndarray,
        held_N: np.ndarray,
        fed: TokenBatch,
    ) -> Dispatch:
        """Build the dispatch of candidate positions: some count, some wait.

        Args:
            sequences: the sequences of the positions.
            row_N, column_N: sequence and column of each position.
            place_N: index of each position among the layer's assignments.
            counts_N, held_N: whether a position counts now, or waits.
            fed: the tokens of the forward pass.
        """
        n_carried, number = sequences.n_held, sequences.number
        if self.unique_prefixes:
            counts_N[counts_N] = self._first_time(sequences, row_N[counts_N], column_N[counts_N])
        held_places = place_N[held_N]
        sequences.set_waiting(row_N[held_N], column_N[held_N])
        row_N, column_N, place_N = row_N[counts_N], column_N[counts_N], place_N[counts_N]

        own = {
            name: values[row_N, column_N] for name, values in sequences.columns.items() if name not in RESERVED_COLUMNS
        }
        kept = self.kept.rows(own, len(row_N))
        opened = []
        for i, label_set in enumerate(self.label_sets):
            start_N = column_N + (1 if label_set.direction == "output" else 1 - label_set.order)
            opened.append(self._live.find(i, ngrams(sequences.columns["ids"], label_set.order, row_N, start_N)))
        n_kept = self.n_kept
        bags = label_bags(kept, opened, place_N, n_kept, len(self._live))
        kept_end = np.searchsorted(bags.groups_L, n_kept)
        sizes = np.diff(bags.starts_L, append=len(bags.positions_E))
        labels_L, sizes_L = bags.groups_L[kept_end:] - n_kept, sizes[kept_end:]
        placed = self._live.assign(labels_L, sizes_L, sizes_L == 1, bags.positions_E[bags.starts_L[kept_end:]])
        # Labels that share their position's row have no bag of their own; the position has one. Nor have those that
        # were given up.
        has_bag = np.concatenate([np.ones(kept_end, dtype=bool), placed.rows_L >= 0])
        positions_E = np.concatenate([bags.positions_E[np.repeat(has_bag, sizes)], placed.positions_P])
        sizes = np.concatenate([sizes[has_bag], np.ones_like(placed.positions_P)])
        labels = Bags(positions_E, np.cumsum(sizes) - sizes, np.concatenate([bags.groups_L[has_bag], placed.rows_P]))
        places = sequences.places()[row_N, column_N]
        taken, slots = self._sample.offer(position_keys(sequences.keys_B[row_N], places))
        by_sequence = np.argsort(row_N, kind="stable")
        slots_B, emptied = self.documents.take(sequences, row_N, own)
        batch = build_dispatch(
            shape=fed.shape,
            n_tokens=int(fed.real_BT.sum()),
            n_counted=len(place_N),
            sequences=in_pieces(row_N[by_sequence], place_N[by_sequence]),
            weights_WB=poisson_weights(sequences.drawn_keys_B),
            labels=labels,
            kept_rows=bags.groups_L[:kept_end],
            live_rows=np.concatenate([placed.rows_L[placed.rows_L >= 0], placed.rows_P]),
            retiring_rows=_NONE,
            retired_buckets=_NONE,
            sampled=place_N[taken],
            sample_slots=slots,
            n_kept=n_kept,
            n_live=self.n_live,
            left_rows=placed.left,
            taken_rows=placed.taken,
            freed_rows=placed.freed if len(placed.freed) else None,
            n_documents=len(self.documents),
            slots_B=slots_B,
            emptied_slots=emptied if len(emptied) else None,
            number=number,
            n_carried=n_carried,
            held=held_places,
        )
        sequences.trim()
        return batch

    def _first_time(self, sequences: CachedSequences, row_N: np.ndarray, column_N: np.ndarray) -> np.ndarray:
        """Find the positions that end a prefix for the first time."""
        if not sequences.past_known:
            raise ProbeError(
                "count: with 'unique_prefix' all tokens before a position have to be known, and those in this cache "
                "were fed outside of the probe's block; feed them inside it, or use count='forwarded'"
            )
        keys = sequences.prefix_keys(row_N, column_N)
        fresh = np.zeros(len(keys), dtype=bool)
        for i, key in enumerate(keys):
            if key not in self._seen:
                self._seen.add(key)
                fresh[i] = True
        return fresh

    def _pass_over(self, sequences: CachedSequences) -> None:
        """Note the positions that would count, but for the policies."""
        rows, columns = sequences.pass_over(self._before, self._after)
        self._passed_over.add(len(rows), sequences.prefix_keys(rows, columns) if self.unique_prefixes else None)

    def _sequence_keys(self, fed: TokenBatch) -> np.ndarray:
        """Compute a key of each sequence: from its real tokens, or from the number of sequences before it."""
        if fed.ids_BT is not None:
            keys = [sequence_key(ids[real]) for ids, real in zip(fed.ids_BT, fed.real_BT, strict=True)]
        else:
            keys = [sequence_key(np.array([self._n_sequences + b])) for b in range(len(fed.real_BT))]
        self._n_sequences += len(fed.real_BT)
        return np.array(keys, dtype=np.uint64)

    def state_dict(self) -> dict[str, Any]:
        """Copy the keys in the order of their numbers: tokens [L, n] of each n-gram set, labels [L] of each own set."""
        sample = torch.from_numpy(self._sample.keys.view(np.int64).copy())
        return {
            **self._live.state_dict(),
            **self.kept.state_dict(),
            "sample": sample,
            "sequences": self._n_sequences,
            **self.documents.state_dict(),
            "seen": packed(self._seen),
            **self._passed_over.state_dict(),
            **self.texts.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> np.ndarray | None:
        """Replace all rows by those of a state; see `LabelRows.load_state_dict`."""
        self._sample, self._n_sequences = BottomKSample(), state["sequences"]
        self._sample.keys = state["sample"].numpy().view(np.uint64).copy()
        self.documents.load_state_dict(state)
        self._seen = unpacked(state["seen"])
        self._passed_over = PassedOver.of_state(state)
        self.kept.load_state_dict(state)
        self.texts = FedTexts.of_state(state, distinct=self.unique_prefixes)
        return self._live.load_state_dict(state)

    def merge(self, other: object) -> MergeMap:
        """Take over the labels and the sample of another part of the data.

        Raises:
            InputError: the other part was measured with a plan.
        """
        if not isinstance(other, OnlineRows):
            raise InputError("merge: parts of a planned run cannot be merged; measure them without a plan")
        return self.merge_part(other, first_number=self._n_sequences)

    def merge_part(self, other: OnlineRows, first_number: int) -> MergeMap:
        """Take over another part, the numbers of whose documents are raised by `first_number`."""
        kept_rows, renumbered = self.kept.merge(other.kept)  # first, since it may refuse the other
        if both := len(self._seen & other._seen):
            warnings.warn(f"{both} prefixes were counted by both parts, and count twice in the whole", stacklevel=4)
        self._seen |= other._seen
        self._passed_over.merge(other._passed_over)
        self.texts.merge(other.texts)
        rows, placed = self._live.merge(other._live)
        has_row = placed.rows_L >= 0
        taken, slots = self._sample.offer(other._sample.keys)
        documents = self.documents.merge(other.documents, first_number, renumbered)
        self._n_sequences += other._n_sequences
        tensors = map(
            torch.from_numpy,
            (
                kept_rows,
                np.concatenate([rows[has_row], placed.positions_P]),
                np.concatenate([placed.rows_L[has_row], placed.rows_P]),
                placed.left,
                placed.taken,
                placed.freed,
                taken,
                slots,
                *documents,
            ),
        )
        return MergeMap(*tensors)
