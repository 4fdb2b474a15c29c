"""Which positions of a forward pass count, and what their labels are, when other code runs the model.

Everything that bears on it comes together here: what the backbone is fed, what adapters (`integrations/`) know
besides, labels of one's own, and what the sequences of a cache were fed before.
"""

from __future__ import annotations

import dataclasses
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from transformers.cache_utils import Cache

from softh_probe.accumulators.dispatch import Dispatch
from softh_probe.attached.inputs import InputHints, TokenBatch, read_inputs
from softh_probe.attached.online_rows import OnlineRows
from softh_probe.attached.sequences import CachedSequences
from softh_probe.errors import ProbeError

#: Positions that are fed one by one are counted when there are so many; a layer's work on one is mostly overhead.
POSITIONS_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class DecodeStep:
    """One token more for each sequence of a cache, to be counted together with others: shape is (B, 1)."""

    shape: tuple[int, int]


class InputTracker:
    """What one attached probe is fed.

    Args:
        rows: where labels live.
        settle: a method that adds positions that wait to all layers' sums, without a forward pass.
        add_steps: one that adds the positions of the steps since it was last called.
        has_ngrams: whether token ids have to be known.

    Attributes:
        told: what an adapter says of the next forward pass; forgotten after it.
        tentative: drafts are being fed, which count only once they are accepted.
        n_virtual: trained prompts that the model puts before its tokens.
        pad_id: the tokenizer's, as far as the model knows it; to warn of padding that has no mask.
        rejected: positions that were fed as drafts and taken back.
    """

    def __init__(
        self,
        rows: OnlineRows,
        settle: Callable[[Dispatch], None],
        add_steps: Callable[[Dispatch], None],
        *,
        has_ngrams: bool,
    ) -> None:
        self.rows = rows
        self._settle, self._add_steps = weakref.WeakMethod(settle), weakref.WeakMethod(add_steps)
        self._steps: list[tuple[TokenBatch, dict[str, np.ndarray]]] = []
        self._steps_of: CachedSequences | None = None
        self.told: InputHints | None = None
        self.tentative = False
        self.n_virtual = 0
        self.rejected = 0
        self.pad_id: int | None = None
        self._warned = False
        self._has_ngrams = has_ngrams
        self._own: dict[str, np.ndarray] = {}
        self._mask: Tensor | None = None
        self._assumed: tuple[Tensor | None, Tensor | None] = None, None
        self._counts_B: np.ndarray | None = None
        self._paused = 0
        self._caches: dict[int, tuple[weakref.ref[Any], CachedSequences, int]] = {}
        self._over: list[int] = []
        self._current: CachedSequences | None = None
        self._cache: Any = None

    # --- what a user or an adapter says ----------------------------------------------------------------------

    @property
    def is_paused(self) -> bool:
        return self._paused > 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Forward passes inside do not count."""
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1

    @contextmanager
    def masked(self, mask: Tensor) -> Iterator[None]:
        """Forward passes inside have this mask [B, T]."""
        previous, self._mask = self._mask, mask
        try:
            yield
        finally:
            self._mask = previous

    @contextmanager
    def fallback_mask(self, mask: Tensor | None, decoder_mask: Tensor | None = None) -> Iterator[None]:
        """Forward passes inside of which nobody else tells have these masks [B, T], a decoder's that reads an encoder's
        output the second one.
        """
        previous, self._assumed = self._assumed, (mask, decoder_mask)
        try:
            yield
        finally:
            self._assumed = previous

    @contextmanager
    def only_sequences(self, counts_B: np.ndarray | None) -> Iterator[None]:
        """Of the sequences of forward passes inside only these count [B], whatever becomes of each: beams, samples."""
        previous, self._counts_B = self._counts_B, counts_B
        try:
            yield
        finally:
            self._counts_B = previous

    @contextmanager
    def labelled(self, labels: Mapping[str, np.ndarray]) -> Iterator[None]:
        """Forward passes inside have these labels [B] or [B, T]."""
        previous, self._own = self._own, dict(labels)
        try:
            yield
        finally:
            self._own = previous

    # --- a forward pass --------------------------------------------------------------------------------------

    def begin(self, given: dict[str, Any], outer: dict[str, Any]) -> Dispatch | DecodeStep | None:
        """The labels of a forward pass, from the arguments of the backbone and of the model around it.

        A step, if they are found together with those of later steps; None if it is fed neither tokens nor embeddings
        nor a mask.
        """
        told, self.told = self.told, None
        if self._mask is not None:
            told = dataclasses.replace(told or InputHints(), mask_BL=self._mask)
        elif told is None:
            assumed = self._assumed[given.get("encoder_hidden_states") is not None]
            told = None if assumed is None else InputHints(mask_BL=assumed)
        self._cache = next((value for value in given.values() if isinstance(value, Cache)), None)
        known = self._sequences_of(self._cache)
        n_past = self._n_columns(known) if known else _length(self._cache) or 0
        fed = read_inputs(given, outer, told, n_past=n_past, n_virtual=self.n_virtual)
        if fed is None:
            return None
        self._leave_out(fed)
        self._require_ids(fed)
        self._warn_of_padding(fed)
        own = self._own_labels(fed)
        is_step = known is not None and fed.real_BT.shape == (known.shape[0], 1) and not self.tentative
        if not is_step or known is not self._steps_of:
            self.flush()
        if known is not None and is_step:
            self._current = self._steps_of = known
            self._steps.append((fed, own))
            return DecodeStep(shape=(known.shape[0], 1))
        sequences = known or self._new_sequences(fed, told, n_past)
        return self.label(fed, sequences, waits=self._cache is not None or given.get("use_cache") is not False)

    def label(self, fed: TokenBatch, sequences: CachedSequences | None = None, *, waits: bool = False) -> Dispatch:
        """The labels of tokens that are fed; positions whose labels are yet to be fed wait, if they may."""
        self._leave_out(fed)
        self._require_ids(fed)
        own = self._own_labels(fed)
        self._current = sequences or self.rows.new_sequences(fed)
        return self.rows.batch(fed, own, self._current, waits=waits, tentative=self.tentative)

    def _leave_out(self, fed: TokenBatch) -> None:
        """CachedSequences that do not count have no real token."""
        if self._counts_B is None:
            return
        n_told, n_fed = len(self._counts_B), len(fed.real_BT)
        times, rest = divmod(n_fed, max(1, n_told))
        if rest:
            raise ProbeError(f"input_ids: expected {n_told} sequences, or so many of each, got {n_fed}")
        fed.real_BT[~np.repeat(self._counts_B, times)] = False

    def _require_ids(self, fed: TokenBatch) -> None:
        if fed.ids_BT is None and self._has_ngrams:
            name = self.rows.set_names[0]
            raise ProbeError(
                f"{name}: the model was fed no input_ids, so its tokens are unknown; use labels=() or labels of your "
                "own (probe.labelled)"
            )

    def _warn_of_padding(self, fed: TokenBatch) -> None:
        """Padding is never guessed from token ids, but what looks like it is worth a word, once."""
        if self._warned or fed.mask_known or fed.ids_BT is None or self.pad_id is None or fed.ids_BT.shape[1] < 2:
            return
        ends = (fed.ids_BT[:, :2], fed.ids_BT[:, -2:])
        if any((ids == self.pad_id).all(axis=1).any() for ids in ends):
            self._warned = True
            warnings.warn(
                f"the model is fed sequences that begin or end with several pad tokens ({self.pad_id}) and no "
                "attention_mask, so they are counted as text; if they are padding, say which tokens are real with "
                "probe.masked(mask)",
                stacklevel=2,
            )

    def _own_labels(self, fed: TokenBatch) -> dict[str, np.ndarray]:
        own = {}
        for name, values in self._own.items():
            if values.shape not in (fed.real_BT.shape, fed.real_BT.shape[:1]):
                raise ProbeError(f"{name}: expected labels {list(fed.real_BT.shape)}, got {list(values.shape)}")
            own[name] = np.broadcast_to(values.reshape(len(values), -1), fed.real_BT.shape)
        return own

    def flush(self) -> None:
        """Count the steps so far."""
        steps, sequences = self._steps, self._steps_of
        self._steps, self._steps_of = [], None
        if not steps or sequences is None:
            return
        shape = (sequences.shape[0], len(steps))
        ids = [np.full((shape[0], 1), -1) if fed.ids_BT is None else fed.ids_BT for fed, _ in steps]
        real_BT = np.concatenate([fed.real_BT for fed, _ in steps], axis=1)
        names = dict.fromkeys(name for _, own in steps for name in own)
        absent = np.full((shape[0], 1), -1)
        own = {name: np.concatenate([labels.get(name, absent) for _, labels in steps], axis=1) for name in names}
        fed = TokenBatch(real_BT=real_BT, ids_BT=np.concatenate(ids, axis=1))
        self._tell(self._add_steps, self.rows.batch(fed, own, sequences, waits=True))

    @staticmethod
    def _tell(method: weakref.WeakMethod[Callable[[Dispatch], None]], labels: Dispatch) -> None:
        """Call a method of the probe, of which this is a part: it has to go when nobody else holds it."""
        if (call := method()) is not None:
            call(labels)

    def finish(self, output: Any) -> list[int]:
        """End a forward pass; returns the numbers of sequences that are over, whose waiting positions never count."""
        current, self._current = self._current, None
        if current is not None and current is self._steps_of:
            if output is None:
                self._steps.pop()
            if len(self._steps) * current.shape[0] >= POSITIONS_AT_ONCE:
                self.flush()
        values = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple) else ()
        cache = next((value for value in values if isinstance(value, Cache)), self._cache)
        self._cache = None
        known = self._caches.get(id(cache))
        if current is not None and (cache is None or output is None):
            self.evict(cache)
            self._over.append(current.number)
        elif current is not None and (known is None or known[1] is not current):
            self._remember(cache, current)
        if self._steps_of is not None and self._steps_of.number in self._over:
            self.flush()
        over, self._over = self._over, []
        return over

    def reset(self) -> list[int]:
        """Forget all sequences; returns their numbers."""
        self.flush()
        numbers = [sequences.number for _, sequences, _ in self._caches.values()] + self._over
        self._caches, self._over, self.told, self.tentative = {}, [], None, False
        return numbers

    def accept_drafts(self) -> None:
        """The drafts that were not taken back are accepted: they count, though no forward pass may follow."""
        self.flush()
        kept = [sequences for _, sequences, _ in self._caches.values() if len(sequences.waiting_rows)]
        for sequences in kept:
            self._tell(self._settle, self.rows.complete(sequences))

    # --- caches ----------------------------------------------------------------------------------------------

    def select(self, cache: Any, rows: np.ndarray) -> None:
        """A cache's sequences were reordered, repeated or chosen from."""
        self.flush()
        if (sequences := self._sequences_of(cache)) is not None:
            sequences.select(rows)

    def repeat(self, cache: Any, times: int) -> None:
        """Each of a cache's sequences now stands there so many times, one after the other."""
        self.flush()
        if (sequences := self._sequences_of(cache)) is not None:
            sequences.select(np.repeat(np.arange(sequences.shape[0]), times))

    def crop(self, cache: Any, n_tokens: int) -> None:
        """A cache lost its last tokens, or, with a positive number, all but the first."""
        self.flush()
        found = self._caches.get(id(cache))
        if found is not None:
            sequences = found[1]
            n_lost = -n_tokens if n_tokens <= 0 else sequences.n_columns - n_tokens
            n_fed = sequences.crop(max(0, n_lost))
            if self.tentative:
                self.rejected += n_fed

    def evict(self, cache: Any) -> None:
        """A cache was emptied."""
        self.flush()
        if (found := self._caches.pop(id(cache), None)) is not None:
            self._over.append(found[1].number)

    def _sequences_of(self, cache: Any) -> CachedSequences | None:
        """What a cache's sequences were fed, if all of it was seen."""
        found = self._caches.get(id(cache)) if cache is not None else None
        if found is None:
            return None
        _, sequences, unseen = found
        length = _length(cache)
        if length is not None and sequences is not self._current and length - unseen != self._n_columns(sequences):
            self.evict(cache)  # tokens came or went that nobody saw
            return None
        return sequences

    def _n_columns(self, sequences: CachedSequences) -> int:
        return sequences.n_columns + (len(self._steps) if sequences is self._steps_of else 0)

    def _new_sequences(self, fed: TokenBatch, told: InputHints | None, n_past: int) -> CachedSequences:
        if n_past in (0, self.n_virtual):
            return self.rows.new_sequences(fed)
        n_tokens = fed.real_BT.shape[1]
        if told is None or told.ids_BL is None or told.ids_BL.shape[1] - n_tokens != n_past:
            return self.rows.new_sequences(fed, past_known=False)
        ids = told.ids_BL.cpu().numpy()
        mask = told.mask_BL
        real = np.ones(ids.shape, dtype=bool) if mask is None or mask.shape != ids.shape else mask.cpu().numpy() != 0
        past = TokenBatch(real_BT=real[:, :n_past], ids_BT=ids[:, :n_past])
        sequences = self.rows.new_sequences(past)
        sequences.extend(past, {}, self.rows.unique_prefixes)
        return sequences

    def _remember(self, cache: Any, sequences: CachedSequences) -> None:
        self.evict(cache)
        key, number = id(cache), sequences.number

        def gone(_: object) -> None:
            self._caches.pop(key, None)
            self._over.append(number)

        length = _length(cache)
        unseen = 0 if length is None else length - sequences.n_columns
        self._caches[key] = (weakref.ref(cache, gone), sequences, unseen)


def _length(cache: Any) -> int | None:
    """Tokens in a cache, where it knows without asking a device."""
    try:
        length = cache.get_seq_length()
    except Exception:  # caches without attention layers know no length
        return None
    return length if isinstance(length, int) else None
