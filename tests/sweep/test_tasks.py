"""Sweeps with tasks: scores against the harness's own, what a kill repeats, what is refused and what fails."""

import dataclasses
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import lm_eval
import pandas as pd
import pytest
import torch
import yaml
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import BertConfig, BertForMaskedLM

from softh_probe.cli import main
from softh_probe.errors import InputError
from softh_probe.run import run
from softh_probe.sweep import SweepConfig, collect, collection, evaluation, tasks
from softh_probe.sweep.dry_run import describe_plan
from softh_probe.sweep.folder import DONE, WAITING, SweepFolder
from softh_probe.sweep.grid import GridPoint, expand
from softh_probe.sweep.scores import Tasks
from softh_probe.sweep.status import status
from softh_probe.sweep.tasks import check_tasks
from tests.helpers.lm_eval_tasks import multiple_choice
from tests.helpers.models import tiny_llama
from tests.helpers.sweeps import attempts, started, wait_for, written

QUESTIONS = ["a b c", "g h i j k l", "p", "x y", "b b b", "z", "q r", "m n o"]


@pytest.fixture(autouse=True)
def data_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))


@pytest.fixture
def tasks_folder(tmp_path) -> Path:
    """Tasks of two answers: `letters`, `others` with other right ones, and `lost`, whose data is not there."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, shift in (("letters", 0), ("others", 3), ("lost", 0)):
        rows = [{"question": q, "choices": [" d", " e f"], "answer": (i + shift) % 2} for i, q in enumerate(QUESTIONS)]
        if name != "lost":
            (folder / f"{name}.json").write_text("\n".join(map(json.dumps, rows)))
        task = multiple_choice(name, folder / f"{name}.json", "acc", "acc_norm")
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return folder


def correlating(monkeypatch, correlate) -> None:
    """Correlate scores otherwise."""
    module = SimpleNamespace(correlate_folders=correlate)
    monkeypatch.setitem(sys.modules, "softh_probe.report.correlate", module)


@pytest.fixture
def settings(tmp_path, tasks_folder, tokenizer) -> dict:
    """A sweep of two checkpoints with tasks."""
    for step in (1, 2):
        torch.manual_seed(step)
        model = tiny_llama()
        for parameter in model.parameters():
            parameter.data += step * 0.1 * torch.randn_like(parameter)
        model.save_pretrained(tmp_path / "run" / f"checkpoint-{step}")
        tokenizer.save_pretrained(tmp_path / "run" / f"checkpoint-{step}")
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": question * 3}) for question in QUESTIONS))
    return {
        "model": str(tmp_path / "run" / "checkpoint-*"),
        "data": str(tmp_path / "texts.jsonl"),
        "out": str(tmp_path / "out"),
        "n_anchors": 20,
        "anchor_sets": 1,
        "max_length": 64,
        "workers": 1,
        "gpus_per_worker": 0,
        "device_map": "cpu",
        "tasks": ["letters"],
        "task_path": str(tasks_folder),
    }


def measured(config: SweepConfig) -> tuple[SweepFolder, list[GridPoint]]:
    """Set a sweep up, and measure its checkpoints in this process, without evaluating them."""
    folder, points = SweepFolder(config.out), expand(config)
    folder.start(config, points, check_tasks(config))
    for point in points:
        run(config.run_config(model=point.source, revision=None, out=folder.result(point)), progress=False)
    return folder, points


def own_scores(point: GridPoint, path: Path, task: str, **more) -> dict:
    """The harness's own scores, of a model that it loads itself."""
    lm = HFLM(pretrained=point.source, device="cpu", dtype="float32", batch_size=3)
    manager = TaskManager(include_path=str(path), include_defaults=False)
    return lm_eval.simple_evaluate(model=lm, tasks=[task], task_manager=manager, **more)["results"][task]


def fake(value: float, stderr: float | str = "N/A") -> str:
    results = {"alias": "letters", "acc,none": value, "acc_stderr,none": stderr, "exact_match,strict-match": 1}
    return json.dumps({"results": {"letters": results, "letters_part": {"acc,none": 0.125}}})


