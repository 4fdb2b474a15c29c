"""The forward pass over the batches of a run."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from softh_probe.accumulators.dispatch import Dispatch
from softh_probe.data.corpus import Corpus, pad_batch
from softh_probe.models.loading_errors import running_on_tokens
from softh_probe.planned.plan import Plan
from softh_probe.probe import SoftEntropyProbe
from softh_probe.run.processes import ALONE, Processes, running_together


class Batch(NamedTuple):
    """A batch: its documents, by their index in a corpus, and the rows of their labels."""

    corpus: Corpus
    documents: np.ndarray
    labels: Dispatch


class Measurer(Protocol):
    """Sees the forward passes of a run: a probe, or an `Onlooker`."""

    def __enter__(self) -> object: ...

    def __exit__(self, *error: Any) -> object: ...

    def batch(self, dispatch: Dispatch) -> AbstractContextManager[None]:
        """Make the context of the forward pass over a batch."""
        ...

    def check(self) -> None:
        """Raise the problems of the measurement."""
        ...


class Onlooker:
    """Measures nothing: another process of the same model does."""

    def __enter__(self) -> Onlooker:
        return self

    def __exit__(self, *error: object) -> None: ...

    def batch(self, dispatch: Dispatch) -> AbstractContextManager[None]:
        """Make a context in which nothing is seen."""
        return nullcontext()

    def check(self) -> None:
        """Find no problems."""


def measurer(probe: SoftEntropyProbe, processes: Processes) -> Measurer:
    """Choose what sees the forward passes of this process: the probe, if it measures."""
    return probe if processes.measures else Onlooker()


def forward(
    probe: SoftEntropyProbe,
    model: Any,
    plan: Plan,
    *,
    share: range | None = None,
    first: int = 0,
    after_batch: Callable[[int], None] | None = None,
    progress: bool = True,
) -> None:
    """Run a model's backbone over the planned batches under a probe.

    Args:
        share: indices of the batches to run; None is all.
        first: number of these that the probe has measured already.
        after_batch: called after each batch with the number of batches done.
        progress: show a progress bar.
    """
    share = range(len(plan.batches)) if share is None else share
    n_tokens = [int(plan.corpus.lengths[plan.batches[index]].sum()) for index in share]
    run_batches(
        probe,
        model,
        planned_batches(plan, share[first:]),
        first=first,
        n_tokens_before=sum(n_tokens[:first]),
        n_tokens=lambda: sum(n_tokens),
        after_batch=after_batch,
        progress=progress,
    )


def planned_batches(plan: Plan, share: Iterable[int]) -> Iterator[Batch]:
    """Give planned batches by their indices."""
    for index in share:
        yield Batch(plan.corpus, plan.batches[index], plan.batch(index))


def run_batches(
    seen_by: Measurer,
    model: Any,
    batches: Iterator[Batch],
    *,
    first: int = 0,
    n_tokens_before: int = 0,
    n_tokens: Callable[[], int | None] = lambda: None,
    reading: Callable[[], AbstractContextManager[None]] = nullcontext,
    after_batch: Callable[[int], None] | None = None,
    progress: bool = True,
    stage: str = "forward",
    processes: Processes = ALONE,
) -> None:
    """Run a model's backbone over batches under a probe; neither its head is run nor a hidden state kept.

    Args:
        seen_by: the probe; an `Onlooker` where another process of the model measures.
        first: number of batches that were measured already; n_tokens_before: their tokens.
        n_tokens: gives the tokens of all batches as far as they are known; None shows no time left.
        reading: makes the context in which the next batch is taken.
        after_batch: called after each batch with the number of batches done.
        progress: show a progress bar; stage: its name.
        processes: those that hold the model with this one run the same batches.
    """
    done = first
    with (
        seen_by,
        quiet_inference(),
        tqdm(
            total=n_tokens(),
            initial=n_tokens_before,
            desc=stage,
            unit="tok",
            unit_scale=True,
            disable=not progress,
            file=sys.stderr,
        ) as bar,
    ):
        while True:
            with reading():
                batch = next(batches, None)
            if batch is None:
                break
            done += 1
            input_ids, attention_mask = pad_batch(batch.corpus, batch.documents)
            with seen_by.batch(batch.labels), running_together(processes):
                run_backbone(model, input_ids, attention_mask)
            if done == first + 1:
                seen_by.check()  # unusable hidden states show here, not after hours
            bar.total = n_tokens()
            bar.update(batch.labels.n_tokens)
            if after_batch is not None:
                after_batch(done)


def run_backbone(model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> None:
    """Run a model on one batch, both [B, T] in host memory, on the device of its embeddings."""
    device = _input_device(model)
    with running_on_tokens(model):
        model(input_ids=input_ids.to(device), attention_mask=attention_mask.to(device))


def input_embeddings(model: Any) -> nn.Module | None:
    """Find the module that turns tokens into hidden states; None where the model says of none."""
    try:
        found = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return found if isinstance(found, nn.Module) else None


def _input_device(model: Any) -> torch.device:
    """Find the device of the embeddings; that of the first weight where there are several tables of them, or none."""
    weight = getattr(input_embeddings(model), "weight", None)
    device: torch.device = (weight if isinstance(weight, torch.Tensor) else next(model.parameters())).device
    return device


@contextmanager
def quiet_inference() -> Iterator[None]:
    """Keep no gradients, and silence the warning that bitsandbytes repeats at each 8-bit multiplication."""
    logger = logging.getLogger("bitsandbytes.autograd._functions")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with torch.inference_mode():
            yield
    finally:
        logger.setLevel(level)
