"""lm-evaluation-harness: what its requests feed, against each of them alone."""

import subprocess
import sys

import lm_eval
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from softh_probe import ProbeResult, SoftEntropyProbe
from softh_probe.replace import replaced

LABELS = ["input_unigram", "output_unigram"]


@pytest.fixture
def lm(model, tokenizer):
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3, max_length=32)


def requests(pairs, kind="loglikelihood"):
    return [Instance(request_type=kind, doc={}, arguments=pair, idx=i) for i, pair in enumerate(pairs)]


PAIRS = [("a b c", " d e"), ("a b c", " f"), ("g h i j k l", " m n o"), ("p", " q r s t u v w"), ("x y", " z")]


def alone(model, texts, **settings):
    probe = SoftEntropyProbe(model, **{"labels": LABELS, **settings})
    with probe, torch.no_grad():
        for ids in texts:
            model(input_ids=torch.tensor([ids]), use_cache=False)
    return probe


def assert_same(probe, expected):
    assert probe.positions == expected.positions
    torch.testing.assert_close(probe.sums, expected.sums, rtol=1e-4, atol=1e-4)


def test_loglikelihoods_count_no_padding(lm, tokenizer):
    probe = SoftEntropyProbe(lm.model, labels=LABELS)
    with probe:
        lm.loglikelihood(requests(PAIRS), disable_tqdm=True)
    fed = [tokenizer(context + continuation).input_ids[:-1] for context, continuation in PAIRS]
    # Continuations of one token after the same context share their pass.
    fed.remove(tokenizer("a b c").input_ids)
    expected = alone(lm.model, fed)
    every = alone(lm.model, [*fed, tokenizer("a b c").input_ids])
    assert probe.positions in (expected.positions, every.positions)
    assert_same(probe, expected if probe.positions == expected.positions else every)


def test_each_prefix_once(lm, tokenizer):
    probe = SoftEntropyProbe(lm.model, labels=(), count="unique_prefix")
    with probe:
        lm.loglikelihood(requests(PAIRS), disable_tqdm=True)
        lm.loglikelihood(requests(PAIRS), disable_tqdm=True)
    fed = [tokenizer(context + continuation).input_ids[:-1] for context, continuation in PAIRS]
    prefixes = {tuple(ids[: k + 1]) for ids in fed for k in range(len(ids))}
    assert probe.positions == len(prefixes)


def test_rolling_loglikelihoods(lm, tokenizer):
    text = " ".join(list("abcdefghijklmnopqrst"))
    probe = SoftEntropyProbe(lm.model, labels=LABELS)
    with probe:
        lm.loglikelihood_rolling(requests([(text,), ("a b",)], "loglikelihood_rolling"), disable_tqdm=True)
    fed = [[1, *tokenizer(t).input_ids[:-1]] for t in (text, "a b")]
    assert_same(probe, alone(lm.model, fed))


def test_passes_that_find_the_batch_size_do_not_count(model, tokenizer):
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size="auto", max_batch_size=4, max_length=32)
    probe = SoftEntropyProbe(lm.model, labels=())
    with probe:
        lm.loglikelihood(requests(PAIRS[2:]), disable_tqdm=True)
    fed = [tokenizer(context + continuation).input_ids[:-1] for context, continuation in PAIRS[2:]]
    assert_same(probe, alone(lm.model, fed, labels=()))


def test_generation(lm, tokenizer):
    arguments = {"until": ["<eos>"], "max_gen_toks": 5, "do_sample": False}
    contexts, outputs = ["a b c d e", "x y"], []

    def note(generate, *args, **kwargs):
        outputs.append(generate(*args, **kwargs))
        return outputs[-1]

    probe = SoftEntropyProbe(lm.model, labels=())
    with replaced(lm.model, "generate", note), probe:
        lm.generate_until(requests([(c, dict(arguments)) for c in contexts], "generate_until"), disable_tqdm=True)
    (output,) = outputs
    lengths = [len(tokenizer(c).input_ids) for c in contexts]
    fed = [row[max(lengths) - n : -1].tolist() for row, n in zip(output, lengths, strict=True)]
    assert probe.positions == 5 + 2 + 2 * 4
    assert_same(probe, alone(lm.model, fed, labels=()))


def test_simple_evaluate(lm, task, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(task / "cache"))
    with SoftEntropyProbe(lm.model, labels=LABELS) as probe:
        results = lm_eval.simple_evaluate(
            model=lm, tasks=["letters"], task_manager=TaskManager(include_path=str(task)), bootstrap_iters=0
        )
    assert "acc,none" in results["results"]["letters"]
    assert probe.positions > 0
    assert not probe.result().to_pandas().empty


def test_the_command_saves_the_probe_s_result_beside_its_own(model, tokenizer, task):
    model.save_pretrained(task / "model")
    tokenizer.save_pretrained(task / "model")
    arguments = f"pretrained={task / 'model'},dtype=float32,softh_labels=input_unigram+output_unigram,softh_seed=3"
    command = ["run", "--model", "hf-softh", "--model_args", arguments, "--tasks", "letters", "--device", "cpu"]
    command += ["--include_path", str(task), "--output_path", str(task / "out"), "--batch_size", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "softh_probe.integrations.lm_eval_model", *command], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (theirs,) = (task / "out").rglob("results_*.json")
    (ours,) = theirs.parent.glob("softh_probe_*")
    result = ProbeResult.load(ours)
    assert result.to_pandas().query("metric == 'mutual_information'").label_set.unique().tolist() == LABELS
    assert "positions in" in done.stdout
