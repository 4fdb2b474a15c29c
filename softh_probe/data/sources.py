"""Open the splits of a data set for streaming, from local files and folders or the hub.

No large file is copied, no code of a data set runs, no archive is unpacked to disk.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import glob
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import datasets
import pandas as pd
from datasets.packaged_modules.json.json import JsonConfig
from huggingface_hub import DatasetInfo, HfApi
from huggingface_hub.errors import HfHubHTTPError

from softh_probe.data.arrow_guard import guarded_json
from softh_probe.errors import InputError

FORMATS = {".txt": "text", ".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
COMPRESSIONS = (".gz", ".zst", ".xz", ".bz2")

_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


class Part(NamedTuple):
    """A data set or one of its files, with the name that errors give it."""

    name: str
    rows: Any  # datasets.Dataset or datasets.IterableDataset


def open_splits(
    data: str, subset: str | None, revision: str | None, sample_by: str, names: Sequence[str]
) -> dict[str, list[Part]]:
    """Open the splits of a data set.

    Args:
        data, subset, revision, sample_by: as in `read_documents`.
        names: columns whose .csv cells are read as written, without guessing a type.

    Returns:
        The parts of each split, to be read one after the other.

    Raises:
        InputError: the data set cannot be opened.
    """
    local = os.path.expanduser(data)
    with reading(data):
        if data and os.path.exists(local):
            if revision is not None:
                raise InputError(f"revision: {revision!r}, but {data} is local; only the hub has them")
            with _without_download_counts():
                return _open_local(Path(local).absolute(), data, subset, sample_by, names)
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", data) or data.startswith(".") or _format(data):
            raise InputError(f"data: no such file or folder: {data!r} (and it is no hub id either)")
        if sample_by != "line":
            raise InputError(f"sample_by: {sample_by!r} is for local .txt files, but {data} is not local")
        return _open_hub(data, subset, revision)


def data_identity(data: str, revision: str | None) -> Any:
    """Identify the version of a data set, without reading it.

    Returns:
        JSON values: paths, sizes and modification times of local files, or the commit on the hub; None where it is
        unknown.
    """
    local = Path(os.path.expanduser(data))
    if data and local.exists():
        return [[str(file.absolute()), (stat := file.stat()).st_size, stat.st_mtime_ns] for file in _files_below(local)]
    if datasets.config.HF_HUB_OFFLINE:
        return None
    try:
        return _hub_info(data, revision).sha
    except Exception:  # opening the data set reports the problem
        return None


def _open_local(
    path: Path, data: str, subset: str | None, sample_by: str, names: Sequence[str]
) -> dict[str, list[Part]]:
    if _all_files(path, "dataset_dict.json") or _all_files(path, "dataset_info.json", "state.json"):
        saved = datasets.load_from_disk(str(path))
        splits = saved if isinstance(saved, datasets.DatasetDict) else {str(saved.split or "train"): saved}
        # A data set saved in another format would give tensors instead of text.
        return {name: [Part(data, rows.with_format(None))] for name, rows in splits.items()}
    if path.is_dir() and (subset is not None or _declares_subsets(path)):
        return _open_repository(str(path), data, subset)
    if subset is not None:
        raise InputError(f"subset: {subset!r}, but {data} is a file, which has none")
    files, builder = _data_files(path, data)
    if sample_by != "line" and builder != "text":
        raise InputError(f"sample_by: {sample_by!r} is for .txt files, but {data} is {builder}; use 'line'")
    if builder == "csv":
        _check_unique_columns(files, names)
    opened = _open_files(files, builder, _reader_options(builder, sample_by, names))
    splits = {}
    for file, name, rows in zip(files, _split_names(files, path), opened, strict=True):
        splits.setdefault(name, []).append(Part(str(file), rows))
    return splits


def _open_files(files: Sequence[Path], builder: str, options: Mapping[str, Any]) -> list[Any]:
    """Open each file as a streaming data set, all with the columns of the first."""
    # Each file is a "split", so that errors can name it. `datasets` reads unescaped names as patterns.
    data_files = {f"f{i}": [glob.escape(str(file))] for i, file in enumerate(files)}
    opened = datasets.load_dataset(builder, data_files=data_files, streaming=True, **options)
    if builder == "json" and hasattr(JsonConfig, "on_mixed_types"):
        # Columns of mixed types (text or conversation) work where the first rows show them. For a later value of
        # another type, `datasets` would turn the texts around it into quoted JSON; None makes it raise an error.
        features = opened["f0"].features
        options = {**options, "features": features, "on_mixed_types": None}
        opened = datasets.load_dataset(builder, data_files=data_files, streaming=True, **options)
    return list(opened.values())


def _open_hub(data: str, subset: str | None, revision: str | None) -> dict[str, list[Part]]:
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


def _open_repository(path: str, data: str, subset: str | None, revision: str | None = None) -> dict[str, list[Part]]:
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
    return {name: [Part(data, rows)] for name, rows in opened.items()}


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
    path = PurePath(name.lower())
    return FORMATS.get(PurePath(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix)


def _data_files(path: Path, data: str) -> tuple[list[Path], str]:
    """List the data files at or below a path, sorted, and the reader for all of them."""
    found = [
        f for f in _files_below(path) if f == path or not any(p.startswith(".") for p in f.relative_to(path).parts)
    ]
    files = [file for file in found if _format(file.name)]
    readers = {_format(file.name) or "" for file in files}
    if len(readers) != 1:
        kinds = Counter("".join(file.suffixes[-2:]) or file.name for file in (files or found))
        there = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common(8)) or "nothing"
        wanted = "one format: point at one file or sub-folder" if files else f"one of {', '.join(FORMATS)}"
        raise InputError(f"data: {data} holds {there}, expected {wanted}")
    if any(file.suffix.lower() == ".zst" for file in files) and not datasets.config.ZSTANDARD_AVAILABLE:
        raise InputError(f"data: {data} is .zst, which needs the zstandard package: pip install zstandard")
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


def _reader_options(builder: str, sample_by: str, names: Sequence[str]) -> dict[str, Any]:
    # "utf-8-sig" drops a byte order mark; for json, any other name than "utf-8" makes `datasets` decode leniently.
    options: dict[str, Any] = {"encoding": "utf-8-sig", "encoding_errors": "replace"}
    if builder == "text":
        return {**options, "sample_by": sample_by}
    if builder == "json":
        return options | ({"parse_agent_traces": False} if hasattr(JsonConfig, "parse_agent_traces") else {})
    if builder == "parquet":
        return {}
    # In .csv only an empty cell is missing ("NA" and "None" are words), and texts and labels stay as written: pandas
    # would guess types, and read the same label as "1" in one block of rows and as "1.0" in the next.
    converters = dict.fromkeys(names, _csv_cell)
    missing = {"keep_default_na": False, "na_values": [""]}
    return {**options, **missing, "index_col": False, "converters": converters}


def _check_unique_columns(files: Sequence[Path], names: Sequence[str]) -> None:
    """Check that the columns in `names` are unique: pandas would silently rename the second of the same name."""
    for file in files:
        head = pd.read_csv(
            file,
            header=None,
            nrows=1,
            dtype=str,
            keep_default_na=False,
            encoding="utf-8-sig",
            encoding_errors="replace",
        )
        counts = Counter(head.iloc[0]) if len(head) else Counter()
        if twice := [name for name in dict.fromkeys(names) if counts[name] > 1]:
            raise InputError(f"data: {file} has {counts[twice[0]]} columns {twice[0]!r}; rename all but one")


def _csv_cell(cell: str) -> str | None:
    return cell or None


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


def no_such(argument: str, name: str, available: Iterable[str], data: str) -> InputError:
    """Make an error about a name that the data lacks, with the names it has; the caller raises it."""
    available = list(available)
    close = difflib.get_close_matches(name, available, n=1)
    guess = f" (did you mean {close[0]!r}?)" if close else ""
    return InputError(f"{argument}: {data} has no {name!r}{guess}; it has: {', '.join(available)}")
