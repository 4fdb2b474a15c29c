"""Recipes of anchors: the random numbers that each kind is drawn from. Imports no torch.

`torch.Generator().manual_seed(0)` gives the numbers that `torch.manual_seed(0)` gives to the user's own draws. Anchors
that are drawn so coincide with the first weights of a module, or with cluster centres, of the same seed and shape.
Seeds of `iid` and `antithetic` are therefore hashes:

    iid         SHA-256 of the text "softh_probe:SEED:M:D", in decimal digits, as in "softh_probe:0:100:576"
    antithetic  SHA-256 of the text "softh_probe:antithetic:SEED:M:D"

SEED is that of the set. The first 8 bytes, as a big-endian integer without its top bit (2^63), seed the generator.
Its state takes the low 32 bits of a seed; bit 31 is set, so that no seed of the user's from 0 to 2^31 − 1 starts the
same stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from softh_probe.hashing import text_sha256

#: Sets of anchors where no number is given. The spread over anchors is unknown with one set, and hardly known with two.
DEFAULT_ANCHOR_SETS = 8
#: Methods of calibration, or the temperature itself; see `softh_probe.estimators.calibration`.
Calibration = Literal["exact", "leading_order", "amos"] | float
#: Kinds of anchors; see `softh_probe.estimators.anchors.sample_anchors`.
Kind = Literal["iid", "published", "antithetic", "published_antithetic"]
KINDS: tuple[str, ...] = get_args(Kind)
ANTITHETIC = ("antithetic", "published_antithetic")
#: Names of the same draws in versions that recorded no recipe; they knew the two of the user's own stream.
_EARLIER_NAMES = {"published": "iid", "published_antithetic": "antithetic"}
_NAMES_NOW = {earlier: now for now, earlier in _EARLIER_NAMES.items()}


def stream_seed(kind: str, seed: int, n_anchors: int, dim: int) -> int:
    """Compute the seed of the generator that one set of anchors is drawn from.

    >>> stream_seed("iid", 0, 100, 576), stream_seed("published", 0, 100, 576)
    (7552460111725020150, 0)

    Args:
        kind: one of `KINDS`.
        seed: seed of the set.
        n_anchors: number of anchors m of the set.
        dim: width d of the hidden states.
    """
    if kind in _EARLIER_NAMES:
        return seed
    name = "softh_probe" if kind == "iid" else f"softh_probe:{kind}"
    digest = text_sha256(f"{name}:{int(seed)}:{int(n_anchors)}:{int(dim)}")
    return int(digest[:16], 16) & (2**63 - 1) | 2**31


def with_kind_of_today(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Give the anchors of settings the name of today, where a version without recipes wrote these settings.

    >>> with_kind_of_today({"n_anchors": 100, "anchors": "iid"})
    {'n_anchors': 100, 'anchors': 'published'}
    """
    kind = settings.get("anchors", "iid")
    return {**settings, "anchors": _NAMES_NOW.get(kind, kind) if isinstance(kind, str) else kind}


def has_recipe(head: Mapping[str, Any]) -> bool:
    """Tell whether the content of a result.json names the recipe of its anchors, or holds no anchors."""
    anchors = head.get("anchors")
    of_width = [entry for entry in anchors if isinstance(entry, dict)] if isinstance(anchors, list) else []
    return not of_width or any("recipe" in entry for entry in of_width)


def with_recipe(head: Mapping[str, Any]) -> dict[str, Any]:
    """Add the recipe of its anchors to the content of a result.json that names none: it is a published draw.

    >>> head = with_recipe({"settings": {"anchors": "iid"}, "anchors": [{"dim": 576}]})
    >>> head["settings"], head["anchors"]
    ({'anchors': 'published'}, [{'dim': 576, 'recipe': 'published'}])
    """
    if has_recipe(head):
        return dict(head)
    named = {
        name: with_kind_of_today(head[name]) for name in ("settings", "config") if isinstance(head.get(name), dict)
    }
    recipe = next(iter(named.values()), {}).get("anchors", "published")
    anchors = [{**entry, "recipe": recipe} if isinstance(entry, dict) else entry for entry in head["anchors"]]
    return {**head, **named, "anchors": anchors}


def how_to_continue(kind: object, argument: str) -> str:
    """Say how to go on with anchors that earlier versions gave another name; empty for all other kinds.

    >>> how_to_continue("published", "--anchors ")
    '; earlier versions called these anchors iid: --anchors published continues with them'
    """
    earlier = _EARLIER_NAMES.get(kind) if isinstance(kind, str) else None
    return f"; earlier versions called these anchors {earlier}: {argument}{kind} continues with them" if earlier else ""


def how_to_continue_one_set(theirs: object, ours: object, argument: str) -> str:
    """Say how to go on with the one set of anchors that earlier versions measured by default; empty for other numbers.

    >>> how_to_continue_one_set(1, DEFAULT_ANCHOR_SETS, "--anchor-sets ")
    '; earlier versions measured one set by default: --anchor-sets 1 continues with it'
    """
    if (theirs, ours) != (1, DEFAULT_ANCHOR_SETS):
        return ""
    return f"; earlier versions measured one set by default: {argument}1 continues with it"
