"""What is kept on disk between runs: tokenised corpora and plans of rows, so that the next checkpoint starts at once.

An entry is a safetensors file named after everything it depends on, with a checksum; a damaged one counts as none.
Entries are only ever written whole, so any number of runs can share a folder. It is safe to delete at any time.
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

logger = logging.getLogger(__name__)

#: Counted up whenever documents, tokens or numberings come out differently for the same input.
FORMAT = 2

Arrays = dict[str, np.ndarray]


class Cache:
    """Arrays by kind and key.

    >>> import tempfile
    >>> cache = Cache(Path(tempfile.mkdtemp()))
    >>> cache.store("plan", "1f", {"rows": np.arange(3)}, head={"sets": 2})
    >>> cache.load("plan", "1f")
    ({'rows': array([0, 1, 2])}, {'sets': 2})

    Args:
        folder: where entries are; None keeps and finds nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def load(self, kind: str, key: str | None) -> tuple[Arrays, dict[str, Any]] | None:
        """Arrays and head of an entry; None where there is no whole one, or no key."""
        if self.folder is None or key is None:
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
        """Keep arrays and what JSON can say beside them. What cannot be written is no reason to stop a run."""
        if self.folder is None or key is None:
            return
        whole = {name: np.asarray(array, order="C") for name, array in sorted(arrays.items())}
        text = json.dumps(head)
        path = self._path(kind, key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # save_file would keep others from reading it
            write_bytes(path, save(whole, metadata={"head": text, "checksum": _checksum(whole, text)}))
        except (OSError, SafetensorError) as error:
            logger.warning("%s could not be written and is not kept: %s", path, error)

    def _path(self, kind: str, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{kind}-{key}.safetensors"


def cache_folder(setting: str) -> Path | None:
    """The folder that a configuration's `cache` names: "auto", "none" or a path."""
    if setting == "none":
        return None
    if setting == "auto":
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return Path(base).expanduser() / "softh_probe"
    return Path(setting).expanduser()


def key_of(**parts: Any) -> str:
    """A name for everything in parts (JSON values), and nothing else."""
    text = json.dumps({"format": FORMAT, **parts}, sort_keys=True, default=str)
    return text_sha256(text)[:32]


def _checksum(arrays: Mapping[str, np.ndarray], head: str) -> str:
    return text_sha256(head + arrays_sha256(*(arrays[name] for name in sorted(arrays))))