def line(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_scores_are_the_harness_s_own_and_say_of_which_model(settings, tasks_folder):
    config = SweepConfig(**settings, task_limit=7)
    folder, points = measured(config)
    assert {state.status for state in folder.states(points).values()} == {WAITING}
    for point in points:
        evaluation.evaluate(config, point, folder)
    assert {state.status for state in folder.states(points).values()} == {DONE}
    for point in points:
        (path,) = (folder.path / "evaluations" / point.folder).glob("results_*.json")
        written_by_us = json.loads(path.read_text())
        expected = own_scores(point, tasks_folder, "letters", limit=7)
        assert written_by_us["results"]["letters"] == pytest.approx(expected)
        assert written_by_us["model_name"] == written_by_us["config"]["model_args"]["pretrained"] == point.source
        assert written_by_us["n-samples"]["letters"] == {"original": 8, "effective": 7}
        rows = {row["metric"]: (row["value"], row["stderr"]) for row in folder.scores.rows(point.folder)}
        assert rows == {
            "acc": pytest.approx((expected["acc,none"], expected["acc_stderr,none"])),
            "acc_norm": pytest.approx((expected["acc_norm,none"], expected["acc_norm_stderr,none"])),
        }


def test_more_tasks_evaluate_only_what_is_new_and_other_settings_are_refused(settings, tasks_folder):
    config = SweepConfig(**settings, task_limit=2)
    folder, points = measured(config)
    evaluation.evaluate(config, points[0], folder)
    (first,) = folder.scores.files(points[0].folder)
    before = first.stat().st_mtime_ns
    more = dataclasses.replace(config, tasks=["letters", "others", "letters"])
    folder.start(more, points, check_tasks(more))
    assert [folder.scores.missing(p.folder) for p in points] == [["others"], ["letters", "others"]]
    evaluation.evaluate(more, points[0], folder)
    assert folder.state(points[0]).status == DONE
    assert first.stat().st_mtime_ns == before
    assert {row["task"] for row in folder.scores.rows(points[0].folder)} == {"letters", "others"}

    whole = dataclasses.replace(config, task_limit=None)
    for start in (lambda: folder.start(whole, points, check_tasks(whole)), lambda: describe_plan(whole)):
        with pytest.raises(InputError, match="task_limit was 2, is None") as refused:
            start()
        assert f"remove {folder.path / 'evaluations'} to evaluate anew" in line(refused)
    yaml_file = tasks_folder / "letters.yaml"
    yaml_file.write_text(yaml_file.read_text() + "num_fewshot: 1\n")
    with pytest.raises(InputError, match="the YAML of letters has changed"):
        folder.start(config, points, check_tasks(config))
    # Without tasks, or with the scores removed, what was measured is done or goes on.
    folder.start(dataclasses.replace(config, tasks=None, task_limit=None, task_path=None), points)
    assert {state.status for state in folder.states(points).values()} == {DONE}
    shutil.rmtree(folder.path / "evaluations")
    folder.start(whole, points, check_tasks(whole))
    assert [folder.scores.missing(point.folder) for point in points] == [["letters"], ["letters"]]


def test_a_task_that_fails_costs_no_other_and_no_result(settings, monkeypatch):
    config = SweepConfig(**settings | {"tasks": "lost,letters"})
    folder, points = measured(config)
    with pytest.raises(InputError, match="it was measured, but not evaluated on lost: ") as failed:
        evaluation.evaluate(config, points[0], folder)
    assert "letters:" not in line(failed)
    assert folder.scores.missing(points[0].folder) == ["lost"]
    folder.record(points[0], str(failed.value), retries=0)
    monkeypatch.setattr(collection, "_write_report", lambda _: None)
    monkeypatch.setattr(collection, "_correlate", lambda *_: None)
    found = collect(config.out)
    entry = found.checkpoints[0]
    assert (entry["status"], entry["folder"]) == ("failed", f"checkpoints/{points[0].folder}")
    assert "not evaluated on lost" in entry["reason"]
    table = pd.read_parquet(folder.path / "sweep.parquet")
    assert set(table.checkpoint) == {"checkpoint-1", "checkpoint-2"}


def test_models_and_tokenizers_that_cannot_be_evaluated_say_why(settings, tmp_path):
    shutil.rmtree(tmp_path / "run" / "checkpoint-2")
    BertForMaskedLM(
        BertConfig(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    ).save_pretrained(tmp_path / "run" / "checkpoint-2")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tmp_path / "run" / "checkpoint-1" / name, tmp_path / "run" / "checkpoint-2" / name)
    of_tokenizer = tmp_path / "run" / "checkpoint-1" / "tokenizer_config.json"
    kept = {name: value for name, value in json.loads(of_tokenizer.read_text()).items() if name != "eos_token"}
    of_tokenizer.write_text(json.dumps(kept))
    config = SweepConfig(**settings)
    folder, points = measured(config)
    with pytest.raises(InputError, match="names no first and no last token") as failed:
        evaluation.evaluate(config, points[0], folder)
    assert "it was measured, but not evaluated" in line(failed)
    with pytest.raises(InputError, match="a BertForMaskedLM has no head that predicts the next token") as failed:
        evaluation.evaluate(config, points[1], folder)
    assert "it was measured, but not evaluated" in line(failed)


def test_out_of_memory_halves_the_requests_of_a_batch(settings, monkeypatch):
    config = SweepConfig(**settings | {"task_batch_size": 12})
    folder, points = measured(config)
    tried, limit = [], 4
    attempt = evaluation._Harness._attempt

    def hungry(harness, task, asked, manager, batch):
        tried.append(batch)
        if batch > limit:
            torch.empty(2**60, dtype=torch.uint8)
        return attempt(harness, task, asked, manager, batch)

    monkeypatch.setattr(evaluation._Harness, "_attempt", hungry)
    evaluation.evaluate(config, points[0], folder)
    assert tried == [12, 6, 3]
    limit = 0
    with pytest.raises(InputError, match="out of memory, even with one request at once"):
        evaluation.evaluate(config, points[1], folder, killed=1)
    assert tried[3:] == [6, 3, 1]


def test_what_cannot_be_evaluated_is_refused_before_anything_starts(settings, tmp_path, monkeypatch):
    def refused(match: str, **changes) -> None:
        with pytest.raises(InputError, match=match) as error:
            check_tasks(SweepConfig(**settings | changes))
        line(error)

    refused("task_limit: expected at least 1, got 0", task_limit=0)
    refused("task_num_fewshot: expected at least 0, got -1", task_num_fewshot=-1)
    refused("tasks: expected one name or more", tasks=[])
    refused(r"task_limit: there are no tasks; name some \(--tasks arc_easy\)", tasks=None, task_path=None, task_limit=3)
    refused("task_path: expected a folder of YAML files, got '/no/such'", task_path="/no/such")
    defaults = TaskManager(include_path=settings["task_path"], include_defaults=False)
    monkeypatch.setattr(tasks, "_manager", lambda path, with_defaults: defaults)
    refused("knows no 'leters'; did you mean letters", tasks="letters,leters")
    monkeypatch.undo()
    tasks._manager.cache_clear()
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    refused(r"lm-evaluation-harness is not installed .*: pip install '\.\[lm-eval\]'")
    assert not Path(settings["out"]).exists()


def test_scores_become_a_table_and_damaged_ones_are_evaluated_again(settings, monkeypatch):
    monkeypatch.setattr(collection, "_write_report", lambda _: None)
    correlating(monkeypatch, lambda *_, **__: 1 / 0)
    config = SweepConfig(**settings)
    folder, points = measured(config)
    folder.scores.add(points[0].folder, "letters", fake(0.375, 0.25), seconds=2.0)
    folder.scores.add(points[1].folder, "letters", fake(0.5), seconds=2.0)
    found = collect(config.out)
    assert "scores were not correlated with what was measured: ZeroDivisionError" in found.warnings[-1]
    table = pd.read_csv(folder.path / "scores.csv")
    assert list(table.columns) == ["checkpoint", "model", "revision", "step", "task", "metric", "value", "stderr"]
    assert table[["checkpoint", "step", "task", "metric", "value"]].values.tolist() == [
        ["checkpoint-1", 1, "letters", "acc", 0.375],
        ["checkpoint-1", 1, "letters", "exact_match,strict-match", 1],
        ["checkpoint-1", 1, "letters_part", "acc", 0.125],
        ["checkpoint-2", 2, "letters", "acc", 0.5],
        ["checkpoint-2", 2, "letters", "exact_match,strict-match", 1],
        ["checkpoint-2", 2, "letters_part", "acc", 0.125],
    ]
    assert table.stderr.fillna(-1).tolist() == [0.25, -1, -1, -1, -1, -1]
    info = json.loads((folder.path / "sweep.json").read_text())
    assert [c["scores"] for c in info["checkpoints"]] == [f"evaluations/{point.folder}" for point in points]
    assert info["config"]["tasks"] == ["letters"]

    (path,) = folder.scores.files(points[1].folder)
    path.write_text("")
    assert "damaged scores are left out: checkpoint-2; run the sweep again" in " ".join(collect(config.out).warnings)
    assert [folder.scores.drop_damaged(point.folder) for point in points] == [[], ["letters"]]
    assert [folder.is_done(point) for point in points] == [True, False]


def test_collecting_ends_with_the_correlation_and_keeps_the_tables_without_one(settings, monkeypatch, capsys):
    monkeypatch.setattr(collection, "_write_report", lambda _: None)
    asked = []

    def correlate(folders, scores, **more):
        asked.append((folders, scores, more))
        return "letters goes with entropy"

    correlating(monkeypatch, correlate)
    folder, points = measured(SweepConfig(**settings))
    assert main(["collect", settings["out"]]) == 0
    assert asked == []  # nothing has scores yet
    for point in points:
        folder.scores.add(point.folder, "letters", fake(0.5), seconds=2.0)
    capsys.readouterr()
    assert main(["collect", settings["out"]]) == 0
    given = {"out": folder.path, "allow_different": True}
    assert asked == [([folder.path], folder.path / "evaluations", given)]
    assert "letters goes with entropy" in capsys.readouterr().out.splitlines()

    def refuse(*_, **__):
        raise InputError("scores: 2 models have scores, at least 5 are needed. Measure more.")

    correlating(monkeypatch, refuse)
    (folder.path / "scores.csv").unlink()
    assert main(["collect", settings["out"]]) == 0
    warned = [text for text in capsys.readouterr().out.splitlines() if text.startswith("warning: ")]
    assert warned == [
        "warning: scores were not correlated with what was measured: scores: 2 models have scores, at least 5 are "
        "needed. Measure more."
    ]
    assert (folder.path / "scores.csv").is_file()


def test_a_dry_run_and_status_count_what_is_to_be_evaluated(settings):
    config = SweepConfig(**settings, task_limit=1200)
    folder, points = measured(config)
    folder.scores.add(points[0].folder, "letters", fake(0.5), seconds=120.0)
    assert "tasks: letters (1,200 questions of each): scores of 1 of 2 checkpoints" in status(config.out)
    printed = describe_plan(config)
    assert "tasks: letters (1,200 questions of each), by lm-evaluation-harness, for 1 checkpoints" in printed
    assert "1 of them are measured already" in printed
    assert "and on tasks 2 min" in printed
    printed = describe_plan(dataclasses.replace(config, tasks="others"))  # which nothing was asked for yet
    assert "0 done, 0 running, 0 failed, 2 waiting" in printed
    assert "that of tasks is unknown until a checkpoint has scores on all" in printed
    assert folder.scores.asked() == Tasks(
        names=("letters",),
        limit=1200,
        path=settings["task_path"],
        definitions=check_tasks(config).definitions,
    )


@pytest.mark.slow
def test_an_unknown_task_is_one_line_with_what_was_meant(settings, tmp_path, capsys):
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(settings | {"tasks": ["arc_eazy"]}))
    assert main(["sweep", "--config", str(path)]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "tasks: lm-evaluation-harness knows no 'arc_eazy'; did you mean arc_easy" in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_killed_evaluation_repeats_only_itself(settings, tasks_folder, tmp_path):
    path, out = tmp_path / "sweep.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(settings | {"tasks": "letters,others"}))
    evaluating = "evaluation on letters: started"
    with started(path) as process:
        log = wait_for(lambda: next((log for log in out.glob("work/logs/*") if evaluating in log.read_text()), None))
        (result,) = written(out).items()
        claim = json.loads((out / "work" / "claims" / f"{log.stem}.json").read_text())
        os.kill(claim["processes"][1][0], signal.SIGKILL)
        printed, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    assert "2 done, 0 failed, 0 waiting" in printed
    texts = {log.stem: log.read_text() for log in out.glob("work/logs/*.log")}
    assert "crashed or was killed (SIGKILL" in texts[result[0]]
    assert {name: attempts(text) for name, text in texts.items()} == {name: 1 + (name == result[0]) for name in texts}
    assert [text.count("measuring 5 layers") for text in texts.values()] == [1, 1]
    assert result in written(out).items()
    table = pd.read_csv(out / "scores.csv").set_index(["checkpoint", "task", "metric"]).value
    for point in SweepFolder(out).known_points():
        for task in ("letters", "others"):
            expected = own_scores(point, tasks_folder, task)
            assert table[point.checkpoint, task, "acc"] == pytest.approx(expected["acc,none"])
            assert table[point.checkpoint, task, "acc_norm"] == pytest.approx(expected["acc_norm,none"])
