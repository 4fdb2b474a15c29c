"""What result.json and sums.safetensors hold: checked, and brought from older formats to today's.

3  result.json carries its own SHA-256 and those of the files beside it
2  labels one by one have their entropies instead of their sums; early ones lack null, correction and spread
1  the first
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from softh_probe.errors import InputError, short_repr
from softh_probe.estimators.soft_entropy import entropy

FORMAT = 3
_OLDEST = 1

#: R rows, X label sets, S anchor sets, M anchors, L labels one by one.
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
#: Of these, what early results did not measure yet.
_LATER = ("entropy_document_sd", "null_information", "corrected_information")


def sealed(head: dict[str, Any]) -> dict[str, Any]:
    """What result.json holds, with the SHA-256 that tells if any of it is changed later."""
    return {"format": FORMAT, "sha256": _digest(head), **head}


def unsealed(text: str, where: str) -> dict[str, Any]:
    """What result.json holds, if it is as it was written and of a format that is known here.

    Raises:
        InputError: it is damaged, was changed, or is of a format that this version does not know.
    """
    try:
        head = json.loads(text)
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
        head.pop("files", None)  # nothing that vouches for files
    if written == 1 and "kept" in head:
        head["labels"] = head.pop("kept")
    return head


def damaged(where: str, what: str) -> InputError:
    remedy = "copy it again from where it was whole, or measure again (softh-probe run --overwrite)"
    return InputError(f"{where}: the result is damaged: {what}; {remedy}")


def checked(head: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors of a result, in today's form, all of them there and as large as its names say.

    What a result of an older version did not measure is NaN.

    Raises:
        InputError: names or tensors are not those of a result, or do not fit each other.
    """
    _check_names(head, where)
    tensors = dict(tensors)
    if "kept_mass" in tensors and "kept_positions" in tensors:
        tensors["label_entropy"] = entropy(tensors.pop("kept_mass"))
        tensors["label_positions"] = tensors.pop("kept_positions")
    mass = tensors.get("mass")
    if mass is None or mass.ndim != 3 or mass.shape[1] < 1 or mass.shape[2] < 2:
        raise damaged(where, "sums.safetensors holds no mass [rows, anchor sets, anchors]")
    if not mass.isfinite().all() or (mass < 0).any():
        raise damaged(where, "sums.safetensors holds sums that are negative or not finite")
    sizes = {"R": len(head["rows"]), "X": len(head["label_sets"]), "L": len(head["labels"])}
    sizes |= {"S": mass.shape[1], "M": mass.shape[2]}
    for name, letters in SHAPES.items():
        expected = [sizes[letter] for letter in letters]
        if name in _LATER and name not in tensors:
            tensors[name] = torch.full(expected, math.nan, dtype=torch.float64)
        tensor = tensors.get(name)
        if tensor is None or list(tensor.shape) != expected or tensor.dtype != torch.float64:
            got = "nothing" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
            raise damaged(where, f"sums.safetensors: {name}: expected torch.float64 {expected}, got {got}")
    return {name: tensors[name] for name in SHAPES}


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
    """SHA-256 of JSON values, however they are spaced and ordered in a file."""
    text = json.dumps(json.loads(json.dumps(head)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
