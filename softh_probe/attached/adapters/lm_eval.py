"""lm-evaluation-harness: masks of its padding, and requests that fill up processes.

It pads on the right with token 0 and gives no mask; the lengths are known where it pads. In several processes it
repeats requests, and windows of long texts, until each process has as many as the others; repeats do not count.

    with SoftEntropyProbe(lm.model) as probe:
        lm_eval.simple_evaluate(model=lm, tasks=["lambada_openai"])

Its own command line is in `lm_eval_model`.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from softh_probe.patching import replaced

if TYPE_CHECKING:
    from softh_probe.attached.tracker import InputTracker

_MODULE = "lm_eval.models.huggingface"


@contextmanager
def install(model: nn.Module, tracker: InputTracker) -> Iterator[None]:
    """Observe the harness's models for transformers, if the harness has been imported."""
    if "lm_eval" not in sys.modules:
        yield
        if _MODULE in sys.modules:
            warnings.warn(
                "lm_eval was imported inside the probe's block, so its padding was counted; import it before",
                stacklevel=4,
            )
        return
    huggingface = importlib.import_module(_MODULE)
    padding = _Padding(tracker)
    repeats = _Repeats(tracker, padding)
    with ExitStack() as undo:
        for owner, name, wrapper in (
            (huggingface, "pad_and_concat", padding.pad_and_concat),
            (huggingface.HFLM, "_model_call", padding.model_call),
            (huggingface.HFLM, "_detect_batch_size", padding.detect_batch_size),
            (huggingface.HFLM, "loglikelihood", repeats.loglikelihood),
            (huggingface.HFLM, "loglikelihood_rolling", repeats.rolling),
            (huggingface.HFLM, "generate_until", repeats.generate_until),
            (huggingface.HFLM, "_loglikelihood_tokens", repeats.tokens),
            (huggingface.utils, "get_rolling_token_windows", repeats.windows),
            (huggingface.Collator, "get_batched", repeats.batches),
        ):
            undo.enter_context(replaced(owner, name, wrapper))
        yield


class _Padding:
    """Masks of padded batches, and of the continuations in them; the search for a batch size does not count.

    Attributes:
        n_continuation: tokens of the continuation in each row of the batch at hand; None where it has none.
    """

    def __init__(self, tracker: InputTracker) -> None:
        self.n_continuation: list[int] | None = None
        self._tracker = tracker
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
        masks = [next((mask for padded, mask in self._padded if padded is fed), None) for fed in (inps, labels)]
        self._padded = []
        context = self._tracker.context
        with context.fallback_mask(*masks), context.completions(*self._continuations(*masks)):
            return original(lm, inps, *args, **kwargs)

    def _continuations(self, mask: Tensor | None, decoder_mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Mark the tokens of continuations, whose last ones are not fed; a decoder is fed a start token before them."""
        if decoder_mask is not None:
            return None, decoder_mask & (torch.arange(decoder_mask.shape[1]) > 0)
        if mask is None or self.n_continuation is None or len(self.n_continuation) != len(mask):
            return None, None
        n_fed = torch.tensor(self.n_continuation) - 1
        n_context = mask.sum(dim=1) - n_fed
        return mask & (torch.arange(mask.shape[1]) >= n_context[:, None]), None

    def detect_batch_size(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self._tracker.context.paused():
            return original(*args, **kwargs)


class _Repeats:
    """Rows of a batch that are there only because another process has more requests.

    Such a row repeats a text of this process, and the harness puts it last. So each text may count a known number of
    times.
    """

    def __init__(self, tracker: InputTracker, padding: _Padding) -> None:
        self._tracker, self._padding = tracker, padding
        self._has_continuations = False
        self._requests: deque[bool] = deque()  # of long texts that are yet to be cut into windows: is it one's own?
        self._texts: deque[bool] = deque()  # the same of what is yet to be fed
        self._left: Counter[str] | None = None  # of the texts of a call, how often each still may count
        self._key: Callable[[Any], str] = str

    def loglikelihood(self, original: Callable[..., Any], lm: Any, requests: Sequence[Any], *a: Any, **k: Any) -> Any:
        self._texts = deque(_are_own(requests))
        return original(lm, requests, *a, **k)

    def rolling(self, original: Callable[..., Any], lm: Any, requests: Sequence[Any], *a: Any, **k: Any) -> Any:
        self._requests, self._texts = deque(_are_own(requests)), deque()
        return original(lm, requests, *a, **k)

    def windows(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        windows = list(original(*args, **kwargs))
        if self._requests:
            self._texts.extend([self._requests.popleft()] * len(windows))
        return windows

    def tokens(self, original: Callable[..., Any], lm: Any, requests: Sequence[Any], *a: Any, **k: Any) -> Any:
        own = [bool(self._texts) and self._texts.popleft() for _ in requests]
        with self._expecting(lm, requests, own, _fed_tokens if lm.backend == "causal" else str):
            self._has_continuations = True
            return original(lm, requests, *a, **k)

    def generate_until(self, original: Callable[..., Any], lm: Any, requests: Sequence[Any], *a: Any, **k: Any) -> Any:
        with self._expecting(lm, [request.args for request in requests], _are_own(requests), str):
            return original(lm, requests, *a, **k)

    @contextmanager
    def _expecting(self, lm: Any, texts: Sequence[Any], own: list[bool], key: Callable[[Any], str]) -> Iterator[None]:
        if lm.world_size > 1:
            self._key, self._left = key, Counter(key(text) for text, is_own in zip(texts, own, strict=True) if is_own)
        try:
            with self._tracker.context.only_sequences(None):
                yield
        finally:
            self._left, self._has_continuations, self._padding.n_continuation = None, False, None

    def batches(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Iterator[Any]:
        for batch in original(*args, **kwargs):
            self._padding.n_continuation = [len(text[2]) for text in batch] if self._has_continuations else None
            with self._tracker.context.only_sequences(self._count(batch)):
                yield batch

    def _count(self, batch: Sequence[Any]) -> np.ndarray | None:
        """Find the rows of a batch that count."""
        if self._left is None:
            return None
        counts = []
        for key in map(self._key, batch):
            counts.append(self._left[key] > 0)
            self._left[key] -= 1
        return np.array(counts)


def _are_own(requests: Sequence[Any]) -> list[bool]:
    """Find the requests of this process; to fill up, the harness repeats the same objects."""
    seen: Counter[int] = Counter()
    seen_before = []
    for request in requests:
        seen_before.append(seen[id(request)])
        seen[id(request)] += 1
    return [n < (request.repeats or 1) for n, request in zip(seen_before, requests, strict=True)]


def _fed_tokens(text: tuple[Any, list[int], list[int]]) -> str:
    """Key a request by the tokens that a causal model is fed; requests with the same tokens are one."""
    _, context, continuation = text
    return str(context + continuation[:-1])
