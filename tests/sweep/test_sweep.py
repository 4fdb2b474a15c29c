"""Sweeps through the local launcher: real processes, real checkpoints, real kills."""

import os
import shutil
import signal
import subprocess
import time

import numpy as np
import pandas as pd
import psutil
import pytest

from softh_probe import ProbeResult
from softh_probe.cli import main
from softh_probe.config import RunConfig
from softh_probe.run import run
from softh_probe.sweep.folder import SweepFolder
from tests.helpers.sweeps import (
    N,
    attempts,
    command,
    descendants,
    held,
    info_of,
    n_results,
    running,
    started,
    statuses,
    sweep_command,
    wait_for,
    written,
)

pytestmark = pytest.mark.slow


def test_twelve_checkpoints_two_workers_and_one_of_them_damaged(config_file, training, tmp_path):
    run_folder = tmp_path / "run"
    shutil.copytree(training / "run", run_folder)
    weights = run_folder / "checkpoint-5" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    shutil.copyfile(
        run_folder / "checkpoint-3" / "model.safetensors", run_folder / "checkpoint-4" / "model.safetensors"
    )
    path, out = config_file(model=str(run_folder / "checkpoint-*")), tmp_path / "out"
    done = sweep_command(path)
    assert done.returncode == 1, done.stderr
    assert "11 done, 1 failed, 0 waiting" in done.stdout
    assert "failed: checkpoint-5: model" in done.stdout
    assert "damaged file" in done.stdout
    assert "checkpoint-5: failed (log: work/logs/" in done.stderr
    assert (done.stdout + done.stderr).count("damaged file") == 1  # after two attempts, too
    assert "warning: equal weights: checkpoint-3, checkpoint-4" in done.stdout

    info = info_of(out)
    assert [c["step"] for c in info["checkpoints"]] == list(range(1, N + 1))
    assert statuses(out) == {f"checkpoint-{i}": "failed" if i == 5 else "done" for i in range(1, N + 1)}
    assert info["duplicates"] == [["checkpoint-3", "checkpoint-4"]]
    assert info["not_monotone"] == []
    assert info["version"] == 1
    [bad] = [c for c in info["checkpoints"] if c["status"] == "failed"]
    assert "damaged file" in bad["reason"]
    log = (out / bad["log"]).read_text()
    assert attempts(log) == 2  # once, and one retry
    assert "Traceback" in log

    # Each line of the table is that of a run of this checkpoint alone.
    table = pd.read_parquet(out / "sweep.parquet")
    assert list(table.columns[:5]) == ["checkpoint", "model", "revision", "step", "tokens"]
    assert list(table.columns[5:]) == ["layer", "name", "label_set", "metric", "value", "sd"]
    assert table.checkpoint.nunique() == 11
    alone = run(
        RunConfig(
            model=str(run_folder / "checkpoint-7"),
            data=str(training / "texts.jsonl"),
            labels=["input_unigram", "output_unigram"],
            n_anchors=20,
            anchor_sets=1,
            out=str(tmp_path / "alone"),
        ),
        progress=False,
    ).to_pandas()
    of_seven = table[table.checkpoint == "checkpoint-7"].reset_index(drop=True)
    np.testing.assert_allclose(of_seven.value, alone.value, atol=1e-6)
    assert of_seven[["layer", "name", "label_set", "metric"]].equals(
        alone[["layer", "name", "label_set", "metric"]].astype(of_seven.dtypes[5:9].to_dict())
    )
    csv = pd.read_csv(out / "sweep.csv", keep_default_na=False, na_values={"sd": "", "tokens": ""})
    assert len(csv) == len(table)
    assert csv.step.dtype == int
    assert (out / "entropy.png").stat().st_size > 10_000
    assert (out / "information.png").stat().st_size > 10_000
    assert "checkpoint-5" in (out / "report.html").read_text()
    for checkpoint in info["checkpoints"]:
        if checkpoint["status"] == "done":
            result = ProbeResult.load(out / checkpoint["folder"])
            assert result.info["model"]["weights_sha256"] == checkpoint["weights_sha256"]

    # Tokenised once for all.
    logs = [(out / c["log"]).read_text() for c in info["checkpoints"]]
    assert sum("tokenize:" in text for text in logs) == 1

    # Status says the same; what is done stays, what failed is tried again once it is mended.
    status = subprocess.run(command("status", out), capture_output=True, text=True, check=True).stdout
    assert "11 done, 0 running, 1 failed, 0 waiting" in status
    assert "failed   checkpoint-5: model" in status
    before = written(out)
    assert len(before) == 11
    shutil.copyfile(training / "run" / "checkpoint-5" / "model.safetensors", weights)
    assert main(["sweep", "--config", str(path)]) == 0
    assert before.items() <= written(out).items()
    assert pd.read_parquet(out / "sweep.parquet").checkpoint.nunique() == N


