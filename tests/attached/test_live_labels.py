"""Labels whose number is bounded, against the rule that is applied label by label."""

import numpy as np
import pytest

from tests.helpers.followed_labels import Stream, zipf_documents

NAMES = ["input_unigram", "output_unigram", "input_bigram", "output_trigram"]
LABEL_ROWS = [1, 2, 7, 50, 300, "all"]


@pytest.mark.parametrize("label_rows", LABEL_ROWS)
def test_rows_hold_the_labels_of_the_rule(label_rows):
    random, stream = np.random.default_rng(0), Stream(NAMES, label_rows)
    for _ in range(25):
        stream.feed(zipf_documents(random, random.integers(1, 6)))
        stream.check()
    assert (stream.expected.threshold > 1.0) == (label_rows != "all")


@pytest.mark.parametrize("label_rows", LABEL_ROWS)
def test_a_state_goes_on_as_if_it_had_not_been_stored(label_rows):
    streams = [Stream(NAMES, label_rows) for _ in range(2)]
    for i in range(15):
        documents = zipf_documents(np.random.default_rng(i), 4)
        dispatches = [stream.feed(documents) for stream in streams]
        assert dispatches[0].live_rows.tolist() == dispatches[1].live_rows.tolist()
        if i % 3 == 1:
            streams[1].reload()
        streams[1].check()


@pytest.mark.parametrize("label_rows", LABEL_ROWS)
def test_parts_with_different_thresholds_are_merged(label_rows):
    random = np.random.default_rng(1)
    for sizes in ((0, 3), (3, 0), (2, 12), (12, 2), (8, 8)):
        ours, theirs = Stream(NAMES, label_rows), Stream(NAMES, label_rows, name="theirs")
        for stream, n in zip((ours, theirs), sizes, strict=True):
            for _ in range(n):
                stream.feed(zipf_documents(random, 4))
        ours.merge(theirs)
        ours.check()
        for _ in range(4):
            ours.feed(zipf_documents(random, 4))
            ours.check()
        theirs.check()  # is as it was


@pytest.mark.parametrize("label_rows", [1, 7, 50, 300])
def test_a_part_that_follows_all_labels_is_taken_over(label_rows):
    random = np.random.default_rng(2)
    ours, theirs = Stream(NAMES, label_rows), Stream(NAMES, "all", name="theirs")
    for _ in range(8):
        ours.feed(zipf_documents(random, 3))
        theirs.feed(zipf_documents(random, 3))
    ours.merge(theirs)
    ours.check()
    theirs.reload(label_rows)
    theirs.check()
    for stream in (ours, theirs):
        for _ in range(4):
            stream.feed(zipf_documents(random, 4))
            stream.check()


def test_merges_states_and_batches_in_any_order():
    for seed in range(6):
        random = np.random.default_rng(seed)
        streams = [Stream(NAMES, 40, name="x" * (i + 1)) for i in range(3)]
        for _ in range(25):
            stream = streams[random.integers(len(streams))]
            action = random.random()
            if action < 0.15:
                stream.reload()
            elif action < 0.3 and len(streams) > 1:
                streams.remove(stream)
                streams[random.integers(len(streams))].merge(stream)
            else:
                stream.feed(zipf_documents(random, random.integers(1, 8), vocabulary=40))
            for stream in streams:
                stream.check()


def test_a_batch_with_far_more_labels_than_rows():
    random = np.random.default_rng(3)
    for label_rows in (1, 3, 20):
        stream = Stream(NAMES, label_rows)
        stream.feed(zipf_documents(random, 60, longest=40, vocabulary=5000))
        stream.check()
        stream.feed([[7] * 30])
        stream.check()


def test_frequent_labels_are_followed_throughout():
    random, stream = np.random.default_rng(4), Stream(NAMES, 60)
    for _ in range(60):
        stream.feed(zipf_documents(random, 5))
    label = stream.expected.labels["input_unigram", (0,)]
    assert label.probability == 1.0
    assert label.count > stream.expected.threshold > 4
    stream.check()
