"""Damaged, odd and hostile inputs: does each end in a result or in one clear line?

    python scripts/fuzz_inputs.py                                   # the full campaign, 12,000 cases
    python scripts/fuzz_inputs.py --cases 500 --seed 1              # a short one
    python scripts/fuzz_inputs.py --only csv --case 17 --debug      # one case again, with its traceback

Whole inputs of every kind are damaged byte by byte and part by part, and given to the code that the command line runs.
A case ends well in a result, or in a SofthProbeError whose message is one line; a problem is any other exception, a case
that takes too long, and a wrong number: what was accepted is compared with an independent reading of the same file.
Each problem's input is kept. Exit code 1 if there was any.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import faulthandler
import io
import json
import math
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}

import gguf
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from fault_campaign import write_checkpoint
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from softh_probe import ProbeResult, SoftEntropyProbe, cli
from softh_probe.checkpoint import load_checkpoint
from softh_probe.config import RunConfig, plain_config
from softh_probe.corpus import Corpus, length_batches, pad_batch
from softh_probe.documents import read_documents
from softh_probe.errors import SofthProbeError
from softh_probe.formats import sealed
from softh_probe.labels import parse_label_sets
from softh_probe.model_source import resolve_model
from softh_probe.plan import Plan
from softh_probe.report.page import comparison_page, run_page
from softh_probe.report.data import check_info
from softh_probe.result import RESULT_JSON, SUMS
from softh_probe.snapshots import Progress, Snapshots
from softh_probe.sweep.config import SweepConfig

SECONDS = 20.0  # that a case may take
TEXTS = [
    "the cat sat",
    "three dogs — again",
    "",
    "سلام, עולם 🦊👩‍👩‍👧",
    "a\ttab \x07 bell",
    'far away, «and» "back"',
    "mat",
]
LANGUAGES = ["en", "en", None, "fa", "de", "de", "en"]

ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 3, 2**31, 2**53 + 1, 2**63, 10**400, -(10**400), 0.5, 1e308, -0.0),
    *(
        float("nan"),
        float("inf"),
        "",
        " ",
        "x",
        "1",
        "1.0",
        "null",
        "NaN",
        "\0",
        "\ud800",
        "🦊",
        "\u202ertl",
        "a" * 5000,
    ),
    *(
        [],
        {},
        [[]],
        {"a": {}},
        [None],
        ["x", 1],
        {"role": "user", "content": "hi"},
        "2020-01-01",
        "2020-01-01T00:00:00Z",
    ),
    [{"role": "user", "content": "hi"}],
]


class Wrong(Exception):
    """An input was accepted and gave something else than is in it."""


class TooLong(BaseException):
    """A case took too long."""


# -- damage ---------------------------------------------------------------------------------------------------


def damaged(content: bytes, chance: random.Random) -> bytes:
    """A few bytes flipped, cut, put in, repeated or left out."""
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        at = chance.randrange(len(content) + 1)
        end = min(len(content), at + chance.choice((1, 1, 2, 8, 100)))
        how = chance.choice(("flip", "flip", "cut", "put", "repeat", "leave out", "fill", "byte"))
        if how == "flip" and at < len(content):
            content = content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :]
        elif how == "cut":
            content = content[:at]
        elif how == "put":
            odd = (
                b"\0",
                b"\xff",
                b"\xef\xbb\xbf",
                b"\r",
                b"\n",
                b'"',
                b",",
                b"\xed\xa0\x80",
                b"[" * 3000,
                b"\\ud800",
                b"\x1b[31m",
            )
            content = content[:at] + chance.choice(odd) + content[at:]
        elif how == "repeat":
            content = content[:end] + content[at:]
        elif how == "leave out":
            content = content[:at] + content[end:]
        elif how == "fill":
            content = content[:at] + bytes([chance.choice((0, 255))]) * (end - at) + content[end:]
        elif at < len(content):
            content = content[:at] + bytes([chance.randrange(256)]) + content[at + 1 :]
    return content


def encoded(text: str, chance: random.Random) -> bytes:
    """Mostly UTF-8; sometimes another encoding, a byte order mark, other ends of lines."""
    if chance.random() < 0.05:
        text = text.replace("\n", chance.choice(("\r\n", "\r", "\n\n")))
    encoding = chance.choice(("utf-16", "latin-1", "utf-8-sig")) if chance.random() < 0.08 else "utf-8"
    return text.encode(encoding, "surrogatepass" if encoding.startswith("utf-8") else "replace")


def changed(value: Any, chance: random.Random, odd: list[Any] = ODD) -> Any:
    """JSON values with one of them, anywhere, replaced, left out, renamed, doubled or moved."""
    inner = [key for key, item in _items(value) if isinstance(item, dict | list)]
    if inner and chance.random() < 0.6:
        key = chance.choice(inner)
        copy = value.copy()
        copy[key] = changed(value[key], chance, odd)
        return copy
    keys = [key for key, _ in _items(value)]
    how = chance.choice(("replace", "replace", "replace", "remove", "rename", "add", "whole"))
    if not keys or how == "whole":
        return chance.choice(odd)
    key, copy = chance.choice(keys), value.copy()
    if how == "remove":
        del copy[key]
    elif how == "rename" and isinstance(copy, dict):
        copy[chance.choice(("", "x", str(key).upper(), f"{key} ", chance.choice(keys)))] = copy.pop(key)
    elif how == "add":
        if isinstance(copy, dict):
            copy[chance.choice(("", "x", "\ud800", "__class__"))] = chance.choice(odd)
        else:
            copy.insert(key, chance.choice([*odd, copy[key]]))
    else:
        item = copy[key]
        near = (
            [item + 1, -item, item * 2, str(item)]
            if isinstance(item, int | float)
            else [[item], {"x": item}, str(item)]
        )
        copy[key] = chance.choice(odd if chance.random() < 0.7 else near)
    return copy


def _items(value: Any) -> list[tuple[Any, Any]]:
    return list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []


def to_json(value: Any, chance: random.Random, **options: Any) -> str:
    """JSON, sometimes with a key that stands twice, or nested deeper than any reader goes."""
    text = json.dumps(value, ensure_ascii=chance.random() < 0.3, **options)
    if chance.random() < 0.04 and text.startswith("{"):
        text = '{"text": 5, ' + text[1:]
    if chance.random() < 0.02:
        text = text[:-1] + ', "deep": ' + "[" * 5000 + "]" * 5000 + "}"
    return text


# -- kinds of input -------------------------------------------------------------------------------------------


class Kind:
    """A kind of input: made whole once, then damaged and tried again and again.

    Args:
        folder: for the whole inputs; cases are written to a folder of their own.
    """

    share = 1.0

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, case: Path, chance: random.Random) -> None:
        """Write a damaged input into the empty folder `case`."""
        raise NotImplementedError

    def attempt(self, case: Path, chance: random.Random) -> None:
        """Take the input; raises SofthProbeError where it is refused, Wrong where a number is."""
        raise NotImplementedError


class Config(Kind):
    """Configuration files of runs, through the command line."""

    share = 2.0
    command, config_class = "run", RunConfig
    values: dict[str, Any] = {
        **plain_config(RunConfig(model="owner/name", data="texts.jsonl", out="out")),
        **{
            "seed": 7,
            "n_anchors": 20,
            "labels": ["input_unigram", "column:language"],
            "max_documents": 5,
            "layers": [0, "layer.1"],
        },
    }
    lines = (
        *(
            "n_anchors: !!python/object/apply:os.system ['true']",
            "seed: 010",
            "seed: 1:30",
            "seed: 0x10",
            "seed: 1_000",
        ),
        *(
            "seed: 3\nseed: 4",
            "labels: &a [*a]",
            "labels: [" + "[" * 2000,
            "? [a]\n: b",
            "<<: {seed: 5}",
            "seed: &x 5\nn_anchors: *x",
        ),
        *(
            "a: &a [x,x,x]\nb: &b [*a,*a,*a]\nlabels: [*b,*b,*b]",
            "seed: !!int abc",
            "seed: 2020-13-45",
            "seed: " + "9" * 5000,
        ),
        *(
            "config: case.yaml",
            "config: nowhere.yaml",
            "labels: !!set {a, b}",
            "out: !!binary aGk=",
            "---\nseed: 1",
            "%YAML 9.9\n---",
        ),
        *(
            "seed: yes",
            "revision: no",
            "dtype: 1e3",
            "\tseed: 1",
            "seed: -",
            "~: 3",
            "5: 3",
            "=: 1",
            "print_config: true",
            "help: true",
        ),
        *(
            "calibration: 1e-400",
            "calibration: .nan",
            "snapshot_minutes: .inf",
            "layers: '--1'",
            "labels: ','",
            "model: ' '",
            'out: "\\0"',
        ),
    )

    def write(self, case: Path, chance: random.Random) -> None:
        values: Any = {k: v for k, v in self.values.items() if k in ("model", "data", "out") or chance.random() < 0.4}
        how = chance.random()
        if how < 0.5:
            values = changed(values, chance)
        try:
            text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        except (yaml.YAMLError, ValueError):
            text = json.dumps(values)
        if how > 0.4 and chance.random() < 0.6:
            at = chance.choice((0, len(text)))
            text = f"{text[:at]}{chance.choice(self.lines)}\n{text[at:]}"
        content = encoded(text, chance)
        (case / "case.yaml").write_bytes(damaged(content, chance) if how > 0.7 else content)

    def attempt(self, case: Path, chance: random.Random) -> None:
        file, made = case / "case.yaml", []

        def make(options: Any) -> int:
            names = [f.name for f in dataclasses.fields(self.config_class) if f.name in options]
            made.append(self.config_class(**{name: options[name] for name in names}))
            return 0

        with replaced_command(self.command, make):
            command_line(self.command, f"--config={file}")
        if not made:  # --help and the like
            return
        given = yaml.safe_load(file.read_bytes().decode("utf-8-sig"))
        for name, value in given.items():
            ours = getattr(made[0], name, value)
            if isinstance(value, int | float) and (ours != value or isinstance(ours, bool) != isinstance(value, bool)):
                raise Wrong(f"{name}: the file says {value!r}, the configuration {ours!r}")
        again = self.config_class(**{k: v for k, v in dataclasses.asdict(made[0]).items()})
        if again != made[0]:
            raise Wrong("a configuration differs from itself made again")


class SweepConfigs(Config):
    """Configuration files of sweeps, through the command line."""

    share = 1.0
    command, config_class = "sweep", SweepConfig
    values: dict[str, Any] = {
        **{k: v for k, v in Config.values.items() if k not in ("overwrite", "resume")},
        **{
            "revision": ["step1", "step*"],
            "every": 2,
            "first": 1,
            "last": 1,
            "workers": 2,
            "disk_gb": 10.5,
            "retries": 1,
        },
        **{
            "step_pattern": r"step(?P<step>\d+)",
            "tokens_per_step": 2e6,
            "slurm_setup": ["true"],
            "slurm_options": {"nice": "1"},
        },
    }
    lines = (
        *Config.lines,
        "slurm_options: {a: 1}",
        "slurm_options: [a]",
        "slurm_setup: a",
        "step_pattern: '('",
        "first: 1000000000",
    )


class Result(Kind):
    """result.json of results of every format; all that is accepted is shown as tables and as a page."""

    share = 1.5

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.whole = probed_result(folder / "model")
        self.whole.save(folder / "3")
        self.table = self.whole.to_pandas("nats")
        older_formats(folder)

    def write(self, case: Path, chance: random.Random) -> None:
        version = chance.choice(("3", "3", "2", "1"))
        shutil.copytree(self.folder / version, case, dirs_exist_ok=True)
        self.damage(case, chance)

    def damage(self, case: Path, chance: random.Random) -> None:
        file = case / RESULT_JSON
        if chance.random() < 0.3:
            file.write_bytes(damaged(file.read_bytes(), chance))
            return
        head = changed(json.loads(file.read_text()), chance)
        if chance.random() < 0.3 and isinstance(head, dict):  # as whoever writes such files by other means
            head = sealed({k: v for k, v in head.items() if k not in ("format", "sha256")})
        file.write_bytes(encoded(to_json(head, chance, indent=chance.choice((None, 2))), chance))

    def attempt(self, case: Path, chance: random.Random) -> None:
        result = ProbeResult.load(case)
        table = result.to_pandas("nats")
        written = json.loads((case / RESULT_JSON).read_text())
        seal = json.loads((self.folder / "3" / RESULT_JSON).read_text())["sha256"]
        if written["format"] >= 3 and written["sha256"] == seal and not table.equals(self.table):
            raise Wrong("a changed result was taken for what was written")
        if chance.random() < 0.15:
            check_info(result, str(case))
            run_page(result)
        if chance.random() < 0.05:
            check_info(result, str(case))
            comparison_page([self.whole, result], ["whole", "this"])


class Sums(Result):
    """sums.safetensors of results."""

    def damage(self, case: Path, chance: random.Random) -> None:
        damage_safetensors(case / SUMS, chance)


class Weights(Kind):
    """model.safetensors of a checkpoint; loaded weights are compared with the bytes of the file."""

    share = 0.8

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        write_checkpoint(folder / "model")

    def write(self, case: Path, chance: random.Random) -> None:
        shutil.copytree(self.folder / "model", case, dirs_exist_ok=True)
        damage_safetensors(case / "model.safetensors", chance)

    def attempt(self, case: Path, chance: random.Random) -> None:
        with load_checkpoint(resolve_model(str(case)), device_map="cpu") as checkpoint:
            there = {
                name.removeprefix("model."): t for name, t in safetensors_by_hand(case / "model.safetensors").items()
            }
            for name, ours in checkpoint.model.state_dict().items():
                if not np.array_equal(ours.float().numpy(), there[name], equal_nan=True):
                    raise Wrong(f"{name} is not what the file holds")


class Gguf(Kind):
    """GGUF files; what loads has to run and to give what the tensors of the file are."""

    share = 0.8

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        write_gguf(folder / "model.gguf")
        self.content = (folder / "model.gguf").read_bytes()
        self.header = self.content.index(b"output_norm.weight") + 100

    def write(self, case: Path, chance: random.Random) -> None:
        content = self.content
        if chance.random() < 0.85:  # where names, sizes and offsets are
            content = damaged(content[: self.header], chance) + content[self.header :]
        else:
            content = damaged(content, chance)
        (case / "model.gguf").write_bytes(content)

    def attempt(self, case: Path, chance: random.Random) -> None:
        with load_checkpoint(resolve_model(str(case / "model.gguf")), device_map="cpu") as checkpoint:
            n = checkpoint.model.config.vocab_size
            with torch.no_grad():
                states = checkpoint.model(input_ids=torch.arange(5)[None] % n).last_hidden_state
            if states.shape[:2] != (1, 5):
                raise Wrong(f"hidden states are {list(states.shape)}")
            reader = gguf.GGUFReader(case / "model.gguf")
            (tensor,) = [t for t in reader.tensors if t.name == "token_embd.weight"]
            if not np.array_equal(checkpoint.model.embed_tokens.weight.numpy(), tensor.data, equal_nan=True):
                raise Wrong("embeddings are not what the file holds")


class SnapshotFiles(Kind):
    """Snapshots of an unfinished run: the newest that is whole is used, exactly as it was written."""

    share = 0.4

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        model = AutoModelForCausalLM.from_pretrained(write_checkpoint(folder / "model")).eval()
        tokens = np.random.default_rng(0).integers(1, 14, 60).astype(np.int32)
        counts = {"n_read": 6, "n_empty": 0, "n_truncated": 0}
        corpus = Corpus(tokens=tokens, offsets=np.arange(0, 61, 10), source=np.arange(6), columns={}, **counts)
        plan = Plan(corpus, parse_label_sets(["input_unigram"]), length_batches(corpus.lengths, 20))
        probe = SoftEntropyProbe(model, n_anchors=10, plan=plan)
        snapshots, self.states = Snapshots(folder / "snapshots"), {}
        for number in (0, 1):
            ids, mask = pad_batch(corpus, plan.batches[number])
            with probe, torch.no_grad(), probe.batch(plan.batch(number)):
                model(input_ids=ids, attention_mask=mask)
            snapshots.write(probe, Progress(run={"config": {}}, batches=number + 1, seconds=1.0, interruptions=0))
            self.states[number + 1] = _tensors(probe.state_dict())

    def write(self, case: Path, chance: random.Random) -> None:
        shutil.copytree(self.folder / "snapshots", case, dirs_exist_ok=True)
        snapshots = sorted(case.iterdir())
        for snapshot in snapshots if chance.random() < 0.3 else snapshots[-1:]:
            file = chance.choice(sorted(snapshot.iterdir()))
            if file.suffix == ".json":
                file.write_bytes(damaged(file.read_bytes(), chance))
            else:
                damage_safetensors(file, chance)

    def attempt(self, case: Path, chance: random.Random) -> None:
        found = Snapshots(case).newest()
        if found is None:
            return
        progress, state = found
        if _tensors({**state, "layers": dict(state["layers"])}) != self.states[progress.batches]:
            raise Wrong("a damaged snapshot was taken for a whole one")


class Documents(Kind):
    """Data sets, compared with another reading of the same file; some go through a whole run."""

    suffix = ".txt"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.model = write_checkpoint(folder / "model")

    def options(self) -> dict[str, Any]:
        return {"text_column": "text", "label_columns": ["language"]}

    def content(self, chance: random.Random) -> bytes:
        raise NotImplementedError

    def expected(self, content: bytes) -> list[tuple[Any, Any]] | None:
        """Text and label of each row, read by other means; None where these cannot."""
        raise NotImplementedError

    def write(self, case: Path, chance: random.Random) -> None:
        content = self.content(chance)
        (case / f"case{self.suffix}").write_bytes(damaged(content, chance) if chance.random() < 0.5 else content)

    def attempt(self, case: Path, chance: random.Random) -> None:
        file = case / f"case{self.suffix}"
        found = [(d.content, d.columns.get("language")) for d in read_documents(str(file), **self.options())]
        expected = self.expected(file.read_bytes())
        if expected is None:
            raise Wrong(f"another reader refuses what was accepted: {found[:3]!r}")
        if len(found) != len(expected):
            raise Wrong(f"{len(found)} documents, another reader finds {len(expected)}")
        for i, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
            if not same(ours, theirs):
                raise Wrong(f"document {i + 1} is {ours!r}, another reader finds {theirs!r}")
        if chance.random() < 0.03:
            self.run(case, file, expected, chance)

    def run(self, case: Path, file: Path, expected: list[tuple[Any, Any]], chance: random.Random) -> None:
        """The whole run of it, and of the same documents written plainly."""
        plain = case / "plain.jsonl"
        rows = [
            {"text": t, "language": None if label in (None, "") or label != label else str(label)}
            for t, label in expected
        ]
        plain.write_text("".join(json.dumps(row) + "\n" for row in rows))
        labels = ["input_unigram", *(f"column:{name}" for name in self.options().get("label_columns", ()))]
        sums = []
        for data in (file, plain):
            options = [
                f"--model={self.model}",
                f"--data={data}",
                f"--out={case / data.stem}",
                f"--labels={','.join(labels)}",
            ]
            text_column = self.options().get("text_column") or "text"
            options += [f"--text-column={text_column}", "--n-anchors=10", "--no-report", "--cache=none"]
            command_line("run", *options)
            sums.append((case / data.stem / SUMS).read_bytes())
        if sums[0] != sums[1]:
            raise Wrong("the run's sums are not those of the same documents written plainly")


class Txt(Documents):
    """Text files, a document a line."""

    def options(self) -> dict[str, Any]:
        return {}

    def content(self, chance: random.Random) -> bytes:
        return encoded("\n".join(chance.choices(TEXTS, k=8)), chance)

    def expected(self, content: bytes) -> list[tuple[Any, Any]]:
        text = content.decode("utf-8-sig", "replace").replace("\r\n", "\n").replace("\r", "\n")
        return [(line, None) for line in text.removesuffix("\n").split("\n")]


class Jsonl(Documents):
    """JSON lines."""

    suffix = ".jsonl"

    def content(self, chance: random.Random) -> bytes:
        rows: list[Any] = [
            {"text": t, "language": la, "n": i} for i, (t, la) in enumerate(zip(TEXTS, LANGUAGES, strict=True))
        ]
        if chance.random() < 0.2:  # labels of another type
            other = chance.choice(([1, 2], [1.5, 2], [True, False], [2**53 + 1, 2**53 + 2], ["1", "1.0"]))
            rows = [{**row, "language": chance.choice([*other, None])} for row in rows]
        for _ in range(chance.choice((0, 1, 1, 2))):
            i = chance.randrange(len(rows))
            rows[i] = changed(rows[i], chance)
        return encoded("\n".join(to_json(row, chance) for row in rows), chance)

    def expected(self, content: bytes) -> list[tuple[Any, Any]] | None:
        text, decoder, rows, at = content.decode("utf-8-sig", "replace"), json.JSONDecoder(strict=False), [], 0
        while at < len(text):
            if text[at] in " \t\r\n":
                at += 1
                continue
            try:
                row, at = decoder.raw_decode(text, at)
            except (ValueError, RecursionError):
                return None
            if not isinstance(row, dict):
                return None
            row = {_without_halves(key): _without_halves(value) for key, value in row.items()}
            rows.append((row.get("text"), row.get("language")))
        return rows


class Csv(Documents):
    """Tables of comma-separated values."""

    suffix = ".csv"

    def content(self, chance: random.Random) -> bytes:
        made = io.StringIO()
        writer = csv.writer(made, lineterminator="\n", quoting=chance.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)))
        heads = [["text", "language", "n"]] * 9 + [
            ["text", "text", "language"],
            ["language", "text", "language"],
            ["text", "", "language"],
        ]
        head = chance.choice(heads)
        writer.writerow(head)
        for i, (text, language) in enumerate(zip(TEXTS, LANGUAGES, strict=True)):
            values = {"text": text, "language": language, "n": i, "": ""}
            row = [values[name] for name in head]
            if chance.random() < 0.03:
                row = row[:-1] if chance.random() < 0.5 else [*row, "more"]
            if chance.random() < 0.05:
                row[chance.randrange(len(row))] = chance.choice(
                    ("NA", "1.0", "1", "", " x ", 'a"b', "a\nb", "\0", "null")
                )
            writer.writerow(row)
        return encoded(made.getvalue(), chance)

    def expected(self, content: bytes) -> list[tuple[Any, Any]] | None:
        try:
            text = content.decode("utf-8-sig", "replace")
            rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
        except csv.Error:
            return None
        head, *rows = rows
        if head.count("text") != 1 or head.count("language") != 1:
            return None
        cells = [
            [row[head.index(name)] if head.index(name) < len(row) else None for name in ("text", "language")]
            for row in rows
        ]
        return [(text, language or None) for text, language in cells]


class Parquet(Documents):
    """Parquet files, with columns of all types."""

    suffix = ".parquet"

    def content(self, chance: random.Random) -> bytes:
        n = len(TEXTS)
        columns: dict[str, pa.Array] = {
            "text": pa.array(TEXTS),
            "language": pa.array(LANGUAGES),
            "n": pa.array(range(n)),
        }
        odd = [
            *(
                pa.array([1.5, None, float("nan")] * 3)[:n],
                pa.array([True, False, None] * 3)[:n],
                pa.array([2**53 + i for i in range(n)]),
            ),
            *(
                pa.array(LANGUAGES).dictionary_encode(),
                pa.array([b"\xff\x00"] * n),
                pa.array([["a"]] * n),
                pa.array([{"a": 1}] * n),
            ),
            *(
                pa.array([None] * n),
                pa.array(TEXTS, pa.large_string()),
                pa.array([0] * n, pa.date32()),
                pa.array([0] * n, pa.timestamp("ns")),
            ),
            *(
                pa.array([1] * n, pa.decimal128(5, 2)),
                pa.array([0] * n, pa.time32("s")),
                pa.array(np.zeros(n, np.float16)),
            ),
            *(
                pa.array([10**9] * n, pa.duration("s")),
                pa.array([[{"role": "user", "content": "hi"}]] * n),
                pa.array([2**64 - 1] * n, pa.uint64()),
            ),
        ]
        for _ in range(chance.choice((0, 1, 1, 2))):
            columns[chance.choice(("text", "language", "n"))] = chance.choice(odd)
        names = list(columns)
        if chance.random() < 0.1:
            names[chance.randrange(3)] = chance.choice(("text", "language", "", "a.b", "\x1b[31m", "x\ny"))
        made = io.BytesIO()
        pq.write_table(
            pa.table(list(columns.values()), names=names), made, compression=chance.choice(("snappy", "none", "zstd"))
        )
        return made.getvalue()

    def expected(self, content: bytes) -> list[tuple[Any, Any]] | None:
        try:
            table = pq.ParquetFile(io.BytesIO(content)).read()
            if table.column_names.count("text") != 1 or table.column_names.count("language") != 1:
                return None
            return list(zip(table["text"].to_pylist(), table["language"].to_pylist(), strict=True))
        except (pa.ArrowException, OSError, ValueError):
            return None


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


# -- whole inputs, and reading them by other means --------------------------------------------------------------


def probed_result(folder: Path) -> ProbeResult:
    """A small result with labels one by one, and the facts of a run."""
    model = AutoModelForCausalLM.from_pretrained(write_checkpoint(folder)).eval()
    probe = SoftEntropyProbe(model, labels=["input_unigram", "output_unigram"], n_anchors=8, anchor_sets=2)
    with probe, torch.no_grad(), probe.labelled(topic=torch.arange(6) % 3):
        model(input_ids=torch.randint(0, 10, (6, 9), generator=torch.Generator().manual_seed(0)))
    result = probe.result()
    facts = {
        "config": plain_config(RunConfig(model="m", data="d", out="o")),
        "model": {"model": "a/b", "revision": None, "n_parameters": 1234, "devices": ["cpu"]},
        "corpus": {"data": "texts.jsonl", "sha256": "0" * 64, "documents": 6, "tokens": 54},
        "versions": {"softh-probe": "0.1.0"},
        "seconds": {"forward": 1.5},
        "peak_memory_gib": {"host": 0.5},
        "warnings": ["one"],
        "tokens_per_second": 36.0,
    }
    result.info.update(facts)
    return result


def older_formats(folder: Path) -> None:
    """Folders "2" and "1" beside "3", as versions before this one wrote them."""
    head = json.loads((folder / "3" / RESULT_JSON).read_text())
    tensors = load_file(folder / "3" / SUMS)
    for name in ("sha256", "files"):
        del head[name]
    for version in ("2", "1"):
        (folder / version).mkdir()
        if version == "1":
            head["kept"] = head.pop("labels")
            tensors["kept_positions"] = tensors.pop("label_positions")
            n_rows, n_labels, n_sets = tensors.pop("label_entropy").shape
            tensors["kept_mass"] = torch.ones(n_rows, n_labels, n_sets, tensors["mass"].shape[-1], dtype=torch.float64)
            for name in ("null_information", "corrected_information", "entropy_document_sd"):
                del tensors[name]
        (folder / version / RESULT_JSON).write_text(json.dumps({**head, "format": int(version)}))
        save_file(tensors, folder / version / SUMS)


def write_gguf(file: Path) -> None:
    """A llama of two layers; heads are one wide pair each, so that rows need no reordering."""
    n, width, words = 2, 8, 14
    generator = np.random.default_rng(0)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(n)
    writer.add_feed_forward_length(16)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(words)
    shapes = {"token_embd": (words, width), "output_norm": (width,)}
    for i in range(n):
        shapes |= {f"blk.{i}.{part}": (width, width) for part in ("attn_q", "attn_k", "attn_v", "attn_output")}
        shapes |= {f"blk.{i}.{part}": (16, width) for part in ("ffn_gate", "ffn_up")}
        shapes |= {f"blk.{i}.ffn_down": (width, 16), f"blk.{i}.attn_norm": (width,), f"blk.{i}.ffn_norm": (width,)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", generator.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def damage_safetensors(file: Path, chance: random.Random) -> None:
    """Bytes anywhere, the header's length, or what the header says of tensors."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    how = chance.random()
    if how < 0.3:
        content = damaged(content, chance)
    elif how < 0.45:
        lie = chance.choice((0, 1, length - 1, length + 1, len(content), 2**31, 2**63, 2**64 - 1))
        content = struct.pack("<Q", lie) + content[8:]
    else:
        odd = [*ODD, "F16", "F32", "F64", "BF16", "I64", "F8_E4M3", "U8", [0, 8], [8, 0], [2**62, 4], [-1, 1], [0, 0]]
        header = json.loads(content[8 : 8 + length])
        for _ in range(chance.choice((1, 1, 2))):
            header = changed(header, chance, odd)
        text = to_json(header, chance).encode("utf-8", "surrogatepass")
        content = struct.pack("<Q", len(text)) + text + content[8 + length :]
    file.write_bytes(content)


