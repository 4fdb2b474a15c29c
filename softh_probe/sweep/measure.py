"""The process that measures checkpoints for a worker, one after the other. The worker survives its crash."""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate.utils.memory import clear_device_cache

from softh_probe.cache import key_of
from softh_probe.config import DEFAULT_MAX_LENGTH, RunConfig, tokens_per_batch_on
from softh_probe.data.prepared import read_corpus
from softh_probe.data.sources import data_identity
from softh_probe.data.tokenizing import tokenizer_fingerprint
from softh_probe.errors import InputError, Interrupted, SofthProbeError, first_sentence, is_disk_full
from softh_probe.kept import Kept
from softh_probe.models.placement import check_placement
from softh_probe.models.source import resolve_model
from softh_probe.models.tokenizer import load_tokenizer
from softh_probe.planned.prepared import plan_run
from softh_probe.redaction import log_to_stderr, redacted
from softh_probe.run.peak_memory import reset_peak_memory
from softh_probe.run.pipeline import run
from softh_probe.sweep.config import SweepConfig
from softh_probe.sweep.downloads import Downloads
from softh_probe.sweep.evaluation import evaluate
from softh_probe.sweep.folder import SweepFolder, is_intact, make_durable
from softh_probe.sweep.grid import GridPoint
from softh_probe.sweep.halving import with_less_memory
from softh_probe.sweep.read_ahead import read_ahead, read_ahead_in_thread

#: Exit codes of a measuring process: success, failure with a reason, asked to stop, disk full.
EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, EXIT_DISK_FULL = 0, 1, 75, 74
#: What a measuring process answers when a result is written, and it waits for the next checkpoint.
DONE = None
#: What a worker sends in place of a checkpoint when there are no more.
NO_MORE = None

logger = logging.getLogger(__name__)


def serve(config: SweepConfig, jobs: Any) -> None:
    """Measure the checkpoints that a worker names; end the process after the last one, or after one that failed.

    What the next checkpoint needs again stays in memory: the tokenizer, the tokens, the plan. A failure ends the
    process, and so does code of a checkpoint's own, so that nothing of them is there when the next one is measured.

    Args:
        config: the sweep.
        jobs: connection to the worker, which sends a `GridPoint`, the number of earlier attempts that the system
            killed, and a checkpoint to read ahead, or None; in the end `NO_MORE`. The answer is `DONE`, or a line that
            says why the process ends.
    """
    _detach()
    folder, kept, code = SweepFolder(config.out), Kept(), EXIT_DONE
    try:
        while code == EXIT_DONE:
            try:
                job = jobs.recv()
            except EOFError:  # the worker has ended
                break
            if job is NO_MORE:
                break
            point, killed, following = job
            code = EXIT_FAILED
            _log_to(folder.log(point))
            with log_to_stderr(), _like_a_new_process():
                if following is not None:
                    read_ahead_in_thread(config, following)
                code = measure_one(config, point, folder, killed=killed, reason=jobs, kept=kept)
            if config.trust_remote_code:
                break
            if code == EXIT_DONE:
                clear_device_cache(garbage_collection=True)  # for others, while the next one is downloaded
                jobs.send(DONE)
    finally:
        _exit(code)


def measure_one(
    config: SweepConfig, point: GridPoint, folder: SweepFolder, *, killed: int, reason: Any, kept: Kept
) -> int:
    """Download a checkpoint, measure it and write the result; log a failure.

    Args:
        config: the sweep.
        point: the checkpoint.
        folder: of the sweep.
        killed: number of earlier attempts that the system killed; each halves the tokens of a batch.
        reason: is sent one line on failure.
        kept: what this process keeps in memory.

    Returns:
        An exit code.
    """
    now, start = datetime.now(UTC).isoformat(timespec="seconds"), (time.perf_counter(), time.process_time())
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
            prepare(run_config, folder, kept)
            run_in_memory(run_config, kept)
            make_durable(out)
        evaluate(config, point, folder, killed=killed)
        wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
        logger.info("took %.2f s, %.2f s of CPU", wall, cpu)
        return EXIT_DONE
    except Interrupted:
        return EXIT_STOPPED
    except BaseException as error:
        logger.exception("%s cannot be measured", point.checkpoint)
        text = str(error) if isinstance(error, SofthProbeError) else f"{type(error).__name__}: {first_sentence(error)}"
        reason.send(redacted(text))
        return EXIT_DISK_FULL if is_disk_full(error) else EXIT_FAILED


@contextlib.contextmanager
def _like_a_new_process() -> Iterator[None]:
    """Let a measurement find, and leave, the state of a new process: random numbers, settings, peaks of memory."""
    environment, seed = dict(os.environ), torch.initial_seed()
    dtype, n_threads, grad = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
    reset_peak_memory()
    try:
        with warnings.catch_warnings():
            yield
    finally:
        torch.manual_seed(seed)
        torch.set_default_dtype(dtype)
        torch.set_num_threads(n_threads)
        torch.set_grad_enabled(grad)
        os.environ.clear()
        os.environ.update(environment)


def fetch_ahead(config: SweepConfig, point: GridPoint) -> None:
    """Download a checkpoint that is likely to be next; a failure is reported when its turn comes."""
    folder = SweepFolder(config.out)
    _detach()
    _log_to(folder.log(point))
    try:
        with log_to_stderr():
            try:
                Downloads(folder, config).fetch(point, ahead=True)
                read_ahead(config, point)
            except BaseException:
                logger.exception("%s cannot be downloaded ahead of its turn", point.checkpoint)
    finally:
        _exit(EXIT_DONE)


def _exit(code: int) -> NoReturn:
    """End the process at once, without the clean-up of the worker's state that it was forked with."""
    with contextlib.suppress(OSError):  # the disk may be full
        sys.stderr.flush()
    os._exit(code)


def prepare(config: RunConfig, folder: SweepFolder, kept: Kept | None = None) -> None:
    """Tokenise and plan once for each tokenizer; other processes wait and then find both in the cache.

    A stream is neither kept nor planned.

    Args:
        config: the run.
        folder: of the sweep.
        kept: what this process keeps in memory.

    Raises:
        InputError: the data has changed since this sweep's first result with the same tokenizer.
    """
    if config.stream:
        return
    source = resolve_model(config.model, revision=config.revision)
    trusted = config.trust_remote_code
    tokenizer = load_tokenizer(source, tokenizer=config.tokenizer, trust_remote_code=trusted, kept=kept)
    fingerprint, data = tokenizer_fingerprint(tokenizer, kept), data_identity(config.data, config.data_revision)
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


def run_in_memory(config: RunConfig, kept: Kept | None = None) -> None:
    """Run; when out of memory, halve the tokens of a batch and run again, down to a single document."""
    assert config.tokens_per_batch is not None
    budget = config.tokens_per_batch

    def halved() -> int:
        nonlocal budget
        # A document is never cut: batches of one document do not get smaller.
        budget = budget // 2 if budget > (config.max_length or DEFAULT_MAX_LENGTH) // 2 else 0
        logger.info("out of memory; tokens_per_batch is now %d", budget)
        return budget

    def attempt(tokens_per_batch: int) -> None:
        run(dataclasses.replace(config, tokens_per_batch=tokens_per_batch), kept=kept)

    with_less_memory(attempt, budget, halved, "one document a batch; take a larger device, or --dtype")


def _log_to(log: Path) -> None:
    """Write standard output and errors to a log from now on."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # the disk may be full
            stream.flush()
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)


def _detach() -> None:
    """Give a forked process its own signal handlers, and let it end with its worker."""
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
