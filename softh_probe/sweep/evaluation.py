"""Evaluate a checkpoint on tasks of lm-evaluation-harness, beside its measurement.

The checkpoint is loaded a second time, with its head: what is measured is loaded without one, under other checks.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Callable
from typing import Any

from softh_probe.errors import InputError, is_disk_full, reason_of
from softh_probe.models.checkpoint import Checkpoint, load_with_head
from softh_probe.models.source import resolve_model
from softh_probe.models.tokenizer import load_tokenizer
from softh_probe.patching import replaced
from softh_probe.result_files import read_info
from softh_probe.sweep.config import SweepConfig
from softh_probe.sweep.folder import SweepFolder, make_durable
from softh_probe.sweep.grid import GridPoint
from softh_probe.sweep.halving import with_less_memory
from softh_probe.sweep.scores import Tasks
from softh_probe.sweep.tasks import task_manager

#: Requests of a forward pass.
_BATCH_ON_CPU, _BATCH = 8, 16
_NOT_EVALUATED = "it was measured, but not evaluated"

logger = logging.getLogger(__name__)


def evaluate(config: SweepConfig, point: GridPoint, folder: SweepFolder, *, killed: int = 0) -> None:
    """Evaluate a measured checkpoint on the tasks that it has no scores of, and write them, task by task.

    A task that fails does not stop the others.

    Args:
        config: the sweep.
        point: the checkpoint.
        folder: of the sweep; its scores know the tasks.
        killed: number of earlier attempts that the system killed; each halves the batch.

    Raises:
        InputError: the checkpoint cannot be evaluated, or not on all tasks.
        OSError: the disk is full.
    """
    tasks = folder.scores.asked()
    missing = folder.scores.missing(point.folder)
    if not missing:
        return
    manager, problems = task_manager(tasks.path, tasks.names), []
    with _loaded(config, point, folder) as checkpoint:
        harness = _Harness(config, point, checkpoint, killed=killed)
        for task in missing:
            logger.info("evaluation on %s: started", task)
            began = time.monotonic()
            try:
                results = harness.evaluate(task, tasks, manager)
            except Exception as error:
                if is_disk_full(error):
                    raise
                logger.exception("evaluation on %s: failed", task)
                problems.append(f"{task}: {reason_of(error)}")
                continue
            folder.scores.add(point.folder, task, results, seconds=time.monotonic() - began)
    if there := folder.scores.files(point.folder):
        make_durable(there[0].parent)
    if problems:
        raise InputError(f"{_NOT_EVALUATED} on {'; '.join(problems)}")


def _loaded(config: SweepConfig, point: GridPoint, folder: SweepFolder) -> Checkpoint:
    """Load the weights that were measured, with their head."""
    commit = read_info(folder.result(point)).get("model", {}).get("commit")  # a branch may have moved on since
    try:
        return load_with_head(
            resolve_model(point.source, revision=commit or point.revision),
            dtype=config.dtype,
            device_map=config.device_map,
            trust_remote_code=config.trust_remote_code,
            allow_pickle=config.allow_pickle,
            model_kwargs=config.model_kwargs,
        )
    except InputError as error:
        raise InputError(f"{_NOT_EVALUATED}: {error}") from error


class _Harness:
    """lm-evaluation-harness with one loaded checkpoint."""

    def __init__(self, config: SweepConfig, point: GridPoint, checkpoint: Checkpoint, *, killed: int) -> None:
        self._checkpoint, self._point = checkpoint, point
        info = checkpoint.info
        self._tokenizer = load_tokenizer(
            resolve_model(point.source, revision=info["revision"]),
            tokenizer=config.tokenizer,
            trust_remote_code=config.trust_remote_code,
        )
        if self._tokenizer.bos_token_id is None and self._tokenizer.eos_token_id is None:
            raise InputError(
                f"{_NOT_EVALUATED}: its tokenizer names no first and no last token (bos_token, eos_token), of which "
                "lm-evaluation-harness needs one; add it to tokenizer_config.json, or name a tokenizer by --tokenizer"
            )
        on_cpu = checkpoint.model.device.type == "cpu"
        self._batch = max(1, (config.task_batch_size or (_BATCH_ON_CPU if on_cpu else _BATCH)) >> killed)
        given = {"pretrained": point.source, "revision": point.revision, "tokenizer": config.tokenizer}
        self._model_args = {name: value for name, value in given.items() if value} | {"dtype": info["dtype"]}

    def evaluate(self, task: str, tasks: Tasks, manager: Any) -> str:
        """Evaluate on one task; return the contents of a results file, as the harness writes them.

        When out of memory, the batch is halved, and stays so for the tasks that follow.

        Raises:
            InputError: not even one request fits in memory.
        """

        def halved() -> int:
            self._batch //= 2
            logger.info("out of memory; %d requests at once now", self._batch)
            return self._batch

        def attempt(batch: int) -> str:
            return self._attempt(task, tasks, manager, batch)

        try:
            return with_less_memory(
                attempt, self._batch, halved, "one request at once; take a larger device, or --dtype"
            )
        finally:
            self._batch = max(1, self._batch)

    def _attempt(self, task: str, tasks: Tasks, manager: Any, batch: int) -> str:
        from lm_eval import evaluator
        from lm_eval.loggers import EvaluationTracker
        from lm_eval.models.huggingface import HFLM
        from lm_eval.utils import handle_non_serializable

        lm = HFLM(pretrained=self._checkpoint.model, tokenizer=self._tokenizer, batch_size=batch)
        lm.pretrained, lm.revision = "", ""  # the harness would ask the hub for what is known here
        tracker = EvaluationTracker()
        with replaced(evaluator, "add_env_info", _add_environment):
            results: dict[str, Any] = evaluator.simple_evaluate(
                model=lm,
                model_args=self._model_args,
                tasks=[task],
                num_fewshot=tasks.num_fewshot,
                batch_size=batch,
                device=str(lm.device),
                limit=tasks.limit,
                log_samples=False,
                evaluation_tracker=tracker,
                task_manager=manager,
            )
        about = tracker.general_config_tracker
        about.log_end_time()
        results |= {"task_hashes": {}, **dataclasses.asdict(about), "model_source": "hf"}
        commit = self._checkpoint.info["commit"]
        results["config"] |= {
            "model": "hf",
            "model_revision": self._point.revision or "main",
            "model_sha": commit or "",
        }
        return json.dumps(results, indent=2, default=handle_non_serializable, ensure_ascii=False)


_environment: dict[str, Any] = {}


def _add_environment(original: Callable[[dict[str, Any]], None], results: dict[str, Any]) -> None:
    """Add what the harness records of this machine, which takes it a second, once in a process."""
    if not _environment:
        original(_environment)
    results.update(_environment)
