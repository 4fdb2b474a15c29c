"""The numbers of a task's results, as lm-evaluation-harness (lm_eval) writes them. Imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any


def metric_values(values: Mapping[str, Any]) -> Iterator[tuple[str, float, float]]:
    """Take the metrics of a task, whose keys are `metric,filter` and `metric_stderr,filter`.

    >>> given = {"alias": "arc", "acc,none": 0.5, "acc_stderr,none": 0.1, "em,strict": 1, "em_stderr,strict": "N/A"}
    >>> list(metric_values(given))
    [('acc,none', 0.5, 0.1), ('em,strict', 1.0, nan)]

    Yields:
        Key, value, and standard error (NaN where there is none).
    """
    for key, value in values.items():
        metric, _, filtered = str(key).partition(",")
        if not filtered or metric.endswith("_stderr") or not _is_number(value):
            continue
        stderr: Any = values.get(f"{metric}_stderr,{filtered}")  # N/A where there is none
        yield str(key), float(value), float(stderr) if _is_number(stderr) else math.nan


def metric_name(key: str) -> str:
    """Name a metric by its key: without the filter of answers, where that is none.

    >>> metric_name("acc,none"), metric_name("em,strict")
    ('acc', 'em,strict')
    """
    return key.removesuffix(",none")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
