"""`softh-probe ingest` on the command line."""

import json
import shlex
from pathlib import Path

import pytest
import torch

from softh_probe.cli import main
from softh_probe.ingest.arrays import open_arrays
from softh_probe.ingest.damage import DamagedFileError, Skipped
from softh_probe.ingest.row_names import row_names
from softh_probe.result import ProbeResult
from tests.helpers.fed_states import documents, random_states
from tests.helpers.stored_states import FEW, LABELS, ROWS, assert_same, metered, store, store_all

TOLD = ["--layout", "vllm", "--layers", "1,2"]


@pytest.fixture
def words(checkpoint, tmp_path):
    """A command that measures three files."""
    docs = documents(23, 17, 12)
    store_all(tmp_path / "states", docs, random_states(docs, ROWS))
    few = [word for name, n in FEW.items() for word in (f"--{name.replace('_', '-')}", str(n))]
    paths = [str(tmp_path / "states"), "--tokenizer", str(checkpoint), "--out", str(tmp_path / "out")]
    return ["ingest", *paths, *few, "--labels", ",".join(LABELS), "--no-report"]


def test_the_command_writes_results_and_prints_the_table(words, tmp_path, capsys):
    docs = documents(23, 17, 12)
    assert main([*words, *TOLD]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0].split()[:3] == ["layer", "name", "entropy"]
    assert "3/3 files" in err
    assert err.splitlines()[-1] == f"results in {tmp_path / 'out'}"
    assert_same(ProbeResult.load(tmp_path / "out"), metered(docs, random_states(docs, ROWS)))


def test_its_configuration_repeats_it(words, tmp_path, capsys):
    assert main([*words, *TOLD]) == 0
    assert main(["ingest", "--config", str(tmp_path / "out" / "config.yaml"), "--out", str(tmp_path / "again")]) == 0
    ours, again = (ProbeResult.load(tmp_path / name).to_pandas() for name in ("out", "again"))
    assert ours.equals(again)


