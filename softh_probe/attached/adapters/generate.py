"""`generate`: the tokens of its sequences, their ends, and drafts.

It feeds sequences that have ended until the last one has, with tokens that its masks call real. The token that ends a
sequence, and all after it, do not count. Beams continue whichever token they hold.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GenerationMixin, StoppingCriteriaList

from softh_probe.attached.inputs import InputHints
from softh_probe.patching import replaced

if TYPE_CHECKING:
    from softh_probe.attached.pass_context import GeneratedRows
    from softh_probe.attached.tracker import InputTracker


@contextmanager
def install(model: nn.Module, tracker: InputTracker) -> Iterator[None]:
    """Pass on the tokens of `generate`, of the model itself or of a model that it is a part of."""

    def generate(original: Callable[..., Any], generator: nn.Module, *args: Any, **kwargs: Any) -> Any:
        others = all(part is not model for part in generator.modules()) and all(
            p is not generator for p in model.modules()
        )
        if others or tracker.context.is_paused:  # an assistant's, say
            return original(generator, *args, **kwargs)
        with ExitStack() as undo:
            rows = undo.enter_context(tracker.context.generating())
            observer = _Observer(tracker, rows, is_encoder_decoder=_is_encoder_decoder(generator))
            for name, wrapper in observer.wrappers.items():
                undo.enter_context(replaced(generator, name, wrapper))
            try:
                return original(generator, *args, **kwargs)
            finally:
                tracker.context.hints, tracker.context.tentative = None, False

    with replaced(GenerationMixin, "generate", generate):
        yield


class _Observer:
    """Wrappers of the methods that one call of `generate` uses, in its own thread."""

    def __init__(self, tracker: InputTracker, rows: GeneratedRows, *, is_encoder_decoder: bool) -> None:
        self._tracker, self._rows = tracker, rows
        self._thread = threading.get_ident()
        self._mask = "decoder_attention_mask" if is_encoder_decoder else "attention_mask"
        self._ends: _Ends | None = None

    @property
    def wrappers(self) -> dict[str, Callable[..., Any]]:
        wrappers: dict[str, Callable[..., Any]] = {
            "_expand_inputs_for_generation": self.expand,
            "prepare_inputs_for_generation": self.prepare_inputs,
            "_prepare_generated_length": self.prompt_length,
            "_get_stopping_criteria": self.stopping_criteria,
            "_get_candidate_generator": self.drafts,
        }
        return {name: partial(self._where_it_counts, wrapper) for name, wrapper in wrappers.items()}

    def _where_it_counts(
        self, wrapper: Callable[..., Any], original: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        elsewhere = self._tracker.context.is_paused or threading.get_ident() != self._thread
        return original(*args, **kwargs) if elsewhere else wrapper(original, *args, **kwargs)

    def expand(self, original: Callable[..., Any], expand_size: int = 1, *args: Any, **kwargs: Any) -> Any:
        input_ids, model_kwargs = original(expand_size, *args, **kwargs)
        self._rows.n_sequences, self._rows.n_each = len(input_ids) // expand_size, expand_size
        return input_ids, model_kwargs

    def prompt_length(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        n_prompt = kwargs.get("input_ids_length")
        self._rows.n_prompt = n_prompt if isinstance(n_prompt, int) else None
        return original(*args, **kwargs)

    def prepare_inputs(self, original: Callable[..., Any], input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        inputs = original(input_ids, *args, **kwargs)
        mask = kwargs.get(self._mask)
        ends = self._ends.ends_B if self._ends is not None else None
        if ends is not None and len(ends) != len(input_ids):
            ends = None
        mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
        n_prompt = self._rows.n_prompt
        n_generated = None if n_prompt is None else max(0, input_ids.shape[1] - n_prompt)
        self._tracker.context.hints = InputHints(ids_BL=input_ids, mask_BL=mask, ends_B=ends, n_generated=n_generated)
        return inputs

    def stopping_criteria(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        criteria = original(*args, **kwargs)
        config = kwargs.get("generation_config", args[0] if args else None)
        if getattr(config, "num_beams", 1) not in (None, 1):
            self._ends = None
            return criteria
        self._ends = _Ends(criteria, self._tracker)
        return self._ends

    def drafts(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Begin assisted decoding. Drafts that a model makes with its own first layers are not measured."""
        self._tracker.context.tentative = True
        generator = original(*args, **kwargs)
        propose = generator.get_candidates

        def get_candidates(*args: Any, **kwargs: Any) -> Any:
            with self._tracker.context.paused():
                return propose(*args, **kwargs)

        generator.get_candidates = get_candidates
        return generator


class _Ends(StoppingCriteriaList):
    """Stopping criteria that record how many tokens of each sequence count: all before the one that ended it."""

    def __init__(self, criteria: StoppingCriteriaList, tracker: InputTracker) -> None:
        super().__init__(criteria)
        self._criteria, self._tracker = criteria, tracker  # the criteria may be another probe's
        self.ends_B: np.ndarray | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        if self._tracker.context.tentative:  # drafts that were rejected have been cropped from the cache by now
            self._tracker.accept_drafts()
        done: Tensor = self._criteria(input_ids, scores, **kwargs)
        never = np.iinfo(np.int64).max
        if self.ends_B is None or len(self.ends_B) != len(input_ids):
            self.ends_B = np.full(len(input_ids), never)
        now = torch.as_tensor(done).cpu().numpy() & (self.ends_B == never)
        self.ends_B = np.where(now, input_ids.shape[1] - 1, self.ends_B)
        return done


def _is_encoder_decoder(generator: nn.Module) -> bool:
    return bool(getattr(getattr(generator, "config", None), "is_encoder_decoder", False))
