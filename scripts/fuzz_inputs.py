"""Damaged, odd and hostile inputs: does each end in a result or in one clear line?

    python scripts/fuzz_inputs.py                                   # the full campaign, 12,000 cases
    python scripts/fuzz_inputs.py --cases 500 --seed 1              # a short one
    python scripts/fuzz_inputs.py --only csv --case 17 --debug      # one case again, with its traceback

Whole inputs of every kind are damaged byte by byte and part by part, and given to the code that the command line runs.
A case ends well in a result, or in a SofthProbeError whose message is one line; a problem is any other exception, a
case that takes too long, and a wrong number: what was accepted is compared with another reading of the same file.
Each problem's input is kept. Exit code 1 if there was any.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import io
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}

import pandas as pd
from fuzzing.checkpoints import Gguf, Weights
from fuzzing.configs import Config, SweepConfigs
from fuzzing.documents import Csv, Jsonl, Parquet, Txt
from fuzzing.kinds import Kind
from fuzzing.results import Result, SnapshotFiles, Sums
from tqdm import tqdm

from softh_probe.errors import SofthProbeError

SECONDS = 20.0  # that a case may take


KINDS: dict[str, type[Kind]] = {
    "run config": Config,
    "sweep config": SweepConfigs,
    "result.json": Result,
    "sums.safetensors": Sums,
    "model.safetensors": Weights,
    "gguf": Gguf,
    "snapshots": SnapshotFiles,
    "txt": Txt,
    "jsonl": Jsonl,
    "csv": Csv,
    "parquet": Parquet,
}


class TooLong(BaseException):
    """A case took too long."""


class Campaign:
    """Cases of every kind, and how they ended."""

    def __init__(self, folder: Path, seed: int, keep: Path, debug: bool = False) -> None:
        self.folder, self.seed, self.keep, self.debug = folder, seed, keep, debug
        self.ended: dict[str, Counter[str]] = {}
        self.problems: list[str] = []
        self.kinds: dict[str, Kind] = {}

    def kind(self, name: str) -> Kind:
        if name not in self.kinds:
            whole = self.folder / name.replace(" ", "_")
            whole.mkdir()
            self.kinds[name] = KINDS[name](whole)
        return self.kinds[name]

    def case(self, name: str, number: int) -> None:
        kind, chance = self.kind(name), random.Random(f"{self.seed} {name} {number}")
        case = self.folder / "case"
        shutil.rmtree(case, ignore_errors=True)
        case.mkdir()
        kind.write(case, chance)
        said = io.StringIO()
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        faulthandler.dump_traceback_later(6 * SECONDS, exit=True)  # where no handler comes to run
        try:
            with contextlib.redirect_stderr(said):
                kind.attempt(case, chance)
            problem, ended = None, "results"
        except SofthProbeError as error:
            problem, ended = _unclear(str(error)), "refusals"
        except (Exception, TooLong, RecursionError) as error:
            if self.debug:
                traceback.print_exc()
            problem, ended = f"{type(error).__name__}: {error}", "problems"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            faulthandler.cancel_dump_traceback_later()
        if problem is None and "Traceback" in said.getvalue():
            problem = f"a traceback on stderr: {said.getvalue()[-300:]!r}"
        if problem is not None:
            ended = "problems"
            kept = self.keep / f"{name.replace(' ', '_')}-{self.seed}-{number}"
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(case, kept)
            self.problems.append(f"{name} --seed {self.seed} --case {number}: {problem[:400]} ({kept})")
        self.ended.setdefault(name, Counter())[ended] += 1

    def table(self) -> str:
        rows = [
            (name, *(counts[e] for e in ("results", "refusals", "problems"))) for name, counts in self.ended.items()
        ]
        frame = pd.DataFrame(rows, columns=["kind", "results", "refusals", "problems"]).set_index("kind")
        frame.insert(0, "cases", frame.sum(axis=1))
        frame.loc["all"] = frame.sum()
        return frame.to_string()


def _unclear(message: str) -> str | None:
    """Find faults of the line of a refusal."""
    if len(message.splitlines()) != 1 or len(message) < 15 or len(message) > 1300 or not message.isprintable():
        return f"no clear line: {message!r}"
    return None


def _too_long(*_: object) -> None:
    raise TooLong(f"more than {SECONDS:.0f} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=12_000, help="in all")
    parser.add_argument("--seed", type=int, default=0, help="of the damage")
    parser.add_argument("--only", choices=KINDS, help="one kind of input")
    parser.add_argument("--case", type=int, help="one case of that kind, by its number")
    parser.add_argument("--keep", type=Path, default=Path("out/fuzz"), help="folder for the inputs of problems")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    arguments = parser.parse_args()
    signal.signal(signal.SIGALRM, _too_long)
    faulthandler.enable()
    names = [arguments.only] if arguments.only else list(KINDS)
    total = sum(KINDS[name].share for name in names)
    with tempfile.TemporaryDirectory(prefix="fuzz_inputs-") as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        campaign = Campaign(Path(folder), arguments.seed, arguments.keep, arguments.debug)
        numbers = {name: range(max(1, round(arguments.cases * KINDS[name].share / total))) for name in names}
        if arguments.case is not None:
            numbers = {names[0]: range(arguments.case, arguments.case + 1)}
        with tqdm(total=sum(map(len, numbers.values())), unit=" cases", disable=None) as bar:
            for name, of_kind in numbers.items():
                bar.set_description(name)
                for number in of_kind:
                    campaign.case(name, number)
                    bar.update()
        print(campaign.table())
    print("\n".join(campaign.problems))
    return bool(campaign.problems)


if __name__ == "__main__":
    sys.exit(main())