def test_a_dry_run_reads_no_states_and_writes_nothing(words, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("softh_probe.ingest.layouts._Stacked.piece", None)
    assert main([*words, *TOLD, "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["files"], found["rows"], found["widths"]) == (3, list(ROWS), dict.fromkeys(ROWS, 8))
    assert found["gib"] == sum(path.stat().st_size for path in (tmp_path / "states").iterdir()) / 2**30
    assert main([*words, *TOLD, "--dry-run"]) == 0
    assert "files: 3, 0.00 GiB; layout vllm; 2 rows of width 8 on " in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "error"),
    [
        (["--layers", "1,2"], "layout: hidden_states of req-00.safetensors is [23, 2, 8], and nobody says"),
        (["--layout", "vllm"], "layers: hidden_states of req-00.safetensors has 2 layers, and nobody says which"),
        (["--layout", "other"], "layout: expected vllm, plain, rows or null, got 'other'"),
        ([*TOLD, "--json"], "json: only what --dry-run finds is printed so"),
        ([*TOLD, "--model", "x"], "model: no such field; valid are: folder, tokenizer, layout, layers, manifest"),
        ([*TOLD, "--positions", "assistant"], "positions: "),
        ([*TOLD, "--n-blocks", "1"], "n_blocks: expected at least 2, of the row layer.2, got 1"),
        ([*TOLD, "--device-map", "auto"], "device_map 'auto': there is no model to spread"),
        ([*TOLD, "--tokenizer", "./none"], "tokenizer './none': no such file or folder"),
        ([*TOLD, "--manifest", "none.jsonl"], "manifest: no such file: 'none.jsonl'"),
        ([*TOLD, "--mean-over", "7"], "mean_over: "),
    ],
)
def test_bad_input_is_told_in_one_line(words, tmp_path, capsys, more, error):
    assert main([*words, *more]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith(f"softh-probe: {error}")
    assert not (tmp_path / "out").exists()


def test_files_that_are_skipped_are_told_at_the_end(words, tmp_path, capsys):
    (tmp_path / "states" / "req-01.safetensors").write_bytes(b"no")
    assert main([*words, *TOLD]) == 0
    assert "warning: 1 of 3 files was skipped (unreadable 1): req-01.safetensors: it" in capsys.readouterr().err


def test_means_of_rows_are_taken_as_asked(words, tmp_path):
    assert main([*words, *TOLD, "--mean-over", "layer.2"]) == 0
    table = ProbeResult.load(tmp_path / "out").to_pandas().query("metric == 'entropy'").set_index("name")["value"]
    assert table["mean"] == table["layer.2"] != table["layer.1"]


# --- parts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "rows"),
    [
        ("0,1,33", ("embeddings", "layer.1", "layer.33")),
        ("0-2,final_norm", ("embeddings", "layer.1", "layer.2", "final_norm")),
        (["layer.4", 5], ("layer.4", "layer.5")),
    ],
)
def test_numbers_of_layers_name_rows(layers, rows):
    assert row_names(layers) == rows


def test_of_many_damaged_files_the_first_are_named_and_all_counted():
    skipped = Skipped()
    for i in range(250):
        skipped.add(f"{i}.npz", DamagedFileError("empty" if i % 5 else "zero", "it is"))
    values = json.loads(json.dumps(skipped.to_json()))
    assert (values["skipped"], len(values["skipped_files"])) == (250, 100)
    assert values["skipped_by_kind"] == {"empty": 200, "zero": 50}
    (warning,) = Skipped.from_json(values).warnings(of=300)
    assert warning.startswith("250 of 300 files were skipped (empty 200, zero 50): 0.npz: it is; 1.npz: it is; ")
    assert warning.endswith("; and 247 more")


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_parts_of_arrays_are_those_of_the_whole(tmp_path, suffix):
    states = random_states(documents(9), ROWS)[0]
    path = store(tmp_path / f"a{suffix}", states, range(9), layout="plain", layers="1,2")
    with open_arrays(path) as arrays:
        assert arrays.shapes["hidden_states"] == (2, 9, 8)
        assert arrays.facts == {"layers": "1,2"}
        part = arrays.read("hidden_states", (slice(None), slice(2, 5), slice(None)))
        assert torch.equal(part, torch.stack([state[2:5] for state in states.values()]))
        assert arrays.read("token_ids").tolist() == list(range(9))


def test_the_example_in_the_readme_runs(checkpoint, tmp_path, monkeypatch, capsys):
    text = (
        (Path(__file__).parents[2] / "README.md")
        .read_text(encoding="utf-8")
        .partition("**States that others stored.**")[2]
    )
    python, bash = (text.partition(f"```{language}\n")[2].partition("```")[0] for language in ("python", "bash"))
    monkeypatch.chdir(tmp_path)
    exec(python.replace("900", "50"), {})  # as many tokens as the small tokenizer has
    command = shlex.split(bash.splitlines()[0])
    command[command.index("--tokenizer") + 1] = str(checkpoint)
    assert main(command[1:]) == 0
    result = ProbeResult.load("out/stored")
    assert result.rows == ["embeddings", "layer.8", "layer.16", "layer.30"]
    assert result.info["corpus"]["documents"] == 20


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_what_was_read_is_no_view_of_the_file(tmp_path, suffix):
    """Else a file that changes after it was checked would be measured unchecked, and its pages stay in memory."""
    states = random_states(documents(9), ROWS)[0]
    path = store(tmp_path / f"a{suffix}", states, range(9), layout="plain")
    with open_arrays(path) as arrays:
        part = arrays.read("hidden_states", (slice(None), slice(2, 5), slice(None)))
        with path.open("r+b") as file:
            file.write(bytes(path.stat().st_size))
        assert torch.equal(part, torch.stack([state[2:5] for state in states.values()]))
