"""lm-evaluation-harness: it pads on the right with token 0 and gives no mask; the lengths are known where it pads.

    with SoftEntropyProbe(lm.model) as probe:
        lm_eval.simple_evaluate(model=lm, tasks=["lambada_openai"])

Its own command line is in `lm_eval_model`.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from softh_probe.feed import Feed
from softh_probe.replace import replaced

_MODULE = "lm_eval.models.huggingface"


@contextmanager
def follow(model: nn.Module, feed: Feed) -> Iterator[None]:
    """Tell a feed what the harness's models for transformers know, if the harness has been imported."""
    if "lm_eval" not in sys.modules:
        yield
        if _MODULE in sys.modules:
            warnings.warn(
                "lm_eval was imported inside the probe's block, so its padding was counted; import it before",
                stacklevel=4,
            )
        return
    huggingface = importlib.import_module(_MODULE)
    listener = _Listener(feed, is_decoder=bool(getattr(getattr(model, "config", None), "is_decoder", False)))
    with ExitStack() as undo:
        undo.enter_context(replaced(huggingface, "pad_and_concat", listener.pad_and_concat))
        undo.enter_context(replaced(huggingface.HFLM, "_model_call", listener.model_call))
        undo.enter_context(replaced(huggingface.HFLM, "_detect_batch_size", listener.detect_batch_size))
        yield


class _Listener:
    def __init__(self, feed: Feed, *, is_decoder: bool) -> None:
        self._feed, self._is_decoder = feed, is_decoder
        self._padded: list[tuple[Tensor, Tensor]] = []  # of the batch at hand: padded tokens and their mask

    def pad_and_concat(
        self, original: Callable[..., Tensor], max_length: int, tensors: list[Tensor], padding_side: str = "right"
    ) -> Tensor:
        lengths = [tensor.numel() for tensor in tensors]  # of the list that is about to be padded in place
        padded = original(max_length, tensors, padding_side=padding_side)
        mask = torch.zeros(padded.shape[:2], dtype=torch.bool)
        for row, n in zip(mask, lengths, strict=True):
            row[slice(0, n) if padding_side == "right" else slice(len(row) - n, None)] = True
        self._padded = [*self._padded[-2:], (padded, mask)]
        return padded

    def model_call(self, original: Callable[..., Any], lm: Any, inps: Tensor, *args: Any, **kwargs: Any) -> Any:
        labels = kwargs.get("labels", args[1] if len(args) > 1 else None)
        fed = labels if labels is not None and self._is_decoder else inps
        mask = next((mask for padded, mask in self._padded if padded is fed), None)
        self._padded = []
        if mask is None:
            return original(lm, inps, *args, **kwargs)
        with self._feed.masked(mask):
            return original(lm, inps, *args, **kwargs)

    def detect_batch_size(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self._feed.paused():
            return original(*args, **kwargs)
