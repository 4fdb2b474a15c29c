"""Several numbers of anchors, or several temperatures, that are measured in one pass.

Each is measured with the anchors that it has alone, so its values are those of a run of its own. The first one is what
a result shows; the others stand beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import product
from numbers import Integral, Real
from typing import Any, NamedTuple, TypeVar

from softh_probe.errors import InputError, short_repr

T = TypeVar("T")
#: Settings of which there may be several.
SEVERAL = ("n_anchors", "calibration")


class Variant(NamedTuple):
    """What one of them measures with.

    Attributes:
        n_anchors: anchors of a set.
        calibration: as `SoftEntropyProbe` takes it.
    """

    n_anchors: int
    calibration: str | float


def variants(
    n_anchors: int | str | Sequence[int], calibration: str | float | Sequence[str | float]
) -> tuple[Variant, ...]:
    """Combine numbers of anchors and calibrations: each number with the first calibration, and so on.

    >>> variants([50, 100], "exact")
    (Variant(n_anchors=50, calibration='exact'), Variant(n_anchors=100, calibration='exact'))

    Raises:
        InputError: none is given, one of them twice, or it is none.
    """
    pairs = product(several("calibration", calibration), several("n_anchors", n_anchors))
    return tuple(Variant(n_anchors=n, calibration=method) for method, n in pairs)


def several(name: str, value: object) -> tuple[Any, ...]:
    """Read one or several values of a setting, in a list or a text with commas.

    >>> several("n_anchors", "50,100"), several("n_anchors", 100), several("calibration", "exact, 0.02")
    ((50, 100), (100,), ('exact', 0.02))

    Args:
        name: of the setting, one of `SEVERAL`.
        value: what was given.

    Raises:
        InputError: there is none, one of them twice, or it is no value of this setting.
    """
    if isinstance(value, str):
        given: list[object] = [part.strip() for part in value.strip().strip("[]").split(",")]
    else:
        given = list(value) if isinstance(value, Sequence) else [value]
    found = tuple(_read(name, one, value) for one in given)
    if not found or len({*found}) < len(found):
        raise InputError(f"{name}: expected one value, or several that differ, got {short_repr(value)}")
    return found


def alone_or_list(values: Sequence[T]) -> T | list[T]:
    """Give a single value as it is, several as a list, as settings and files show them.

    >>> alone_or_list((100,)), alone_or_list((50, 100))
    (100, [50, 100])
    """
    return values[0] if len(values) == 1 else list(values)


def name_of(variant: Variant, first: Variant) -> str:
    """Name a variant by what it has other than the first one.

    >>> name_of(Variant(50, "amos"), Variant(100, "exact"))
    'n_anchors=50, calibration=amos'
    """
    pairs = zip(SEVERAL, variant, first, strict=True)
    return ", ".join(f"{name}={own}" for name, own, of_first in pairs if own != of_first)


def _read(name: str, one: object, given: object) -> Any:
    if isinstance(one, str):
        for kind in (int,) if name == "n_anchors" else (float, str):
            with suppress(ValueError):
                return kind(one)
    elif isinstance(one, Integral if name == "n_anchors" else Real) and not isinstance(one, bool):
        return one
    what = "a whole number" if name == "n_anchors" else "the name of a method or a temperature"
    raise InputError(f"{name}: expected {what}, or several with commas, got {short_repr(given)}")
