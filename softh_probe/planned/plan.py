"""The plan of a run: the rows of every label, for a corpus that is known before the forward pass.

The tables are as long as the largest number of labels that are live at once. One plan serves all layers, and all
checkpoints of a tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from softh_probe.accumulators.dispatch import (
    Bags,
    Dispatch,
    MergeMap,
    build_dispatch,
    in_pieces,
    sort_by_sets,
    sort_into_bags,
)
from softh_probe.accumulators.label_sampling import ALL
from softh_probe.accumulators.row_labels import RowLabels, TableSizes
from softh_probe.accumulators.sampling import (
    SAMPLE_SIZE,
    bottom_k,
    document_keys,
    poisson_weights,
    position_keys,
    sequence_key,
)
from softh_probe.accumulators.states import WITHOUT_DOCUMENTS
from softh_probe.errors import InputError
from softh_probe.labels import LabelRows, LabelSet, shortest_document
from softh_probe.planned.document_sample import sample_documents
from softh_probe.planned.population import NO_POSITION, Population, ranges
from softh_probe.planned.row_allocation import RowAllocation, allocate_rows, label_ids
from softh_probe.planned.thresholds import CountHistogram

if TYPE_CHECKING:
    from softh_probe.data.corpus import Corpus


class Plan:
    """Allocate rows to the labels of a corpus whose batches are fixed, and build the dispatch of each batch.

    Args:
        label_sets: the label sets, whose order numbers them.
        batches: the documents of each batch.
        per_label: names of label sets of which results show every label, beside columns of few values.
        allocation: the result of `allocate_rows` for the same arguments; computed if it is not given.
        n_shares: processes that each measure every n_shares-th batch.
        label_rows: rows of n-gram labels at a time at most in a run of one process, or "all". Sets in `per_label` do
            not count among them; their labels all take part.
        seed: of the sample of labels that is followed where not all fit.
        within: the column within whose values labels of documents are exchanged for their null; None for none.
        intervals: hold the rows of label sets to the end, as far as they fit (`held_sets`).
        like: a plan of the same tokens and batches, whose n-grams and keys are taken over.

    Attributes:
        batches: share by share.
        shares: for each process, the indices of its batches.
        population: the positions that count.
        n_too_short: documents without a position at which all n-grams are defined; they are not run.
        n_left_out: other documents without a position that counts; they are not run either.
        sequence_keys: uint64, for each document of the corpus, the hash of its tokens.
        source_keys: uint64, for each document of the corpus, the hash of the first window of what was read.
        document_keys: uint64, for each document of the corpus, what draws it in samples of documents (`sampling`).
        bins: the plan of each bin of positions by its name, where these are measured too (`position_bins`).

    Raises:
        InputError: no position of any document counts, or a column has no label.
    """

    def __init__(
        self,
        corpus: Corpus,
        label_sets: Sequence[LabelSet],
        batches: Sequence[np.ndarray],
        per_label: Sequence[str] = (),
        allocation: RowAllocation | None = None,
        n_shares: int = 1,
        label_rows: LabelRows = "all",
        seed: int = 0,
        within: str | None = None,
        intervals: bool = False,
        like: Plan | None = None,
    ) -> None:
        self.corpus = corpus
        self.bins: dict[str, Plan] = {}
        self.label_sets: Sequence[LabelSet] = tuple(label_sets)
        dealt = [batches[share::n_shares] for share in range(n_shares)]
        self.batches = [batch for share in dealt for batch in share]
        ends = np.cumsum([len(share) for share in dealt]).tolist()
        self.shares = [range(end - len(share), end) for share, end in zip(dealt, ends, strict=True)]
        self.population = Population(corpus, label_sets)
        needed = shortest_document(label_sets)
        self.n_too_short = int((corpus.lengths < needed).sum())
        if self.n_too_short == corpus.n_documents:
            raise InputError(
                f"labels: every document is too short: one position needs {needed} tokens, the longest document "
                f"has {corpus.lengths.max()}; ask for lower n-gram orders or longer documents"
            )
        self.n_left_out = int((self.population.counts() == 0).sum()) - self.n_too_short
        if self.n_too_short + self.n_left_out == corpus.n_documents:
            raise InputError(NO_POSITION)
        starts = [share.start for share in self.shares]
        self.allocation: RowAllocation = allocation or allocate_rows(
            corpus,
            label_sets,
            self.batches,
            per_label,
            starts,
            label_rows,
            seed,
            intervals,
            ngrams=None if like is None else like.allocation.ngrams,
        )
        self._draw_keys(like)
        self._draw(within)
        self._without_documents = False

    def batch(self, index: int) -> Dispatch:
        """Build the dispatch of one batch, whose documents are right-padded to the longest."""
        documents = self.batches[index]
        weights_WB = poisson_weights(self.source_keys[documents])
        found = self.dispatch(index, weights_WB)
        bins = [
            of_bin.dispatch(index, weights_WB, like=found) if of_bin.population.counts(documents).any() else None
            for of_bin in self.bins.values()
        ]
        return replace(found, bins=tuple(bins))

    def dispatch(self, index: int, weights_WB: np.ndarray, like: Dispatch | None = None) -> Dispatch:
        """Build the dispatch of one batch without its bins of positions.

        Args:
            index: of the batch.
            weights_WB: how often each bootstrap replicate drew each of its documents.
            like: a dispatch of the same batch, by which its positions are numbered.
        """
        n = self.allocation
        documents = self.batches[index]
        longest = int(self.corpus.lengths[documents].max())
        positions_N = self.population.padded(documents)
        groups_SN = self.label_numbers(documents, len(positions_N))
        bags = sort_into_bags(groups_SN, positions_N, n.n_bagged, n_pieced=n.n_kept)
        retiring = n.n_kept + n.retired[n.retired_starts[index] : n.retired_starts[index + 1]]
        kept_end, live_end = np.searchsorted(bags.groups_L, [n.n_kept, n.n_kept + len(n.live_rows)])
        bags = _moved_back(bags, np.flatnonzero(np.isin(bags.groups_L[:live_end], retiring)), live_end)
        retiring_start = live_end - len(retiring)
        n_old = int(np.searchsorted(bags.groups_L[kept_end:retiring_start], n.n_kept + n.live_starts[index]))
        singletons, singleton_PL = sort_by_sets(n.occurs_once[groups_SN[n.singleton_sets]], positions_N)
        first, last = np.searchsorted(self._sampled, self._batch_starts[index : index + 2])
        return build_dispatch(
            shape=(len(documents), longest),
            n_tokens=int(self.corpus.lengths[documents].sum()),
            n_counted=len(positions_N),
            sequences=in_pieces(positions_N // longest, positions_N),
            weights_WB=weights_WB,
            singletons=singletons,
            singleton_PL=singleton_PL,
            labels=bags,
            kept_rows=bags.groups_L[:kept_end].astype(np.int64),
            live_rows=n.live_rows[bags.groups_L[kept_end:retiring_start] - n.n_kept],
            retiring_rows=n.live_rows[bags.groups_L[retiring_start:live_end] - n.n_kept],
            retired_buckets=n.bucket_of[bags.groups_L[retiring_start:] - n.n_kept],
            sampled=positions_N[self._sampled[first:last] - self._batch_starts[index]],
            sample_slots=self._slots[first:last],
            n_kept=n.n_kept,
            n_live=n.n_live,
            # Shares are added up row by row, so that what one of them leaves behind would count.
            n_new=retiring_start - kept_end - n_old if len(self.shares) == 1 else None,
            n_documents=self.n_documents,
            slots_B=self._documents.slots[documents],
            like=like,
        )

    def _draw_keys(self, like: Plan | None) -> None:
        """Compute the keys of the documents, or take over those of another plan."""
        self.sequence_keys: np.ndarray
        self.source_keys: np.ndarray
        self.document_keys: np.ndarray
        if like is not None:
            self.sequence_keys, self.source_keys = like.sequence_keys, like.source_keys
            self.document_keys = like.document_keys
            return
        corpus = self.corpus
        self.sequence_keys = keys = np.zeros(corpus.n_documents, dtype=np.uint64)
        for d in range(corpus.n_documents):
            keys[d] = sequence_key(corpus.document(d))
        _, first_window, source = np.unique(corpus.source, return_index=True, return_inverse=True)
        self.source_keys = keys[first_window][source]
        _, first_of_row, row = np.unique(corpus.rows, return_index=True, return_inverse=True)
        place = corpus.source - corpus.source[first_of_row][row]
        self.document_keys = document_keys(keys[first_of_row][row], corpus.rows, place)

    def _draw(self, within: str | None) -> None:
        """Draw the positions and the documents whose sums are kept."""
        corpus, documents, keys = self.corpus, np.concatenate(self.batches), self.sequence_keys
        counts, places = self.population.counts(documents), self.population.places(documents)
        chosen = bottom_k(position_keys(np.repeat(keys[documents], counts), places), SAMPLE_SIZE)
        in_order = np.argsort(chosen)
        self._sampled, self._slots = chosen[in_order], in_order
        ends = np.cumsum([len(batch) for batch in self.batches])
        self._documents = sample_documents(corpus, documents[counts > 0], self.document_keys, self.label_sets, within)
        self._batch_starts = np.concatenate([[0], np.cumsum(counts)[ends - 1]])

    def label_numbers(self, documents: np.ndarray, n_positions: int) -> np.ndarray:
        """Find the number of the label of each counted position [n_label_sets, N]."""
        groups_SN = np.empty((len(self.label_sets), n_positions), dtype=np.int32)
        for row_N, label_set, numbers in zip(groups_SN, self.label_sets, self.allocation.numbers, strict=True):
            ids_N = label_ids(self.corpus, self.population, self.allocation.ngrams, label_set, documents)
            row_N[:] = numbers[ids_N]
        return groups_SN

    def row_labels(self) -> RowLabels:
        """Describe the rows of the sums after the last batch; live rows are retired then, or were."""
        n = self.allocation
        retired = n.retired[n.retired_starts[-1] :]
        return RowLabels(
            set_names=self.set_names,
            keeps_labels=n.keeps_labels.tolist(),
            kept_sets=n.kept_sets,
            kept_names=[self._name(s, i) if i >= 0 else None for s, i in zip(n.kept_sets, n.kept_ids, strict=True)],
            singleton_sets=n.singleton_sets,
            singleton_labels=n.singleton_labels,
            bucket_sets=n.bucket_sets,
            bucket_counts=n.bucket_counts,
            bucket_labels=n.bucket_labels,
            bucket_followed=n.bucket_followed,
            bucket_probability=n.bucket_probability,
            thresholds=n.thresholds,
            bucket_names=[
                self._name(s, i) if i >= 0 else None for s, i in zip(n.bucket_sets, n.bucket_ids, strict=True)
            ],
            sample_order=np.arange(self.n_sample),
            document_sets=({} if self._without_documents else self._documents.sets(self.corpus, self.label_sets, n)),
            retired_rows=n.live_rows[retired],
            retired_buckets=n.bucket_of[retired],
            bins={name: of_bin.row_labels() for name, of_bin in self.bins.items()},
        )

    def table_sizes(self) -> TableSizes:
        """Give the sizes of a layer's sums."""
        n = self.allocation
        return TableSizes(
            n_kept=n.n_kept,
            n_live=n.n_live,
            n_buckets=len(n.bucket_sets),
            n_singleton_sets=len(n.singleton_sets),
            n_sample=self.n_sample,
            n_documents=self.n_documents,
            with_squares=n.is_sampled,
            bins=tuple(of_bin.table_sizes() for of_bin in self.bins.values()),
        )

    def fresh(self) -> Plan:
        """Give the plan itself: what was measured does not change it."""
        return self

    def state_dict(self) -> dict[str, Any]:
        """Give nothing but whether documents are sampled: corpus and settings determine the rows."""
        return {WITHOUT_DOCUMENTS: True} if self._without_documents else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over whether documents are sampled: corpus and settings determine the rows."""
        self._without_documents = bool(state.get(WITHOUT_DOCUMENTS))

    def merge(self, other: object) -> MergeMap:
        """Raise InputError: shares of a plan are merged by `SoftEntropyProbe.merge_shares`."""
        raise InputError("merge: parts of a planned run cannot be merged; measure them without a plan")

    @property
    def set_names(self) -> list[str]:
        """Names of the label sets."""
        return [s.name for s in self.label_sets]

    @property
    def n_positions(self) -> int:
        """Positions that will be counted."""
        return self.allocation.n_positions

    @property
    def n_sample(self) -> int:
        """Positions whose assignments are kept."""
        return len(self._sampled)

    @property
    def n_documents(self) -> int:
        """Documents whose sums are kept."""
        return len(self._documents.sampled_D)

    @property
    def labels_by_set(self) -> np.ndarray:
        """Distinct labels of each set [X]."""
        n, n_sets = self.allocation, len(self.label_sets)
        found = np.bincount(n.kept_sets[n.kept_ids >= 0], minlength=n_sets)
        np.add.at(found, n.bucket_sets, n.bucket_labels)
        np.add.at(found, n.singleton_sets, n.singleton_labels)
        return found

    @property
    def followed_by_set(self) -> np.ndarray:
        """Labels of each set that take part [X]: all, unless labels are sampled."""
        n = self.allocation
        left_out = np.zeros(len(self.label_sets), dtype=np.int64)
        np.add.at(left_out, n.bucket_sets, n.bucket_labels - n.bucket_followed)
        return self.labels_by_set - left_out

    @property
    def expected_errors(self) -> np.ndarray:
        """Standard error of the information of each set that the sample of its labels makes expect, in log m [X]."""
        n = self.allocation
        found = np.zeros(len(self.label_sets))
        for x in np.flatnonzero(n.thresholds > ALL):
            of_set = n.bucket_sets == x
            counts_C, labels_C = n.bucket_counts[of_set], n.bucket_labels[of_set]
            found[x] = CountHistogram(counts_C, labels_C, n.n_positions).error(n.thresholds[x])
        return found

    @property
    def rows_by_set(self) -> np.ndarray:
        """Rows of each set when most are in use [X]."""
        return self.allocation.peak_rows + np.bincount(self.allocation.kept_sets, minlength=len(self.label_sets))

    @property
    def rows_of_ngrams(self) -> int:
        """Rows of the sets whose labels may be sampled, when most are in use."""
        n = self.allocation
        one_by_one = set(n.bucket_sets[n.bucket_ids >= 0].tolist())
        return sum(int(n.peak_rows[x]) for x, s in enumerate(self.label_sets) if s.order and x not in one_by_one)

    def _name(self, set_index: int, label_id: int) -> str:
        """Name a label: the value of the column, or the n-gram's tokens."""
        label_set = self.label_sets[set_index]
        if label_set.direction == "column":
            return self.corpus.columns[label_set.column].names[label_id]
        end = self._example[label_set.order - 1][label_id] + 1
        tokens = self.corpus.tokens[end - label_set.order : end].tolist()
        return " ".join(str(self.corpus.token_name(token)) for token in tokens)

    @cached_property
    def _example(self) -> list[np.ndarray]:
        """A token at which each n-gram ends, for each order."""
        found = []
        for ids in self.allocation.ngrams:
            where = np.zeros(int(ids.max()) + 1, dtype=np.int64)
            defined = np.flatnonzero(ids >= 0)
            where[ids[defined]] = defined
            found.append(where)
        return found


def _moved_back(bags: Bags, moved: np.ndarray, to: int) -> Bags:
    """Reorder bags: move some of the first `to` bags behind the rest of these."""
    n_bags = len(bags.groups_L)
    order = np.concatenate([np.delete(np.arange(to), moved), moved, np.arange(to, n_bags)])
    sizes = np.diff(bags.starts_L, append=len(bags.positions_E))[order]
    positions_E = bags.positions_E[ranges(bags.starts_L[order], sizes)]
    return Bags(positions_E, np.cumsum(sizes) - sizes, bags.groups_L[order])
