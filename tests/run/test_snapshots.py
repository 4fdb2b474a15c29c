"""A run that is stopped anywhere resumes to the same sums, bit for bit; damaged snapshots are never believed."""

import errno
import hashlib
import json
import os
import re
import shutil
import signal
import threading
from pathlib import Path

import pytest
from filelock import FileLock

import softh_probe.run.forward
from softh_probe.accumulators.states import STATE_VERSION
from softh_probe.cli import main
from softh_probe.config import RunConfig
from softh_probe.errors import InputError, Interrupted
from softh_probe.estimators.recipes import DEFAULT_ANCHOR_SETS
from softh_probe.probe import SoftEntropyProbe
from softh_probe.result import ProbeResult
from softh_probe.run import run
from softh_probe.run.dry_run import dry_run
from softh_probe.run.snapshots import Snapshots
from tests.helpers.corpora import write_texts
from tests.helpers.models import tiny_llama

SETTINGS = {
    "labels": ["input_unigram", "output_unigram", "input_bigram", "output_trigram", "column:language"],
    "per_label": ["input_unigram"],
    "anchor_sets": 2,
    "tokens_per_batch": 60,
}


@pytest.fixture
def stop_after(monkeypatch):
    """Sends signals to this process while batches are prepared: {batch: signal}, counted in each run."""

    def set_(signals: dict[int, int]) -> None:
        original, calls = softh_probe.run.forward.pad_batch, iter(range(1000))

        def pad_batch(corpus, documents):
            if number := signals.get(next(calls)):
                os.kill(os.getpid(), number)
            return original(corpus, documents)

        monkeypatch.setattr(softh_probe.run.forward, "pad_batch", pad_batch)

    yield set_
    monkeypatch.undo()


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix in (".safetensors", ".csv", ".parquet")}


