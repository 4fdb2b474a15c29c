"""SoftEntropyProbe: the public face of the package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from torch import nn

from softh_probe.accumulators.centers import check_centers, given_centers
from softh_probe.attached.pass_blocks import PassBlocks
from softh_probe.attached.pass_context import PassContext
from softh_probe.attached.position_rules import PositionRules
from softh_probe.errors import InputError, abbreviated, one_line
from softh_probe.estimators.recipes import DEFAULT_ANCHOR_SETS, Calibration
from softh_probe.hooks.forward_hooks import ForwardHooks
from softh_probe.hooks.hook_points import find_hook_points, require_causal, select_layers
from softh_probe.hooks.label_source import LabelSource
from softh_probe.hooks.recorder import Recorder
from softh_probe.labels import DEFAULT_LABEL_ROWS, LabelRows, check_label_rows
from softh_probe.layer_places import RESIDUAL, parse_sites, require_residual
from softh_probe.measurement import Measurement
from softh_probe.models.origin import Origin
from softh_probe.patching import lock_of
from softh_probe.planned.announced import AnnouncedRows, label_source
from softh_probe.run_steps import RunSteps

#: Ways to count: every real position each time it is fed, or each distinct prefix once.
COUNTS = ("forwarded", "unique_prefix")

DEFAULT_LABELS = ("input_unigram", "output_unigram")


class SoftEntropyProbe(Measurement, PassBlocks, RunSteps):
    """Measure every layer of a model while something runs it.

    - `with probe:` is the block inside which forward passes are measured; the model runs there in evaluation mode.
    - `labelled(language=["de", "en"])`, inside it: labels of your own, beside the n-grams of `labels`.
    - `masked(mask)`, `counted(mask)`, `paused()`, inside it: which tokens are real, which of these count (those of the
      assistant alone, say), and which forward passes do not.
    - `result()`: entropies and information, as a `ProbeResult`: tables, figures, files. `positions`, `layers` and
      `sums` are what was counted so far.
    - `merge(other)`, `state_dict()`, `load_state_dict(state)`: other parts of the text, and a measurement to continue.

    >>> import torch
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
        center: whether to measure also, as rows layer.3.centered of the site "centered", states minus a mean: that of
            the positions of the first forward pass that counts. Or the means to subtract, a vector for each layer by
            its name, such as another probe's `centers`: parts of one measurement need the same ones.
        skip_special_tokens: ids of tokens whose positions do not count, or a tokenizer, whose special tokens are meant.

    Attributes:
        origin: what results say of the model, where it is attached.

    Raises:
        InputError: an argument is not what it has to be, or the model's blocks cannot be found.
    """

    #: Policies of positions by role that the code around the model tells of.
    _roles: tuple[str, ...] = ()

    origin: Origin
    _source: LabelSource
    _recorder: Recorder

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
        center: bool | Mapping[str, object] = False,
        skip_special_tokens: object = (),
    ) -> None:
        if count not in COUNTS:
            raise InputError(f"count: expected {' or '.join(map(repr, COUNTS))}, got {count!r}")
        if modules is not None and labels is DEFAULT_LABELS:
            labels = ()  # a module other than a language model need not have tokens
        centers, asked = given_centers(center), parse_sites(sites)
        if center:
            require_residual(asked)
        points = find_hook_points(model, modules or {}, asked, centers=bool(center))
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
        self._points = points
        self.origin = Origin(points.entry, skip_special_tokens)
        counted: dict[str, Any] = {"labels": [s.name for s in source.rows.label_sets], "layers": None, "count": count}
        counted |= {"label_rows": label_rows, **rules.settings, "sites": list(points.sites)}
        super().__init__(
            source,
            n_anchors=n_anchors,
            anchor_sets=anchor_sets,
            seed=seed,
            calibration=calibration,
            anchors=anchors,
            counted=counted,
            center=center,
            warn=plan is None,
        )
        self._recorder = Recorder(source, self._sums, points)
        self._hooks = ForwardHooks(model, points, source, self._recorder)
        if layers is not None:
            chosen = select_layers(layers, points.measured_places(self._recorder.n_blocks))
            self._settings["layers"], self._recorder.layers = chosen, frozenset(chosen)
        if center:
            check_centers(centers, self._layer_names(), list(filter(self._recorder.wants, self._layer_names())))

    def __repr__(self) -> str:
        sets, n_sets = abbreviated(self._source.rows.set_names, 8) or "none", self._settings["anchor_sets"]
        return one_line(
            f"<{type(self).__name__} of {type(self._model).__name__}: label sets {sets}; "
            f"{n_sets} x {self._variants[0].n_anchors} anchors; {self._recorder.positions:,} positions counted>"
        )

    # --- its model --------------------------------------------------------------------------------------------

    @property
    def model(self) -> nn.Module:
        """The model that is measured."""
        return self._model

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

    def new_like(self) -> Self:
        """Make a probe of the same model with the same settings that has measured nothing."""
        plan = None if self._plan is None else self._plan.fresh()
        settings = {**self._settings, "anchors": self._anchors, "center": self._center}
        made = type(self)(self._model, modules=self._modules, plan=plan, **settings)
        made.origin = self.origin.fresh()
        return made

    # --- parts ------------------------------------------------------------------------------------------------

    def _how_to_count(self) -> str:
        left_out = self._recorder.left_out
        how = "run the model in evaluation mode on sequences long enough for the label sets"
        if left_out.were_in_training:
            how = "the model was in training mode, and evaluations alone are measured; call model.eval() first"
        return f"inside the probe's block, {how}{left_out}"

    def _described(self, name: str | None, notes: str | None) -> dict[str, Any]:
        if self._plan is not None:  # a run knows more of its model and its corpus
            return {}
        return self.origin.describe(self._source.described_texts(), name=name, notes=notes)

    def _layer_names(self) -> list[str]:
        return self._points.layer_names(self._recorder.n_blocks)
