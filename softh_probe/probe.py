"""SoftEntropyProbe: the public face of the package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NoReturn, SupportsIndex

import torch
from torch import Tensor, nn

from softh_probe.accumulators.label_tables import mass
from softh_probe.accumulators.model_sums import ModelSums
from softh_probe.accumulators.states import require_settings, state_of_today
from softh_probe.accumulators.statistics import layer_statistics
from softh_probe.attached.pass_blocks import PassBlocks
from softh_probe.attached.pass_context import PassContext
from softh_probe.attached.position_rules import PositionRules
from softh_probe.by_anchors import add_other
from softh_probe.choices import Choices
from softh_probe.errors import InputError, ProbeError, abbreviated, one_line, require_string
from softh_probe.estimators.given_anchors import given_anchors
from softh_probe.estimators.recipes import DEFAULT_ANCHOR_SETS, Calibration
from softh_probe.estimators.variants import Variant, alone_or_list, several, variants
from softh_probe.hooks.forward_hooks import ForwardHooks
from softh_probe.hooks.hook_points import find_hook_points, require_causal, select_layers
from softh_probe.hooks.label_source import LabelSource
from softh_probe.hooks.recorder import Recorder
from softh_probe.labels import DEFAULT_LABEL_ROWS, LabelRows, check_label_rows
from softh_probe.layer_places import FINAL_NORM, RESIDUAL, parse_sites, place_layers
from softh_probe.models.origin import Origin
from softh_probe.models.parallelism import find_parallelism
from softh_probe.patching import lock_of
from softh_probe.planned.announced import AnnouncedRows, label_source
from softh_probe.result import ProbeResult
from softh_probe.run_steps import RunSteps

#: Ways to count: every real position each time it is fed, or each distinct prefix once.
COUNTS = ("forwarded", "unique_prefix")

DEFAULT_LABELS = ("input_unigram", "output_unigram")

#: A layer that has no usable hidden state at more than this share of positions is an error, not a warning.
MAX_INVALID_SHARE = 0.5


class SoftEntropyProbe(PassBlocks, RunSteps):
    """Measure every layer of a model while something runs it.

    - `with probe:` is the block inside which forward passes are measured; the model runs there in evaluation mode.
    - `labelled(language=["de", "en"])`, inside it: labels of your own, beside the n-grams of `labels`.
    - `masked(mask)`, `counted(mask)`, `paused()`, inside it: which tokens are real, which of these count (those of the
      assistant alone, say), and which forward passes do not.
    - `result()`: entropies and information, as a `ProbeResult`: tables, figures, files. `positions`, `layers` and
      `sums` are what was counted so far.
    - `merge(other)`, `state_dict()`, `load_state_dict(state)`: other parts of the text, and a measurement to continue.

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
    States that are zero or not finite have no direction and are left out, which results say. Soft assignments are
    float32; totals and the rows of labels of your own are float64 sums of them, rows of n-grams float32 sums.

    Args:
        model: a transformers model, or any module if `modules` are named.
        labels: n-gram label sets (see `softh_probe.labels`); () counts every real token.
        n_anchors: anchors a set. Several numbers, [100, 50, 200], are measured in the same pass, each with anchors and
            a temperature of its own: values of the first are the result, `result.others` has those of the others.
        anchor_sets: independent sets, all measured in the same pass; results carry the spread over them, which is
            unknown with one set.
        seed: of the first set; set s uses seed + s.
        calibration: "exact", "leading_order", "amos", or the temperature as a float; or several of these.
        layers: rows to measure, by name, or all sites of a layer by index (0 the embeddings, −1 the last); None is all.
        count: "forwarded" counts every real position each time it is fed to the model; "unique_prefix" counts each
            distinct sequence of tokens up to a position once, in causal models.
        label_rows: rows of n-gram labels that a layer holds at most, or "all". Where more would be needed, a sample of
            labels is followed, frequent ones always; results carry the standard error of that (`sampling_sd`).
        anchors: "iid"; "published", the draw of the published code; or "antithetic": pairs w and −w, with which
            entropies vary less between draws (see `sample_anchors`). Or your own: a tensor or array [M, D] or [S, M, D]
            of unit rows, a list of one for each width, or a file of these (.npy, .npz, .safetensors); they decide
            n_anchors and anchor_sets.
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

    Attributes:
        origin: what results say of the model, where it is attached.

    Raises:
        InputError: an argument is not what it has to be, or the model's blocks cannot be found.
    """

    #: Policies of positions by role that the code around the model tells of.
    _roles: tuple[str, ...] = ()

    def __init__(
        self,
        model: nn.Module,
        labels: Sequence[str] = DEFAULT_LABELS,
        n_anchors: int | Sequence[int] = 100,
        anchor_sets: int = DEFAULT_ANCHOR_SETS,
        seed: int = 0,
        calibration: Calibration | Sequence[Calibration] = "exact",
        layers: Sequence[str | int] | None = None,
        count: Literal["forwarded", "unique_prefix"] = "forwarded",
        label_rows: LabelRows = DEFAULT_LABEL_ROWS,
        *,
        anchors: object = "iid",
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
        self.origin = Origin(points.entry, skip_special_tokens)
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
        counted: dict[str, Any] = {"labels": [s.name for s in source.rows.label_sets], "layers": None, "count": count}
        counted |= {"label_rows": label_rows, **rules.settings}
        self._settings: dict[str, Any] = {**estimator, **counted, "sites": list(points.sites)}
        self._sums = self._new_sums(anchor_sets, seed)
        self._told = Choices(warn=plan is None)  # a run reports them
        self._recorder = Recorder(source, self._sums, points)
        self._hooks = ForwardHooks(model, points, source, self._recorder)
        if layers is not None:
            chosen = select_layers(layers, points.measured_places(self._recorder.n_blocks))
            self._settings["layers"], self._recorder.layers = chosen, frozenset(chosen)

    def __repr__(self) -> str:
        sets, n_sets = abbreviated(self._source.rows.set_names, 8) or "none", self._settings["anchor_sets"]
        return one_line(
            f"<{type(self).__name__} of {type(self._model).__name__}: label sets {sets}; "
            f"{n_sets} x {self._variants[0].n_anchors} anchors; {self._recorder.positions:,} positions counted>"
        )

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
        return self._measured()

    @property
    def sums(self) -> Tensor:
        """Running sums of soft assignments [n_layers, anchor_sets, n_anchors], float64, on the CPU."""
        self._flush()
        shape = (self._settings["anchor_sets"], self._variants[0].n_anchors)
        if not self._sums.measured:
            return torch.zeros(0, *shape, dtype=torch.float64)
        return torch.stack([mass(self._sums[name].total, *shape).cpu() for name in self.layers])

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
            left_out = self._recorder.left_out
            how = "run the model in evaluation mode on sequences long enough for the label sets"
            if left_out.were_in_training:
                how = "the model was in training mode, and evaluations alone are measured; call model.eval() first"
            raise ProbeError(
                f"no position was counted: inside the probe's block, {how}{left_out}{self._source.why_nothing}"
            )
        first, *others = self._variants
        result = self._result_of(self._sums, first)
        for variant, sums in zip(others, self._sums.others, strict=True):
            add_other(result, self._result_of(sums, variant))
        choices = Choices.from_json(self._recorder.choices_made())
        result.record_limits(choices, told=self._told)
        result.info.update({"choices": choices.to_json(), **self._source.positions_policy(self._recorder.positions)})
        if self._plan is None:  # a run knows more of its model and its corpus
            result.info.update(self.origin.describe(self._source.described_texts(), name=name, notes=notes))
        return result

    def check(self) -> None:
        """Raise every problem so far, with the layers' names. Waits for the layers' devices.

        Raises:
            ProbeError: a layer was not measured as it has to be.
        """
        self._flush()
        self._recorder.raise_problems()
        if refusal := find_parallelism(self._model).refusal:
            raise ProbeError(refusal)
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

    # --- attached to a model ----------------------------------------------------------------------------------

    def __enter__(self) -> SoftEntropyProbe:
        self._hooks.attach()
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        self._hooks.detach()
        if self._plan is None:
            self.origin.weights.note_use()
        if exc_type is None:
            self._recorder.raise_problems()

    @property
    def context(self) -> PassContext:
        """Facts about the next forward passes, for code that runs the model.

        Raises:
            InputError: the run is planned.
        """
        return self._source.context

    # --- parts ------------------------------------------------------------------------------------------------

    def _new_sums(self, anchor_sets: int, seed: int) -> ModelSums:
        """Make the sums of every layer for each number of anchors and calibration."""
        settings: dict[str, Any] = {"anchor_sets": anchor_sets, "seed": seed, "anchors": self._anchors}
        sizes = self._source.rows.table_sizes
        first, *rest = (variant._asdict() for variant in self._variants)
        others = [ModelSums(sizes, **one, **settings, with_directions=False) for one in rest]
        return ModelSums(sizes, **first, **settings, others=others)

    def _result_of(self, sums: ModelSums, variant: Variant) -> ProbeResult:
        rows, n_blocks = self._source.rows.row_labels(), self._recorder.n_blocks or None
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
