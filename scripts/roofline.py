"""Count what the probe costs on a GPU, without one: bytes, FLOPs and kernels of each operation give its least time.

    python scripts/roofline.py [--shape olmo-2-7b] [--sequences 16] [--tokens 512] [--anchor_sets 1]

The library's own code runs on fake tensors, which have shapes and no values, by the path that accelerators take. An
operation takes the time of its bytes or of its FLOPs, whichever is longer, and that of starting a kernel. Printed are
the time of a block of the model, that of the probe for a layer (there are two more layers than blocks), the memory that
a batch takes beside the sums, and the operations that cost most; `--json FILE` writes all of it. The batch is one of a
random corpus of Zipf-like tokens, with 8 n-gram label sets.

Counted are the bytes that an operation reads and those that it writes, in place too; of tables the rows that it
touches; of gathered positions each once, as if caches held the rows of a layer (32 x 512 tokens and 8 sets make 53 MB,
and the cache of an H100 has 50). A reduction in float64 of other types counts the copy that it makes. What the host
does with label tables in its memory is not counted. Constants are those of an H100; give others for another device.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import auto_cli
from random_models import LONGEST_NGRAM_SPAN, model_config, random_corpus
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from transformers import AutoModel, PreTrainedModel

from softh_probe.accelerators import accelerator_path
from softh_probe.accumulators.batch import BatchAccumulator
from softh_probe.accumulators.label_tables import columns
from softh_probe.data.corpus import length_batches
from softh_probe.estimators.anchors import Anchors
from softh_probe.labels import NGRAM_SETS, parse_label_sets
from softh_probe.planned.plan import Plan
from softh_probe.probe import SoftEntropyProbe

#: Operations that touch rows of their first tensor along a dimension, and whether they read values for them.
_OF_ROWS = {"index_add_": True, "index_copy_": True, "index_fill_": False}
_GATHERS = ("index_select", "embedding", "embedding_bag", "_embedding_bag", "_embedding_bag_forward_only")
_FREE = ("empty", "new_empty", "detach", "device", "lift_fresh")
#: Operations that only write, whatever they are given.
_FILLS = ("new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like")


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """A model, a batch and a device."""

    shape: Literal["smollm2-135m", "olmo-2-1b", "olmo-2-7b", "olmo-2-32b"] = "olmo-2-7b"
    """Shape of the model."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Type of its weights and states."""
    sequences: int = 16
    """Sequences of a batch."""
    tokens: int = 512
    """Tokens of a sequence."""
    anchor_sets: int = 1
    """Sets of 100 anchors."""
    blocks: int | None = None
    """Blocks that stand for all, to save time; null counts all."""
    bytes_per_second: float = 3.0e12
    """Bandwidth of the device's memory."""
    half_flops: float = 700e12
    """FLOPs a second in bfloat16 and float16."""
    float32_flops: float = 50e12
    """FLOPs a second in float32, without tensor cores, and in float64."""
    kernel_seconds: float = 2.5e-6
    """Time to start a kernel."""
    host_bytes_per_second: float = 25e9
    """Bandwidth between the device and host memory, for label tables that lie there (--sums-memory-gb)."""
    json: str | None = None
    """File for all figures, as JSON."""


@dataclass
class Cost:
    """Operations, with what they cost.

    Attributes:
        seconds, kernels, bytes, flops: of each operation, by its name.
    """

    seconds: Counter[str] = field(default_factory=Counter)
    kernels: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    flops: Counter[str] = field(default_factory=Counter)

    def per_layer(self, n: int) -> dict[str, float]:
        """Give the sums for one of n layers."""
        return {name: sum(found.values()) / n for name, found in vars(self).items()}


class Held:
    """Memory of tensors that were made and are still held.

    Attributes:
        peak: bytes that were held at once, at most.
    """

    def __init__(self) -> None:
        self.peak = 0
        self._sizes: dict[int, tuple[StorageWeakRef, int]] = {}

    def add(self, made: Any, given: Any) -> None:
        """Add the memory of tensors that an operation made, and that is not of those it was given."""
        self._sizes = {key: one for key, one in self._sizes.items() if not one[0].expired()}
        of_given = _storages(given)
        for key, storage in _storages(made).items():
            if key not in of_given:
                self._sizes[key] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self._sizes.values()))


