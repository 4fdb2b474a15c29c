"""The source of labels: where a forward pass finds the rows that its positions are added to.

There are two: `softh_probe.planned.announced.AnnouncedBatches`, for a corpus that is known beforehand, and
`softh_probe.attached.tracker.InputTracker`, for a model that other code runs. Probe, hooks and recorder use this
interface alone. A meter has no forward passes, but the rest: `softh_probe.attached.open_sequences.OpenSequences`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from torch import nn

from softh_probe.accumulators.dispatch import DecodeStep, Dispatch, MergeMap, Regrouping
from softh_probe.accumulators.row_labels import RowLabels, TableSizes
from softh_probe.attached.pass_context import PassContext
from softh_probe.choices import Choices
from softh_probe.labels import LabelSet


class LabelRows(Protocol):
    """The rows of all labels: those of a `Plan`, a stream (`StreamedRows`) or an attached probe (`OnlineRows`)."""

    label_sets: Sequence[LabelSet]

    @property
    def set_names(self) -> list[str]:
        """Names of the label sets that there are so far."""
        ...

    def row_labels(self) -> RowLabels:
        """Describe the rows as they are now."""
        ...

    def table_sizes(self) -> TableSizes:
        """Give the sizes of a layer's sums."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Give what a probe's state holds of the rows; nothing where a plan determines them."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> np.ndarray | None:
        """Continue from such a state.

        Returns:
            The live rows of the state that are allowed here, in their order here; None where all are.
        """
        ...

    def merge(self, other: Any) -> MergeMap:
        """Take over the labels of another part of the data, measured with the same label sets.

        Raises:
            InputError: rows of a plan are not merged.
        """
        ...


class BatchSource(Protocol):
    """The labels of each batch, as far as recorders and results ask of them.

    Attributes:
        n_rejected: positions that were counted as fed and taken back since.
        lock: held during a forward pass that counts, and by all else that changes what was counted, so that a model
            may be run by several threads; all probes of a model share one.
        choices: what was chosen for the user.
    """

    n_rejected: int
    lock: threading.RLock
    choices: Choices

    @property
    def why_nothing(self) -> str:
        """Why policies of positions leave nothing, to end an error with; empty where they do not."""
        ...

    @property
    def rows(self) -> LabelRows:
        """The rows of all labels."""
        ...

    @property
    def fails_fast(self) -> bool:
        """Whether an unforeseen error stops the forward pass, or is kept for the end of the block."""
        ...

    def positions_policy(self, n_left: int) -> dict[str, Any]:
        """Give the entry of a result's `info` on the policies of positions; nothing where none was asked for.

        Args:
            n_left: positions that count.
        """
        ...

    def described_texts(self) -> dict[str, Any]:
        """Give the entry `corpus` of a result's `info`, the digests of what was fed; nothing where a run knows it."""
        ...

    def flush(self) -> None:
        """Make all positions ready that can be counted without another forward pass."""
        ...

    def take_ready(self) -> Sequence[Dispatch | Regrouping]:
        """Take the dispatches of decode steps and waiting positions, in the order in which they are to be applied."""
        ...

    def take_ended(self) -> list[int]:
        """Take the numbers of sequences that ended, whose waiting positions never count."""
        ...


class LabelSource(BatchSource, Protocol):
    """The labels of each forward pass."""

    @property
    def is_paused(self) -> bool:
        """Whether forward passes do not count at the moment."""
        ...

    @property
    def context(self) -> PassContext:
        """The facts about forward passes that their arguments do not show.

        Raises:
            InputError: a planned run knows them from its corpus.
        """
        ...

    def follow(self, model: nn.Module) -> AbstractContextManager[object]:
        """Observe, inside the block, what the code that runs the model does with caches and sequences."""
        ...

    def announce(self, dispatch: Dispatch) -> AbstractContextManager[None]:
        """Give the labels of the next forward pass.

        Raises:
            InputError: an attached probe finds them by itself.
        """
        ...

    def begin(self, inputs: Mapping[str, Any], outer: Mapping[str, Any]) -> Dispatch | DecodeStep | None:
        """Find the labels of a forward pass.

        Args:
            inputs: the backbone's arguments; outer: those of the model around it.

        Returns:
            The rows of its positions; a `DecodeStep` where they come with those of later steps; None where the
            arguments hold neither tokens nor embeddings, or modules are named that may pool them (`begin_positions`
            follows).

        Raises:
            ProbeError: the labels cannot be found.
        """
        ...

    def begin_positions(
        self, shape: tuple[int, ...], given: Mapping[str, Any], real_BT: np.ndarray | None = None
    ) -> Dispatch:
        """Find the labels of a forward pass once its first hidden states [B, T, D] or [B, D] are known.

        Args:
            shape: (B, T), or (B,) of [B, D], where a position is a row.
            given: arguments of the module that gave them, which may tell of padding.
            real_BT: False at padding, where the module itself knows; masks may then have more positions, and the
                dispatch has as many.

        Raises:
            ProbeError: masks or labels are of another shape.
        """
        ...

    def check_padding(self, given: Mapping[str, Any], real_BT: np.ndarray | None) -> None:
        """Compare the padding of the forward pass with what a further module was given; see `begin_positions`.

        Raises:
            ProbeError: positions that count are padding there.
        """
        ...

    @property
    def tells_positions_apart(self) -> bool:
        """Whether masks or labels are not the same for all positions of the forward pass that began last."""
        ...

    def finish(self, output: Any) -> None:
        """End the forward pass that began last; `output` is None where it failed."""
        ...

    def reset(self) -> None:
        """Forget all sequences."""
        ...
