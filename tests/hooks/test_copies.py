"""Copies of a model that are made inside the probe's block have no trace of it."""

import copy
import io
import pickle
import threading

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from transformers import StoppingCriteria

from softh_probe import SoftEntropyProbe
from softh_probe.errors import ProbeError
from softh_probe.patching import replaced

IDS = torch.arange(3, 23).view(2, 10)


def saved(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def by_pickle(model):
    data = pickle.dumps(model)
    assert b"softh_probe" not in data
    return pickle.loads(data)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": by_pickle,
    "save": saved,
    "average": lambda model: AveragedModel(model).module,
    "inside another": lambda model: copy.deepcopy(nn.Sequential(model))[0],
}


def trace(model):
    """Attributes and hooks by module, without tensors and inner modules."""
    return {
        name: {k: list(v) if k.endswith("hooks") else None for k, v in vars(module).items()}
        for name, module in model.named_modules()
    }


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_a_copy_runs_freely_and_is_not_counted(model, make):
    expected = trace(model)
    output = model(IDS).logits
    probe = SoftEntropyProbe(model)
    with probe, torch.no_grad():
        copied = make(model)
        assert trace(copied) == expected
        torch.testing.assert_close(copied(IDS).logits, output)
        assert probe.positions == 0
        model(IDS)
        copied.get_input_embeddings().weight.zero_()
        assert not copied(IDS).logits.equal(output)  # it computes with weights of its own
        copied.generate(IDS, max_new_tokens=2, do_sample=False)
    assert probe.positions == 2 * 9
    assert trace(model) == expected
    torch.testing.assert_close(model(IDS).logits, output)


def test_a_copy_can_be_probed_beside_the_original(model):
    with SoftEntropyProbe(model) as probe, torch.no_grad():
        copied = copy.deepcopy(model)
        with SoftEntropyProbe(copied) as other:
            copied(IDS)
            model(IDS[:1])
    assert (probe.positions, other.positions) == (9, 18)


def test_a_shallow_copy_shares_the_modules_but_is_another_model(model):
    expected = trace(model)
    probe = SoftEntropyProbe(model)

    def evaluate():
        with probe, torch.no_grad():
            shallow = copy.copy(model)
            assert vars(shallow).keys() == vars(model).keys() - {"forward", "_replicate_for_data_parallel"}
            shallow(IDS)
            model(IDS[:1])

    with pytest.warns(UserWarning, match="1 of another model that shares modules"):
        evaluate()
    assert probe.positions == 9
    assert trace(model) == expected


def test_a_copy_made_while_the_model_generates(model):
    """Wrappers of `generate` stand on the model as long as it runs."""
    expected, copies = trace(model), []

    class Copies(StoppingCriteria):
        def __call__(self, input_ids, scores, **_):
            copies.append(copy.deepcopy(model))
            return torch.zeros(len(input_ids), dtype=torch.bool)

    with SoftEntropyProbe(model):
        model.generate(IDS, max_new_tokens=2, do_sample=False, stopping_criteria=[Copies()])
    assert [trace(copied) for copied in copies] == [expected] * 2


def test_hooks_and_wrappers_of_others_are_copied(model):
    calls = []
    block = model.model.layers[0]
    block.register_forward_hook(lambda *_: calls.append("hook"))
    with SoftEntropyProbe(model), replaced(model, "forward", lambda forward, *a, **k: forward(*a, **k)):
        outer = model.forward
        model.forward = lambda *args, **kwargs: calls.append("forward") or outer(*args, **kwargs)
        copied = copy.deepcopy(model)
        assert "forward" in vars(copied)
        del model.forward
    copied(IDS)
    assert calls == ["forward", "hook"]


def test_a_parametrized_module_copies_itself():
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), nn.Linear(8, 8)).eval()
    probe = SoftEntropyProbe(net, modules={"first": net[0], "second": net[1]})
    rows = torch.randn(5, 8)
    with probe:
        copied = copy.deepcopy(net)
        assert not copied[0]._forward_hooks, copied[0]._forward_hooks
        assert vars(copied[0]).keys() == vars(net[0]).keys() - {"__deepcopy__", "_replicate_for_data_parallel"}
        torch.testing.assert_close(copied(rows), net(rows))
    assert probe.positions == 5


def test_a_traced_module_copies_itself(model):
    net = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval())
    probe = SoftEntropyProbe(net, modules={"all": net})
    with probe:
        for copied in (copy.deepcopy(net), by_pickle(net)):
            copied(torch.randn(3, 8))
            assert probe.positions == 0


def test_replicas_of_data_parallel_are_refused(model):
    """A machine with several GPUs makes them; here they are made as it does."""
    probe = SoftEntropyProbe(model)
    with pytest.raises(ProbeError, match="DataParallel runs copies of the model"), probe:
        replica = model.model._replicate_for_data_parallel()
        assert "forward" not in vars(replica)
        assert not model.model.layers[0]._replicate_for_data_parallel()._forward_hooks


def test_pickling_is_as_before_after_the_block(model):
    before = nn.Module.__reduce_ex__
    with SoftEntropyProbe(model), SoftEntropyProbe(model):
        assert nn.Module.__reduce_ex__ is not before
    assert nn.Module.__reduce_ex__ is before
    assert "__reduce_ex__" not in vars(nn.Module)


def test_a_copy_in_another_thread(model):
    copies = []
    with SoftEntropyProbe(model) as probe:
        thread = threading.Thread(target=lambda: copies.append(copy.deepcopy(model)))
        thread.start()
        thread.join()
        copies[0](IDS)
    assert probe.positions == 0
