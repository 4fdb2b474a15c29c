"""A measurement: settings and running sums, results, states and merging, of a probe and of a meter alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn, Self, SupportsIndex

import torch
from torch import Tensor, nn

from softh_probe.accumulators.centers import ENOUGH, describe_centers, given_centers
from softh_probe.accumulators.label_tables import mass
from softh_probe.accumulators.model_sums import ModelSums
from softh_probe.accumulators.row_labels import RowLabels
from softh_probe.accumulators.states import STATE_VERSION, require_settings, state_of_today
from softh_probe.accumulators.statistics import layer_statistics
from softh_probe.by_anchors import add_other
from softh_probe.choices import Choices
from softh_probe.errors import InputError, ProbeError, require_string
from softh_probe.estimators.given_anchors import given_anchors
from softh_probe.estimators.variants import Variant, alone_or_list, several, variants
from softh_probe.hooks.batch_recorder import BatchRecorder
from softh_probe.hooks.label_source import BatchSource
from softh_probe.layer_places import FINAL_NORM, is_centered, place_layers
from softh_probe.models.origin import Origin
from softh_probe.models.parallelism import find_parallelism
from softh_probe.result import ProbeResult

#: A layer that has no usable hidden state at more than this share of positions is an error, not a warning.
MAX_INVALID_SHARE = 0.5


class Measurement:
    """The sums of every layer, and what is made of them.

    Args:
        source: the labels of each batch.
        n_anchors, calibration, anchor_sets, seed, anchors: as `SoftEntropyProbe` takes them.
        counted: settings that say what is counted.
        center: as `SoftEntropyProbe` takes it.
        warn: whether choices are warned of; a run reports them.

    Attributes:
        origin: what results say of the model; None where states come from elsewhere.

    Raises:
        InputError: no anchors can be drawn with these settings.
    """

    origin: Origin | None = None
    _recorder: BatchRecorder
    #: What this is called in errors.
    _KIND = "probe"

    def __init__(
        self,
        source: BatchSource,
        *,
        n_anchors: Any,
        anchor_sets: int,
        seed: int,
        calibration: Any,
        anchors: object,
        counted: Mapping[str, Any],
        center: bool | Mapping[str, object] = False,
        warn: bool = True,
    ) -> None:
        self._source = source
        if (given := given_anchors(anchors)) is not None:
            n_anchors, anchor_sets = given.sizes(n_anchors, anchor_sets)
        self._anchors, self._variants = given or anchors, variants(n_anchors, calibration)
        estimator: dict[str, Any] = {
            "n_anchors": alone_or_list(several("n_anchors", n_anchors)),
            "anchor_sets": anchor_sets,
            "seed": seed,
            "anchors": given.setting if given else anchors,
            "calibration": alone_or_list(several("calibration", calibration)),
        }
        self._settings: dict[str, Any] = {**estimator, **counted, "center": bool(center)}
        centers = given_centers(center)
        self._center = centers or bool(center)
        self._sums = self._new_sums(anchor_sets, seed, centers)
        self._told = Choices(warn=warn)

    # --- results ----------------------------------------------------------------------------------------------

    @property
    def model(self) -> nn.Module | None:
        """The model that is measured; None where states come from elsewhere."""
        return None

    @property
    def positions(self) -> int:
        """Positions counted so far."""
        self._flush()
        return self._recorder.positions

    @property
    def layers(self) -> list[str]:
        """Names of the layers, in the order of calls."""
        return self._measured()

    @property
    def sums(self) -> Tensor:
        """Running sums of soft assignments [n_layers, anchor_sets, n_anchors], float64, on the CPU."""
        self._flush()
        shape = (self._settings["anchor_sets"], self._variants[0].n_anchors)
        if not self._sums.measured:
            return torch.zeros(0, *shape, dtype=torch.float64)
        return torch.stack([mass(self._sums[name].total, *shape).cpu() for name in self.layers])

    @property
    def centers(self) -> dict[str, Tensor]:
        """The means that rows of centered states subtract [D], float32, on the CPU, by name of the layer."""
        return self._sums.centers(self.layers)

    def result(self, name: str | None = None, notes: str | None = None) -> ProbeResult:
        """Compute entropies and information of every layer.

        The result knows its model by a fingerprint of the weights, which takes seconds where there are billions.

        Args:
            name: what was measured, in a few words; pages are titled by it.
            notes: whatever a reader of the result should know.

        Raises:
            ProbeError: nothing was counted, or a layer was not measured as it has to be.
            InputError: the name or the notes are no string.
        """
        for argument, words in {"name": name, "notes": notes}.items():
            if words is not None:
                require_string(argument, words)
        self.check()
        if not self._recorder.positions:
            raise ProbeError(f"no position was counted: {self._how_to_count()}{self._source.why_nothing}")
        rows = self._source.rows.row_labels()
        first, *others = self._variants
        result = self._result_of(self._sums, first, rows)
        for variant, sums in zip(others, self._sums.others, strict=True):
            add_other(result, self._result_of(sums, variant, rows))
        choices = Choices.from_json(self._recorder.choices_made())
        if centers := self.centers:
            result.info["center"] = self._describe_centers(centers, choices)
        result.record_limits(choices, told=self._told)
        result.info.update({"choices": choices.to_json(), **self._source.positions_policy(self._recorder.positions)})
        result.info.update(self._described(name, notes))
        return result

    def check(self) -> None:
        """Raise every problem so far, with the layers' names. Waits for the layers' devices.

        Raises:
            ProbeError: a layer was not measured as it has to be.
        """
        self._flush()
        self._recorder.raise_problems()
        if self.model is not None and (refusal := find_parallelism(self.model).refusal):
            raise ProbeError(refusal)
        positions = self._recorder.positions
        for name in self.layers if positions else []:
            invalid = positions - int(self._sums[name].total[-1])
            if invalid > MAX_INVALID_SHARE * positions:
                remedy = "try another dtype (float32, bfloat16) and check the weights"
                if is_centered(name):
                    remedy = "they are equal to the mean, which may be of too few; give center={layer: vector}"
                raise ProbeError(
                    f"{name}: hidden states are zero or not finite at {invalid} of {positions} positions and "
                    f"so have no direction; {remedy}"
                )

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(
            f"copy a {self._KIND}'s state_dict(), for the load_state_dict of a new one, not the {self._KIND}"
        )

    # --- states -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Copy everything measured so far: plain values and tensors, for `load_state_dict` or to store."""
        head, layers = self.state_parts()
        return {**head, "layers": dict(layers)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from another one's `state_dict`, in place of everything measured here.

        Raises:
            InputError: the state was measured with other settings, or by a version whose states are not read.
        """
        self._flush()
        state = state_of_today(state)
        require_settings(self._settings, state["settings"], "state")
        self._require_layers(state["layers"])
        self._recorder.positions = state["positions"]
        self._recorder.tokens = state["tokens"] + self._source.n_rejected
        self._recorder.n_blocks = state["n_blocks"]
        self._recorder.add_notes(state)
        live_rows = self._source.rows.load_state_dict(state["rows"])
        self._sums.load(state["layers"], None if live_rows is None else torch.from_numpy(live_rows))

    def merge(self, other: Self) -> None:
        """Add the measurement of another one with the same settings on other text: a shard, a rank, a job.

        Raises:
            InputError: the other has other settings or other layers, or the run is planned.
        """
        if other is self:
            raise InputError(f"merge: a {self._KIND} cannot be merged with itself")
        require_settings(self._settings, other._settings, "merge")
        self._flush()
        other._flush()
        if self._sums.measured and other._sums.measured and self.layers != other.layers:
            raise InputError(f"merge: expected layers {', '.join(self.layers)}, got {', '.join(other.layers)}")
        ours, theirs = self._recorder, other._recorder
        self._sums.require_same_centers(other._sums)
        self._sums.merge(other._sums, self._source.rows.merge(other._source.rows))
        ours.positions += theirs.positions
        ours.tokens += other._tokens
        ours.n_blocks = max(ours.n_blocks, theirs.n_blocks)
        ours.problems += theirs.problems
        ours.add_notes(theirs.notes())

    def state_parts(self) -> tuple[dict[str, Any], Iterator[tuple[str, dict[str, Any]]]]:
        """Give a `state_dict` in parts: all but the layers, and each of those in turn, copied when it is due."""
        self._recorder.flush()
        head = {
            "version": STATE_VERSION,
            "settings": dict(self._settings),
            "positions": self._recorder.positions,
            "tokens": self._tokens,
            "n_blocks": self._recorder.n_blocks,
            "rows": self._source.rows.state_dict(),
            **self._recorder.notes(),
        }
        return head, self._sums.state(self._measured())

    def new_like(self) -> Self:
        """Make one with the same settings that has measured nothing."""
        raise NotImplementedError

    # --- parts ------------------------------------------------------------------------------------------------

    def _new_sums(self, anchor_sets: int, seed: int, centers: Mapping[str, Tensor]) -> ModelSums:
        """Make the sums of every layer for each number of anchors and calibration."""
        settings: dict[str, Any] = {"anchor_sets": anchor_sets, "seed": seed, "anchors": self._anchors}
        settings["centers"] = centers
        sizes = self._source.rows.table_sizes
        first, *rest = (variant._asdict() for variant in self._variants)
        others = [ModelSums(sizes, **one, **settings, alone=False) for one in rest]
        return ModelSums(sizes, **first, **settings, others=others)

    def _describe_centers(self, centers: Mapping[str, Tensor], choices: Choices) -> dict[str, Any]:
        n = None if isinstance(self._center, Mapping) else self._recorder.centered_on
        if n is not None:
            reason = "fewer give a rougher mean; center={layer: vector} takes others"
            choices.add("center", f"the mean of the first {n:,} positions", reason, certain=n >= ENOUGH)
        return describe_centers(centers, n)

    def _result_of(self, sums: ModelSums, variant: Variant, rows: RowLabels) -> ProbeResult:
        n_blocks = self._recorder.n_blocks or None
        sites = place_layers(self.layers, {"n_blocks": n_blocks}).sites
        return ProbeResult.from_layers(
            {name: layer_statistics(sums[name], rows) for name in self.layers},
            rows,
            settings={**self._settings, **variant._asdict()},
            anchors=sums.describe_anchors(dict(zip(self.layers, sites, strict=True))),
            n_blocks=n_blocks,
            positions=self._recorder.positions,
            tokens=self._tokens,
        )

    def _flush(self) -> None:
        self._recorder.flush()

    def _how_to_count(self) -> str:
        """Say what to do where no position was counted."""
        raise NotImplementedError

    def _described(self, name: str | None, notes: str | None) -> dict[str, Any]:
        """Give entries of a result's `info` (JSON values): its name, and what was measured."""
        raise NotImplementedError

    def _layer_names(self) -> list[str]:
        """Name all layers, as far as they are known, in the order of calls."""
        raise NotImplementedError

    def _require_layers(self, found: Mapping[str, Any]) -> None:
        """Refuse a state without some layers; a model may have no final norm.

        Raises:
            InputError: it lacks some.
        """
        expected = [name for name in self._layer_names() if self._recorder.wants(name)]
        if found and not set(expected) <= {*found, FINAL_NORM}:
            raise InputError(f"state: expected layers {', '.join(expected)}, got {', '.join(found)}")

    @property
    def _tokens(self) -> int:
        """Tokens counted so far, without drafts that were rejected."""
        return self._recorder.tokens - self._source.n_rejected

    def _measured(self) -> list[str]:
        """Name the layers that have sums, or will have them, in the order of calls."""
        self._recorder.flush()
        measured = self._sums.measured
        return [name for name in self._layer_names() if (name in measured if measured else self._recorder.wants(name))]
