"""SHA-256 digests of files, texts and arrays."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def file_sha256(path: Path) -> str:
    """Compute the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bytes_sha256(content: bytes | memoryview) -> str:
    """Compute the SHA-256 of bytes, in hex."""
    return hashlib.sha256(content).hexdigest()


def text_sha256(text: str) -> str:
    """Compute the SHA-256 of a text's UTF-8 bytes, in hex."""
    return bytes_sha256(text.encode())


def arrays_sha256(*arrays: np.ndarray) -> str:
    """Compute the SHA-256 of arrays, in hex: of their types, shapes and bytes."""
    import numpy as np  # not for commands that only digest files and texts

    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype.str} {array.shape} ".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()
