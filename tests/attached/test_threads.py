"""A model that several threads run: each forward pass counts as if it were alone."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from softh_probe import SoftEntropyProbe
from softh_probe.errors import ProbeError
from softh_probe.hooks import recorder
from softh_probe.hooks.left_out import OTHER_PROBE
from tests.helpers.generation import EOS, alone, assert_same, fed_back, left_padded, prompts

LABELS = ["input_unigram", "output_bigram"]
TEXTS = prompts(9, 4, 12, 7, 5, 8, 3, 10)


@pytest.fixture
def slow_model(model):
    """A model whose forward passes overlap if nothing keeps them apart."""
    for block in model.model.layers:
        block.register_forward_hook(lambda *_: time.sleep(0.002))
    return model


def in_threads(function, items):
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(torch.no_grad()(function), items))


def test_each_thread_has_its_pass(slow_model):
    expected = alone(slow_model, TEXTS, LABELS)
    probe = SoftEntropyProbe(slow_model, labels=LABELS, anchor_sets=1)
    with probe:
        in_threads(lambda text: slow_model(text[None]), TEXTS)
        in_threads(lambda text: probe.positions, TEXTS)
    assert_same(probe, expected)


def test_generate_in_several_threads(slow_model):
    """The sequences of each end at other times, and their steps alternate."""
    batches = [left_padded(prompts(9, 4, seed=seed)) for seed in range(6)]
    how = {"max_new_tokens": 8, "do_sample": False}
    probe = SoftEntropyProbe(slow_model, labels=LABELS, anchor_sets=1)
    with probe:
        outputs = in_threads(lambda batch: slow_model.generate(**batch, **how), batches)
    fed = [text for batch, output in zip(batches, outputs, strict=True) for text in fed_back(output, batch)]
    assert len({len(text) for text in fed}) > 2
    assert EOS in torch.cat(outputs)
    assert_same(probe, alone(slow_model, fed, LABELS))
    assert not {"prepare_inputs_for_generation", "_get_stopping_criteria"} & vars(slow_model).keys()


def test_labels_masks_and_pauses_hold_in_the_thread_that_sets_them(slow_model):
    kinds = [i % 3 for i in range(len(TEXTS))]
    expected = SoftEntropyProbe(slow_model, labels=(), anchor_sets=1)
    with expected, torch.no_grad():
        for text, kind in zip(TEXTS, kinds, strict=True):
            if kind:
                with expected.labelled(kind=torch.tensor([kind])):
                    slow_model(text[None, : len(text) - kind])

    probe = SoftEntropyProbe(slow_model, labels=(), anchor_sets=1)

    def run(item):
        text, kind = item
        if not kind:
            with probe.paused():
                return slow_model(text[None])
        mask = torch.arange(len(text)) < len(text) - kind
        with probe.labelled(kind=torch.tensor([kind])), probe.masked(mask[None]):
            return slow_model(text[None])

    with probe:
        in_threads(run, zip(TEXTS, kinds, strict=True))
    assert probe.positions == expected.positions
    torch.testing.assert_close(probe.sums, expected.sums, rtol=1e-4, atol=1e-4)
    ours, theirs = (
        p.result().conditional_entropy("kind").set_index(["name", "label"]).value for p in (probe, expected)
    )
    torch.testing.assert_close(
        torch.tensor(ours[theirs.index].values), torch.tensor(theirs.values), rtol=1e-4, atol=1e-4
    )


def test_blocks_of_the_main_thread_hold_in_threads_without_any(model):
    probe = SoftEntropyProbe(model, labels=(), anchor_sets=1)
    with probe:
        with probe.paused():
            in_threads(lambda text: model(text[None]), TEXTS)
        assert probe.positions == 0
        with probe.labelled(topic=torch.tensor([3])):
            in_threads(lambda text: model(text[None]), TEXTS[:2])
    assert probe.result().info["labelled_positions"]["topic"] == len(TEXTS[0]) + len(TEXTS[1])


def test_a_training_thread_beside_an_evaluation_does_not_count(model):
    """Its layers are called while a forward pass that counts is under way."""
    inside, ended = threading.Event(), threading.Event()
    main = threading.get_ident()

    def wait(*_):
        if threading.get_ident() == main:
            inside.set()
            ended.wait(10)

    handle = model.model.layers[0].register_forward_hook(wait)
    probe = SoftEntropyProbe(model, labels=(), anchor_sets=1)

    def paused():
        inside.wait(10)
        with probe.paused(), torch.no_grad():
            model(TEXTS[1][None])
        ended.set()

    with probe, torch.no_grad():
        thread = threading.Thread(target=paused)
        thread.start()
        model(TEXTS[0][None])
        thread.join()
    handle.remove()
    assert_same(probe, alone(model, TEXTS[:1], ()))


def test_threads_that_wait_for_each_other_are_refused(model, monkeypatch):
    """Inside a forward pass, one waits for the other's: no order of them would do."""
    monkeypatch.setattr(recorder, "PATIENCE_S", 0.2)
    barrier = threading.Barrier(2, timeout=10)

    def meet(*_):
        barrier.wait()

    model.model.layers[0].register_forward_hook(meet)
    probe = SoftEntropyProbe(model, labels=(), anchor_sets=1)
    with pytest.raises(ProbeError, match="run the model in one thread at a time"), probe:
        in_threads(lambda text: model(text[None]), TEXTS[:2])


def test_the_block_ends_after_the_forward_pass_of_another_thread(model):
    inside = threading.Event()

    def slow(*_):
        inside.set()
        time.sleep(0.05)

    model.model.layers[0].register_forward_hook(slow)
    probe = SoftEntropyProbe(model, labels=(), anchor_sets=1)
    with probe:
        thread = threading.Thread(target=torch.no_grad()(lambda: model(TEXTS[0][None])))
        thread.start()
        inside.wait(10)
    thread.join()
    assert_same(probe, alone(model, TEXTS[:1], ()))


@pytest.mark.filterwarnings("ignore:forward passes")
def test_probes_that_threads_have_of_their_own_measure_their_own_passes(slow_model):
    expected = alone(slow_model, TEXTS, LABELS)
    common = SoftEntropyProbe(slow_model, labels=LABELS, anchor_sets=1)

    def measure(text):
        probe = SoftEntropyProbe(slow_model, labels=LABELS, anchor_sets=1)
        with probe:
            slow_model(text[None])
        return probe

    with common:
        probes = in_threads(measure, TEXTS)
    for probe in probes[1:]:
        probes[0].merge(probe)
    assert_same(probes[0], expected)
    assert common.positions == 0
    assert common.state_dict()["left_out"] == {OTHER_PROBE: len(TEXTS)}
