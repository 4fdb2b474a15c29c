"""The column within whose values chance exchanges labels: a setting of a run like others."""

import dataclasses
import json
import os
import signal
from pathlib import Path

import pytest
import yaml

from softh_probe.cli import main
from softh_probe.errors import InputError, Interrupted
from softh_probe.run import run
from softh_probe.run.pipeline import CONFIG_YAML
from softh_probe.sweep.config import SweepConfig
from tests.helpers.corpora import LANGUAGES, TEXTS
from tests.run.test_stream_resume import signals

LABELS = ["input_unigram", "column:language"]


@pytest.fixture
def rows(tmp_path) -> str:
    """A data set with a language, a nested topic, a number of its own for each row, and a column without values."""
    made = [
        {"text": text, "language": language, "meta": {"topic": f"topic {i % 3}"}, "id": i, "none": None}
        for i, (text, language) in enumerate(zip(TEXTS, LANGUAGES, strict=True))
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, made)))
    os.utime(path, (1, 1))
    return str(path)


@pytest.mark.parametrize("stream", [False, True])
def test_it_is_no_label_set_and_part_of_the_configuration(config, rows, stream):
    wanted = config(data=rows, labels=LABELS, permute_within="meta.topic", stream=stream)
    result = run(wanted, progress=False)
    assert sorted(result.label_sets) == sorted(LABELS)
    assert result.info["config"]["permute_within"] == "meta.topic"
    assert yaml.safe_load((Path(wanted.out) / CONFIG_YAML).read_text())["permute_within"] == "meta.topic"


@pytest.mark.parametrize("stream", [False, True])
def test_an_unfinished_run_within_other_groups_is_another_run(config, rows, monkeypatch, stream):
    wanted = config(data=rows, labels=LABELS, permute_within="meta.topic", stream=stream, tokens_per_batch=60)
    with monkeypatch.context() as patched:
        signals(patched, {2: signal.SIGTERM})
        with pytest.raises(Interrupted):
            run(wanted, progress=False)
    other = dataclasses.replace(wanted, permute_within=None)
    with pytest.raises(InputError, match=r"another configuration \(permute_within: expected 'meta.topic', got None\)"):
        run(other, progress=False)
    assert run(wanted, progress=False).info["interruptions"] == 1


def test_what_makes_no_sense_is_refused_in_one_line(config):
    for labels in (["input_unigram"], []):
        with pytest.raises(InputError, match=r"permute_within: .*labels name no column; add column:NAME"):
            config(labels=labels, permute_within="topic")
    with pytest.raises(InputError, match=r"permute_within: .*column:topic has one label.*name another column"):
        config(labels=["input_unigram", "column:topic"], permute_within="topic")
    config(labels=["column:language", "column:topic"], permute_within="topic")
    with pytest.raises(InputError, match="permute_within: expected the name of a column"):
        config(labels=LABELS, permute_within="")


@pytest.mark.parametrize("stream", [False, True])
def test_a_column_without_values_is_refused(config, rows, stream):
    with pytest.raises(InputError, match="permute_within: 'none' is null in every document; leave it out"):
        run(config(data=rows, labels=LABELS, permute_within="none", stream=stream), progress=False)


def test_a_stream_keeps_a_bounded_number_of_groups(config, rows, monkeypatch):
    monkeypatch.setattr("softh_probe.planned.streamed.KEPT_LABELS", 20)
    wanted = config(data=rows, labels=LABELS, permute_within="id", stream=True)
    with pytest.raises(InputError, match=r"permute_within: 'id' has more than 20 values.* leave it out, or leave out"):
        run(wanted, progress=False)
    run(dataclasses.replace(wanted, stream=False), progress=False)


def test_flag_dry_run_and_sweep(config, rows, tmp_path, capsys):
    given = config(data=rows)
    words = ["run", f"--model={given.model}", f"--data={rows}", "--n-anchors=20", f"--out={tmp_path / 'a'}"]
    words += [f"--labels={','.join(LABELS)}", "--no-report", "--dry-run"]
    assert main([*words, "--json", "--permute-within=meta.topic"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["config"]["permute_within"] == "meta.topic"
    assert list(found["label_sets"]) == LABELS
    assert main([*words, "--permute-within=meta.topics"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("softh-probe: permute_within: ")
    assert "did you mean 'meta.topic'" in error
    assert main([*words, "--group-by=meta.topic"]) == 2
    assert "softh-probe calls this --permute-within" in capsys.readouterr().err
    sweep = SweepConfig(model="m", data=rows, out="o", labels=LABELS, permute_within="meta.topic")
    assert sweep.run_config(model="m", revision=None, out="o").permute_within == "meta.topic"
    assert sweep.measured()["permute_within"] == "meta.topic"
