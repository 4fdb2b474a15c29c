"""HuggingFace Trainer: what is measured during evaluation, against each text alone."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.data_loader import DataLoaderShard
from accelerate.parallelism_config import ParallelismConfig
from accelerate.state import GradientState, PartialState
from transformers import (
    DataCollatorWithFlattening,
    LlamaForCausalLM,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.distributed.configuration_utils import DistributedConfig

from softh_probe import SoftEntropyProbe
from softh_probe.integrations.trainer import SoftEntropyCallback, data_name, masks_from_labels, own_rows
from softh_probe.models.fingerprint import weights_fingerprint
from tests.helpers.models import tiny_llama

LABELS = ["input_unigram", "output_unigram"]


def texts(*lengths):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 40, (n,), generator=generator) for n in lengths]


def with_a_mask(rows):
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad([row["input_ids"] for row in rows], batch_first=True)
    mask = pad([torch.ones(len(row["input_ids"]), dtype=torch.long) for row in rows], batch_first=True)
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def without_a_mask(rows):
    """The loss ignores the prompt as well."""
    batch = with_a_mask(rows)
    batch["labels"][:, :2] = -100
    return {"input_ids": batch["input_ids"], "labels": batch["labels"]}


def flattened(rows):
    return DataCollatorWithFlattening(return_position_ids=True)([{"input_ids": r["input_ids"].tolist()} for r in rows])


@pytest.fixture
def trainer(model, tmp_path):
    return make_trainer(model, tmp_path, with_a_mask)


def make_trainer(model, folder, collator, **arguments):
    rows = [{"input_ids": text} for text in texts(9, 4, 12, 7, 5)]
    settings = {"per_device_eval_batch_size": 2, "per_device_train_batch_size": 2, "report_to": [], "use_cpu": True}
    settings |= arguments
    return Trainer(
        model=model,
        args=TrainingArguments(str(folder), disable_tqdm=True, remove_unused_columns=False, **settings),
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=collator,
    )


def alone(model):
    model.eval()
    probe = SoftEntropyProbe(model, labels=LABELS)
    with probe, torch.no_grad():
        for text in texts(9, 4, 12, 7, 5):
            model(input_ids=text[None], use_cache=False)
    return probe


@pytest.mark.parametrize("collator", [with_a_mask, without_a_mask, flattened])
def test_each_text_counts_as_if_it_stood_alone(model, tmp_path, collator):
    model.config.use_cache = False  # so that the model keeps packed texts apart
    trainer = make_trainer(model, tmp_path, collator)
    callback = SoftEntropyCallback(trainer, labels=LABELS, metrics=["entropy", "conditional_entropy"])
    trainer.add_callback(callback)
    metrics = trainer.evaluate()
    expected = alone(model).result().to_pandas()
    for row in expected[expected.metric == "conditional_entropy"].itertuples():
        assert metrics[f"eval_conditional_entropy_{row.label_set}/{row.name}"] == pytest.approx(row.value, abs=1e-5)
    for row in expected[expected.metric == "entropy"].itertuples():
        assert metrics[f"eval_entropy/{row.name}"] == pytest.approx(row.value, abs=1e-5)
    assert callback.result is not None


@pytest.mark.parametrize("collator", [with_a_mask, without_a_mask, flattened])
def test_policies_of_positions(model, tmp_path, collator):
    model.config.use_cache = False
    trainer = make_trainer(model, tmp_path, collator)
    trainer.processing_class = SimpleNamespace(all_special_ids=[5, 6])
    callback = SoftEntropyCallback(trainer, labels=LABELS, positions="skip:2", skip_special_tokens=True)
    trainer.add_callback(callback)
    trainer.evaluate()
    counted = [t for text in texts(9, 4, 12, 7, 5) for t in text[2:-1].tolist() if t not in (5, 6)]
    assert callback.result.info["positions_policy"] == {
        "positions": "skip:2",
        "skip_special_tokens": [5, 6],
        "left": len(counted),
        "of": 37 - 5,
    }


def test_results_know_their_run_step_and_data(model, tmp_path):
    trainer = make_trainer(model, tmp_path / "my run", with_a_mask, max_steps=2, save_strategy="no")
    callback = SoftEntropyCallback(trainer, labels=LABELS, anchor_sets=1)
    trainer.add_callback(callback)
    trainer.evaluate()
    before = callback.result.info
    assert before["name"] == "my run step 0"
    trainer.train()
    trainer.args.run_name = "ablation"
    trainer.evaluate({"short": trainer.eval_dataset})
    after = callback.result.info
    assert after["name"] == "ablation step 2"
    assert after["evaluation"] == {
        "by": "transformers.Trainer",
        "run": "ablation",
        "step": 2,
        "epoch": trainer.state.epoch,
        "data": "short",
    }
    assert before["model"]["weights_sha256"] != after["model"]["weights_sha256"] == weights_fingerprint(model.model)
    assert before["corpus"] == after["corpus"]
    assert after["corpus"]["sequences"] == 5


def test_the_data_is_named_as_the_library_of_data_sets_names_it():
    info = SimpleNamespace(dataset_name="wikitext", config_name="default")
    assert data_name("eval", SimpleNamespace(info=info, split="validation")) == "wikitext (validation)"
    assert data_name("eval", [1, 2]) is None


def test_evaluations_during_training_are_logged_and_training_is_not_measured(model, tmp_path):
    trainer = make_trainer(model, tmp_path, with_a_mask, num_train_epochs=2, eval_strategy="epoch", save_strategy="no")
    callback = SoftEntropyCallback(trainer, labels=LABELS)
    trainer.add_callback(callback)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(logged) == 2
    assert logged[0]["eval_entropy/layer.1"] != logged[1]["eval_entropy/layer.1"]
    json.dumps(logged)
    expected = alone(model).result().to_pandas()
    (entropy,) = expected[(expected.metric == "entropy") & (expected.name == "layer.2")].value
    assert logged[1]["eval_entropy/layer.2"] == pytest.approx(entropy, abs=1e-5)
    assert model.training is False


def test_removing_it_leaves_the_trainer_as_it_was(trainer):
    before = dict(vars(trainer))
    callback = SoftEntropyCallback(trainer)
    trainer.add_callback(callback)
    callback.remove()
    assert vars(trainer) == before
    assert "eval_entropy/layer.1" not in trainer.evaluate()


def test_an_evaluation_goes_on_when_nothing_can_be_measured(trainer):
    trainer.add_callback(SoftEntropyCallback(trainer, labels=["output_quadgram", "input_quadgram"]))
    trainer.eval_dataset = [{"input_ids": text} for text in texts(3, 3)]
    with pytest.warns(UserWarning, match="soft entropy was not measured: no position was counted"):
        metrics = trainer.evaluate()
    assert "eval_loss" in metrics


def test_wrong_arguments_fail_before_the_evaluation(trainer):
    with pytest.raises(ValueError, match="unknown label set"):
        SoftEntropyCallback(trainer, labels=["unigram"])


def test_rows_that_fill_up_the_last_batch_of_several_processes_do_not_count(monkeypatch):
    state = GradientState()
    batch = with_a_mask([{"input_ids": text} for text in texts(4, 3)])
    assert own_rows(batch) is None
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    for rank, expected in ((0, [True, True]), (1, [True, False]), (2, [False, False])):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(GradientState, "in_dataloader", True)
        monkeypatch.setattr(GradientState, "end_of_dataloader", True)
        monkeypatch.setattr(GradientState, "remainder", 3)
        assert own_rows(batch).tolist() == expected
    assert state is not None


@pytest.mark.parametrize(
    ("loader", "expected"),
    [
        (SimpleNamespace(batch_sampler=SimpleNamespace(process_index=1)), [True, False]),
        (SimpleNamespace(dataset=SimpleNamespace(process_index=0)), [True, True]),
        (DataLoaderShard([1]), [True, True]),  # one share, for a model that all processes hold between them
        (SimpleNamespace(), [False, False]),
    ],
    ids=["second share", "first share", "only share", "share of the process"],
)
def test_rows_are_those_of_the_share_that_the_data_loader_gives(monkeypatch, loader, expected):
    """Four processes, in pairs that hold one model each: the third one has the second share."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 2)
    monkeypatch.setattr(GradientState, "in_dataloader", True)
    monkeypatch.setattr(GradientState, "end_of_dataloader", True)
    monkeypatch.setattr(GradientState, "remainder", 3)
    monkeypatch.setattr(GradientState, "active_dataloader", loader)
    monkeypatch.setattr(PartialState(), "num_processes", 4)
    assert own_rows(with_a_mask([{"input_ids": text} for text in texts(4, 3)])).tolist() == expected


