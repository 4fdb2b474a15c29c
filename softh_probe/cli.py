"""The command line: `softh-probe run`, `layers`, `report`, `compare`, `correlate`, `ingest`, `sweep` and its others.

Commands import the modules that they need when they run: `--help`, `status` and errors wait for no torch.
"""

from __future__ import annotations

import atexit
import dataclasses
import gc
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docstring_parser import parse_from_object
from jsonargparse import ActionConfigFile, ActionYesNo, ArgumentError, ArgumentParser, Namespace

from softh_probe.command_words import (
    flag_of,
    refuse_other_names,
    refuse_values_of_switches,
    spelled,
    usage_line,
)
from softh_probe.config import RunConfig, split_names
from softh_probe.config_checks import check_config_file, type_hints
from softh_probe.errors import InputError, Interrupted, SofthProbeError, one_line
from softh_probe.ingest.config import IngestConfig
from softh_probe.layer_places import RESIDUAL, parse_sites
from softh_probe.redaction import log_to_stderr, redacted
from softh_probe.result_files import warn_of_earlier_anchors
from softh_probe.sweep.config import SWEEP_CONTROLLED_FIELDS, SweepConfig

if TYPE_CHECKING:
    from softh_probe.run.processes import Processes

EXIT_BAD_INPUT = 2
EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130


