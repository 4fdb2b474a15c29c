"""Anchors of one's own: from tensors or a file, with their digest. They continue numbers made with other generators.

Files are .npy, .npz or .safetensors, of one array for each width of hidden states; pickles are not read. Imports no
torch.

Shape suffixes: S anchor sets, M anchors, D width of a hidden state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from softh_probe.errors import InputError, abbreviated, first_sentence, short_repr
from softh_probe.estimators.recipes import DEFAULT_ANCHOR_SETS, KINDS
from softh_probe.estimators.variants import several
from softh_probe.hashing import bytes_sha256

#: Beginning of the setting `anchors` of measurements with given anchors; the digest follows.
GIVEN = "given:"
_SUFFIXES = (".npy", ".npz", ".safetensors")
#: How far the length of an anchor may be from 1; half precisions are within it.
_TOLERANCE = 4e-3
#: Defaults of n_anchors and anchor_sets, which anchors of other numbers replace.
_DEFAULTS = {"n_anchors": 100, "anchor_sets": DEFAULT_ANCHOR_SETS}


@dataclass(frozen=True, kw_only=True, eq=False)
class GivenAnchors:
    """Anchors of one's own for hidden states of one width or several.

    >>> given = GivenAnchors.of(np.eye(4, 8))
    >>> given.n_sets, given.n_anchors, given.widths, given.setting[:14]
    (1, 4, [8], 'given:4168ad6a')

    Attributes:
        points: by width D, [S, M, D], float32.
        sha256: digest of their bytes (little-endian float32), by width in ascending order.
    """

    points: Mapping[int, np.ndarray]
    sha256: str

    @classmethod
    def of(cls, value: object) -> GivenAnchors:
        """Take anchors as users give them.

        Args:
            value: an array or tensor [M, D] or [S, M, D] of any float type, several of different D in a list or
                mapping, or the path of a file of such arrays.

        Raises:
            InputError: there is no such file, its content is no array, or rows are not of unit length.
        """
        arrays = _read(Path(value).expanduser()) if isinstance(value, str | Path) else _arrays(value)
        points: dict[int, np.ndarray] = {}
        for array in arrays:
            points_SMD = _checked(array)
            dim = points_SMD.shape[2]
            if dim in points:
                raise InputError(f"anchors: two arrays are for width {dim}; stack sets to one array [S, M, D]")
            points[dim] = points_SMD
        sizes = {one.shape[:2] for one in points.values()}
        if len(sizes) != 1:
            raise InputError(f"anchors: expected as many sets and anchors for each width, got {sorted(sizes)}")
        in_order = dict(sorted(points.items()))
        return cls(
            points=in_order, sha256=bytes_sha256(b"".join(one.astype("<f4").tobytes() for one in in_order.values()))
        )

    @property
    def n_sets(self) -> int:
        """Number of sets S."""
        return int(next(iter(self.points.values())).shape[0])

    @property
    def n_anchors(self) -> int:
        """Number of anchors M of a set."""
        return int(next(iter(self.points.values())).shape[1])

    @property
    def widths(self) -> list[int]:
        """Widths D of hidden states that there are anchors for."""
        return list(self.points)

    @property
    def setting(self) -> str:
        """Value of the setting `anchors`: equal anchors have equal ones."""
        return GIVEN + self.sha256

    def of_width(self, dim: int) -> np.ndarray:
        """Give the anchors [S, M, D] for hidden states of width D.

        Raises:
            InputError: there are none.
        """
        if dim not in self.points:
            widths = abbreviated([*map(str, self.widths)])
            raise InputError(f"anchors: they are for hidden states of width {widths}, and these are {dim} wide")
        return self.points[dim]

    def sizes(self, n_anchors: int | str | Sequence[int], anchor_sets: int) -> tuple[int | tuple[int, ...], int]:
        """Give n_anchors and anchor_sets, which the anchors decide.

        Args:
            n_anchors: as the user gave it, or the default; several numbers take the first anchors of each set.
            anchor_sets: likewise.

        Raises:
            InputError: the user gave other numbers, or more anchors than there are.
        """
        if anchor_sets not in (self.n_sets, _DEFAULTS["anchor_sets"]):
            raise InputError(f"anchor_sets: the given anchors have {self.n_sets}, got {anchor_sets}; leave it out")
        numbers = several("n_anchors", n_anchors)
        if len(numbers) == 1 and numbers[0] not in (self.n_anchors, _DEFAULTS["n_anchors"]):
            raise InputError(f"n_anchors: the given anchors have {self.n_anchors}, got {numbers[0]}; leave it out")
        if len(numbers) > 1 and max(numbers) > self.n_anchors:
            raise InputError(
                f"n_anchors: the given anchors have {self.n_anchors}, of which several numbers take the first ones, "
                f"got {max(numbers)}"
            )
        return self.n_anchors if len(numbers) == 1 else numbers, self.n_sets


def given_anchors(value: object) -> GivenAnchors | None:
    """Take the argument `anchors`: None for a kind of draw, else anchors of one's own.

    Raises:
        InputError: it is neither.
    """
    if isinstance(value, GivenAnchors):
        return value
    if isinstance(value, str) and (value in KINDS or not (value.endswith(_SUFFIXES) or "/" in value)):
        return None  # a kind, or none that is known, which the draw refuses
    return GivenAnchors.of(value)


def _read(path: Path) -> list[np.ndarray]:
    """Read the arrays of a file."""
    if not path.is_file():
        raise InputError(f"anchors: there is no file {path}; name a kind ({', '.join(KINDS[:3])}) or a file of anchors")
    try:
        if path.suffix == ".safetensors":
            return _of_safetensors(path)
        if path.suffix in (".npy", ".npz"):
            loaded = np.load(path, allow_pickle=False)
            return [loaded] if isinstance(loaded, np.ndarray) else [loaded[name] for name in loaded.files]
    except Exception as error:
        raise InputError(f"anchors: {path} cannot be read: {first_sentence(error)}; write it again") from error
    raise InputError(
        f"anchors: expected a file {', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]}, got {path}; "
        "np.save('anchors.npy', anchors.cpu().float().numpy()) writes one"
    )


def _of_safetensors(path: Path) -> list[np.ndarray]:
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        names = list(file.keys())
        if any(file.get_slice(name).get_dtype() == "BF16" for name in names):  # numpy has no such type
            with safe_open(path, framework="pt") as in_torch:
                return [in_torch.get_tensor(name).float().numpy() for name in names]
        return [file.get_tensor(name) for name in names]


def _arrays(value: Any) -> list[np.ndarray]:
    """Convert tensors, arrays, or several of them."""
    if isinstance(value, Mapping):
        return [_array(one) for one in value.values()]
    if isinstance(value, list | tuple) and value and all(hasattr(one, "shape") for one in value):
        return [_array(one) for one in value]
    return [_array(value)]


def _array(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):  # a tensor
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value  # numpy has no bfloat16
    try:
        return np.asarray(value)
    except Exception as error:
        raise InputError(f"anchors: expected an array, got {short_repr(value)}") from error


def _checked(array: np.ndarray) -> np.ndarray:
    """Check an array, and give it as float32 [S, M, D]."""
    if array.dtype.kind != "f" or array.ndim not in (2, 3):
        raise InputError(f"anchors: expected floats [M, D] or [S, M, D], got {array.dtype} {list(array.shape)}")
    if not array.size:
        raise InputError(f"anchors: expected 2 anchors or more of width 2 or more, got {list(array.shape)}")
    points_SMD = np.ascontiguousarray(array.reshape(-1, *array.shape[-2:]), dtype=np.float32)
    n_sets, n_anchors, dim = points_SMD.shape
    if n_sets < 1 or n_anchors < 2 or dim < 2:
        raise InputError(f"anchors: expected 2 anchors or more of width 2 or more, got {list(array.shape)}")
    length = np.linalg.norm(points_SMD.astype(np.float64), axis=-1)
    off = ~(np.abs(length - 1) <= _TOLERANCE)  # NaN, too
    if off.any():
        worst = float(length[off][0])
        raise InputError(
            f"anchors: expected rows of unit length, got {int(off.sum())} of {off.size} of others ({worst:.4g}); "
            "divide each by its norm"
        )
    return points_SMD
