"""SoftEntropyProbe: the public face of the package."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NoReturn, SupportsIndex

import torch
from torch import Tensor, nn

from softh_probe.accumulators.batch import BatchAccumulator
from softh_probe.accumulators.dispatch import Dispatch
from softh_probe.accumulators.influence_sums import InfluenceSums
from softh_probe.accumulators.label_tables import mass
from softh_probe.accumulators.model_sums import ModelSums
from softh_probe.accumulators.states import STATE_VERSION, require_settings, state_of_today
from softh_probe.accumulators.statistics import layer_statistics
from softh_probe.attached.pass_blocks import PassBlocks
from softh_probe.attached.pass_context import PassContext
from softh_probe.attached.position_rules import PositionRules
from softh_probe.choices import Choices
from softh_probe.errors import InputError, ProbeError
from softh_probe.estimators.recipes import DEFAULT_ANCHOR_SETS, Kind
from softh_probe.hooks.forward_hooks import ForwardHooks
from softh_probe.hooks.hook_points import find_hook_points, require_causal, select_layers
from softh_probe.hooks.label_source import LabelSource
from softh_probe.hooks.recorder import Recorder
from softh_probe.labels import DEFAULT_LABEL_ROWS, LabelRows, check_label_rows
from softh_probe.layer_places import FINAL_NORM, RESIDUAL, parse_sites, place_layers
from softh_probe.patching import lock_of
from softh_probe.planned.announced import AnnouncedRows, label_source
from softh_probe.result import ProbeResult

#: Ways to count: every real position each time it is fed, or each distinct prefix once.
COUNTS = ("forwarded", "unique_prefix")

DEFAULT_LABELS = ("input_unigram", "output_unigram")

#: A layer that has no usable hidden state at more than this share of positions is an error, not a warning.
MAX_INVALID_SHARE = 0.5


class SoftEntropyProbe(PassBlocks):
    """Measure every layer of a model while something runs it.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=16,
    ...     num_hidden_layers=2, num_attention_heads=2)).eval()
    >>> probe = SoftEntropyProbe(model, labels=["input_unigram"])
    >>> with probe:                                             # hooks exist only inside the block
    ...     _ = model(input_ids=torch.arange(20).view(2, 10))
    >>> probe.positions, probe.layers
    (20, ['embeddings', 'layer.1', 'layer.2', 'final_norm'])
    >>> probe.result().to_pandas().query("metric == 'entropy'").value.between(0, 1).all().item()
    True

    Counted are the real tokens of every forward pass in evaluation mode: where the attention mask is 1 (all, if
    there is none) and every requested n-gram label is defined. Forward passes in training mode don't count, nor do
    those of other models through the same modules: with other adapters (PEFT) than the block began with, or of a
    reference that shares the backbone; results say how many. Code compiled by torch.compile runs uncompiled inside
    the block: slower, but its layers are seen. Threads are measured one after the other. Copies have no hooks.

    Args:
        model: a transformers model, or any module if `modules` are named.
        labels: n-gram label sets (see `softh_probe.labels`); () counts every real token.
        n_anchors: anchors a set.
        anchor_sets: independent sets, all measured in the same pass; results carry the spread over them, which is
            unknown with one set.
        seed: of the first set; set s uses seed + s.
        calibration: "exact", "leading_order", or the temperature as a float.
        layers: rows to measure, by name, or all sites of a layer by index (0 the embeddings, −1 the last); None is all.
        count: "forwarded" counts every real position each time it is fed to the model; "unique_prefix" counts each
            distinct sequence of tokens up to a position once, in causal models.
        label_rows: rows of n-gram labels that a layer holds at most, or "all". Where more would be needed, a sample of
            labels is followed, frequent ones always; results carry the standard error of that (`sampling_sd`).
        anchors: "iid"; "published", the draw of the published code; or "antithetic": pairs w and −w, with which
            entropies vary less between draws (see `sample_anchors`).
        modules: name -> module whose outputs [B, T, D] are measured instead of transformer blocks; with outputs [B, D]
            a position is a row. (module, "key" or index) names one of several tensors, (module, None, "TBD") says what
            the dimensions are: B the batch, D or C the width, others positions ("BCT", "BCHW"), where not certain.
        sites: what is measured of each block, see `softh_probe.hooks.sites`: "residual" (what the block gives),
            "attention", "attention_heads", "router", "mlp". Rows are named layer.3, layer.3.mlp, layer.3.head.5.
        plan: the rows of the labels of a known or a streamed corpus; each `batch` is announced before its forward pass.
        positions: positions that count, of those above: "first:N" or "skip:N", the first N tokens of each text or all
            others; "last", the last token of texts that are fed whole; "generated", tokens that `generate` inside the
            block wrote and fed back; several with commas, all of which have to hold. `counted` takes a mask of others.
        skip_special_tokens: ids of tokens whose positions do not count, or a tokenizer, whose special tokens are meant.

    Raises:
        InputError: an argument is not what it has to be, or the model's blocks cannot be found.
    """

    #: Policies of positions by role that the code around the model tells of.
    _roles: tuple[str, ...] = ()

    def __init__(
        self,
        model: nn.Module,
        labels: Sequence[str] = DEFAULT_LABELS,
        n_anchors: int = 100,
        anchor_sets: int = DEFAULT_ANCHOR_SETS,
        seed: int = 0,
        calibration: Literal["exact", "leading_order"] | float = "exact",
        layers: Sequence[str | int] | None = None,
        count: Literal["forwarded", "unique_prefix"] = "forwarded",
        label_rows: LabelRows = DEFAULT_LABEL_ROWS,
        *,
        anchors: Kind = "iid",
        modules: Mapping[str, nn.Module | tuple[Any, ...]] | None = None,
        sites: Sequence[str] | str = (RESIDUAL,),
        plan: AnnouncedRows | None = None,
        positions: str | Sequence[str] = "all",
        skip_special_tokens: object = (),
    ) -> None:
        if count not in COUNTS:
            raise InputError(f"count: expected {' or '.join(map(repr, COUNTS))}, got {count!r}")
        if modules is not None and labels is DEFAULT_LABELS:
            labels = ()  # a module other than a language model need not have tokens
        points = find_hook_points(model, modules or {}, parse_sites(sites))
        if count == "unique_prefix":
            require_causal(points)
        rules = PositionRules(positions, skip_special_tokens, roles=self._roles, is_planned=plan is not None)
        label_rows = check_label_rows(label_rows)
        settings: dict[str, Any] = {"count": count, "label_rows": label_rows, "seed": seed}
        source: LabelSource = label_source(
            (model, points.entry), labels, plan, **settings, has_backbone=bool(points.blocks), rules=rules
        )
        source.lock = lock_of(points.entry)
        self._model, self._modules, self._plan = model, modules, plan
        self._source, self._points = source, points
        estimator: dict[str, Any] = {
            "n_anchors": n_anchors,
            "anchor_sets": anchor_sets,
            "seed": seed,
            "anchors": anchors,
            "calibration": calibration,
        }
        counted: dict[str, Any] = {"labels": [s.name for s in source.rows.label_sets], "layers": None, "count": count}
        counted |= {"label_rows": label_rows, **rules.settings}
        self._settings: dict[str, Any] = {**estimator, **counted, "sites": list(points.sites)}
        self._sums = ModelSums(source.rows.table_sizes, **estimator)
        self._told = Choices(warn=plan is None)  # a run reports them
        self._recorder = Recorder(source, self._sums, points)
        self._hooks = ForwardHooks(model, points, source, self._recorder)
        if layers is not None:
            chosen = select_layers(layers, points.measured_places(self._recorder.n_blocks))
            self._settings["layers"], self._recorder.layers = chosen, frozenset(chosen)

    # --- results ----------------------------------------------------------------------------------------------

    @property
    def model(self) -> nn.Module:
        """The model that is measured."""
        return self._model

    @property
    def positions(self) -> int:
        """Positions counted so far."""
        self._flush()
        return self._recorder.positions

    @property
    def layers(self) -> list[str]:
        """Names of the layers, in the order of calls."""
        self._flush()
        measured = self._sums.measured
        return [name for name in self._layer_names() if (name in measured if measured else self._recorder.wants(name))]

    @property
    def sums(self) -> Tensor:
        """Running sums of soft assignments [n_layers, anchor_sets, n_anchors], float64, on the CPU."""
        self._flush()
        shape = (self._settings["anchor_sets"], self._settings["n_anchors"])
        if not self._sums.measured:
            return torch.zeros(0, *shape, dtype=torch.float64)
        return torch.stack([mass(self._sums[name].total, *shape).cpu() for name in self.layers])

    def result(self) -> ProbeResult:
        """Compute entropies and information of every layer.

        Raises:
            ProbeError: nothing was counted, or a layer was not measured as it has to be.
        """
        self.check()
        if not self._recorder.positions:
            raise ProbeError(
                "no position was counted: inside the probe's block, run the model in evaluation mode on sequences "
                f"long enough for the label sets{self._recorder.left_out}{self._source.why_nothing}"
            )
        rows = self._source.rows.row_labels()
        n_blocks = self._recorder.n_blocks or None
        sites = place_layers(self.layers, {"n_blocks": n_blocks}).sites
        result = ProbeResult.from_layers(
            {name: layer_statistics(self._sums[name], rows) for name in self.layers},
            rows,
            settings=self._settings,
            anchors=self._sums.describe_anchors(dict(zip(self.layers, sites, strict=True))),
            n_blocks=n_blocks,
            positions=self._recorder.positions,
            tokens=self._tokens,
        )
        choices = Choices.from_json(self._recorder.choices_made())
        result.record_limits(choices, told=self._told)
        result.info.update({"choices": choices.to_json(), **self._source.positions_policy(self._recorder.positions)})
        return result

    def check(self) -> None:
        """Raise every problem so far, with the layers' names. Waits for the layers' devices.

        Raises:
            ProbeError: a layer was not measured as it has to be.
        """
        self._flush()
        self._recorder.raise_problems()
        positions = self._recorder.positions
        for name in self.layers if positions else []:
            invalid = positions - int(self._sums[name].total[-1])
            if invalid > MAX_INVALID_SHARE * positions:
                raise ProbeError(
                    f"{name}: hidden states are zero or not finite at {invalid} of {positions} positions and "
                    "so have no direction; try another dtype (float32, bfloat16) and check the weights"
                )

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError("copy a probe's state_dict(), for the load_state_dict of a new one, not the probe")

    # --- states -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Copy everything measured so far: plain values and tensors, for `load_state_dict` or to store."""
        head, layers = self.state_parts()
        return {**head, "layers": dict(layers)}

    def state_parts(self) -> tuple[dict[str, Any], Iterator[tuple[str, dict[str, Any]]]]:
        """Give a `state_dict` in parts: all but the layers, and each of those in turn, copied when it is due."""
        self._flush()
        head = {
            "version": STATE_VERSION,
            "settings": dict(self._settings),
            "positions": self._recorder.positions,
            "tokens": self._tokens,
            "n_blocks": self._recorder.n_blocks,
            "rows": self._source.rows.state_dict(),
            **self._recorder.notes(),
        }
        return head, self._sums.state(self.layers)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from another probe's `state_dict`, in place of everything measured here.

        Raises:
            InputError: the state was measured with other settings, or by a version whose states are not read.
        """
        self._flush()
        state = state_of_today(state)
        require_settings(self._settings, state["settings"], "state")
        expected = [name for name in self._layer_names() if self._recorder.wants(name)]
        if state["layers"] and not set(expected) <= {*state["layers"], FINAL_NORM}:
            raise InputError(f"state: expected layers {', '.join(expected)}, got {', '.join(state['layers'])}")
        self._recorder.positions = state["positions"]
        self._recorder.tokens = state["tokens"] + self._source.n_rejected
        self._recorder.n_blocks = state["n_blocks"]
        self._recorder.add_notes(state)
        live_rows = self._source.rows.load_state_dict(state["rows"])
        self._sums.load(state["layers"], None if live_rows is None else torch.from_numpy(live_rows))

    def merge(self, other: SoftEntropyProbe) -> None:
        """Add the measurement of another probe with the same settings on other text: a shard, a rank, a job.

        Raises:
            InputError: the other has other settings or other layers, or the run is planned.
        """
        if other is self:
            raise InputError("merge: a probe cannot be merged with itself")
        require_settings(self._settings, other._settings, "merge")
        self._flush()
        other._flush()
        if self._sums.measured and other._sums.measured and self.layers != other.layers:
            raise InputError(f"merge: expected layers {', '.join(self.layers)}, got {', '.join(other.layers)}")
        ours, theirs = self._recorder, other._recorder
        self._sums.merge(other._sums, self._source.rows.merge(other._source.rows))
        ours.positions += theirs.positions
        ours.tokens += other._tokens
        ours.n_blocks = max(ours.n_blocks, theirs.n_blocks)
        ours.problems += theirs.problems
        ours.add_notes(theirs.notes())

    def merge_shares(self, add_others: Callable[[Tensor], None]) -> None:
        """Turn the sums of one share of a plan into those of the whole, layer by layer; `retire` is next.

        Args:
            add_others: adds to a tensor in host memory, in place, the tensors of the probes of all other shares.
        """
        counts = torch.tensor([self._recorder.positions, self._recorder.tokens])
        add_others(counts)
        self._recorder.positions, self._recorder.tokens = counts.tolist()
        self._sums.merge_shares(self.layers, add_others)

    def retire(self) -> None:
        """Retire, after all batches of a plan, the labels that shares have in common, or that were held to the end."""
        self._sums.retire(self.layers, self._source.rows.row_labels())

    def new_like(self) -> SoftEntropyProbe:
        """Make a probe of the same model with the same settings that has measured nothing."""
        plan = None if self._plan is None else self._plan.fresh()
        return type(self)(self._model, modules=self._modules, plan=plan, **self._settings)

    # --- attached to a model ----------------------------------------------------------------------------------

    def __enter__(self) -> SoftEntropyProbe:
        self._hooks.attach()
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        self._hooks.detach()
        if exc_type is None:
            self._recorder.raise_problems()

    @property
    def context(self) -> PassContext:
        """Facts about the next forward passes, for code that runs the model.

        Raises:
            InputError: the run is planned.
        """
        return self._source.context

    # --- a planned run ----------------------------------------------------------------------------------------

    @contextmanager
    def batch(self, dispatch: Dispatch) -> Iterator[None]:
        """Announce the next forward pass of a planned run; raise at its end the problems that the hooks found."""
        with self._source.announce(dispatch):
            yield
        self._recorder.raise_problems()

    @contextmanager
    def second_pass(self) -> Iterator[InfluenceSums]:
        """Take sums of documents from the batches inside the block, whose positions are not counted again."""
        found = InfluenceSums([self._sums[layer] for layer in self.layers], self._source.rows.row_labels())
        self._recorder.make_accumulator = found.accumulator
        try:
            yield found
        finally:
            self._recorder.make_accumulator = BatchAccumulator

    def layer_devices(self) -> dict[str, torch.device]:
        """Find the device of each layer's sums: that of its block's weights, which must be loaded."""
        devices = self._points.layer_devices(self._recorder.n_blocks)
        return {layer: device for layer, device in devices.items() if self._recorder.wants(layer)}

    def layer_widths(self) -> dict[str, int | None]:
        """Find the width of each layer's hidden states, as far as it is known beforehand."""
        return self._points.layer_widths(self._recorder.n_blocks)

    def reserve(self, on_host: Collection[str] = ()) -> None:
        """Take the memory of the sums now, so that a lack of it shows before the model runs.

        Tables that are made between a model's short-lived tensors would also keep the memory of those tensors from
        being used again.

        Args:
            on_host: layers whose label tables go to host memory although the layer is on an accelerator.
        """
        self._sums.reserve(self.layer_devices(), self.layer_widths(), on_host)

    # --- parts ------------------------------------------------------------------------------------------------

    @property
    def _tokens(self) -> int:
        """Tokens counted so far, without drafts that were rejected."""
        return self._recorder.tokens - self._source.n_rejected

    def _layer_names(self) -> list[str]:
        return self._points.layer_names(self._recorder.n_blocks)

    def _flush(self) -> None:
        self._recorder.flush()
