"""Sweeps over revisions of a hub model, through huggingface_hub's own client."""

import subprocess
import sys
from itertools import pairwise

import pytest

from tests.helpers.corpora import write_texts
from tests.helpers.hub import Hub, commit_of, serving
from tests.helpers.sweeps import command, info_of, statuses, sweep_command

pytestmark = pytest.mark.slow

MODEL, TOKEN = "own/tiny", "hf_secretsecretsecretsecret"
REVISIONS = {
    "main": 5,
    "stage1-step1-tokens1B": 1,
    "stage1-step2-tokens2B": 2,
    "stage1-step3-tokens4B": 3,
    "stage1-step4-tokens3B": 3,  # the weights of step 3, and fewer tokens
    "v-step5": 5,
}


@pytest.fixture
def hub(training, tmp_path, monkeypatch):
    folders = {name: training / "run" / f"checkpoint-{step}" for name, step in REVISIONS.items()}
    with serving(Hub(MODEL, folders, TOKEN)) as hub:
        for name, value in {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": TOKEN}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        hub.here = lambda: {
            commit.name
            for commit in tmp_path.glob("hf/hub/models--own--tiny/snapshots/*")
            if (commit / "model.safetensors").exists()
        }
        hub.most = 0
        hub.on_weights = lambda: setattr(hub, "most", max(hub.most, len(hub.here())))
        yield hub


def test_revisions_come_one_ahead_and_go_when_they_are_done(hub, config_file, tmp_path):
    out = tmp_path / "out"
    path = config_file(
        model=MODEL,
        revision=["stage1-*", "v-*", "step99"],
        data=str(write_texts(tmp_path / "texts.jsonl", 300)),
        keep_checkpoints=False,
        workers=1,
        retries=0,
    )
    # What the user has is the user's.
    fetch = f"from huggingface_hub import snapshot_download as s; s({MODEL!r}, revision='v-step5')"
    subprocess.run([sys.executable, "-c", fetch], check=True, capture_output=True)
    planned = sweep_command(path, "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert "6 checkpoints, 1 at once (local)" in planned.stdout
    assert "stage1-step3-tokens4B (step 3, 4,000,000,000 tokens)" in planned.stdout
    assert "GB each" in planned.stdout
    assert not out.exists()

    done = sweep_command(path)
    assert done.returncode == 1, done.stderr
    assert "5 done, 1 failed, 0 waiting" in done.stdout
    assert "failed: step99: model 'own/tiny': has no revision 'step99'" in done.stdout
    wanted = [name for name in REVISIONS if name != "main"]
    assert statuses(out) == {**dict.fromkeys(wanted, "done"), "step99": "failed"}
    info = info_of(out)
    assert info["duplicates"] == [["stage1-step3-tokens4B", "stage1-step4-tokens3B"]]
    assert info["not_monotone"] == [["stage1-step3-tokens4B", "stage1-step4-tokens3B"]]
    by_name = {c["checkpoint"]: c for c in info["checkpoints"]}
    assert [by_name[name]["commit"] for name in wanted] == [commit_of(name) for name in wanted]
    assert (by_name["stage1-step2-tokens2B"]["step"], by_name["stage1-step2-tokens2B"]["tokens"]) == (2, 2 * 10**9)

    # Each was asked for once at most, the next while the one before was being measured, and none stays.
    assert [len(hub.downloads(name)) for name in wanted[:3]] == [1, 1, 1]
    for one, following in pairwise(wanted[:3]):
        result = out / by_name[one]["folder"] / "result.json"
        assert hub.downloads(following)[0] < result.stat().st_mtime
    assert hub.here() == {commit_of("v-step5")}
    assert hub.most <= 2  # the user's, and the one being measured, when the next one comes

    # No word of the token anywhere.
    assert TOKEN not in done.stdout + done.stderr
    for file in out.rglob("*"):
        assert file.is_dir() or TOKEN.encode() not in file.read_bytes(), file


def test_a_cap_on_the_disk_holds_with_two_workers(hub, config_file, training, tmp_path):
    size = sum(f.stat().st_size for f in (training / "run" / "checkpoint-1").iterdir())
    path = config_file(model=MODEL, revision="stage1-*", disk_gb=1.5 * size / 1e9)
    done = sweep_command(path)
    assert done.returncode == 0, done.stderr
    assert "4 done, 0 failed" in done.stdout
    assert hub.most == 0  # whenever one came, the one before was gone
    assert len(hub.here()) == 1

    small = sweep_command(config_file(model=MODEL, revision="main", disk_gb=1e-9, retries=0, out=str(tmp_path / "b")))
    assert small.returncode == 1
    assert "disk_gb: main alone takes" in small.stdout


def test_what_the_hub_does_not_have_is_one_line(hub, config_file):
    for changes, words in (
        ({"model": MODEL, "revision": "stage9-*"}, "revision: 'stage9-*' fits no branch or tag of own/tiny, which has"),
        ({"model": "own/absent", "revision": "step*"}, "model 'own/absent': no such path here and no such model"),
    ):
        refused = subprocess.run(
            command("sweep", "--config", config_file(**changes), "--dry-run"), capture_output=True, text=True
        )
        assert refused.returncode == 2
        assert words in refused.stderr
        assert refused.stderr.count("\n") == 1