class Count(TorchDispatchMode):
    """Count the operations of a model and of the probe inside the block, and the memory that the probe takes there."""

    def __init__(self, device: Roofline) -> None:
        super().__init__()
        self.model, self.probe = Cost(), Cost()
        self.held = Held()
        self._device, self._current = device, self.model

    @contextmanager
    def of_probe(self) -> Iterator[None]:
        """Count operations inside the block for the probe."""
        before, self._current = self._current, self.probe
        try:
            yield
        finally:
            self._current = before

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        found = operation(*args, **kwargs)
        if self._current is self.probe:
            self.held.add(found, (args, kwargs))
        name = operation.overloadpacket.__name__
        made = args[:1] if found is None else found  # some that work in place give nothing
        if name.startswith(_FREE) or not _tensors(made) or (operation.is_view and _is_alias(made, args)):
            return found
        flops = _flops(operation, args, kwargs, made)
        half = any(t.dtype in (torch.bfloat16, torch.float16) for t in _tensors(args))
        size, device, cost = _bytes(name, args, kwargs, made), self._device, self._current
        of_flops = flops / (device.half_flops if half else device.float32_flops)
        cost.seconds[name] += max(size / device.bytes_per_second, of_flops) + device.kernel_seconds
        cost.kernels[name] += 1
        cost.bytes[name] += size
        cost.flops[name] += flops
        return found


def _is_alias(found: Any, args: tuple[Any, ...]) -> bool:
    """Tell whether an operation gave another view of what it took: reshape and the like copy where they must."""
    return _storages(found).keys() <= _storages(args).keys()


def _storages(values: Any) -> dict[int, torch.UntypedStorage]:
    """Give the memory of tensors by its identity."""
    storages = [tensor.untyped_storage() for tensor in _tensors(values)]
    return {storage._cdata: storage for storage in storages}  # noqa: SLF001


def _tensors(values: Any) -> list[Tensor]:
    return list({id(t): t for t in tree_leaves(values) if isinstance(t, Tensor)}.values())


def _bytes(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], found: Any) -> int:
    """Count the bytes that an operation reads and writes."""
    written = sum(t.nbytes for t in _tensors(found))
    if name in _FILLS:
        return written
    if name in _OF_ROWS:
        table, dim, rows = args[:3]
        of_rows = rows.numel() * (table.nbytes // max(table.shape[dim], 1))
        return of_rows * (1 + _OF_ROWS[name] + (name == "index_add_")) + rows.nbytes
    if name in _GATHERS:
        table = max(_tensors(args), key=lambda t: (t.is_floating_point() and t.ndim > 1, t.nbytes))
        others = [t for t in _tensors(args) if t is not table]
        gathered = written if name == "index_select" else max(t.numel() for t in others) * table[:1].nbytes
        return written + min(table.nbytes, gathered) + sum(t.nbytes for t in others)
    read = sum(t.nbytes for t in _tensors((args, {k: v for k, v in kwargs.items() if k != "out"})))
    if name in ("copy_", "fill_", "zero_", "_foreach_copy_", "_foreach_zero_"):
        read -= sum(t.nbytes for t in _tensors(args[0]))
    if name == "linalg_vector_norm" and kwargs.get("dtype") == torch.float64 and args[0].dtype != torch.float64:
        read += 2 * 8 * args[0].numel()  # the copy in float64, written and read
    return read + written


def _flops(operation: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], found: Any) -> int:
    """Count the FLOPs of products; those of other operations are nothing beside their bytes."""
    name = operation.overloadpacket.__name__
    if name == "linear":
        return 2 * found.numel() * args[0].shape[-1]
    if name in ("mm", "addmm", "addmm_", "baddbmm_"):
        left = args[0] if name == "mm" else args[1]
        return 2 * _tensors(found)[0].numel() * left.shape[-1]
    if name == "scaled_dot_product_attention":
        return 4 * args[0].numel() * args[1].shape[-2]
    formula = flop_registry.get(operation.overloadpacket)
    return int(formula(*args, **kwargs, out_val=found)) if formula else 0


@contextmanager
def _counting_probe(count: Count) -> Iterator[None]:
    """Count what the library adds to sums for the probe, inside the block."""

    def counted(work: Callable[..., None]) -> Callable[..., None]:
        def work_of_probe(*args: Any, **kwargs: Any) -> None:
            with count.of_probe():
                work(*args, **kwargs)

        return work_of_probe

    names = ("add", "finish")
    own = {name: getattr(BatchAccumulator, name) for name in names}
    for name in names:
        setattr(BatchAccumulator, name, counted(own[name]))
    try:
        yield
    finally:
        for name in names:
            setattr(BatchAccumulator, name, own[name])


