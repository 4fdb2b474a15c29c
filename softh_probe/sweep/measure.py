"""One checkpoint, in a process of its own: whatever becomes of it, the worker lives."""

from __future__ import annotations

import dataclasses
import errno
import faulthandler
import os
import signal
import socket
import sys
import threading
import traceback
from datetime import UTC, datetime
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any

from softh_probe.cache import key_of
from softh_probe.config import RunConfig, tokens_per_batch_on
from softh_probe.data.prepared import read_corpus
from softh_probe.data.sources import data_identity
from softh_probe.data.tokenizing import tokenizer_fingerprint
from softh_probe.errors import InputError, Interrupted, SofthProbeError, first_sentence
from softh_probe.models.checkpoint import load_tokenizer
from softh_probe.models.placement import check_placement
from softh_probe.models.source import resolve_model
from softh_probe.planned.prepared import plan_run
from softh_probe.redaction import redacted
from softh_probe.run.pipeline import run
from softh_probe.sweep.config import SweepConfig
from softh_probe.sweep.downloads import Downloads
from softh_probe.sweep.folder import SweepFolder, make_durable
from softh_probe.sweep.grid import GridPoint

#: How a measuring process ends: well; with a reason; asked to stop; for want of disk space.
EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, EXIT_DISK_FULL = 0, 1, 75, 74


def measure(config: SweepConfig, point: GridPoint, *, killed: int, reason: Any) -> None:
    """Download, measure, write the result; the process ends with an exit code.

    Args:
        config: the sweep.
        point: the checkpoint.
        killed: how often the system killed an earlier attempt; each time halves the tokens of a batch.
        reason: end of a pipe that takes one line where it fails.
    """
    folder = SweepFolder(config.out)
    _settle(folder.log(point))
    now = datetime.now(UTC).isoformat(timespec="seconds")
    print(f"--- {now} {point.checkpoint} in process {os.getpid()} on {socket.gethostname()}", file=sys.stderr)
    code = EXIT_FAILED
    try:
        Downloads(folder, config).fetch(point)
        out = folder.result(point)
        run_config = config.run_config(model=point.source, revision=point.revision, out=out)
        if run_config.cache == "none":
            run_config = dataclasses.replace(run_config, cache=str(folder.work / "cache"))
        tokens = run_config.tokens_per_batch or tokens_per_batch_on(
            check_placement(run_config.dtype, run_config.device_map)
        )
        # A snapshot of other batches is no use: overwrite lets the run start anew.
        run_config = dataclasses.replace(run_config, tokens_per_batch=max(1, tokens >> killed), overwrite=True)
        prepare(run_config, folder)
        run_in_memory(run_config)
        make_durable(out)
        code = EXIT_DONE
    except Interrupted:
        code = EXIT_STOPPED
    except BaseException as error:
        sys.stderr.write(redacted(traceback.format_exc()))
        disk_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        code = EXIT_DISK_FULL if disk_full else EXIT_FAILED
        text = str(error) if isinstance(error, SofthProbeError) else f"{type(error).__name__}: {first_sentence(error)}"
        reason.send(redacted(text))
    finally:
        sys.stderr.flush()
        os._exit(code)


def fetch_ahead(config: SweepConfig, point: GridPoint) -> None:
    """Download a checkpoint that is likely to be next. What goes wrong is told when it is its turn."""
    folder = SweepFolder(config.out)
    _settle(folder.log(point))
    try:
        Downloads(folder, config).fetch(point, ahead=True)
    except BaseException:
        sys.stderr.write(redacted(traceback.format_exc()))
    finally:
        sys.stderr.flush()
        os._exit(EXIT_DONE)


def prepare(config: RunConfig, folder: SweepFolder) -> None:
    """Tokenise and plan, once for each tokenizer: others wait, and find it in the cache.

    Raises:
        InputError: the data has changed since this sweep's first result with the same tokenizer.
    """
    source = resolve_model(config.model, revision=config.revision)
    tokenizer = load_tokenizer(source, trust_remote_code=config.trust_remote_code)
    fingerprint, identity = tokenizer_fingerprint(tokenizer), data_identity(config.data, None)
    if fingerprint is None or identity is None:  # then the cache cannot tell what it holds
        return
    key = key_of(tokenizer=fingerprint, data=identity, tokens_per_batch=config.tokens_per_batch)
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
    """Run; out of memory, with half the tokens a batch, and half of those, down to a single document."""
    from accelerate.utils import find_executable_batch_size

    assert config.tokens_per_batch is not None
    budget = config.tokens_per_batch

    def halved() -> int:
        nonlocal budget
        # A document is never cut: batches of one do not get smaller.
        budget = budget // 2 if budget > config.max_length // 2 else 0
        print(f"out of memory; tokens_per_batch is now {budget}", file=sys.stderr)
        return budget

    @find_executable_batch_size(starting_batch_size=budget, reduce_batch_size_fn=halved)
    def attempt(tokens_per_batch: int) -> None:
        run(dataclasses.replace(config, tokens_per_batch=tokens_per_batch))

    try:
        attempt()
    except RuntimeError as error:
        if "No executable batch size" in str(error):
            raise InputError(
                "out of memory, even with one document a batch; take a larger device, or --dtype"
            ) from error
        raise


def _settle(log: Path) -> None:
    """Make a forked process one of its own: its log, its signals, no life without the worker."""
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)
    sys.stdout, sys.stderr = (os.fdopen(i, "w", buffering=1, closefd=False) for i in (1, 2))
    os.setpgrp()  # Ctrl-C does not reach it: the launcher says who stops
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, lambda *_: os.kill(os.getpid(), signal.SIGUSR1))  # what submitit takes for it
    signal.signal(signal.SIGCONT, signal.SIG_DFL)
    faulthandler.enable(all_threads=False)
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=follow, daemon=True).start()
