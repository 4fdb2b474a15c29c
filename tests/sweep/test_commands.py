"""softh-probe sweep, status and collect around a finished sweep: what they say, what they refuse, what they survive."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from softh_probe.cli import main
from softh_probe.config import RunConfig
from softh_probe.errors import InputError
from softh_probe.sweep import measure
from tests.helpers.sweeps import sweep_command

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def example(training, tmp_path_factory) -> Path:
    """Two checkpoints, by the example from Python."""
    folder = tmp_path_factory.mktemp("swept")
    words = [ROOT / "scripts" / "launch_sweep.py", training / "run" / "checkpoint-1[12]", training / "texts.jsonl"]
    words.append(Path("out/sweep"))
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "out" / "sweep"


@pytest.fixture
def swept(example, monkeypatch) -> Path:
    """The sweep's folder, from where it ran, as its paths are relative."""
    monkeypatch.chdir(example.parents[1])
    return example


def refusal(capsys, *words: object) -> str:
    """The one line of a command that ends with exit code 2."""
    assert main([str(word) for word in words]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    return printed


@pytest.mark.slow
def test_status_collect_and_a_dry_run_of_what_is_done(swept, capsys):
    assert main(["status", str(swept)]) == 0
    assert capsys.readouterr().out == "2 done, 0 running, 0 failed, 0 waiting\n"
    before = pd.read_parquet(swept / "sweep.parquet")
    for name in ("sweep.parquet", "sweep.csv", "sweep.json", "report.html", "entropy.png"):
        (swept / name).unlink()
    assert main(["collect", str(swept)]) == 0
    assert f"2 of 2 checkpoints in {swept}/sweep.parquet" in capsys.readouterr().out
    pd.testing.assert_frame_equal(pd.read_parquet(swept / "sweep.parquet"), before)
    assert (swept / "report.html").is_file()
    assert (swept / "entropy.png").is_file()
    assert main(["sweep", "--config", str(swept / "config.yaml"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "2 done, 0 running, 0 failed, 0 waiting" in printed
    assert "time expected: none" in printed
    assert main(["sweep", "--config", str(swept / "config.yaml"), "--model", f"{swept}", "--dry-run"]) == 0
    assert "0 done, 0 running, 0 failed, 1 waiting" in capsys.readouterr().out


@pytest.mark.slow
def test_a_report_that_fails_costs_no_table(swept, capsys, monkeypatch):
    def broken(*_):
        raise ValueError("no ink")

    monkeypatch.setattr("softh_probe.report.page.write_report", broken)
    (swept / "sweep.parquet").unlink()
    assert main(["collect", str(swept)]) == 0
    assert "warning: the report could not be written (no ink)" in capsys.readouterr().out
    assert (swept / "sweep.parquet").is_file()


@pytest.mark.slow
def test_another_configuration_or_other_data_are_refused_with_what_differs(swept, training, tmp_path, capsys):
    config = swept / "config.yaml"
    line = refusal(capsys, "sweep", "--config", config, "--n-anchors", 30)
    assert "holds results of another configuration" in line
    assert "n_anchors was 100, is 30" in line
    assert "name a new output folder" in line
    other = tmp_path / "texts.jsonl"
    other.write_text((training / "texts.jsonl").read_text() + '\n{"text": "one more"}')
    line = refusal(capsys, "sweep", "--config", config, "--data", other)
    assert f"data: the contents of {other} are not those" in line
    # The same data elsewhere, and what does not change values, are the same sweep.
    other.write_text((training / "texts.jsonl").read_text())
    assert main(["sweep", "--config", str(config), "--data", str(other), "--tokens-per-batch", "7", "--dry-run"]) == 0


@pytest.mark.slow
def test_folders_and_fields_that_are_none(swept, tmp_path, capsys):
    for command in ("status", "collect"):
        assert "holds no sweep; expected the output folder of `softh-probe sweep`" in refusal(capsys, command, tmp_path)
    assert "did you mean --retries?" in refusal(capsys, "sweep", "--config", swept / "config.yaml", "--retrys", 2)
    assert main(["sweep", "--config", str(swept / "config.yaml"), "--dry_run"]) == 0  # as fingers know flags
    capsys.readouterr()
    settings = {**yaml.safe_load((swept / "config.yaml").read_text()), "out": "/proc/no/sweep"}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(settings))
    assert "out: cannot write to /proc/no/sweep" in refusal(capsys, "sweep", "--config", tmp_path / "sweep.yaml")
    one = next((swept / "checkpoints").iterdir())
    line = refusal(capsys, "sweep", "--config", swept / "config.yaml", "--out", one)
    assert "holds the results of a run; name another folder" in line


def test_out_of_memory_halves_the_tokens_of_a_batch(checkpoint, data, tmp_path, monkeypatch):
    config = RunConfig(
        model=str(checkpoint),
        data=str(data),
        out=str(tmp_path / "out"),
        max_length=64,
        tokens_per_batch=256,
        overwrite=True,
        report=False,
    )
    tried = []
    run, limit = measure.run, 100

    def hungry(attempt: RunConfig, *, kept: object) -> None:
        tried.append(attempt.tokens_per_batch)
        if attempt.tokens_per_batch > limit:
            torch.empty(2**60, dtype=torch.uint8)  # what torch raises then, whatever that is in this version
        run(attempt, progress=False)

    monkeypatch.setattr(measure, "run", hungry)
    measure.run_in_memory(config)
    assert tried == [256, 128, 64]
    assert json.loads((tmp_path / "out" / "result.json").read_text())["config"]["tokens_per_batch"] == 64

    limit = 0
    with pytest.raises(InputError, match="out of memory, even with one document a batch"):
        measure.run_in_memory(config)
    assert tried[3:] == [256, 128, 64, 32]


@pytest.mark.slow
def test_a_full_disk_stops_the_sweep_in_a_line_and_room_lets_it_finish(config_file, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can make a small disk")
    try:
        path = config_file(out=str(disk / "out"), first=3, workers=1)
        filler = disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            for _ in range(2 * 1024 // 4 - 24):  # all but 96 KiB
                file.write(bytes(4096))
        full = sweep_command(path)
        assert full.returncode in (1, 2), full.stderr
        assert "Traceback" not in full.stderr
        assert "no space left" in full.stderr.lower() or "disk is full" in full.stderr
        filler.unlink()
        done = sweep_command(path)
        assert done.returncode == 0, done.stderr
        assert "3 done, 0 failed" in done.stdout
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
