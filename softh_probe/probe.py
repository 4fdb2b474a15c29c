"""SoftEntropyProbe: hooks in, sums out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from softh_probe.accumulators.batch import BatchAccumulator
from softh_probe.accumulators.dispatch import Dispatch
from softh_probe.accumulators.label_tables import HostWorker, mass
from softh_probe.accumulators.layer_sums import LayerSums
from softh_probe.accumulators.statistics import layer_statistics
from softh_probe.attached.adapters import ADAPTERS
from softh_probe.attached.inputs import TokenBatch, arguments, require_tokens
from softh_probe.attached.online_rows import OnlineRows
from softh_probe.attached.sequences import NOT_LABELS
from softh_probe.attached.tracker import DecodeStep, InputTracker
from softh_probe.errors import InputError, ProbeError
from softh_probe.estimators.anchors import Anchors
from softh_probe.hooks.hook_points import (
    EMBEDDINGS,
    FINAL_NORM,
    HookPoints,
    ResidualChain,
    block_name,
    count_calls,
    find_hook_points,
    hidden_state,
    is_time_first,
    require_causal,
    select_layers,
)
from softh_probe.labels import parse_label_sets
from softh_probe.patching import replaced, uncompiled
from softh_probe.result import ProbeResult

if TYPE_CHECKING:
    from softh_probe.planned.plan import Plan  # whose corpus an attached probe does without

#: What counts: every real position each time it is fed, or each distinct prefix once.
COUNTS = ("forwarded", "unique_prefix")

DEFAULT_LABELS = ("input_unigram", "output_unigram")

#: A layer that has no usable hidden state at more than this share of positions is an error, not a warning.
MAX_INVALID_SHARE = 0.5

STATE_VERSION = 4


class SoftEntropyProbe:
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
    there is none) and every requested n-gram label is defined. Forward passes in training mode don't count. Code
    compiled by torch.compile runs uncompiled inside the block: slower, but its layers are seen.

    Args:
        model: a transformers model, or any module if `modules` are named.
        labels: n-gram label sets (see `softh_probe.labels`); () counts every real token.
        n_anchors: anchors a set.
        anchor_sets: independent sets, all measured in the same pass; results carry the spread over them.
        seed: of the first set; set s uses seed + s.
        calibration: "exact", "leading_order", or the temperature as a float.
        layers: rows to measure, by name or index (0 the embeddings, −1 the last); None measures all.
        count: "forwarded" counts every real position each time it is fed to the model; "unique_prefix" counts each
            distinct sequence of tokens up to a position once, in causal models.
        anchors: "iid", or "antithetic": pairs w and −w, with which entropies vary less between draws.
        modules: name -> module whose outputs are measured instead of transformer blocks; with outputs [B, D] a
            position is a row.
        plan: where the labels of a known corpus live; whoever runs the model announces each `batch`.

    Raises:
        InputError: an argument is not what it has to be, or the model's blocks cannot be told.
    """

    def __init__(
        self,
        model: nn.Module,
        labels: Sequence[str] = DEFAULT_LABELS,
        n_anchors: int = 100,
        anchor_sets: int = 1,
        seed: int = 0,
        calibration: str | float = "exact",
        layers: Sequence[str | int] | None = None,
        count: str = "forwarded",
        *,
        anchors: str = "iid",
        modules: Mapping[str, nn.Module] | None = None,
        plan: Plan | None = None,
    ) -> None:
        if count not in COUNTS:
            raise InputError(f"count: expected {' or '.join(map(repr, COUNTS))}, got {count!r}")
        if count == "unique_prefix" and plan:
            raise InputError("count: a planned run counts what it feeds, 'forwarded'")
        if modules is not None and labels is DEFAULT_LABELS:
            labels = ()  # any torch module need not have tokens
        label_sets = plan.label_sets if plan else parse_label_sets(labels)
        columns = [s.name for s in label_sets if s.direction == "column"]
        if columns and not plan:
            raise InputError(f"labels: {columns[0]} needs a data set; for labels of your own use probe.labelled()")
        self._settings: dict[str, Any] = {
            "n_anchors": n_anchors,
            "anchor_sets": anchor_sets,
            "seed": seed,
            "anchors": anchors,
            "calibration": calibration,
            "labels": [s.name for s in label_sets],
            "layers": None,
            "count": count,
        }
        self._plan = plan
        once = count == "unique_prefix"
        self._rows: Plan | OnlineRows = plan or OnlineRows(label_sets, unique_prefixes=once)
        self._modules = dict(modules or {})
        self._found: HookPoints | None = None if self._modules else find_hook_points(model)
        if once:
            require_causal(self._found)
        self._model = model
        self._entry = self._found.entry if self._found else model
        self._n_blocks = count_calls(self._found) if self._found else 0
        if layers is not None:
            self._settings["layers"] = select_layers(layers, self._layer_names())
        self._anchors: dict[int, Anchors] = {}
        self._points: dict[tuple[int, torch.device], Tensor] = {}
        self._anchors_of(2)  # settings that no anchors can be drawn with fail here, not in a hook
        self._anchors.clear()
        self._sums: dict[str, LayerSums] = {}
        self._on_host: frozenset[str] = frozenset()
        self._host = HostWorker()
        self._measured: set[str] = set()
        self._handles: list[RemovableHandle] = []
        self._adapters = ExitStack()
        self._problems: list[str] = []
        self._positions = self._tokens = self._training_passes = 0
        self._tracker: InputTracker | None = None
        if isinstance(self._rows, OnlineRows):
            self._tracker = InputTracker(self._rows, self._settle, self._add_steps, has_ngrams=bool(label_sets))
            config = getattr(model, "config", None) or getattr(self._entry, "config", None)
            pad_id = getattr(config, "pad_token_id", None)
            self._tracker.pad_id = pad_id if isinstance(pad_id, int) else None
        self._steps: dict[str, list[Tensor]] = {}
        self._announced: Dispatch | None = None
        self._outer_arguments: dict[str, Any] = {}
        self._pass: _ForwardPass | None = None
        self._layout_known = False

    # --- what was measured ---------------------------------------------------------------------------------

    @property
    def positions(self) -> int:
        """Positions counted so far."""
        self._flush()
        return self._positions

    @property
    def layers(self) -> list[str]:
        """Names of the rows, in the order of calls."""
        self._flush()
        measured = self._measured
        return [name for name in self._layer_names() if (name in measured if measured else self._wants(name))]

    @property
    def sums(self) -> Tensor:
        """Running sums of soft assignments [n_rows, anchor_sets, n_anchors], float64, on the CPU."""
        self._flush()
        if not self._measured:
            return torch.zeros(0, self._settings["anchor_sets"], self._settings["n_anchors"], dtype=torch.float64)
        shape = (self._settings["anchor_sets"], self._settings["n_anchors"])
        return torch.stack([mass(self._sums[name].total, *shape).cpu() for name in self.layers])

    def result(self) -> ProbeResult:
        """Entropies and information of every row.

        Raises:
            ProbeError: nothing was counted, or a layer was not measured as it has to be.
        """
        self.check()
        if not self._positions:
            passes = self._training_passes
            trained = f" ({passes} in training mode did not count)" if passes else ""
            raise ProbeError(
                "no position was counted: inside the probe's block, run the model in evaluation mode on sequences "
                f"long enough for the label sets{trained}"
            )
        return ProbeResult.from_layers(
            {name: layer_statistics(self._sums[name], self._rows) for name in self.layers},
            self._rows,
            settings=self._settings,
            anchors=[self._anchors[dim].describe() for dim in sorted(self._anchors)],
            positions=self._positions,
            tokens=self._tokens - (self._tracker.rejected if self._tracker else 0),
        )

    def check(self) -> None:
        """Raise what went wrong so far, naming the layers. Waits for the layers' devices."""
        self._flush()
        self._raise_problems()
        for name in self.layers if self._positions else []:
            invalid = self._positions - int(self._sums[name].total[-1])
            if invalid > MAX_INVALID_SHARE * self._positions:
                raise ProbeError(
                    f"{name}: hidden states are zero or not finite at {invalid} of {self._positions} positions and "
                    "so have no direction; try another dtype (float32, bfloat16) and check the weights"
                )

    def state_dict(self) -> dict[str, Any]:
        """Everything measured so far: plain values and tensors, for `load_state_dict` or to store."""
        head, layers = self.state_parts()
        return {**head, "layers": dict(layers)}

    def state_parts(self) -> tuple[dict[str, Any], Iterator[tuple[str, dict[str, Any]]]]:
        """What `state_dict` holds, in parts: all but the layers, and each of those in turn, copied when it is due."""
        self._flush()
        head = {
            "version": STATE_VERSION,
            "settings": dict(self._settings),
            "positions": self._positions,
            "tokens": self._tokens - (self._tracker.rejected if self._tracker else 0),
            "n_blocks": self._n_blocks,
            "rows": self._rows.state_dict() if isinstance(self._rows, OnlineRows) else {},
        }
        measured = {name: self._sums[name] for name in self.layers if name in self._measured}
        return head, ((name, {"dim": sums.dim, **sums.state_dict()}) for name, sums in measured.items())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from another probe's `state_dict`, in place of what was measured here.

        Raises:
            InputError: the state was measured with other settings.
        """
        self._flush()
        if state.get("version") != STATE_VERSION:
            raise InputError(
                f"state: expected version {STATE_VERSION}, got {state.get('version')!r}; states are not converted: go "
                "on with the version of softh_probe that made it, or measure again"
            )
        self._require_settings(state["settings"], "state")
        expected = [name for name in self._layer_names() if self._wants(name)]
        if state["layers"] and not set(expected) <= {*state["layers"], FINAL_NORM}:
            raise InputError(f"state: expected rows {', '.join(expected)}, got {', '.join(state['layers'])}")
        self._positions, self._tokens = state["positions"], state["tokens"]
        if self._tracker is not None:
            self._tracker.rejected = 0
        self._n_blocks = state["n_blocks"]
        if isinstance(self._rows, OnlineRows):
            self._rows.load_state_dict(state["rows"])
        reserved, self._sums = self._sums, {}
        for name, layer in state["layers"].items():
            sums = reserved.pop(name, None)
            if self._plan is None or sums is None or sums.dim != layer["dim"]:
                sums = self._new_sums(name, layer["dim"], torch.device("cpu"))
            sums.load_state_dict(layer)
            self._sums[name] = sums
        self._measured = set(self._sums)

    def merge(self, other: SoftEntropyProbe) -> None:
        """Add what another probe measured with the same settings on other text: a shard, a rank, a job.

        Raises:
            InputError: the other measured with other settings or other layers.
        """
        if other is self:
            raise InputError("merge: a probe cannot be merged with itself")
        if self._plan or other._plan:
            raise InputError("merge: parts of a planned run cannot be merged; measure them without a plan")
        self._require_settings(other._settings, "merge")
        self._flush()
        other._flush()
        if self._measured and other._measured and self.layers != other.layers:
            raise InputError(f"merge: expected rows {', '.join(self.layers)}, got {', '.join(other.layers)}")
        assert isinstance(self._rows, OnlineRows)
        assert isinstance(other._rows, OnlineRows)
        rows = self._rows.merge(other._rows)
        for name, theirs in other._sums.items():
            if name not in self._sums:
                self._sums[name] = self._new_sums(name, theirs.dim, theirs.total.device)
            self._sums[name].merge(theirs, rows)
        self._positions += other._positions
        self._tokens += other._tokens - (other._tracker.rejected if other._tracker else 0)
        self._n_blocks = max(self._n_blocks, other._n_blocks)
        self._measured |= other._measured
        self._problems += other._problems

    def merge_shares(self, add_others: Callable[[Tensor], None]) -> None:
        """Make what was measured of one share of a plan the whole, layer by layer.

        Args:
            add_others: adds to a tensor in host memory, in place, what the probes of all other shares hold there.
        """
        assert self._plan is not None
        counts = torch.tensor([self._positions, self._tokens])
        add_others(counts)
        self._positions, self._tokens = counts.tolist()
        for name in self.layers:
            sums = self._sums[name]
            state = {key: tensor.cpu() for key, tensor in sums.state_dict().items()}
            for tensor in state.values():
                add_others(tensor)
            sums.load_state_dict(state)
            device = sums.tables.device
            sums.tables.retire(*(index.to(device) for index in self._plan.retired_at_the_end))

    def new_like(self) -> SoftEntropyProbe:
        """A probe of the same model and with the same settings that has measured nothing."""
        if self._plan:
            raise InputError("blank: the probe of a planned run cannot be made anew; measure without a plan")
        return SoftEntropyProbe(self._model, modules=self._modules or None, **self._settings)

    # --- being attached ------------------------------------------------------------------------------------

    def __enter__(self) -> SoftEntropyProbe:
        if self._handles:
            raise ProbeError("the probe is already attached; leave its block before entering it again")
        try:
            self._attach()
        except BaseException:
            self._detach()
            raise
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        self._detach()
        if exc_type is None:
            self._raise_problems()

    @property
    def tracker(self) -> InputTracker:
        """What code that runs the model may tell of its forward passes; for adapters (`softh_probe.integrations`).

        Raises:
            InputError: the run is planned.
        """
        if self._tracker is None:
            raise InputError("plan: the batches and labels of a planned run are those of its data set")
        return self._tracker

    @contextmanager
    def labelled(self, **labels: Tensor) -> Iterator[None]:
        """Labels of one's own for the forward passes inside the block.

        Args:
            labels: integer tensors, one a label set: [B], the same for a whole sequence, or [B, T]; −1 is none.
        """
        for name, values in labels.items():
            if not isinstance(values, Tensor) or values.is_floating_point() or values.ndim not in (1, 2):
                raise InputError(f"{name}: expected an integer tensor [B] or [B, T], got {_describe(values)}")
            if name in self._settings["labels"]:
                raise InputError(f"{name}: this is one of the probe's n-gram label sets; choose another name")
            if name in NOT_LABELS:
                raise InputError(f"{name}: choose another name, this one is taken")
        with self.tracker.labelled({name: values.cpu().long().numpy() for name, values in labels.items()}):
            yield

    @contextmanager
    def masked(self, mask: Tensor) -> Iterator[None]:
        """Say which tokens are real in the forward passes inside the block, where the model is not told.

        Args:
            mask: [B, T], 0 at padding; of more columns than the model is fed, the last ones count.
        """
        if not isinstance(mask, Tensor) or mask.ndim != 2:
            raise InputError(f"mask: expected a tensor [B, T], got {_describe(mask)}")
        with self.tracker.masked(mask):
            yield

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Forward passes inside the block do not count."""
        with self.tracker.paused():
            yield

    @contextmanager
    def batch(self, labels: Dispatch) -> Iterator[None]:
        """Announce what the next forward pass holds; raises at its end what the hooks found wrong."""
        self._announced = labels
        try:
            yield
        finally:
            self._announced = None
        self._raise_problems()

    def layer_devices(self) -> dict[str, torch.device]:
        """Where the sums of each row will be: on the device of its block's weights, which must be loaded."""
        if self._found is None:
            return {}
        cpu = torch.device("cpu")
        blocks = [self._found.blocks[i % len(self._found.blocks)] for i in range(self._n_blocks)]
        devices = [next((p.device for p in block.parameters()), cpu) for block in blocks]
        # Apple's GPUs have no float64; offloaded weights come and go, wherever their layer runs.
        devices = [cpu if device.type in ("mps", "meta") else device for device in devices]
        rows = [EMBEDDINGS, *(block_name(i + 1) for i in range(len(devices))), FINAL_NORM]
        known = set(self._layer_names())
        placed = zip(rows, [devices[0], *devices, devices[-1]], strict=True)
        return {row: device for row, device in placed if row in known and self._wants(row)}

    def reserve(self, on_host: Collection[str] = ()) -> None:
        """Take the memory of a planned run's sums now: what does not fit fails before the model runs.

        Tables that were made between a model's short-lived tensors would also keep those tensors' memory from
        being used again.

        Args:
            on_host: rows whose label tables go to host memory although their layer is on an accelerator.
        """
        self._on_host = frozenset(on_host)
        width = getattr(getattr(self._entry, "config", None), "hidden_size", None)
        if self._plan is None or not isinstance(width, int):
            return
        for row, device in self.layer_devices().items():
            if row not in self._sums:
                self._sums[row] = self._new_sums(row, width, device)

    def _attach(self) -> None:
        add = self._handles.append
        self._adapters.enter_context(uncompiled())
        if self._tracker is not None:
            for install in ADAPTERS:
                self._adapters.enter_context(install(self._model, self._tracker))
        # Their forward itself is wrapped, for some callers call that, past the module's hooks.
        if self._model is not self._entry:
            for module in self._around():
                self._adapters.enter_context(replaced(module, "forward", partial(self._outer_forward, module)))
        self._adapters.enter_context(replaced(self._entry, "forward", self._entry_forward))
        for name, module in self._modules.items():
            if module is not self._entry:
                add(module.register_forward_hook(partial(self._after_module, name)))
        if self._found:
            add(self._found.blocks[0].register_forward_pre_hook(self._before_first_block, with_kwargs=True))
            for block in dict.fromkeys(self._found.blocks):
                add(block.register_forward_hook(self._after_block, with_kwargs=True))
            for norm in self._found.norms:
                add(norm.register_forward_hook(self._after_norm))

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._adapters.close()
        if self._tracker is not None:
            self._drop(self._tracker.reset())
        self._outer_arguments = {}
        self._pass = None

    # --- hooks: they note problems and never raise into the model that is being run -----------------------

    def _around(self) -> list[nn.Module]:
        """The model, and what of it holds the backbone."""
        inside = {id(module) for module in self._entry.modules()}
        return [
            module
            for module in self._model.modules()
            if id(module) not in inside and any(part is self._entry for part in module.modules())
        ]

    def _outer_forward(self, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        before = self._outer_arguments
        inner = {name: value for name, value in arguments(module, args, kwargs).items() if value is not None}
        self._outer_arguments = {**before, **inner, **{k: v for k, v in before.items() if k == "input_ids"}}
        try:
            return forward(*args, **kwargs)
        finally:
            self._outer_arguments = before

    def _entry_forward(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._before_forward(self._entry, args, kwargs)
        output = None
        try:
            output = forward(*args, **kwargs)
        finally:
            self._after_forward(output)
        return output

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._tracker is not None and self._tracker.is_paused:
            return
        if module.training:
            self._training_passes += 1
            return
        try:
            given = arguments(module, args, kwargs)
            if self._found:
                n_virtual = self._tracker.n_virtual if self._tracker else 0
                require_tokens(given, self._outer_arguments, n_virtual)
            if self._tracker is None or self._announced is not None:
                self._pass = _ForwardPass(self._announced)
            else:
                self._pass = _ForwardPass(self._tracker.begin(given, self._outer_arguments))
        except Exception as problem:
            self._note(problem, "labels")

    def _before_first_block(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._pass is not None and not self._pass.n_block_calls:
            self._measure(EMBEDDINGS, _taken(args, kwargs))

    def _after_block(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        current = self._pass
        if current is not None:
            current.n_block_calls += 1
            row = block_name(current.n_block_calls)
            self._measure(row, output)
            if isinstance(current.labels, DecodeStep):  # the sequences' first pass has shown what their blocks are
                return
            try:
                current.last = output
                current.chain.add(hidden_state(_taken(args, kwargs), row), hidden_state(output, row))
            except Exception as problem:
                self._note(problem, row)

    def _after_norm(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._pass is not None and self._pass.n_block_calls >= self._n_blocks:
            self._pass.last = output
            self._measure(FINAL_NORM, output)

    def _after_module(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._pass is not None:
            self._measure(name, output)

    def _after_forward(self, output: Any) -> None:
        for name, module in self._modules.items():
            if module is self._entry and output is not None:
                self._after_module(name, module, (), output)
        current, self._pass = self._pass, None
        if current is not None and current.rows and isinstance(current.labels, Dispatch):
            self._finish(current.adding)
        if self._tracker is not None:
            self._drop(self._tracker.finish(output))
        if current is None:
            return
        if isinstance(current.labels, DecodeStep) and output is None:
            for name in current.rows:
                if self._steps.get(name):
                    self._steps[name].pop()
        self._n_blocks = max(self._n_blocks, current.n_block_calls)
        expected = list(self._modules) or [EMBEDDINGS, *(block_name(i + 1) for i in range(self._n_blocks))]
        missing = [name for name in expected if name not in current.rows]
        if missing and output is None and current.rows:
            *_, last = current.rows
            self._problems.append(f"a forward pass failed after {last}: later layers lack its positions")
        elif missing and output is not None:
            names = ", ".join(missing[:3]) + " …" * (len(missing) > 3)
            self._problems.append(
                f"{names}: never called in a forward pass (a compiled model skips hooks; some models skip blocks that "
                "would read images, or run their blocks without calling them as modules)"
            )
        elif self._found and output is not None:
            self._confirm(self._found, current, output)

    def _confirm(self, found: HookPoints, current: _ForwardPass, output: Any) -> None:
        """Note what shows, now that the model has run, that the modules found are not its blocks."""
        chain = current.chain
        if not chain.holds:
            self._problems.append(
                f"{found.path}: these are not blocks whose outputs are the next one's inputs ({chain.broken} of "
                f"{chain.links} are not); name the modules to probe with modules={{name: module}}"
            )
        n_sequences, n_tokens, *_ = (*current.shapes[0], 1)
        if not self._layout_known and n_sequences == n_tokens > 1 and is_time_first(current.last, output):
            self._problems.append(f"{found.path}: expected hidden states [B, T, D], got [T, B, D]")
        self._layout_known |= n_sequences != n_tokens

    def _measure(self, row: str, value: Any) -> None:
        """Add one layer's hidden states; those of a step are kept, to be added together with others."""
        current = self._pass
        assert current is not None
        if row in current.rows:
            self._problems.append(f"{row}: called twice in a forward pass; its calls are of different depth")
            return
        current.rows[row] = None
        if not self._wants(row):
            return
        try:
            hidden = hidden_state(value, row)
            if hidden.is_mps:
                hidden = hidden.cpu()  # for Apple's GPUs have no float64
            if current.labels is None and hidden.ndim in (2, 3):
                shape = (hidden.shape[0], hidden.shape[1] if hidden.ndim == 3 else 1)
                current.labels = self.tracker.label(TokenBatch(real_BT=np.ones(shape, dtype=bool), ids_BT=None))
            expected = current.shapes
            if hidden.shape[:-1] not in expected:
                raise ProbeError(f"{row}: expected hidden states {[*expected[0], 'D']}, got {list(hidden.shape)}")
            if isinstance(current.labels, DecodeStep):
                self._steps.setdefault(row, []).append(hidden.detach().clone())
            else:
                current.adding.add(self._sums_of(row, hidden), hidden)
        except Exception as problem:
            self._note(problem, row)

    def _note(self, problem: Exception, where: str) -> None:
        """Keep a problem for the end of the block: nobody's evaluation fails because it is being measured."""
        known = isinstance(problem, ProbeError)
        if self._announced is not None and not known:
            raise problem  # in a run of our own, whoever runs it has to see what it is: out of memory, say
        self._problems.append(str(problem) if known else f"{where}: {type(problem).__name__}: {problem}")

    # --- behind them ---------------------------------------------------------------------------------------

    def _settle(self, labels: Dispatch) -> None:
        """Add positions that waited to every layer, without a forward pass."""
        adding = BatchAccumulator(labels)
        try:
            for name in self._measured:
                adding.add_waiting_only(self._sums[name])
        except Exception as problem:
            self._note(problem, "labels")
        self._finish(adding)

    def _add_steps(self, labels: Dispatch) -> None:
        """Add the positions of steps that were kept to be added together."""
        steps, self._steps = self._steps, {}
        adding = BatchAccumulator(labels)
        n_steps = labels.shape[1]
        for row, parts in steps.items():
            try:
                if len(parts) < n_steps:
                    raise ProbeError(f"{row}: expected {n_steps} steps, got {len(parts)}")
                hidden = torch.stack([step.flatten(0, -2) for step in parts[:n_steps]], dim=1)
                adding.add(self._sums_of(row, hidden), hidden)
            except Exception as problem:
                self._note(problem, row)
        self._finish(adding)

    def _finish(self, adding: BatchAccumulator) -> None:
        """Add what is left of a batch, and count it."""
        try:
            adding.finish()
        except Exception as problem:
            self._note(problem, "sums")
        self._positions += adding.labels.n_counted
        self._tokens += adding.labels.n_tokens

    def _flush(self) -> None:
        if self._tracker is not None:
            self._tracker.flush()

    def _drop(self, numbers: list[int]) -> None:
        """Give up the waiting positions of sequences that are over."""
        for number in numbers:
            for sums in self._sums.values():
                sums.drop(number)

    def _layer_names(self) -> list[str]:
        if self._found is None:
            return list(self._modules)
        final = [FINAL_NORM] if self._found.norms else []
        return [EMBEDDINGS, *(block_name(i + 1) for i in range(self._n_blocks)), *final]

    def _wants(self, row: str) -> bool:
        chosen = self._settings["layers"]
        return chosen is None or row in chosen

    def _sums_of(self, row: str, hidden: Tensor) -> LayerSums:
        sums = self._sums.get(row)
        if sums is None or (sums.dim != hidden.shape[-1] and row not in self._measured):
            sums = self._sums[row] = self._new_sums(row, hidden.shape[-1], hidden.device)
        self._measured.add(row)
        if sums.dim != hidden.shape[-1]:
            raise ProbeError(f"{row}: expected hidden states of width {sums.dim}, got {list(hidden.shape)}")
        if sums.total.device != hidden.device:
            moved = self._new_sums(row, sums.dim, hidden.device)
            moved.load_state_dict(sums.state_dict())
            moved.waiting = {number: rows.to(hidden.device) for number, rows in sums.waiting.items()}
            sums = self._sums[row] = moved
        return sums

    def _new_sums(self, row: str, dim: int, device: torch.device) -> LayerSums:
        anchors = self._anchors_of(dim)
        if (dim, device) not in self._points:
            with torch.inference_mode(False):
                self._points[dim, device] = anchors.points_SMD.to(device)
        rows = self._rows
        return LayerSums(
            self._points[dim, device],
            anchors.temperature,
            host=self._host if row in self._on_host else None,
            n_singleton_sets=len(rows.singleton_sets),
            n_sample=rows.n_sample,
            n_kept=rows.n_kept,
            n_live=rows.n_live,
            n_buckets=rows.n_buckets,
        )

    def _anchors_of(self, dim: int) -> Anchors:
        if dim not in self._anchors:
            s = self._settings
            self._anchors[dim] = Anchors.sample(
                n_anchors=s["n_anchors"],
                dim=dim,
                n_sets=s["anchor_sets"],
                seed=s["seed"],
                kind=s["anchors"],
                calibration=s["calibration"],
            )
        return self._anchors[dim]

    def _require_settings(self, theirs: Mapping[str, Any], where: str) -> None:
        for name, ours in self._settings.items():
            if theirs.get(name) != ours:
                raise InputError(f"{where}: expected {name}={ours!r}, got {theirs.get(name)!r}")

    def _raise_problems(self) -> None:
        if self._problems:
            distinct = list(dict.fromkeys(self._problems))
            more = f"; and {len(distinct) - 3} more" if len(distinct) > 3 else ""
            raise ProbeError("; ".join(distinct[:3]) + more)


class _ForwardPass:
    """One call of the model: the labels of its positions on each device, and the rows measured so far."""

    def __init__(self, labels: Dispatch | DecodeStep | None) -> None:
        self.labels = labels
        self.rows: dict[str, None] = {}  # in their order
        self.n_block_calls = 0
        self.chain = ResidualChain()
        self.last: Any = None
        self._adding: BatchAccumulator | None = None

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Leading dimensions that hidden states may have; without a second one, a position is a row."""
        if self.labels is None:
            return [(-1, -1)]
        n_sequences, n_tokens = self.labels.shape
        return [(n_sequences, n_tokens)] + [(n_sequences,)] * (n_tokens == 1)

    @property
    def adding(self) -> BatchAccumulator:
        if self._adding is None:
            assert isinstance(self.labels, Dispatch)
            self._adding = BatchAccumulator(self.labels)
        return self._adding


def _taken(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args or kwargs  # the hidden state comes first, or by its name


def _describe(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