@pytest.fixture(scope="module")
def whole(checkpoint, tmp_path_factory) -> dict[str, bytes]:
    """The files of the run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    write_texts(folder / "texts.jsonl")
    run(
        RunConfig(
            **SETTINGS,
            n_anchors=20,
            report=False,
            model=str(checkpoint),
            data=str(folder / "texts.jsonl"),
            cache="none",
            out=str(folder / "out"),
        ),
        progress=False,
    )
    return files_of(folder / "out")


def interrupt(config: RunConfig, stop_after, batch: int, number: int = signal.SIGTERM) -> None:
    stop_after({batch: number})
    with pytest.raises(Interrupted):
        run(config, progress=False)
    stop_after({})


def snapshots_of(config: RunConfig) -> list[Path]:
    return sorted((Path(config.out) / "unfinished" / "snapshots").iterdir())


def test_stopped_by_every_signal_the_sums_are_the_same_bit_for_bit(config, stop_after, whole, capsys):
    config = config(**SETTINGS)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGTERM):
        stop_after({1: number})
        with pytest.raises(KeyboardInterrupt) as stopped:
            run(config)
        assert stopped.value.signal == number
    assert [path.name for path in snapshots_of(config)] == ["00000006", "00000008"]
    assert not (Path(config.out) / "result.json").exists()
    stop_after({})
    result = run(config)
    assert "resuming after 8 batches" in capsys.readouterr().err
    assert files_of(Path(config.out)) == whole
    assert result.info["interruptions"] == 4
    assert not (Path(config.out) / "unfinished").exists()


def test_stopped_before_the_first_batch_nothing_is_left(config, monkeypatch, tmp_path):
    def read_corpus(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("went on")

    monkeypatch.setattr("softh_probe.run.planned_feed.read_corpus", read_corpus)
    with pytest.raises(Interrupted, match="stopped by SIGTERM before anything was measured"):
        run(config(out=str(tmp_path / "new" / "out")), progress=False)
    assert not (tmp_path / "new").exists()


def test_a_signal_after_the_last_batch_lets_the_run_end(config, whole, monkeypatch):
    def result(self):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(self)

    original = SoftEntropyProbe.result
    monkeypatch.setattr(SoftEntropyProbe, "result", result)
    config = config(**SETTINGS)
    run(config, progress=False)
    assert files_of(Path(config.out)) == whole


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-8]),
    "altered": lambda path: path.write_bytes(path.read_bytes()[:-8] + b"\0\1\2\3\4\5\6\7"),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "garbage": lambda path: path.write_bytes(b"\xff" * 300),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", ["snapshot.json", "000.safetensors", "004.safetensors"])
def test_a_damaged_snapshot_is_recognised_and_the_one_before_it_used(config, stop_after, whole, damage, file, capsys):
    config = config(**SETTINGS)
    interrupt(config, stop_after, 2)
    interrupt(config, stop_after, 1)
    older, newer = snapshots_of(config)
    DAMAGES[damage](newer / file)
    run(config)
    assert f"resuming after {int(older.name)} batches" in capsys.readouterr().err
    assert files_of(Path(config.out)) == whole


def test_a_number_changed_in_a_snapshot_is_recognised(config, stop_after, whole):
    config = config(**SETTINGS)
    interrupt(config, stop_after, 3)
    (snapshot,) = snapshots_of(config)
    head = (snapshot / "snapshot.json").read_text()
    (snapshot / "snapshot.json").write_text(head.replace('"batches": 4', '"batches": 5'))
    run(config, progress=False)
    assert files_of(Path(config.out)) == whole


def test_with_all_snapshots_damaged_a_run_starts_anew_and_says_so(config, stop_after, whole, capsys):
    config = config(**SETTINGS)
    interrupt(config, stop_after, 2)
    for snapshot in snapshots_of(config):
        shutil.rmtree(snapshot)
        snapshot.mkdir()
    run(config)
    assert "snapshots are damaged; starting anew" in capsys.readouterr().err
    assert files_of(Path(config.out)) == whole


def test_another_configuration_is_told_apart(config, stop_after, whole, tmp_path):
    first = config(**{**SETTINGS, "seed": 7})
    interrupt(first, stop_after, 2)
    with pytest.raises(InputError, match=r"unfinished run of another configuration \(seed: expected 7, got 0\)"):
        run(config(**SETTINGS), progress=False)
    assert snapshots_of(first)
    for change in ({"overwrite": True}, {"resume": False}):
        shutil.copytree(first.out, tmp_path / "copy")
        run(config(**SETTINGS, **change, out=str(tmp_path / "copy")), progress=False)
        assert files_of(tmp_path / "copy") == whole
        shutil.rmtree(tmp_path / "copy")


def test_an_unfinished_run_of_the_earlier_number_of_anchor_sets_says_how_to_go_on(config, stop_after):
    interrupt(config(**{**SETTINGS, "anchor_sets": 1}), stop_after, 2)
    remedy = r"\(anchor_sets: expected 1, got 8\).*earlier versions measured one set .*: --anchor-sets 1 continues"
    with pytest.raises(InputError, match=remedy):
        run(config(**{**SETTINGS, "anchor_sets": DEFAULT_ANCHOR_SETS}), progress=False)


def test_snapshots_of_another_version_are_refused_or_left_behind(config, stop_after, whole):
    settings = config(**SETTINGS)
    interrupt(settings, stop_after, 5)
    file = snapshots_of(settings)[-1] / "snapshot.json"
    text = file.read_text().splitlines()[1].replace('"format": 1', '"format": 9')
    file.write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}\n")
    versions = rf"\(1, {STATE_VERSION}\), got \(9, {STATE_VERSION}\)"
    with pytest.raises(InputError, match=rf"snapshot of another version .*{versions}.* --no-resume to start"):
        run(settings, progress=False)
    assert file.is_file()  # what was measured is not thrown away unasked
    run(config(**SETTINGS, overwrite=True), progress=False)
    assert files_of(Path(settings.out)) == whole


@pytest.mark.parametrize("label_rows", ["all", 1000, 5])
def test_a_run_from_before_labels_were_sampled_goes_on_where_none_are(config, stop_after, whole, label_rows):
    interrupt(config(**SETTINGS, label_rows="all"), stop_after, 3)
    for folder in snapshots_of(config(**SETTINGS)):
        head = json.loads((folder / "snapshot.json").read_text().splitlines()[1])
        del head["run"]["config"]["label_rows"]
        head["probe"]["settings"]["label_rows"] = label_rows  # a probe takes a state with all labels in any case
        text = json.dumps(head)
        (folder / "snapshot.json").write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}\n")
    wanted = config(**SETTINGS, label_rows=label_rows)
    if label_rows == 5:
        with pytest.raises(InputError, match=r"follows all labels.* add --label-rows all .* --no-resume"):
            run(wanted, progress=False)
        with pytest.raises(InputError, match="follows all labels"):
            dry_run(wanted, progress=False)
        assert snapshots_of(wanted)
        return
    assert run(wanted, progress=False).info["interruptions"] == 1
    assert files_of(Path(wanted.out)) == whole


@pytest.mark.parametrize("change", [{"label_rows": 6}, {"label_rows": "all"}, {"seed": 1}])
def test_a_run_with_another_sample_is_another_run(config, stop_after, change):
    interrupt(config(**SETTINGS, label_rows=5), stop_after, 3)
    with pytest.raises(InputError, match=f"unfinished run of another configuration .{next(iter(change))}: expected"):
        run(config(**{**SETTINGS, "label_rows": 5, **change}), progress=False)


def test_a_run_with_a_sample_of_labels_resumes_to_the_same_bits(config, stop_after, tmp_path):
    settings = {**SETTINGS, "label_rows": 5}
    run(config(**settings, out=str(tmp_path / "at once")), progress=False)
    interrupt(config(**settings), stop_after, 3)
    result = run(config(**settings), progress=False)
    assert result.info["interruptions"] == 1
    assert files_of(tmp_path / "out") == files_of(tmp_path / "at once")


def test_what_does_not_change_the_numbers_may_be_changed(config, stop_after, whole, tmp_path):
    interrupt(config(**SETTINGS), stop_after, 2)
    os.rename(tmp_path / "out", tmp_path / "moved")
    result = run(config(**SETTINGS, out=str(tmp_path / "moved"), snapshot_minutes=0, cache="none"), progress=False)
    assert result.info["interruptions"] == 1
    assert files_of(tmp_path / "moved") == whole


@pytest.mark.parametrize("what", ["corpus", "weights"])
def test_data_or_weights_that_changed_are_refused(config, stop_after, what, data, checkpoint, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(checkpoint, model)
    config = config(**SETTINGS, model=str(model))
    interrupt(config, stop_after, 2)
    if what == "corpus":
        data.write_text(data.read_text().replace("the cat", "the dog", 3))
    else:
        vocab_size = json.loads((model / "config.json").read_text())["vocab_size"]
        tiny_llama(vocab_size=vocab_size, initializer_range=0.4).save_pretrained(model)
    with pytest.raises(
        InputError, match=f"began, {what}.* changed though the configuration is the same; name another folder"
    ):
        run(config, progress=False)
    assert snapshots_of(config)


def test_snapshots_are_written_as_time_passes_and_the_newest_two_are_kept(config, monkeypatch, whole):
    seen = []
    original = Snapshots.write
    monkeypatch.setattr(softh_probe.run.snapshots, "MAX_TIME_SHARE", 1e6)

    def write(self, probe, progress):
        original(self, probe, progress)
        seen.append([path.name for path in sorted(self.folder.iterdir())])

    monkeypatch.setattr(Snapshots, "write", write)
    config = config(**SETTINGS, snapshot_minutes=1e-9)
    run(config, progress=False)
    assert seen[:3] == [["00000001"], ["00000001", "00000002"], ["00000002", "00000003"]]
    assert files_of(Path(config.out)) == whole


def test_snapshots_take_little_of_the_time(config, monkeypatch):
    written = []
    monkeypatch.setattr(Snapshots, "write", lambda *_: written.append(1))
    monkeypatch.setattr(softh_probe.run.snapshots, "MAX_TIME_SHARE", 1e-12)
    run(config(**SETTINGS, snapshot_minutes=1e-9), progress=False)
    assert len(written) == 1
    run(config(**SETTINGS, snapshot_minutes=0, overwrite=True), progress=False)
    assert len(written) == 1


def test_a_full_disk_costs_a_snapshot_not_the_run(config, monkeypatch, whole, capsys):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("softh_probe.run.snapshots._write_durably", full)
    config = config(**SETTINGS, snapshot_minutes=1e-9)
    run(config)
    assert "no snapshot could be written ([Errno 28] No space left on device); continuing" in capsys.readouterr().err
    assert files_of(Path(config.out)) == whole


def test_a_full_disk_at_the_end_leaves_the_snapshots(config, stop_after, whole, monkeypatch):
    config = config(**SETTINGS)
    interrupt(config, stop_after, 2)
    with monkeypatch.context() as patch:

        def save(self, folder):
            (Path(folder) / "layers.csv").write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(ProbeResult, "save", save)
        with pytest.raises(OSError, match="No space left"):
            run(config, progress=False)
    assert sorted(path.name for path in Path(config.out).iterdir()) == ["unfinished"]
    assert run(config, progress=False).info["interruptions"] == 1
    assert files_of(Path(config.out)) == whole


def test_what_a_killed_run_left_is_removed(config, whole):
    config = config(**SETTINGS)
    work = Path(config.out) / "unfinished"
    (work / "snapshots" / ".00000003.part").mkdir(parents=True)
    (work / "layers.csv").write_text("half a file")
    run(config, progress=False)
    assert files_of(Path(config.out)) == whole
    assert not work.exists()


def test_two_runs_do_not_write_to_one_folder(config):
    config = config()
    work = Path(config.out) / "unfinished"
    work.mkdir(parents=True)
    with (
        FileLock(work / ".lock", timeout=0),
        pytest.raises(InputError, match=r"another process is writing to .*; wait for it, or choose another folder"),
    ):
        run(config, progress=False)
    run(config, progress=False)


def test_a_second_ctrl_c_ends_at_once(config, monkeypatch):
    def pad_batch(*_):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("went on")

    monkeypatch.setattr(softh_probe.run.forward, "pad_batch", pad_batch)
    with pytest.raises(Interrupted):
        run(config(), progress=False)


def test_handlers_are_put_back_and_other_threads_do_without(config):
    before = signal.getsignal(signal.SIGTERM)
    run(config(), progress=False)
    assert signal.getsignal(signal.SIGTERM) is before
    thread = threading.Thread(target=run, args=[config(overwrite=True)], kwargs={"progress": False})
    thread.start()
    thread.join()
    assert ProbeResult.load(config().out)


def test_the_command_line_says_how_to_go_on(config, stop_after, capsys):
    config = config(**SETTINGS)
    options = [f"--{name}={value}" for name, value in (("model", config.model), ("data", config.data))]
    options += ["--tokens-per-batch=60", "--no-report", f"--out={config.out}"]
    stop_after({3: signal.SIGTERM})
    assert main(["run", *options]) == 128 + 15
    assert re.search(
        r"stopped by SIGTERM after 4 of \d+ batches; the same command resumes from there$",
        capsys.readouterr().err.strip(),
    )
    stop_after({})
    assert main(["run", *options, "--no-resume"]) == 0
    assert json.loads((Path(config.out) / "result.json").read_text())["interruptions"] == 0
