"""The sample of labels of an attached probe, done again label by label; tables that are filled as dispatches say."""

from dataclasses import dataclass, field

import numpy as np
import torch

from softh_probe.accumulators.label_sampling import uniform_numbers
from softh_probe.accumulators.label_tables import LabelTables, TableStack, add_bags
from softh_probe.attached.frequency_sketch import FrequencySketch
from softh_probe.attached.inputs import TokenBatch
from softh_probe.attached.online_rows import OnlineRows
from softh_probe.labels import parse_label_sets
from tests.helpers.references import ngram_label, ngram_positions

SHAPE = (1, 3)  # of anchor sets and anchors; columns of a row of sums are one more each
N_COLUMNS = 5
SEED = 3


@dataclass
class Followed:
    """What is known of a followed label: its count and what its sums lack of it, the count at which it became frequent,
    its probability (0 while it is pending), its sums, and its position while it has one."""

    probability: float
    count: int = 0
    missing: int = 0
    crossing: int = 0
    sums: np.ndarray = field(default_factory=lambda: np.zeros(N_COLUMNS))
    position: object = None

    @property
    def held(self):
        return self.count - self.missing


class LabelByLabel:
    """The rule, in plain Python, but for the sketch that counts the labels that are not followed."""

    def __init__(self, names, label_rows):
        self.sets = parse_label_sets(names)
        self.rows_allowed = np.inf if label_rows == "all" else label_rows
        self.threshold = 1.0
        self.labels = {}
        self.sketch = None if label_rows == "all" else FrequencySketch(label_rows)
        self._u = {}

    def u(self, key):
        if key not in self._u:
            name, ngram = key
            self._u[key] = uniform_numbers(np.array([ngram]), name, SEED)[0]
        return self._u[key]

    @property
    def frequent(self):
        return max(self.threshold, 32)

    def sketched(self, key):
        return int(self.sketch.estimate(np.array([self.u(key)]))[0])

    def batch(self, documents, values, name):
        """Documents as lists of tokens, and of each token the row of sums that its position adds."""
        orders = {d: max((s.order for s in self.sets if s.direction == d), default=0) for d in ("input", "output")}
        occurrences = {s.name: {} for s in self.sets}
        for d, (tokens, rows) in enumerate(zip(documents, values, strict=True)):
            for t in ngram_positions(len(tokens), max(orders["input"], 1), orders["output"]):
                for s in self.sets:
                    key = s.name, tuple(ngram_label(tokens, t, s.direction, s.order))
                    occurrences[s.name].setdefault(key, []).append((rows[t], (name, d, t)))
        for of_set in occurrences.values():
            self.enter(of_set)
        for key, found in ((key, found) for of_set in occurrences.values() for key, found in of_set.items()):
            if key in self.labels:
                self.add(self.labels[key], found)
        self.fit()

    def enter(self, of_set):
        absent = []
        for key in of_set:
            if key not in self.labels and self.u(key) < 1 / self.threshold:
                self.labels[key] = Followed(1 / self.threshold)
            elif key not in self.labels:
                absent.append(key)
        for key in absent:
            self.sketch.add(np.array([self.u(key)]), len(of_set[key]))
        late = [key for key in absent if self.sketched(key) >= self.frequent]
        for key in late:
            self.sketch.add(np.array([self.u(key)]), -len(of_set[key]))
        for key in late:
            n = self.sketched(key)
            self.labels[key] = Followed(0.0, count=n, missing=n, crossing=max(n, 1))

    def add(self, label, found):
        before = label.count
        for row, position in found:
            label.count, label.sums = label.count + 1, label.sums + row
            label.position = position if label.held == 1 else None
        if self.threshold == 1:
            return
        if label.count >= self.frequent and label.probability < 1 and not label.crossing:
            label.crossing = max(before, 1)
        if label.crossing and label.count >= 2 * label.crossing:
            label.probability, label.crossing = 1.0, 0

    @property
    def n_rows(self):
        shared = {label.position for label in self.labels.values() if label.held == 1}
        return len(shared) + sum(label.held > 1 for label in self.labels.values())

    def fit(self):
        while self.n_rows > self.rows_allowed:
            self.threshold *= 1.25
            for key, label in list(self.labels.items()):
                passed = label.count / self.threshold
                stays = self.u(key) < passed if label.probability else label.count >= self.frequent
                if not stays:
                    self.give_up(key)
                label.probability = min(label.probability, passed)
                if label.probability and label.count < self.frequent:
                    label.crossing = 0

    def give_up(self, key):
        self.sketch.add(np.array([self.u(key)]), self.labels.pop(key).held)

    def merge(self, other):
        pairs = {}
        for key in self.labels.keys() | other.labels.keys():
            pairs[key] = [self.known(key), other.known(key)]
        sampled = self.threshold > 1 or other.threshold > 1
        self.threshold = max(self.threshold, other.threshold)
        if sampled and other.sketch:
            self.sketch.merge(other.sketch)
        labels = {}
        for key, (ours, theirs) in pairs.items():
            parts = [label for label, _ in (ours, theirs)]
            there = [label for label in parts if label.held]
            count, missing = sum(label.count for label in parts), sum(label.missing for label in parts)
            whole = ours[1] and theirs[1]
            late = [label for label in there if label.probability in (0, 1)]
            would_miss = sum(label.missing if any(label is one for one in late) else label.count for label in parts)
            position = there[0].position if len(there) == 1 else None
            new = Followed(0.0, count, missing, 0, sum(label.sums for label in parts), position)
            labels[key] = new
            if not sampled or (late and count >= self.frequent and count >= 2 * would_miss):
                new.probability = 1.0
            elif whole:
                new.probability = min(label.probability for label in parts)
            elif count >= self.frequent:
                new.crossing = max(would_miss, 1)
            else:
                new.position = "none"
        self.labels = labels
        for key in [key for key, label in labels.items() if label.position == "none"]:
            self.give_up(key)
        self.fit()

    def known(self, key):
        """What a part knows of a label, and whether it has all of it."""
        if key in self.labels:
            return self.labels[key], self.labels[key].probability > 0
        if self.u(key) < 1 / self.threshold:
            return Followed(1 / self.threshold), True
        n = self.sketched(key)
        return Followed(1 / self.threshold, count=n, missing=n), False


