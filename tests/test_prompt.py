"""Python at the prompt: what dir, help and repr show, and what a wrong first argument is answered with."""

import pydoc
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import TextGenerationPipeline, Trainer, TrainingArguments

import softh_probe
import softh_probe.distributed
from softh_probe import ProbeResult, SoftEntropyProbe
from softh_probe.errors import InputError, ProbeError
from softh_probe.run_steps import RunSteps


def measured(model) -> SoftEntropyProbe:
    probe = SoftEntropyProbe(model, labels=["input_unigram"], n_anchors=20, anchor_sets=2)
    with probe, torch.no_grad(), probe.labelled(language=torch.tensor([0, 1])):
        model(torch.arange(1, 15).view(2, 7))
    return probe


def test_dir_of_the_package_lists_public_names_alone():
    assert dir(softh_probe) == sorted(softh_probe.__all__)
    assert "gather" in dir(softh_probe.distributed)


def test_help_tells_what_users_need_before_what_runs_do():
    text = pydoc.render_doc(SoftEntropyProbe, renderer=pydoc.plaintext)
    first = ["with probe:", "labelled(", "masked(", "counted(", "paused()", "result()", "merge(", "state_dict()"]
    places = [text.index(name) for name in [*first, "Args:", "result(self", "labelled(self"]]
    assert places == sorted(places)
    of_runs = [name for name in vars(RunSteps) if not name.startswith("_")]
    assert len(of_runs) > 7
    assert min(text.index(f"{name}(self") for name in of_runs) > places[-1]


def test_results_and_probes_show_themselves_in_one_line(model, tmp_path):
    probe = measured(model)
    assert repr(probe) == (
        "<SoftEntropyProbe of LlamaForCausalLM: label sets input_unigram, language; 2 x 20 anchors; "
        "14 positions counted>"
    )
    expected = (
        "<ProbeResult: 5 rows embeddings … final_norm; label sets input_unigram, language; 2 x 20 anchors; "
        "14 positions>"
    )
    result = probe.result()
    assert repr(result) == expected
    result.save(tmp_path)
    assert repr(ProbeResult.load(tmp_path)) == expected
    assert repr(SoftEntropyProbe(model, labels=(), anchor_sets=1)) == (
        "<SoftEntropyProbe of LlamaForCausalLM: label sets none; 1 x 100 anchors; 0 positions counted>"
    )


def test_many_label_sets_with_odd_names_stay_one_short_line(model):
    probe = SoftEntropyProbe(model, labels=(), n_anchors=20, anchor_sets=1)
    labels = {f"a\nb{i}": torch.arange(14).view(2, 7) % 3 for i in range(40)}
    with probe, torch.no_grad(), probe.labelled(**labels):
        model(torch.arange(1, 15).view(2, 7))
    for shown in (repr(probe), repr(probe.result())):
        assert "\n" not in shown
        assert len(shown) < 200
        assert "and 32 more" in shown


def test_what_is_no_model_is_answered_with_what_to_give(model, tokenizer, tmp_path):
    pipe = TextGenerationPipeline(model=model, tokenizer=tokenizer)
    trainer = Trainer(model, TrainingArguments(str(tmp_path), report_to=[], use_cpu=True))
    for given, remedy in (
        ("gpt2", "got 'gpt2'; load it first: AutoModelForCausalLM.from_pretrained('gpt2').eval()"),
        (Path("a/b"), "AutoModelForCausalLM.from_pretrained('a/b').eval()"),
        (tokenizer, "a tokenizer has no layers; give the model that it is for"),
        (model.config, "got an object of class LlamaConfig; a config has no weights; make its model"),
        (pipe, "got an object of class TextGenerationPipeline; give the model in it, its attribute .model"),
        (trainer, "got an object of class Trainer; give the model in it, its attribute .model"),
        (type(model), "got the class LlamaForCausalLM; give a model of this class"),
        (model.state_dict(), "load them into a model: model.load_state_dict"),
        (None, "got None; load a model"),
    ):
        with pytest.raises(InputError, match="model: expected a torch module") as error:
            SoftEntropyProbe(given)
        assert remedy in str(error.value)
    with pytest.raises(InputError, match="model: expected a torch module, got 'x'"):
        SoftEntropyProbe("x", modules={"a": nn.Linear(2, 2)})


def test_a_model_in_training_mode_is_answered_with_eval(model):
    probe = SoftEntropyProbe(model.train(), anchor_sets=1)
    with probe:
        model(torch.arange(1, 15).view(2, 7))
    with pytest.raises(ProbeError, match=r"in training mode, and .* call model.eval\(\) first \(1 in training mode"):
        probe.result()
    probe = SoftEntropyProbe(model.eval(), anchor_sets=1)
    with probe:
        model(torch.arange(1, 3).view(2, 1))
    with pytest.raises(ProbeError, match="long enough for the label sets") as error:
        probe.result()
    assert "training" not in str(error.value)
