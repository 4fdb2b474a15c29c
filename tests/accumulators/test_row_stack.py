"""Sums of several layers in one tensor: the same numbers as those of layers by themselves."""

from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest
import torch

from softh_probe import SoftEntropyProbe
from softh_probe.accelerators import accelerator_path
from softh_probe.accumulators import assigned_layers, model_sums
from softh_probe.accumulators.row_stack import RowStack, add_at, beside, copy_of, runs
from softh_probe.planned.plan import Plan
from tests.helpers.corpora import COLUMNS, corpus_of, documents, values_of
from tests.helpers.models import tiny_llama
from tests.helpers.probes import NAMES, feed, planned


class Layer(NamedTuple):
    stack: object
    place: int


@pytest.fixture(scope="module")
def corpus():
    language, topic = values_of(60)
    return corpus_of(documents(60), language=language, topic=topic)


def plan_of(corpus, label_rows="all") -> Plan:
    plan = planned(corpus, [*NAMES, *COLUMNS], 200)
    return Plan(corpus, plan.label_sets, plan.batches, label_rows=label_rows)


def table_of(corpus, plan, *, reserves=True, on_host=(), **settings):
    model = tiny_llama(hidden_size=64)
    probe = SoftEntropyProbe(model, plan=plan, n_anchors=20, **settings)
    if reserves:
        probe.reserve(on_host)
    return feed(probe, model, corpus, plan.batches, plan).result().to_pandas("nats")


@pytest.mark.parametrize("path", [torch.no_grad, accelerator_path])
@pytest.mark.parametrize("anchor_sets", [1, 3])
@pytest.mark.parametrize(("most_in_stack", "most_layers"), [(8, 32), (2, 32), (8, 2), (3, 2), (8, 1)])
def test_stacked_layers_have_the_numbers_of_layers_by_themselves(
    corpus, path, anchor_sets, most_in_stack, most_layers, monkeypatch
):
    """Whatever layers a stack holds, and whatever layers are added together."""
    plan = plan_of(corpus, 100)
    monkeypatch.setattr(model_sums, "MOST_IN_STACK", 1)
    alone = table_of(corpus, plan, anchor_sets=anchor_sets)
    monkeypatch.setattr(model_sums, "MOST_IN_STACK", most_in_stack)
    monkeypatch.setattr(assigned_layers, "MOST_LAYERS", most_layers)
    with path():
        stacked = table_of(corpus, plan, anchor_sets=anchor_sets)
    assert stacked.metric.tolist() == alone.metric.tolist()
    np.testing.assert_allclose(stacked.value, alone.value, atol=3e-6)


@pytest.mark.parametrize("path", [torch.no_grad, accelerator_path])
@pytest.mark.parametrize("settings", [{"sites": ("residual", "attention", "mlp")}, {"center": True}])
def test_rows_that_run_in_another_order_than_they_lie_in(corpus, path, settings):
    plan = plan_of(corpus)
    expected = table_of(corpus, plan, reserves=False, **settings)
    with path():
        found = table_of(corpus, plan, on_host=["layer.1", "layer.2"] if path is torch.no_grad else (), **settings)
    np.testing.assert_allclose(found.value, expected.value, atol=3e-6)


@pytest.mark.parametrize("path", [torch.no_grad, accelerator_path])
def test_layers_that_are_met_as_the_model_runs_are_stacked_too(path):
    model = tiny_llama(hidden_size=64)
    ids = torch.randint(1, 40, (3, 20), generator=torch.Generator().manual_seed(0))
    with path(), SoftEntropyProbe(model, labels=NAMES, n_anchors=20) as probe:
        for some in (ids, ids[:, :9]):
            model(input_ids=some)
    stacks = {id(probe._sums[layer].stack) for layer in probe.layers}
    assert len(probe.layers) == 5
    assert len(stacks) == 1
    alone = SoftEntropyProbe(model, labels=NAMES, n_anchors=20, layers=["layer.2"])
    with alone:
        for some in (ids, ids[:, :9]):
            model(input_ids=some)
    assert alone._sums["layer.2"].stack.sums.rows_ARK.shape[0] == 1  # memory for no layer that is not measured
    torch.testing.assert_close(probe.sums[2:3], alone.sums, rtol=1e-5, atol=1e-5)


def test_states_of_another_width_than_expected_get_sums_of_their_own():
    sums = SoftEntropyProbe(tiny_llama(), labels=NAMES, n_anchors=20)._sums
    device = torch.device("cpu")
    expected = {"a": (8, device), "b": (8, device), "c": (8, device), "d": (4, device)}
    a, b = sums.of("a", torch.zeros(2, 8), lambda: expected), sums.of("b", torch.zeros(2, 6), lambda: expected)
    c, d = sums.of("c", torch.zeros(2, 8), lambda: expected), sums.of("d", torch.zeros(2, 4), lambda: expected)
    assert (a.dim, b.dim, c.dim, d.dim) == (8, 6, 8, 4)
    assert a.stack is c.stack
    assert [one.stack.sums.rows_ARK.shape[0] for one in (a, b, d)] == [3, 1, 1]