def test_killed_workers_and_crashed_interpreters_cost_only_what_they_were_on(config_file, training, tmp_path):
    path, out = config_file(retries=1), tmp_path / "out"
    with started(path) as process:
        # The worker, which takes one checkpoint after the other.
        claim = wait_for(lambda: held(out))
        os.kill(claim["processes"][0][0], signal.SIGKILL)
        os.kill(claim["processes"][1][0], signal.SIGCONT)
        wait_for(lambda: not psutil.pid_exists(claim["processes"][1][0]))  # what it ran ends with it
        # The interpreter that measures a checkpoint.
        other = wait_for(lambda: held(out, lambda c: c["name"] != claim["name"]))
        os.kill(other["processes"][1][0], signal.SIGSEGV)
        os.kill(other["processes"][1][0], signal.SIGCONT)
        largest = 0
        while process.poll() is None:
            largest = max(largest, len(running(out)))
            time.sleep(0.02)
        printed, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "12 done, 0 failed, 0 waiting" in printed
    assert set(statuses(out).values()) == {"done"}
    assert largest <= 2
    texts = {path.stem: path.read_text() for path in out.glob("work/logs/*.log")}
    assert f"its worker was killed or lost (process {claim['processes'][0][0]}" in texts[claim["name"]]
    assert "its process crashed or was killed (SIGSEGV)" in texts[other["name"]]
    logs = {name: attempts(text) for name, text in texts.items()}
    assert logs.pop(claim["name"]) == logs.pop(other["name"]) == 2
    assert set(logs.values()) == {1}


def test_ctrl_c_a_killed_launcher_and_two_sweeps_at_once_lose_nothing_and_repeat_nothing(
    config_file, training, tmp_path
):
    path, out = config_file(), tmp_path / "out"
    with started(path) as process:
        wait_for(lambda: n_results(out) >= 2)
        os.killpg(process.pid, signal.SIGINT)  # the terminal sends it to all
        family = descendants(process.pid)
        errors = process.communicate(timeout=60)[1]
        assert process.returncode == 130
        assert "interrupted; the same command resumes from here" in errors
        wait_for(lambda: not any(p.is_running() for p in family), 10)
    first = written(out)
    assert 2 <= len(first) < N
    assert "running" not in SweepFolder(out).claims.names()

    with started(path) as process:
        wait_for(lambda: n_results(out) >= len(first) + 2)
        family = descendants(process.pid)
        process.kill()
        wait_for(lambda: not any(p.is_running() and p.status() != "zombie" for p in family), 30)
    second = written(out)
    assert first.items() <= second.items()
    assert len(first) + 2 <= len(second) < N

    # Two sweeps at once share what is left; nothing is measured twice.
    before = {path.stem: attempts(path.read_text()) for path in out.glob("work/logs/*.log")}
    with started(path, "--workers", 1) as one, started(path, "--workers", 1) as other:
        texts = [process.communicate(timeout=120) for process in (one, other)]
        assert [one.returncode, other.returncode] == [0, 0], texts
    assert all("12 done, 0 failed, 0 waiting" in printed for printed, _ in texts)
    assert second.items() <= written(out).items()
    for log in out.glob("work/logs/*.log"):
        measured_now = log.stem not in second
        assert attempts(log.read_text()) == before.get(log.stem, 0) + measured_now
    assert len(written(out)) == N


def test_a_sweep_of_streamed_runs_reads_the_same_texts_without_planning_them(config_file, tmp_path):
    done = sweep_command(config_file(stream=True, last=2, max_length=64, labels=["input_unigram", "column:language"]))
    assert done.returncode == 0, done.stderr + done.stdout
    results = [ProbeResult.load(folder) for folder in (tmp_path / "out" / "checkpoints").iterdir()]
    assert [result.info["config"]["stream"] for result in results] == [True, True]
    assert len({result.info["corpus"]["chained_sha256"] for result in results}) == 1
    assert "warning" not in done.stdout
