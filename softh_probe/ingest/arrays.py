"""Arrays in files, read in parts: safetensors and NPZ behind one interface.

Nothing is unpickled. A part of an array takes the memory of that part, except of a compressed NPZ, whose arrays are
read whole, up to `MOST_COMPRESSED_BYTES`.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.lib import format as npy
from safetensors import safe_open
from torch import Tensor

from softh_probe.errors import SofthProbeError
from softh_probe.ingest.damage import DamagedFileError

#: Bytes of an array of a compressed NPZ, which has to be read whole.
MOST_COMPRESSED_BYTES = 2**31
SUFFIXES = (".safetensors", ".npz")
_UNREADABLE = "unreadable"
_CHUNK = 2**22
#: Place of the lengths of name and extra field in the header of a member of a ZIP file, and the size of the rest.
_ZIP_LENGTHS, _ZIP_HEADER = slice(26, 30), 30
#: Values of text that a file, or a line of a manifest, may give about it.
FACTS = ("layout", "layers")

#: Types of safetensors that torch converts to float32.
_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")

Part = tuple[slice, ...]
Kind = Literal["float", "integer", "other"]


class Arrays(Protocol):
    """The arrays of an open file."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each array, by its name."""

    @property
    def facts(self) -> Mapping[str, str]:
        """What the file says of itself: `layout`, and `layers`, by commas."""

    def kind(self, name: str) -> Kind:
        """What numbers an array holds."""

    def read(self, name: str, part: Part = ()) -> Tensor:
        """Read a part of an array."""

    def check(self) -> None:
        """Read what checksums are of.

        Raises:
            DamagedFileError: one of them is wrong.
        """


@contextmanager
def open_arrays(path: Path) -> Iterator[Arrays]:
    """Open a file of arrays.

    Raises:
        DamagedFileError: it cannot be read.
    """
    with ExitStack() as held:
        with _reading():
            opened: Callable[[Path], Any] = _safetensors if path.suffix.lower() == ".safetensors" else _npz
            arrays = held.enter_context(opened(path))
        yield arrays


@contextmanager
def _reading() -> Iterator[None]:
    """Turn the errors of readers into DamagedFileError."""
    try:
        yield
    except (SofthProbeError, MemoryError):
        raise
    except Exception as error:  # a dozen types of four libraries
        what = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        raise DamagedFileError(_UNREADABLE, f"it cannot be read: {what or type(error).__name__}") from error


# --- safetensors -------------------------------------------------------------------------------------------


@contextmanager
def _safetensors(path: Path) -> Iterator[Arrays]:
    with safe_open(path, framework="pt") as file:
        yield _Safetensors(path, file)


class _Safetensors:
    """The tensors of a safetensors file, whose metadata may say what they are."""

    def __init__(self, path: Path, file: Any) -> None:
        self._path = path
        described = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        self.shapes = {name: tuple(one.get_shape()) for name, one in described.items()}
        self._dtypes = {name: str(one.get_dtype()) for name, one in described.items()}
        self.facts = {name: text for name, text in (file.metadata() or {}).items() if name in FACTS}

    def kind(self, name: str) -> Kind:
        dtype = self._dtypes[name]
        if dtype in _FLOATS:
            return "float"
        return "integer" if dtype.startswith(("I", "U")) else "other"

    def read(self, name: str, part: Part = ()) -> Tensor:
        # A slice is a view of the mapped file: it is copied, and the file closed, so that its pages do not stay.
        with _reading(), safe_open(self._path, framework="pt") as file:
            view: Tensor = file.get_slice(name)[part or tuple(slice(None) for _ in self.shapes[name])]
            return view.clone()

    def check(self) -> None:
        """There is no checksum; the header told the size of the file."""


# --- NPZ ---------------------------------------------------------------------------------------------------


@contextmanager
def _npz(path: Path) -> Iterator[Arrays]:
    with zipfile.ZipFile(path) as file:
        yield _Npz(path, file)


