"""Flags as people type them: underscores, names of other tools, abbreviations, --version."""

import dataclasses
import re

import pytest

from softh_probe import cli
from softh_probe.cli import main
from softh_probe.config import RunConfig
from softh_probe.other_names import our_name
from softh_probe.sweep.config import SweepConfig

NEEDED = ["--model", "m", "--data", "d", "--out", "o"]


@pytest.fixture
def configs(monkeypatch):
    """The configurations that `run` is called with."""
    found = []
    monkeypatch.setitem(cli.COMMANDS, "run", lambda options: found.append(options) or 0)
    return found


@pytest.mark.parametrize("field", dataclasses.fields(RunConfig), ids=lambda field: field.name)
def test_flags_take_underscores_and_hyphens(field, configs):
    value = {"int": "3", "float": "0.5", "bool": None}.get(re.split(r"\W", str(field.type))[0], "x")
    named = {"dtype": "float16", "overflow": "split", "sample_by": "line", "anchors": "iid", "calibration": "0.5"}
    named |= {"like": "soft-entropy-0.1.5"}
    named |= {"add_special_tokens": "true", "chat_template_kwargs": "{thinking: false}"}
    named |= {"model_kwargs": "{attn_implementation: eager}"}
    value = named.get(field.name, value)
    for flag in (f"--{field.name}", f"--{field.name.replace('_', '-')}"):
        needed = [word for name in ("model", "data", "out") if name != field.name for word in (f"--{name}", "n")]
        for words in [[flag, value], [f"{flag}={value}"]] if value else [[flag]]:
            assert main(["run", *needed, *words]) == 0
    assert len({str(config[field.name]) for config in configs}) == 1


def test_values_keep_their_underscores_and_hyphens(configs):
    words = [
        "--text_column=my_text-column",
        "--split",
        "a_b-c",
        "--no_report",
        "--labels",
        "column:__x__",
        "--subset=--x_y",
    ]
    assert main(["run", *NEEDED, *words]) == 0
    (config,) = configs
    assert (config.text_column, config.split, config.report) == ("my_text-column", "a_b-c", False)
    assert (config.labels, config.subset) == ("column:__x__", "--x_y")


def test_keys_of_dictionaries_keep_their_underscores(capsys):
    words = ["sweep", *NEEDED, "--slurm_options.cpus_per_task=3", "--print-config"]
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 0
    assert "cpus_per_task: '3'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--limit", "5"], "limit: softh-probe calls this --max-documents"),
        (["--device=cuda:0"], "device: softh-probe calls this --device-map (cpu, cuda:0, …, or auto)"),
        (["--batch_size", "8"], "batch_size: softh-probe calls this --tokens-per-batch (it counts tokens, "),
        (["--batch-size=8"], "batch_size: softh-probe calls this --tokens-per-batch (it counts tokens, "),
        (["--output_path", "o"], "output_path: softh-probe calls this --out"),
        (["--torch_dtype", "float16"], "torch_dtype: softh-probe calls this --dtype (auto, float32, bfloat16 or"),
        (["--bf16"], "bf16: softh-probe calls this --dtype"),
        (["--pretrained", "gpt2"], "pretrained: softh-probe calls this --model (a hub id"),
        (["--model_args", "pretrained=gpt2"], "model_args: softh-probe calls this --model (a hub id"),
        (["--tasks", "arc_easy"], "tasks: softh-probe calls this --data (a hub id"),
        (["--dataset", "d"], "dataset: softh-probe calls this --data (a hub id"),
        (["--num_samples", "5"], "num_samples: softh-probe calls this --max-documents"),
        (["--max_seq_length", "5"], "max_seq_length: softh-probe calls this --max-length"),
    ],
)
def test_names_of_other_tools_are_answered_with_ours(words, answer, capsys):
    for more in ([], NEEDED):
        assert main(["run", *more, *words]) == 2
        assert capsys.readouterr().err.startswith(f"softh-probe: {answer}")


def test_so_are_they_in_other_commands_and_in_files(capsys, tmp_path):
    assert main(["sweep", *NEEDED, "--output_dir", "x"]) == 2
    assert main(["report", "x", "--output_dir", "x"]) == 2
    assert main(["layers", "gpt2", "--device", "cuda"]) == 2
    assert main(["status", "x", "--device", "cuda"]) == 2
    file = tmp_path / "run.yaml"
    file.write_text("batch_size: 8\n")
    assert main(["run", *NEEDED, "--config", str(file)]) == 2
    lines = [line.removeprefix("softh-probe: ") for line in capsys.readouterr().err.splitlines()]
    assert lines[:2] == ["output_dir: softh-probe calls this --out"] * 2
    assert lines[2].startswith("device: softh-probe calls this --device-map")
    assert lines[3] == "device: no such field; valid are: folder"
    assert lines[4].startswith("batch_size: softh-probe calls this tokens_per_batch (it counts")


