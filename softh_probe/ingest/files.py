"""The files of a folder, in a fixed order, with what a manifest says of them.

    manifest.jsonl                                       one line a file, in the order in which they are read
        {"file": "a.npz", "language": "de"}              labels of one's own, by column
        {"file": "b/c.npz", "layout": "plain", "layers": [0, 1, "final_norm"], "language": null}

Without a manifest, all .safetensors and .npz files below the folder are read, in the order of their names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from softh_probe.data.documents import label_value
from softh_probe.errors import InputError, abbreviated, short_repr
from softh_probe.hashing import text_sha256
from softh_probe.ingest.arrays import FACTS, SUFFIXES
from softh_probe.ingest.config import IngestConfig
from softh_probe.labels import parse_label_sets

MANIFEST = "manifest.jsonl"
_FILE = "file"
#: Column that a line gives a file in, and what else it may say that is no label.
_RESERVED = (_FILE, *FACTS)


@dataclass(frozen=True, kw_only=True)
class ListedFile:
    """One file that is to be read.

    Attributes:
        name: its path below the folder, with slashes.
        path: where it is.
        size, mtime_ns: bytes and time of the last change; −1 where there is no such file.
        labels: by label set (`column:language`), as text; None for no label.
        facts: `layout` and `layers` as the manifest gives them; these by commas.
    """

    name: str
    path: Path
    size: int
    mtime_ns: int
    labels: Mapping[str, str | None] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)


def list_files(config: IngestConfig) -> list[ListedFile]:
    """List the files of a folder.

    Raises:
        InputError: there is no such folder, it holds no such files, or the manifest is not what it has to be.
    """
    folder = Path(config.folder).expanduser()
    if not folder.is_dir():
        kind = "a file, expected a folder" if folder.exists() else "no such folder"
        raise InputError(f"folder: {kind}: {config.folder!r}")
    if Path(config.out).expanduser().resolve().is_relative_to(folder.resolve()):
        raise InputError(f"out: {config.out} is in the folder that is read; name another one")
    columns = [s.column for s in parse_label_sets(config.labels) if s.direction == "column"]
    manifest = _manifest(config, folder)
    if manifest is None:
        if columns:
            raise InputError(
                f"labels: column:{columns[0]} is a column of a manifest, and there is no {MANIFEST} in "
                f"{config.folder}; "
                f'write one, with a line {{"file": "NAME", "{columns[0]}": "LABEL"}} for each file'
            )
        found = [_listed(folder, name) for name in _names_below(folder)]
    else:
        found = list(_of_manifest(manifest, folder, columns))
        for column in columns:
            if found and all(file.labels[f"column:{column}"] is None for file in found):
                raise InputError(f"labels: column:{column} is null in every line of {manifest.name}; leave it out")
    if not found:
        what = f"lists no files: {manifest}" if manifest else f"holds no {' or '.join(SUFFIXES)} files: {config.folder}"
        raise InputError(f"folder: it {what}")
    return found[: config.max_documents]


def digest(files: list[ListedFile]) -> str:
    """Compute a digest of names, sizes, times and labels: files that changed have another one."""
    listed = [[f.name, f.size, f.mtime_ns, dict(f.labels), dict(f.facts)] for f in files]
    return text_sha256(json.dumps(listed, sort_keys=True))


def _manifest(config: IngestConfig, folder: Path) -> Path | None:
    if config.manifest is not None:
        given = Path(config.manifest).expanduser()
        if not given.is_file():
            raise InputError(f"manifest: no such file: {config.manifest!r}")
        return given
    usual = folder / MANIFEST
    return usual if usual.is_file() else None


def _names_below(folder: Path) -> list[str]:
    """List files by name; hidden ones, which others may be writing, are left out."""
    found = []
    for here, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        wanted = [name for name in names if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
        found += [Path(here, name).relative_to(folder).as_posix() for name in wanted]
    return sorted(found)


def _listed(folder: Path, name: str, **said: Any) -> ListedFile:
    path = folder / name
    try:
        stat = path.stat()
        size, mtime_ns = stat.st_size, stat.st_mtime_ns
    except OSError:  # opening it tells why
        size = mtime_ns = -1
    return ListedFile(name=name, path=path, size=size, mtime_ns=mtime_ns, **said)


def _of_manifest(manifest: Path, folder: Path, columns: list[str]) -> Iterator[ListedFile]:
    seen: dict[str, int] = {}
    there: set[str] = set()
    for number, line in _lines(manifest):
        where = f"manifest: {manifest.name}, line {number}"
        name = line.get(_FILE)
        if not isinstance(name, str) or not name.lower().endswith(SUFFIXES):
            raise InputError(
                f"{where}: expected a field {_FILE!r} with the name of a {' or '.join(SUFFIXES)} file, got "
                f"{short_repr(name)}"
            )
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or "\0" in name:
            raise InputError(f"{where}: expected a file below the folder, got {short_repr(name)}")
        if parts.as_posix() in seen:
            raise InputError(
                f"{where}: {short_repr(name)} stands in line {seen[parts.as_posix()]}, too; list each file once"
            )
        seen[parts.as_posix()] = number
        there |= line.keys()
        labels = {f"column:{column}": _label(line.get(column), column, where) for column in columns}
        facts = {key: _fact(line[key], where, key) for key in FACTS if line.get(key) is not None}
        yield _listed(folder, parts.as_posix(), labels=labels, facts=facts)
    if seen and (missing := [column for column in columns if column not in there]):
        names = sorted(name for name in there if name not in _RESERVED)
        raise InputError(
            f"labels: no column {missing[0]!r} in {manifest.name}; it has {abbreviated(names, 8) or 'none but file'}"
        )


def _lines(manifest: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        text = manifest.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"manifest: {manifest} cannot be read: {error}") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"manifest: {manifest.name}, line {number} is no JSON: {error}; expected one object a line"
            ) from error
        if not isinstance(value, dict):
            raise InputError(f"manifest: {manifest.name}, line {number}: expected an object, got {short_repr(value)}")
        yield number, value


def _label(value: Any, column: str, where: str) -> str | None:
    label = label_value(value, "labels", column, where)
    return None if label is None else str(label)


def _fact(value: Any, where: str, key: str) -> str:
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(one, str | int) and not isinstance(one, bool) for one in values):
        raise InputError(f"{where}: {key}: expected names or numbers, got {short_repr(value)}")
    return ",".join(map(str, values))
