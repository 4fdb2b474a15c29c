"""Layers that are added together: how many at a time changes nothing."""

import pytest
import torch

from softh_probe import SoftEntropyProbe
from softh_probe.accumulators import assigned_layers, batch
from softh_probe.accumulators.assigned_layers import LayersOnAccelerator
from tests.helpers.comparisons import assert_same_values
from tests.helpers.corpora import COLUMNS, corpus_of, documents, values_of
from tests.helpers.models import tiny_llama
from tests.helpers.probes import NAMES, run_planned


def run_over_a_corpus():
    language, topic = values_of(40)
    corpus = corpus_of(documents(40), language=language, topic=topic)
    return run_planned(tiny_llama(), corpus, [*NAMES, *COLUMNS], 70, anchor_sets=2)


def attached_to_generate():
    model, ids = tiny_llama(), torch.tensor([documents(1)[0][:5]] * 3)
    with SoftEntropyProbe(model, labels=NAMES, anchor_sets=1) as probe:
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=300, do_sample=True, num_beams=2)
    return probe


def states_without_direction():
    """Zero in one layer, not finite in another: these positions are counted in the layers next to them."""
    model = tiny_llama()

    def spoil(value):
        def hook(module, args, output):
            spoilt = output.clone()
            spoilt[:, 2:4] = value
            return spoilt

        return hook

    ids = torch.tensor(documents(6)[0] * 4).view(4, -1)
    handles = [model.model.layers[i].register_forward_hook(spoil(v)) for i, v in ((0, 0.0), (2, float("nan")))]
    with SoftEntropyProbe(model, labels=NAMES, anchor_sets=1) as probe, torch.inference_mode():
        for _ in range(3):
            model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return probe


@pytest.mark.parametrize("measure", [run_over_a_corpus, attached_to_generate, states_without_direction])
@pytest.mark.parametrize(
    ("most_layers", "most_bytes"),
    [pytest.param(1, 2**23, marks=pytest.mark.slow), (2, 2**23), pytest.param(32, 1, marks=pytest.mark.slow)],
)
def test_layers_at_a_time_change_nothing(measure, most_layers, most_bytes, monkeypatch):
    together = measure().result().to_pandas("nats")
    monkeypatch.setattr(assigned_layers, "MOST_LAYERS", most_layers)
    monkeypatch.setattr(assigned_layers, "MOST_BYTES", most_bytes)
    assert_same_values(measure().result().to_pandas("nats"), together)


def test_layers_are_added_together_as_far_as_memory_allows(monkeypatch):
    groups, add_layers = [], batch.DeviceAccumulator._add_layers

    def watched(self):
        if not self._group.is_empty:
            groups.append(len(self._group._layers))
        add_layers(self)

    monkeypatch.setattr(batch.DeviceAccumulator, "_add_layers", watched)
    model, ids = tiny_llama(), torch.ones(2, 10, dtype=torch.int64)
    for most_bytes, expected in ((2**23, [5]), (4 * 20 * 100 * 2, [2, 2, 1]), (1, [1] * 5)):
        groups.clear()
        monkeypatch.setattr(assigned_layers, "MOST_BYTES", most_bytes)
        with SoftEntropyProbe(model, labels=["input_unigram"], anchor_sets=1), torch.inference_mode():
            model(input_ids=ids, use_cache=False)
        assert groups == expected


def test_an_accelerator_adds_a_few_layers_together_within_twice_the_memory(monkeypatch):
    of_layer = LayersOnAccelerator.most_layers_of
    monkeypatch.setattr(assigned_layers, "MOST_BYTES_ELSEWHERE", 1000)
    assert [of_layer(size) for size in (100, 200, 400, 600, 1001, 2001)] == [10, 5, 5, 3, 1, 0]
