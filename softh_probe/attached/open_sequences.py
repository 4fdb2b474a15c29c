"""Find the labels of pieces of sequences that a meter is fed, and remember the sequences until they end.

Rows that are fed together stay together (`_Group`), so that steps of one token each are queued as those of a cache
are. Where other sequences are fed together, they are joined anew (`join`).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from softh_probe.accumulators.dispatch import DecodeStep, Dispatch, Regrouping
from softh_probe.accumulators.sampling import splitmix64
from softh_probe.attached.fed_pieces import FedPieces, Name
from softh_probe.attached.inputs import TokenBatch
from softh_probe.attached.joined_sequences import join
from softh_probe.attached.online_rows import OnlineRows
from softh_probe.attached.sequences import CachedSequences
from softh_probe.attached.step_queue import StepQueue
from softh_probe.choices import Choices


class OpenSequences:
    """The sequences of a meter that have begun and not ended; a `BatchSource`.

    Args:
        rows: the rows of all labels.

    Attributes:
        n_rejected, lock, choices: see `BatchSource`.
    """

    fails_fast = True

    def __init__(self, rows: OnlineRows) -> None:
        self.rows = rows
        self.n_rejected = 0
        self.lock = threading.RLock()
        self.choices = Choices(warn=True)
        self._steps = StepQueue()
        self._ready: list[Dispatch | Regrouping] = []
        self._ended: list[int] = []
        self._open: dict[Name, _Open] = {}  # those that were fed last come last

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, name: object) -> bool:
        return name in self._open

    def n_fed(self, name: Name) -> int:
        """Count the tokens of a sequence so far: the position of the next one."""
        found = self._open.get(name)
        return 0 if found is None else found.n_fed

    @property
    def longest_waiting(self) -> Name:
        """Name of the sequence that was fed before all others."""
        return next(iter(self._open))

    # --- an update --------------------------------------------------------------------------------------------

    def begin(self, pieces: FedPieces) -> Dispatch | DecodeStep:
        """Find the rows of the positions of an update; a `DecodeStep` where they come with those of later steps."""
        own = {name: self.rows.kept.numbers(name, of_set) for name, of_set in pieces.labels.items()}
        self.rows.documents.label_positions(pieces.position_sets)
        if pieces.names is None:
            return self._whole(pieces.tokens, own)
        group = self._group_of(pieces.names)
        self._note_fed(pieces)
        if group is not None and pieces.tokens.real_BT.shape[1] == 1 and pieces.tokens.real_BT.all():
            if group.sequences is not self._steps.sequences:
                self.flush()
            self._steps.add(group.sequences, pieces.tokens, own)
            return DecodeStep(shape=(len(pieces.names), 1))
        self.flush()
        if group is None:
            group = self._new_group(pieces)
        return self.rows.batch(pieces.tokens, own, group.sequences, waits=True)

    def finish(self) -> None:
        """Make queued steps ready where there are enough of them; their hidden states are kept by then."""
        if self._steps.is_full:
            self.flush()

    def end(self, name: Name) -> None:
        """End a sequence that is open: positions that wait for its next tokens never count."""
        self.flush()
        ended = self._open.pop(name)
        group, row = ended.group, ended.group.names.index(name)
        others = [i for i in range(len(group.names)) if i != row]
        if others:
            group.sequences.select(np.array(others))
            group.names = tuple(group.names[i] for i in others)
        else:
            self._ended.append(group.sequences.number)

    def reset(self) -> None:
        """End all sequences."""
        for name in list(self._open):
            self.end(name)

    def flush(self) -> None:
        """Make the queued steps ready to be counted."""
        if (taken := self._steps.take()) is not None:
            sequences, tokens, own = taken
            self._ready.append(self.rows.batch(tokens, own, sequences, waits=True))

    def take_ready(self) -> Sequence[Dispatch | Regrouping]:
        """Take what is ready, in the order in which it is to be applied."""
        ready, self._ready = self._ready, []
        return ready

    def take_ended(self) -> list[int]:
        """Take the numbers of sequences that ended, whose waiting positions never count."""
        ended, self._ended = self._ended, []
        self.rows.texts.end(ended)
        return ended

    # --- what results say of it -------------------------------------------------------------------------------

    @property
    def why_nothing(self) -> str:
        """Why policies leave nothing, to end an error with."""
        return self.rows.rules.why_nothing(self.rows.n_passed_over)

    def positions_policy(self, n_left: int) -> dict[str, Any]:
        """Describe the policies of positions in a result."""
        return self.rows.rules.described(n_left, self.rows.n_passed_over)

    def described_texts(self) -> dict[str, Any]:
        """Describe the texts that the meter was fed."""
        return self.rows.texts.described()

    # --- parts ------------------------------------------------------------------------------------------------

    def _whole(self, tokens: TokenBatch, own: dict[str, np.ndarray]) -> Dispatch:
        """Find the rows of the positions of sequences that are fed whole."""
        self.flush()
        sequences = self.rows.new_sequences(tokens)
        self.rows.texts.follow(sequences)
        dispatch = self.rows.batch(tokens, own, sequences)
        self._ended.append(sequences.number)
        return dispatch

    def _group_of(self, names: tuple[Name, ...]) -> _Group | None:
        """Find the sequences that were fed together in this order, and no other with them."""
        first = self._open.get(names[0])
        return first.group if first is not None and first.group.names == names else None

    def _note_fed(self, pieces: FedPieces) -> None:
        for name, n_tokens in zip(pieces.names or (), pieces.lengths_B.tolist(), strict=True):
            if (known := self._open.pop(name, None)) is not None:
                known.n_fed += n_tokens
                self._open[name] = known

    def _new_group(self, pieces: FedPieces) -> _Group:
        """Make a group of the sequences of an update: of those that begin, and of others' rows."""
        names = pieces.names or ()
        new = [row for row, name in enumerate(names) if name not in self._open]
        begun = self._new_sequences(pieces.tokens, np.array(new)) if new else None
        if begun is not None and len(new) == len(names):
            group = _Group(names, begun)
        else:
            old = [self._open[name].group if name in self._open else None for name in names]
            groups = {id(group): group for group in old if group is not None}
            row_of = {name: row for group in groups.values() for row, name in enumerate(group.names)}
            row_of |= {names[row]: i for i, row in enumerate(new)}
            rows = []
            for name, group_of_name in zip(names, old, strict=True):
                sequences = begun if group_of_name is None else group_of_name.sequences
                assert sequences is not None
                rows.append((sequences, row_of[name]))
            joined, moved = join(rows, self.rows.texts)
            self._ready.append(moved)
            group = _Group(names, joined)
            moving = set(names)
            for left in groups.values():
                left.names = tuple(name for name in left.names if name not in moving)
        for row, name in enumerate(names):
            known = self._open.pop(name, None)
            n_fed = int(pieces.lengths_B[row]) if known is None else known.n_fed
            self._open[name] = _Open(group, n_fed)
        return group

    def _new_sequences(self, tokens: TokenBatch, rows: np.ndarray) -> CachedSequences:
        """Make sequences that begin in some rows.

        Many sequences may begin with the same piece, such as a system prompt: keys are of the number of the sequence,
        too.
        """
        ids_BT = None if tokens.ids_BT is None else tokens.ids_BT[rows]
        begun = self.rows.new_sequences(replace(tokens, real_BT=tokens.real_BT[rows], ids_BT=ids_BT))
        begun.is_packed = True
        keys_B = splitmix64(begun.keys_B + begun.documents_B.astype(np.uint64))
        begun.keys_B = begun.drawn_keys_B = begun.document_keys_B = keys_B
        self.rows.texts.follow(begun)
        return begun


@dataclass
class _Group:
    """Sequences that are fed together.

    Attributes:
        names: in the order of their rows.
        sequences: their tokens and waiting positions.
    """

    names: tuple[Name, ...]
    sequences: CachedSequences


@dataclass
class _Open:
    """One open sequence: where it is, and how many tokens it was fed."""

    group: _Group
    n_fed: int