@pytest.mark.slow
def test_two_processes_count_each_text_once(tmp_path, model):
    """Five texts in batches of one: the second process is given a text twice, to fill up the last batch."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    for data in ("list", "stream"):
        assert_logged({k.replace(f"_{data}_", "_"): v for k, v in metrics.items()}, model)


@pytest.mark.slow
def test_two_processes_that_hold_one_model_count_each_text_once(tmp_path, model):
    model.save_pretrained(tmp_path / "model")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([*command, str(tmp_path), "in parts"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_logged(json.loads((tmp_path / "metrics.json").read_text()), model)


def test_labels_tell_of_padding_only_where_they_are_the_tokens():
    ids = torch.tensor([[5, 6, 7, 0, 0]])
    labels = ids.masked_fill(ids == 0, -100)
    assert masks_from_labels({"pixel_values": torch.zeros(2, 3, 4, 4)}) == (None, None)
    assert masks_from_labels({"input_ids": ids}) == (None, None)
    mask, _ = masks_from_labels({"input_ids": ids, "labels": labels})
    assert mask.tolist() == [[True, True, True, False, False]]
    assert masks_from_labels({"input_ids": ids, "labels": labels, "attention_mask": ids})[0] is None
    masked = torch.tensor([[-100, 9, -100, -100, -100]])  # a masked language model's: the rest is text nonetheless
    assert masks_from_labels({"input_ids": ids, "labels": masked})[0] is None


def test_several_gpus_in_one_process_are_left_alone(trainer):
    trainer.add_callback(SoftEntropyCallback(trainer))
    trainer.args._n_gpu = 2
    with pytest.warns(UserWarning, match="torchrun or accelerate launch"):
        metrics = trainer.evaluate()
    assert not any("entropy" in name for name in metrics)


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter([{"input_ids": text} for text in texts(9, 4, 12, 7, 5)])


def assert_logged(metrics, model, prefix="eval"):
    expected = alone(model).result().to_pandas()
    for row in expected[expected.metric == "conditional_entropy"].itertuples():
        name = f"{prefix}_conditional_entropy_{row.label_set}/{row.name}"
        assert metrics[name] == pytest.approx(row.value, abs=1e-5)


@pytest.mark.parametrize("arguments", [{}, {"prediction_loss_only": True}, {"torch_compile": True}], ids=str)
def test_every_way_to_evaluate(model, tmp_path, arguments):
    """Several data sets, one without a length, predictions, a model that is compiled; through the Trainer's own log."""
    if "torch_compile" in arguments:
        arguments = {**arguments, "torch_compile_backend": "eager"}
    trainer = make_trainer(model, tmp_path, with_a_mask, **arguments)
    trainer.add_callback(SoftEntropyCallback(trainer, labels=LABELS, metrics=["conditional_entropy"]))
    logged = {}

    class Log(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            logged.update(logs)

    trainer.add_callback(Log())
    trainer.evaluate({"list": trainer.eval_dataset, "stream": Stream()})
    assert_logged(logged, model, "eval_list")
    assert_logged(logged, model, "eval_stream")
    assert_logged(trainer.predict(trainer.eval_dataset).metrics, model, "test")


def test_evaluations_on_start_and_with_gradient_checkpointing(model, tmp_path):
    settings = {"eval_on_start": True, "gradient_checkpointing": True, "max_steps": 1, "save_strategy": "no"}
    trainer = make_trainer(model, tmp_path, with_a_mask, eval_strategy="steps", eval_steps=1, **settings)
    before = alone(model).result().to_pandas().query("metric == 'entropy' and name == 'layer.1'").value.item()
    trainer.add_callback(SoftEntropyCallback(trainer, labels=LABELS, metrics=["entropy", "conditional_entropy"]))
    trainer.train()
    first, last = (entry for entry in trainer.state.log_history if "eval_entropy/layer.1" in entry)
    assert first["eval_entropy/layer.1"] == pytest.approx(before, abs=1e-5)
    assert_logged(last, model)


def question_and_answer(rows):
    pad = torch.nn.utils.rnn.pad_sequence
    questions, answers = zip(*rows, strict=True)
    mask = pad([torch.ones(len(q), dtype=torch.long) for q in questions], batch_first=True)
    return {
        "input_ids": pad(list(questions), batch_first=True),
        "attention_mask": mask,
        "labels": pad(list(answers), batch_first=True, padding_value=-100),
    }


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("writes", [False, True], ids=["scores", "writes"])
def test_encoder_decoders(tmp_path, part, writes):
    """Labels show the padding of the decoder's input; generate shows its output."""
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    ids = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    model = T5ForConditionalGeneration(T5Config(vocab_size=40, **sizes, **ids)).eval()
    for parameter in model.parameters():
        parameter.data.mul_(3 if parameter.ndim == 2 else 1)
    rows = [(q, torch.cat([a, torch.tensor([1])])) for q, a in zip(texts(9, 4, 7), texts(3, 8, 2), strict=True)]
    arguments = {"per_device_eval_batch_size": 2, "report_to": [], "use_cpu": True, "disable_tqdm": True}
    trainer = Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(
            str(tmp_path),
            predict_with_generate=writes,
            generation_max_length=8,
            remove_unused_columns=False,
            **arguments,
        ),
        eval_dataset=rows,
        data_collator=question_and_answer,
        compute_metrics=lambda _: {},
    )
    stack = getattr(model, f"get_{part}")()
    callback = SoftEntropyCallback(trainer, labels=LABELS, model=stack)
    trainer.add_callback(callback)
    how = {"do_sample": True, "temperature": 3.0} if writes else {}
    written = trainer.predict(rows, **how).predictions.tolist() if writes else trainer.evaluate() and []
    expected = SoftEntropyProbe(stack, labels=LABELS)
    with expected, torch.no_grad():
        for question, answer in rows:
            model(input_ids=question[None], labels=answer[None], use_cache=False)
        for (question, _), row in zip(rows, written, strict=False):
            fed = row[: row.index(1)] if 1 in row else row[:7]
            model(input_ids=question[None], decoder_input_ids=torch.tensor([fed]), use_cache=False)
    assert callback.result.info["positions"] == expected.positions
    ours, theirs = (result.tensors["conditional_entropy"] for result in (callback.result, expected.result()))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def to_twelve(rows):
    """Documents of one length, as accelerate needs them to share out a stream."""
    batch = with_a_mask([*rows, {"input_ids": torch.zeros(12, dtype=torch.long)}])
    return {name: values[:-1] for name, values in batch.items()}


