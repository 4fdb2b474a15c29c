"""Checks of masks and labels that users give for forward passes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import pandas as pd
from torch import Tensor

from softh_probe.attached.sequences import RESERVED_COLUMNS
from softh_probe.errors import InputError, short_repr
from softh_probe.labels import ORDERS

_LABELS = "strings or integers, [B] or [B, T], as a list, an array or an integer tensor"


@dataclass(frozen=True, kw_only=True)
class OwnLabels:
    """Labels of one's own of one set.

    Attributes:
        codes: int64 [B] or [B, T]: the labels, or where these are strings, their places in `names`; negative where
            there is none.
        names: the distinct strings; none where labels are integers.
    """

    codes: np.ndarray
    names: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """What labels these are: "strings", "integers", or none."""
        if self.names:
            return "strings"
        return "integers" if (self.codes >= 0).any() else ""


def checked_labels(labels: Mapping[str, object], ngram_sets: Collection[str]) -> dict[str, OwnLabels]:
    """Check labels of one's own and bring them to the host.

    >>> checked_labels({"language": ["de", None, "en", "de"]}, ())["language"]
    OwnLabels(codes=array([ 0, -1,  1,  0]), names=('de', 'en'))

    Raises:
        InputError: they are neither integers nor strings [B] or [B, T], or their name is taken.
    """
    checked = {}
    for name, values in labels.items():
        checked[name] = _of_tensor(name, values) if isinstance(values, Tensor) else _of_values(name, values)
        if name in ngram_sets:
            raise InputError(f"{name}: this is one of the n-gram label sets; choose another name")
        if not name or name in ORDERS:
            raise InputError(f"labels: {name!r} is no name for labels of your own; choose another one")
        if name in RESERVED_COLUMNS:
            raise InputError(f"{name}: choose another name, this one is taken")
    return checked


def _of_tensor(name: str, values: Tensor) -> OwnLabels:
    if values.is_floating_point() or values.is_complex() or values.ndim not in (1, 2):
        raise InputError(f"{name}: expected {_LABELS}, got {_described(values)}")
    return OwnLabels(codes=values.cpu().long().numpy())


def _of_values(name: str, values: object) -> OwnLabels:
    """Read labels from a list, a tuple, an array or a column of a table; None and NaN are none."""
    array = _as_array(name, values)
    codes, found = pd.factorize(array.ravel())
    distinct = found.tolist()
    kinds = {"strings" if isinstance(x, str) else "integers" if isinstance(x, Integral) else "" for x in distinct}
    if kinds == {"strings"}:
        return OwnLabels(codes=codes.reshape(array.shape), names=tuple(map(str, distinct)))
    if kinds <= {"integers"}:
        if large := [x for x in distinct if not -(2**63) <= x < 2**63]:
            raise InputError(f"{name}: expected integers of 64 bits, got {short_repr(large[0])}; write them as strings")
        numbers = np.array([*map(int, distinct), -1], dtype=np.int64)
        return OwnLabels(codes=numbers[codes].reshape(array.shape))
    if kinds == {"strings", "integers"}:
        examples = [next(x for x in distinct if isinstance(x, kind)) for kind in (str, Integral)]
        both = " and ".join(map(short_repr, examples))
        raise InputError(f"{name}: expected strings alone or integers alone, got {both}; write all of them as strings")
    other = next(x for x in distinct if not isinstance(x, str | Integral))
    raise InputError(f"{name}: expected {_LABELS}, got {short_repr(other)} ({type(other).__name__}) among them")


def _as_array(name: str, values: object) -> np.ndarray:
    """Give values as an array [B] or [B, T] of Python objects."""
    try:
        array = np.asarray(values, dtype=object)
    except ValueError:  # of nested lists of unequal lengths
        array = np.zeros(())
    if array.ndim == 1 and any(isinstance(x, list | tuple) for x in array):
        raise InputError(
            f"{name}: expected as many labels for each sequence, got {', '.join(_lengths(array[:4]))}; give one for "
            "each token that the model is fed, None at padding"
        )
    if array.ndim not in (1, 2):
        given = _described(values) if not isinstance(values, str) else short_repr(values)
        raise InputError(f"{name}: expected {_LABELS}, got {given}")
    return array


def _lengths(rows: Iterable[object]) -> list[str]:
    return [str(len(row)) if isinstance(row, list | tuple) else "one label" for row in rows]


def checked_mask(mask: object, block: str = "masked") -> Tensor:
    """Check a mask.

    Args:
        mask: the mask.
        block: the probe's method that takes it.

    Raises:
        InputError: it is no tensor [B, T] or [B].
    """
    if not isinstance(mask, Tensor) or mask.ndim not in (1, 2):
        raise InputError(f"mask: expected a tensor [B, T], or [B] for pooled hidden states, got {_described(mask)}")
    no, yes = ("at padding", "at real positions") if block == "masked" else ("where none counts", "where one does")
    if mask.is_complex():
        raise InputError(f"mask: expected booleans or numbers, 0 {no}, got {_described(mask)}")
    if mask.dtype.is_signed and bool((mask < 0).any()):
        raise InputError(
            f"mask: expected 0 {no} and 1 {yes}, got negative values; of a mask that is added to logits, give mask >= 0"
        )
    return mask


def _described(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
