"""What attached results say of their model, and whether its weights are those that were measured."""

import re

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from softh_probe import SoftEntropyProbe
from softh_probe.errors import InputError
from softh_probe.models import identity
from softh_probe.models.checkpoint import load_checkpoint
from softh_probe.models.fingerprint import weights_fingerprint
from softh_probe.models.identity import describe_model
from softh_probe.models.source import resolve_model

IDS = torch.arange(12).view(2, 6)


def measured(model, **settings):
    probe = SoftEntropyProbe(model, labels=(), anchor_sets=1, n_anchors=8, **settings)
    with probe, torch.no_grad():
        model(IDS)
    return probe


def trained(model, optimizer):
    model.train()
    model(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    model.eval()


def test_an_attached_model_is_described_as_that_of_a_run(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    found = measured(loaded).result().info["model"]
    with load_checkpoint(resolve_model(str(tmp_path))) as checkpoint:
        of_run = checkpoint.info
    assert found.keys() == of_run.keys()
    unknown = {"trust_remote_code": None, "allow_pickle": None, "model_kwargs": None}
    assert found == {**of_run, **unknown}
    assert found["weights_sha256"] == weights_fingerprint(model.model)
    assert found["n_parameters"] == sum(p.numel() for p in model.model.parameters())
    assert found["model"] == str(tmp_path)


def test_a_model_that_is_not_of_transformers():
    net = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 8)).eval()
    found = measured(net, modules={"last": net[1]}).result().info["model"]
    assert (found["model"], found["model_type"], found["class"]) == (None, None, "Sequential")
    assert (found["n_parameters"], found["dtype"]) == (20 * 8 + 72, "float32")
    assert found["weights_sha256"] == weights_fingerprint(net)


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"foreach": True}])
def test_results_have_the_fingerprint_of_the_weights_that_were_measured(model, options):
    optimizer = torch.optim.AdamW(model.parameters(), **options)  # a fused one changes no version
    for _ in range(2):
        assert measured(model).result().info["model"]["weights_sha256"] == weights_fingerprint(model.model)
        trained(model, optimizer)


def test_a_row_that_is_written_past_torchs_count_has_another_fingerprint(model):
    before = measured(model).result().info["model"]["weights_sha256"]
    model.model.layers[0].mlp.up_proj.weight.data[3] = 9.0
    after = measured(model).result().info["model"]["weights_sha256"]
    assert after == weights_fingerprint(model.model) != before


@pytest.mark.parametrize("options", [{}, {"fused": True}])
def test_weights_that_change_before_the_result_are_not_taken_for_those_that_were_measured(model, options):
    probe = measured(model)
    trained(model, torch.optim.AdamW(model.parameters(), **options))
    for _ in range(2):
        found = probe.result().info["model"]
        assert found["weights_sha256"] is None
        assert found["weights_note"].startswith("the weights were changed or moved since they were measured first")
    assert probe.new_like().origin.weights is not probe.origin.weights
    fresh = measured(model).result().info["model"]
    assert fresh["weights_sha256"] == weights_fingerprint(model.model)
    assert fresh["weights_note"] is None


def test_a_single_value_written_past_torchs_count_is_seen_in_small_tensors(model):
    probe = measured(model)
    model.model.norm.weight.data[0] += 1  # .data counts no change
    assert probe.result().info["model"]["weights_sha256"] is None


@pytest.mark.parametrize("part", ["weights_fingerprint", "_mark"])
def test_weights_that_nobody_can_read_do_not_cost_the_result(model, monkeypatch, part):
    def refuse(model):
        raise NotImplementedError("no bytes")

    monkeypatch.setattr(identity, part, refuse)
    found = measured(model).result().info["model"]
    assert found["weights_sha256"] is None
    assert found["weights_note"] == "the weights could not be read (NotImplementedError: no bytes)"


def test_offloaded_and_spread_weights_say_why_they_have_no_fingerprint():
    assert describe_model(nn.Linear(2, 2, device="meta"))["weights_note"].startswith("some weights are offloaded")
    spread = nn.Linear(2, 2)
    spread.weight.ds_id = 3
    assert describe_model(spread)["weights_note"] == "the weights are spread over several processes"


@pytest.mark.parametrize("given", [{"name": 500}, {"name": b"x"}, {"notes": ["no dropout"]}])
def test_names_and_notes_that_no_page_could_show_are_refused(model, given):
    probe = SoftEntropyProbe(model, labels=(), anchor_sets=1, n_anchors=8)
    with probe, torch.no_grad():
        model(IDS + 5)
    ((argument, value),) = given.items()
    with pytest.raises(InputError, match=re.escape(f"{argument}: expected a string, got {value!r}")):
        probe.result(**given)


def test_name_notes_tokenizer_time_and_versions(model, tokenizer):
    probe = SoftEntropyProbe(model, labels=(), anchor_sets=1, n_anchors=8, skip_special_tokens=tokenizer)
    with probe, torch.no_grad():
        model(IDS + 5)
    info = probe.result(name="ablation", notes="without dropout").info
    assert (info["name"], info["notes"]) == ("ablation", "without dropout")
    assert info["tokenizer"]["class"] == type(tokenizer).__name__
    assert info["tokenizer"]["n_tokens"] == len(tokenizer)
    assert info["created"].endswith("+00:00")
    assert {"torch", "transformers", "python", "softh-probe"} <= info["versions"].keys()
    assert (info["settings"]["count"], info["tokens"]) == ("forwarded", 12)
    again = probe.new_like()
    again.load_state_dict(probe.state_dict())
    assert again.result().info["tokenizer"] == info["tokenizer"]
