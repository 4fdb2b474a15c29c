"""Policies of positions: which positions of a document count, beside that their n-gram labels are defined.

Policies narrow the population of all label sets of a measurement alike. n-gram labels still see the tokens around a
position, whether these count or not.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

from softh_probe.errors import InputError, short_repr

if TYPE_CHECKING:
    import numpy as np

    from softh_probe.labels import LabelSet

ALL = "all"
#: Policies that need to know which tokens are whose: of data, and of `generate`.
ROLES = ("assistant", "completion")
GENERATED = "generated"
_BY_PLACE = ("skip", "first", "last")
#: The order in which policies are written, so that one combination has one text.
_ORDER = (GENERATED, *ROLES, *_BY_PLACE)
_WITH_NUMBER = re.compile(r"(first|skip):([0-9]{1,9})")
_KNOWN_ELSEWHERE = {
    GENERATED: "is known inside the block of a SoftEntropyProbe only; data has assistant and completion",
    **dict.fromkeys(
        ROLES, "is known of data only; an attached probe is told which positions count with probe.counted(mask)"
    ),
}


@dataclass(frozen=True, kw_only=True)
class Policy:
    """One condition on positions.

    Attributes:
        name: "first", "skip", "last", "assistant", "completion" or "generated".
        n: tokens of "first" and "skip".
    """

    name: str
    n: int = 0

    def __str__(self) -> str:
        return f"{self.name}:{self.n}" if self.n else self.name


def parse_positions(value: str | Sequence[str], roles: Collection[str] = ROLES) -> tuple[Policy, ...]:
    """Parse the policies of a measurement; none is "all".

    >>> [str(policy) for policy in parse_positions("skip:1, assistant")]
    ['assistant', 'skip:1']
    >>> parse_positions("all")
    ()

    Args:
        value: names with commas, or a list of names.
        roles: the policies by role that are known here.

    Returns:
        The policies in an order of their own, whichever they were given in.

    Raises:
        InputError: a name is unknown or stands twice, a number is missing or 0, or no position can hold all of them.
    """
    remedy = f"expected {', '.join((ALL, *roles))}, last, first:N or skip:N, or several of these with commas"
    names = value.split(",") if isinstance(value, str) else value
    if isinstance(names, (bytes, dict)) or not isinstance(names, (Sequence, Collection)):
        raise InputError(f"positions: {remedy}; got {value!r}")
    found = [_parse(name.strip() if isinstance(name, str) else name, roles, remedy) for name in names]
    policies = [policy for policy in found if policy is not None]
    if not found:
        raise InputError(f"positions: {remedy}; got nothing")
    kinds = [policy.name for policy in policies]
    if twice := sorted({kind for kind in kinds if kinds.count(kind) > 1}):
        raise InputError(f"positions: {', '.join(twice)} stands twice; name each once")
    numbers = {policy.name: policy.n for policy in policies}
    if numbers.get("first", 1) <= numbers.get("skip", 0) and "first" in numbers:
        first, skip = numbers["first"], numbers["skip"]
        raise InputError(f"positions: first:{first} and skip:{skip} leave no token; both count from the first one")
    return tuple(sorted(policies, key=lambda policy: _ORDER.index(policy.name)))


def check_labels(policies: Sequence[Policy], label_sets: Sequence[LabelSet]) -> None:
    """Refuse policies by place that leave no position at which n-gram label sets are defined.

    Args:
        policies: the policies.
        label_sets: the label sets.

    Raises:
        InputError: no position could count.
    """
    first = next((policy.n for policy in policies if policy.name == "first"), None)
    is_last = any(policy.name == "last" for policy in policies)
    for label_set in label_sets:
        if label_set.direction == "output" and is_last:
            raise InputError(
                f"positions: no token follows the last one, and {label_set.name} needs one; leave it out of labels, "
                "as in labels input_unigram"
            )
        if label_set.direction == "input" and first is not None and label_set.order > first:
            raise InputError(
                f"positions: none of the first {first} tokens has {label_set.order - 1} before it, and "
                f"{label_set.name} needs them; ask for first:{label_set.order} or more, or for lower n-gram orders"
            )


def positions_text(policies: Sequence[Policy]) -> str:
    """Write policies as `parse_positions` reads them.

    >>> positions_text(parse_positions("skip:4"))
    'skip:4'
    """
    return ",".join(map(str, policies)) or ALL


def hold_by_place(policies: Sequence[Policy], places: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Tell where the policies by place hold; those by role are not looked at.

    >>> import numpy as np
    >>> hold_by_place(parse_positions("skip:1,last"), np.array([0, 1, 2]), np.array([3, 3, 3]))
    array([False, False,  True])

    Args:
        places: the number of each token in its document, from 0.
        lengths: the number of tokens of that document.
    """
    import numpy as np  # not for commands that only read configurations

    found = np.ones(np.broadcast_shapes(places.shape, lengths.shape), dtype=bool)
    for policy in policies:
        if policy.name == "first":
            found &= places < policy.n
        elif policy.name == "skip":
            found &= places >= policy.n
        elif policy.name == "last":
            found &= places == lengths - 1
    return found


