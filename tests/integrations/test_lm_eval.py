"""lm-evaluation-harness: what its requests feed, against each of them alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import lm_eval
import pytest
import torch
import yaml
from accelerate import Accelerator
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from torch.distributed.tensor import DTensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from softh_probe import ProbeResult, SoftEntropyProbe
from softh_probe.distributed import gather
from softh_probe.errors import InputError
from softh_probe.integrations.lm_eval_model import SoftEntropyLM, measured
from softh_probe.integrations.lm_eval_settings import HarnessProbe
from softh_probe.models.fingerprint import weights_fingerprint
from softh_probe.patching import replaced
from softh_probe.report.page_data import full_title

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


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_encoder_decoders(tokenizer, kind):
    torch.manual_seed(0)
    ids = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "bos_token_id": 1}
    if kind == "t5":
        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
        model = T5ForConditionalGeneration(T5Config(vocab_size=40, **sizes, **ids)).eval()
    else:
        sizes = {"d_model": 32, "max_position_embeddings": 64}
        for side in ("encoder", "decoder"):
            sizes |= {f"{side}_layers": 2, f"{side}_ffn_dim": 48, f"{side}_attention_heads": 4}
        model = BartForConditionalGeneration(BartConfig(vocab_size=40, **sizes, **ids)).eval()
    lm = HFLM(pretrained=model, tokenizer=tokenizer, backend="seq2seq", batch_size=3, max_length=32)
    stacks = [model.get_encoder(), model.get_decoder()]
    probes = [SoftEntropyProbe(stack, labels=LABELS) for stack in stacks]
    with probes[0], probes[1]:
        lm.loglikelihood(requests(PAIRS), disable_tqdm=True)
    expected = [SoftEntropyProbe(stack, labels=LABELS) for stack in stacks]
    written = HarnessProbe(stacks[1], labels=(), positions="completion")
    with written:
        lm.loglikelihood(requests(PAIRS), disable_tqdm=True)
    assert written.positions == sum(len(tokenizer(continuation).input_ids) - 1 for _, continuation in PAIRS)
    with expected[0], expected[1], torch.no_grad():
        for context, continuation in PAIRS:
            question, answer = (tokenizer(text, return_tensors="pt").input_ids for text in (context, continuation))
            model(input_ids=question, labels=answer, use_cache=False)
    for probe, alone_probe in zip(probes, expected, strict=True):
        assert_same(probe, alone_probe)


def only(model, texts, starts, positions="all"):
    """Measure each text from a token on."""
    probe = SoftEntropyProbe(model, labels=(), positions=positions)
    with probe, torch.no_grad():
        for ids, start in zip(texts, starts, strict=True):
            with probe.counted(torch.arange(len(ids))[None] >= start):
                model(input_ids=torch.tensor([ids]), use_cache=False)
    return probe


@pytest.mark.parametrize("positions", ["completion", "completion,skip:5"])
@pytest.mark.parametrize("logits_cache", [True, False])
def test_continuations(model, tokenizer, positions, logits_cache):
    """Their last tokens are not fed, so that those of one token have no position."""
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3, max_length=8, logits_cache=logits_cache)
    pairs = [*PAIRS, ("a b c d e f g", " h i j"), ("a b", " c d e f g h i")]
    probe = HarnessProbe(model, labels=(), positions=positions)
    with probe:
        lm.loglikelihood(requests(pairs), disable_tqdm=True)
    fed, starts = [], []
    for context, continuation in pairs:
        ids, n = tokenizer(context + continuation).input_ids[:-1], len(tokenizer(continuation).input_ids) - 1
        fed.append(ids[-8:])
        starts.append(len(fed[-1]) - n)
    assert_same(probe, only(model, fed, starts, positions.removeprefix("completion").strip(",") or "all"))


def test_all_of_a_rolled_text_is_its_continuation(lm, tokenizer):
    text = " ".join(list("abcdefghijklmnopqrst"))
    probe = HarnessProbe(lm.model, labels=(), positions="completion")
    with probe:
        lm.loglikelihood_rolling(requests([(text,), ("a b",)], "loglikelihood_rolling"), disable_tqdm=True)
    fed = [[1, *tokenizer(t).input_ids[:-1]] for t in (text, "a b")]
    assert_same(probe, only(lm.model, fed, [1, 1]))


def test_what_it_writes_is_its_completion(lm):
    arguments = {"until": ["<eos>"], "max_gen_toks": 5, "do_sample": False}
    probe = HarnessProbe(lm.model, labels=(), positions="completion")
    generated = SoftEntropyProbe(lm.model, labels=(), positions="generated")
    asked = requests([(c, dict(arguments)) for c in ("a b c d e", "x y")], "generate_until")
    with probe, generated:
        lm.loglikelihood(requests(PAIRS[-1:]), disable_tqdm=True)  # whose continuation is not fed
        lm.generate_until(asked, disable_tqdm=True)
    assert probe.positions == 8
    assert torch.equal(probe.sums, generated.sums)


def test_only_the_harness_knows_continuations(lm):
    with pytest.raises(InputError, match="positions: completion is known of data only"):
        SoftEntropyProbe(lm.model, labels=(), positions="completion")


def test_simple_evaluate(lm, task, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(task / "cache"))
    with SoftEntropyProbe(lm.model, labels=LABELS) as probe:
        results = lm_eval.simple_evaluate(
            model=lm,
            tasks=["letters"],
            task_manager=TaskManager(include_path=str(task), include_defaults=False),
            bootstrap_iters=0,
        )
    assert "acc,none" in results["results"]["letters"]
    assert probe.positions > 0
    assert not probe.result().to_pandas().empty


def test_the_result_knows_model_tasks_and_limit(model, tokenizer, task, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(task / "cache"))
    monkeypatch.setattr(SoftEntropyLM, "latest", None)
    model.save_pretrained(task / "model")
    tokenizer.save_pretrained(task / "model")
    given = {"pretrained": str(task / "model"), "dtype": "float32", "device": "cpu"}
    lm = SoftEntropyLM(**given, softh_labels="input_unigram", softh_anchor_sets=1)
    manager = TaskManager(include_path=str(task), include_defaults=False)
    measured(lm_eval.evaluate, lm=lm, task_dict=manager.load(["letters"]), limit=2, bootstrap_iters=0)
    info = lm.result.info
    told = {name: value for name, value in info["evaluation"].items() if name != "version"}
    assert told == {
        "by": "lm-evaluation-harness",
        "model_args": given,
        "tasks": ["letters"],
        "n_shot": {"letters": 0},
        "n_samples": {"letters": 2},
        "limit": 2,
    }
    assert (info["model"]["model"], info["model"]["revision"]) == (str(task / "model"), None)
    assert info["model"]["weights_sha256"] == weights_fingerprint(model.model)
    assert info["tokenizer"]["tokenizer"] == str(task / "model")
    assert full_title(lm.result) == "model · letters"
    assert info["corpus"]["sequences"] > 0


@pytest.mark.slow
def test_the_command_saves_the_probe_s_result_beside_its_own(model, tokenizer, task):
    """Two questions of four as a chat; answers in the harness's cache are not computed again."""
    model.save_pretrained(task / "model")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    tokenizer.save_pretrained(task / "model")
    arguments = f"pretrained={task / 'model'},dtype=float32,softh_labels=input_unigram+output_unigram,softh_seed=3"
    arguments += ",softh_anchors=published"
    command = ["run", "--model", "hf-softh", "--model_args", arguments, "--tasks", "letters", "--device", "cpu"]
    command += ["--include_path", str(task), "--output_path", str(task / "out"), "--batch_size", "2"]
    command += ["--limit", "2", "--apply_chat_template", "--use_cache", str(task / "kept")]
    done = subprocess.run(
        [sys.executable, "-m", "softh_probe.integrations.lm_eval_model", *command], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (theirs,) = (task / "out").rglob("results_*.json")
    (ours,) = theirs.parent.glob("softh_probe_*")
    result = ProbeResult.load(ours)
    assert {anchors["recipe"] for anchors in result.info["anchors"]} == {"published"}
    assert result.to_pandas().query("metric == 'mutual_information'").label_set.unique().tolist() == LABELS
    fed = [tokenizer(q + a).input_ids[:-1] for q in ("a b c", "g h i j k l") for a in (" d", " e f")]
    assert result.info["positions"] == alone(model, fed).positions
    assert "positions in" in done.stdout
    assert result.info["evaluation"]["tasks"] == ["letters"]
    assert result.info["evaluation"]["apply_chat_template"] is True


TASKS = {
    "choose": {"output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "metric_list": [{"metric": "acc"}]},
    "roll": {"output_type": "loglikelihood_rolling", "metric_list": [{"metric": "word_perplexity"}]},
    "write": {
        "output_type": "generate_until",
        "generation_kwargs": {"until": ["<eos>"], "max_gen_toks": 4, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}


def write_tasks(folder):
    """Five questions, of which the first process is given three; long ones are rolled over in several windows."""
    questions = ["a b c d e f g h i j k l m", "g h", "p", "x y z x", "b b q r s t u v w x y z a"]
    rows = [{"question": q, "choices": [" d", " e f"], "answer": 0} for q in questions]
    (folder / "rows.json").write_text("\n".join(map(json.dumps, rows)))
    for name, settings in TASKS.items():
        rolls = name == "roll"
        config = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / "rows.json")}},
            "test_split": "test",
            "doc_to_text": "" if rolls else "{{question}}",
            "doc_to_target": "{{question}}" if rolls else "{{answer}}",
            "target_delimiter": "",
            **settings,
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))


