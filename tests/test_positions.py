"""Policies of positions: how they are written and read, and where those by place hold."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

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
    assert parse_positions(positions_text(asked)) == asked
    names = [str(policy) for policy in asked] or ["all"]
    assert parse_positions(separator.join(names)) == parse_positions(names) == asked
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
        ("generated", "got 'generated'"),
        ([], "got nothing"),
        (None, "got None"),
        ({"last": 1}, "got {'last': 1}"),
    ],
)
def test_wrong_policies_are_refused(text, message):
    with pytest.raises(InputError) as caught:
        parse_positions(text)
    assert message in str(caught.value)


def test_policies_are_the_same_in_any_order():
    assert same_policy({"positions": "last,skip:2"}, {"positions": "skip:2,last", "skip_special_tokens": False})
    assert same_policy(None, {"positions": "all", "skip_special_tokens": []})
    assert not same_policy({"positions": "last"}, {"positions": "last", "skip_special_tokens": True})
    assert not same_policy({"skip_special_tokens": [1, 2]}, {"skip_special_tokens": [1]})
    assert same_policy({"skip_special_tokens": [1, 2]}, {"skip_special_tokens": True})
    assert describe_policy({"positions": "last", "left": None, "of": 7}) == "last"
