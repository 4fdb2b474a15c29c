"""Sweeps through a real Slurm of one node, which the test starts and stops."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.helpers.corpora import write_texts
from tests.helpers.sweeps import (
    N,
    attempts,
    command,
    held,
    info_of,
    n_results,
    running,
    started,
    statuses,
    wait_for,
    written,
)

SCRIPT = Path(__file__).parents[2] / "scripts" / "one_node_slurm"

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    missing = [p for p in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(p, path=_path())]
    if missing:
        pytest.skip(f"no Slurm here ({', '.join(missing)} missing): apt-get install slurm-wlm munge")
    if os.geteuid() != 0:
        pytest.skip("slurmd has to run as root")
    folder = tmp_path / "slurm"
    subprocess.run([SCRIPT, "start", folder, "2"], check=True, timeout=60)
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    yield folder
    subprocess.run([SCRIPT, "stop", folder], check=True, timeout=60)


def _path() -> str:
    return os.environ["PATH"] + ":/usr/sbin"


def test_twelve_checkpoints_one_damaged_a_worker_killed_and_one_preempted(
    slurm, config_file, training, tmp_path, monkeypatch
):
    token = "hf_ThisIsNobodysBusinessButMine"
    monkeypatch.setenv("HF_TOKEN", token)
    run_folder, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(training / "run", run_folder)
    weights = run_folder / "checkpoint-2" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    path = config_file(
        model=str(run_folder / "checkpoint-*"),
        data=str(write_texts(tmp_path / "texts.jsonl", 1000)),  # so many that a checkpoint takes a while
        tokens_per_batch=256,
        launcher="slurm",
        slurm_partition="main",
        timeout_min=20,
        mem_gb=1,
        labels=["input_unigram", "output_unigram", "input_bigram", "output_bigram"],
    )
    with started(path) as process:
        # One worker is killed: Slurm's job fails, another takes its place.
        wait_for(lambda: n_results(out) >= 1, timeout=180)
        killed = wait_for(lambda: held(out, lambda c: measuring(out, c)), timeout=180)
        os.kill(killed["processes"][0][0], signal.SIGKILL)
        os.kill(killed["processes"][1][0], signal.SIGCONT)
        # Another checkpoint's worker is preempted in the middle: it requeues itself and resumes from there.
        preempted = wait_for(
            lambda: held(out, lambda c: c["name"] != killed["name"] and measuring(out, c)), timeout=180
        )
        subprocess.run(["scancel", "--signal=USR2", preempted["task"]], check=True)
        time.sleep(2)  # until Slurm has delivered it
        os.kill(preempted["processes"][1][0], signal.SIGCONT)
        wait_for(lambda: "Restarts=1" in job(preempted["task"]), timeout=180)
        largest = 0
        while process.poll() is None:
            largest = max(largest, len(running(out)))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
        printed, errors = process.communicate()
    assert process.returncode == 1, errors
    assert "11 done, 1 failed, 0 waiting" in printed
    assert "failed: checkpoint-2: model" in printed
    assert largest <= 2
    assert statuses(out) == {f"checkpoint-{i}": "failed" if i == 2 else "done" for i in range(1, N + 1)}
    texts = {p.stem: p.read_text() for p in out.glob("work/logs/*.log")}
    assert "its worker was killed or lost" in texts[killed["name"]]
    counts = {name: attempts(text) for name, text in texts.items() if not name.startswith("checkpoint-2-")}
    assert counts.pop(killed["name"]) == 2
    assert counts.pop(preempted["name"]) == 2
    assert json.loads((out / "checkpoints" / preempted["name"] / "result.json").read_text())["interruptions"] == 1
    assert set(counts.values()) == {1}
    script = next(out.glob("work/jobs/*_submission.sh")).read_text()
    for option in ("--array=0-1%2", "--partition=main", "--mem=1GB", "--time=20", "--requeue"):
        assert f"#SBATCH {option}" in script
    assert queue() == ""
    assert not [file for file in out.rglob("*") if file.is_file() and token.encode() in file.read_bytes()]

    # What is mended runs when the same command runs again, and nothing else does.
    before = written(out)
    shutil.copyfile(training / "run" / "checkpoint-2" / "model.safetensors", weights)
    again = subprocess.run(command("sweep", "--config", path), capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert before.items() <= written(out).items()
    assert {c["status"] for c in info_of(out)["checkpoints"]} == {"done"}


def measuring(out: Path, claim: dict) -> bool:
    """True while an intact checkpoint is in the middle of its forward pass."""
    path = out / "work" / "logs" / f"{claim['name']}.log"
    log = path.read_text() if path.exists() else ""
    *_, forward = log.rpartition("forward:")
    return not claim["name"].startswith("checkpoint-2-") and forward != log and "100%" not in forward


def job(identity: str) -> str:
    return subprocess.run(["scontrol", "show", "job", identity], capture_output=True, text=True).stdout


def queue() -> str:
    done = subprocess.run(["squeue", "--noheader", "--states=PD,R"], capture_output=True, text=True, check=True)
    return done.stdout.strip()
