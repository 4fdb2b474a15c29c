"""Pieces of sequences that come from elsewhere: tokens, positions and labels of one update, read and checked.

Shape suffixes: B sequences of the update, T tokens of its longest piece, N hidden states.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from softh_probe.attached.inputs import TokenBatch
from softh_probe.attached.own_values import OwnLabels, checked_labels
from softh_probe.errors import InputError, short_repr

#: Names by which sequences are told apart.
Name = str | int

_MOST_IDS = 2**31
_MOST = np.iinfo(np.int64).max


@dataclass(frozen=True, kw_only=True)
class FedPieces:
    """One piece of each of several sequences.

    Attributes:
        names: of the sequences, one for each row; None where they are whole and have none.
        tokens: their tokens.
        lengths_B: tokens of each piece.
        begins_B: position of the first one.
        labels: labels of one's own by set, [B, T].
        position_sets: names of those that were given for each token.
    """

    names: tuple[Name, ...] | None
    tokens: TokenBatch
    lengths_B: np.ndarray
    begins_B: np.ndarray
    labels: dict[str, OwnLabels]
    position_sets: list[str]

    def is_counted(self, n_states: int) -> np.ndarray:
        """Tell which hidden states are of positions that may count: bool [N]."""
        real_BT, counted_BT = self.tokens.real_BT, self.tokens.counted_BT
        found = np.zeros(n_states, dtype=bool)
        found[self.tokens.places(*np.nonzero(real_BT if counted_BT is None else real_BT & counted_BT))] = True
        return found

    def where(self, n: int) -> str:
        """Say which position a hidden state is of, by its number."""
        rows, columns = np.nonzero(self.tokens.real_BT)
        i = np.flatnonzero(self.tokens.places(rows, columns) == n)[0]
        row = rows[i]
        position = int(self.begins_B[row] + self.tokens.real_BT[row, : columns[i]].sum())
        sequence = f"sequence {row}" if self.names is None else f"sequence {short_repr(self.names[row])}"
        return f"position {position} of {sequence}" + (" of the update" if self.names is None else "")


class PieceReader:
    """Read what an update says of its hidden states.

    Args:
        shape: (N,) of hidden states [N, D], or (B, T).
        sequence: names of the sequences: one of all [N], or one for each; of [B, T], one for each row. None where
            [N] are one whole sequence, or each row of [B, T] is one.
        mask: of the shape, 0 where a hidden state is of no token; None: all are of tokens.

    Raises:
        InputError: an argument is not what it has to be.
    """

    def __init__(self, shape: tuple[int, ...], sequence: object, mask: object) -> None:
        self.shape = shape
        self.names: tuple[Name, ...] | None = None
        self.places_BT: np.ndarray | None = None
        is_real = np.ones(shape, dtype=bool) if mask is None else self._numbers("mask", mask) != 0
        if len(shape) == 2:
            self._read_rows(sequence, is_real)
        else:
            self._read_flat(sequence, is_real)

    def read(
        self,
        *,
        input_ids: object,
        position: object,
        counted: object,
        labels: Mapping[str, object],
        ngram_sets: Collection[str],
        expected: Callable[[Name], int],
        is_open: Callable[[Name], bool],
    ) -> FedPieces:
        """Read the rest.

        Args:
            input_ids, position, counted, labels: as `SoftEntropyMeter.update` takes them.
            ngram_sets: names of the n-gram label sets.
            expected: gives the next position of a sequence.
            is_open: tells whether a sequence was fed before and has not ended.

        Raises:
            InputError: an argument is not what it has to be, or positions have a gap or a repeat.
        """
        tokens = TokenBatch(
            real_BT=self.real_BT,
            ids_BT=self._ids(input_ids, needed=bool(ngram_sets)),
            counted_BT=None if counted is None else self._spread(self._numbers("counted", counted) != 0, fill=False),
            places_BT=self.places_BT,
            n_states=self.shape[0] if self.places_BT is not None else 0,
        )
        begins_B = np.array([expected(name) for name in self.names or ()], dtype=np.int64)
        if self.names is None:
            begins_B = np.zeros(len(self.real_BT), dtype=np.int64)
        self._check_positions(position, begins_B, is_open)
        found, of_positions = self._labels(labels, ngram_sets)
        return FedPieces(
            names=self.names,
            tokens=tokens,
            lengths_B=self.real_BT.sum(axis=1),
            begins_B=begins_B,
            labels=found,
            position_sets=of_positions,
        )

    # --- which state is of which token ------------------------------------------------------------------------

    def _read_rows(self, sequence: object, is_real_BT: np.ndarray) -> None:
        self.real_BT = is_real_BT
        if sequence is None:
            return
        names = _names(sequence)
        if names is None or len(names) != self.shape[0]:
            got = "one name" if names is None else f"{len(names)} names"
            raise InputError(f"sequence: expected a name for each of {self.shape[0]} rows, got {got}")
        if len(distinct := set(names)) < len(names):
            twice = next(name for name in distinct if names.count(name) > 1)
            raise InputError(f"sequence: {short_repr(twice)} stands twice in one update; give each a row of its own")
        self.names = tuple(names)

    def _read_flat(self, sequence: object, is_real_N: np.ndarray) -> None:
        names = None if sequence is None else _names(sequence)
        if names is not None and len(names) != self.shape[0]:
            raise InputError(f"sequence: expected one name, or {self.shape[0]}, got {len(names)}")
        states = np.flatnonzero(is_real_N)
        if names is None:
            code_N, distinct = np.zeros(len(states), dtype=np.int64), [] if sequence is None else [plain_name(sequence)]
        else:
            of_states = np.array(names, dtype=object)[states]
            code_N, found = pd.factorize(of_states)
            distinct = list(found)
        lengths_B = np.bincount(code_N, minlength=1 if names is None else 0)
        order = np.argsort(code_N, kind="stable")
        starts_B = np.cumsum(lengths_B) - lengths_B
        column = np.arange(len(states)) - np.repeat(starts_B, lengths_B)
        places_BT = np.full((len(lengths_B), int(lengths_B.max(initial=0))), -1)
        places_BT[code_N[order], column] = states[order]
        if sequence is not None:
            self.names = tuple(plain_name(name) for name in distinct)
        self.real_BT = places_BT >= 0
        # Positions in this order need no places, and are batches of the shape that a model's are.
        in_order = places_BT.size == self.shape[0] and np.array_equal(places_BT.ravel(), np.arange(places_BT.size))
        self.places_BT = None if in_order else places_BT

    def _spread(self, values: np.ndarray, fill: Any) -> np.ndarray:
        """Give values of hidden states [B, T] or [N] as those of tokens [B, T]."""
        if values.ndim == 2:
            return values
        if self.places_BT is None:
            return values.reshape(self.real_BT.shape)
        spread_BT = np.full(self.real_BT.shape, fill, dtype=values.dtype)
        spread_BT[self.real_BT] = values[self.places_BT[self.real_BT]]
        return spread_BT

    # --- the rest ---------------------------------------------------------------------------------------------

    def _ids(self, input_ids: object, *, needed: bool) -> np.ndarray | None:
        if input_ids is None:
            if needed:
                raise InputError("input_ids: expected the tokens of the hidden states, of which n-grams are made")
            return None
        ids_BT = self._spread(self._numbers("input_ids", input_ids), fill=-1)
        real = ids_BT[self.real_BT]
        if len(bad := real[(real < 0) | (real >= _MOST_IDS)]):
            raise InputError(f"input_ids: expected token ids from 0 to 2**31 − 1, got {bad[0]}; mask= marks padding")
        return ids_BT

    def _check_positions(self, position: object, begins_B: np.ndarray, is_open: Callable[[Name], bool]) -> None:
        """Refuse gaps and repeats; where positions are not given, there are none in whole sequences alone."""
        if position is None:
            if self.names is not None:
                raise InputError(
                    "position: expected that of each hidden state in its sequence, from 0 on, or of the first one of a "
                    "piece; without them nobody sees what is missing"
                )
            return
        place_BT = self.real_BT.cumsum(axis=1) - self.real_BT
        given = self._given("position", position, scalar=len(self.real_BT) == 1)
        if given.ndim == 0 or (given.ndim == 1 and len(self.shape) == 2):  # of the first token of each piece
            given_BT = given.reshape(-1, 1) + place_BT
        else:
            given_BT = self._spread(given, fill=-1)
        wrong_BT = self.real_BT & (given_BT != begins_B[:, None] + place_BT)
        for row, column in np.argwhere(wrong_BT)[:1]:
            self._raise_position(row, int(begins_B[row] + place_BT[row, column]), int(given_BT[row, column]), is_open)

    def _raise_position(self, row: int, expected: int, got: int, is_open: Callable[[Name], bool]) -> None:
        name = None if self.names is None else self.names[row]
        sequence = f"sequence {row} of the update" if name is None else f"sequence {short_repr(name)}"
        kind = "a gap" if got > expected else "a repeat"
        remedy = "feed each token once, in order of position"
        if name is not None and not expected and not is_open(name):
            remedy = "it has not begun, or has ended or been evicted (most_sequences); feed it from position 0 on"
        elif name is not None and not got:
            remedy = "end the sequence of that name before another one begins: meter.end(name)"
        raise InputError(f"position: expected {expected} in {sequence}, got {got}, {kind}; {remedy}")

    def _labels(
        self, labels: Mapping[str, object], ngram_sets: Collection[str]
    ) -> tuple[dict[str, OwnLabels], list[str]]:
        """Give labels of one's own [B, T], and the names of the sets that were given for each token of rows."""
        found, of_positions = {}, []
        for name, values in labels.items():
            one = values is None or isinstance(values, str | Integral) or getattr(values, "shape", None) == ()
            read = checked_labels({name: [plain_name(values)] if one else values}, ngram_sets)[name]
            codes = read.codes
            if one:
                codes_BT = np.broadcast_to(codes.reshape(1, 1), self.real_BT.shape)
            elif codes.shape == self.shape:
                codes_BT = self._spread(codes, fill=-1)
                of_positions += [name] * (codes.ndim == 2)
            elif codes.shape == self.shape[:1]:
                codes_BT = np.broadcast_to(codes[:, None], self.real_BT.shape)
            else:
                shapes = " or ".join(dict.fromkeys(str(list(shape)) for shape in (self.shape[:1], self.shape)))
                raise InputError(f"{name}: expected one label, or labels {shapes}, got {list(codes.shape)}")
            found[name] = dataclasses.replace(read, codes=codes_BT)
        return found, of_positions

    def _numbers(self, argument: str, values: object) -> np.ndarray:
        """Read numbers of the shape of the hidden states."""
        return self._given(argument, values, exact=True)

    def _given(self, argument: str, values: object, *, exact: bool = False, scalar: bool = False) -> np.ndarray:
        try:
            if isinstance(values, Tensor):
                found = values.detach().cpu().numpy()
            elif hasattr(values, "__dlpack__") and not isinstance(values, np.ndarray):
                found = from_dlpack(values).cpu().numpy()
            else:
                found = np.asarray(values)
        except (TypeError, ValueError, RuntimeError, BufferError) as error:
            raise InputError(f"{argument}: expected integers, got {type(values).__name__}: {error}") from error
        shapes = [self.shape] if exact else [self.shape, self.shape[:1]] + [()] * scalar
        if found.dtype.kind not in "iub" and found.size:
            remedy = "; write it as integers or booleans" if argument in ("mask", "counted") else ""
            raise InputError(f"{argument}: expected integers, got {found.dtype} {list(found.shape)}{remedy}")
        if found.dtype == np.uint64 and found.size and found.max() > _MOST:
            raise InputError(f"{argument}: expected integers below 2**63, got {found.max()}")
        if found.shape not in shapes:
            expected = " or ".join(str(list(shape)) for shape in dict.fromkeys(shapes))
            raise InputError(f"{argument}: expected {expected}, as the hidden states are, got {list(found.shape)}")
        return found.astype(np.int64)


def _names(sequence: object) -> list[Name] | None:
    """Give names of sequences as a list; None where it is one name."""
    if isinstance(sequence, Tensor | np.ndarray):
        sequence = sequence.tolist()
    if isinstance(sequence, str | Integral):
        _require_name(sequence)
        return None
    if not isinstance(sequence, list | tuple):
        raise InputError(f"sequence: expected integers or strings, or a list of these, got {short_repr(sequence)}")
    for name in sequence:
        _require_name(name)
    return [plain_name(name) for name in sequence]


def _require_name(name: object) -> None:
    if not isinstance(name, str | Integral) or isinstance(name, bool):
        raise InputError(f"sequence: expected an integer or a string, got {short_repr(name)}")


def plain_name(name: Any) -> Any:
    """Give a name or a label as Python's own integer, or as it is.

    >>> plain_name(np.int64(7)), plain_name("a")
    (7, 'a')
    """
    if isinstance(name, Tensor | np.ndarray) and name.ndim == 0:
        name = name.item()
    return int(name) if isinstance(name, Integral) else name
