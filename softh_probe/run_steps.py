"""What only runs, their snapshots and groups of processes ask of a probe: the steps of a planned run, and its parts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from softh_probe.accumulators.batch import BatchAccumulator
from softh_probe.accumulators.dispatch import Dispatch
from softh_probe.accumulators.influence_sums import InfluenceSums
from softh_probe.accumulators.model_sums import ModelSums
from softh_probe.hooks.label_source import LabelSource
from softh_probe.hooks.recorder import Recorder
from softh_probe.layer_means import MEAN_OVER, select_mean_rows
from softh_probe.models.origin import Origin
from softh_probe.planned.announced import AnnouncedRows


class RunSteps:
    """The steps of a run, in the order in which it takes them; code that attaches a probe needs none of them."""

    _model: nn.Module
    _modules: Mapping[str, nn.Module | tuple[Any, ...]] | None
    _plan: AnnouncedRows | None
    _settings: dict[str, Any]
    _anchors: object
    _source: LabelSource
    _sums: ModelSums
    _recorder: Recorder
    origin: Origin

    def layer_devices(self) -> dict[str, torch.device]:
        """Find the device of each layer's sums: that of its block's weights, which must be loaded."""
        return {layer: device for layer, (_, device) in self._recorder.expected_layers().items()}

    def layer_widths(self) -> dict[str, int | None]:
        """Find the width of each layer's hidden states, as far as it is known beforehand."""
        return {layer: width for layer, (width, _) in self._recorder.expected_layers().items()}

    def check_mean_over(self, mean_over: Sequence[str | int] | None) -> dict[str, list[str]]:
        """Find the rows whose mean is asked for, before they are measured: entries of a result's `info`.

        Raises:
            InputError: one of them will not be measured.
        """
        if mean_over is None:
            return {}
        return {MEAN_OVER: select_mean_rows(mean_over, self._measured(), {"n_blocks": self._recorder.n_blocks or None})}

    def reserve(self, on_host: Collection[str] = ()) -> None:
        """Take the memory of the sums now, so that a lack of it shows before the model runs.

        Tables that are made between a model's short-lived tensors would also keep the memory of those tensors from
        being used again.

        Args:
            on_host: layers whose label tables go to host memory although the layer is on an accelerator.
        """
        self._sums.reserve(self._recorder.expected_layers(), on_host)

    @contextmanager
    def batch(self, dispatch: Dispatch) -> Iterator[None]:
        """Announce the next forward pass of a planned run; raise at its end the problems that the hooks found."""
        with self._source.announce(dispatch):
            yield
        self._recorder.raise_problems()

    def merge_shares(self, add_others: Callable[[Tensor], None]) -> None:
        """Turn the sums of one share of a plan into those of the whole, layer by layer; `retire` is next.

        Args:
            add_others: adds to a tensor in host memory, in place, the tensors of the probes of all other shares.
        """
        counts = torch.tensor([self._recorder.positions, self._recorder.tokens])
        add_others(counts)
        self._recorder.positions, self._recorder.tokens = counts.tolist()
        self._sums.merge_shares(self._measured(), add_others)

    def retire(self) -> None:
        """Retire, after all batches of a plan, the labels that shares have in common, or that were held to the end."""
        self._sums.retire(self._measured(), self._source.rows.row_labels())

    @contextmanager
    def second_pass(self) -> Iterator[InfluenceSums]:
        """Take sums of documents from the batches inside the block, whose positions are not counted again."""
        found = InfluenceSums([self._sums[layer] for layer in self._measured()], self._source.rows.row_labels())
        self._recorder.make_accumulator = found.accumulator
        try:
            yield found
        finally:
            self._recorder.make_accumulator = BatchAccumulator

    # --- parts ------------------------------------------------------------------------------------------------

    def _measured(self) -> list[str]:
        """Name the layers that have sums, or will have them, in the order of calls."""
        raise NotImplementedError
