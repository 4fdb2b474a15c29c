"""The files of a result: written, read back, checked, and converted from older formats.

A folder holds `layers.csv` and `layers.parquet` (the tidy table), `sums.safetensors` (the tensors), `documents.parquet`
where intervals were measured (see `softh_probe.influence`), files of bins of positions and of other anchors where these
were measured (see `softh_probe.part_files`), and `result.json` (names, settings and checksums), which is written last.
A result that names no recipe of its anchors is of the published draw, and is read with that name. Formats of
`result.json`:

3  It carries its own SHA-256 and those of the files beside it.
2  Labels one by one have their entropies instead of their sums; early ones lack null, correction and spread.
1  The first.

torch and safetensors are imported only where tensors are read or written: commands that only look for results start
without them.
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softh_probe.errors import InputError, short_repr
from softh_probe.estimators.recipes import has_recipe, with_kind_of_today, with_recipe
from softh_probe.files import replacing, write_bytes, write_text
from softh_probe.hashing import bytes_sha256, file_sha256, text_sha256

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from softh_probe.influence import DocumentInfluence

RESULT_JSON, SUMS, LAYERS_CSV, LAYERS_PARQUET, DOCUMENTS_PARQUET = (
    "result.json",
    "sums.safetensors",
    "layers.csv",
    "layers.parquet",
    "documents.parquet",
)
logger = logging.getLogger(__name__)

FORMAT = 3
_OLDEST = 1

#: The tensors of a result and their shapes: R rows, X label sets, S anchor sets, M anchors, L labels one by one.
SHAPES = {
    "mass": "RSM",
    "positions": "R",
    "position_entropy": "RS",
    "entropy_document_sd": "RS",
    "labelled_positions": "RX",
    "covered_positions": "RX",
    "labelled_entropy": "RXS",
    "labelled_position_entropy": "RXS",
    "conditional_entropy": "RXS",
    "null_information": "RXS",
    "corrected_information": "RXS",
    "label_positions": "RL",
    "label_entropy": "RLS",
}
#: The tensors that early results lack.
_LATER = ("entropy_document_sd", "null_information", "corrected_information")
#: Further tensors of a result that followed a sample of labels.
OF_SAMPLE = {
    "conditional_entropy_sampling_sd": "RX",
    "null_information_sampling_sd": "RX",
    "corrected_information_sampling_sd": "RX",
    "covered_positions_sampling_sd": "RX",
    "entropy_of_labels_sampling_sd": "RX",
}
#: Further tensors of a result, which those of earlier versions lack.
OF_LABELS = {"entropy_of_labels": "RX"}
OF_DIRECTIONS = {"anisotropy": "R"}
#: Further tensors of a result that has labels of whole documents; NaN at the other label sets.
OF_DOCUMENTS = {"null_information_sd": "RX", "p_value": "RX"}
#: Further tensors of a result with intervals, standard errors over documents. That of an order's optimality stands at
#: the label set of its output.
OF_INTERVALS = {"se_entropy": "R", "se_information": "RX", "se_regularity": "RX", "se_optimality": "RX"}
#: Tensors that are there only where they were measured.
OPTIONAL = {**OF_LABELS, **OF_DIRECTIONS, **OF_SAMPLE, **OF_DOCUMENTS, **OF_INTERVALS}


# --- folders -----------------------------------------------------------------------------------------------


def is_result(folder: Path) -> bool:
    """Tell whether a folder holds a whole result."""
    return (folder / RESULT_JSON).is_file()


def write_result(
    folder: Path,
    names: Mapping[str, Any],
    info: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    table: pd.DataFrame,
    influence: DocumentInfluence | None = None,
    layers: Sequence[int] = (),
    further: Mapping[str, str] | None = None,
) -> None:
    """Write layers.csv, layers.parquet, sums.safetensors, documents.parquet if there is one, and, last, result.json.

    Each file appears whole or not at all; a folder with a result.json holds a whole result.

    Args:
        folder: created if it is missing.
        names: the result's rows, label_sets and labels.
        info: JSON values; entries of `names` take precedence over entries of the same key.
        tensors: those of `SHAPES`, and those of `OPTIONAL` that were measured.
        table: the tidy table.
        influence: that of the documents, where intervals were measured; layers: index of each row in the model.
        further: SHA-256 of further files of the result by name; they are there.
    """
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    sums = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    files = {
        **write_table(folder, table, LAYERS_CSV, LAYERS_PARQUET),
        SUMS: bytes_sha256(sums),
        **(further or {}),
    }
    write_bytes(folder / SUMS, sums)  # safetensors' save_file would deny other users access
    (folder / DOCUMENTS_PARQUET).unlink(missing_ok=True)
    if influence is not None:
        files[DOCUMENTS_PARQUET] = _write(folder / DOCUMENTS_PARQUET, lambda path: influence.write(path, layers))
    head = {"files": files, **names}
    text = json.dumps(sealed({**head, **info, **head}), indent=2, ensure_ascii=False)
    write_text(folder / RESULT_JSON, f"{text}\n")


def write_table(folder: Path, table: pd.DataFrame, csv: str, parquet: str) -> dict[str, str]:
    """Write a table as two files of these names; give the SHA-256 of each."""
    return {
        csv: _write(folder / csv, lambda path: table.to_csv(path, index=False)),
        parquet: _write(folder / parquet, lambda path: table.to_parquet(path, index=False)),
    }


def read_result(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], DocumentInfluence | None]:
    """Read what `write_result` wrote, in this version or an earlier one.

    Returns:
        The content of result.json (names and info), the tensors of `SHAPES`, float64, and the influence of documents.

    Raises:
        InputError: the folder holds no result, one that was damaged or changed, or one of a later format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    head = read_info(folder)
    try:
        content = (folder / SUMS).read_bytes()
        _require_unchanged(folder, SUMS, bytes_sha256(content), head)
        tensors = checked(head, load(content), str(folder))
    except FileNotFoundError as error:
        raise _missing(folder, SUMS) from error
    except (OSError, SafetensorError) as error:
        raise damaged(str(folder), f"{SUMS} cannot be read ({error})") from error
    influence = _influence_of(folder, head.pop("files", {}))
    head["labels"] = [(label_set, name) for label_set, name in head["labels"]]
    return head, tensors, influence


