"""Do numbers of soft-entropy 0.1.5 go on, and what does each of its settings move?

    python scripts/continue_numbers.py                       # SmolLM2-135M, 64 texts in seven languages, 2 minutes
    python scripts/continue_numbers.py --model FOLDER --data FILE.jsonl --documents 500

Measures the same texts with that package (`pip install --no-deps soft-entropy==0.1.5`) and with `--like
soft-entropy-0.1.5`, and prints the largest difference of all its numbers. Then one setting after the other is that of
softh_probe: the means over layers move by so much. Values are in units of log m.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saved_model import load, save

from softh_probe.config import RunConfig
from softh_probe.presets import PRESETS
from softh_probe.run import run

LIKE = "soft-entropy-0.1.5"
ORDERS = ("unigram", "bigram", "trigram")
#: What is shown, by its names here and there.
SHOWN = {
    ("", "entropy"): "H(Z)",
    ("input_unigram", "mutual_information"): "I(X;Z)/input_unigram",
    ("output_unigram", "mutual_information"): "I(X;Z)/output_unigram",
}
#: Settings that differ, one at a time, and all of them.
CHANGES: Mapping[str, Mapping[str, Any]] = {
    "--calibration exact": {"calibration": "exact"},
    "--anchors iid": {"anchors": "iid"},
    "eight anchor sets": {"anchor_sets": 8},
    "mean over layer.1 … layer.L": {"mean_over": None},
    "all of these": {"calibration": "exact", "anchors": "iid", "anchor_sets": 8, "mean_over": None},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=".cache/SmolLM2-135M-Instruct.Q4_1.gguf", help="a folder or a .gguf file")
    parser.add_argument("--data", type=Path, default=Path(".cache/languages.jsonl"), help="JSON lines with a key text")
    parser.add_argument("--documents", type=int, default=64, help="at even distances in the data")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = str(folder / "model")
        save(*load(arguments.model), folder / "model")
        lines = arguments.data.read_text(encoding="utf-8").splitlines()
        n = min(arguments.documents, len(lines))
        (folder / "data").mkdir()
        chosen = "\n".join(lines[i * len(lines) // n] for i in range(n)) + "\n"
        (folder / "data" / "train.jsonl").write_text(chosen, encoding="utf-8")
        theirs = measured_there(model, folder / "data", n)
        common: dict[str, Any] = {
            "model": model,
            "data": str(folder / "data"),
            "text_column": "text",
            "labels": [f"{way}_{order}" for order in ORDERS for way in ("input", "output")],
            "report": False,
            "cache": "none",
        }
        run(RunConfig(**common, like=LIKE, out=str(folder / "like")), progress=False)
        ours = json.loads((folder / "like" / "soft_entropy.json").read_text())
        pairs = list(zip([*ours["per_layer"], ours["mean"]], [*theirs["per_layer"], theirs["mean"]], strict=True))
        apart = max(abs(here[key] - there[key]) for here, there in pairs for key in there)
        print(f"{sum(len(there) for _, there in pairs)} numbers, at most {apart:.1e} apart")
        print(line("mean over layers", list(SHOWN.values())))
        print("|---|" + "---|" * len(SHOWN))
        print(line("soft-entropy 0.1.5", [f"{theirs['mean'][key]:.4f}" for key in SHOWN.values()]))
        for name, change in CHANGES.items():
            out = str(folder / name.replace("/", "_"))
            settings = {**PRESETS[LIKE], **change}
            table = run(RunConfig(**common, **settings, out=out), progress=False).to_pandas()
            mean = table[table.name == "mean"].set_index(["label_set", "metric"]).value
            print(line(name, [f"{mean[key] - theirs['mean'][there]:+.4f}" for key, there in SHOWN.items()]))


def line(name: str, cells: Sequence[str]) -> str:
    """A line of a table in Markdown."""
    return f"| {name} | {' | '.join(cells)} |"


def measured_there(model: str, data: Path, n_documents: int) -> dict[str, Any]:
    """Measure with the package itself."""
    from soft_entropy import LLMInferrer

    inferrer = LLMInferrer(model, str(data), label_types=list(ORDERS), text_column="text")
    found: dict[str, Any] = inferrer.run(n_documents, batch_size=8)
    return found


if __name__ == "__main__":
    main()
