"""Layouts: what the arrays of a file are.

    vllm    hidden_states [T, L, D], token_ids [T]: as vLLM's ExampleHiddenStatesConnector writes a request
    plain   hidden_states [L, T, D], token_ids [T]
    rows    one array [T, D] for each row, under the row's name (layer.1, …), and token_ids [T]

Shape suffixes: T tokens of the sequence, L stored layers, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from softh_probe.errors import abbreviated
from softh_probe.ingest.arrays import FACTS, Arrays
from softh_probe.ingest.damage import DamagedFileError
from softh_probe.layer_places import is_of_a_model

LayoutName = Literal["vllm", "plain", "rows"]
LAYOUTS: tuple[LayoutName, ...] = ("vllm", "plain", "rows")
HIDDEN_STATES, TOKEN_IDS = "hidden_states", "token_ids"
_SHAPE, _MISSING = "shape", "missing array"
#: The axes of tokens and of layers in `hidden_states`.
_AXES = {"vllm": (0, 1), "plain": (1, 0)}
AXES_IN_WORDS = {"vllm": "[T, L, D]", "plain": "[L, T, D]"}


@dataclass(frozen=True)
class StoredStates:
    """The hidden states of one sequence, in an open file.

    Attributes:
        arrays: the file.
        n_tokens: tokens of the sequence.
        widths: width of each row's states, by its name.
    """

    arrays: Arrays
    n_tokens: int
    widths: dict[str, int]

    def token_ids(self) -> Tensor:
        """Read the tokens: integers [T]."""
        return self.arrays.read(TOKEN_IDS)

    def piece(self, begin: int, end: int) -> dict[str, Tensor]:
        """Read the states of tokens begin … end − 1 of each row, [N, D]."""
        raise NotImplementedError


def find_layout(arrays: Arrays) -> LayoutName | None:
    """Find the layout of a file by its keys; None where either order of axes may be meant.

    Raises:
        DamagedFileError: it holds no hidden states.
    """
    if HIDDEN_STATES in arrays.shapes:
        return None
    if row_keys(arrays):
        return "rows"
    raise DamagedFileError(_MISSING, f"it holds neither {HIDDEN_STATES} nor arrays of rows")


def row_keys(arrays: Arrays) -> list[str]:
    """List the arrays of rows: those named as rows of models are, or all others where there are none."""
    others = [name for name in arrays.shapes if name not in (HIDDEN_STATES, TOKEN_IDS, *FACTS)]
    return [name for name in others if is_of_a_model(name)] or others


def count_layers(arrays: Arrays, layout: Literal["vllm", "plain"]) -> int:
    """Count the layers in `hidden_states`.

    Raises:
        DamagedFileError: arrays are missing, or have other shapes or types.
    """
    return _shape_of_stack(arrays, layout, _count_tokens(arrays))[0]


def read_states(arrays: Arrays, layout: LayoutName, rows: Sequence[str] | None) -> StoredStates:
    """Find the hidden states in an open file.

    Args:
        arrays: the file.
        layout: its layout.
        rows: names of its layers, in their order; of `rows`, None takes all that there are.

    Raises:
        DamagedFileError: arrays are missing, or have other shapes or types.
    """
    n_tokens = _count_tokens(arrays)
    if layout == "rows":
        return _of_rows(arrays, n_tokens, rows)
    return _stacked(arrays, layout, n_tokens, rows or ())


def _count_tokens(arrays: Arrays) -> int:
    if TOKEN_IDS not in arrays.shapes:
        raise DamagedFileError(_MISSING, f"it holds no {TOKEN_IDS}")
    shape = arrays.shapes[TOKEN_IDS]
    if arrays.kind(TOKEN_IDS) != "integer":
        raise DamagedFileError("dtype", f"{TOKEN_IDS}: expected integers, got other numbers")
    if len(shape) != 1:
        raise DamagedFileError(_SHAPE, f"{TOKEN_IDS}: expected [T], got {list(shape)}")
    if not shape[0]:
        raise DamagedFileError("empty", "it holds no tokens")
    return shape[0]


def _stacked(arrays: Arrays, layout: Literal["vllm", "plain"], n_tokens: int, rows: Sequence[str]) -> _Stacked:
    n_layers, width = _shape_of_stack(arrays, layout, n_tokens)
    if n_layers != len(rows):
        raise DamagedFileError(
            "layers",
            f"{HIDDEN_STATES}: expected the {len(rows)} layers {abbreviated(rows, 6)}, got {n_layers}",
        )
    return _Stacked(arrays, n_tokens, dict.fromkeys(rows, width), _AXES[layout][0])


def _shape_of_stack(arrays: Arrays, layout: Literal["vllm", "plain"], n_tokens: int) -> tuple[int, int]:
    """Check `hidden_states`, and give the number of its layers and its width."""
    if HIDDEN_STATES not in arrays.shapes:
        raise DamagedFileError(_MISSING, f"it holds no {HIDDEN_STATES}")
    shape = arrays.shapes[HIDDEN_STATES]
    expected = f"{HIDDEN_STATES}: expected {AXES_IN_WORDS[layout]}"
    if len(shape) != 3 or not shape[2]:
        raise DamagedFileError(_SHAPE, f"{expected}, got {list(shape)}")
    _require_float(arrays, HIDDEN_STATES)
    token_axis, layer_axis = _AXES[layout]
    if shape[token_axis] != n_tokens:
        other = "; the other layout would fit" if shape[layer_axis] == n_tokens else ""
        raise DamagedFileError(_SHAPE, f"{expected} with T = {n_tokens}, as {TOKEN_IDS} has, got {list(shape)}{other}")
    return shape[layer_axis], shape[2]


def _of_rows(arrays: Arrays, n_tokens: int, rows: Sequence[str] | None) -> _OfRows:
    there = row_keys(arrays)
    if not there:
        raise DamagedFileError(_MISSING, f"it holds no arrays of rows, as layer.1; {HIDDEN_STATES} is vllm or plain")
    if missing := [name for name in rows or there if name not in there]:
        raise DamagedFileError(_MISSING, f"it holds no array {missing[0]}")
    if rows is not None and (unknown := [name for name in there if name not in rows]):
        raise DamagedFileError("layers", f"it holds an array {unknown[0]}, which is none of the rows")
    widths = {}
    for name in rows or there:
        shape = arrays.shapes[name]
        if len(shape) != 2 or shape[0] != n_tokens or not shape[1]:
            raise DamagedFileError(_SHAPE, f"{name}: expected [{n_tokens}, D], as {TOKEN_IDS} has, got {list(shape)}")
        _require_float(arrays, name)
        widths[name] = shape[1]
    return _OfRows(arrays, n_tokens, widths)


def _require_float(arrays: Arrays, name: str) -> None:
    if arrays.kind(name) != "float":
        raise DamagedFileError("dtype", f"{name}: expected floating point numbers, got others")


@dataclass(frozen=True)
class _Stacked(StoredStates):
    """One array of all layers."""

    token_axis: int

    def piece(self, begin: int, end: int) -> dict[str, Tensor]:
        tokens, every = slice(begin, end), slice(None)
        part = (tokens, every, every) if self.token_axis == 0 else (every, tokens, every)
        of_layers = self.arrays.read(HIDDEN_STATES, part).unbind(1 - self.token_axis)
        return {name: states_ND.contiguous() for name, states_ND in zip(self.widths, of_layers, strict=True)}


class _OfRows(StoredStates):
    """One array of each row."""

    def piece(self, begin: int, end: int) -> dict[str, Tensor]:
        part = (slice(begin, end), slice(None))
        return {name: self.arrays.read(name, part) for name in self.widths}
