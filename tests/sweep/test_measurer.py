"""One process measures a worker's checkpoints: results are those of single runs, and a crash costs only its own."""

import json
import multiprocessing
import os
import shutil
import signal
import sys
from pathlib import Path

import psutil
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from softh_probe import ProbeResult
from softh_probe.config import RunConfig
from softh_probe.errors import InputError
from softh_probe.run import run
from softh_probe.sweep import SweepConfig, measure, read_ahead
from softh_probe.sweep.folder import SweepFolder
from softh_probe.sweep.grid import GridPoint, expand
from softh_probe.sweep.measurer import Measurer
from softh_probe.sweep.worker import Worker
from tests.helpers.corpora import TEXTS
from tests.helpers.models import tiny_llama
from tests.helpers.sweeps import attempts, wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what the tests replace is forked with the process")

SETTINGS = {"labels": ["input_unigram", "output_unigram"], "n_anchors": 20, "anchor_sets": 2, "gpus_per_worker": 0}


def sweep_of(folders: list[Path], training: Path, out: Path, **changes) -> tuple[SweepConfig, list[GridPoint]]:
    settings = {**SETTINGS, "model": list(map(str, folders)), "data": str(training / "texts.jsonl"), "max_length": 64}
    config = SweepConfig(out=str(out), **{**settings, **changes})
    points = expand(config)
    SweepFolder(config.out).start(config, points)
    return config, points


def work(config: SweepConfig, points: list[GridPoint]) -> None:
    """Let a worker measure all, in a process of its own."""
    process = multiprocessing.get_context("fork").Process(target=Worker(config, points))
    process.start()
    process.join(240)
    assert process.exitcode == 0


def of_training(training: Path, *steps: int) -> list[Path]:
    return [training / "run" / f"checkpoint-{step}" for step in steps]


def measured(measurer: Measurer, point: GridPoint, following: GridPoint | None = None) -> int:
    pid = measurer.begin(point, killed=0, following=following)
    while (ended := measurer.wait(1)) is None:
        pass
    assert (ended.code, ended.reason) == (0, "")
    return pid


@pytest.mark.slow
def test_a_crash_a_kill_and_an_exit_cost_only_their_checkpoint_and_are_tried_again(training, tmp_path, monkeypatch):
    original = measure.run

    def fragile(config: RunConfig, **kept) -> None:
        step = int(config.model.rpartition("-")[2])
        with (tmp_path / f"pids-{step}").open("a") as pids:
            pids.write(f"{os.getpid()}\n")
        if step == 5:
            raise InputError("model: this one is broken")
        if len((tmp_path / f"pids-{step}").read_text().split()) == 1:
            if step == 2:
                raise ValueError("two is odd")
            if step == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            if step == 4:
                os._exit(3)
        original(config, progress=False, **kept)

    monkeypatch.setattr(measure, "run", fragile)
    config, points = sweep_of(of_training(training, *range(1, 8)), training, tmp_path / "out", retries=1)
    work(config, points)
    folder = SweepFolder(config.out)
    states = {point.checkpoint: folder.state(point) for point in points}
    assert [state.status for state in states.values()] == ["done"] * 4 + ["failed"] + ["done"] * 2
    assert states["checkpoint-5"].failure.reason == "model: this one is broken"
    logs = {point.checkpoint: folder.log(point).read_text() for point in points}
    assert [attempts(log) for log in logs.values()] == [1, 2, 2, 2, 2, 1, 1]
    assert "ValueError: two is odd" in logs["checkpoint-2"]
    assert "its process crashed or was killed (SIGKILL; mostly that is for want of memory)" in logs["checkpoint-3"]
    assert "its process ended with exit code 3 and gave no reason" in logs["checkpoint-4"]
    for own, log in logs.items():
        assert not any(other in log for other in logs if other != own)

    # Others go on in the process that measured the one before.
    pids = {step: (tmp_path / f"pids-{step}").read_text().split() for step in range(1, 8)}
    assert pids[1][0] == pids[2][0] != pids[3][0]
    assert pids[2][1] == pids[3][1] == pids[4][0]
    assert pids[6] == pids[7]
    assert len({pid for of_step in pids.values() for pid in of_step}) == 6
    # After a kill, batches are smaller.
    sizes = {p.checkpoint: result_of(folder, p).info["config"]["tokens_per_batch"] for p in points if p.step != 5}
    assert sizes["checkpoint-3"] * 2 == sizes["checkpoint-2"] == sizes["checkpoint-7"]


def result_of(folder: SweepFolder, point: GridPoint) -> ProbeResult:
    return ProbeResult.load(folder.result(point))