def evaluate_everything(folder, accelerator=None):
    """Results of every task, with and without the harness's cache of contexts."""
    model = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = {}
    for cached in (True, False):
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2, max_length=9, logits_cache=cached)
        if accelerator is not None:  # which the harness asks for on several GPUs only
            lm.accelerator = accelerator
            lm._rank, lm._world_size = accelerator.process_index, accelerator.num_processes
        for name in TASKS:
            with SoftEntropyProbe(model, labels=LABELS) as probe:
                lm_eval.evaluate(lm=lm, task_dict=manager.load([name]), bootstrap_iters=0)
            found[name, cached] = gather(probe)
    return found


@pytest.mark.slow
def test_several_processes_count_no_request_that_was_repeated_to_fill_up_and_no_model_twice(
    model, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write_tasks(tmp_path)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    expected = evaluate_everything(tmp_path)
    evaluate_in_parts(tmp_path, 0)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    for task, state in torch.load(tmp_path / "states.pt", weights_only=False).items():
        together = SoftEntropyProbe(model, labels=LABELS)
        together.load_state_dict(state)
        assert together.positions == expected[task].positions, task
        assert_same(together, expected[task])
        corpora = [probe.result().info["corpus"] for probe in (together, expected[task])]
        assert len({corpus["sequence_set_sha256"] for corpus in corpora}) == 1, task

    whole, parts = (torch.load(tmp_path / name, weights_only=False) for name in ("whole.pt", "parts.0.pt"))
    assert parts["held"] < 0.7 * whole["held"]
    assert parts["positions"] == whole["positions"] > 0
    torch.testing.assert_close(
        parts["sums"] / whole["positions"], whole["sums"] / whole["positions"], rtol=0, atol=1e-6
    )
    assert torch.load(tmp_path / "parts.1.pt", weights_only=False)["positions"] == whole["positions"]


def evaluate_in_parts(folder, rank, **arguments):
    """Positions and sums of a model that the harness loads, which counts once however many processes hold it."""
    lm = SoftEntropyLM(pretrained=str(folder / "model"), device="cpu", dtype="float32", batch_size=2, **arguments)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    measured(lm_eval.evaluate, lm=lm, task_dict=manager.load(["choose"]), bootstrap_iters=0)
    held = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in lm.model.parameters())
    found = {"positions": lm.result.info["positions"], "sums": lm.probe.sums, "held": held}
    torch.save(found, folder / (f"parts.{rank}.pt" if arguments else "whole.pt"))


