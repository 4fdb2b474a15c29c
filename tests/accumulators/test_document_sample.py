"""The sample of documents: the smallest keys, whatever the order of documents and their parts."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from softh_probe.accumulators.document_labels import SampledDocuments
from softh_probe.accumulators.document_sample import Documents, DocumentSample

SIZE = 5


def documents(numbers, labels, units=None, keys=None, is_new=True) -> Documents:
    numbers = np.array(numbers, dtype=np.int64)
    units = numbers if units is None else np.array(units, dtype=np.int64)
    keys = np.array([hash_of(unit) for unit in units.tolist()], dtype=np.uint64) if keys is None else keys
    new = np.full(len(numbers), is_new)
    _, first = np.unique(units, return_index=True)
    return Documents(
        numbers_Q=numbers,
        units_Q=units,
        groups_Q=np.full(len(numbers), -1),
        keys_Q=keys,
        is_new_Q=new,
        is_new_unit_Q=new & np.isin(np.arange(len(numbers)), first),
        labels={"kind": np.array(labels, dtype=np.int64)},
    )


def hash_of(unit: int) -> int:
    return unit * 7919 % 101


def filled(numbers, sizes) -> DocumentSample:
    """A sample of documents that came in pieces, each with the label of its number."""
    sample, start = DocumentSample(SIZE), 0
    for size in sizes:
        part = numbers[start : start + size]
        sample.add(documents(part, [number % 3 - 1 for number in part]))
        start += size
    return sample


def content(sample: DocumentSample) -> dict[int, int]:
    return {number: int(sample.labels["kind"][slot]) for number, slot in sample._slots.items()}


orders = st.permutations(range(20))
pieces = st.lists(st.integers(1, 6), min_size=20, max_size=20)


@settings(deadline=None)
@given(orders, pieces)
def test_it_holds_the_labelled_documents_of_the_smallest_keys_in_any_order(numbers, sizes):
    sample = filled(numbers, sizes)
    labelled = [number for number in range(20) if number % 3 - 1 >= 0]
    expected = sorted(labelled, key=hash_of)[:SIZE]
    assert content(sample) == {number: number % 3 - 1 for number in expected}
    assert sample._numbers[sample.sampled().slots_D].tolist() == expected
    assert sample.counts["kind"] == {0: [7, 7], 1: [6, 6]}


@settings(deadline=None)
@given(orders, pieces, st.integers(0, 20))
def test_parts_are_merged_to_the_sample_of_the_whole_and_their_slots_are_told(numbers, sizes, cut):
    whole = filled(numbers, sizes)
    one, other = filled(numbers[:cut], [20]), filled(numbers[cut:], [20])
    before = {slot: number for number, slot in one._slots.items()}
    taken = one.merge(other, shift=0)
    assert content(one) == content(whole)
    assert one.counts == whole.counts
    for theirs, slot in zip(taken.theirs.tolist(), taken.slots.tolist(), strict=True):
        assert one._numbers[slot] == other._numbers[theirs]
    stayed = {slot for slot, number in before.items() if one._slots.get(number) == slot}
    assert set(taken.emptied.tolist()) == set(before) - stayed


def test_slots_of_documents_that_left_are_emptied_and_a_document_goes_on_in_its_slot():
    sample = DocumentSample(2)
    assert sample.add(documents([1, 2], [0, 1], keys=np.array([50, 60], dtype=np.uint64))).tolist() == []
    assert sample.slots_of(np.array([1, 2, 3])).tolist() == [0, 1, -1]
    assert sample.add(documents([3], [1], keys=np.array([10], dtype=np.uint64))).tolist() == [1]
    assert sample.slots_of(np.array([1, 2, 3])).tolist() == [0, -1, 1]
    again = documents([1, 2], [0, 1], keys=np.array([50, 60], dtype=np.uint64), is_new=False)
    assert sample.add(again).tolist() == []
    assert sample.slots_of(np.array([1, 2, 3])).tolist() == [0, -1, 1]
    assert sample.counts["kind"] == {0: [1, 1], 1: [2, 2]}


def test_a_document_of_both_parts_is_added_to_its_slot():
    one, other = DocumentSample(4), DocumentSample(4)
    one.add(documents([1, 2], [0, 0]))
    other.add(documents([2, 3], [0, 1], is_new=False))
    taken = one.merge(other, shift=0)
    assert sorted(other._numbers[taken.theirs].tolist()) == [2, 3]
    assert len(one) == 3
    assert taken.emptied.tolist() == []


def test_a_state_is_the_sample():
    sample = filled(list(range(20)), [7] * 3)
    loaded = DocumentSample(SIZE)
    loaded.load_state_dict(sample.state_dict())
    assert content(loaded) == content(sample)
    assert loaded.counts == sample.counts
    for one in (sample, loaded):
        one.add(documents([90], [1], keys=np.array([0], dtype=np.uint64)))
    assert loaded.slots_of(np.array([90])) == sample.slots_of(np.array([90]))


def test_documents_of_a_unit_are_one_unless_their_labels_tell_them_apart():
    sampled = SampledDocuments(slots_D=np.array([4, 2, 0, 1]), units_D=np.array([9, 3, 9, 5]))
    counts, rows = np.array([2, 1]), np.array([10, 11])
    as_units = sampled.labelled(np.array([0, 1, 0, -1]), counts, rows)
    assert as_units.slots_E.tolist() == [4, 2, 0]
    assert as_units.items_E.tolist() == [0, 1, 0]
    assert as_units.labels.label_D.tolist() == [0, 1]
    assert as_units.labels.group_D is None
    apart = sampled.labelled(np.array([0, 0, 1, -1]), counts, rows, is_paired=True)
    assert apart.items_E.tolist() == [0, 1, 2]
    assert apart.labels.group_D.tolist() == [9, 3, 9]
    alone = SampledDocuments(slots_D=np.arange(3), units_D=np.arange(3))
    assert alone.labelled(np.array([0, 0, 1]), counts, rows, is_paired=True).labels.group_D is None
    assert sampled.labelled(np.full(4, -1), counts, rows) is None


def test_labels_that_nothing_has_are_left_out():
    sampled = SampledDocuments(slots_D=np.arange(3), units_D=np.arange(3), groups_D=np.array([1, 1, 2]))
    of_set = sampled.labelled(np.array([2, 0, 2]), np.array([4, 0, 5]), np.array([7, 8, 9]))
    assert of_set.labels.label_D.tolist() == [1, 0, 1]
    assert of_set.labels.documents_C.tolist() == [4, 5]
    assert of_set.rows_C.tolist() == [7, 9]
    assert of_set.labels.group_D.tolist() == [1, 1, 2]
    assert of_set.describe() == {"labels": 2, "documents": 9, "sampled": 3, "alone": 0, "exchangeable": 2}