@pytest.mark.slow
def test_results_are_those_of_single_runs_also_where_tokenizers_take_turns(training, tmp_path):
    words = Tokenizer(models.BPE(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=90, special_tokens=["<unk>", "<pad>"]))
    other = tmp_path / "other"
    tiny_llama(vocab_size=len(words.get_vocab())).save_pretrained(other)
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="<pad>").save_pretrained(other)
    again = shutil.copytree(other, tmp_path / "again")
    one, two, three = of_training(training, 1, 2, 3)
    config, points = sweep_of([one, two, other, three, again], training, tmp_path / "out")
    work(config, points)
    folder = SweepFolder(config.out)
    assert len({result_of(folder, point).info["corpus"]["sha256"] for point in points}) == 2
    logs = [folder.log(point).read_text() for point in points]
    assert len({log.split(" in process ")[1].split()[0] for log in logs}) == 1
    assert sum("tokenize:" in log for log in logs) == 2
    for point in points:
        swept = result_of(folder, point)
        single = config.run_config(model=point.source, revision=None, out=tmp_path / "single" / point.folder)
        alone = run(single, progress=False)
        assert swept.tensors.keys() == alone.tensors.keys()
        assert all(
            torch.equal(tensor.nan_to_num(), alone.tensors[name].nan_to_num()) for name, tensor in swept.tensors.items()
        )
        for name in ("rows", "positions", "corpus", "model", "anchors", "choices", "warnings", "versions"):
            assert json.dumps(swept.info.get(name)) == json.dumps(alone.info.get(name)), name
        table = Path(single.out, "layers.parquet").read_bytes()
        assert (folder.result(point) / "layers.parquet").read_bytes() == table


@pytest.mark.slow
def test_ten_checkpoints_leave_no_more_memory_behind_than_three(training, tmp_path):
    config, points = sweep_of(of_training(training, *range(1, 11)), training, tmp_path / "out")
    measurer, sizes = Measurer(config), []
    for point in points:
        pid = measured(measurer, point)
        sizes.append(psutil.Process(pid).memory_info().rss / 2**20)
    measurer.close()
    assert not psutil.pid_exists(pid)
    assert sizes[9] - sizes[2] < 16  # MiB


@pytest.mark.slow
def test_code_of_a_checkpoint_gets_a_process_for_each(training, tmp_path):
    config, points = sweep_of(of_training(training, 1, 2), training, tmp_path / "out", trust_remote_code=True)
    measurer = Measurer(config)
    assert len({measured(measurer, point) for point in points}) == 2
    measurer.close()


@pytest.mark.slow
def test_a_process_that_was_killed_while_it_waited_is_replaced(training, tmp_path):
    config, points = sweep_of(of_training(training, 1, 2), training, tmp_path / "out")
    measurer = Measurer(config)
    first = measured(measurer, points[0], following=points[1])
    os.kill(first, signal.SIGKILL)
    psutil.Process(first).wait(10)
    assert measured(measurer, points[1]) != first
    measurer.close()


def test_a_process_that_is_stopped_while_it_finishes_ends_after_that(training, tmp_path, monkeypatch):
    config, points = sweep_of(of_training(training, 2, 5), training, tmp_path / "out")

    def finishing(*_, **__) -> int:
        """The last batch is done: a run takes note of signals, and nobody looks at that any more."""
        before = signal.signal(signal.SIGTERM, lambda *_: (tmp_path / "noted").touch())
        (tmp_path / "finishing").touch()
        wait_for((tmp_path / "noted").exists)
        signal.signal(signal.SIGTERM, before)
        return measure.EXIT_DONE

    monkeypatch.setattr(measure, "measure_one", finishing)
    measurer = Measurer(config)
    process = psutil.Process(measurer.begin(points[0], killed=0, following=None))
    wait_for((tmp_path / "finishing").exists)
    waited = []
    measurer.stop(20, lambda: waited.append(1))
    assert not process.is_running()
    assert len(waited) < 100  # a tenth of a second each


def test_a_measurement_finds_and_leaves_the_state_of_a_new_process():
    def drawn() -> list[float]:
        with measure._like_a_new_process():
            values = torch.rand(3).tolist()
            torch.set_default_dtype(torch.float64)
            torch.manual_seed(5)
            os.environ["OF_A_MEASUREMENT"] = "1"
        return values

    torch.manual_seed(torch.initial_seed())
    assert drawn() == drawn()
    assert torch.get_default_dtype() == torch.float32
    assert "OF_A_MEASUREMENT" not in os.environ


def test_weights_are_read_ahead_all_of_them_and_nothing_else(training, tmp_path, monkeypatch):
    read: list[str] = []
    original = read_ahead._read
    monkeypatch.setattr(read_ahead, "_read", lambda files: read.extend(f.name for f in files) or original(files))
    monkeypatch.setattr(read_ahead, "has_room", lambda n_bytes: True)
    sharded = tmp_path / "sharded-2"
    tiny_llama(vocab_size=150).save_pretrained(sharded, max_shard_size="20KB")
    shutil.copyfile(sharded / "config.json", sharded / "optimizer.safetensors")
    config, points = sweep_of([*of_training(training, 1), sharded], training, tmp_path / "out")
    whole = points[0].source + "/model.safetensors"
    assert read_ahead.read_ahead(config, points[0]) == os.path.getsize(whole)
    assert read == ["model.safetensors"]
    read.clear()
    shards = sorted(sharded.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert read_ahead.read_ahead(config, points[1]) == sum(shard.stat().st_size for shard in shards)
    assert read == [shard.name for shard in shards]
    # What is not there is no error here.
    assert read_ahead.read_ahead(config, GridPoint(checkpoint="x", model="x", series="x", folder="x")) == 0


def test_nothing_is_read_ahead_where_memory_is_short(training, tmp_path, monkeypatch):
    config, points = sweep_of(of_training(training, 1), training, tmp_path / "out")
    n_bytes = os.path.getsize(points[0].source + "/model.safetensors")
    memory = psutil.virtual_memory()
    free = 2 * n_bytes
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=free))
    assert read_ahead.read_ahead(config, points[0]) == n_bytes
    free -= 1
    assert read_ahead.read_ahead(config, points[0]) == 0