def read_influence(folder: Path) -> DocumentInfluence | None:
    """Read the influence of documents that `write_result` wrote; None where the result has none.

    Warns of a file that was there and is missing: standard errors are in the result itself.

    Raises:
        InputError: the file was changed or cannot be read.
    """
    return _influence_of(folder, read_info(folder).get("files", {}))


def _influence_of(folder: Path, files: Mapping[str, str]) -> DocumentInfluence | None:
    from softh_probe.influence import DocumentInfluence

    if DOCUMENTS_PARQUET not in files:
        return None
    path = folder / DOCUMENTS_PARQUET
    try:
        _require_unchanged(folder, DOCUMENTS_PARQUET, file_sha256(path), {"files": files})
        return DocumentInfluence.read(path)
    except InputError:
        raise  # it is a ValueError, and says what to do
    except FileNotFoundError:
        lost = (
            "means of layers and differences to other results have no standard error; copy it again, or measure again"
        )
        warnings.warn(f"{folder}: {DOCUMENTS_PARQUET} is missing, so {lost}", stacklevel=4)
        return None
    except (OSError, ValueError, KeyError) as error:
        raise damaged(str(folder), f"{DOCUMENTS_PARQUET} cannot be read ({error})") from error


def read_info(folder: Path, *, whole: Sequence[str] = ()) -> dict[str, Any]:
    """Read a result's result.json, and verify its checksum (results of formats 1 and 2 have none).

    Args:
        folder: the result's folder.
        whole: names of files beside result.json whose checksums are verified as well.

    Raises:
        InputError: there is none, it was damaged or changed, or is of a later format.
    """
    try:
        text = (folder / RESULT_JSON).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _missing(folder, RESULT_JSON) from error
    except (OSError, ValueError) as error:
        raise damaged(str(folder), f"{RESULT_JSON} cannot be read ({error})") from error
    head = unsealed(text, str(folder))
    for name in whole:
        try:
            _require_unchanged(folder, name, file_sha256(folder / name), head)
        except OSError as error:
            raise damaged(str(folder), f"{name} cannot be read ({error})") from error
    return head


def warn_of_earlier_anchors(configs: Iterable[object], kind: str) -> None:
    """Warn where a result's own configuration does not repeat it, since its kind of anchors has another name today.

    Args:
        configs: paths of configurations, which may lie beside results.
        kind: kind of anchors in the configuration.
    """
    for path in configs:
        if today := _earlier_kind(Path(str(path)).parent, kind):
            logger.warning(
                "anchors: the results beside %s are of the draw that is named %s today, not of %s; --anchors %s "
                "repeats them",
                *(path, today, kind, today),
            )


def _earlier_kind(folder: Path, kind: str) -> str | None:
    """Look up which anchors `kind` names in the results of a folder, where that differs from today."""
    for path in (folder / RESULT_JSON, *islice(folder.glob(f"checkpoints/*/{RESULT_JSON}"), 1)):
        with suppress(OSError, ValueError, KeyError, AttributeError):
            head = json.loads(path.read_text(encoding="utf-8"))
            if not has_recipe(head) and head["config"].get("anchors", "iid") == kind:
                return str(with_kind_of_today(head["config"])["anchors"])
    return None


def _require_unchanged(folder: Path, name: str, sha256: str, head: Mapping[str, Any]) -> None:
    files = head.get("files", {})
    if name in files and files[name] != sha256:
        raise damaged(str(folder), f"{name} was changed after it was written")


def _missing(folder: Path, name: str) -> InputError:
    return InputError(f"{folder}: holds no result: {name} is missing")


