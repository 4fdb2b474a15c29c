"""SoftEntropyMeter: the recorder without hooks, for hidden states that come from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, Self

import numpy as np
from torch import Tensor

from softh_probe.accumulators.centers import check_centers
from softh_probe.attached.fed_pieces import Name, PieceReader, plain_name
from softh_probe.attached.fed_states import FedStates, check_states, read_states
from softh_probe.attached.online_rows import OnlineRows
from softh_probe.attached.open_sequences import OpenSequences
from softh_probe.attached.position_rules import PositionRules
from softh_probe.errors import InputError, abbreviated, one_line, short_repr
from softh_probe.estimators.recipes import DEFAULT_ANCHOR_SETS, Calibration
from softh_probe.hooks.piece_recorder import PieceRecorder
from softh_probe.labels import DEFAULT_LABEL_ROWS, LabelRows, check_label_rows, parse_label_sets
from softh_probe.layer_places import (
    RESIDUAL,
    in_model_order,
    is_centered,
    refuse_centered,
    with_centered,
)
from softh_probe.measurement import Measurement
from softh_probe.models.origin import describe_origin, describe_tokenizer
from softh_probe.positions import GENERATED, check_labels

DEFAULT_LABELS = ("input_unigram", "output_unigram")


class SoftEntropyMeter(Measurement):
    """Measure hidden states that come from elsewhere: from an engine, another framework, or files.

    It holds no model and stores no states: `update` adds them to the sums that a `SoftEntropyProbe` keeps, which are
    equal to a probe's that was attached to the model, and so are results, states, merging and gathering.

    - `update({"layer.1": h}, input_ids=ids)`: states of whole sequences; with `sequence` and `position`, of pieces.
    - `end(sequence)`: a sequence that came in pieces is finished.
    - `result()`, `positions`, `layers`, `sums`, `merge(other)`, `state_dict()`, `load_state_dict(state)`: as a probe's.

    >>> import torch
    >>> meter = SoftEntropyMeter(labels=["input_unigram", "output_bigram"], anchor_sets=1, n_blocks=2)
    >>> for begin, end in [(0, 7), (7, 8), (8, 20)]:            # a prompt, a token, a piece
    ...     piece = torch.arange(begin, end)
    ...     meter.update(
    ...         {"layer.1": torch.randn(len(piece), 16), "layer.2": torch.randn(len(piece), 16)},
    ...         input_ids=piece % 5, sequence="request 1", position=piece,
    ...     )
    >>> meter.positions                                         # the last two wait for what follows them
    18
    >>> meter.end("request 1")
    >>> meter.result().to_pandas().name.unique().tolist()
    ['layer.1', 'layer.2', 'mean']

    The sequences of an update come in any order, their pieces in the order of positions, from position 0 on. A position
    whose output n-grams are not complete waits for the next pieces of its sequence, a few positions of each at most. An
    update that is refused adds nothing. Memory does not grow with the number of positions. Threads wait for each other.
    States of a meter, and what is merged, hold no open sequences: what waits in them is left out.

    Args:
        labels, n_anchors, anchor_sets, seed, calibration, label_rows, anchors, skip_special_tokens: as
            `SoftEntropyProbe` takes them.
        center: as it takes it, too; True subtracts the mean of the first update: of positions that count, or that wait.
        widths: row -> width of its hidden states; None takes the rows of the first update.
        positions: "first:N" or "skip:N", of the tokens of each sequence; or "last", of sequences that come whole;
            several with commas. `update(counted=…)` takes a mask of others.
        n_blocks: blocks of the model; None takes the last one that is fed.
        most_sequences: sequences that are open at most. One that others make evict is the one that was fed least
            recently; results say how many were. What comes of it later is refused as a gap.

    Raises:
        InputError: an argument is not what it has to be.
    """

    _KIND = "meter"
    _source: OpenSequences
    _recorder: PieceRecorder

    def __init__(
        self,
        labels: Sequence[str] = DEFAULT_LABELS,
        n_anchors: int | Sequence[int] = 100,
        anchor_sets: int = DEFAULT_ANCHOR_SETS,
        seed: int = 0,
        calibration: Calibration | Sequence[Calibration] = "exact",
        label_rows: LabelRows = DEFAULT_LABEL_ROWS,
        *,
        widths: Mapping[str, int] | None = None,
        anchors: object = "iid",
        positions: str | Sequence[str] = "all",
        skip_special_tokens: object = (),
        n_blocks: int | None = None,
        most_sequences: int = 1024,
        center: bool | Mapping[str, object] = False,
    ) -> None:
        rules = PositionRules(positions, skip_special_tokens)
        if any(policy.name == GENERATED for policy in rules.policies):
            raise InputError("positions: a meter does not see who wrote a token; give update(counted=mask)")
        label_sets, label_rows = parse_label_sets(labels, has_columns=False), check_label_rows(label_rows)
        check_labels(rules.policies, label_sets)
        self._needs_whole = any(policy.name == "last" for policy in rules.policies)
        self._needs_ids = bool(label_sets or rules.settings["skip_special_tokens"])
        self._tokenizer = skip_special_tokens
        self._most_sequences = _whole_number("most_sequences", most_sequences)
        self._given_blocks = None if n_blocks is None else _whole_number("n_blocks", n_blocks)
        self._given_widths = None if widths is None else _checked_widths(widths)
        rows = OnlineRows(label_sets, label_rows=label_rows, seed=seed, rules=rules)
        counted = {"labels": [s.name for s in label_sets], "layers": None, "count": "forwarded"}
        super().__init__(
            OpenSequences(rows),
            n_anchors=n_anchors,
            anchor_sets=anchor_sets,
            seed=seed,
            calibration=calibration,
            anchors=anchors,
            counted={**counted, "label_rows": label_rows, **rules.settings, "sites": [RESIDUAL]},
            center=center,
        )
        self._recorder = PieceRecorder(self._source, self._sums, centers=bool(center))
        self._widths: dict[str, int] | None = None
        if self._given_widths is not None:
            self._set_rows(self._given_widths)

    def __repr__(self) -> str:
        sets, n_sets = abbreviated(self._source.rows.set_names, 8) or "none", self._settings["anchor_sets"]
        return one_line(
            f"<{type(self).__name__} of {len(self._layer_names())} rows: label sets {sets}; "
            f"{n_sets} x {self._variants[0].n_anchors} anchors; {self._recorder.positions:,} positions counted; "
            f"{len(self._source)} open sequences>"
        )

    def update(
        self,
        states: Mapping[str, object],
        *,
        input_ids: object = None,
        sequence: object = None,
        position: object = None,
        mask: object = None,
        counted: object = None,
        **labels: object,
    ) -> None:
        """Add hidden states.

        Args:
            states: by row, [N, D] or [B, T, D]: torch tensors, arrays, or anything with `__dlpack__`, of any float
                type, on any device. All rows have the same positions, and each update has all rows.
            input_ids: their tokens, [N] or [B, T]; not needed where no label set is of n-grams.
            sequence: names of their sequences, integers or strings: one for all [N], or [N]; [B] of [B, T]. None: the
                sequences are whole, [N] is one and [B, T] are B of them.
            position: that of each state in its sequence, from 0 on, [N] or [B, T]; or of the first one, [B], or one
                number of one sequence. It is needed with `sequence`.
            mask: [N] or [B, T], 0 where a state is of no token (padding).
            counted: [N] or [B, T], 0 where a position does not count; unlike padding, n-grams see its token.
            labels: labels of one's own, one label set each, as `SoftEntropyProbe.labelled` takes them: one label for
                all, [N], [B, T], or [B], the same for all tokens of a piece.

        Raises:
            InputError: an argument is not what it has to be; a row is missing, or has another width; states are zero or
                not finite where they may count; positions have a gap or a repeat. Nothing was added.
        """
        source = self._source
        with source.lock:
            read = read_states(states, self._widths)
            pieces = PieceReader(read.shape, sequence, mask).read(
                input_ids=input_ids,
                position=position,
                counted=counted,
                labels=labels,
                ngram_sets=self._settings["labels"],
                expected=source.n_fed,
                is_open=source.__contains__,
            )
            self._check_sequences(pieces.names, has_ids=pieces.tokens.ids_BT is not None)
            for name, of_set in pieces.labels.items():
                source.rows.kept.require_kind(name, of_set)
            if not pieces.tokens.real_BT.any():
                return
            is_counted_N = pieces.is_counted(int(np.prod(read.shape)))
            check_states(read, is_counted_N, pieces.where)
            if self._center is True and not self._recorder.centered_on and is_counted_N.sum() == 1:
                raise InputError(
                    "center: the mean would be that of the first update, which is of one position; feed more at once, "
                    "or give a vector for each row"
                )
            if self._widths is None:
                names = self._set_rows({name: hidden.shape[-1] for name, hidden in read.of_rows.items()})
                read = FedStates({name: read.of_rows[name] for name in names}, read.shape)
            self._recorder.add(pieces, read)
            self._recorder.raise_problems()
            while len(source) > self._most_sequences:
                self._evict()

    def end(self, sequence: Name) -> None:
        """Note that a sequence is finished: positions that wait for its next tokens never count.

        Raises:
            InputError: no sequence of that name is open.
        """
        with self._source.lock:
            sequence = plain_name(sequence)
            if not isinstance(sequence, str | int) or sequence not in self._source:
                raise InputError(
                    f"end: no sequence {short_repr(sequence)} is open; it ended, was evicted or never began"
                )
            self._source.end(sequence)
            self._recorder.drain()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the `state_dict` of another meter, in place of everything measured here; no sequence is open.

        Raises:
            InputError: the state was measured with other settings or rows, or by a version whose states are not read.
        """
        with self._source.lock:
            super().load_state_dict(state)
            self._source.reset()
            self._recorder.drain()
            if self._widths is None and state["layers"]:
                self._set_rows(_widths_of(state["layers"]), state["n_blocks"])

    def merge(self, other: Self) -> None:
        """Add the measurement of another meter with the same settings: a shard, a rank, a job.

        What waits in the other one for its next tokens does not count here; both go on by themselves.

        Raises:
            InputError: the other has other settings or other rows.
        """
        if not isinstance(other, SoftEntropyMeter):
            raise InputError(f"merge: expected a SoftEntropyMeter, got {type(other).__name__}")
        if self._widths is not None and other._widths is not None:
            _require_widths("merge", self._widths, other._widths)
        super().merge(other)
        if self._widths is None and other._widths is not None:
            self._set_rows(other._widths, other._recorder.n_blocks)

    def new_like(self) -> Self:
        """Make a meter with the same settings that has measured nothing."""
        settings = {name: value for name, value in self._settings.items() if name not in ("layers", "count", "sites")}
        settings |= {"anchors": self._anchors, "center": self._center}
        settings |= {"widths": self._given_widths, "n_blocks": self._given_blocks}
        made = type(self)(**settings, most_sequences=self._most_sequences)
        made._tokenizer = self._tokenizer  # noqa: SLF001 - of its own class
        return made

    # --- parts ------------------------------------------------------------------------------------------------

    def _set_rows(self, widths: Mapping[str, int], n_blocks: int = 0) -> list[str]:
        """Fix the rows, in the model's order, which it gives, and the number of blocks; another part may know it."""
        refuse_centered("rows", widths)
        self._check_centers(widths)
        self._sums.require_widths(widths)
        names, highest = in_model_order(list(widths))
        if highest is not None and self._given_blocks is not None and self._given_blocks < highest:
            raise InputError(
                f"n_blocks: expected at least {highest}, of the row layer.{highest}, got {self._given_blocks}"
            )
        self._widths = {name: widths[name] for name in names}
        self._recorder.n_blocks = 0 if highest is None else self._given_blocks or n_blocks or highest
        if highest is not None and not self._given_blocks and not n_blocks:
            reason = "the last block that was fed; where the model has more, give n_blocks"
            self._recorder.choices.add("n_blocks", str(highest), reason)
        return names

    def _check_centers(self, widths: Mapping[str, int]) -> None:
        if not self._center:
            return
        rows = [row for name in widths for row in with_centered(name, centers=True)]
        centers: Mapping[str, Tensor] = {} if isinstance(self._center, bool) else self._center
        check_centers(centers, rows, rows)
        for name, vector in centers.items():
            if len(vector) != widths[name]:
                raise InputError(f"center: {name}: expected a vector of {widths[name]} numbers, got {len(vector)}")

    def _check_sequences(self, names: tuple[Name, ...] | None, *, has_ids: bool) -> None:
        if names is not None and self._needs_whole:
            raise InputError(
                "positions: last needs sequences that come whole, without sequence=; of pieces nobody knows which "
                "token is the last, so mark it with counted="
            )
        if names is not None and len(names) > self._most_sequences:
            raise InputError(
                f"sequence: this update is of {len(names)} sequences, and at most {self._most_sequences} are open; "
                "raise most_sequences"
            )
        if self._needs_ids and not has_ids:
            raise InputError("input_ids: expected the tokens of the hidden states, to skip special ones")

    def _evict(self) -> None:
        """End the sequence that was fed least recently."""
        self._source.end(self._source.longest_waiting)
        self._recorder.drain()
        self._recorder.n_evicted += 1
        reason = "more than most_sequences were open; end those that are finished: meter.end(name)"
        self._told.add("most_sequences", "sequences are evicted", reason)

    def _how_to_count(self) -> str:
        return "update the meter with sequences long enough for the label sets"

    def _described(self, name: str | None, notes: str | None) -> dict[str, Any]:
        tokenizer, corpus = describe_tokenizer(self._tokenizer), self._source.described_texts()
        return describe_origin(corpus, model=None, tokenizer=tokenizer, name=name, notes=notes)

    def _layer_names(self) -> list[str]:
        return [row for name in self._widths or () for row in with_centered(name, centers=bool(self._center))]

    def _require_layers(self, found: Mapping[str, Any]) -> None:
        if self._widths is not None and found:
            _require_widths("state", self._widths, _widths_of(found))


def _whole_number(argument: str, value: object) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < 1:
        raise InputError(f"{argument}: expected a whole number of at least 1, got {short_repr(value)}")
    return int(value)


def _widths_of(layers: Mapping[str, Any]) -> dict[str, int]:
    """Find the widths of the rows that were fed, by a state's layers."""
    return {name: layer["dim"] for name, layer in layers.items() if not is_centered(name)}


def _require_widths(where: str, ours: Mapping[str, int], theirs: Mapping[str, int]) -> None:
    if ours != theirs:
        pairs = {"expected": ours, "got": theirs}
        listed = [f"{word} {abbreviated([f'{n} ({w})' for n, w in of.items()], 8)}" for word, of in pairs.items()]
        raise InputError(f"{where}: {', '.join(listed)}, rows and widths of their states")


def _checked_widths(widths: object) -> dict[str, int]:
    if not isinstance(widths, Mapping) or not widths or not all(isinstance(name, str) and name for name in widths):
        raise InputError(f"widths: expected widths by row, as {{'layer.1': 4096}}, got {short_repr(widths)}")
    return {name: _whole_number(f"widths: {name}", width) for name, width in widths.items()}
