"""Rows that labels share until they occur again, against a dictionary of sums."""

from collections import Counter

import numpy as np

from softh_probe.attached.shared_rows import SharedRows


class Ledger:
    """A table of numbers, one a row, that is filled as rows say; `sums` is what each label's should be."""

    def __init__(self):
        self.rows, self.table, self.sums = SharedRows(), np.zeros(10_000), Counter()

    def add(self, placed, values_L, value_of):
        np.add.at(self.table, placed.taken, self.table[placed.left])
        own = placed.rows_L >= 0
        np.add.at(self.table, placed.rows_L[own], values_L[own])
        np.add.at(self.table, placed.rows_P, [value_of[p] for p in placed.positions_P.tolist()])

    def batch(self, labels_SN, value_N):
        """Each position has a label of each set."""
        positions = {}
        for labels_N in labels_SN:
            for position, label in enumerate(labels_N.tolist()):
                positions.setdefault(label, []).append(position)
                self.sums[label] += value_N[position]
        labels = np.array(sorted(positions))
        once = np.array([len(positions[label]) == 1 for label in labels.tolist()])
        first = np.array([positions[label][0] for label in labels.tolist()])
        values = np.array([value_N[positions[label]].sum() for label in labels.tolist()])
        self.add(self.rows.assign(labels, once, first), values, value_N)

    def check(self):
        labels = np.array(sorted(self.sums))
        rows, is_shared = self.rows.lookup(labels)
        np.testing.assert_allclose(self.table[rows], [self.sums[label] for label in labels.tolist()])
        own = rows[~is_shared]
        assert len(set(own.tolist())) == len(own), "rows of one's own are one label's"
        assert not set(own.tolist()) & set(rows[is_shared].tolist())
        assert self.rows.n_rows == len(set(rows.tolist())), "no row is lost"


def random_batches(seed, n_batches, n_labels=60):
    """Three sets, whose labels are numbered apart; some labels are frequent, most are rare."""
    generator = np.random.default_rng(seed)
    for _ in range(n_batches):
        labels = np.minimum(generator.geometric(0.05, (3, 9)), n_labels) - 1 + np.arange(3)[:, None] * n_labels
        yield labels, generator.random(9)


def test_every_label_has_its_sum_whenever_it_occurs_again():
    ledger = Ledger()
    for labels_SN, value_N in random_batches(0, 6):
        ledger.batch(labels_SN, value_N)
        ledger.check()
    assert ledger.rows.n_rows < len(ledger.sums)  # some are shared to the end


def test_merged_and_restored():
    for seed in range(5):
        ours, theirs = Ledger(), Ledger()
        for ledger, start in ((ours, 0), (theirs, 100)):
            for labels_SN, value_N in random_batches(seed + start, 4):
                ledger.batch(labels_SN, value_N)
        everything = np.arange(180)
        their_labels = np.array(sorted(theirs.sums))
        rows, is_shared = theirs.rows.lookup(their_labels)
        ours.add(ours.rows.assign(their_labels, is_shared, rows), theirs.table[rows], theirs.table)
        ours.sums += theirs.sums
        ours.check()

        again = Ledger()
        known = np.array([label for label in everything.tolist() if label in ours.sums])
        again.rows.load(*ours.rows.lookup(known))
        number = {label: i for i, label in enumerate(known.tolist())}
        again.table, again.sums = ours.table.copy(), Counter({number[label]: v for label, v in ours.sums.items()})
        again.check()
        again.batch(np.stack([np.arange(5), np.arange(5)]), np.ones(5))
        again.check()
