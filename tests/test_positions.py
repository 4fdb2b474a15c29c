"""Policies of positions: how they are written and read, and where those by place hold."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from softh_probe.config import RunConfig
from softh_probe.errors import InputError
from softh_probe.positions import (
    Policy,
    describe_policy,
    hold_by_place,
    parse_positions,
    positions_text,
    roles_of,
    same_policy,
)
from tests.test_properties import examples

NAMES = ("first", "skip", "last", "assistant", "completion")


@st.composite
def policies(draw) -> tuple[Policy, ...]:
    """Policies that some position may hold."""
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=5))
    skip = draw(st.integers(1, 40))
    first = draw(st.integers(skip + 1, 80))
    return tuple(Policy(name=name, n={"skip": skip, "first": first}.get(name, 0)) for name in names)


@given(policies(), st.sampled_from([",", ", ", " ,"]))
@examples(100)
def test_what_is_written_is_read(asked, separator):
    found = parse_positions(positions_text(asked))
    assert set(found) == set(asked)
    names = [str(policy) for policy in asked] or ["all"]
    assert parse_positions(separator.join(names)) == parse_positions(names) == parse_positions(names[::-1]) == found
    assert roles_of(asked) == tuple(name for name in map(str, asked) if name in ("assistant", "completion"))


@given(st.text(alphabet="alskipfrtc:,0123 \n\x00é-", max_size=20))
@examples(300)
def test_any_other_text_is_refused_in_one_line(text):
    try:
        found = parse_positions(text)
    except InputError as error:
        told = str(error)
    else:
        told = "positions: " + positions_text(found)
        assert parse_positions(positions_text(found)) == found
    assert told.startswith("positions: ")
    assert len(told.splitlines()) == 1


@given(policies(), st.lists(st.integers(0, 12), min_size=1, max_size=6))
@examples(100)
def test_policies_by_place_hold_where_a_loop_says(asked, lengths):
    places = np.concatenate([np.arange(n) for n in lengths])
    of_document = np.repeat(lengths, lengths)
    expected = [
        all({"first": place < p.n, "skip": place >= p.n, "last": place == n - 1}.get(p.name, True) for p in asked)
        for n in lengths
        for place in range(n)
    ]
    assert hold_by_place(asked, places, of_document).tolist() == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("first", "expected all, assistant, completion, last, first:N or skip:N"),
        ("skip:0", "got 'skip:0'"),
        ("assistant,assistant", "assistant stands twice"),
        ("skip:1,skip:2", "skip stands twice"),
        ("first:4,skip:4", "first:4 and skip:4 leave no token"),
        ("", "got ''"),
        ("generated", "generated is known inside the block of a SoftEntropyProbe only"),
        ([], "got nothing"),
        (None, "got None"),
        ({"last": 1}, "got {'last': 1}"),
    ],
)
def test_wrong_policies_are_refused(text, message):
    with pytest.raises(InputError) as caught:
        parse_positions(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "text", ["skip:1,first:3,assistant", "first:3, assistant, skip:1", "all,assistant,first:3,skip:1"]
)
def test_one_combination_has_one_text(text):
    assert positions_text(parse_positions(text)) == "assistant,skip:1,first:3"


@pytest.mark.parametrize(
    ("positions", "labels", "message"),
    [
        ("last", ["input_unigram", "output_unigram"], "no token follows the last one, and output_unigram needs one"),
        ("skip:2,last", ["output_bigram"], "no token follows the last one, and output_bigram needs one"),
        ("first:3", ["input_quadgram"], "none of the first 3 tokens has 3 before it, .* first:4 or more"),
        ("last", ["input_quadgram", "column:language"], None),
        ("first:4", ["input_quadgram", "output_unigram"], None),
    ],
)
def test_policies_that_leave_no_position_for_any_label_are_refused_before_data_is_read(positions, labels, message):
    def ask():
        return RunConfig(model="m", data="d", out="o", positions=positions, labels=labels)

    if message is None:
        assert ask().positions == positions
        return
    with pytest.raises(InputError, match=message):
        ask()


def test_policies_are_the_same_in_any_order():
    assert same_policy({"positions": "last,skip:2"}, {"positions": "skip:2,last", "skip_special_tokens": False})
    assert same_policy(None, {"positions": "all", "skip_special_tokens": []})
    assert not same_policy({"positions": "last"}, {"positions": "last", "skip_special_tokens": True})
    assert not same_policy({"skip_special_tokens": [1, 2]}, {"skip_special_tokens": [1]})
    assert same_policy({"skip_special_tokens": [1, 2]}, {"skip_special_tokens": True})
    assert describe_policy({"positions": "last", "left": None, "of": 7}) == "last"
