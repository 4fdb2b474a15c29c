"""Check the states of a file, then feed them to a meter: a damaged file leaves nothing in it.

Shape suffixes: T tokens of a sequence, N of a piece, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from torch import Tensor

from softh_probe.attached.fed_states import without_direction
from softh_probe.errors import InputError
from softh_probe.ingest.damage import DamagedFileError
from softh_probe.ingest.layouts import TOKEN_IDS, StoredStates
from softh_probe.meter import SoftEntropyMeter

States = dict[str, Tensor]


def feed_file(
    meter: SoftEntropyMeter,
    states: StoredStates,
    *,
    name: str,
    labels: Mapping[str, str | None],
    n_vocabulary: int,
    piece: int | None,
    device: str = "cpu",
    confirm: Callable[[], None] = lambda: None,
    after_piece: Callable[[int], None] = lambda n: None,
) -> None:
    """Add the states of one file to a meter, all of them or none.

    A file of one piece is read once; a longer one is read to check it, then again to add it.

    Args:
        meter: the meter.
        states: the open file.
        name: of the sequence.
        labels: of the sequence, by label set.
        n_vocabulary: token ids are below it.
        piece: tokens that are read at a time; None reads all.
        device: where states are measured.
        confirm: called before anything is added; raises DamagedFileError where the file has changed.
        after_piece: called with the number of tokens of each piece that was checked or added; twice a token in all.

    Raises:
        DamagedFileError: the file is damaged; nothing was added.
        InputError: it became so while it was added, a part of which is in the meter.
    """
    ids_T = _token_ids(states, n_vocabulary)
    piece = states.n_tokens if piece is None else piece
    if states.n_tokens <= piece:
        whole = _piece(states, 0, states.n_tokens, device)
        _check(whole, 0)
        confirm()
        meter.update(whole, input_ids=ids_T, **labels)
        after_piece(2 * states.n_tokens)
        return
    for begin, end in _pieces(states.n_tokens, piece):
        _check(_piece(states, begin, end, device), begin)
        after_piece(end - begin)
    confirm()
    try:
        for begin, end in _pieces(states.n_tokens, piece):
            part = _piece(states, begin, end, device)
            meter.update(part, input_ids=ids_T[begin:end], sequence=name, position=begin, **labels)
            after_piece(end - begin)
    except InputError as error:
        raise InputError(
            f"{name}: it changed while it was read: {error}; the same command goes on from the last snapshot"
        ) from error
    meter.end(name)


def _pieces(n_tokens: int, piece: int) -> Iterator[tuple[int, int]]:
    for begin in range(0, n_tokens, piece):
        yield begin, min(begin + piece, n_tokens)


def _piece(states: StoredStates, begin: int, end: int, device: str) -> States:
    found = states.piece(begin, end)
    return {name: states_ND.to(device) for name, states_ND in found.items()}


def _token_ids(states: StoredStates, n_vocabulary: int) -> np.ndarray:
    ids_T: np.ndarray = states.token_ids().numpy().astype(np.int64)
    wrong_T = (ids_T < 0) | (ids_T >= n_vocabulary)
    if wrong_T.any():
        at = int(wrong_T.argmax())
        raise DamagedFileError(
            TOKEN_IDS,
            f"{TOKEN_IDS}: expected ids from 0 to {n_vocabulary - 1}, as the tokenizer has, got {ids_T[at]} at "
            f"position {at}",
        )
    return ids_T


def _check(piece: States, begin: int) -> None:
    """Refuse states without a direction, wherever they are."""
    for name, states_ND in piece.items():
        wrong_N = without_direction(states_ND)
        if wrong_N.any():
            at = int(wrong_N.int().argmax())
            is_zero = bool((states_ND[at].float() == 0).all())
            kind = "zero" if is_zero else "not finite"
            raise DamagedFileError(
                kind, f"{name}: the hidden state is {kind} at position {begin + at}, and so has no direction"
            )
