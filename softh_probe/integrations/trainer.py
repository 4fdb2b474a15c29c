"""A callback of the HuggingFace Trainer that probes the model during `trainer.evaluate()`.

trainer.add_callback(SoftEntropyCallback(trainer, labels=["input_unigram", "output_unigram"]))
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import DataLoaderShard
from accelerate.state import GradientState, PartialState
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback
from transformers.trainer_pt_utils import find_batch_size

from softh_probe.distributed import gather
from softh_probe.errors import ProbeError
from softh_probe.models.origin import describe_tokenizer
from softh_probe.patching import replaced
from softh_probe.probe import SoftEntropyProbe
from softh_probe.result import ProbeResult


class SoftEntropyCallback(TrainerCallback):
    """Callback that adds a number for each layer and metric to the metrics of `trainer.evaluate()`.

    The numbers are named `eval_entropy/layer.3` and `eval_mutual_information_input_unigram/layer.3`, those of the mean
    over the blocks `eval_entropy/mean`, and appear wherever the Trainer logs (wandb, trackio, tensorboard, its JSON
    log). Training steps are not measured. If the measurement fails, a warning gives the reason and the evaluation
    continues. Results are named by run and step, and `info["evaluation"]` has both, the epoch and the name of the data,
    as far as it is known.

    Args:
        trainer: the trainer whose evaluations are measured.
        metrics: names of the metrics that are logged; `result` has all of them.
        unit: "efficiency", "nats" or "bits".
        model: the model that is probed; by default the trainer's.
        settings: arguments of `SoftEntropyProbe`, such as labels and anchor_sets; skip_special_tokens=True means those
            of the trainer's tokenizer (`processing_class`).

    Attributes:
        result: the result of the last evaluation; None before the first.

    Raises:
        InputError: an argument of the probe is wrong.
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
        if settings.get("skip_special_tokens") is True and trainer.processing_class is not None:
            tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
            settings["skip_special_tokens"] = tokenizer
        self._model, self._settings = model, settings
        self._probe: SoftEntropyProbe | None = None
        self.probe()  # raises here, not in the first evaluation, if an argument is wrong
        # The event on_evaluate comes after the metrics have been logged, too late to add to them.
        self._wrappers = [
            replaced(trainer, "evaluation_loop", self._evaluation_loop),
            replaced(trainer, "prediction_step", self._prediction_step),
        ]
        for wrapper in self._wrappers:
            wrapper.__enter__()

    def probe(self) -> SoftEntropyProbe:
        """Create a new probe of the trainer's model."""
        model = self._model or self._trainer.model
        assert model is not None
        return SoftEntropyProbe(model, **self._settings)

    def remove(self) -> None:
        """Remove the callback from the trainer, and restore the trainer's methods."""
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
                self._probe.__exit__(RuntimeError, None, None)  # result() below raises its problems
            try:
                everything = gather(self._probe) if self._trainer.args.world_size > 1 else self._probe
                self.result = self._named(everything, prefix, args[0] if args else kwargs.get("dataloader"))
            except ProbeError as problem:
                warnings.warn(f"soft entropy was not measured: {problem}", stacklevel=2)
            else:
                output.metrics.update(self._numbers(self.result, prefix))
            return output
        finally:
            self._probe = None

    def _named(self, probe: SoftEntropyProbe, prefix: str, loader: object) -> ProbeResult:
        """Compute the result, which knows its run, step and data."""
        args, state = self._trainer.args, self._trainer.state
        run = getattr(args, "run_name", None) or Path(args.output_dir or "training").name
        result = probe.result(name=f"{run} step {state.global_step}")
        result.info["evaluation"] = {
            "by": "transformers.Trainer",
            "run": run,
            "step": state.global_step,
            "epoch": state.epoch,
            "data": data_name(prefix, getattr(loader, "dataset", None)),
        }
        if (tokenizer := describe_tokenizer(self._trainer.processing_class)) is not None:
            result.info["tokenizer"] = tokenizer
        return result

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


def data_name(prefix: str, dataset: object) -> str | None:
    """Name the data of an evaluation: as among several eval data sets, or as `datasets` does.

    >>> data_name("eval_german", None)
    'german'

    Args:
        prefix: of the metrics' names.
        dataset: what is evaluated.

    Returns:
        The name; None where nothing tells it.
    """
    among_others = prefix.partition("_")[2]
    if among_others:
        return among_others
    info = getattr(dataset, "info", None)
    parts = [getattr(info, name, None) for name in ("dataset_name", "config_name")]
    name = " ".join(str(part) for part in parts if part and part != "default")
    split = getattr(dataset, "split", None)
    return f"{name} ({split})" if name and split else name or None


def masks_from_labels(inputs: Any) -> tuple[Tensor | None, Tensor | None]:
    """Infer the masks of an evaluation batch that the model does not receive, from the batch's labels.

    Without a mask, only the labels show padding: the positions at the end of a row that the loss ignores (−100). This
    holds for labels that are the tokens themselves, and for labels that are a decoder's target; others are not used.

    Args:
        inputs: the batch; tensors by name.

    Returns:
        The mask of `input_ids` and that of the decoder's tokens, bool [B, T], True at real tokens; None for a mask that
        the model receives or that the labels do not show.
    """
    if not isinstance(inputs, Mapping):
        return None, None
    ids, labels = inputs.get("input_ids"), inputs.get("labels")
    if not isinstance(labels, Tensor) or labels.ndim != 2:
        return None, None
    real = (labels.cpu() != -100).flip(1).cumsum(dim=1).flip(1) > 0
    mask = decoder_mask = None
    if isinstance(ids, Tensor) and ids.shape == labels.shape and ((labels == -100) | (labels == ids)).all():
        has_mask = any(inputs.get(name) is not None for name in ("attention_mask", "position_ids"))
        mask = None if has_mask else real
    if inputs.get("decoder_attention_mask") is None:
        decoder_mask = real
    return mask, decoder_mask


def own_rows(inputs: Any) -> np.ndarray | None:
    """Find the rows of an evaluation batch that belong to this process.

    With several processes, accelerate fills up the last batch with rows that other processes evaluate as well; those
    are not counted. Processes that hold one model between them evaluate the same rows.

    Args:
        inputs: the batch.

    Returns:
        A bool array [B], True at the process's own rows; None if all are.
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
    own: np.ndarray = np.arange(n_rows) < state.remainder - _share_index(state.active_dataloader) * n_rows
    return own


def _share_index(loader: object) -> int:
    """Find which share of each batch a data loader of accelerate gives to this process."""
    for part in (getattr(loader, "batch_sampler", None), getattr(loader, "dataset", None)):
        if isinstance(index := getattr(part, "process_index", None), int):
            return index
    if isinstance(loader, DataLoaderShard) and PartialState().num_processes > 1:
        return 0  # a single share, which all processes are given
    return torch.distributed.get_rank()
