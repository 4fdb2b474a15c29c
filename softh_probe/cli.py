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
from typing import TYPE_CHECKING

from jsonargparse import ArgumentError, Namespace

from softh_probe.command_parsers import command_parser
from softh_probe.command_words import (
    refuse_other_names,
    refuse_values_of_switches,
    spelled,
    usage_line,
)
from softh_probe.config import RunConfig, split_names
from softh_probe.errors import InputError, Interrupted, SofthProbeError, one_line
from softh_probe.ingest.config import IngestConfig
from softh_probe.layer_places import parse_sites
from softh_probe.redaction import log_to_stderr, redacted
from softh_probe.result_files import warn_of_earlier_anchors
from softh_probe.sweep.config import SweepConfig

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
    parser = command_parser(_version())
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


def _version() -> str:
    try:
        return version("softh-probe")
    except PackageNotFoundError:  # a source tree on PYTHONPATH
        return "(not installed)"


def _fail(text: str, code: int, debug: bool) -> int:
    if debug and sys.exc_info()[0] is not None and code != EXIT_INTERRUPTED:
        raise
    print(f"softh-probe: {redacted(one_line(text))}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
