"""Configuration files of runs and of sweeps."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any, ClassVar

import yaml

from fuzzing.damage import changed, damaged, encoded
from fuzzing.kinds import Kind, WrongError, command_line, replaced_command
from softh_probe.config import RunConfig, plain_config
from softh_probe.sweep.config import SweepConfig


class Config(Kind):
    """Configuration files of runs, through the command line."""

    share = 2.0
    command, config_class = "run", RunConfig
    values: ClassVar[dict[str, Any]] = {
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
                raise WrongError(f"{name}: the file says {value!r}, the configuration {ours!r}")
        again = self.config_class(**{k: v for k, v in dataclasses.asdict(made[0]).items()})
        if again != made[0]:
            raise WrongError("a configuration differs from itself made again")


class SweepConfigs(Config):
    """Configuration files of sweeps, through the command line."""

    share = 1.0
    command, config_class = "sweep", SweepConfig
    values: ClassVar[dict[str, Any]] = {
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
