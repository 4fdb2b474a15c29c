"""The part of scripts/attach_vllm.py that runs in vLLM's workers: it feeds a meter with the steps of the engine.

    LLM(model, worker_extension_cls="vllm_meter.MeterWorker", **ENGINE)      # this folder on PYTHONPATH
    llm.collective_rpc("softh_attach", args=({"labels": ["input_unigram"]},))
    llm.collective_rpc("softh_save", args=("out/vllm", "a name"))

It extends the worker, and is no KV connector for hidden states, because such a one copies all states into the engine's
cache and to a disk, and knows no final norm. Nothing here imports vllm, so tests replay the steps of an engine.

What it relies on was read in the source of vLLM 0.11.0, 0.13.0, 0.17.0, 0.24.0 and 0.33.0: the engine V1 with its model
runner V1, and from 0.24 on V2. It was not run with them.

- `execute_model(scheduler_output)` of the worker's `model_runner` is one step. It calls the model with flat `input_ids`
  and `positions` [N] of all requests, one behind the other, and padding at the end.
- The order of the requests is `input_batch.req_ids`, of the runner (V1) or of what it hands on to sampling (V2).
- `scheduler_output` has `num_scheduled_tokens` by request, and `finished_req_ids` since the step before.
- A block gives `(hidden_states, residual)`, whose sum is the residual stream. The final norm adds them too, and its
  second value is the sum. Norms work in place, so the sum is taken when a block has run. In some models the hidden
  states have the residual already (Cohere): where the norm's sum is another one, the model is refused.
- A request that was preempted is computed anew from its first token on: what was fed before is left out.
- With tensor parallelism each rank has the whole states: the first one records.

Shape suffixes: N rows of a step, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from softh_probe import SoftEntropyMeter
from softh_probe.errors import InputError, abbreviated
from softh_probe.hooks.hook_points import find_hook_points, watched_layers
from softh_probe.layer_places import FINAL_NORM, block_name

#: Arguments of `LLM` that the meter needs.
ENGINE = {
    "enforce_eager": True,  # graphs and compiled models call no hooks
    "enable_prefix_caching": False,  # a token that is found in the cache has no hidden states
    "async_scheduling": False,  # which computes a token past the end of a request
}
#: The scheduler bounds the requests that are open, so none has to be evicted.
_MOST_SEQUENCES = 1_000_000
#: Share of the stream's norm by which the norm's sum may differ from ours, which another kernel rounds.
_TOLERANCE = 0.02


# --- the maths -----------------------------------------------------------------------------------------------------


class StepRows(NamedTuple):
    """The rows of a step, without padding.

    Attributes:
        sequence: request of each row.
        position_N: position in it.
        is_new_N: False where a request was preempted and the token was fed before.
    """

    sequence: list[str]
    position_N: np.ndarray
    is_new_N: np.ndarray


def rows_of_step(
    requests: Sequence[str], n_scheduled: Mapping[str, int], position_N: np.ndarray, n_fed: Mapping[str, int]
) -> StepRows:
    """Cut the flat rows of a step into requests.

    >>> rows = rows_of_step(["b", "a"], {"a": 2, "b": 1}, np.array([7, 0, 1, 0]), {"b": 7, "a": 1})
    >>> rows.sequence, rows.position_N.tolist(), rows.is_new_N.tolist()
    (['b', 'a', 'a'], [7, 0, 1], [True, False, True])

    Args:
        requests: in the order of their rows.
        n_scheduled: tokens of each in this step.
        position_N: positions of the rows; of padding, anything.
        n_fed: tokens of each that were fed before.

    Raises:
        InputError: there are fewer rows than tokens.
    """
    sequence = [request for request in requests for _ in range(n_scheduled[request])]
    if position_N.ndim != 1 or len(position_N) < len(sequence):
        raise InputError(
            f"positions: expected those of {len(sequence)} scheduled tokens, got {list(position_N.shape)}; models that "
            "read images are not measured here"
        )
    position_N = position_N[: len(sequence)]
    fed_N = np.array([n_fed.get(request, 0) for request in sequence], dtype=np.int64)
    return StepRows(sequence, position_N, position_N >= fed_N)


def stream_parts(layer: str, value: Any) -> list[Tensor]:
    """Find what the residual stream [N, D] is the sum of, in what a block takes or gives.

    Args:
        layer: its row, for errors.
        value: hidden states; or these and the residual, if there is one yet, among tensors of other shapes or types.

    Raises:
        InputError: it is something else.
    """
    items = [value] if isinstance(value, Tensor) else value.values() if isinstance(value, Mapping) else value
    floats = [item for item in items if isinstance(item, Tensor) and item.is_floating_point()]
    parts = [item for item in floats if item.shape == floats[0].shape]
    if len(parts) not in (1, 2) or parts[0].ndim != 2:
        shapes = [list(item.shape) for item in floats]
        raise InputError(f"{layer}: expected hidden states [N, D], or these and a residual, got {shapes}")
    return parts


def summed(parts: Sequence[Tensor], n: int) -> Tensor:
    """Sum the first rows of one or two tensors [N, D], in memory of its own: those behind them are padding."""
    return parts[0][:n] + parts[1][:n] if len(parts) == 2 else parts[0][:n].clone()


def normed(value: Any, stream_ND: Tensor, *, is_sum: bool) -> Tensor:
    """Give the final norm's hidden states [N, D], in memory of their own.

    Args:
        value: what the norm gives: these, and padding; of two parts, their sum, too.
        stream_ND: the residual stream after the last block, without padding.
        is_sum: whether that is a sum of two parts.

    Raises:
        InputError: it is, and the norm's sum is another one.
    """
    hidden_ND, *others = [value] if isinstance(value, Tensor) else value
    n = len(stream_ND)
    if is_sum and (not others or (others[0][:n] - stream_ND).norm() > _TOLERANCE * stream_ND.norm()):
        raise InputError(
            f"{FINAL_NORM}: expected it to add the hidden states and the residual of the last block; this model's "
            "blocks give another pair, whose sum is not the residual stream; run this one with transformers"
        )
    return hidden_ND[:n].clone()


def row_order(runner: Any) -> list[str]:
    """Name the requests of the step that was just run, in the order of their rows.

    Raises:
        InputError: this model runner keeps them elsewhere.
    """
    handed_on = getattr(getattr(runner, "execute_model_state", None), "input_batch", None)
    batch = getattr(runner, "input_batch", None) if handed_on is None else handed_on
    if batch is None:
        raise InputError(
            f"vllm: {type(runner).__name__} has no input_batch; take a version from 0.11 to 0.33 and its default runner"
        )
    return list(batch.req_ids)


def check_engine(config: Any) -> None:
    """Refuse an engine whose states are not whole, not computed, or not seen by hooks.

    Raises:
        InputError: an argument of `LLM` is another one.
    """
    parallel, cache, scheduler = config.parallel_config, config.cache_config, config.scheduler_config
    sizes = ("pipeline_parallel_size", "data_parallel_size", "prefill_context_parallel_size")
    needed = {
        "enforce_eager=True": config.model_config.enforce_eager,
        "enable_prefix_caching=False": not cache.enable_prefix_caching,
        "async_scheduling=False": not scheduler.async_scheduling,
        "speculative_config=None": config.speculative_config is None,
        **{f"{size}=1": getattr(parallel, size, 1) == 1 for size in sizes},
    }
    if wrong := [argument for argument, holds in needed.items() if not holds]:
        raise InputError(f"vllm: expected an LLM with {abbreviated(wrong)}, so that each state is computed and seen")


# --- in the worker -------------------------------------------------------------------------------------------------


class MeteredRunner:
    """`execute_model` of a model runner, which also feeds a meter.

    Args:
        runner: vLLM's model runner.
        settings: arguments of `SoftEntropyMeter`.
    """

    def __init__(self, runner: Any, settings: Mapping[str, Any]) -> None:
        self._runner = runner
        self._execute = runner.execute_model
        self._points = find_hook_points(runner.get_model())
        n_blocks = len(self._points.blocks)
        self._last = block_name(n_blocks)
        self.meter = SoftEntropyMeter(**settings, n_blocks=n_blocks, most_sequences=_MOST_SEQUENCES)
        self._n_fed: dict[str, int] = {}

    def __call__(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        """Run a step and feed the meter."""
        if kwargs.get("dummy_run"):  # of no request
            return self._execute(scheduler_output, *args, **kwargs)
        self._end(scheduler_output.finished_req_ids)
        inputs: dict[str, Tensor | None] = {}
        states: dict[str, Tensor] = {}
        n_parts, n_rows = 1, sum(scheduler_output.num_scheduled_tokens.values())

        def see(layer: str, _module: nn.Module, value: Any) -> None:
            nonlocal n_parts
            if layer == FINAL_NORM:
                states[layer] = normed(value, states[self._last], is_sum=n_parts == 2)
            else:
                parts = stream_parts(layer, value)
                n_parts, states[layer] = len(parts), summed(parts, n_rows)

        with watched_layers(self._points, see), _inputs_of(self._runner.get_model(), inputs):
            output = self._execute(scheduler_output, *args, **kwargs)
        if states:
            self._feed(inputs, states, row_order(self._runner), scheduler_output.num_scheduled_tokens)
        return output

    def _feed(
        self,
        inputs: Mapping[str, Tensor | None],
        states: Mapping[str, Tensor],
        requests: Sequence[str],
        n_scheduled: Mapping[str, int],
    ) -> None:
        ids_N, position_N = inputs["input_ids"], inputs["positions"]
        if ids_N is None or position_N is None:
            raise InputError("vllm: expected a model that takes input_ids; those of images and sounds are not measured")
        rows = rows_of_step(requests, n_scheduled, position_N.cpu().numpy(), self._n_fed)
        self.meter.update(
            states,
            input_ids=ids_N[: len(rows.sequence)],
            sequence=rows.sequence,
            position=rows.position_N,
            mask=rows.is_new_N,
        )
        for request, position in zip(rows.sequence, rows.position_N.tolist(), strict=True):
            self._n_fed[request] = max(self._n_fed.get(request, 0), position + 1)

    def _end(self, finished: Iterable[str]) -> None:
        for request in finished:
            if self._n_fed.pop(request, 0):
                self.meter.end(request)


@contextmanager
def _inputs_of(model: nn.Module, inputs: dict[str, Tensor | None]) -> Iterator[None]:
    """Keep the tokens and positions of the model's call in the block; their memory is the next step's, too."""

    def take(_module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for name in ("input_ids", "positions"):
            value = kwargs.get(name)
            inputs[name] = None if value is None else value.clone()

    handle = model.register_forward_pre_hook(take, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


class MeterWorker:
    """Methods that vLLM adds to each of its workers; the first rank has the meter."""

    rank: int
    model_runner: Any
    vllm_config: Any

    def softh_attach(self, settings: dict[str, Any]) -> None:
        """Feed a meter of these settings from now on.

        Raises:
            InputError: a setting, or the engine, is not what it has to be.
        """
        if self.rank == 0:
            check_engine(self.vllm_config)
            self.model_runner.execute_model = MeteredRunner(self.model_runner, settings)

    def softh_save(self, out: str, name: str) -> int:
        """Save the result in a folder; give the positions counted, 0 in ranks without a meter."""
        if self.rank:
            return 0
        meter = self.model_runner.execute_model.meter
        meter.result(name=name).save(out)
        return meter.positions