def _real(work: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function compute with values in the midst of fake tensors."""

    def work_with_values(*args: Any, **kwargs: Any) -> Any:
        with unset_fake_temporarily():
            return work(*args, **kwargs)

    return work_with_values


def count(options: Roofline) -> dict[str, Any]:
    """Count a batch: of the model by blocks, of the probe by layers (those of blocks, the embeddings, the final norm).

    Returns:
        `model` and `probe`, each with seconds, kernels, bytes and flops of a layer; `share`, the probe's seconds over
        the model's, and `share_of_batch`, those of all layers over those of all blocks; `operations` of the probe, in
        microseconds of a layer; `peak_bytes` of the probe beside its sums and anchors; and `to_host`, bytes and seconds
        of the copy of a layer's sums where its label tables lie in host memory. It runs beside the model.
    """
    config = model_config(options.shape, options.blocks)
    sets = parse_label_sets(NGRAM_SETS)
    corpus = random_corpus(8 * options.sequences, options.tokens, config.vocab_size)
    plan = Plan(corpus, sets, length_batches(corpus.lengths, options.sequences * options.tokens), label_rows=65_536)
    middle = len(plan.batches) // 2
    dispatch = plan.batch(middle)
    anchors = Anchors.sample
    Anchors.sample = staticmethod(_real(anchors))  # type: ignore[method-assign,assignment]
    counted = Count(options)
    try:
        with accelerator_path(), FakeTensorMode(allow_non_fake_inputs=True):
            model: PreTrainedModel = AutoModel.from_config(config, dtype=getattr(torch, options.dtype)).eval()
            probe = SoftEntropyProbe(model, plan=plan, anchor_sets=options.anchor_sets)
            probe.reserve()
            ids = torch.zeros(options.sequences, options.tokens, dtype=torch.long)
            with probe, torch.inference_mode(), _counting_probe(counted):
                for once in (Count(options), counted):  # the first batch prepares the anchors
                    with probe.batch(dispatch), once:
                        model(input_ids=ids, use_cache=False)
    finally:
        Anchors.sample = anchors  # type: ignore[method-assign]
    n_blocks, n_layers = config.num_hidden_layers, len(probe.layers)
    found = {"model": counted.model.per_layer(n_blocks), "probe": counted.probe.per_layer(n_layers)}
    n_label_bags = len(dispatch.bag_offsets) - 1 - dispatch.weights_XL.shape[1]
    of_labels = n_label_bags * columns(options.anchor_sets, 100) * 4
    share = found["probe"]["seconds"] / found["model"]["seconds"]
    n_of_shape = model_config(options.shape).num_hidden_layers
    return {
        "options": asdict(options),
        **found,
        "peak_bytes": counted.held.peak,
        "to_host": {"bytes": of_labels, "seconds": of_labels / options.host_bytes_per_second},
        "share": share,
        "share_of_batch": share * (n_of_shape + n_layers - n_blocks) / n_of_shape,
        "operations": {name: 1e6 * t / n_layers for name, t in counted.probe.seconds.most_common()},
    }


def problem(options: Roofline) -> str | None:
    """Tell in a line what cannot be counted, if anything."""
    least = {"sequences": 1, "tokens": LONGEST_NGRAM_SPAN, "anchor_sets": 1, "blocks": 1, "kernel_seconds": 0}
    for name, bound in least.items():
        if (value := getattr(options, name)) is not None and value < bound:
            return f"{name}: expected {bound} or more, got {value}"
    for name in ("bytes_per_second", "half_flops", "float32_flops", "host_bytes_per_second"):
        if (value := getattr(options, name)) <= 0:
            return f"{name}: expected more than 0, got {value}"
    if options.json and Path(options.json).is_dir():
        return f"json: expected a file to write, got the folder {options.json}"
    return None


def main(options: Roofline) -> None:
    if found_problem := problem(options):
        raise SystemExit(found_problem)
    if options.json:
        try:
            Path(options.json).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SystemExit(f"json: cannot write to {options.json}: {error.strerror}") from error
    found = count(options)
    print(f"{options.shape}, {options.sequences} x {options.tokens} tokens, {options.dtype}, by layer:")
    print(f"{'':<24}{'µs':>10}{'kernels':>10}{'MB':>10}{'GFLOP':>10}")
    for name, label in (("model", "block of the model"), ("probe", f"probe, {options.anchor_sets} sets")):
        of = found[name]
        print(
            f"{label:<24}{1e6 * of['seconds']:>10.0f}{of['kernels']:>10.1f}{of['bytes'] / 1e6:>10.0f}"
            f"{of['flops'] / 1e9:>10.0f}"
        )
    share, of_batch = found["share"], found["share_of_batch"]
    print(f"a layer of the probe costs {share:.1%} of a block; all of them cost {of_batch:.1%} of all blocks")
    of_blocks = f" of {options.blocks} blocks" * (options.blocks is not None)
    print(f"a batch{of_blocks} takes at most {found['peak_bytes'] / 2**30:.2f} GiB beside the sums and the anchors")
    print("operations of a layer in µs:")
    print(", ".join(f"{name} {us:.1f}" for name, us in found["operations"].items()))
    to_host = found["to_host"]
    hidden = "hidden" if to_host["seconds"] < found["model"]["seconds"] else "NOT hidden"
    print(
        f"with label tables in host memory, {to_host['bytes'] / 1e6:.0f} MB of a layer go there in "
        f"{1e6 * to_host['seconds']:.0f} µs, {hidden} behind the model (what the host does with them is not counted)"
    )
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main(auto_cli(Roofline, as_positional=False))