def test_a_state_of_other_sizes_is_loaded_into_the_rows_of_the_stack():
    sums = SoftEntropyProbe(tiny_llama(), labels=NAMES, n_anchors=20, anchor_sets=1)._sums
    kind = (8, torch.device("cpu"))
    a = sums.of("a", torch.zeros(2, 8), lambda: {"a": kind, "b": kind})
    b = sums.of("b", torch.zeros(2, 8))
    a.tables.grow("live", 30)
    a.tables.live[:] = 1.0
    for n in (700, 40):
        b.load_state_dict(b.state_dict() | {"open": torch.full((n, 22), 2.0)})
        assert b.tables.live[:n].eq(2.0).all()
        assert not b.tables.live[n:].any()
    assert a.tables.live[:30].eq(1.0).all()
    assert not a.tables.live[30:].any()
    b.load_state_dict(b.state_dict() | {"folded": torch.full((3, 5), 4.0, dtype=torch.float64)})
    assert b.tables.retired.eq(4.0).all()
    assert a.tables.stack is b.tables.stack


def stacks_of(probe):
    return sorted(Counter(id(probe._sums[layer].stack) for layer in probe.layers).values())


@pytest.mark.parametrize("path", [torch.no_grad, accelerator_path])
def test_layers_of_a_loaded_or_merged_probe_are_stacked(path):
    model = tiny_llama(hidden_size=64)
    ids = torch.randint(1, 40, (3, 20), generator=torch.Generator().manual_seed(0))

    def new():
        return SoftEntropyProbe(model, labels=NAMES, n_anchors=20)

    def feed_it(probe):
        with path(), probe:
            model(input_ids=ids)
        return probe

    first, whole = feed_it(new()), feed_it(feed_it(new()))
    loaded, merged, used = new(), new(), feed_it(new())
    loaded.load_state_dict(first.state_dict())
    used.load_state_dict(first.state_dict())
    merged.merge(first)
    for probe in (loaded, merged, used):
        feed_it(probe)
        assert stacks_of(probe) == [5]
        torch.testing.assert_close(probe.sums, whole.sums, rtol=1e-5, atol=1e-5)


def test_sums_that_are_elsewhere_are_moved_together():
    """As of a state, which is loaded into host memory, when the model runs on a GPU; "meta" stands for it."""
    sums, cpu, meta = (
        SoftEntropyProbe(tiny_llama(), labels=NAMES, n_anchors=20)._sums,
        *map(torch.device, ("cpu", "meta")),
    )
    names = ["a", "b", "c"]
    for name in names:
        sums.of(name, torch.zeros(2, 8), lambda: dict.fromkeys(names, (8, cpu)))
    expected = {"a": (8, meta), "b": (8, meta), "c": (8, cpu)}
    moved = sums.of("a", torch.zeros(2, 8, device="meta"), lambda: expected)
    assert moved.device == meta
    assert sums["b"].stack is moved.stack
    assert sums["c"].device == cpu
    assert sums.of("b", torch.zeros(2, 8, device="meta"), lambda: expected).stack is moved.stack


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_users_default_dtype_changes_nothing(dtype):
    model = tiny_llama(hidden_size=64)
    ids = torch.randint(1, 40, (3, 20), generator=torch.Generator().manual_seed(0))
    found = []
    for default in (torch.float32, dtype):
        torch.set_default_dtype(default)
        try:
            with accelerator_path(), SoftEntropyProbe(model, labels=NAMES, n_anchors=20, anchor_sets=1) as probe:
                model(input_ids=ids)
            found.append(probe.result().to_pandas("nats").value)
        finally:
            torch.set_default_dtype(torch.float32)
    np.testing.assert_allclose(*found, atol=1e-6)


def test_runs_are_layers_one_after_the_other_in_a_stack():
    one, other = object(), object()
    group = [Layer(one, 2), Layer(one, 3), Layer(one, 5), Layer(one, 4), Layer(other, 5), Layer(other, 6)]
    found = [(run.stack is one, run.places, run.of_group) for run in runs(group)]
    assert found == [
        (True, slice(2, 4), slice(0, 2)),
        (True, slice(5, 6), slice(2, 3)),
        (True, slice(4, 5), slice(3, 4)),
        (False, slice(5, 7), slice(4, 6)),
    ]
    assert list(runs([])) == []


def test_a_stack_grows_with_zeros_and_keeps_what_is_there():
    stack = RowStack((2, 3, 4), torch.float32, torch.device("cpu"), most_rows=40)
    stack.rows_ARK += 1.0
    stack.grow(2)
    assert stack.rows_ARK.shape == (2, 3, 4)
    for n in (4, 5, 20, 39, 41):
        stack.grow(n)
        assert stack.rows_ARK.shape == (2, n, 4)
        assert stack.rows_ARK[:, :3].eq(1.0).all()
        assert not stack.rows_ARK[:, 3:].any()


@pytest.mark.parametrize("path", [torch.no_grad, accelerator_path])
def test_rows_are_added_and_copied_layer_by_layer(path):
    rows_GRK, at_L = torch.randn(3, 10, 4), torch.tensor([7, 1, 7])
    values_GLK, before = torch.randn(3, 3, 4), rows_GRK.clone()
    with path():
        torch.testing.assert_close(copy_of(rows_GRK, at_L), before[:, at_L])
        for ours, block in beside(rows_GRK, values_GLK.split([1, 3], dim=-1)):
            add_at(ours, at_L, block)
    for g, r in np.ndindex(3, 10):
        added = values_GLK[g][at_L == r].sum(dim=0)
        torch.testing.assert_close(rows_GRK[g, r], before[g, r] + added)