def roles_of(policies: Sequence[Policy]) -> tuple[str, ...]:
    """List the policies that need to know whose tokens are whose."""
    return tuple(policy.name for policy in policies if policy.name not in _BY_PLACE)


def special_ids(value: object) -> list[int]:
    """Give the ids of special tokens, sorted.

    >>> special_ids([2, 0, 2])
    [0, 2]

    Args:
        value: a collection of ids, or a tokenizer, of which those with a name (<s>, <pad>, …) and the added tokens that
            are marked as special are meant.

    Raises:
        InputError: it is neither.
    """
    found = getattr(value, "all_special_ids", () if value is False else value)
    added = getattr(value, "added_tokens_decoder", {})
    ids: list[Any] = (
        list(found) if isinstance(found, Collection) and not isinstance(found, (str, bytes, dict)) else [None]
    )
    if not all(isinstance(i, Integral) and not isinstance(i, bool) and int(i) >= 0 for i in ids):
        raise InputError(f"skip_special_tokens: expected a tokenizer or a list of token ids, got {short_repr(value)}")
    return sorted({int(i) for i in ids} | {int(i) for i, token in added.items() if token.special})


def describe_policy(policy: Mapping[str, Any]) -> str:
    """Describe a policy that a result records, as its `info["positions_policy"]`.

    >>> describe_policy({"positions": "assistant", "skip_special_tokens": True, "left": 1200, "of": 4800})
    'assistant, without special tokens: 1,200 of 4,800 positions'

    Args:
        policy: positions, skip_special_tokens (whether, or which tokens); and left, the positions that count, of those
            without the policy, where that is known.
    """
    special = ", without special tokens" if policy.get("skip_special_tokens") else ""
    left, of = policy.get("left"), policy.get("of")
    share = f": {left:,} of {of:,} positions" if isinstance(left, int) and isinstance(of, int) else ""
    return f"{policy.get('positions', ALL)}{special}{share}"


def same_policy(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> bool:
    """Tell whether two results have the same policy; None is that of all positions.

    >>> same_policy({"positions": "skip:1,assistant"}, {"positions": "assistant,skip:1", "skip_special_tokens": False})
    True
    """
    names = [sorted(str((policy or {}).get("positions", ALL)).split(",")) for policy in (one, other)]
    skipped = [(policy or {}).get("skip_special_tokens") or False for policy in (one, other)]
    if True in skipped:  # a run knows the tokens by its tokenizer, and another measurement by their ids
        skipped = [bool(tokens) for tokens in skipped]
    return names[0] == names[1] and skipped[0] == skipped[1]


def _parse(name: object, roles: Collection[str], remedy: str) -> Policy | None:
    """Parse one policy; None for "all"."""
    if name == ALL:
        return None
    if name in (*roles, "last"):
        return Policy(name=str(name))
    if isinstance(name, str) and name in _KNOWN_ELSEWHERE:
        raise InputError(f"positions: {name} {_KNOWN_ELSEWHERE[name]}")
    if isinstance(name, str) and (found := _WITH_NUMBER.fullmatch(name)) and int(found[2]):
        return Policy(name=found[1], n=int(found[2]))
    raise InputError(f"positions: {remedy}; got {name!r}")
