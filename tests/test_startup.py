"""Start-up: commands that compute nothing import neither torch nor transformers."""

import json
import subprocess
import sys
from typing import get_args

import pytest

import softh_probe
import softh_probe.ingest
import softh_probe.sweep
from softh_probe.config import RunConfig
from softh_probe.config_checks import type_hints
from softh_probe.estimators.anchors import KINDS
from softh_probe.estimators.calibration import METHODS
from softh_probe.models.placement import DTYPES

HEAVY = ("accelerate", "datasets", "huggingface_hub", "matplotlib", "numpy", "pandas", "plotly", "pyarrow", "scipy")
HEAVY += ("submitit", "torch", "transformers")

COMMAND = """
import json, sys
from softh_probe.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as stopped:
    code = stopped.code
print(json.dumps([code, sorted(sys.modules)]))
"""


def modules_of(words: list[str]) -> tuple[int, str, set[str]]:
    """Run a command in a process of its own; return its exit code, its output, and the modules it imported."""
    done = subprocess.run([sys.executable, "-c", COMMAND, *words], capture_output=True, text=True, check=True)
    *lines, last = done.stdout.splitlines()
    code, modules = json.loads(last)
    return code, "\n".join(lines) + done.stderr, set(modules)


@pytest.fixture
def sweep_folder(tmp_path):
    """A sweep of three checkpoints: one done, one failed, one waiting."""
    (tmp_path / "work" / "failures").mkdir(parents=True)
    folders = ("one-00000001", "two-00000002", "three-00000003")
    points = [
        {"checkpoint": name.split("-")[0], "model": "owner/name", "series": "owner/name", "folder": name}
        for name in folders
    ]
    (tmp_path / "work" / "grid.json").write_text(json.dumps(points))
    (tmp_path / "work" / "failures" / f"{folders[1]}.json").write_text(
        json.dumps({"failed": 2, "final": True, "reason": "no such revision", "log": "work/logs/two.log"})
    )
    (tmp_path / "checkpoints" / folders[0]).mkdir(parents=True)
    (tmp_path / "checkpoints" / folders[0] / "result.json").write_text("{}")
    return str(tmp_path)


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--help"], 0, "Available subcommands"),
        (["--version"], 0, "softh-probe "),
        (["run", "--help"], 0, "{truncate,split}"),
        (["compare", "--help"], 0, "beyond noise"),
        (["sweep", "--help"], 0, "{local,slurm}"),
        (["ingest", "--help"], 0, "Seed of the first set of anchors"),
        (["ingest", "states", "--layout", "hf"], 2, "layout: expected vllm, plain, rows or null, got 'hf'"),
        (["run", "--sede", "3"], 2, "sede: no such field (did you mean --seed?)"),
        (["run", "--overflow", "wrap"], 2, "overflow: expected truncate or split, got 'wrap'"),
        (["status", "nowhere"], 2, "holds no sweep"),
    ],
)
def test_commands_that_compute_nothing_import_nothing_heavy(words, code, text):
    found, output, modules = modules_of(words)
    assert (found, modules & {*HEAVY}) == (code, set())
    assert text in output


def test_the_status_of_a_sweep_imports_nothing_heavy(sweep_folder):
    code, output, modules = modules_of(["status", sweep_folder])
    assert (code, modules & {*HEAVY}) == (0, set())
    assert output.splitlines() == [
        "1 done, 0 running, 1 failed, 1 waiting",
        "failed   two: no such revision (log: work/logs/two.log)",
        "waiting  three",
    ]


def test_the_probe_imports_no_library_of_data_sets_figures_or_command_lines():
    code = "import sys; from softh_probe import SoftEntropyProbe; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"datasets", "plotly", "matplotlib", "jsonargparse"} & {*done.stdout.split()}


@pytest.mark.parametrize("module", [softh_probe, softh_probe.ingest, softh_probe.sweep])
def test_public_names_are_imported_on_first_use(module):
    for name in module.__all__:
        assert getattr(module, name).__name__ == name
        assert name in dir(module)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        module.nonsense  # noqa: B018


def test_choices_of_a_configuration_are_those_of_the_code_it_configures():
    """They are written twice, as configurations are read without torch and scipy."""
    hints = type_hints(RunConfig)
    assert get_args(hints["dtype"]) == DTYPES
    assert get_args(get_args(hints["anchors"])[0]) == KINDS  # or a file
    assert get_args(get_args(hints["calibration"])[0]) == METHODS


def test_public_modules_are_attributes_of_the_package():
    code = "import softh_probe; softh_probe.result.ProbeResult; softh_probe.labels.parse_label_sets"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_launcher_of_a_sweep_is_imported_without_torch_data_sets_and_figures():
    code = "import sys; from softh_probe.sweep import sweep; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "datasets", "matplotlib", "plotly", "scipy.stats"} & {*done.stdout.split()}


def test_a_measuring_process_imports_no_library_of_figures():
    code = "import sys; import softh_probe.sweep.measure; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"matplotlib", "plotly", "scipy.stats"} & {*done.stdout.split()}
