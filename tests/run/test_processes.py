"""Runs that several processes measure: the numbers of one, written once; whatever fails, none is left waiting."""

import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed as dist

import softh_probe.models.checkpoint
import softh_probe.run.forward
from softh_probe import ProbeResult
from softh_probe.cli import main
from softh_probe.errors import InputError
from softh_probe.run import run
from softh_probe.run.output_folder import output_folder
from softh_probe.run.processes import Processes, own_device
from tests.helpers.comparisons import assert_same_values

pytestmark = pytest.mark.skipif(
    not dist.is_gloo_available() or sys.platform != "linux", reason="needs gloo, and processes that fork"
)

SETTINGS = {
    "labels": ["input_unigram", "output_unigram", "input_bigram", "output_trigram", "column:language"],
    "per_label": ["input_unigram"],
    "anchor_sets": 2,
    "tokens_per_batch": 60,
    "snapshot_minutes": 0,
}


def options_of(config) -> list[str]:
    words = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        flag = field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None and value != ():
            words.append(f"--{flag}={json.dumps(list(value)) if isinstance(value, tuple) else value}")
    return words


def together(config, folder: Path, before=lambda rank: None, count: int = 2) -> list[tuple[int, str]]:
    """Run `softh-probe run` in several processes with torchrun's variables; give their exit codes and standard errors.

    Args:
        before: called first in each, with its number.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def work(rank: int) -> None:
        sys.stderr = open(folder / f"stderr.{rank}", "w", buffering=1)  # noqa: SIM115
        torch.set_num_threads(1)
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        before(rank)
        code = 1
        try:
            code = main(["run", *options_of(config)])
        except SystemExit as exit_:
            code = exit_.code
        finally:
            sys.stderr.flush()
            os._exit(code)

    processes = [multiprocessing.get_context("fork").Process(target=work, args=(rank,)) for rank in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode is not None, "left waiting"
    return [(p.exitcode, (folder / f"stderr.{rank}").read_text()) for rank, p in enumerate(processes)]


def stop_at(batches: dict[int, int], how):
    """In the processes of these numbers, act when that many batches were prepared."""

    def before(rank: int) -> None:
        original, calls = softh_probe.run.forward.pad_batch, iter(range(1000))

        def pad_batch(corpus, documents):
            if next(calls) == batches.get(rank):
                how()
            return original(corpus, documents)

        softh_probe.run.forward.pad_batch = pad_batch

    return before


def assert_same_results(ours: ProbeResult, theirs: ProbeResult) -> None:
    assert ours.info["positions"] == theirs.info["positions"]
    assert ours.info["tokens"] == theirs.info["tokens"]
    assert_same_values(ours.to_pandas("nats"), theirs.to_pandas("nats"))
    assert ours.labels == theirs.labels
    for name, tensor in ours.tensors.items():
        exact = name != "corrected_information"
        np.testing.assert_allclose(tensor, theirs.tensors[name], rtol=1e-6, atol=1e-6 if exact else 1e-4, err_msg=name)


@pytest.mark.slow
def test_torchrun_gives_the_numbers_of_one_process_written_once(config, tmp_path):
    one = run(config(**SETTINGS, out=str(tmp_path / "one")), progress=False)
    together = config(**SETTINGS, out=str(tmp_path / "together"), cache="none")
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*words, "-m", "softh_probe.cli", "run", *options_of(together)], capture_output=True, text=True, check=True
    )
    assert_same_results(ProbeResult.load(together.out), one)
    assert ProbeResult.load(together.out).info["processes"] == 2
    assert {path.name for path in Path(together.out).iterdir()} == {
        path.name for path in Path(one.info["config"]["out"]).iterdir()
    }
    assert done.stderr.count("corpus:") == done.stderr.count("results in") == 1
    assert "10 batches of up to 60 tokens, shared among 2 processes" in done.stderr
    assert done.stdout.count("final_norm") == 1


def test_three_processes_stopped_by_a_signal_go_on_to_the_same_sums_bit_for_bit(config, tmp_path):
    whole, stopped = (config(**SETTINGS, out=str(tmp_path / name)) for name in ("whole", "stopped"))
    assert [code for code, _ in together(whole, tmp_path, count=3)] == [0, 0, 0]
    signalled = stop_at({0: 1, 1: 2, 2: 0}, lambda: os.kill(os.getpid(), signal.SIGTERM))
    ended = together(stopped, tmp_path, signalled, count=3)
    assert [code for code, _ in ended] == [143, 143, 143]
    assert "softh-probe: stopped by SIGTERM after 2 of 4 batches; the same command resumes" in ended[0][1]
    assert ended[1][1] == ended[2][1] == ""
    unfinished = Path(stopped.out) / "unfinished"
    found = {str(path.relative_to(unfinished)) for path in unfinished.glob("*/*")}
    assert found == {f"snapshots-{rank}-of-3/0000000{n}" for rank, n in enumerate([2, 3, 1])}

    with pytest.raises(InputError, match=r"holds an unfinished run of 3 processes; start as many, name another folder"):
        run(stopped, progress=False)
    shutil.copytree(stopped.out, tmp_path / "copy")
    run(dataclasses.replace(stopped, out=str(tmp_path / "copy"), resume=False), progress=False)
    assert not (tmp_path / "copy" / "unfinished").exists()
    ended = together(stopped, tmp_path, count=3)
    assert [code for code, _ in ended] == [0, 0, 0]
    assert "resuming after 2 batches" in ended[0][1]
    assert not unfinished.exists()
    names = ("sums.safetensors", "layers.csv", "layers.parquet")
    for name in names:
        assert (Path(stopped.out) / name).read_bytes() == (Path(whole.out) / name).read_bytes(), name


def test_processes_follow_the_sample_of_labels_of_one_process(config, tmp_path):
    settings = {**SETTINGS, "label_rows": 24}
    shared = config(**settings, out=str(tmp_path / "shared"), cache="none")
    assert [code for code, _ in together(shared, tmp_path)] == [0, 0]
    one = run(config(**settings, out=str(tmp_path / "one")), progress=False)
    found = ProbeResult.load(shared.out)
    assert_same_results(found, one)
    sampled = [name for name, of_set in one.info["label_sampling"].items() if of_set["threshold"] > 1]
    assert set(sampled) == {"output_unigram", "input_bigram", "output_trigram"}  # one is per label, one a column
    assert found.info["label_sampling"] == one.info["label_sampling"]
    deviations = [result.to_pandas("nats").sampling_sd.to_numpy() for result in (found, one)]
    assert (deviations[0] > 0).any()
    np.testing.assert_allclose(*deviations, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("rank", [0, 1])
def test_one_that_fails_says_why_and_the_others_end_and_keep_what_they_measured(config, tmp_path, rank):
    def fail():
        raise MemoryError("no more")

    config = config(**SETTINGS)
    ended = together(config, tmp_path, stop_at({rank: 2}, fail))
    assert ended[rank][0] == 1
    assert "MemoryError: no more" in ended[rank][1]
    assert ended[1 - rank][0] != 0
    lost = "softh-probe: another process of this run has ended; its own error line says why"
    assert (lost in ended[0][1]) == (rank == 1)
    assert lost not in ended[1][1]
    snapshots = Path(config.out) / "unfinished" / f"snapshots-{1 - rank}-of-2"
    assert [path.name for path in snapshots.iterdir()] == ["00000005"]
    assert [code for code, _ in together(config, tmp_path)] == [0, 0]
    one = run(dataclasses.replace(config, out=str(tmp_path / "one")), progress=False)
    assert_same_results(ProbeResult.load(config.out), one)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "./nowhere"}, "no such file or folder"),
        ({"tokens_per_batch": 4096}, "the corpus makes 1 batches of up to 4,096 tokens, for 2 processes; start fewer"),
        ({"device_map": "auto"}, "device_map 'auto': each of 2 processes loads the whole model"),
    ],
)
def test_bad_input_ends_all(config, tmp_path, changes, message):
    ended = together(config(**{**SETTINGS, **changes}), tmp_path)
    assert all(code for code, _ in ended)
    shown = [line for line in ended[0][1].splitlines() if line.startswith("softh-probe: ")]
    assert len(shown) == 1
    assert message in shown[0]
    assert not (tmp_path / "out").exists()


def test_a_folder_that_another_process_removes_at_this_moment_is_made_again(tmp_path, monkeypatch):
    made = Path.mkdir

    def make(path, *args, **kwargs):
        monkeypatch.setattr(Path, "mkdir", made)
        raise FileExistsError(17, "File exists", str(path))  # it was there, and is gone

    monkeypatch.setattr(Path, "mkdir", make)
    with output_folder(tmp_path / "out") as folder:
        assert folder.is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"out: .*file"), output_folder(tmp_path / "file" / "out"):
        pass


def test_processes_that_do_not_measure_the_same_end_all(config, tmp_path):
    def before(rank):
        if rank:
            softh_probe.models.identity.weights_fingerprint = lambda model: "other"

    ended = together(config(**SETTINGS), tmp_path, before)
    assert [code for code, _ in ended] == [2, 2]
    assert "softh-probe: process 1 of 2: weights: not the same as in the first process" in ended[1][1]


def test_each_process_takes_the_accelerator_of_its_number(monkeypatch):
    monkeypatch.setattr("softh_probe.run.processes.accelerator", lambda: "cuda")
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 2)
    second = Processes(rank=3, count=4, local_rank=1, local_count=2)
    assert [own_device(chosen, second) for chosen in (None, "cuda", "cpu", "cuda:0")] == [
        "cuda:1",
        "cuda:1",
        "cpu",
        "cuda:0",
    ]
    assert own_device(None, Processes()) is None
    with pytest.raises(InputError, match="3 processes on this machine, and 2 accelerators; start as many as there are"):
        own_device(None, Processes(rank=1, count=3, local_rank=1, local_count=3))
