"""No document's numbers depend on its batch: padding that reaches real tokens is found, and then none is fed."""

import shutil

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from softh_probe.choices import Choices
from softh_probe.config import RunConfig
from softh_probe.errors import InputError, Interrupted, ProbeError, SofthProbeError
from softh_probe.models.architecture import without_head
from softh_probe.planned.prepared import EQUAL_LENGTHS, PADDED, SINGLE_DOCUMENTS, batch_documents, plan_run
from softh_probe.probe import SoftEntropyProbe
from softh_probe.result import ProbeResult
from softh_probe.run import run
from softh_probe.run.forward import forward
from softh_probe.run.padding import UNKNOWN, batches_as, choose_batching, padding_choice
from softh_probe.run.snapshots import Snapshots
from tests.helpers import architectures
from tests.helpers.comparisons import assert_same_values
from tests.helpers.corpora import corpus_of
from tests.helpers.interruptions import stop_after_three_batches
from tests.helpers.models import tiny_llama
from tests.helpers.probes import value
from tests.run.test_processes import together

LENGTHS = (9, 12, 5, 7, 9, 5, 12, 9)
#: Model types into whose real tokens padding leaks, of those that can be probed.
LEAKING = {"convbert", "fnet", "mobilebert", "nystromformer", "yoso", "deepseek_v32"}  # the last by ties of its top-k
FAST = {*LEAKING, "bert", "gpt2", "llama", "mamba", "mixtral", "t5"}
LISTED = [
    pytest.param(*entry, id=f"{entry[0]}-{entry[1]}", marks=() if entry[1] in FAST else pytest.mark.slow)
    for entry in architectures.listed()
]


def corpus(lengths=LENGTHS):
    generator = np.random.default_rng(0)
    return corpus_of([generator.integers(5, 60, size=n) for n in lengths])


def settings(**changes) -> RunConfig:
    known = {"model": "-", "data": "-", "out": "-", "labels": "input_unigram", "cache": "none", "n_anchors": 20}
    return RunConfig(**{**known, "tokens_per_batch": 1024, **changes})


def measured(model, documents, tokens_per_batch):
    """What a run does with a loaded model; and how it groups documents."""
    config = settings(tokens_per_batch=tokens_per_batch)
    chosen = choose_batching(model, config, documents)
    plan = plan_run(config, documents, batching=batches_as(chosen))
    probe = SoftEntropyProbe(model, labels=config.labels, n_anchors=config.n_anchors, plan=plan)
    forward(probe, model, plan, progress=False)
    return probe.result().to_pandas(), chosen


@pytest.mark.parametrize(("kind", "model_type", "class_name"), LISTED)
def test_batches_of_one_and_of_several_documents_give_the_same_numbers(kind, model_type, class_name):
    try:
        built = architectures.build(kind, model_type, class_name)
        model = built.get_encoder() if built.config.is_encoder_decoder else without_head(built)
        with torch.no_grad():
            model(input_ids=torch.zeros(1, 4, dtype=torch.long))
        assert isinstance(model, PreTrainedModel), "the run of a checkpoint refuses it"
    except Exception as error:
        pytest.skip(" ".join(f"{type(error).__name__}: {error}".split())[:160])
    try:
        alone, _ = measured(model, corpus(), tokens_per_batch=1)
    except SofthProbeError as error:
        with pytest.raises(SofthProbeError):
            measured(model, corpus(), tokens_per_batch=1024)
        pytest.skip(f"refused: {error}"[:160])
    in_batches, chosen = measured(model, corpus(), tokens_per_batch=1024)
    assert np.abs(in_batches.value - alone.value).max() <= 1e-4
    assert (chosen != PADDED) == (model_type in LEAKING), chosen


def after_first_block(model, change):
    """Make a model's first block give `change` of what it gave."""
    model.layers[0].register_forward_hook(lambda _module, _args, output: change(output))
    return model


def body(**changes):
    return tiny_llama(vocab_size=64, **changes).model


@pytest.mark.parametrize(
    ("change", "chosen"),
    [
        (lambda h: h, PADDED),
        (lambda h: h + 0.1 * h.roll(-1, dims=1), EQUAL_LENGTHS),  # a convolution
        (lambda h: h + 0.3 * h.mean(dim=1, keepdim=True), EQUAL_LENGTHS),  # a pool
        (lambda h: h.roll(h.shape[1], dims=2), EQUAL_LENGTHS),  # another attention for longer batches
        (lambda h: h + 0.3 * h.mean(dim=0, keepdim=True), SINGLE_DOCUMENTS),  # routing of a batch's tokens
        (lambda h: h + 0.3 * torch.randn_like(h), UNKNOWN),
    ],
)
def test_what_reaches_real_tokens_decides_how_documents_are_batched(change, chosen):
    assert choose_batching(after_first_block(body(), change), settings(), corpus()) == chosen


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_of_half_precision_is_no_leak(dtype):
    model = body(num_hidden_layers=12, hidden_size=96).to(dtype)
    assert choose_batching(model, settings(), corpus((120, 90, 61, 33, 120))) == PADDED
    leaking = after_first_block(model, lambda h: h + 0.3 * h.roll(-1, dims=1))
    assert choose_batching(leaking, settings(), corpus((120, 90, 61, 33, 120))) == EQUAL_LENGTHS


def test_a_mixture_of_experts_in_half_precision_is_no_leak():
    model = without_head(architectures.build("causal", "mixtral", "MixtralForCausalLM")).to(torch.bfloat16)
    assert choose_batching(model, settings(), corpus((120, 90, 61, 33, 120))) == PADDED


class SwitchedForGood:
    """Gives something else once a text was shorter than 7 tokens, as the attention of BigBird does at 704."""

    switched = False

    def __call__(self, h):
        self.switched |= h.shape[1] < 7
        return h.flip(-1) if self.switched else h