def main_in_parts(folder: str) -> None:
    """Run one process of those that hold one model; accelerate does not let the Trainer do so on CPUs."""
    ParallelismConfig._validate_accelerator = lambda *_: None
    torch.distributed.init_process_group("gloo")
    split = DistributedConfig(tp_size=2)
    model = LlamaForCausalLM.from_pretrained(f"{folder}/model", dtype=torch.float32, distributed_config=split)
    trainer = make_trainer(model, folder, to_twelve, per_device_eval_batch_size=2, save_strategy="no")
    trainer.add_callback(SoftEntropyCallback(trainer, labels=LABELS, metrics=["conditional_entropy"]))
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        (Path(folder) / "metrics.json").write_text(json.dumps(metrics))
    torch.distributed.destroy_process_group()


def main(folder: str) -> None:
    """Run one process of the test above."""
    trainer = make_trainer(tiny_llama(), folder, to_twelve, ddp_backend="gloo", per_device_eval_batch_size=1)
    trainer.add_callback(SoftEntropyCallback(trainer, labels=LABELS, metrics=["conditional_entropy"]))
    metrics = trainer.evaluate({"list": trainer.eval_dataset, "stream": Stream()})
    if trainer.is_world_process_zero():
        (Path(folder) / "metrics.json").write_text(json.dumps(metrics))
    trainer.accelerator.end_training()  # gloo's threads may abort a process that ends while they run


if __name__ == "__main__":
    (main_in_parts if "in parts" in sys.argv else main)(sys.argv[1])
