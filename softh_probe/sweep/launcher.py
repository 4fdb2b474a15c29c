"""sweep(): start workers and replace those that die, until every checkpoint is done or has failed for good."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from softh_probe.redaction import log_to_stderr
from softh_probe.sweep.config import SweepConfig
from softh_probe.sweep.document_length import with_shared_length
from softh_probe.sweep.downloads import Downloads
from softh_probe.sweep.folder import DONE, FAILED, RUNNING, WAITING, Failure, SweepFolder
from softh_probe.sweep.grid import GridPoint, expand
from softh_probe.sweep.pools import Pool, new_pool
from softh_probe.sweep.tasks import check_tasks

if TYPE_CHECKING:
    from softh_probe.sweep.collection import Collection

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Outcome:
    """The outcome of a sweep.

    Attributes:
        done: checkpoints with a result.
        failed: checkpoints that failed for good, with their last failure.
        waiting: checkpoints that are to be tried again, because a problem stopped the sweep.
        problem: the problem that stopped the sweep, or None.
        warnings: notes for readers of the table: equal weights, steps out of order.
        correlation: what the correlation with scores on tasks says; empty without scores.
    """

    done: list[GridPoint] = field(default_factory=list)
    failed: list[tuple[GridPoint, Failure]] = field(default_factory=list)
    waiting: list[GridPoint] = field(default_factory=list)
    problem: str | None = None
    warnings: list[str] = field(default_factory=list)
    correlation: str = ""


def sweep(config: SweepConfig, *, progress: bool = True) -> Outcome:
    """Measure every checkpoint of the grid that has no result yet, then collect them all.

    Args:
        config: what to sweep, and where.
        progress: show a bar, and which checkpoints fail, on standard error.

    Returns:
        The checkpoints that are done, and those that failed with their reasons. A failed checkpoint raises nothing:
        all others are measured all the same.

    Raises:
        InputError: the configuration cannot be used, or differs from that of the results in its folder.
        KeyboardInterrupt: stopped by the user; local workers are stopped too. The same call resumes the sweep.
    """
    points = expand(config)
    config, notes = with_shared_length(config, points)
    folder = SweepFolder(config.out)
    pool = new_pool(config, folder, points)
    folder.start(config, points, check_tasks(config))
    with log_to_stderr() if progress else nullcontext(), ExitStack() as stack:
        stack.callback(pool.stop)
        with _Bar(points, folder, enabled=progress) as bar:
            problem = _watch(pool, bar)
        if problem:
            stack.close()  # what workers do now is finished first
        Downloads(folder, config).tidy()
        outcome = _outcome(bar, problem)
        if not outcome.waiting:
            shutil.rmtree(folder.work / "cache", ignore_errors=True)
        collection = _collect(config.out)
        outcome.warnings, outcome.correlation = notes + collection.warnings, collection.correlation
    return outcome


def _outcome(bar: _Bar, problem: str | None) -> Outcome:
    outcome = Outcome(problem=problem)
    for point, state in bar.states().items():
        if state.status == DONE:
            outcome.done.append(point)
        elif state.status == FAILED and state.failure:
            outcome.failed.append((point, state.failure))
        else:
            outcome.waiting.append(point)
    return outcome


def _collect(out: str | Path) -> Collection:
    from softh_probe.sweep.collection import collect  # imports torch, matplotlib and plotly

    return collect(out)


@cache
def _import_ahead() -> None:
    """Import what collects the results, and read its fonts, while workers start, which takes as long."""
    with suppress(Exception):  # collecting says why, and keeps the tables
        import softh_probe.report.page
        import softh_probe.sweep.collection  # noqa: F401
        from softh_probe.report.figure_style import lay_out, one_panel

        lay_out(one_panel("fonts", "", "")[0])


def _watch(pool: Pool, bar: _Bar) -> str | None:
    """Keep workers running until nothing is left to do; return the problem that stopped it earlier, if any."""
    while True:
        statuses = [state.status for state in bar.update().values()]
        waiting, running = statuses.count(WAITING), statuses.count(RUNNING)
        if not waiting and not running:
            return None
        alive = pool.n_alive()
        if pool.problem:
            return pool.problem
        idle = max(0, alive - running)  # workers that are starting
        if wanted := min(pool.n_workers - alive, waiting - idle):
            pool.start(max(0, wanted))
            _import_ahead()
        time.sleep(pool.poll_s)


class _Bar:
    """Shows a sweep's progress: a bar, and a line when a checkpoint fails; the outcome says why."""

    def __init__(self, points: Sequence[GridPoint], folder: SweepFolder, *, enabled: bool) -> None:
        self._points, self._folder, self._enabled = points, folder, enabled
        self._done: dict[str, Any] = {}
        self._logged: dict[str, str] = {}

    def __enter__(self) -> _Bar:
        done = sum(state.status == DONE for state in self.states().values())
        self._bar = tqdm(
            total=len(self._points),
            initial=done,
            desc="sweep",
            unit="checkpoint",
            disable=not self._enabled,
            file=sys.stderr,
            smoothing=0.1,
            mininterval=0.1 if sys.stderr.isatty() else 30,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def states(self) -> dict[GridPoint, Any]:
        """Read the status of every checkpoint; a finished one is looked at only once."""
        now = self._folder.states(p for p in self._points if p.folder not in self._done)
        self._done |= {point.folder: state for point, state in now.items() if state.status == DONE}
        return {point: self._done.get(point.folder) or now[point] for point in self._points}

    def update(self) -> dict[GridPoint, Any]:
        """Read and show the status of every checkpoint."""
        states = self.states()
        counts = {s: sum(state.status == s for state in states.values()) for s in (RUNNING, FAILED, WAITING)}
        self._bar.set_postfix(counts, refresh=False)
        self._bar.update(len(self._done) - self._bar.n)
        for point, state in states.items():
            if state.failure and self._logged.get(point.folder) != (stamp := f"{state.failure}"):
                self._logged[point.folder] = stamp
                verdict = "failed" if state.status == FAILED else "failed, to be tried again"
                with tqdm.external_write_mode(file=sys.stderr):  # the line does not run into the bar
                    logger.info("%s: %s (log: %s)", point.checkpoint, verdict, state.failure.log)
        return states
