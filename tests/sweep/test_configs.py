"""The ready-made sweeps take the checkpoints that they promise; the example from Python runs."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from huggingface_hub import HfApi

from softh_probe.cli import main
from softh_probe.errors import InputError
from softh_probe.sweep import SweepConfig
from softh_probe.sweep.grid import expand

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "sweeps"
PYTHIA = [0, *(2**i for i in range(10)), *range(1000, 144_000, 1000)]


@pytest.fixture
def hub(monkeypatch):
    """Sets the branches that the hub lists."""

    def set_(names: list[str]) -> None:
        refs = SimpleNamespace(branches=[SimpleNamespace(name=name) for name in names], tags=[])
        monkeypatch.setattr(HfApi, "list_repo_refs", lambda self, model: refs)

    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: SimpleNamespace(sha="0" * 40, siblings=[]))
    return set_


def config_of(name: str, **changes) -> SweepConfig:
    return SweepConfig(**{**yaml.safe_load((CONFIGS / name).read_text()), **changes})


def test_pythia_by_step_with_the_tokens_seen(hub):
    hub(["main", *sorted(f"step{n}" for n in PYTHIA)])
    points = expand(config_of("pythia-160m.yaml"))
    assert [point.step for point in points] == PYTHIA
    assert len(points) == 154
    assert points[-1].tokens == 143_000 * 1024 * 2048
    assert len({point.folder for point in points}) == 154


def test_olmo_takes_its_first_stage_thinned_out(hub):
    steps = range(10_000, 1_900_000, 10_000)
    second = [f"stage2-ingredient1-step{n}-tokens{n // 500}B" for n in range(1000, 24_000, 1000)]
    hub(["main", *second, *(f"stage1-step{n}-tokens{n * 2 // 1000 + 1}B" for n in steps)])
    points = expand(config_of("olmo-2-1b.yaml"))
    assert all(point.revision.startswith("stage1-") for point in points)
    assert [point.step for point in points] == sorted({*steps[::20], *steps[:5], steps[-1]})
    assert points[0].tokens == 21 * 10**9


def test_a_trainers_checkpoints(training):
    config = config_of("trainer.yaml", model=str(training / "run" / "checkpoint-*"), data=str(training / "texts.jsonl"))
    assert [point.step for point in expand(config)] == list(range(1, 13))
    with pytest.raises(InputError, match=r"'trainer_output/checkpoint-\*' fits no folder here"):
        expand(config_of("trainer.yaml"))


@pytest.mark.parametrize("name", ["pythia-160m.yaml", "olmo-2-1b.yaml"])
def test_a_dry_run_says_what_would_run(name, hub, capsys, tmp_path):
    hub([f"stage1-step{n}-tokens{n}B" for n in range(3)] if "olmo" in name else ["step0", "step1", "step2"])
    assert main(["sweep", "--config", str(CONFIGS / name), "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "step2" in printed
    assert "time" in printed
    assert "disk" in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_example_from_python(training, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for step in (2, 9, 11):
        (run / f"checkpoint-{step}").symlink_to(training / "run" / f"checkpoint-{step}")
    words = [str(run / "checkpoint-*"), str(training / "texts.jsonl"), str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "launch_sweep.py", *words], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    heading, *lines = done.stdout.strip().splitlines()
    assert heading.split() == ["step", "2", "9", "11"]
    rows = ["embeddings", "layer.1", "layer.2", "layer.3", "final_norm", "mean"]
    assert [line.split()[0] for line in lines] == ["name", *rows]
    assert all(0 < float(value) < 1 for line in lines[1:] for value in line.split()[1:])
