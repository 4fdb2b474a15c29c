"""Operations of a hook: none waits for an accelerator, and kernels are few."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from softh_probe import SoftEntropyProbe
from softh_probe.accelerators import accelerator_path
from softh_probe.accumulators import assigned_layers
from softh_probe.data.corpus import pad_batch
from tests.helpers.corpora import COLUMNS, corpus_of, documents, values_of
from tests.helpers.models import tiny_llama
from tests.helpers.probes import NAMES, around_accumulation, planned

#: Operations whose result the host has to know before it continues; also indexing by a mask.
WAITING = {"nonzero", "_local_scalar_dense", "item", "masked_select", "_unique2", "unique_dim", "equal", "is_nonzero"}
#: Kernels for a layer and batch, at most, where so many layers are added at a time: on an accelerator each takes some
#: microseconds to launch.
MOST_KERNELS = pytest.mark.parametrize(("most_layers", "most_kernels"), [(32, 23), (1, 53)])


class Operations(TorchDispatchMode):
    """Notes the operations on tensors that are called, views and new memory left out."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.overloadpacket.__name__
        masks = name in ("index", "index_put_") and any(i is not None and i.dtype == torch.bool for i in args[1])
        assert name not in WAITING, name
        assert not masks, f"{name} by a mask"
        found = operation(*args, **(kwargs or {}))
        is_view = operation.is_view and _storages(found) <= _storages(args)  # `to` and `reshape` copy where they must
        if not is_view and not name.startswith(("empty", "new_empty", "detach")):
            self.names.append(name)
        return found


def _storages(values):
    return {x.untyped_storage().data_ptr() for x in tree_leaves(values) if isinstance(x, torch.Tensor)}


@pytest.fixture
def kernels(monkeypatch):
    """Count the kernels of each addition to sums, on the path of accelerators."""
    counts = []

    @contextmanager
    def counted():
        with Operations() as operations, accelerator_path():
            yield
        counts.append(len(operations.names))

    around_accumulation(monkeypatch, counted)
    return counts


def most_for_a_layer(kernels, n_batches):
    """Kernels per layer of five layers that are added one by one and finished together."""
    assert len(kernels) == n_batches * (5 + 1)
    return max(np.reshape(kernels, (n_batches, 5 + 1)).sum(axis=1)) / 5


@MOST_KERNELS
@pytest.mark.parametrize("anchor_sets", [1, 8])
def test_a_planned_runs_hooks_never_wait_and_launch_few_kernels(
    kernels, anchor_sets, most_layers, most_kernels, monkeypatch
):
    monkeypatch.setattr(assigned_layers, "MOST_LAYERS", most_layers)
    language, topic = values_of(60)
    plan = planned(corpus_of(documents(60), language=language, topic=topic), [*NAMES, *COLUMNS], 200)
    model = tiny_llama()
    probe = SoftEntropyProbe(model, plan=plan, anchor_sets=anchor_sets)
    probe.reserve()
    with probe, torch.inference_mode():
        for i, batch in enumerate(plan.batches):
            ids, mask = pad_batch(plan.corpus, batch)
            with probe.batch(plan.batch(i)):
                model(input_ids=ids, attention_mask=mask)
    probe.check()
    assert 10 < most_for_a_layer(kernels, len(plan.batches)) <= most_kernels


@MOST_KERNELS
def test_an_attached_probes_hooks_never_wait_and_launch_few_kernels(kernels, most_layers, most_kernels, monkeypatch):
    monkeypatch.setattr(assigned_layers, "MOST_LAYERS", most_layers)
    model = tiny_llama()
    probe = SoftEntropyProbe(model, labels=NAMES)
    generator = torch.Generator().manual_seed(0)
    with probe, torch.inference_mode():
        for _ in range(4):
            model(input_ids=torch.randint(40, (4, 30), generator=generator))
    probe.check()
    assert 10 < most_for_a_layer(kernels, 4) <= most_kernels


@pytest.mark.parametrize("real", [8, 30])
def test_nothing_is_computed_of_positions_that_do_not_count(monkeypatch, real):
    computed, project = [], assigned_layers.anchor_logits
    monkeypatch.setattr(
        assigned_layers, "anchor_logits", lambda h, *a, **k: computed.append(len(h)) or project(h, *a, **k)
    )
    model, ids, mask = tiny_llama(), torch.randint(40, (4, 30)), torch.ones(4, 30, dtype=torch.int64)
    mask[:, real:] = 0
    with SoftEntropyProbe(model, labels=["output_bigram"]) as probe, torch.inference_mode():
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    assert probe.positions == 4 * (real - 2)
    assert set(computed) == {4 * (real - 2) if real == 8 else 4 * 30}  # where nearly all count, none is picked out