def test_no_field_is_answered_as_another_tools_name():
    names = {field.name for config in (RunConfig, SweepConfig) for field in dataclasses.fields(config)}
    # A run has no tasks: the answer names its data. A sweep has them.
    assert [name for name in names if our_name(name)] == ["tasks"]


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["run", *NEEDED, "--max-doc", "3"], "--max-documents"),
        (["run", *NEEDED, "--max-doc=3"], "--max-documents"),
        (["run", *NEEDED, "--mod", "3"], "--model"),
        (["sweep", *NEEDED, "--dry"], "--dry-run"),
        (["layers", "gpt2", "--rev", "main"], "--revision"),
        (["report", "x", "--allow"], "--allow-different"),
        (["--vers"], "--version"),
        (["run", *NEEDED, "--no-rep"], "--no-report"),
    ],
)
def test_abbreviated_flags_are_refused_with_the_whole_one(words, flag, capsys, recwarn):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "no such field" in error
    assert f"did you mean {flag}" in error
    assert len(error.splitlines()) == 1
    assert not recwarn.list


@pytest.mark.parametrize("words", [["--version"], ["run", "--version"], ["sweep", *NEEDED, "--version"]])
def test_the_version_is_printed_everywhere(words, capsys):
    assert main(words) == 0
    assert re.fullmatch(r"softh-probe \S+\n", capsys.readouterr().out)


def test_no_words_print_the_help(capsys):
    for words in ([], ["--debug"]):
        assert main(words) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert "Available subcommands" in printed.err
        assert "Probe one checkpoint on one corpus." in printed.err


@pytest.mark.parametrize("column", ["lang", "no_such_column", "Sprache der Texte"])
def test_a_label_set_that_is_none_is_answered_with_the_column(column, capsys):
    assert main(["run", *NEEDED, "--labels", f"input_unigram,{column}"]) == 2
    error = capsys.readouterr().err
    assert f"labels: unknown label set {column!r}; for a column of the data set write column:{column};" in error
    assert main(["run", *NEEDED, "--labels", "input_unigrams"]) == 2
    assert "expected any of input_unigram, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["run", *NEEDED, "--report", "false"], "--report: takes no value, got 'false'; give --no-report"),
        (["run", *NEEDED, "--report=False"], "--report: takes no value, got 'false'; give --no-report"),
        (["run", *NEEDED, "--report", "true"], "--report: takes no value, got 'true'; give --report"),
        (["run", *NEEDED, "--no-report", "true"], "--no-report: takes no value, got 'true'; give --no-report"),
        (["run", *NEEDED, "--no_report=0"], "--no-report: takes no value, got '0'; give --report"),
        (
            ["run", "--trust_remote_code", "no", *NEEDED],
            "--trust-remote-code: takes no value, got 'no'; give --no-trust",
        ),
        (["run", *NEEDED, "--dry-run", "true"], "--dry-run: takes no value, got 'true'; give --dry-run alone"),
        (["sweep", *NEEDED, "--dry-run", "off"], "--dry-run: takes no value, got 'off'; leave --dry-run out"),
        (["sweep", *NEEDED, "--intervals", "yes"], "--intervals: takes no value, got 'yes'; give --intervals"),
        (["layers", "m", "--trust-remote-code", "false"], "give --no-trust-remote-code"),
        (["report", "a", "--allow-different", "false"], "give --no-allow-different"),
        (["compare", "a", "b", "--json", "false"], "leave --json out"),
    ],
)
def test_a_value_of_a_switch_is_answered_with_the_switch(words, answer, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"softh-probe: {answer}") or answer in error
    assert error.count("\n") == 1


def test_values_that_look_like_those_of_switches_stay_values(configs, monkeypatch):
    words = ["--add-special-tokens", "false", "--split", "true", "--text-column=no", "--report"]
    assert main(["run", *NEEDED, *words]) == 0
    assert (configs[0].add_special_tokens, configs[0].split, configs[0].text_column) == (False, "true", "no")
    folders = []
    monkeypatch.setitem(cli.COMMANDS, "report", lambda options: folders.extend(options.folders) or 0)
    assert main(["report", "--allow-different", "1", "2"]) == 0
    assert folders == ["1", "2"]