class Stream:
    """Feeds documents to `OnlineRows`, to tables of two layers, and to the rule."""

    def __init__(self, names, label_rows, name="ours"):
        self.names, self.label_rows, self.name = names, label_rows, name
        self.rows = self.new_rows()
        self.tables = [self.new_table(), self.new_table()]
        self.expected = LabelByLabel(names, label_rows)
        self.n_batches = 0
        self.random = np.random.default_rng(len(name))

    def new_rows(self):
        return OnlineRows(parse_label_sets(self.names), label_rows=self.label_rows, seed=SEED)

    def new_table(self):
        return LabelTables(TableStack(SHAPE, torch.device("cpu"), self.rows.table_sizes()))

    def feed(self, documents):
        longest = max(map(len, documents))
        ids, real = np.zeros((len(documents), longest), dtype=np.int64), np.zeros((len(documents), longest), dtype=bool)
        for row, tokens in enumerate(documents):
            ids[row, : len(tokens)], real[row, : len(tokens)] = tokens, True
        fed = TokenBatch(real_BT=real, ids_BT=ids)
        values = self.random.integers(1, 9, (*ids.shape, N_COLUMNS)).astype(np.float64)
        values[..., -1] = 1.0
        dispatch = self.rows.batch(fed, {}, self.rows.new_sequences(fed))
        self.apply(dispatch, values)
        self.n_batches += 1
        self.expected.batch(documents, values, (self.name, self.n_batches))
        return dispatch

    def apply(self, dispatch, values_BTK):
        q_NK = torch.from_numpy(values_BTK).flatten(0, 1).float()
        if dispatch.computed is not None:
            q_NK = q_NK[dispatch.computed]
        bags_LK = torch.nn.functional.embedding_bag(
            dispatch.bag_positions.long(), q_NK, dispatch.bag_offsets.long(), mode="sum", include_last_offset=True
        )[dispatch.weights_XL.shape[1] :]
        add_bags(self.tables, [torch.stack([bags_LK * (i + 1) for i in range(len(self.tables))])], dispatch)

    def merge(self, other):
        mapped = self.rows.merge(other.rows)
        for ours, theirs in zip(self.tables, other.tables, strict=True):
            ours.merge(theirs, mapped)
        self.expected.merge(other.expected)

    def reload(self, label_rows=None):
        """Go on from a state, perhaps with another number of rows."""
        state = self.rows.state_dict()
        self.label_rows = label_rows or self.label_rows
        self.rows = self.new_rows()
        taken = self.rows.load_state_dict(state)
        before, self.tables = self.tables, [self.new_table() for _ in self.tables]
        for table, old in zip(self.tables, before, strict=True):
            stored = {key: getattr(old, name) for name, key in LabelTables.STATE.items()}
            table.load(stored, None if taken is None else torch.from_numpy(taken))
        if label_rows:
            self.expected.rows_allowed = label_rows
            self.expected.sketch = self.expected.sketch or FrequencySketch(label_rows)
            self.expected.fit()

    def check(self):
        found, expected = self.found(), self.expected.labels
        if self.label_rows != "all":
            assert len(self.rows.row_labels().live_sets) <= self.label_rows
            for table in self.tables:
                assert table.live.untyped_storage().nbytes() <= self.label_rows * table.live[:1].nbytes
            assert len(found) <= len(self.names) * self.label_rows
        assert found.keys() == expected.keys()
        for key, label in expected.items():
            *known, sums = found[key]
            assert known == [label.count, label.missing, label.crossing, label.probability], key
            for i, row in enumerate(sums):
                np.testing.assert_array_equal(row, label.sums * (i + 1))
        self.check_row_labels()

    def found(self):
        """Count, probability and sums in each layer of every label, read from the state."""
        state = self.rows.state_dict()
        assert state["threshold"] == self.expected.threshold
        found = {}
        for x, name in enumerate(self.names):
            names = ("ngrams", "rows", "counts", "missing", "crossing", "probability")
            for ngram, row, *known in zip(*(state[part][x].tolist() for part in names), strict=True):
                found[name, tuple(ngram)] = (*known, [table.live[row].numpy() for table in self.tables])
        return found

    def check_row_labels(self):
        """Rows of one label have its probability, shared ones one for each label; those of nobody are empty."""
        said, labels = self.rows.row_labels(), self.expected.labels
        assert said.thresholds.tolist() == [self.expected.threshold] * len(self.names)
        state = self.rows.state_dict()
        in_use = np.isin(np.arange(len(said.live_sets)), np.concatenate([part.numpy() for part in state["rows"]]))
        for x, name in enumerate(self.names):
            of_set = [label for (s, _), label in labels.items() if s == name and label.probability]
            again = sorted((label.held, label.probability, label.count) for label in of_set if label.held > 1)
            rows = np.flatnonzero(said.live_sets == x)
            positions = self.tables[0].live[rows, -1].numpy()
            counts = (positions * said.live_scale[rows]).round().astype(int).tolist()
            parts = positions.tolist(), said.live_probability[rows].tolist(), counts
            assert sorted(zip(*parts, strict=True)) == again
            once = sorted(label.probability for label in of_set if label.held == 1)
            assert sorted(said.shared_probability[x].tolist()) == once
            assert (self.tables[0].live[said.shared_rows[x], -1] == 1).all()
        assert in_use.sum() == self.expected.n_rows
        for table in self.tables:
            assert not table.live[len(in_use) :].any()
            assert not table.live[: len(in_use)][torch.from_numpy(~in_use)].any()


def zipf_documents(random, n, longest=14, vocabulary=60):
    """Documents whose tokens are as unevenly frequent as words are; some are too short for any label."""
    weights = 1.0 / np.arange(1, vocabulary + 1)
    return [
        random.choice(vocabulary, size=random.integers(1, longest), p=weights / weights.sum()).tolist()
        for _ in range(n)
    ]
