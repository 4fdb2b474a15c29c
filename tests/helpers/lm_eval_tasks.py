"""Tasks of lm-evaluation-harness that need no hub."""

from pathlib import Path
from typing import Any


def multiple_choice(name: str, rows: Path, *metrics: str) -> dict[str, Any]:
    """The YAML of a task whose rows of JSON have a question, choices and the number of the answer."""
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "metric_list": [{"metric": metric} for metric in metrics],
    }
