"""Measure one checkpoint in a process of its own, whose crash the worker survives."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
from datetime import UTC, datetime
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any, NoReturn

from softh_probe.cache import key_of
from softh_probe.config import DEFAULT_MAX_LENGTH, RunConfig, tokens_per_batch_on
from softh_probe.data.prepared import read_corpus
from softh_probe.data.sources import data_identity
from softh_probe.data.tokenizing import tokenizer_fingerprint
from softh_probe.errors import InputError, Interrupted, SofthProbeError, first_sentence
from softh_probe.models.placement import check_placement
from softh_probe.models.source import resolve_model
from softh_probe.models.tokenizer import load_tokenizer
from softh_probe.planned.prepared import plan_run
from softh_probe.redaction import log_to_stderr, redacted
from softh_probe.run.pipeline import run
from softh_probe.sweep.config import SweepConfig
from softh_probe.sweep.downloads import Downloads
from softh_probe.sweep.evaluation import evaluate
from softh_probe.sweep.folder import SweepFolder, is_intact, make_durable
from softh_probe.sweep.grid import GridPoint

#: Exit codes of a measuring process: success, failure with a reason, asked to stop, disk full.
EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, EXIT_DISK_FULL = 0, 1, 75, 74

logger = logging.getLogger(__name__)


def measure(config: SweepConfig, point: GridPoint, *, killed: int, reason: Any) -> None:
    """Download a checkpoint, measure it and write the result; then end the process with an exit code.

    Args:
        config: the sweep.
        point: the checkpoint.
        killed: number of earlier attempts that the system killed; each halves the tokens of a batch.
        reason: writing end of a pipe, for one line on failure.
    """
    folder = SweepFolder(config.out)
    _detach(folder.log(point))
    code = EXIT_FAILED
    try:
        with log_to_stderr():
            code = _measure(config, point, folder, killed=killed, reason=reason)
    finally:
        _exit(code)


def _measure(config: SweepConfig, point: GridPoint, folder: SweepFolder, *, killed: int, reason: Any) -> int:
    """Measure a checkpoint, log a failure, and return the exit code."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    logger.info("--- %s %s in process %d on %s", now, point.checkpoint, os.getpid(), socket.gethostname())
    try:
        Downloads(folder, config).fetch(point)
        out = folder.result(point)
        run_config = config.run_config(model=point.source, revision=point.revision, out=out)
        if run_config.cache == "none":
            run_config = dataclasses.replace(run_config, cache=str(folder.work / "cache"))
        tokens = run_config.tokens_per_batch or tokens_per_batch_on(
            check_placement(run_config.dtype, run_config.device_map)
        )
        # A snapshot of other batches cannot be resumed: with overwrite, the run starts anew.
        run_config = dataclasses.replace(run_config, tokens_per_batch=max(1, tokens >> killed), overwrite=True)
        if not is_intact(out):  # else it was measured before, and lacks scores alone
            prepare(run_config, folder)
            run_in_memory(run_config)
            make_durable(out)
        evaluate(config, point, folder, killed=killed)
        return EXIT_DONE
    except Interrupted:
        return EXIT_STOPPED
    except BaseException as error:
        logger.exception("%s cannot be measured", point.checkpoint)
        disk_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        text = str(error) if isinstance(error, SofthProbeError) else f"{type(error).__name__}: {first_sentence(error)}"
        reason.send(redacted(text))
        return EXIT_DISK_FULL if disk_full else EXIT_FAILED


def fetch_ahead(config: SweepConfig, point: GridPoint) -> None:
    """Download a checkpoint that is likely to be next; a failure is reported when its turn comes."""
    folder = SweepFolder(config.out)
    _detach(folder.log(point))
    try:
        with log_to_stderr():
            try:
                Downloads(folder, config).fetch(point, ahead=True)
            except BaseException:
                logger.exception("%s cannot be downloaded ahead of its turn", point.checkpoint)
    finally:
        _exit(EXIT_DONE)


def _exit(code: int) -> NoReturn:
    """End the process at once, without the clean-up of the worker's state that it was forked with."""
    with contextlib.suppress(OSError):  # the disk may be full
        sys.stderr.flush()
    os._exit(code)


def prepare(config: RunConfig, folder: SweepFolder) -> None:
    """Tokenise and plan once for each tokenizer; other processes wait and then find both in the cache.

    A stream is neither kept nor planned.

    Raises:
        InputError: the data has changed since this sweep's first result with the same tokenizer.
    """
    if config.stream:
        return
    source = resolve_model(config.model, revision=config.revision)
    tokenizer = load_tokenizer(source, tokenizer=config.tokenizer, trust_remote_code=config.trust_remote_code)
    fingerprint, data = tokenizer_fingerprint(tokenizer), data_identity(config.data, config.data_revision)
    if fingerprint is None or data is None:  # then the cache has no key for them
        return
    key = key_of(tokenizer=fingerprint, data=data, tokens_per_batch=config.tokens_per_batch)
    name = f"corpora/{fingerprint}.json"
    if key in folder.read_json(name, {}).get("prepared", []):
        return
    with folder.lock("prepare"):
        known = folder.read_json(name, {"sha256": None, "prepared": []})
        if key in known["prepared"]:
            return
        corpus = read_corpus(config, tokenizer)
        if known["sha256"] not in (None, corpus.sha256):
            raise InputError(
                f"data: {config.data} gives other tokens than it did when this sweep began (SHA-256 "
                f"{known['sha256'][:12]}…, now {corpus.sha256[:12]}…); name a new output folder"
            )
        plan_run(config, corpus)
        (folder.work / "corpora").mkdir(exist_ok=True)
        folder.write_json(name, {"sha256": corpus.sha256, "prepared": [*known["prepared"], key]})


def run_in_memory(config: RunConfig) -> None:
    """Run; when out of memory, halve the tokens of a batch and run again, down to a single document."""
    from accelerate.utils import find_executable_batch_size

    assert config.tokens_per_batch is not None
    budget = config.tokens_per_batch

    def halved() -> int:
        nonlocal budget
        # A document is never cut: batches of one document do not get smaller.
        budget = budget // 2 if budget > (config.max_length or DEFAULT_MAX_LENGTH) // 2 else 0
        logger.info("out of memory; tokens_per_batch is now %d", budget)
        return budget

    def attempt(tokens_per_batch: int) -> None:
        run(dataclasses.replace(config, tokens_per_batch=tokens_per_batch))

    try:
        find_executable_batch_size(attempt, starting_batch_size=budget, reduce_batch_size_fn=halved)()
    except RuntimeError as error:
        if "No executable batch size" in str(error):
            raise InputError(
                "out of memory, even with one document a batch; take a larger device, or --dtype"
            ) from error
        raise


def _detach(log: Path) -> None:
    """Give a forked process its own log and signal handlers, and let it end with its worker."""
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)
    sys.stdout, sys.stderr = (os.fdopen(i, "w", buffering=1, closefd=False) for i in (1, 2))
    os.setpgrp()  # Ctrl-C does not reach it: the launcher decides which processes stop
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, lambda *_: os.kill(os.getpid(), signal.SIGUSR1))  # submitit's signal
    signal.signal(signal.SIGCONT, signal.SIG_DFL)
    faulthandler.enable(all_threads=False)
    parent = parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=end_with_parent, daemon=True).start()