def _write(path: Path, write: Callable[[Path], Any]) -> str:
    """Write a file at once or not at all; return its SHA-256."""
    with replacing(path) as part:
        write(part)
        return file_sha256(part)


# --- formats -----------------------------------------------------------------------------------------------


def sealed(head: dict[str, Any]) -> dict[str, Any]:
    """Add the format and the SHA-256 of the values to the content of result.json."""
    return {"format": FORMAT, "sha256": _digest(head), **head}


def unsealed(text: str, where: str) -> dict[str, Any]:
    """Parse result.json, verify its SHA-256, and convert it from older formats.

    Args:
        text: the content of the file.
        where: the result's folder, for error messages.

    Raises:
        InputError: it is damaged, was changed, or is of a format that this version does not know.
    """
    try:
        head: dict[str, Any] = json.loads(text)
        written, seal = head.pop("format"), head.pop("sha256", None)
        whole = seal == _digest(head)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise damaged(where, f"result.json is none of a result ({error})") from error
    if isinstance(written, bool) or not isinstance(written, int) or written < _OLDEST:
        raise damaged(where, f"result.json says that its format is {short_repr(written)}")
    if written > FORMAT:
        wrote = head.get("versions")
        version = f" ({wrote['softh-probe']})" if isinstance(wrote, dict) and "softh-probe" in wrote else ""
        raise InputError(
            f"{where}: the result is of format {short_repr(written)}, this version of softh_probe reads formats "
            f"{_OLDEST} to {FORMAT}; install the version that wrote it{version}, or a later one"
        )
    if written >= 3 and not whole:
        raise damaged(where, "result.json was changed after it was written")
    if written < 3:
        head.pop("files", None)  # not covered by a checksum
    if written == 1 and "kept" in head:
        head["labels"] = head.pop("kept")
    return with_recipe(head)


def damaged(where: str, what: str) -> InputError:
    """Build the error for a damaged result: the folder, what is wrong with it, and the remedy."""
    remedy = "copy it again from where it was whole, or measure again (softh-probe run --overwrite)"
    return InputError(f"{where}: the result is damaged: {what}; {remedy}")


def checked(head: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str, file: str = SUMS) -> dict[str, Tensor]:
    """Check a result's tensors against its names, and convert them from older formats.

    Args:
        head: the content of result.json.
        tensors: the content of sums.safetensors, or of another file.
        where, file: the result's folder and that file's name, for error messages.

    Returns:
        The tensors of `SHAPES`, float64; NaN where an older version did not measure.

    Raises:
        InputError: names or tensors are not those of a result, or do not fit each other.
    """
    import torch

    from softh_probe.estimators.soft_entropy import entropy

    _check_names(head, where)
    tensors = dict(tensors)
    if "kept_mass" in tensors and "kept_positions" in tensors:
        tensors["label_entropy"] = entropy(tensors.pop("kept_mass"))
        tensors["label_positions"] = tensors.pop("kept_positions")
    mass = tensors.get("mass")
    if mass is None or mass.ndim != 3 or mass.shape[1] < 1 or mass.shape[2] < 2:
        raise damaged(where, f"{file} holds no mass [rows, anchor sets, anchors]")
    if not mass.isfinite().all() or (mass < 0).any():
        raise damaged(where, f"{file} holds sums that are negative or not finite")
    sizes = {"R": len(head["rows"]), "X": len(head["label_sets"]), "L": len(head["labels"])}
    sizes |= {"S": mass.shape[1], "M": mass.shape[2]}
    of_result = {**SHAPES, **{name: letters for name, letters in OPTIONAL.items() if name in tensors}}
    for name, letters in of_result.items():
        expected = [sizes[letter] for letter in letters]
        if name in _LATER and name not in tensors:
            tensors[name] = torch.full(expected, math.nan, dtype=torch.float64)
        tensor = tensors.get(name)
        if tensor is None or list(tensor.shape) != expected or tensor.dtype != torch.float64:
            got = "nothing" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
            raise damaged(where, f"{file}: {name}: expected torch.float64 {expected}, got {got}")
    return {name: tensors[name] for name in of_result}


def _check_names(head: Mapping[str, Any], where: str) -> None:
    for name in ("rows", "label_sets"):
        names = head.get(name)
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names) or len({*names}) < len(names):
            raise damaged(where, f"result.json: {name}: expected a list of different names, got {short_repr(names)}")
    if not head["rows"]:
        raise damaged(where, "result.json: rows: expected at least one, got none")
    labels = head.get("labels")
    if not isinstance(labels, list):
        raise damaged(where, f"result.json: labels: expected a list, got {short_repr(labels)}")
    for pair in labels:
        whole = isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
        if not whole or pair[0] not in head["label_sets"]:
            raise damaged(where, f"result.json: labels: expected a label set and a name, got {short_repr(pair)}")


def _digest(head: Mapping[str, Any]) -> str:
    """Compute the SHA-256 of JSON values, independent of spaces and the order of keys."""
    return text_sha256(json.dumps(json.loads(json.dumps(head)), sort_keys=True))
