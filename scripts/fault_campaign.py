"""Kill, fill, truncate, forbid: does rerunning always end with the exact result?

    python scripts/fault_campaign.py                # the full one: 100 kills, some minutes on 2 cores
    python scripts/fault_campaign.py --kills 5      # a short one

A tiny model with a real run's stages is probed again and again, in processes that have everything imported already,
so that faults meet the run itself. Each trial ends by rerunning the same command until it is done; then its sums and
tables have to be those of the run that nothing disturbed, byte for byte. Whatever happened, a folder with a
result.json has to hold a whole result. Exit code 1 if any trial failed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a forked process cannot use the threads of the one it comes from

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import softh_probe.run.pipeline  # noqa: F401 - imported before processes are forked
from softh_probe.cli import main
from softh_probe.result import ProbeResult
from softh_probe.result_files import is_result

LABELS = "input_unigram,output_unigram,input_bigram,output_trigram,column:language"
FILES = ("sums.safetensors", "layers.csv", "layers.parquet")
N_TEXTS = 1500
WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "saw", "three", "dogs", "again", "far", "away")


def write_checkpoint(folder: Path) -> Path:
    """A tiny model with random weights, whose tokens are words."""
    vocabulary = {word: i for i, word in enumerate(["<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(vocabulary), **sizes)).save_pretrained(folder)
    return folder


def write_texts(path: Path) -> Path:
    chance = random.Random(0)
    with path.open("w") as file:
        for i in range(N_TEXTS):
            text = " ".join(chance.choices(WORDS, k=chance.randrange(5, 30)))
            file.write(json.dumps({"text": text, "language": ["en", "de", None][i % 3]}) + "\n")
    return path


class Campaign:
    """A run, what it has to come to, and processes that try."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        tqdm.set_lock(threading.RLock())  # by default forked processes share one, which those that are killed keep
        self.model = write_checkpoint(folder / "model")
        self.data = write_texts(folder / "texts.jsonl")
        self.failures: list[str] = []
        whole = self.new("whole")
        started = time.perf_counter()
        assert self.attempt(whole) == 0, self.said(whole)
        self.seconds = time.perf_counter() - started
        self.expected = self.files(whole)

    def new(self, name: str) -> Path:
        path = self.folder / name
        shutil.rmtree(path, ignore_errors=True)
        return path

    def start(self, out: Path, *more: str) -> int:
        """Run the command in a new process; returns its number."""
        options = [f"--model={self.model}", f"--data={self.data}", f"--labels={LABELS}", "--n-anchors=20"]
        options += [
            "--anchor-sets=2",
            "--tokens-per-batch=60",
            "--no-report",
            "--snapshot-minutes=1e-9",
            f"--out={out}",
            *more,
        ]
        process = os.fork()
        if process:
            return process
        log = os.open(self.log(out), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = 1
        try:
            code = main(["run", f"--cache={self.folder / 'cache'}", *options])
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def attempt(self, out: Path, *more: str) -> int:
        """Run the command to its end; returns the exit code, or minus the signal."""
        return os.waitstatus_to_exitcode(os.waitpid(self.start(out, *more), 0)[1])

    def log(self, out: Path) -> Path:
        return self.folder / f"{out.name}.log"

    def said(self, out: Path) -> str:
        """The last line that the last process wrote."""
        return (self.log(out).read_text(errors="replace").strip().splitlines() or [""])[-1]

    def files(self, out: Path) -> dict[str, bytes]:
        return {name: (out / name).read_bytes() for name in FILES}

    def disturb(self, out: Path, *signals: int) -> int:
        """Start the command and send signals at random moments of its life; how it ended, as `attempt`."""
        process = self.start(out)
        for number in signals:
            time.sleep(self.random.uniform(0, self.seconds) / len(signals))
            done, status = os.waitpid(process, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            os.kill(process, number)
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

    def check_partial(self, trial: str, out: Path) -> None:
        """Nothing that is not whole passes for a result."""
        if is_result(out):
            ProbeResult.load(out)
            if self.files(out) != self.expected:
                self.failures.append(f"{trial}: a result.json beside files that are not the result's")

    def check_done(self, trial: str, out: Path, code: int) -> None:
        if code != 0:
            self.failures.append(f"{trial}: rerunning ended with {code}: {self.said(out)}")
        elif self.files(out) != self.expected:
            self.failures.append(f"{trial}: another result")
        elif (out / "unfinished").exists():
            self.failures.append(f"{trial}: something was left behind")

    def check_one_line(self, trial: str, out: Path) -> None:
        text = self.log(out).read_text(errors="replace")
        if "Traceback" in text or not self.said(out).startswith("softh-probe: "):
            self.failures.append(f"{trial}: no clear line but {self.said(out)!r}")


def killed(campaign: Campaign, trials: int) -> str:
    """SIGKILL at random moments, again and again until a run gets through."""
    kills = resumed = 0
    while kills < trials:
        out = campaign.new("killed")
        while campaign.disturb(out, signal.SIGKILL):
            kills += 1
            campaign.check_partial("killed", out)
            if is_result(out):  # killed when all was done
                break
            if kills >= trials or campaign.random.random() < 0.3:
                campaign.check_done("killed", out, campaign.attempt(out))
                break
        if is_result(out):
            resumed += bool(ProbeResult.load(out).info["interruptions"])
    return f"{kills} kills, {resumed} results in which snapshots were gone on from"


def terminated_twice(campaign: Campaign, trials: int) -> str:
    """SIGTERM, and once more while the first is being obeyed."""
    for _ in range(trials):
        out = campaign.new("terminated")
        if campaign.disturb(out, signal.SIGTERM, signal.SIGTERM) > 0:  # below it, a signal met it while it was ending
            campaign.check_one_line("terminated", out)
        campaign.check_partial("terminated", out)
        code = 0 if is_result(out) else campaign.attempt(out)
        campaign.check_done("terminated", out, code)
    return f"{trials} runs"


def damaged(campaign: Campaign, trials: int) -> str:
    """Snapshots truncated, altered or lost after a kill; sometimes all of them."""
    files_damaged = 0
    for _ in range(trials):
        out = campaign.new("damaged")
        while not list(out.glob("unfinished/snapshots/*/snapshot.json")):
            out = campaign.new("damaged")
            campaign.disturb(out, signal.SIGKILL)
        snapshots = sorted((out / "unfinished" / "snapshots").glob("[0-9]*"))
        chosen = snapshots if campaign.random.random() < 0.3 else snapshots[-1:]
        for snapshot in chosen:
            file = campaign.random.choice(sorted(snapshot.iterdir()))
            damage(file, campaign.random)
            files_damaged += 1
        campaign.check_done("damaged", out, campaign.attempt(out))
    return f"{files_damaged} files in {trials} runs"


def damage(file: Path, chance: random.Random) -> None:
    content = bytearray(file.read_bytes())
    how = chance.choice(("truncate", "flip", "empty", "remove"))
    if how == "remove":
        file.unlink()
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "truncate":
        file.write_bytes(content[: chance.randrange(len(content))])
    else:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        file.write_bytes(content)


def disk_full(campaign: Campaign, trials: int) -> str:
    """Disks too small for a result or a snapshot, which then grow."""
    mount = campaign.folder / "disk"
    mount.mkdir(exist_ok=True)
    needed = sum(len(content) for content in campaign.expected.values())
    refused = 0
    for _ in range(trials):
        size = max(16, campaign.random.randrange(needed * 2) // 1024)
        if not mounted("-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(mount)):
            return "skipped: no right to mount a small disk"
        try:
            out = mount / "out"
            if campaign.attempt(out):
                refused += 1
                campaign.check_one_line("disk full", out)
            campaign.check_partial("disk full", out)
            mounted("-o", "remount,size=1g", str(mount))
            code = 0 if is_result(out) else campaign.attempt(out)
            campaign.check_done("disk full", out, code)
        finally:
            subprocess.run(["umount", str(mount)], check=True)
    return f"{trials} disks, {refused} too small for the result"


def read_only(campaign: Campaign, trials: int) -> str:
    """A folder that becomes read-only while a run is at work, or is from the beginning."""
    mount = campaign.folder / "readonly"
    mount.mkdir(exist_ok=True)
    for trial in range(trials):
        if not mounted("-t", "tmpfs", "tmpfs", str(mount)):
            return "skipped: no right to mount"
        try:
            out = mount / "out"
            if trial:
                process = campaign.start(out)
                time.sleep(campaign.random.uniform(0, campaign.seconds))
                mounted("-o", "remount,ro", str(mount))
                os.waitpid(process, 0)
            else:
                mounted("-o", "remount,ro", str(mount))
                if campaign.attempt(out) == 0:
                    campaign.failures.append("read-only: a run claimed to have written to a read-only folder")
                campaign.check_one_line("read-only", out)
            campaign.check_partial("read-only", out)
            mounted("-o", "remount,rw", str(mount))
            campaign.check_done("read-only", out, 0 if is_result(out) else campaign.attempt(out))
        finally:
            subprocess.run(["umount", str(mount)], check=True)
    return f"{trials} folders"


def finished(campaign: Campaign, trials: int) -> str:
    """A finished result is refused to be overwritten; killed while overwriting, it is there or the new one is."""
    out = campaign.new("finished")
    assert campaign.attempt(out) == 0
    for _ in range(trials):
        if campaign.attempt(out) != 2:
            campaign.failures.append("finished: overwritten without being asked")
        process = campaign.start(out, "--overwrite")
        time.sleep(campaign.random.uniform(0, campaign.seconds))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        campaign.check_partial("finished", out)
        if not is_result(out):
            campaign.check_done("finished", out, campaign.attempt(out))
    return f"{trials} attempts"


def mounted(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], capture_output=True).returncode == 0


TRIALS: dict[str, tuple[Callable[[Campaign, int], str], float]] = {
    "SIGKILL at random moments": (killed, 1.0),
    "SIGTERM twice": (terminated_twice, 0.2),
    "snapshots damaged": (damaged, 0.2),
    "disk full": (disk_full, 0.1),
    "folder read-only": (read_only, 0.1),
    "finished results": (finished, 0.1),
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="SIGKILLs; other faults in proportion")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fault_campaign-") as folder:
        campaign = Campaign(Path(folder), arguments.seed)
        print(f"a run takes {campaign.seconds:.1f} s", flush=True)
        for name, (trial, share) in TRIALS.items():
            before = len(campaign.failures)
            what = trial(campaign, max(1, round(arguments.kills * share)))
            wrong = len(campaign.failures) - before
            print(f"{name:<28}{what}: {'all exact' if not wrong else f'{wrong} WRONG'}", flush=True)
    print("\n".join(campaign.failures))
    sys.exit(bool(campaign.failures))
