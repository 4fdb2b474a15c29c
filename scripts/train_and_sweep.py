"""Models as points, without a hub: two small models are trained on real text, swept, and given a test of that text.

    python scripts/train_and_sweep.py                                      # Python's help texts
    python scripts/train_and_sweep.py --data FILE.jsonl --steps 512 --out out/mine      # texts of one's own

A paragraph counts once, and one piece of text in six is held out. Both models learn from the same batches and are saved
at steps 0, 1, 2, 4 … last. `softh_probe.sweep` measures every checkpoint on the text held out and lets
lm-evaluation-harness ask it the cloze task: which of four words comes next? The three wrong ones are about as frequent
as the right one, so knowing frequencies alone gives chance, 0.25. The end is a picture of the models' paths through the
information plane, their learning, and the correlation of optimality with the score. The same command again goes on
with what is left; --overwrite begins anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from small_models.cloze import write_cloze
from small_models.picture import draw
from small_models.training import Plan, as_stream, cut, read_texts, train_model, train_tokenizer, write_texts

from softh_probe.sweep import SweepConfig, sweep

#: Models: blocks, width, attention heads.
SHAPES = {"small": (4, 128, 4), "large": (6, 256, 8)}
QUICK = {"small": (2, 32, 2), "large": (3, 48, 4)}


def prepare(out: Path, plan: Plan, *, overwrite: bool) -> None:
    """Make the folder of results, or see that it is one of the same plan.

    Raises:
        SystemExit: it is of another plan, or of something else.
    """
    written, file = json.dumps(asdict(plan), indent=1), out / "plan.json"
    if not file.exists() and out.exists() and any(out.iterdir()):
        raise SystemExit(f"--out: expected a new folder or one of this script, got {out}, which holds something else")
    if overwrite and file.exists():
        for made in ("models", "cloze", "sweep"):
            shutil.rmtree(out / made, ignore_errors=True)
    elif file.exists() and file.read_text() != written:
        raise SystemExit(f"--out: {out} was made with other settings (plan.json); give --overwrite, or another folder")
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(written)


def train_all(out: Path, plan: Plan, pieces: list[str]) -> float:
    """Train what is not trained yet, write texts and task; returns the entropy of the tokens held out, in nats."""
    train, held_out = write_texts(out, pieces)
    tokenizer = train_tokenizer(train, plan.vocabulary)
    n_items = write_cloze(out / "cloze", train, held_out, tokenizer, plan.n_items)
    train_T, held_T = as_stream(train, tokenizer), as_stream(held_out, tokenizer)
    share = torch.bincount(held_T).double() / len(held_T)
    entropy = torch.special.entr(share).sum().item()
    print(
        f"{len(train_T):,} tokens to learn from; {len(held_T):,} held out, unigram entropy {entropy:.2f} nats; ", end=""
    )
    print(f"{n_items} items of the cloze task")
    for name in plan.shapes:
        if not (out / "models" / name / "training.json").exists():
            train_model(name, out / "models" / name, plan, tokenizer, train_T, held_T)
    return entropy


def sweep_all(out: Path, plan: Plan) -> None:
    """Measure and evaluate every checkpoint; the collection correlates both.

    Raises:
        SystemExit: a checkpoint failed, or the sweep was stopped.
    """
    config = SweepConfig(
        model=[str(out / "models" / name / "checkpoint-*") for name in plan.shapes],
        data=str(out / "held_out.jsonl"),
        text_column="text",
        out=str(out / "sweep"),
        labels=["input_unigram", "output_unigram", "input_bigram", "output_bigram"],
        tokens_per_step=plan.sequences * plan.length,
        workers=2,
        gpus_per_worker=0,  # models this small need none
        tasks="cloze",
        task_path=str(out / "cloze"),
    )
    outcome = sweep(config)
    if outcome.problem or outcome.failed:
        reasons = [f"{point.checkpoint}: {failure.reason}" for point, failure in outcome.failed]
        raise SystemExit("\n".join([*reasons, *filter(None, [outcome.problem])]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="JSON lines with a key text; null is Python's help texts")
    parser.add_argument("--steps", type=int, help="of training; 256, or 20 with --quick")
    parser.add_argument("--out", type=Path, default=Path("out/train_and_sweep"))
    parser.add_argument("--quick", action="store_true", help="models of no use, in a minute: 3 checkpoints each")
    parser.add_argument("--overwrite", action="store_true", help="begin anew")
    arguments = parser.parse_args()
    if arguments.steps is not None and arguments.steps < 2:
        parser.error(f"--steps: expected 2 or more, got {arguments.steps}")
    pieces = cut(read_texts(arguments.data))
    shapes = QUICK if arguments.quick else SHAPES
    sizes = {"sequences": 4, "length": 64, "vocabulary": 512, "n_items": 40} if arguments.quick else {}
    plan = Plan(
        steps=arguments.steps or (20 if arguments.quick else 256),
        shapes=shapes,
        n_checkpoints=3 if arguments.quick else 10,
        texts_sha256=hashlib.sha256("".join(pieces).encode()).hexdigest(),
        **sizes,
    )
    prepare(arguments.out, plan, overwrite=arguments.overwrite)
    entropy = train_all(arguments.out, plan, pieces)
    sweep_all(arguments.out, plan)
    draw(arguments.out, plan, entropy)
    print(f"picture: {arguments.out / 'train_and_sweep.png'}; pages: {arguments.out / 'sweep' / 'report.html'}")
    print(f"correlations of all metrics with the score: {arguments.out / 'sweep' / 'correlations.html'}")


if __name__ == "__main__":
    main()
