"""Track tokens, masks and KV-cache sequences of an attached probe."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import Tensor, nn

from softh_probe.accumulators.dispatch import DecodeStep, Dispatch
from softh_probe.attached.adapters import ADAPTERS
from softh_probe.attached.cache_registry import CacheRegistry, cache_length, find_cache
from softh_probe.attached.inputs import InputHints, TokenBatch, read_inputs, require_tokens
from softh_probe.attached.online_rows import OnlineRows
from softh_probe.attached.padding import Padding, find_padding, fit_mask, fit_position_mask, flat, widest
from softh_probe.attached.pass_context import PassContext
from softh_probe.attached.sequences import CachedSequences
from softh_probe.attached.step_queue import StepQueue
from softh_probe.choices import Choices
from softh_probe.errors import InputError, ProbeError


class InputTracker:
    """Find the labels of each forward pass that other code makes; a `LabelSource`.

    The backbone's arguments, hints of adapters (`softh_probe.attached.adapters`), labels of one's own and the tokens
    that a cache was fed before come together here.

    Args:
        rows: the rows of all labels.
        context: facts that the model's arguments do not show.
        has_ngrams: whether labels are made of token ids.
        has_backbone: whether the hooked model has to be fed tokens.

    Attributes:
        n_rejected: positions that were fed as drafts and taken back.
        lock, choices: see `LabelSource`.
    """

    fails_fast = False

    def __init__(self, rows: OnlineRows, context: PassContext, *, has_ngrams: bool, has_backbone: bool) -> None:
        self.rows = rows
        self.context = context
        self.n_rejected = 0
        self._has_ngrams, self._has_backbone = has_ngrams, has_backbone
        self.lock = threading.RLock()
        self._caches = CacheRegistry()
        self._steps = StepQueue()
        self._ready: list[Dispatch] = []
        self._current: CachedSequences | None = None
        self._cache: Any = None
        self._warned = False
        self._fed: _Fed | None = None
        self._counted: TokenBatch | None = None
        self._arguments: Mapping[str, Any] = MappingProxyType({})
        self._pooled: tuple[int, ...] | None = None
        self.choices = Choices(warn=True)

    @property
    def is_paused(self) -> bool:
        """Whether forward passes do not count at the moment."""
        return self.context.is_paused

    @contextmanager
    def follow(self, model: nn.Module) -> Iterator[None]:
        """Install the adapters of caches, `generate`, PEFT and lm-evaluation-harness inside the block."""
        self.context.follow()
        with ExitStack() as adapters:
            for install in ADAPTERS:
                adapters.enter_context(install(model, self))
            yield

    def announce(self, dispatch: Dispatch) -> AbstractContextManager[None]:
        """Raise InputError: an attached probe finds labels by itself."""
        raise InputError("batch: only a planned run announces its batches; give plan=… to SoftEntropyProbe")

    # --- a forward pass --------------------------------------------------------------------------------------

    def begin(self, inputs: Mapping[str, Any], outer: Mapping[str, Any]) -> Dispatch | DecodeStep | None:
        """Find the labels of a forward pass; see `LabelSource.begin`."""
        if self._has_backbone:
            require_tokens(inputs, outer, self.context.n_virtual)
        self._cache = find_cache(inputs)
        known = self._caches.sequences_of(self._cache, self._current)
        n_past = known.n_fed if known else cache_length(self._cache) or 0
        hints = self.context.take_hints(inputs, n_past)
        tokens = read_inputs(inputs, outer, hints, n_past=n_past, n_virtual=self.context.n_virtual)
        self._fed, self._arguments = None, flat({**outer, **inputs})
        if tokens is None:
            return None
        if not tokens.mask_known and not n_past:
            tokens = self._with_padding(tokens, self._arguments)
        self._admit(tokens)
        self._warn_of_padding(tokens)
        tokens = self.rows.rules.narrow(tokens, self.context, hints, n_past=n_past)
        sequences = known or self._new_sequences(tokens, hints, n_past)
        begins = known is None and n_past in (0, self.context.n_virtual)
        self.rows.rules.check_past(sequences, begins=begins, is_tentative=self.context.tentative)
        if known is not None and tokens.real_BT.shape == (known.shape[0], 1) and not self.context.tentative:
            own = self._own_labels(tokens)
            if known is not self._steps.sequences:
                self.flush()
            self._steps.add(known, tokens, own)
            self._current = known
            return DecodeStep(shape=(known.shape[0], 1))
        self.flush()
        waits = self._cache is not None or inputs.get("use_cache") is not False
        fed = _Fed(tokens, sequences, waits)
        if self._has_backbone or self._has_ngrams:
            return self._dispatch(fed)
        self._fed = fed  # named modules may give pooled hidden states
        return None

    def begin_positions(
        self, shape: tuple[int, ...], given: Mapping[str, Any], real_BT: np.ndarray | None = None
    ) -> Dispatch:
        """Find the labels of a forward pass by its first hidden states; see `LabelSource.begin_positions`."""
        if real_BT is not None:  # padded to the longest sequence, where masks may be wider
            own = [{"attention_mask": mask} for mask in (self.context.mask, self.context.counted_of_positions)]
            shape = (shape[0], widest(shape, *own, flat(given), self._arguments))
            real_BT = np.pad(real_BT, ((0, 0), (0, shape[1] - real_BT.shape[1])))
        self._pooled = shape if len(shape) == 1 else None
        fed = self._fed
        if fed is None or shape != fed.tokens.real_BT.shape:
            tokens = self._positions(shape, given, None if fed is None else fed.tokens)
            self._admit(tokens)
            tokens = self.rows.rules.narrow(tokens, self.context, shape=shape)
            fed = _Fed(tokens, self.rows.new_sequences(tokens))
        if real_BT is not None and not fed.tokens.mask_known:
            fed = replace(fed, tokens=replace(fed.tokens, real_BT=fed.tokens.real_BT & real_BT, mask_known=True))
        dispatch = self._dispatch(fed)
        self.check_padding(given, real_BT)
        return dispatch

    def check_padding(self, given: Mapping[str, Any], real_BT: np.ndarray | None) -> None:
        """Compare the padding of a forward pass with what a module was given; see `LabelSource.check_padding`."""
        if self._counted is None:
            return
        if real_BT is None and not self._counted.mask_known:
            shape = self._pooled or self._counted.real_BT.shape
            found = find_padding(flat(given), shape, only_known=True)
            real_BT = None if found is None else found.real
        if real_BT is not None and (n_padding := int((self._counted.real_BT & ~real_BT).sum())):
            raise ProbeError(
                f"mask: {n_padding} positions that count are padding in what the module is given; say which positions "
                "are real with probe.masked(mask)"
            )

    @property
    def tells_positions_apart(self) -> bool:
        """Whether masks or labels are not the same for all positions of the forward pass."""
        return (
            self._has_ngrams
            or self.context.has_labels
            or self.rows.rules.is_asked
            or (self._counted is not None and (self._counted.counted_BT is not None or not self._counted.real_BT.all()))
        )

    def positions_policy(self, n_left: int) -> dict[str, Any]:
        """Describe the policies of positions in a result; see `LabelSource.positions_policy`."""
        return self.rows.rules.described(n_left, self.rows.n_passed_over)

    def described_texts(self) -> dict[str, Any]:
        """Describe the texts that the model was fed; see `LabelSource.described_texts`."""
        return self.rows.texts.described()

    @property
    def why_nothing(self) -> str:
        """Why policies leave nothing, to end an error with."""
        return self.rows.rules.why_nothing(self.rows.n_passed_over)

    def finish(self, output: Any) -> None:
        """End the forward pass that began last; `output` is None where it failed."""
        current, self._current = self._current, None
        self._fed, self._counted, self._arguments, self._pooled = None, None, MappingProxyType({}), None
        if current is not None and current is self._steps.sequences:
            if output is None:
                self._steps.undo()
            if self._steps.is_full:
                self.flush()
        cache = find_cache(output) or self._cache
        self._cache = None
        if current is not None and (cache is None or output is None):
            self.evict(cache)
            self._caches.ended.append(current.number)
        elif current is not None:
            self._caches.remember(cache, current)

    def flush(self) -> None:
        """Make the queued decode steps ready to be counted."""
        if (taken := self._steps.take()) is not None:
            sequences, tokens, own = taken
            self._ready.append(self.rows.batch(tokens, own, sequences, waits=True))

    def take_ready(self) -> list[Dispatch]:
        """Take the dispatches of decode steps and waiting positions, in the order in which they are to be applied."""
        ready, self._ready = self._ready, []
        return ready

    def take_ended(self) -> list[int]:
        """Take the numbers of sequences that ended, whose waiting positions never count."""
        ended = self._caches.take_ended()
        if self._steps.sequences is not None and self._steps.sequences.number in ended:
            self.flush()
        self.rows.texts.end(ended)
        return ended

    def reset(self) -> None:
        """Forget all sequences and hints."""
        self.flush()
        self._caches.clear()
        self.rows.texts.end_all()
        self.context.hints, self.context.tentative = None, False

    # --- events of caches ------------------------------------------------------------------------------------

    def accept_drafts(self) -> None:
        """Count the drafts that were not taken back, since no forward pass may follow."""
        with self._between_passes():
            self._ready += [self.rows.complete(sequences) for sequences in self._caches.waiting()]

    def select(self, cache: Any, rows: np.ndarray) -> None:
        """Follow a cache whose sequences were reordered, repeated or chosen from."""
        with self._between_passes():
            if (sequences := self._caches.sequences_of(cache, self._current)) is not None:
                sequences.select(rows)

    def repeat(self, cache: Any, times: int) -> None:
        """Follow a cache in which each sequence now occurs `times` times in a row."""
        with self._between_passes():
            if (sequences := self._caches.sequences_of(cache, self._current)) is not None:
                sequences.select(np.repeat(np.arange(sequences.shape[0]), times))

    def crop(self, cache: Any, n_tokens: int) -> None:
        """Follow a cache that lost its last `-n_tokens` tokens, or all but the first `n_tokens`."""
        with self._between_passes():
            if (sequences := self._caches.get(cache)) is not None:
                n_lost = -n_tokens if n_tokens <= 0 else sequences.n_columns - n_tokens
                n_fed = sequences.crop(max(0, n_lost), is_draft=self.context.tentative)
                if self.context.tentative:
                    self.n_rejected += n_fed

    def evict(self, cache: Any) -> None:
        """Follow a cache that was emptied."""
        with self._between_passes():
            self._caches.evict(cache)

    @contextmanager
    def _between_passes(self) -> Iterator[None]:
        """Change sequences while no other thread's forward pass is under way, after the steps before are counted."""
        with self.lock:
            self.flush()
            yield

    # --- parts of begin --------------------------------------------------------------------------------------

    def _admit(self, tokens: TokenBatch) -> None:
        """Check a token batch, and exclude sequences that do not count."""
        self.context.exclude_sequences(tokens)
        if tokens.ids_BT is None and self._has_ngrams:
            name = self.rows.set_names[0]
            raise ProbeError(
                f"{name}: the model was fed no input_ids, so its tokens are unknown; use labels=() or labels of your "
                "own (probe.labelled)"
            )

    def _own_labels(self, tokens: TokenBatch) -> dict[str, np.ndarray]:
        """Give the user's own labels [B, T]; a mask [B] is none of tokens [B, T]."""
        shape = tokens.real_BT.shape
        for block, mask in (("masked", self.context.mask), ("counted", self.context.counted_of_positions)):
            if mask is not None and mask.ndim < 2 and tokens.ids_BT is not None:
                fit_mask(mask, shape, block=block)
        self.rows.documents.label_positions(self.context.position_label_sets)
        return self.context.own_labels(shape)

    def _dispatch(self, fed: _Fed) -> Dispatch:
        """Build the dispatch of a forward pass."""
        own = self._own_labels(fed.tokens)
        self._current, self._counted = fed.sequences, fed.tokens
        self.rows.texts.follow(fed.sequences)
        return self.rows.batch(fed.tokens, own, fed.sequences, waits=fed.waits, tentative=self.context.tentative)

    def _with_padding(
        self, tokens: TokenBatch, given: Mapping[str, Any], shape: tuple[int, ...] | None = None
    ) -> TokenBatch:
        """Mark the padding of which arguments tell; `shape` is (B,) where hidden states are pooled."""
        if isinstance(given.get("bool_masked_pos"), Tensor):
            reason = "they hold the mask token; leave them out with probe.masked(mask)"
            self.choices.add("bool_masked_pos", "its patches count", reason, certain=True)
        found = find_padding(given, shape or tokens.real_BT.shape, only_known=self._has_backbone)
        if found is None:
            return tokens
        self._record(found)
        return tokens if found.real is None else replace(tokens, real_BT=tokens.real_BT & found.real, mask_known=True)

    def _positions(self, shape: tuple[int, ...], given: Mapping[str, Any], tokens: TokenBatch | None) -> TokenBatch:
        """Make the positions of hidden states [B, T, D], or [B, D], of a model that is fed no tokens, or pools them.

        Args:
            shape: (B, T), or (B,).
            given: arguments of the module that gives them.
            tokens: what the model is fed; None where that is unknown.

        Raises:
            ProbeError: a mask is of another shape, or these are no positions of the tokens.
        """
        full = shape if len(shape) > 1 else (*shape, 1)
        if tokens is not None and (len(shape) > 1 or len(tokens.real_BT) != shape[0]):
            raise ProbeError(
                f"modules: expected hidden states {[*tokens.real_BT.shape, 'D']} or {[len(tokens.real_BT), 'D']} of "
                f"the tokens that the model is fed, got {[*shape, 'D']}; if their layout is another one, declare it: "
                "modules={name: (module, None, 'TBD')}; if they are of something else, such as an image, attach the "
                "probe to the part of the model that reads it"
            )
        if (mask := self.context.mask) is not None:
            return TokenBatch(real_BT=fit_position_mask(mask, shape), ids_BT=None)
        if tokens is not None:
            return TokenBatch(
                real_BT=np.asarray(tokens.real_BT.any(axis=1)).reshape(-1, 1), ids_BT=None, mask_known=tokens.mask_known
            )
        fallback = self.context.fallback
        if fallback is not None and tuple(fallback.shape) == shape:
            return TokenBatch(real_BT=fit_position_mask(fallback, shape), ids_BT=None)
        positions = TokenBatch(real_BT=np.ones(full, dtype=bool), ids_BT=None, mask_known=False)
        tokens = self._with_padding(positions, flat(given), shape)  # the module's own arguments say it better
        return tokens if tokens.mask_known else self._with_padding(tokens, self._arguments, shape)

    def _record(self, padding: Padding) -> None:
        """Record how an argument was read that is no attention_mask."""
        name = padding.argument
        if padding.real is None:
            reason = f"nobody can tell what {name} means; say which positions are real with probe.masked(mask)"
            self.choices.add("padding", "none", reason)
        else:
            reason = "where it does not say so, give probe.masked(mask)"
            self.choices.add("padding", f"by {name}", reason, certain=padding.is_certain)

    def _warn_of_padding(self, tokens: TokenBatch) -> None:
        """Warn once of tokens that look like padding; padding is never guessed from token ids."""
        pad_id, ids_BT = self.context.pad_id, tokens.ids_BT
        if self._warned or tokens.mask_known or ids_BT is None or pad_id is None or ids_BT.shape[1] < 2:
            return
        if any((ids == pad_id).all(axis=1).any() for ids in (ids_BT[:, :2], ids_BT[:, -2:])):
            self._warned = True
            warnings.warn(
                f"the model is fed sequences that begin or end with several pad tokens ({pad_id}) and no "
                "attention_mask, so they are counted as text; if they are padding, say which tokens are real with "
                "probe.masked(mask)",
                stacklevel=2,
            )

    def _new_sequences(self, tokens: TokenBatch, hints: InputHints | None, n_past: int) -> CachedSequences:
        """Make the sequences of a forward pass; hints may hold the tokens that the cache was fed unseen."""
        if n_past in (0, self.context.n_virtual):
            return self.rows.new_sequences(tokens)
        n_tokens = tokens.real_BT.shape[1]
        if hints is None or hints.ids_BL is None or hints.ids_BL.shape[1] - n_tokens != n_past:
            return self.rows.new_sequences(tokens, past_known=False)
        ids = hints.ids_BL.cpu().numpy()
        mask = hints.mask_BL
        real = np.ones(ids.shape, dtype=bool) if mask is None or mask.shape != ids.shape else mask.cpu().numpy() != 0
        past = TokenBatch(real_BT=real[:, :n_past], ids_BT=ids[:, :n_past])
        sequences = self.rows.new_sequences(past)
        sequences.extend(past, {}, self.rows.unique_prefixes)
        sequences.forget()
        return sequences


@dataclass(frozen=True)
class _Fed:
    """What a forward pass is fed, the sequences that continue it, and whether their positions may wait for labels."""

    tokens: TokenBatch
    sequences: CachedSequences
    waits: bool = False
