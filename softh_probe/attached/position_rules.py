"""Policies of positions of an attached probe: which of the tokens that other code feeds count.

What a forward pass shows is found as it begins: the user's mask, and the tokens that `generate` wrote. The place of a
token in its text, and its id, are looked at once its sequence has been extended.

Shape suffixes: B sequences, T tokens of a forward pass, L columns of a sequence.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from softh_probe.attached.inputs import InputHints, TokenBatch
from softh_probe.attached.padding import fit_mask, fit_position_mask
from softh_probe.attached.pass_context import PassContext
from softh_probe.attached.sequences import CachedSequences
from softh_probe.errors import ProbeError
from softh_probe.positions import (
    GENERATED,
    ROLES,
    Policy,
    hold_by_place,
    parse_positions,
    positions_text,
    roles_of,
    special_ids,
)

COMPLETION = "completion"
#: What results call the positions that a mask alone chose, by `probe.counted`.
BY_MASK = "counted"


class PositionRules:
    """The policies of positions of a probe.

    Args:
        positions: policies, as `softh_probe.positions.parse_positions` takes them.
        skip_special_tokens: ids of tokens whose positions do not count, or a tokenizer; True where the corpus has
            left them out.
        roles: policies by role that the code around the model tells of.
        is_planned: whether the corpus has applied the policies, so that they are records only.

    Attributes:
        policies: the policies; none where all positions count.

    Raises:
        InputError: an argument is not what it has to be.
    """

    def __init__(
        self,
        positions: str | Sequence[str] = "all",
        skip_special_tokens: object = (),
        *,
        roles: Collection[str] = (),
        is_planned: bool = False,
    ) -> None:
        known = ROLES if is_planned else (*roles, GENERATED)
        self.policies: tuple[Policy, ...] = parse_positions(positions, known)
        self._roles = roles_of(self.policies)
        self._by_place = tuple(policy for policy in self.policies if policy.name not in self._roles)
        by_corpus = is_planned and skip_special_tokens is True
        self._special: bool | list[int] = True if by_corpus else special_ids(skip_special_tokens)

    @property
    def settings(self) -> dict[str, Any]:
        """The policies as JSON values, for the settings of a probe."""
        return {"positions": positions_text(self.policies), "skip_special_tokens": self._special}

    @property
    def is_asked(self) -> bool:
        """Whether a policy was asked for."""
        return bool(self.policies or self._special)

    # --- as a forward pass begins ----------------------------------------------------------------------------

    def check_past(self, sequences: CachedSequences, *, begins: bool, is_tentative: bool) -> None:
        """Check that the places of a forward pass in its texts are known.

        Args:
            sequences: the sequences that are continued.
            begins: whether nothing of them was fed before.
            is_tentative: whether drafts are fed, which may be taken back.

        Raises:
            ProbeError: they are not.
        """
        if not self._by_place:
            return
        if not sequences.past_known:
            raise ProbeError(
                f"positions: {positions_text(self._by_place)} needs the place of each token in its text, and tokens in "
                "this cache were fed outside of the probe's block; feed them inside it"
            )
        if (not begins or is_tentative) and any(policy.name == "last" for policy in self._by_place):
            raise ProbeError(
                "positions: last needs sequences that are fed whole, and a cache was fed again, so that the token "
                "counted before was not the last; feed sequences whole, or use positions='generated' for generate"
            )

    def narrow(
        self,
        tokens: TokenBatch,
        told: PassContext,
        hints: InputHints | None = None,
        *,
        n_past: int = 0,
        shape: tuple[int, ...] | None = None,
    ) -> TokenBatch:
        """Mark the positions of a forward pass that count, as far as it shows them.

        Args:
            tokens: what is fed.
            told: facts that the model's arguments do not show.
            hints: those of this forward pass.
            n_past: tokens in the cache.
            shape: (B, T) or (B,) of hidden states that are of no tokens; None of tokens.

        Raises:
            ProbeError: a mask is of another shape, or positions are not those of tokens.
        """
        if self.is_asked and shape is not None and len(shape) == 1:
            raise ProbeError(
                "positions: hidden states [B, D] are of no position of a text; measure a module that gives [B, T, D], "
                "or say which rows count with probe.counted(mask)"
            )
        if self._special and tokens.ids_BT is None:
            raise ProbeError(
                "skip_special_tokens: the model was fed no input_ids, so its tokens are unknown; say which positions "
                "count with probe.counted(mask)"
            )
        of_tokens = tokens.real_BT.shape
        found = [self._of_role(role, of_tokens, told, hints, n_past) for role in self._roles]
        if (mask := told.counted_mask(hints, n_past)) is not None and shape is not None:
            found.append(fit_position_mask(mask, shape, "counted"))
        elif mask is not None and mask.ndim > 1:  # [B] may be of pooled hidden states, once these are known
            found.append(fit_mask(mask, of_tokens, n_past=n_past, n_virtual=told.n_virtual, block="counted"))
        return replace(tokens, counted_BT=np.logical_and.reduce(found)) if found else tokens

    def _of_role(
        self, role: str, shape: tuple[int, int], told: PassContext, hints: InputHints | None, n_past: int
    ) -> np.ndarray:
        """Find the tokens [B, T] of a role."""
        n_generated = 0
        if role == COMPLETION and hints is not None and hints.completion_BL is not None:
            return fit_mask(hints.completion_BL, shape, n_past=n_past, n_virtual=told.n_virtual)
        if hints is not None and hints.ids_BL is not None:
            if hints.n_generated is None:
                raise ProbeError("positions: generate does not tell its prompt from what it wrote; use probe.counted")
            n_generated = hints.n_generated
        return np.broadcast_to(np.arange(shape[1]) >= shape[1] - n_generated, shape)

    # --- once its sequences have been extended ---------------------------------------------------------------

    def mark(self, sequences: CachedSequences, past: int) -> None:
        """Mark the new columns of sequences at which a policy by place, or that of special tokens, does not hold.

        Args:
            sequences: the sequences, with these columns.
            past: number of the columns before.
        """
        if not self._by_place and not self._special:
            return
        columns = sequences.columns
        holds_BL = np.ones(columns["real"].shape, dtype=bool)
        if self._by_place:
            places_BL = sequences.places_in_texts(past)
            has_last = any(policy.name == "last" for policy in self._by_place)
            lengths_BL = _lengths(columns, places_BL) if has_last else places_BL
            holds_BL &= hold_by_place(self._by_place, places_BL, lengths_BL)
        if self._special:
            holds_BL &= ~np.isin(columns["ids"], self._special)
        counted_BL = columns.get("counted", np.ones(holds_BL.shape, dtype=np.int64))
        counted_BL[:, past:] *= holds_BL[:, past:]
        columns["counted"] = counted_BL

    # --- what results say of it ------------------------------------------------------------------------------

    def described(self, n_left: int, n_passed_over: int) -> dict[str, Any]:
        """Describe the policies in a result; nothing where none was asked for, and no mask left any out.

        Args:
            n_left: positions that count.
            n_passed_over: others, that count without the policies.
        """
        if not self.is_asked and not n_passed_over:
            return {}
        asked = self.settings if self.is_asked else {**self.settings, "positions": BY_MASK}
        return {"positions_policy": {**asked, "left": n_left, "of": n_left + n_passed_over}}

    def why_nothing(self, n_passed_over: int) -> str:
        """Say why no position counted, as far as policies are the reason, to end an error with."""
        if not self.is_asked or not n_passed_over:
            return ""
        special = " and skip_special_tokens" if self._special else ""
        hint = ""
        if GENERATED in self._roles:
            hint = "; generated are the tokens that model.generate writes inside the probe's block, and feeds back"
        elif COMPLETION in self._roles:
            hint = "; a continuation's last token is not fed, so that one of one token has no position"
        return f"; positions={positions_text(self.policies)!r}{special} hold at none of {n_passed_over:,}{hint}"


def _lengths(columns: dict[str, np.ndarray], places_BL: np.ndarray) -> np.ndarray:
    """Count the tokens of the text of each column, as far as they were fed: int64 [B, L]."""
    n_sequences = len(places_BL)
    segment_BL = columns["segment"] - columns["segment"].min(initial=0)
    n_texts = int(segment_BL.max(initial=0)) + 1
    text_BL = segment_BL + n_texts * np.arange(n_sequences)[:, None]
    ends = np.zeros(n_sequences * n_texts, dtype=np.int64)
    real_BL = columns["real"]
    np.maximum.at(ends, text_BL[real_BL], places_BL[real_BL] + 1)
    found: np.ndarray = ends[text_BL]
    return found