@log_to_stderr()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit code: 0; 2 for bad input, with one line on standard error, and where there are no words, with the help;
        128 plus the signal's number for a run that a signal stopped; 1 for any other failure.
    """
    atexit.register(gc.freeze)  # the end of the process frees all memory at once: objects one by one take 0.6 s
    words = spelled(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    command = next((word for word in words if word in COMMANDS), "run")
    if "--version" in words:
        print(f"softh-probe {_version()}")
        return 0
    parser = _parser()
    if not [word for word in words if word != "--debug"]:
        parser.print_help(sys.stderr)
        return EXIT_BAD_INPUT
    try:
        refuse_other_names(words, command)
        refuse_values_of_switches(words, command)
        parsed = parser.parse_args([w for w in words if w != "--debug"])
        return COMMANDS[parsed.command](parsed[parsed.command])
    except ArgumentError as error:
        return _fail(usage_line(str(error), command), EXIT_BAD_INPUT, debug)
    except SofthProbeError as error:
        return _fail(str(error), EXIT_BAD_INPUT, debug)
    except Interrupted as stopped:
        return _fail(str(stopped), 128 + stopped.signal, debug)
    except KeyboardInterrupt:
        return _fail("interrupted; nothing was written", EXIT_INTERRUPTED, debug)
    except BrokenPipeError:
        return EXIT_FAILURE
    except Exception as error:
        text = f"{type(error).__name__}: {error}; --debug shows where"
        return _fail(text, EXIT_FAILURE, debug)


def _run(options: Namespace) -> int:
    from softh_probe.report.terminal import print_table
    from softh_probe.run import run
    from softh_probe.run.processes import launched

    _require_dry_run(options)
    values = {field.name: options[field.name] for field in dataclasses.fields(RunConfig)}
    with launched() as processes:
        config = RunConfig(**values)
        if processes.is_first:
            warn_of_earlier_anchors(options.config or (), options.anchors)
        if options.dry_run:
            return _dry_run(config, processes, as_json=options.json)
        result = run(config, processes=processes)
    if not processes.is_first:
        return 0
    print_table(result)
    _say_where(config.out, report=config.report)
    return 0


def _dry_run(config: RunConfig, processes: Processes, *, as_json: bool) -> int:
    from softh_probe.run.dry_run import dry_run

    processes = processes.with_models_of(config.tensor_parallel)  # all of them make the groups
    with processes.first_ahead(), redirect_stdout(sys.stderr):  # standard output is for the answer
        found = dry_run(config, progress=processes.is_first, processes=processes, timed=True)
    if processes.is_first:
        print(json.dumps(found.to_json(), indent=2) if as_json else found.describe())
    return 0


def _ingest(options: Namespace) -> int:
    from softh_probe.ingest.pipeline import dry_run, ingest
    from softh_probe.report.terminal import print_table

    _require_dry_run(options)
    config = IngestConfig(**{field.name: options[field.name] for field in dataclasses.fields(IngestConfig)})
    warn_of_earlier_anchors(options.config or (), options.anchors)
    if options.dry_run:
        found = dry_run(config)
        print(json.dumps(found.to_json(), indent=2) if options.json else found.describe())
        return 0
    result = ingest(config)
    print_table(result)
    _say_where(config.out, report=config.report)
    return 0


def _require_dry_run(options: Namespace) -> None:
    if options.json and not options.dry_run:
        raise InputError("json: only what --dry-run finds is printed so; a run writes result.json; add --dry-run")


def _say_where(out: str, *, report: bool) -> None:
    page = f"; open {Path(out) / 'report.html'}" if report else ""
    print(f"results in {out}{page}", file=sys.stderr)


def _sweep(options: Namespace) -> int:
    from softh_probe.sweep import sweep
    from softh_probe.sweep.dry_run import describe_plan

    values = {field.name: options[field.name] for field in dataclasses.fields(SweepConfig) if field.name in options}
    config = SweepConfig(**values)
    warn_of_earlier_anchors(options.config or (), options.anchors)
    if options.dry_run:
        print(describe_plan(config))
        return 0
    try:
        outcome = sweep(config)
    except KeyboardInterrupt:
        return _fail("interrupted; the same command resumes from here", EXIT_INTERRUPTED, False)
    counts = f"{len(outcome.done)} done, {len(outcome.failed)} failed, {len(outcome.waiting)} waiting"
    print(f"{counts}; results in {config.out}")
    if outcome.correlation:
        print(outcome.correlation)
    for warning in outcome.warnings:
        print(f"warning: {warning}")
    for point, failure in outcome.failed:
        print(f"failed: {point.checkpoint}: {failure.reason} (log: {failure.log})")
    if outcome.problem:
        print(f"softh-probe: {outcome.problem}", file=sys.stderr)
    return EXIT_FAILURE if outcome.failed or outcome.waiting else 0


def _status(options: Namespace) -> int:
    from softh_probe.sweep.status import status

    print(status(options.folder))
    return 0


def _collect(options: Namespace) -> int:
    from softh_probe.sweep import collect

    found = collect(options.folder)
    for warning in found.warnings:
        print(f"warning: {warning}")
    print(f"{found.count('done')} of {len(found.checkpoints)} checkpoints in {found.folder}/sweep.parquet and .csv")
    if found.correlation:
        print(found.correlation)
    return 0


def _layers(options: Namespace) -> int:
    from softh_probe.models.describe import describe_layers, load_skeleton
    from softh_probe.models.source import resolve_model

    source = resolve_model(options.model, revision=options.revision, need_weights=False)
    skeleton = load_skeleton(source, trust_remote_code=options.trust_remote_code)
    modules = None if options.modules is None else split_names(options.modules)
    table = describe_layers(skeleton, options.device_map, sites=parse_sites(options.sites), modules=modules)
    print(table.astype({"width": "string"}).fillna({"width": "-"}).to_string(index=False))
    return 0


def _report(options: Namespace) -> int:
    from softh_probe.report.page import write_report

    folders = options.folders
    out = options.out or (folders[0] if len(folders) == 1 else "report")
    print(write_report(folders, out, allow_different=options.allow_different, groups=options.groups))
    return 0


def _compare(options: Namespace) -> int:
    from softh_probe.report.comparison_table import compare_folders

    lines = compare_folders(
        (options.a, options.b), unit=options.unit, metrics=options.metric, out=options.out, as_json=options.json
    )
    print(lines)
    if options.out:
        print(f"table in {options.out}", file=sys.stderr)
    return 0


def _correlate(options: Namespace) -> int:
    from softh_probe.report.correlate import correlate_folders

    control = () if options.control is None else split_names(options.control)
    chosen = {name: options[name] for name in ("by", "out", "mean_over", "allow_different")}
    print(correlate_folders(options.results, options.scores, control=control, as_json=options.json, **chosen))
    return 0


COMMANDS = {
    "run": _run,
    "layers": _layers,
    "report": _report,
    "compare": _compare,
    "correlate": _correlate,
    "ingest": _ingest,
    "sweep": _sweep,
    "status": _status,
    "collect": _collect,
}


def _parser() -> ArgumentParser:
    parser = _Parser(
        prog="softh-probe",
        version=_version(),
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


def _version() -> str:
    try:
        return version("softh-probe")
    except PackageNotFoundError:  # a source tree on PYTHONPATH
        return "(not installed)"


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


def _fail(text: str, code: int, debug: bool) -> int:
    if debug and sys.exc_info()[0] is not None and code != EXIT_INTERRUPTED:
        raise
    print(f"softh-probe: {redacted(one_line(text))}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
