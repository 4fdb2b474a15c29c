"""The forward pass over a planned corpus."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tqdm import tqdm

from softh_probe.data.corpus import pad_batch
from softh_probe.planned.plan import Plan
from softh_probe.probe import SoftEntropyProbe


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
    """Run a model's backbone over the planned batches under a probe; neither its head is run nor a hidden state kept.

    Args:
        share: indices of the batches to run; None is all.
        first: number of these that the probe has measured already.
        after_batch: called after each batch with the number of batches done.
    """
    device = model.get_input_embeddings().weight.device
    share = range(len(plan.batches)) if share is None else share
    n_tokens = [int(plan.corpus.lengths[plan.batches[index]].sum()) for index in share]
    with (
        probe,
        torch.inference_mode(),
        _quiet_matmul(),
        tqdm(
            total=sum(n_tokens),
            initial=sum(n_tokens[:first]),
            desc="forward",
            unit="tok",
            unit_scale=True,
            disable=not progress,
            file=sys.stderr,
        ) as bar,
    ):
        for done, index in enumerate(share[first:], start=first + 1):
            input_ids, attention_mask = pad_batch(plan.corpus, plan.batches[index])
            labels = plan.batch(index)
            with probe.batch(labels):
                model(input_ids=input_ids.to(device), attention_mask=attention_mask.to(device))
            if done == first + 1:
                probe.check()  # unusable hidden states show here, not after hours
            bar.update(labels.n_tokens)
            if after_batch is not None:
                after_batch(done)


@contextmanager
def _quiet_matmul() -> Iterator[None]:
    """Silence the warning that bitsandbytes repeats at each 8-bit multiplication (inputs are cast to float16)."""
    logger = logging.getLogger("bitsandbytes.autograd._functions")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
