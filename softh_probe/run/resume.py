"""Resume an unfinished run, if it is the run that is asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from softh_probe.config import DEFAULT_INTERVAL_DOCUMENTS, EXECUTION_FIELDS, RunConfig, plain_config
from softh_probe.errors import InputError
from softh_probe.estimators.recipes import how_to_continue, how_to_continue_one_set
from softh_probe.layer_places import RESIDUAL
from softh_probe.measurement import Measurement
from softh_probe.models.checkpoint import Checkpoint
from softh_probe.planned.announced import AnnouncedRows
from softh_probe.planned.plan import Plan
from softh_probe.planned.prepared import PADDED
from softh_probe.positions import ALL
from softh_probe.probe import SoftEntropyProbe
from softh_probe.run.snapshots import Progress, Snapshots

logger = logging.getLogger(__name__)

Unfinished = tuple[Progress, dict[str, Any]]

START_ANEW = "name another folder, or add --no-resume to start it anew"


def load_snapshot(config: RunConfig, snapshots: Snapshots) -> Unfinished | None:
    """Load the newest snapshot of an unfinished run of this configuration; remove snapshots that are not to be resumed.

    Raises:
        InputError: the folder holds an unfinished run of another configuration, of another number of processes or of
            another version of softh_probe, and neither `overwrite` is on nor `resume` off.
    """

    def differing(run: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        theirs = _of_today(run["config"])
        ours = _config_to_compare(config, theirs)
        return {name: (theirs.get(name), ours[name]) for name in ours if theirs.get(name) != ours[name]}

    return find_unfinished(snapshots, differing, out=config.out, wanted=config.resume, overwrite=config.overwrite)


def find_unfinished(
    snapshots: Snapshots,
    differing: Callable[[Mapping[str, Any]], Mapping[str, tuple[Any, Any]]],
    *,
    out: str,
    wanted: bool,
    overwrite: bool,
) -> Unfinished | None:
    """Load the newest snapshot, if it is of the run that is asked for; remove those that are not to be resumed.

    Args:
        snapshots: those of the folder.
        differing: compares the fingerprint of the unfinished run: the fields that differ, with its value and ours.
        out: the folder.
        wanted: whether an unfinished run is to be resumed.
        overwrite: whether one that differs may be removed.

    Raises:
        InputError: the folder holds an unfinished run that differs.
    """
    if count := snapshots.of_another_count():
        if wanted and not overwrite:
            raise InputError(
                f"out: {out} holds an unfinished run of {count} process{'es' * (count > 1)}; start as many, "
                f"{START_ANEW}"
            )
        snapshots.clear_others()
    there = snapshots.folder.is_dir()
    try:
        found = snapshots.newest() if wanted else None
    except InputError:
        if not overwrite:
            raise
        snapshots.clear()
        return None
    if found is None:
        if there and wanted:
            logger.warning("the unfinished run's snapshots are damaged; starting anew")
        snapshots.clear()
        return None
    differs = differing(found[0].run)
    if differs and overwrite:
        snapshots.clear()
        return None
    if differs:
        what = "; ".join(f"{name}: expected {theirs!r}, got {ours!r}" for name, (theirs, ours) in differs.items())
        remedy = how_to_continue(differs["anchors"][0], "--anchors ") if "anchors" in differs else ""
        remedy += how_to_continue_one_set(*differs.get("anchor_sets", (None, None)), "--anchor-sets ")
        raise InputError(f"out: {out} holds an unfinished run of another configuration ({what}); {START_ANEW}{remedy}")
    return found


def run_fingerprint(
    config: RunConfig, checkpoint: Checkpoint, of_data: Mapping[str, Any], padding: str = PADDED
) -> dict[str, Any]:
    """Collect everything that determines a run's numbers, the same in all its processes (JSON values).

    Args:
        config: the run.
        checkpoint: the loaded model.
        of_data: identifies the documents and their batches.
        padding: what `choose_batching` chose for the checkpoint.
    """
    return {
        "config": _config_of(config),
        "weights": checkpoint.info["weights_sha256"],
        "dtype": checkpoint.info["dtype"],
        **of_data,
        "padding": padding,
    }


def resume(
    unfinished: Unfinished | None, probe: SoftEntropyProbe | None, run: dict[str, Any], rows: AnnouncedRows
) -> Progress:
    """Load the sums of an unfinished run into a probe.

    Args:
        unfinished: the run's snapshot; None starts a new run.
        probe: it has measured nothing yet; None in a process that measures nothing.
        run: fingerprint of the run that is asked for.
        rows: the rows of its labels.

    Returns:
        The progress from which the run is to be continued.

    Raises:
        InputError: weights, data or batches have changed since the snapshot, or it follows all labels, as before labels
            were sampled, and the plan a sample.
    """
    if unfinished is None:
        return Progress(run=run, batches=0, seconds=0.0, interruptions=0)
    progress, state = unfinished
    # Fields that a configuration of before lacks are null where they change nothing; before padding was checked, all
    # batches were padded.
    config_then = {**dict.fromkeys(run["config"]), **_of_today(progress.run["config"])}
    if "label_rows" not in progress.run["config"]:  # it follows all labels
        check_sample(unfinished, rows)
        config_then["label_rows"] = run["config"]["label_rows"]
    theirs = {"padding": PADDED, **progress.run, "config": config_then}
    return go_on((progress, state), probe, run, theirs)


def go_on(
    unfinished: Unfinished,
    probe: Measurement | None,
    run: dict[str, Any],
    before: Mapping[str, Any],
    *,
    what: str = "run",
    unit: str = "batches",
) -> Progress:
    """Load the sums of a snapshot into what has measured nothing yet, if nothing has changed since.

    Args:
        unfinished: the snapshot.
        probe: takes the sums; None in a process that measures nothing.
        run: fingerprint of what is asked for.
        before: that of the snapshot.
        what, unit: what it is called, and what its batches are.

    Returns:
        The progress from which it is to be continued.

    Raises:
        InputError: the fingerprints differ.
    """
    progress, state = unfinished
    if changed := [name for name in run if before.get(name) != run[name]]:
        raise InputError(
            f"out: since the unfinished {what} in this folder began, {', '.join(changed)} changed though the "
            f"configuration is the same; {START_ANEW}"
        )
    if probe is not None:
        probe.load_state_dict(state)
    logger.info("resuming after %s %s, which took %s s", f"{progress.batches:,}", unit, f"{progress.seconds:,.0f}")
    return replace(progress, run=run, interruptions=progress.interruptions + 1)


def check_sample(unfinished: Unfinished | None, rows: object) -> None:
    """Raise InputError if an unfinished run began before labels were sampled, and the plan follows a sample."""
    before = unfinished is not None and "label_rows" not in unfinished[0].run["config"]
    if before and isinstance(rows, Plan) and rows.allocation.is_sampled:
        raise InputError(
            f"out: the unfinished run in this folder follows all labels, as softh_probe did before it sampled them; "
            f"label_rows is too small for that: add --label-rows all to go on with it, or {START_ANEW}"
        )


def _of_today(config: Mapping[str, Any]) -> dict[str, Any]:
    """Add the fields that configurations of before lack: runs had no choice of these."""
    since = {
        "stream": False,
        "intervals": False,
        "interval_documents": DEFAULT_INTERVAL_DOCUMENTS,
        "positions": ALL,
        "skip_special_tokens": False,
        "sites": [RESIDUAL],
        "by_position": False,
        "anchors_sha256": None,
        "like": None,
        "center": False,
    }
    return {**since, **config}


def _config_of(config: RunConfig) -> dict[str, Any]:
    return {name: value for name, value in plain_config(config).items() if name not in EXECUTION_FIELDS}


def _config_to_compare(config: RunConfig, theirs: dict[str, Any]) -> dict[str, Any]:
    ours = _config_of(config)
    if config.max_length is None:  # the unfinished run knows
        ours.pop("max_length")
    if "label_rows" not in theirs:  # it began before labels were sampled; `resume` has the plan
        ours.pop("label_rows")
    return ours