def main(folder: str) -> None:
    """Run one process of the test above."""
    accelerator = Accelerator(cpu=True)
    found = evaluate_everything(Path(folder), accelerator)
    evaluate_in_parts(Path(folder), accelerator.process_index, tp_plan="auto")
    if accelerator.is_main_process:
        torch.save({task: probe.state_dict() for task, probe in found.items()}, Path(folder) / "states.pt")
    accelerator.end_training()  # gloo's threads may abort a process that ends while they run


if __name__ == "__main__":
    main(sys.argv[1])


def test_requests_that_feed_the_same_tokens_count_once_where_the_harness_merges_them(model, tokenizer):
    """Answers of one token to one question, and one that begins earlier; that with the longest continuation stands."""
    pairs = [("a b c", " d"), ("a b c", " e"), ("a b", " c f")]
    n_fed = len(tokenizer("a b c").input_ids)
    for logits_cache, positions, expected in (
        (True, "all", n_fed),
        (False, "all", 3 * n_fed),
        (True, "completion", 1),
        (False, "completion", 1),
    ):
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3, max_length=8, logits_cache=logits_cache)
        probe = HarnessProbe(model, labels=(), anchor_sets=1, positions=positions)
        with probe:
            lm.loglikelihood(requests(pairs), disable_tqdm=True)
        assert probe.positions == expected