def safetensors_by_hand(file: Path) -> dict[str, np.ndarray]:
    """float32 of every tensor, by the format's definition."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    types = {
        "F64": "<f8",
        "F32": "<f4",
        "F16": "<f2",
        "I64": "<i8",
        "I32": "<i4",
        "I16": "<i2",
        "I8": "i1",
        "U8": "u1",
        "BOOL": "?",
    }
    found = {}
    for name, entry in json.loads(content[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        raw = content[8 + length + begin : 8 + length + end]
        if entry["dtype"] == "BF16":
            values = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
        elif entry["dtype"] in types:
            values = np.frombuffer(raw, types[entry["dtype"]])
        else:
            continue
        found[name] = values.astype(np.float32).reshape(entry["shape"])
    return found


def same(ours: tuple[Any, Any], theirs: tuple[Any, Any]) -> bool:
    """Equal texts and labels, of which NaN and what JSON has no number for are none, and 1 is 1.0."""
    (text, label), (their_text, their_label) = ours, theirs
    none = isinstance(their_label, float) and not math.isfinite(their_label) and label is None
    return (text == their_text or not (text or their_text)) and (
        none or label == their_label or str(label) == str(their_label)
    )


def _without_halves(value: Any) -> Any:
    """Text without lone surrogates: half a character is none, where it is not refused."""
    return value.encode("utf-8", "ignore").decode() if isinstance(value, str) else value


def _tensors(state: dict[str, Any]) -> list[tuple[str, str, bytes]]:
    found = []
    for row, layer in state["layers"].items():
        found += [(row, name, t.numpy().tobytes()) for name, t in layer.items() if isinstance(t, torch.Tensor)]
    return sorted(found)


# -- the campaign ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def replaced_command(name: str, command: Any) -> Iterator[None]:
    before = cli.COMMANDS[name]
    cli.COMMANDS[name] = command
    try:
        yield
    finally:
        cli.COMMANDS[name] = before


def command_line(*words: str) -> None:
    """Run a command; its one line of refusal becomes a SofthProbeError again."""
    said, shown = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(shown):
            code = cli.main(words)
    except SystemExit as stop:  # --help
        code = int(stop.code or 0)
    lines = [line for line in said.getvalue().splitlines() if line.startswith("softh-probe: ")]
    if "Traceback" in said.getvalue() or (code == 2 and len(lines) != 1) or code not in (0, 2):
        raise Wrong(f"exit code {code}, and: {said.getvalue()[-500:]!r}")
    if code == 2:
        raise SofthProbeError(lines[0].removeprefix("softh-probe: "))


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
    """What is wrong with the line that a refusal is."""
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
