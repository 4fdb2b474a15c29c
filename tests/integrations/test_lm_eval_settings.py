"""The probe's arguments in the harness's `model_args`: a mistake is named in one line before the model is loaded."""

import subprocess
import sys

import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import simple_parse_args_string

from softh_probe.errors import InputError
from softh_probe.integrations import lm_eval_model
from softh_probe.integrations.lm_eval_settings import split_settings

MISTAKES = {
    "softh_n_anchor=50": "softh_n_anchor: no such argument; did you mean softh_n_anchors?",
    "softh_modules=a": "softh_modules: no such argument; expected one of softh_labels, ",
    "softh_plan=a": "softh_plan: no such argument",
    "softh_=a": "softh_: no such argument",
    "soft_labels=input_unigram": "soft_labels: no such argument; did you mean softh_labels?",
    "softh-anchor-sets=4": "softh-anchor-sets: no such argument; did you mean softh_anchor_sets?",
    "softh_labels=input_unigram,output_unigram": r"output_unigram: join several label sets with \+",
    "softh_labels=input_unigrams": "softh_labels: unknown label set 'input_unigrams'",
    "softh_labels=input_unigram+input_unigram": "softh_labels: input_unigram stands twice",
    "softh_labels=3": "softh_labels: expected a list of names, got 3",
    "softh_n_anchors=many": "softh_n_anchors: expected a whole number, or several with commas, got .*many",
    "softh_n_anchors=1": "softh_n_anchors: expected an integer of at least 2, got 1",
    "softh_anchor_sets=0": "softh_anchor_sets: expected an integer",
    "softh_seed=2.5": "softh_seed: expected an integer, got 2.5",
    "softh_calibration=precise": "softh_calibration: expected exact, leading_order, amos",
    "softh_count=once": "softh_count: expected 'forwarded' or 'unique_prefix', got 'once'",
    "softh_anchors=random": "softh_anchors: expected ",
    "softh_positions=assistant": "softh_positions: assistant is known of data only",
    "softh_positions=skip": "softh_positions: expected all, ",
    "softh_positions=last": "softh_positions: no token follows the last one, and output_unigram needs one",
    "softh_skip_special_tokens=yes": "softh_skip_special_tokens: expected a tokenizer or a list of token ids",
    "softh_layers=first": "softh_layers: expected embeddings, .* got 'first'",
    "softh_layers=0.5": r"softh_layers: expected embeddings, .* got 0\.5",
    "softh_layers=true": "softh_layers: expected embeddings, .* got True",
}


@pytest.mark.parametrize(("text", "message"), MISTAKES.items(), ids=MISTAKES)
def test_mistakes_are_named_before_the_model_is_loaded(text, message, monkeypatch):
    monkeypatch.setattr(HFLM, "__init__", lambda *_, **__: pytest.fail("the model is loaded"))
    with pytest.raises(InputError, match=f"^{message}") as error:
        lm_eval_model.SoftEntropyLM.create_from_arg_string(f"pretrained=nowhere,{text}")
    assert "\n" not in str(error.value)


def test_right_arguments_reach_the_probe_and_the_others_the_model():
    text = "pretrained=gpt2,dtype=float32,softh_count=unique_prefix,softh_layers=-1+layer.2,softh_labels=,softh_seed=3"
    settings, others = split_settings(simple_parse_args_string(text), theirs={"pretrained", "dtype"})
    assert settings == {"count": "unique_prefix", "layers": [-1, "layer.2"], "labels": [], "seed": 3}
    assert others == {"pretrained": "gpt2", "dtype": "float32"}
    text = "softh_positions=completion+skip:4,softh_skip_special_tokens=0+2"
    assert split_settings(simple_parse_args_string(text))[0] == {
        "positions": ["completion", "skip:4"],
        "skip_special_tokens": [0, 2],
    }
    for value, read in (("True", True), ("7", [7])):
        settings, _ = split_settings(simple_parse_args_string(f"softh_skip_special_tokens={value}"))
        assert settings == {"skip_special_tokens": read}
    assert split_settings({"softh_layers": 4})[0] == {"layers": [4]}
    assert split_settings({"softh_layers": "4"})[0] == {"layers": [4]}


@pytest.mark.slow
def test_the_command_says_it_in_one_line(tmp_path):
    arguments = ["run", "--model", "hf-softh", "--model_args", "pretrained=nowhere,softh_label=a", "--tasks", "lambada"]
    done = subprocess.run(
        [sys.executable, "-m", "softh_probe.integrations.lm_eval_model", *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode
    assert done.stderr.splitlines()[-1].startswith("softh-probe-lm-eval: softh_label: no such argument; did you mean")
    assert "Traceback" not in done.stderr