class Growing:
    """Grows with the longest text since one of less than 6 tokens, as dynamic rotary positions do."""

    longest = 0

    def __call__(self, h):
        self.longest = max(self.longest, h.shape[1]) if h.shape[1] >= 6 else h.shape[1]
        return h.roll(self.longest, dims=-1)


@pytest.mark.parametrize("change", [SwitchedForGood, Growing])
def test_a_model_that_changes_while_it_runs_is_refused(change):
    model = after_first_block(body(), change())
    with pytest.raises(ProbeError, match=r"lengths \(here 5 to 12 tokens\).* set --max-length below it"):
        choose_batching(model, settings(), corpus())


@pytest.mark.slow
def test_the_attention_that_big_bird_gives_up_for_good_is_noticed():
    model = without_head(architectures.build("masked", "big_bird", "BigBirdForMaskedLM"))
    model = type(model)(type(model.config)(**{**model.config.to_dict(), "max_position_embeddings": 2048})).eval()
    assert choose_batching(model, settings(), corpus((320, 640))) == PADDED
    with pytest.raises(ProbeError, match="BigBirdModel gives other hidden states"):
        choose_batching(type(model)(model.config).eval(), settings(), corpus((320, 960)))


def test_documents_of_one_token_and_single_documents_need_no_check():
    model = after_first_block(body(), lambda h: h + h.roll(-1, dims=1))
    assert choose_batching(model, settings(labels=""), corpus((1, 1, 1))) == PADDED
    assert choose_batching(model, settings(tokens_per_batch=1), corpus()) == PADDED


def test_equal_lengths_leave_no_padding_and_keep_every_document():
    documents = corpus([int(n) for n in np.random.default_rng(1).integers(1, 9, size=500)])
    for batching in (EQUAL_LENGTHS, SINGLE_DOCUMENTS):
        batches = batch_documents(settings(labels="", tokens_per_batch=40), documents, batching)
        assert sorted(np.concatenate(batches).tolist()) == list(range(500))
        assert all(np.ptp(documents.lengths[batch]) == 0 for batch in batches)
        assert max(documents.lengths[batch].sum() for batch in batches) <= 40
        assert max(map(len, batches)) == (1 if batching == SINGLE_DOCUMENTS else 40)


# --- whole runs -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def leaking(checkpoint, tmp_path_factory):
    """A checkpoint into whose real tokens padding leaks."""
    folder = tmp_path_factory.mktemp("leaking")
    shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
    (folder / "model.safetensors").unlink()
    architectures.build("masked", "fnet", "FNetForMaskedLM").save_pretrained(folder)
    return str(folder)


def test_a_run_says_that_it_feeds_no_padding(config, leaking, tmp_path):
    batched = run(config(model=leaking, tokens_per_batch=1024), progress=False)
    alone = run(config(model=leaking, tokens_per_batch=1, out=str(tmp_path / "alone")), progress=False)
    assert_same_values(batched.to_pandas(), alone.to_pandas())
    text = "padding: none: each batch has documents of one length (padding changes the hidden states of real tokens"
    assert sum(warning.startswith(text) for warning in batched.info["warnings"]) == 1
    assert Choices.from_json(batched.info["choices"]).warnings() == [str(*padding_choice(EQUAL_LENGTHS))]
    assert not Choices.from_json(alone.info["choices"]).warnings()
    assert not any(
        "padding" in warning for warning in run(config(out=str(tmp_path / "x")), progress=False).info["warnings"]
    )


def test_a_stopped_run_goes_on_with_the_batches_it_began_with(config, leaking, tmp_path, monkeypatch):
    whole = run(config(model=leaking, tokens_per_batch=60, out=str(tmp_path / "whole")), progress=False)
    stopped = config(model=leaking, tokens_per_batch=60)
    stop_after_three_batches(monkeypatch)
    with pytest.raises(Interrupted):
        run(stopped, progress=False)
    monkeypatch.undo()
    monkeypatch.setattr("softh_probe.run.pipeline.choose_batching", lambda *_: pytest.fail("chosen again"))
    result = run(stopped, progress=False)
    assert torch.equal(result.tensors["mass"], whole.tensors["mass"])
    assert result.info["choices"] == whole.info["choices"]


def test_a_snapshot_of_padded_batches_is_not_continued_without_padding(config, leaking, monkeypatch):
    monkeypatch.setattr("softh_probe.run.pipeline.choose_batching", lambda *_: PADDED)
    stop_after_three_batches(monkeypatch)
    with pytest.raises(Interrupted):
        run(config(model=leaking, tokens_per_batch=60), progress=False)
    monkeypatch.undo()
    newest = Snapshots.newest

    def of_an_earlier_version(snapshots):
        found = newest(snapshots)
        if found is not None:
            del found[0].run["padding"]
        return found

    monkeypatch.setattr(Snapshots, "newest", of_an_earlier_version)
    with pytest.raises(InputError, match="batches, padding changed though the configuration is the same"):
        run(config(model=leaking, tokens_per_batch=60), progress=False)


def test_processes_agree(config, leaking, tmp_path):
    one = run(config(model=leaking, tokens_per_batch=60, out=str(tmp_path / "one")), progress=False)
    shared = config(model=leaking, tokens_per_batch=60)
    assert [code for code, _ in together(shared, tmp_path, count=2)] == [0, 0]
    result = ProbeResult.load(shared.out)
    assert result.info["choices"] == one.info["choices"]
    for metric in ("entropy", "conditional_entropy"):
        label_set = "input_unigram" if metric != "entropy" else ""
        ours, theirs = (value(found, "layer.2", metric, label_set) for found in (result, one))
        assert ours == pytest.approx(theirs, abs=1e-6)
