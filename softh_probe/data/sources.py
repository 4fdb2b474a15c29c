"""Open the splits of a data set for streaming, from local files and folders or the hub.

No large file is copied, no code of a data set runs, no archive is unpacked to disk.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import datasets
from datasets.packaged_modules.csv.csv import Csv
from datasets.packaged_modules.json.json import Json
from datasets.packaged_modules.parquet.parquet import Parquet
from datasets.packaged_modules.text.text import Text
from huggingface_hub import DatasetInfo, HfApi
from huggingface_hub.errors import HfHubHTTPError

from softh_probe.data.arrow_guard import guarded_json
from softh_probe.data.columns import no_such
from softh_probe.data.file_text import COMPRESSIONS
from softh_probe.data.tables import ArrowTable, CsvTable, JsonTable, ParquetTable, Table, TextTable
from softh_probe.errors import InputError

FORMATS = {".txt": "text", ".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
READERS = (Csv, Json, Parquet, Text)  # of `datasets`, for the same formats

_SEPARATORS = {".tsv": "\t"}

_METADATA = {"dataset_info.json", "dataset_infos.json"}  # of hub repositories; `datasets` passes over them, too

_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


def open_splits(data: str, subset: str | None, revision: str | None, sample_by: str) -> dict[str, list[Table]]:
    """Open the splits of a data set.

    Args:
        data, subset, revision, sample_by: as in `read_documents`.

    Returns:
        The tables of each split, to be read one after the other.

    Raises:
        InputError: the data set cannot be opened.
    """
    local = os.path.expanduser(data)
    with reading(data):
        if is_local(data):
            if revision is not None:
                raise InputError(f"revision: {revision!r}, but {data} is local; only the hub has them")
            with _without_download_counts():
                return _open_local(Path(local).absolute(), data, subset, sample_by)
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", data) or data.startswith(".") or _format(data):
            raise InputError(f"data: no such file or folder: {data!r} (and it is no hub id either)")
        if sample_by != "line":
            raise InputError(f"sample_by: {sample_by!r} is for local .txt files, but {data} is not local")
        return _open_hub(data, subset, revision)


def is_local(data: str) -> bool:
    """Test whether a data set is a local file or folder, which takes precedence over a hub id."""
    return bool(data) and os.path.exists(os.path.expanduser(data))


def data_commit(data: str, revision: str | None) -> str | None:
    """Resolve the commit of a data set on the hub; None for local data, and where the hub does not say."""
    if is_local(data) or datasets.config.HF_HUB_OFFLINE:
        return None
    try:
        return _hub_info(data, revision).sha
    except Exception:  # opening the data set reports the problem
        return None


def data_identity(data: str, revision: str | None) -> Any:
    """Identify the version of a data set, without reading it.

    Returns:
        JSON values: paths, sizes and modification times of local files, or the commit on the hub; None where it is
        unknown.

    Raises:
        InputError: a revision of local data.
    """
    if is_local(data):
        if revision is not None:
            raise InputError(f"data_revision: {revision!r}, but {data} is local; only data sets on the hub have them")
        files = _files_below(Path(os.path.expanduser(data)))
        return [[str(file.absolute()), (stat := file.stat()).st_size, stat.st_mtime_ns] for file in files]
    return data_commit(data, revision)


def _open_local(path: Path, data: str, subset: str | None, sample_by: str) -> dict[str, list[Table]]:
    if _all_files(path, "dataset_dict.json") or _all_files(path, "dataset_info.json", "state.json"):
        saved = datasets.load_from_disk(str(path))
        splits = saved if isinstance(saved, datasets.DatasetDict) else {str(saved.split or "train"): saved}
        return {name: [ArrowTable(data, rows)] for name, rows in splits.items()}
    if path.is_dir() and (subset is not None or _declares_subsets(path)):
        return _open_repository(str(path), data, subset)
    if subset is not None:
        raise InputError(f"subset: {subset!r}, but {data} is a file, which has none")
    files, reader = _data_files(path, data)
    if sample_by != "line" and reader != "text":
        raise InputError(f"sample_by: {sample_by!r} is for .txt files, but {data} is {reader}; use 'line'")
    opened: dict[str, list[Table]] = {}
    for file, name in zip(files, _split_names(files, path), strict=True):
        opened.setdefault(name, []).append(_open_file(str(file), str(file), reader, sample_by=sample_by))
    return opened


def _open_file(
    path: str,
    name: str,
    reader: str,
    *,
    sample_by: str = "line",
    separator: str | None = None,
    features: Mapping[str, Any] | None = None,
) -> Table:
    """Open one file with the reader of its format."""
    if reader == "text":
        return TextTable(path, name, sample_by)
    if reader == "csv":
        return CsvTable(path, name, separator or _SEPARATORS.get(_suffix(path), ","), features)
    return JsonTable(path, name, features) if reader == "json" else ParquetTable(path, name, features)


def _open_hub(data: str, subset: str | None, revision: str | None) -> dict[str, list[Table]]:
    try:
        if not datasets.config.HF_HUB_OFFLINE:
            _check_connection(data, revision)
        return _open_repository(data, data, subset, revision)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # a dozen types of three libraries
        raise InputError(
            f"data: {data!r} is not a local path, and the hub did not give it ({_first_line(error)}); check the "
            "spelling and the connection (HF_ENDPOINT; HF_HUB_OFFLINE=1 uses what is cached), and for a private "
            "or gated set `hf auth login` or HF_TOKEN"
        ) from error


def _check_connection(data: str, revision: str | None) -> None:
    """Raise an error at once where there is no connection: `load_dataset` would retry noisily for half a minute."""
    # Where the hub answers, load_dataset retries if it is busy, and has better messages for the rest.
    with contextlib.suppress(HfHubHTTPError):
        _hub_info(data, revision)


def _hub_info(data: str, revision: str | None) -> DatasetInfo:
    return HfApi(endpoint=datasets.config.HF_ENDPOINT).dataset_info(data, revision=revision, timeout=10)


def _open_repository(path: str, data: str, subset: str | None, revision: str | None = None) -> dict[str, list[Table]]:
    try:
        opened = datasets.load_dataset(path, name=subset, revision=revision, streaming=True)
    except ValueError as error:
        listed = re.search(r"[Aa]vailable(?: configs)?: (\[.*?\])", str(error))
        if listed is None:
            raise
        subsets = ast.literal_eval(listed[1])
        if subset is None:
            raise InputError(f"subset: {data} has several, name one: {', '.join(subsets)}") from error
        raise no_such("subset", subset, subsets, data) from error
    files = _repository_files(path, subset, revision, next(iter(opened.values())))
    return {name: _open_rows(rows, files.get(name), data) for name, rows in opened.items()}


class _RepositoryFiles(NamedTuple):
    """Files of a split of a hub repository, and how it declares that they are read."""

    paths: Sequence[str]
    reader: str
    separator: str | None


def _repository_files(
    path: str, subset: str | None, revision: str | None, rows: datasets.IterableDataset
) -> dict[str, _RepositoryFiles]:
    """Find the files of each split, where they have one of our formats and the repository declares no other reading.

    `datasets` reads each file with the columns and types of the first, and ends where another differs.
    """
    if rows.info.builder_name not in FORMATS.values():
        return {}
    builder = datasets.load_dataset_builder(path, name=subset, revision=revision)
    config = builder.config
    default = type(config)()
    ours = {"name", "version", "data_dir", "data_files", "description", "features", "sep", "delimiter"}
    declared = {f.name for f in dataclasses.fields(config) if getattr(config, f.name) != getattr(default, f.name)}
    readers = {_format(file) for files in config.data_files.values() for file in files}
    if not isinstance(builder, READERS) or declared - ours or readers != {rows.info.builder_name}:
        return {}
    separator = None if (sep := getattr(config, "sep", ",")) == "," else sep
    return {
        str(name): _RepositoryFiles(list(files), rows.info.builder_name, separator)
        for name, files in config.data_files.items()
    }


def _open_rows(rows: datasets.IterableDataset, files: _RepositoryFiles | None, data: str) -> list[Table]:
    if files is None:
        return [ArrowTable(data, rows)]
    return [
        _open_file(file, file, files.reader, separator=files.separator, features=rows.features) for file in files.paths
    ]


def _declares_subsets(folder: Path) -> bool:
    """Test whether a folder is a copy of a hub repository whose README declares subsets and splits."""
    readme = folder / "README.md"
    if not readme.is_file():
        return False
    head = readme.read_text(encoding="utf-8", errors="replace").split("\n---", 1)[0]
    return head.startswith("---") and "\nconfigs:" in head


def _files_below(path: Path) -> list[Path]:
    """List a file itself, or all files below a folder, sorted."""
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def _all_files(folder: Path, *names: str) -> bool:
    return all((folder / name).is_file() for name in names)


def _format(name: str) -> str | None:
    """Choose the reader of a file by its name: text, json, csv or parquet; None for another file."""
    return FORMATS.get(_suffix(name))


def _suffix(name: str) -> str:
    """Give the suffix of a name in lower case, without that of a compression."""
    path = PurePath(name.lower())
    return PurePath(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix


def _data_files(path: Path, data: str) -> tuple[list[Path], str]:
    """List the data files at or below a path, sorted, and the reader for all of them."""
    if not (path.is_file() or path.is_dir()):
        raise InputError(
            f"data: {data} is a pipe or a device, expected a file or a folder, as data are read more than once; write "
            f"them to a file, or give documents from Python: run(config, documents=…)"
        )
    found = [
        f for f in _files_below(path) if f == path or not any(p.startswith(".") for p in f.relative_to(path).parts)
    ]
    files = [file for file in found if _format(file.name) and (file == path or file.name not in _METADATA)]
    readers = {_format(file.name) or "" for file in files}
    if len(readers) != 1:
        kinds = Counter("".join(file.suffixes[-2:]) or file.name for file in (files or found))
        there = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common(8)) or "nothing"
        wanted = "one format: point at one file or sub-folder" if files else f"one of {', '.join(FORMATS)}"
        raise InputError(f"data: {data} holds {there}, expected {wanted}")
    files = [file for file in files if file.stat().st_size > 0]  # readers differ in how they treat an empty file
    if not files:
        raise InputError(f"data: {data} is empty; give a file or data set that holds text")
    return files, readers.pop()


def _split_names(files: Sequence[Path], root: Path) -> list[str]:
    """Find the split of each file by its name, if all files are named after splits; else "train" for all."""
    names = []
    for file in files if root.is_dir() else ():
        words = re.split(r"[-._ /\d]+", file.relative_to(root).as_posix().lower())
        names.append(next((_SPLIT_WORDS[word] for word in reversed(words) if word in _SPLIT_WORDS), ""))
    return names if names and all(names) else ["train"] * len(files)


@contextlib.contextmanager
def _without_download_counts() -> Iterator[None]:
    """Keep `load_dataset` from reporting each local file to a server inside the block; offline that takes seconds."""
    before = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        yield
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = before


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn errors of `datasets`, pandas, pyarrow and decompressors into an `InputError` of one line.

    Args:
        name: the data, as the error names it.
    """
    log = logging.getLogger("datasets.packaged_modules")  # logs the same error again, on several lines
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with guarded_json():
            yield
    except (InputError, MemoryError):
        raise
    except StopIteration as error:  # `datasets` raises this for an empty .jsonl
        raise InputError(f"data: {name} has no rows; give a file or data set that holds text") from error
    except Exception as error:
        raise InputError(f"data: cannot read {name}: {_first_line(error)}") from error
    finally:
        log.setLevel(level)


def _first_line(error: BaseException) -> str:
    """Give the first line of an error; of an error that `datasets` wraps, the cause."""
    if isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, datasets.table.CastError):
        return f"columns differ from those of the first rows: {error.details()}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
