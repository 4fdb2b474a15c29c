"""HuggingFace Trainer: what is measured during evaluation, against each text alone."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from accelerate.state import GradientState
from transformers import DataCollatorWithFlattening, Trainer, TrainingArguments

from softh_probe import SoftEntropyProbe
from softh_probe.integrations import trainer as integration
from softh_probe.integrations.trainer import SoftEntropyCallback, real_tokens
from tests.conftest import tiny_llama

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
    """What the prompt is made of is ignored by the loss as well."""
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
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    for rank, expected in ((0, 7), (1, 4), (2, 0)):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(GradientState, "in_dataloader", True)
        monkeypatch.setattr(GradientState, "end_of_dataloader", True)
        monkeypatch.setattr(GradientState, "remainder", 3)
        mask = real_tokens(batch)
        assert int((batch["attention_mask"] if mask is None else mask).sum()) == expected
    assert state is not None


def test_two_processes_count_each_text_once(tmp_path, model):
    """Five texts in batches of one: the second process is given a text twice, to fill up the last batch."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    expected = alone(model).result().to_pandas()
    for row in expected[expected.metric == "conditional_entropy"].itertuples():
        assert metrics[f"eval_conditional_entropy_{row.label_set}/{row.name}"] == pytest.approx(row.value, abs=1e-5)


def test_evaluation_without_token_ids_is_left_alone():
    assert real_tokens({"pixel_values": torch.zeros(2, 3, 4, 4)}) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert integration.real_tokens({"input_ids": torch.zeros(2, 3, dtype=torch.long)}).all()


def main(folder: str) -> None:
    """What each process of the test above runs."""
    trainer = make_trainer(tiny_llama(), folder, with_a_mask, ddp_backend="gloo", per_device_eval_batch_size=1)
    trainer.add_callback(SoftEntropyCallback(trainer, labels=LABELS, metrics=["conditional_entropy"]))
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        (Path(folder) / "metrics.json").write_text(json.dumps(metrics))


if __name__ == "__main__":
    main(sys.argv[1])
