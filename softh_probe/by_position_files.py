"""The files of bins of positions, beside those of a result.

`by_position.csv` and `by_position.parquet` hold the table, `by_position.safetensors` the tensors of each bin under its
name ("2-3/mass"), and the entry `by_position` of `result.json` the rest. Versions that know no bins leave them alone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softh_probe.errors import short_repr
from softh_probe.files import write_bytes
from softh_probe.hashing import bytes_sha256
from softh_probe.position_bins import ALL_BINS, POSITION_SET, first_place
from softh_probe.result_files import checked, damaged, write_table

if TYPE_CHECKING:
    from softh_probe.result import ProbeResult

BY_POSITION_SUMS, BY_POSITION_CSV, BY_POSITION_PARQUET = (
    "by_position.safetensors",
    "by_position.csv",
    "by_position.parquet",
)
#: All files of bins.
FILES = (BY_POSITION_SUMS, BY_POSITION_CSV, BY_POSITION_PARQUET)
#: Entries of the information of a bin that are its own.
_OWN = ("positions", "labelled_positions", "label_sampling", "document_labels")
#: Those that are the result's.
_SHARED = ("settings", "anchors", "n_blocks")
#: The entry of `result.json`.
ENTRY = "by_position"


def write_bins(folder: Path, result: ProbeResult) -> tuple[dict[str, str], dict[str, Any]]:
    """Write the files of a result's bins, or remove those of an earlier result where it has none.

    Returns:
        The SHA-256 of each file by its name, and the entries of `result.json`.
    """
    from safetensors.torch import save

    bins = result.bins
    if not bins:
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
        return {}, {}
    folder.mkdir(parents=True, exist_ok=True)
    sums = save(
        {f"{name}/{key}": tensor.contiguous() for name, one in bins.items() for key, tensor in one.tensors.items()}
    )
    write_bytes(folder / BY_POSITION_SUMS, sums)
    files = {
        BY_POSITION_SUMS: bytes_sha256(sums),
        **write_table(folder, result.by_position(), BY_POSITION_CSV, BY_POSITION_PARQUET),
    }
    described = {
        name: {
            "label_sets": one.label_sets,
            "labels": one.labels,
            **{key: one.info[key] for key in _OWN if key in one.info},
        }
        for name, one in bins.items()
    }
    return files, {ENTRY: {"sha256": files[BY_POSITION_SUMS], "bins": described}}


def read_bins(
    make: Callable[..., ProbeResult], folder: Path, info: dict[str, Any], rows: list[str]
) -> dict[str, ProbeResult]:
    """Read what `write_bins` wrote.

    Args:
        make: `ProbeResult`.
        folder: the result's folder.
        info: the content of `result.json`, of which the entry of the bins is taken out.
        rows: names of the result's layers.

    Raises:
        InputError: the files are damaged, were changed, or do not fit the result.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    if (entry := info.pop(ENTRY, None)) is None:
        return {}
    where = str(folder)
    bins = _checked_entry(entry, where)
    try:
        content = (folder / BY_POSITION_SUMS).read_bytes()
        if bytes_sha256(content) != entry["sha256"]:
            raise damaged(where, f"{BY_POSITION_SUMS} was changed after it was written")
        tensors = load(content)
    except FileNotFoundError as error:
        raise damaged(where, f"{BY_POSITION_SUMS} is missing") from error
    except (OSError, SafetensorError) as error:
        raise damaged(where, f"{BY_POSITION_SUMS} cannot be read ({error})") from error
    shared = {key: info[key] for key in _SHARED if key in info}
    found = {}
    for name, head in bins.items():
        start = f"{name}/"
        of_bin = {key.removeprefix(start): tensor for key, tensor in tensors.items() if key.startswith(start)}
        names = {"rows": rows, "label_sets": head.get("label_sets"), "labels": head.get("labels")}
        of_bin = checked(names, of_bin, where, f"{BY_POSITION_SUMS}, {name}")
        labels = [(label_set, label) for label_set, label in head["labels"]]
        own = {key: head[key] for key in _OWN if key in head}
        names = {"rows": rows, "label_sets": head["label_sets"], "labels": labels}
        found[name] = make(**names, tensors=of_bin, info={**shared, **own})
    return found


def _checked_entry(entry: Any, where: str) -> dict[str, dict[str, Any]]:
    """Give the heads of the bins by name, in order."""
    bins = entry.get("bins") if isinstance(entry, dict) else None
    if not isinstance(bins, dict) or not all(isinstance(head, dict) for head in bins.values()):
        raise damaged(where, f"result.json: by_position: expected bins by name, got {short_repr(entry)}")
    try:
        first = [first_place(name) for name in bins if name != ALL_BINS]
    except ValueError as error:
        raise damaged(where, f"result.json: by_position: {error}") from error
    if not first or bins.get(ALL_BINS, {}).get("label_sets") != [POSITION_SET]:
        raise damaged(where, f"result.json: by_position: expected bins and {ALL_BINS}, got {short_repr([*bins])}")
    for name, head in bins.items():
        own = ((key, dict) for key in _OWN[1:3])
        for key, kind in (("positions", int), *own):
            if not isinstance(head.get(key), kind):
                raise damaged(where, f"result.json: by_position: {name}: {key}: got {short_repr(head.get(key))}")
    return bins
