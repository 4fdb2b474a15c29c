"""Scores of a sweep's checkpoints on tasks: which are asked for, which are there, and the table of all.

evaluations/NAME/results_DATE.json     a task's scores, as lm-evaluation-harness writes them
work/tasks.json                        the tasks that are asked for
work/scores/NAME.json                  for each task of a checkpoint: its file, and what was asked
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from softh_probe.analysis.harness_metrics import metric_name, metric_values
from softh_probe.errors import InputError
from softh_probe.files import write_text
from softh_probe.hashing import file_sha256

#: Fields of a task's settings that decide its scores.
_DECIDING = ("limit", "num_fewshot", "definition")


@dataclass(frozen=True, kw_only=True)
class Tasks:
    """The tasks on which checkpoints are evaluated.

    Attributes:
        names: as lm-evaluation-harness calls them.
        limit: questions of each task; None takes all.
        num_fewshot: examples before each question; None is what the task says.
        path: absolute path of a folder of further tasks, or None.
        definitions: SHA-256 of the YAML file of each task that is from that folder.
    """

    names: tuple[str, ...] = ()
    limit: int | None = None
    num_fewshot: int | None = None
    path: str | None = None
    definitions: Mapping[str, str] = field(default_factory=dict)

    def settings(self, name: str) -> dict[str, Any]:
        """List what decides the scores of a task, the checkpoint aside (JSON values)."""
        return {"limit": self.limit, "num_fewshot": self.num_fewshot, "definition": self.definitions.get(name)}

    def describe(self) -> str:
        """Name the tasks in words.

        >>> Tasks(names=("arc_easy", "ifeval"), limit=200).describe()
        'arc_easy, ifeval (200 questions of each)'
        """
        return f"{', '.join(self.names)} ({f'{self.limit:,}' if self.limit else 'all'} questions of each)"


class Scores:
    """Reads and writes the scores of a sweep.

    Attributes:
        folder: the folders of the checkpoints' scores are in it.
        records: folder of the records.
        assumed: tasks that are taken to be asked for, as in a dry run; None reads which are.

    >>> import tempfile
    >>> scores = Scores(Path(tempfile.mkdtemp()))
    >>> scores.ask(Tasks(names=("letters",)))
    >>> scores.missing("step1000")
    ['letters']
    >>> scores.add("step1000", "letters", json.dumps({"results": {"letters": {"acc,none": 0.5}}}), seconds=1.0)
    >>> scores.missing("step1000"), [row["value"] for row in scores.rows("step1000")]
    ([], [0.5])
    """

    def __init__(self, out: Path) -> None:
        self.folder = out / "evaluations"
        self.records = out / "work" / "scores"
        self.assumed: Tasks | None = None
        self._asked = out / "work" / "tasks.json"

    def ask(self, tasks: Tasks) -> None:
        """Set the tasks that are asked for."""
        self._asked.parent.mkdir(parents=True, exist_ok=True)
        write_text(self._asked, json.dumps(dataclasses.asdict(tasks), indent=1, ensure_ascii=False))

    def asked(self) -> Tasks:
        """Read the tasks that are asked for."""
        if self.assumed is not None:
            return self.assumed
        values = _read(self._asked)
        return Tasks(**values | {"names": tuple(values.get("names", ()))})

    def missing(self, name: str) -> list[str]:
        """List the tasks that are asked for and have no scores of a checkpoint, which is named by its folder."""
        record = self._record(name) if (names := self.asked().names) else {}
        return [
            task for task in names if task not in record or not (self.folder / name / record[task]["file"]).is_file()
        ]

    def add(self, name: str, task: str, results: str, *, seconds: float) -> None:
        """Write a task's scores of a checkpoint, then record them.

        Args:
            name: the checkpoint's folder.
            task: one of those that are asked for.
            results: contents of the file.
            seconds: that the evaluation took.
        """
        path = self.folder / name / f"results_{datetime.now().isoformat().replace(':', '-')}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, results)
        entry = {"file": path.name, "sha256": file_sha256(path), "seconds": seconds, **self.asked().settings(task)}
        self._write_record(name, self._record(name) | {task: entry})

    def drop_damaged(self, name: str) -> list[str]:
        """Remove the files of a checkpoint's scores that are not as they were written; list their tasks."""
        record, damaged = self._record(name), []
        for task, entry in record.items():
            path = self.folder / name / entry["file"]
            if path.is_file() and file_sha256(path) != entry["sha256"]:
                path.unlink()
                damaged.append(task)
        return damaged

    def check(self, tasks: Tasks) -> None:
        """Check that scores that are there answer what is asked.

        Raises:
            InputError: a task that is asked for has scores of other settings.
        """
        for path in sorted(self.records.glob("[!.]*.json")):
            record = self._record(path.stem)
            for task in tasks.names:
                entry, wanted = record.get(task), tasks.settings(task)
                if entry is None or not (self.folder / path.stem / entry["file"]).is_file():
                    continue
                changed = [
                    f"the YAML of {task} has changed"
                    if key == "definition"
                    else f"task_{key} was {entry.get(key)!r}, is {wanted[key]!r}"
                    for key in _DECIDING
                    if entry.get(key) != wanted[key]
                ]
                if changed:
                    raise InputError(
                        f"tasks: {self.folder / path.stem} holds scores of {task} of other settings: "
                        f"{'; '.join(changed)}; go back to what it was, or remove {self.folder} to evaluate anew (what "
                        "was measured stays)"
                    )

    def files(self, name: str) -> list[Path]:
        """List the files of a checkpoint's scores that are there."""
        paths = (self.folder / name / entry["file"] for entry in self._record(name).values())
        return [path for path in paths if path.is_file()]

    def seconds(self, name: str) -> float:
        """Sum the seconds that a checkpoint's evaluations took."""
        return sum(float(entry["seconds"]) for entry in self._record(name).values())

    def rows(self, name: str) -> Iterator[dict[str, Any]]:
        """Read a checkpoint's scores, task by task and metric by metric.

        Returns:
            Rows of `task`, `metric` (with the filter of answers, where it is not none), `value` and `stderr` (NaN where
            there is none).

        Raises:
            ValueError: a file is damaged.
        """
        found = {}
        for path in self.files(name):
            for task, values in json.loads(path.read_text(encoding="utf-8"))["results"].items():
                for key, value, stderr in metric_values(values):
                    row = {"task": task, "metric": metric_name(key), "value": value, "stderr": stderr}
                    found[task, key] = row
        yield from found.values()

    def describe(self, names: Iterable[str]) -> str | None:
        """Count the checkpoints whose scores are whole; None where no tasks are asked for."""
        tasks = self.asked()
        if not tasks.names:
            return None
        missing = [bool(self.missing(name)) for name in names]
        return f"tasks: {tasks.describe()}: scores of {missing.count(False)} of {len(missing)} checkpoints"

    def _record(self, name: str) -> dict[str, Any]:
        return _read(self.records / f"{name}.json")

    def _write_record(self, name: str, record: Mapping[str, Any]) -> None:
        self.records.mkdir(parents=True, exist_ok=True)
        write_text(self.records / f"{name}.json", json.dumps(record, indent=1, ensure_ascii=False))


def _read(path: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one where there is none, or a damaged one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
