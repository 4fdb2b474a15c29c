"""HuggingFace Trainer: what its model's layers hold, measured during `trainer.evaluate()`.

trainer.add_callback(SoftEntropyCallback(trainer, labels=["input_unigram", "output_unigram"]))
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate.state import GradientState
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback
from transformers.trainer_pt_utils import find_batch_size

from softh_probe.distributed import gather
from softh_probe.errors import ProbeError
from softh_probe.patching import replaced
from softh_probe.probe import SoftEntropyProbe
from softh_probe.result import ProbeResult


class SoftEntropyCallback(TrainerCallback):
    """Adds a number for each layer and metric to what `trainer.evaluate()` logs and returns.

    They are named `eval_entropy/layer.3` and `eval_mutual_information_input_unigram/layer.3`, and go wherever the
    Trainer logs (wandb, trackio, tensorboard, its JSON log). Nothing is measured during training steps. Should the
    measurement fail, a warning says so and the evaluation goes on.

    Args:
        trainer: whose evaluations are measured.
        metrics: which metrics are logged; the others are in `result`.
        unit: "efficiency", "nats" or "bits".
        model: what is probed; by default the trainer's model.
        settings: arguments of `SoftEntropyProbe`, such as labels and anchor_sets.

    Attributes:
        result: all that the last evaluation gave; None before.
    """

    def __init__(
        self,
        trainer: Trainer,
        *,
        metrics: Sequence[str] = ("entropy", "mutual_information"),
        unit: str = "efficiency",
        model: nn.Module | None = None,
        **settings: Any,
    ) -> None:
        self.result: ProbeResult | None = None
        self._trainer, self._metrics, self._unit = trainer, tuple(metrics), unit
        self._model, self._settings = model, settings
        self._probe: SoftEntropyProbe | None = None
        self.probe()  # arguments that are wrong fail here
        # evaluate() tells callbacks of its end only, when its metrics have been logged.
        self._wrappers = [
            replaced(trainer, "evaluation_loop", self._evaluation_loop),
            replaced(trainer, "prediction_step", self._prediction_step),
        ]
        for wrapper in self._wrappers:
            wrapper.__enter__()

    def probe(self) -> SoftEntropyProbe:
        """A probe of the trainer's model that has measured nothing."""
        model = self._model or self._trainer.model
        assert model is not None
        return SoftEntropyProbe(model, **self._settings)

    def remove(self) -> None:
        """Leave the trainer as it was."""
        while self._wrappers:
            self._wrappers.pop().__exit__(None, None, None)
        self._trainer.remove_callback(self)

    def _evaluation_loop(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        prefix = kwargs.get("metric_key_prefix", args[4] if len(args) > 4 else "eval")
        if self._trainer.args.n_gpu > 1:
            warnings.warn(
                "soft entropy was not measured: with several GPUs in one process (DataParallel), copies of the "
                "model run that cannot be looked into; use torchrun or accelerate launch, or show the script one GPU",
                stacklevel=2,
            )
            return original(*args, **kwargs)
        self._probe = self.probe()
        try:
            self._probe.__enter__()
            try:
                output = original(*args, **kwargs)
            finally:
                self._probe.__exit__(RuntimeError, None, None)  # problems are found in the result, below
            try:
                everything = gather(self._probe) if self._trainer.args.world_size > 1 else self._probe
                self.result = everything.result()
            except ProbeError as problem:
                warnings.warn(f"soft entropy was not measured: {problem}", stacklevel=2)
            else:
                output.metrics.update(self._numbers(self.result, prefix))
            return output
        finally:
            self._probe = None

    def _numbers(self, result: ProbeResult, prefix: str) -> dict[str, float]:
        table = result.to_pandas(unit=self._unit)
        table = table[table.metric.isin(self._metrics)]
        names = table.metric + table.label_set.map(lambda label_set: f"_{label_set}" if label_set else "")
        numbers = zip(names, table.name, table.value, strict=True)
        return {f"{prefix}_{name}/{row}": float(value) for name, row, value in numbers if math.isfinite(value)}

    def _prediction_step(self, original: Callable[..., Any], model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if self._probe is None:
            return original(model, inputs, *args, **kwargs)
        context = self._probe.context
        with context.fallback_mask(*masks_from_labels(inputs)), context.only_sequences(own_rows(inputs)):
            return original(model, inputs, *args, **kwargs)


def masks_from_labels(inputs: Any) -> tuple[Tensor | None, Tensor | None]:
    """Which tokens of an evaluation batch are real, and which of a decoder's, where the model is not told; else None.

    Without a mask, padding shows in the labels only: it is what the loss ignores (−100) at the end of a row, if labels
    are the tokens themselves, or those that a decoder is to write. Other labels tell nothing.
    """
    if not isinstance(inputs, Mapping):
        return None, None
    ids, labels = inputs.get("input_ids"), inputs.get("labels")
    if not isinstance(labels, Tensor) or labels.ndim != 2:
        return None, None
    real = (labels.cpu() != -100).flip(1).cumsum(dim=1).flip(1) > 0
    mask = decoder_mask = None
    if isinstance(ids, Tensor) and ids.shape == labels.shape and ((labels == -100) | (labels == ids)).all():
        told = any(inputs.get(name) is not None for name in ("attention_mask", "position_ids"))
        mask = None if told else real
    if inputs.get("decoder_attention_mask") is None:
        decoder_mask = real
    return mask, decoder_mask


def own_rows(inputs: Any) -> np.ndarray | None:
    """Which rows of the batch at hand are this process's own; None if all are.

    In several processes, the last batch is filled up with rows that others have evaluated; those do not count.
    """
    state = GradientState()
    n_rows = find_batch_size(inputs)
    if n_rows is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return None
    if not state.in_dataloader or not state.end_of_dataloader or state.remainder == 0:
        return None
    if state.remainder < 0:
        warnings.warn(
            "a data set without a length is read by several processes, each of which may repeat rows at its end, and "
            "they count; leave accelerator_config's dispatch_batches at its default",
            stacklevel=2,
        )
        return None
    return np.arange(n_rows) < state.remainder - torch.distributed.get_rank() * n_rows