@dataclass(frozen=True)
class _Member:
    """An array in an NPZ: where its header ends in the member, and what that says."""

    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype[Any]
    n_header: int


class _Npz:
    """The arrays of an NPZ, which may say what they are in arrays `layout` and `layers` of text or numbers."""

    def __init__(self, path: Path, file: zipfile.ZipFile) -> None:
        self._path, self._file = path, file
        self._whole: dict[str, np.ndarray] = {}
        self._members = {
            info.filename.removesuffix(".npy"): self._member(info)
            for info in file.infolist()
            if info.filename.endswith(".npy")
        }
        self.shapes = {name: member.shape for name, member in self._members.items()}
        self.facts = {name: self._fact(name) for name in FACTS if name in self._members}

    def kind(self, name: str) -> Kind:
        dtype = self._members[name].dtype
        if dtype.kind == "V" and dtype.itemsize == 2:
            raise DamagedFileError(
                "dtype",
                f"{name} has 2 bytes a value and no type, as numpy stores bfloat16; store float32, or safetensors",
            )
        return "float" if dtype.kind == "f" else "integer" if dtype.kind in "iu" else "other"

    def read(self, name: str, part: Part = ()) -> Tensor:
        with _reading():
            array = self._array(name)[part]
            if array.dtype.kind == "f" and array.dtype.itemsize > 8:
                array = array.astype(np.float64)
            return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))

    def check(self) -> None:
        for member in self._members.values():
            if member.info.compress_type == zipfile.ZIP_STORED:
                with _reading(), self._file.open(member.info) as data:
                    while data.read(_CHUNK):
                        pass

    def _array(self, name: str) -> np.ndarray:
        """Map an array that is stored as it is into memory; read a compressed one."""
        member = self._members[name]
        if member.info.compress_type == zipfile.ZIP_STORED and 0 not in member.shape:
            order: Any = "F" if member.is_fortran else "C"
            offset = self._offset(member.info) + member.n_header
            return np.memmap(self._path, member.dtype, "r", offset, member.shape, order)
        if name not in self._whole:
            if member.info.file_size > MOST_COMPRESSED_BYTES:
                raise DamagedFileError(
                    "compressed",
                    f"{name} is compressed and {member.info.file_size:,} bytes long, and has to be read whole; store "
                    "it by numpy.savez, as it is",
                )
            with self._file.open(member.info) as data:
                self._whole[name] = npy.read_array(data, allow_pickle=False)
        return self._whole[name]

    def _member(self, info: zipfile.ZipInfo) -> _Member:
        with self._file.open(info) as data:
            version = npy.read_magic(data)
            if version not in ((1, 0), (2, 0)):
                raise DamagedFileError(_UNREADABLE, f"{info.filename}: .npy version {version} is not read")
            read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, is_fortran, dtype = read_header(data)
            n_header = data.tell()
        if dtype.hasobject:
            raise DamagedFileError("pickled", f"{info.filename} holds pickled objects, which are never loaded")
        if n_header + int(np.prod(shape, dtype=object)) * dtype.itemsize != info.file_size:
            raise DamagedFileError(_UNREADABLE, f"{info.filename} is not as long as its header says")
        return _Member(info, shape, is_fortran, dtype, n_header)

    def _offset(self, info: zipfile.ZipInfo) -> int:
        """Find where a member's data begins in the file."""
        with self._path.open("rb") as file:
            file.seek(info.header_offset)
            n_name, n_extra = struct.unpack("<HH", file.read(_ZIP_HEADER)[_ZIP_LENGTHS])
        return int(info.header_offset + _ZIP_HEADER + n_name + n_extra)

    def _fact(self, name: str) -> str:
        values = np.atleast_1d(self._array(name))
        if values.ndim != 1 or values.dtype.kind not in "Uiu":
            raise DamagedFileError("layers", f"{name}: expected text or numbers, got {values.dtype}")
        return ",".join(map(str, values.tolist()))
