"""The labels of a planned or streamed run: each batch is announced before its forward pass."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
from torch import nn

from softh_probe.accumulators.dispatch import Dispatch
from softh_probe.attached.inputs import require_tokens
from softh_probe.attached.pass_context import PassContext
from softh_probe.attached.position_rules import PositionRules
from softh_probe.attached.track_inputs import track_inputs
from softh_probe.attached.tracker import InputTracker
from softh_probe.choices import Choices
from softh_probe.errors import InputError, ProbeError
from softh_probe.labels import LabelRows
from softh_probe.planned.plan import Plan
from softh_probe.planned.streamed import StreamedRows

#: The rows of all labels of a corpus, or of those that were fed so far.
AnnouncedRows = Plan | StreamedRows

_NOT_ANNOUNCED = "plan: no batch was announced; run the model inside probe.batch(plan.batch(index))"


class AnnouncedBatches:
    """Give each forward pass the labels that its batch has in a plan or a stream; a `LabelSource`.

    Args:
        rows: the rows of the labels.
        has_backbone: whether the hooked model has to be fed tokens.
    """

    n_rejected = 0
    is_paused = False
    tells_positions_apart = True
    why_nothing = ""

    def __init__(self, rows: AnnouncedRows, *, has_backbone: bool) -> None:
        self.rows = rows
        self.lock = threading.RLock()
        self.choices = Choices()  # the run reports them
        self._has_backbone = has_backbone
        self._announced: Dispatch | None = None

    @property
    def fails_fast(self) -> bool:
        """An unforeseen error, such as out of memory, stops the run."""
        return self._announced is not None

    @property
    def context(self) -> PassContext:
        """Raise InputError: the corpus determines what counts."""
        raise InputError("plan: the batches and labels of a planned run are those of its data set")

    def follow(self, model: nn.Module) -> AbstractContextManager[object]:
        """Observe nothing: batches are announced."""
        return nullcontext()

    @contextmanager
    def announce(self, dispatch: Dispatch) -> Iterator[None]:
        """Give the labels of the forward pass inside the block."""
        self._announced = dispatch
        try:
            yield
        finally:
            self._announced = None

    def begin(self, inputs: Mapping[str, Any], outer: Mapping[str, Any]) -> Dispatch:
        """Give the announced labels.

        Raises:
            ProbeError: no batch was announced, or the backbone is not fed tokens.
        """
        if self._announced is None:
            raise ProbeError(_NOT_ANNOUNCED)
        if self._has_backbone:
            require_tokens(inputs, outer)
        return self._announced

    def begin_positions(
        self, shape: tuple[int, ...], given: Mapping[str, Any], real_BT: np.ndarray | None = None
    ) -> Dispatch:
        """Raise ProbeError: the announced batch has all labels."""
        raise ProbeError(_NOT_ANNOUNCED)

    def check_padding(self, given: Mapping[str, Any], real_BT: np.ndarray | None) -> None:
        """Do nothing: the corpus has no padding."""

    def positions_policy(self, n_left: int) -> dict[str, Any]:
        """Describe nothing: the run knows its corpus."""
        return {}

    def described_texts(self) -> dict[str, Any]:
        """Describe nothing: the run knows its corpus."""
        return {}

    def finish(self, output: Any) -> None:
        """Do nothing: no sequence lasts longer than its batch."""

    def flush(self) -> None:
        """Do nothing: no position waits."""

    def reset(self) -> None:
        """Do nothing: no sequence is remembered."""

    def take_ready(self) -> list[Dispatch]:
        """Give nothing: hooks add all positions of a batch."""
        return []

    def take_ended(self) -> list[int]:
        """Give nothing."""
        return []


def label_source(
    modules: tuple[nn.Module, nn.Module],
    labels: Sequence[str],
    plan: AnnouncedRows | None,
    *,
    count: str,
    label_rows: LabelRows,
    seed: int,
    has_backbone: bool,
    rules: PositionRules | None = None,
) -> AnnouncedBatches | InputTracker:
    """Choose the source of labels: the plan of a known corpus, or the tokens that other code feeds.

    Args:
        modules: the model, and the module whose calls are forward passes.
        labels, count, label_rows, seed, plan: as `SoftEntropyProbe` takes them.
        has_backbone: whether the hooked model has to be fed tokens.
        rules: the policies of positions, which a corpus has applied itself.

    Raises:
        InputError: they do not go together.
    """
    if plan is not None:
        if count == "unique_prefix":
            raise InputError("count: a planned run counts what it feeds, 'forwarded'")
        return AnnouncedBatches(plan, has_backbone=has_backbone)
    return track_inputs(
        modules, labels, count=count, label_rows=label_rows, seed=seed, has_backbone=has_backbone, rules=rules
    )
