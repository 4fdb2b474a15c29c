"""Cache of tokenised corpora and plans between runs, so that the next checkpoint starts at once.

An entry is a safetensors file with a checksum; its name is a digest of everything it depends on. Damaged entries are
ignored. Writes are atomic, so any number of runs can share a folder. The folder may be deleted at any time.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from softh_probe.files import write_bytes
from softh_probe.hashing import arrays_sha256, text_sha256
from softh_probe.kept import Kept

#: Increased whenever the same input gives other documents, tokens or row allocations than before.
FORMAT = 9

Arrays = dict[str, np.ndarray]

logger = logging.getLogger(__name__)


class Cache:
    """A folder of arrays by kind and key.

    >>> import tempfile
    >>> cache = Cache(Path(tempfile.mkdtemp()))
    >>> cache.store("plan", "1f", {"rows": np.arange(3)}, head={"sets": 2})
    >>> cache.load("plan", "1f")
    ({'rows': array([0, 1, 2])}, {'sets': 2})

    Args:
        folder: folder of the entries; None stores and finds nothing there.
        kept: keeps entries in memory too, which are then neither read again nor checked.
    """

    def __init__(self, folder: Path | None, kept: Kept | None = None) -> None:
        self.folder, self.kept = folder, kept

    def load(self, kind: str, key: str | None) -> tuple[Arrays, dict[str, Any]] | None:
        """Load an entry.

        Args:
            kind: kind of entry, such as "corpus".
            key: key of the entry, as `key_of` makes it; None finds nothing.

        Returns:
            Its arrays and its head; None where there is no intact entry.
        """
        if key is None:
            return None
        if self.kept is None:
            return self._read(kind, key)
        found: tuple[Arrays, dict[str, Any]] | None = self.kept.find(kind, key)
        if found is None and (found := self._read(kind, key)) is not None:
            self.kept.keep(kind, key, found)
        return found

    def _read(self, kind: str, key: str) -> tuple[Arrays, dict[str, Any]] | None:
        """Read an entry from its file."""
        if self.folder is None:
            return None
        try:
            with safe_open(self._path(kind, key), framework="np") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
                stored = file.metadata() or {}
        except (OSError, SafetensorError):
            return None
        head = stored.get("head", "")
        return (arrays, json.loads(head)) if stored.get("checksum") == _checksum(arrays, head) else None

    def store(self, kind: str, key: str | None, arrays: Mapping[str, np.ndarray], head: Mapping[str, Any]) -> None:
        """Store an entry; if it cannot be written, log a warning.

        Args:
            kind: kind of entry.
            key: key of the entry; None stores nothing.
            arrays: the arrays by name.
            head: JSON values beside the arrays.
        """
        if self.folder is None or key is None:
            return
        whole = {name: np.asarray(array, order="C") for name, array in sorted(arrays.items())}
        text = json.dumps(head)
        path = self._path(kind, key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # safetensors' save_file would make a file that other users cannot read
            write_bytes(path, save(whole, metadata={"head": text, "checksum": _checksum(whole, text)}))
        except (OSError, SafetensorError) as error:
            logger.warning("%s could not be written and is not kept: %s", path, error)

    def _path(self, kind: str, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{kind}-{key}.safetensors"


def cache_folder(setting: str) -> Path | None:
    """Resolve the `cache` of a configuration ("auto", "none" or a path) to a folder; None for no cache."""
    if setting == "none":
        return None
    if setting == "auto":
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return Path(base).expanduser() / "softh_probe"
    return Path(setting).expanduser()


def key_of(**parts: Any) -> str:
    """Compute the key of an entry from everything it depends on (JSON values)."""
    text = json.dumps({"format": FORMAT, **parts}, sort_keys=True, default=str)
    return text_sha256(text)[:32]


def _checksum(arrays: Mapping[str, np.ndarray], head: str) -> str:
    return text_sha256(head + arrays_sha256(*(arrays[name] for name in sorted(arrays))))
