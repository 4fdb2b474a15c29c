"""A cloze task for lm-evaluation-harness, made of a text: which of four words comes next?"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

#: Words before the one that is asked for.
CONTEXT = 24


def write_cloze(folder: Path, train: list[str], held_out: list[str], tokenizer: Any, n_items: int) -> int:
    """Write the task `cloze`; returns the number of its items.

    An item is a word of the text held out, after the 24 words before it. It and the wrong words are single tokens, and
    neighbours in the order of frequency in the training text. No word is asked for more than three times.

    Raises:
        SystemExit: fewer than 20 items are found.
    """
    chance = random.Random(0)
    count = Counter(word for text in train for word in re.findall(r"(?<= )[A-Za-z]{3,}(?=[ .,;:)])", text))
    ranked = [word for word, n in count.most_common() if n >= 5 and len(tokenizer(f" {word}").input_ids) == 1]
    rank = {word: i for i, word in enumerate(ranked)}
    places = [(text.split(), i) for text in held_out for i in range(CONTEXT, len(text.split()))]
    chance.shuffle(places)
    items: list[dict[str, Any]] = []
    asked: Counter[str] = Counter()
    for words, i in places:
        right = words[i].rstrip(".,;:)")
        if len(items) == n_items or len(ranked) < 4 or right not in rank or asked[right] == 3:
            continue
        asked[right] += 1
        near = sorted((word for word in ranked if word != right), key=lambda word: abs(rank[word] - rank[right]))[:12]
        choices = [right, *chance.sample(near, 3)]
        chance.shuffle(choices)
        context = " ".join(words[i - CONTEXT : i])
        items.append({"context": context, "choices": choices, "answer": choices.index(right)})
    if len(items) < 20:
        raise SystemExit(f"--data: expected texts of more than {CONTEXT} words, of which many recur; give more text")
    folder.mkdir(exist_ok=True)
    lines = "".join(json.dumps(item) + "\n" for item in items)
    (folder / "cloze.jsonl").write_text(lines, encoding="utf-8")
    task = {
        "task": "cloze",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str((folder / "cloze.jsonl").resolve())}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "cloze.yaml").write_text(yaml.safe_dump(task))
    return len(items)
