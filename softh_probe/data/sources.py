"""The name of a data set -> its splits, opened for streaming: local files and folders, and the hub.

Nothing large is copied, no code of a data set runs, no archive is unpacked to disk.
"""

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
from huggingface_hub import HfApi
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
    """A data set, or one file of it: what an error about it can name."""

    name: str
    rows: Any  # datasets.Dataset or datasets.IterableDataset


def open_splits(
    data: str, subset: str | None, revision: str | None, sample_by: str, names: Sequence[str]
) -> dict[str, list[Part]]:
    """Splits of a data set by name, each as the parts it is read from one after the other.

    `data`, `subset`, `revision` and `sample_by` are those of `read_documents`; of the columns in `names`, .csv
    cells are read as written. Raises `InputError` for anything that cannot be opened.
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
    """What tells this version of a data set from any other (JSON values); None where it cannot be told.

    For local files that is their paths, sizes and times of change, for a hub id the commit.
    """
    local = Path(os.path.expanduser(data))
    if data and local.exists():
        files = [local] if local.is_file() else sorted(file for file in local.rglob("*") if file.is_file())
        return [[str(file.absolute()), (stat := file.stat()).st_size, stat.st_mtime_ns] for file in files]
    if datasets.config.HF_HUB_OFFLINE:
        return None
    try:
        return HfApi(endpoint=datasets.config.HF_ENDPOINT).dataset_info(data, revision=revision, timeout=10).sha
    except Exception:  # whichever way the hub says no: opening the data set says it in words
        return None


def _open_local(
    path: Path, data: str, subset: str | None, sample_by: str, names: Sequence[str]
) -> dict[str, list[Part]]:
    if _all_files(path, "dataset_dict.json") or _all_files(path, "dataset_info.json", "state.json"):
        saved = datasets.load_from_disk(str(path))
        splits = saved if isinstance(saved, datasets.DatasetDict) else {str(saved.split or "train"): saved}
        # A set saved in another format would give tensors instead of text.
        return {name: [Part(data, rows.with_format(None))] for name, rows in splits.items()}
    if path.is_dir() and (subset is not None or _declares_subsets(path)):
        return _open_repository(str(path), data, subset)
    if subset is not None:
        raise InputError(f"subset: {subset!r}, but {data} is a file, which has none")
    files, builder = _data_files(path, data)
    if sample_by != "line" and builder != "text":
        raise InputError(f"sample_by: {sample_by!r} is for .txt files, but {data} is {builder}; use 'line'")
    if builder == "csv":
        _refuse_double_columns(files, names)
    opened = _open_files(files, builder, _reader_options(builder, sample_by, names))
    splits = {}
    for file, name, rows in zip(files, _split_names(files, path), opened, strict=True):
        splits.setdefault(name, []).append(Part(str(file), rows))
    return splits


def _open_files(files: Sequence[Path], builder: str, options: Mapping[str, Any]) -> list[Any]:
    """A streaming data set of each file, all with the first one's columns."""
    # Each file is a "split", so that errors can name it. To `datasets`, names are patterns unless escaped.
    data_files = {f"f{i}": [glob.escape(str(file))] for i, file in enumerate(files)}
    opened = datasets.load_dataset(builder, data_files=data_files, streaming=True, **options)
    if builder == "json" and hasattr(JsonConfig, "on_mixed_types"):
        # Columns of mixed types (text or conversation) are fine where the first rows show them. But where one
        # value is of another type later, `datasets` would turn the texts around it to quoted JSON: say no.
        features = opened["f0"].features
        options = {**options, "features": features, "on_mixed_types": None}
        opened = datasets.load_dataset(builder, data_files=data_files, streaming=True, **options)
    return list(opened.values())


def _open_hub(data: str, subset: str | None, revision: str | None) -> dict[str, list[Part]]:
    try:
        if not datasets.config.HF_HUB_OFFLINE:
            _ask_hub_once(data, revision)
        return _open_repository(data, data, subset, revision)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # a dozen types, of three libraries: whichever way the hub says no
        raise InputError(
            f"data: {data!r} is not a local path, and the hub did not give it ({_first_line(error)}); check the "
            "spelling and the connection (HF_ENDPOINT; HF_HUB_OFFLINE=1 uses what is cached), and for a private "
            "or gated set `hf auth login` or HF_TOKEN"
        ) from error


def _ask_hub_once(data: str, revision: str | None) -> None:
    """Fail at once where there is no connection: `load_dataset` would retry noisily for half a minute."""
    # Where the hub answers, load_dataset retries a busy one, and words the rest better.
    with contextlib.suppress(HfHubHTTPError):
        HfApi(endpoint=datasets.config.HF_ENDPOINT).dataset_info(data, revision=revision, timeout=10)


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
    """Whether the folder is a copy of a hub repository whose README says which files are which subset and split."""
    readme = folder / "README.md"
    if not readme.is_file():
        return False
    head = readme.read_text(encoding="utf-8", errors="replace").split("\n---", 1)[0]
    return head.startswith("---") and "\nconfigs:" in head


