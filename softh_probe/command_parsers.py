"""Parsers of the command line: the flags of each command, with the docstrings of configurations as help."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from docstring_parser import parse_from_object
from jsonargparse import ActionConfigFile, ActionYesNo, ArgumentParser, Namespace

from softh_probe.command_words import flag_of
from softh_probe.config import RunConfig
from softh_probe.config_checks import check_config_file, type_hints
from softh_probe.ingest.config import IngestConfig
from softh_probe.layer_places import RESIDUAL
from softh_probe.sweep.config import SWEEP_CONTROLLED_FIELDS, SweepConfig


def command_parser(version: str) -> ArgumentParser:
    """Make the parser of all commands.

    Args:
        version: what --version prints.
    """
    parser = _Parser(
        prog="softh-probe",
        version=version,
        description="How much information each layer of an LLM holds: soft entropy in one forward pass.",
    )
    parser.add_argument("--debug", action="store_true", help="Show Python tracebacks.")
    commands = parser.add_subcommands(dest="command")
    run = _config_parser(RunConfig)
    _add_dry_run(
        run, "Show documents, tokens, positions, batches, labels and memory; load no weights, write no results."
    )
    commands.add_subcommand("run", run, help="Probe one checkpoint on one corpus.")
    commands.add_subcommand("layers", _layers_parser(), help="Show the layers of a run, from the model's config alone.")
    commands.add_subcommand("report", _report_parser(), help="Write report.html and figures of results.")
    compare = _compare_parser()
    commands.add_subcommand("compare", compare, help="Show in which layers two results differ beyond noise.")
    correlate = _correlate_parser()
    commands.add_subcommand("correlate", correlate, help="Correlate whole-model values with benchmark scores.")
    ingest = _config_parser(IngestConfig, positional="folder")
    _add_dry_run(ingest, "Show files, layout, layers and memory; read no hidden states, write no results.")
    commands.add_subcommand("ingest", ingest, help="Measure hidden states that others stored.")
    sweep = _config_parser(SweepConfig, leave_out=SWEEP_CONTROLLED_FIELDS)
    sweep.add_argument("--dry-run", action="store_true", help="Show what would run, and the expected time and disk.")
    commands.add_subcommand("sweep", sweep, help="Probe many checkpoints on one corpus, on any number of GPUs.")
    for name, text in (
        ("status", "Show the checkpoints of a sweep: done, running, failed (and why) and waiting."),
        ("collect", "Make one table, and figures, of all finished checkpoints of a sweep."),
    ):
        of_folder = _Parser(description=text)
        of_folder.add_argument("folder", type=str, help="Output folder of a sweep.")
        commands.add_subcommand(name, of_folder, help=text)
    return parser


def _add_dry_run(parser: ArgumentParser, text: str) -> None:
    parser.add_argument("--dry-run", action="store_true", help=text)
    parser.add_argument("--json", action="store_true", help="Print what --dry-run finds as JSON.")


def _report_parser() -> ArgumentParser:
    parser = _Parser(
        description="Write report.html, a page that opens without a network, and figures as PNG and SVG: of a run, of "
        "several side by side, or of a sweep. Prints the page's path.",
    )
    parser.add_argument("folders", nargs="+", type=str, metavar="FOLDER", help="Folders of results, or one of a sweep.")
    parser.add_argument(
        "--out",
        type=str | None,
        help="Folder to write into; null is the folder itself, or `report` here if there are several.",
    )
    parser.add_argument(
        "--allow-different",
        action=ActionYesNo(no_prefix="no-"),
        default=False,
        help="Show results side by side that were measured on different text or with different anchors; the page then "
        "opens with a warning.",
    )
    parser.add_argument(
        "--groups",
        type=str | None,
        help="CSV with the column model (a result's name, a hub id or the end of one) and others: the points of models "
        "can be coloured by these. Null: by family, training step or model.",
    )
    return parser


def _compare_parser() -> ArgumentParser:
    parser = _Parser(
        description="Show in which layers two results differ beyond noise: B minus A, its standard error over "
        "documents (paired where both measured the same ones), and p-values corrected for the number of layers (Holm). "
        "Both results need --intervals.",
    )
    parser.add_argument("a", type=str, metavar="A", help="Folder of a result.")
    parser.add_argument("b", type=str, metavar="B", help="Folder of another one.")
    parser.add_argument("--unit", type=str, default="efficiency", help="efficiency (share of log m), nats or bits.")
    parser.add_argument(
        "--metric",
        nargs="+",
        type=str,
        default=["entropy", "mutual_information", "regularity", "optimality"],
        help="Metrics to show: entropy, mutual_information, regularity, optimality.",
    )
    parser.add_argument("--out", type=str | None, help="File for the table: .csv or .json.")
    parser.add_argument("--json", action="store_true", help="Print notes and records as JSON.")
    return parser


def _correlate_parser() -> ArgumentParser:
    parser = _Parser(
        description="Correlate the values of whole models (means over layers) with benchmark scores, over at least 5 "
        "models or checkpoints: Spearman and Pearson with p-values, 95% bootstrap intervals over models, and q, "
        "which is p corrected for the number of tests. Writes correlations.csv, .json and .html.",
    )
    parser.add_argument("results", nargs="+", type=str, metavar="RESULTS", help="Folders of results or sweeps.")
    parser.add_argument(
        "--scores",
        type=str,
        required=True,
        help="Benchmark scores: a .csv, .tsv or .parquet table with a column of models and one of numbers for each "
        "benchmark (the Open LLM leaderboard's as it is), or results_*.json of lm-evaluation-harness, or their folder.",
    )
    parser.add_argument(
        "--control",
        type=str | None,
        help="What partial correlations hold constant, by commas: n_parameters (as its logarithm), tokens, step, or a "
        "column of numbers of the scores.",
    )
    parser.add_argument("--by", type=str | None, help="family: correlate within each family of at least 5 models, too.")
    parser.add_argument(
        "--out", type=str | None, help="Folder to write into; null is a sweep's own folder, or `correlate` here."
    )
    parser.add_argument(
        "--mean-over", type=str | None, help="Layers that values are averaged over; null is layer.1 to layer.L."
    )
    parser.add_argument(
        "--allow-different",
        action=ActionYesNo(no_prefix="no-"),
        default=False,
        help="Correlate results of different text, anchors or positions, too; a note says in what they differ.",
    )
    parser.add_argument("--json", action="store_true", help="Print what correlations.json holds.")
    return parser


def _layers_parser() -> ArgumentParser:
    """Make the flags of `run` that name the model, with the same help; the model itself needs no flag."""
    help_of = _field_help(RunConfig)
    parser = _Parser(
        description="Show each layer that a run would measure: its name, module, class, width and device. Neither "
        "weights nor data are loaded.",
    )
    parser.add_argument("model", type=str, help=help_of["model"])
    parser.add_argument("--revision", type=str | None, help=help_of["revision"])
    parser.add_argument("--device-map", type=str | None, help=help_of["device_map"])
    parser.add_argument("--sites", type=str, default=RESIDUAL, help=help_of["sites"])
    parser.add_argument("--modules", type=str | None, help=help_of["modules"])
    parser.add_argument(
        "--trust-remote-code", action=ActionYesNo(no_prefix="no-"), default=False, help=help_of["trust_remote_code"]
    )
    return parser


def _config_parser(config: type, leave_out: Sequence[str] = (), positional: str | None = None) -> ArgumentParser:
    """Make a flag for each field of a dataclass, with its docstring, or else that of a run's field, as help."""
    help_of = {**_field_help(RunConfig), **_field_help(config)}
    parser = _Parser(description=(config.__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", action=_ConfigFile, help="YAML file that gives any of these; flags override it.")
    types = type_hints(config)
    for field in dataclasses.fields(config):
        if field.name in leave_out:
            continue
        if field.name == positional:
            parser.add_argument(
                field.name, type=types[field.name], metavar=field.name.upper(), help=help_of[field.name]
            )
            continue
        flag = flag_of(field.name)
        required = field.default is dataclasses.MISSING
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        options: dict[str, Any] = {"help": help_of[field.name]}
        options |= {"required": True} if required else {"default": default}
        if types[field.name] is bool:
            parser.add_argument(flag, action=ActionYesNo(no_prefix="no-"), **options)
        else:
            parser.add_argument(flag, type=types[field.name], **options)
    return parser


def _field_help(config: type) -> dict[str, str]:
    """Read the docstring of each field of a dataclass that has one, inherited ones too."""
    docs = [parse_from_object(base) for base in reversed(config.__mro__[:-1])]
    return {p.arg_name: " ".join(p.description.split()) for doc in docs for p in doc.params if p.description}


class _Parser(ArgumentParser):
    """A parser that raises ArgumentError, and takes no abbreviated flags."""

    def __init__(self, **options: Any) -> None:
        super().__init__(exit_on_error=False, allow_abbrev=False, **options)


class _ConfigFile(ActionConfigFile):
    """A configuration file that is checked before it is read."""

    @staticmethod
    def apply_config(parser: ArgumentParser, cfg: Namespace, dest: str, value: Any) -> None:
        path = Path(str(value)).expanduser()
        if "\0" not in str(value) and path.is_file():
            check_config_file(path)
        ActionConfigFile.apply_config(parser, cfg, dest, value)