def _all_files(folder: Path, *names: str) -> bool:
    return all((folder / name).is_file() for name in names)


def _format(name: str) -> str | None:
    """Reader of a file by its name: text, json, csv or parquet; None if it is none of them."""
    path = PurePath(name.lower())
    return FORMATS.get(PurePath(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix)


def _data_files(path: Path, data: str) -> tuple[list[Path], str]:
    """The data files at or below a path, sorted, and the one reader for all of them."""
    found = [path] if path.is_file() else [file for file in sorted(path.rglob("*")) if file.is_file()]
    found = [f for f in found if f == path or not any(p.startswith(".") for p in f.relative_to(path).parts)]
    files = [file for file in found if _format(file.name)]
    readers = {_format(file.name) or "" for file in files}
    if len(readers) != 1:
        kinds = Counter("".join(file.suffixes[-2:]) or file.name for file in (files or found))
        there = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common(8)) or "nothing"
        wanted = "one format: point at one file or sub-folder" if files else f"one of {', '.join(FORMATS)}"
        raise InputError(f"data: {data} holds {there}, expected {wanted}")
    if any(file.suffix.lower() == ".zst" for file in files) and not datasets.config.ZSTANDARD_AVAILABLE:
        raise InputError(f"data: {data} is .zst, which needs the zstandard package: pip install zstandard")
    files = [file for file in files if file.stat().st_size > 0]  # what the readers make of an empty one varies
    if not files:
        raise InputError(f"data: {data} is empty; give a file or data set that holds text")
    return files, readers.pop()


def _split_names(files: Sequence[Path], root: Path) -> list[str]:
    """Split of each file by its name, where all files are named after splits; else "train" for all."""
    names = []
    for file in files if root.is_dir() else ():
        words = re.split(r"[-._ /\d]+", file.relative_to(root).as_posix().lower())
        names.append(next((_SPLIT_WORDS[word] for word in reversed(words) if word in _SPLIT_WORDS), ""))
    return names if names and all(names) else ["train"] * len(files)


def _reader_options(builder: str, sample_by: str, names: Sequence[str]) -> dict[str, Any]:
    # "utf-8-sig" drops a byte order mark; for json, any name but "utf-8" makes `datasets` decode leniently.
    options: dict[str, Any] = {"encoding": "utf-8-sig", "encoding_errors": "replace"}
    if builder == "text":
        return {**options, "sample_by": sample_by}
    if builder == "json":
        return options | ({"parse_agent_traces": False} if hasattr(JsonConfig, "parse_agent_traces") else {})
    if builder == "parquet":
        return {}
    # In .csv only an empty cell is missing ("NA" and "None" are words), and texts and labels stay as written:
    # guessing types, pandas would call the same label "1" in one block of rows and "1.0" in the next.
    converters = dict.fromkeys(names, _csv_cell)
    missing = {"keep_default_na": False, "na_values": [""]}
    return {**options, **missing, "index_col": False, "converters": converters}


def _refuse_double_columns(files: Sequence[Path], names: Sequence[str]) -> None:
    """Of two columns of a name, pandas would call the second by another, and nobody know which was read."""
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
    """Keep `load_dataset` from telling a server of each local file it opens: offline that takes seconds."""
    before = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        yield
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = before


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Whatever `datasets`, pandas, pyarrow or a decompressor raise about the user's data becomes one line."""
    log = logging.getLogger("datasets.packaged_modules")  # reports the same error again, on several lines
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with guarded_json():
            yield
    except (InputError, MemoryError):
        raise
    except StopIteration as error:  # how `datasets` meets an empty .jsonl
        raise InputError(f"data: {name} has no rows; give a file or data set that holds text") from error
    except Exception as error:
        raise InputError(f"data: cannot read {name}: {_first_line(error)}") from error
    finally:
        log.setLevel(level)


def _first_line(error: BaseException) -> str:
    """What went wrong in a line: `datasets` wraps the reader's error, which is the one that helps."""
    if isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, datasets.table.CastError):
        return f"columns differ from those of the first rows: {error.details()}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def no_such(argument: str, name: str, available: Iterable[str], data: str) -> InputError:
    available = list(available)
    close = difflib.get_close_matches(name, available, n=1)
    guess = f" (did you mean {close[0]!r}?)" if close else ""
    return InputError(f"{argument}: {data} has no {name!r}{guess}; it has: {', '.join(available)}")
